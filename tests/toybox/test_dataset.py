"""Pictures of the toy world: deterministic, true, in shards that resume; and the bundle of subjects."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

pytest.importorskip("mitsuba")

from dreambooth.errors import UserError
from dreambooth.toybox.world import bundle, dataset, vocabulary
from dreambooth.toybox.world.captions import prompt
from dreambooth.toybox.world.renderer import render, render_mask
from dreambooth.toybox.world.scenes import FIRST_SEED, Scene, from_dict, random_scene
from dreambooth.toybox.world.subjects import draw_subject

SAMPLES = 9


def pixels(scene: Scene, size: int = 64, samples: int = SAMPLES) -> np.ndarray:
    return np.asarray(render(scene, size, samples), np.float32)


def test_a_picture_is_its_scene() -> None:
    scene = random_scene(12)
    first = render(scene, 32, SAMPLES)
    assert first.size == (32, 32)
    assert first.mode == "RGB"
    assert np.array_equal(np.asarray(first), np.asarray(render(scene, 32, SAMPLES)))


def test_every_class_context_and_style_gives_a_picture() -> None:
    contexts, styles = list(vocabulary.CONTEXTS), list(vocabulary.STYLES)
    for index, context in enumerate(contexts):
        cls = vocabulary.CLASSES[index % len(vocabulary.CLASSES)]
        style = styles[index] if index < len(styles) else None
        image = pixels(Scene(index, cls, index, context, style=style), 24, 4)
        assert image.std() > 8, (cls, context, style)


def test_a_flat_wall_is_clean() -> None:
    """The spread over seeds of one pixel of a wall is below 3 of 255 (the camera is the same in all)."""
    from dreambooth.toybox.world import renderer

    mi = renderer.mitsuba()
    scene = Scene(5, "bear", 77, "on top of a wooden floor")
    shot = renderer.compose(scene, np.random.default_rng(1))
    loaded = mi.load_dict(renderer._description(shot, scene, 64, renderer.SAMPLES))
    kind = (mi.Bitmap.PixelFormat.RGB, mi.Struct.Type.UInt8, True)
    shots = [np.array(mi.Bitmap(mi.render(loaded, seed=seed)).convert(*kind), np.float32) for seed in range(3)]
    assert np.sqrt(np.var([shot[3:16, 2:14] for shot in shots], axis=0, ddof=1).mean()) < 3


@pytest.mark.parametrize(("colour", "channel"), [("red", 0), ("green", 1), ("blue", 2)])
def test_an_asked_colour_is_seen_where_the_mask_says(colour: str, channel: int) -> None:
    scene = Scene(3, "backpack", 8, "on a white background", colour=colour)
    seen = np.asarray(render_mask(scene, 64)) > 0
    assert 0.08 < seen.mean() < 0.6
    inside = pixels(scene)[seen].mean(0)
    others = [inside[index] for index in range(3) if index != channel]
    assert inside[channel] > 1.25 * max(others)
    outside = pixels(scene)[~seen].mean(0)
    assert outside.min() > 200


def test_masks_leave_out_the_outfit_and_are_black_and_white() -> None:
    bare = Scene(3, "bear", 8, "on a white background", view="front")
    dressed = Scene(3, "bear", 8, "on a white background", view="front", accessory="in a chef outfit")
    plain, covered = (np.asarray(render_mask(scene, 64)) for scene in (bare, dressed))
    assert set(np.unique(plain)) == {0, 255}
    assert 0.3 * plain.sum() < covered.sum() < 0.9 * plain.sum()


def test_views_differ_and_show_the_same_subject() -> None:
    views = [pixels(Scene(3, "dog", 57, "on a white background", view=view)) for view in vocabulary.VIEWS]
    for index, one in enumerate(views):
        for other in views[index + 1 :]:
            assert np.abs(one - other).mean() > 3


# Shards ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of eight scenes, the first four of them of one subject, at few samples."""
    monkeypatch.setattr(dataset, "SHARD", 8)
    monkeypatch.setattr(dataset, "GROUPED", 4)
    monkeypatch.setattr(dataset, "SIZE", 16)
    monkeypatch.setattr(dataset, "render", lambda scene, size: render(scene, size, 4))


def test_scenes_of_the_set() -> None:
    scenes = [dataset.scene_of(index, 1) for index in range(4 * 256)]
    groups = Counter((scene.cls, scene.subject_seed) for scene in scenes)
    assert Counter(groups.values()) == {4: 4 * 26, 1: 4 * 152}
    assert len({scene.seed for scene in scenes}) == len(scenes)
    assert scenes[:8] == [dataset.scene_of(index, 1) for index in range(8)]
    assert scenes[0] != dataset.scene_of(0, 2)


def test_bundled_subjects_are_never_trained_on() -> None:
    bundled = {seed for _, seed in bundle.BUNDLE.values()}
    assert max(bundled) < FIRST_SEED
    assert not bundled & {dataset.scene_of(index, 1).subject_seed for index in range(2000)}


@pytest.mark.usefixtures("small")
def test_shards_are_whole_and_resumed(tmp_path: Path) -> None:
    dataset.render_dataset(tmp_path, 16, seed=4, processes=1)
    images, records = dataset.load_dataset(tmp_path)
    assert images.shape == (16, 16, 16, 3)
    assert images.dtype == np.uint8
    assert not list(tmp_path.glob("*.part"))
    for index, record in enumerate(records):
        scene = from_dict(record["scene"])
        assert scene == dataset.scene_of(index, 4)
        assert record["seed"] == scene.seed
        assert record["caption"] == dataset.words(scene)
        keys = "class subject_seed context view accessory properties colour material style expression hybrid"
        assert set(record["scene"]) == {*keys.split(), "sculpture", "planted", "seed"}
    (tmp_path / "shard_00001.npy").unlink()
    kept = (tmp_path / "shard_00000.npy").stat().st_mtime_ns
    dataset.render_dataset(tmp_path, 16, seed=4, processes=1)
    assert (tmp_path / "shard_00000.npy").stat().st_mtime_ns == kept
    assert np.array_equal(dataset.load_dataset(tmp_path)[0], images)
    assert np.array_equal(dataset.load_dataset(tmp_path, slice(1, 2))[0], images[8:])


@pytest.mark.usefixtures("small")
def test_a_shard_another_process_is_at_is_left_to_it(tmp_path: Path) -> None:
    with FileLock(tmp_path / "shard_00000.lock"):
        dataset.render_dataset(tmp_path, 16, seed=4, processes=1)
    assert [path.name for path in sorted(tmp_path.glob("*.npy"))] == ["shard_00001.npy"]


@pytest.mark.usefixtures("small")
def test_a_shard_cut_short_leaves_no_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(scene: Scene, size: int) -> Image.Image:
        raise KeyboardInterrupt

    monkeypatch.setattr(dataset, "render", fail)
    with pytest.raises(KeyboardInterrupt):
        dataset.render_dataset(tmp_path, 8, seed=4, processes=1)
    with pytest.raises(FileNotFoundError, match="no shards in"):
        dataset.load_dataset(tmp_path)


# The bundle -----------------------------------------------------------------------------------------------------------


def test_bundled_subjects_have_patterns_and_three_colours() -> None:
    assert len(bundle.BUNDLE) == 12
    assert len({cls for cls, _ in bundle.BUNDLE.values()}) == 12
    for cls, seed in bundle.BUNDLE.values():
        subject = draw_subject(cls, seed)
        assert subject.colour is None
        assert subject.pattern != "solid"
        one, two, three = np.asarray(subject.palette)
        assert min(np.abs(one - two).sum(), np.abs(one - three).sum(), np.abs(two - three).sum()) > 0.5


@pytest.mark.parametrize("cls", ["dog", "teapot"])
def test_photos_and_truth_never_share_a_context(cls: str) -> None:
    photos, truth = bundle.subject_scenes(cls, 57)
    assert (len(photos), len(truth)) == (5, 8)
    assert len({scene.context for scene in photos + truth}) == 13
    assert {scene.subject_seed for scene in photos + truth} == {57}
    assert not any(scene.accessory or scene.properties or scene.colour for scene in photos)
    assert {scene.view for scene in truth} == {None, "side", "back", "top"}
    assert bundle.subject_scenes(cls, 57) == (photos, truth)


def test_render_subject(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "SIZE", 16)
    monkeypatch.setattr(bundle, "SAMPLES", 4)
    bundle.render_subject("dog", 57, tmp_path)
    described = json.loads((tmp_path / "subject.json").read_text(encoding="utf-8"))
    assert (described["class"], described["seed"]) == ("dog", 57)
    assert len(described["contexts"]) == 5
    for part, count in (("photos", 5), ("truth", 8)):
        for folder in (tmp_path / part, tmp_path / "masks" / part):
            assert sorted(path.name for path in folder.iterdir()) == [f"{index:02d}.png" for index in range(count)]
        assert set(np.unique(np.asarray(Image.open(tmp_path / "masks" / part / "00.png")))) <= {0, 255}
        for entry in described[part]:
            assert entry["prompt"] == prompt(from_dict(entry["scene"]))
            assert "[V] dog" in entry["prompt"]
            assert Image.open(tmp_path / part / entry["file"]).size == (16, 16)


def test_an_unknown_class_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no class 'dragon' in the toy world: choose one of dog, cat"):
        bundle.render_subject("dragon", 1, tmp_path)
