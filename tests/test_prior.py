"""Class images: from frozen weights, the same set however it comes about, and never another set by mistake."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, DiffusionPipeline
from PIL import Image

from dreambooth import families, prior
from dreambooth.errors import UserError
from dreambooth.families import Family
from dreambooth.files import write_json
from dreambooth.models import Source, resolve
from dreambooth.progress import Silent
from tests.test_loop import recipe_for


@pytest.fixture
def frozen(tiny_sd: Path) -> tuple[DiffusionPipeline, Family, Source]:
    source = resolve(str(tiny_sd))
    family = families.get(source.family)
    return family.load(source, torch.float32), family, source


def make(
    frozen: tuple[DiffusionPipeline, Family, Source], folder: Path | None, count: int = 30, **values: object
) -> prior.ClassImages:
    pipe, family, source = frozen
    recipe = recipe_for(source.path, prior_count=count, prior_steps=2, prior_guidance=2.0, **values)
    images = prior.plan(pipe, family, source, recipe, "dog", folder)
    prior.make(pipe, family, images, Silent())
    return images


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.png"))}


def test_the_model_is_not_changed_by_drawing(frozen: tuple[DiffusionPipeline, Family, Source], tmp_path: Path) -> None:
    pipe = frozen[0]
    before = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    scheduler = pipe.scheduler
    make(frozen, tmp_path)
    assert all(torch.equal(before[name], value) for name, value in pipe.unet.state_dict().items())
    assert pipe.scheduler is scheduler


def test_topped_up_interrupted_and_split_sets_are_the_same_as_one_made_at_once(
    frozen: tuple[DiffusionPipeline, Family, Source], tmp_path: Path
) -> None:
    at_once = make(frozen, tmp_path / "once")
    topped = make(frozen, tmp_path / "topped", count=1)
    assert len(hashes(topped.folder)) == 25, "batches are drawn whole"
    make(frozen, tmp_path / "topped")
    assert hashes(tmp_path / "topped") == hashes(at_once.folder)

    for lost in (3, 17, 26):
        at_once.path(lost).unlink()
    make(frozen, tmp_path / "once")
    assert hashes(tmp_path / "once") == hashes(tmp_path / "topped")

    pipe, family, source = frozen
    recipe = recipe_for(source.path, prior_count=30, prior_steps=2, prior_guidance=2.0)
    split = prior.plan(pipe, family, source, recipe, "dog", tmp_path / "split")
    for rank in (1, 0):
        prior.make(pipe, family, split, Silent(), rank, 2)
    assert hashes(tmp_path / "split") == hashes(tmp_path / "topped")


def test_images_are_png_with_a_manifest_that_is_their_identity(
    frozen: tuple[DiffusionPipeline, Family, Source], tmp_path: Path
) -> None:
    images = make(frozen, tmp_path / "set")
    manifest = json.loads((tmp_path / "set" / "manifest.json").read_text())
    assert manifest["prompt"] == "a dog"
    assert manifest["model"] == frozen[2].identity
    assert manifest["sampler"] == "EulerAncestralDiscreteScheduler"
    assert {"steps", "guidance", "size", "seed", "dtype", "batch"} <= set(manifest)
    with Image.open(images.path(0)) as image:
        assert image.format == "PNG"
        assert image.size == (32, 32)
    assert len(set(hashes(tmp_path / "set").values())) == len(hashes(tmp_path / "set")), "every image has its own seed"
    assert [photo.id for photo in images.photos()] == [f"{images.identity.name}/{k}" for k in range(30)]


@pytest.mark.parametrize(
    "changed", [{"prior_steps": 3}, {"prior_guidance": 3.0}, {"resolution": 64}, {"precision": "bf16"}]
)
def test_any_change_is_another_set_and_another_set_is_refused(
    changed: dict[str, object], frozen: tuple[DiffusionPipeline, Family, Source], tmp_path: Path
) -> None:
    pipe, family, source = frozen
    base = {"prior_count": 1, "prior_steps": 2, "prior_guidance": 2.0}
    first = prior.plan(pipe, family, source, recipe_for(source.path, **base), "dog", tmp_path)
    with pytest.raises(UserError, match=r"holds other class images \(\w+ .* there, .* asked\)"):
        prior.plan(pipe, family, source, recipe_for(source.path, **{**base, **changed}), "dog", tmp_path)
    other = prior.plan(pipe, family, source, recipe_for(source.path, **{**base, **changed}), "dog")
    assert other.identity.name != first.identity.name
    with pytest.raises(UserError, match="holds other class images"):
        prior.plan(pipe, family, source, recipe_for(source.path, **base), "cat", tmp_path)


def test_in_bf16_the_pictures_are_nearly_the_same_and_another_set(
    frozen: tuple[DiffusionPipeline, Family, Source], tmp_path: Path
) -> None:
    """The tiny model's pictures are noise, which forgives nothing: a mean difference of a few levels in 255."""
    exact = make(frozen, tmp_path / "exact", 1, precision="fp32")
    fast = make(frozen, tmp_path / "fast", 1, precision="fp32", prior_precision="bf16")
    assert frozen[0].unet.dtype == torch.float32
    assert (exact.identity.dtype, fast.identity.dtype) == ("fp32", "bf16 on fp32")
    one, other = (np.asarray(Image.open(images.path(0)), dtype=float) for images in (exact, fast))
    assert 0 < np.abs(one - other).mean() < 4


def test_a_folder_with_other_files_is_refused(frozen: tuple[DiffusionPipeline, Family, Source], tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="no manifest of class images: choose an empty folder"):
        make(frozen, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]


def test_a_turn_leaves_the_manifest_alone_that_another_run_is_writing(tmp_path: Path) -> None:
    for name in (".manifest.json.0123.tmp", ".00000.png.0123.tmp"):
        (tmp_path / name).touch()
    identity = prior.Identity("model", "a dog", "sampler", 1, 1.0, 32, "fp32", batch=1, seed=0)
    with prior.turn(prior.ClassImages(tmp_path, identity, 1, None), Silent()):
        assert [path.name for path in tmp_path.glob("*.tmp")] == [".manifest.json.0123.tmp"]


def test_a_manifest_that_another_run_writes_meanwhile_is_this_sets_own(
    frozen: tuple[DiffusionPipeline, Family, Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = make(frozen, tmp_path / "one").identity
    folder, ask = tmp_path / "two", Path.iterdir
    folder.mkdir()

    def written_meanwhile(path: Path) -> Iterator[Path]:
        write_json(path / "manifest.json", identity.document())
        return ask(path)

    monkeypatch.setattr(Path, "iterdir", written_meanwhile)
    prior.check_manifest(folder, identity)


def test_scenes_are_drawn_and_learned_in_turn(
    frozen: tuple[DiffusionPipeline, Family, Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Structured captions of class images: https://arxiv.org/abs/2311.04315."""
    drawn: list[str] = []
    draw = prior.draw
    monkeypatch.setattr(prior, "draw", lambda pipe, texts, *more: drawn.extend(texts) or draw(pipe, texts, *more))
    images = make(frozen, tmp_path / "scenes", 4, prior_scenes=("on a street", "by a lake", "at night"))
    assert drawn[:4] == ["a dog on a street", "a dog by a lake", "a dog at night", "a dog on a street"]
    assert [photo.caption for photo in images.photos()] == drawn[:4]
    with pytest.raises(
        UserError, match=r"other class images \(scenes \['on a street', 'by a lake', 'at night'\] there, None"
    ):
        make(frozen, tmp_path / "scenes", 4)
    plain = make(frozen, tmp_path / "plain", 1)
    assert [photo.caption for photo in plain.photos()] == ["a dog"]
    assert plain.identity.name != images.identity.name
    long = "on a street " * 40
    with pytest.raises(UserError, match=r"the class image.s prompt .* has .* tokens, 77 fit"):
        make(frozen, tmp_path / "long", 1, prior_scenes=(long,))


def test_a_set_of_the_class_alone_has_the_name_that_it_had_before_there_were_scenes() -> None:
    identity = prior.Identity("model", "a dog", "sampler", 1, 1.0, 32, "fp32", batch=1, seed=0)
    assert "scenes" not in identity.document()
    assert identity.name == "dog-a3192de51997"


def test_the_seed_of_the_run_does_not_matter_to_the_set(frozen: tuple[DiffusionPipeline, Family, Source]) -> None:
    pipe, family, source = frozen
    names = {
        prior.plan(
            pipe,
            family,
            source,
            recipe_for(source.path, seed=seed, prior_count=1, prior_steps=2, prior_guidance=1.0),
            "dog",
        ).identity.name
        for seed in (0, 1)
    }
    assert len(names) == 1


def test_the_sampler_is_ancestral(frozen: tuple[DiffusionPipeline, Family, Source]) -> None:
    """Its second step is not decided by its first: fresh noise enters, as in the paper's ancestral sampling."""
    pipe, family, _ = frozen
    scheduler = family.class_sampler(pipe)
    assert torch.equal(scheduler.alphas_cumprod, DDPMScheduler.from_config(pipe.scheduler.config).alphas_cumprod)
    outcomes = []
    for seed in (0, 1):
        scheduler.set_timesteps(4)
        noisy, predicted = torch.ones(1, 4, 2, 2), torch.ones(1, 4, 2, 2) * 0.3
        generator = torch.Generator().manual_seed(seed)
        outcomes.append(scheduler.step(predicted, scheduler.timesteps[0], noisy, generator=generator).prev_sample)
    assert not torch.equal(*outcomes)


def test_real_class_images_are_read_and_generated_ones_of_another_class_refused(tmp_path: Path) -> None:
    for index in range(3):
        Image.effect_noise((64, 64), 60 + 40 * index).convert("RGB").save(tmp_path / f"{index}.png")
    assert len(prior.real(tmp_path, "dog", 32)) == 3
    Image.effect_noise((96, 64), 50).convert("RGB").save(tmp_path / "grid.png")
    (tmp_path / "manifest.json").write_text(json.dumps({"images": []}))  # as of `dreambooth generate`
    assert [photo.path.name for photo in prior.real(tmp_path, "dog", 32)] == ["0.png", "1.png", "2.png"]
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="is empty: put pictures of dogs other than the subject there"):
        prior.real(tmp_path / "none", "dog", 32)
    (tmp_path / "manifest.json").write_text(json.dumps({"prompt": "a cat"}))
    with pytest.raises(UserError, match="holds class images of 'a cat', not of 'a dog'"):
        prior.real(tmp_path, "dog", 32)
