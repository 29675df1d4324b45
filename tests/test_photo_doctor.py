"""The doctor finds what is planted in pictures made for it, and says nothing about those where nothing is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from dreambooth import photo_doctor, photo_scenes, planning, saliency
from dreambooth.photo_doctor import examine, near_duplicates, set_problems, subject_problems
from dreambooth.photo_scenes import Scene
from dreambooth.planning import make_plans
from dreambooth.recipe import Recipe
from dreambooth.saliency import Subject
from tests.calls import call

BOX = (0.3, 0.3, 0.7, 0.7)


def backdrop(seed: int, size: tuple[int, int] = (320, 240)) -> Image.Image:
    """A soft scene: large blots of colour."""
    blots = np.random.default_rng(seed).integers(60, 200, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(blots).resize(size, Image.Resampling.BICUBIC)


def photo(seed: int, box: tuple[float, float, float, float] = BOX, scene: int | None = None) -> Image.Image:
    """A bright subject with a pattern that depends on the seed, in a box given in shares of a scene."""
    image = backdrop(seed if scene is None else scene)
    left, top, right, bottom = (
        round(share * side) for share, side in zip(box, (*image.size, *image.size), strict=True)
    )
    draw = ImageDraw.Draw(image)
    draw.ellipse((left, top, right, bottom), fill=(250, 40, 40))
    rng = np.random.default_rng(seed)
    for _ in range(6):
        x, y = rng.uniform(left, right), rng.uniform(top, bottom)
        draw.ellipse((x - 12, y - 12, x + 12, y + 12), fill=tuple(rng.integers(0, 256, 3).tolist()))
    return image


def scene(image: Image.Image, name: str = "0.png") -> Scene:
    return Scene(name, image, saliency.find(image))


def kinds(folder: Path) -> set[str]:
    found = examine(folder, 64)
    return {problem.kind for finding in found.findings for problem in finding.problems} | {
        problem.kind for problem in found.warnings
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four photos with nothing wrong."""
    home = tmp_path / "photos"
    home.mkdir()
    for index in range(4):
        photo(index).save(home / f"{index}.png")
    return home


def test_good_photos_are_passed(folder: Path) -> None:
    assert kinds(folder) == set()


def test_the_subject_is_found_where_it_is() -> None:
    for seed, box in enumerate([BOX, (0.1, 0.2, 0.45, 0.6)]):
        found = saliency.find(photo(seed, box))
        assert found.contrast >= photo_doctor.CLEAR
        assert found.box == pytest.approx(box, abs=0.09)
        assert not found.given


def test_a_mask_is_believed() -> None:
    mask = Image.new("L", (320, 240))
    mask.paste(255, (32, 24, 96, 120))
    found = saliency.from_mask(mask)
    assert found.box == pytest.approx((0.1, 0.1, 0.3, 0.5), abs=0.03)
    assert (found.contrast, found.given) == (1.0, True)
    assert found.share == pytest.approx(0.2 * 0.4, rel=0.05)


def test_the_barrier_distance_is_that_of_the_best_path() -> None:
    """A wall of 1 round a yard of 0: every path to the yard rises by the wall; a gap of 0.3 makes that the price."""
    values = np.zeros((1, 9, 9), np.float32)
    values[0, 2:7, 2:7] = 1
    values[0, 3:6, 3:6] = 0
    assert saliency.barrier_distance(values)[0, 4, 4] == pytest.approx(1)
    values[0, 2, 4] = 0.3
    assert saliency.barrier_distance(values)[0, 4, 4] == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("box", "size", "kind"),
    [
        ((0.45, 0.45, 0.55, 0.6), (100, 100), "tiny"),
        ((0.0, 0.2, 0.4, 0.8), (300, 100), "cut"),
        ((0.3, 0.3, 0.7, 0.7), (300, 200), None),
    ],
)
def test_a_subject_too_small_or_outside_the_square(
    box: tuple[float, float, float, float], size: tuple[int, int], kind: str | None
) -> None:
    found = subject_problems(Subject(np.zeros((8, 8), np.float32), box, 1.0, given=True), size)
    assert [problem.kind for problem in found] == ([kind] if kind else [])
    unclear = Subject(np.zeros((8, 8), np.float32), box, 0.5)
    assert subject_problems(unclear, size) == []


def test_a_subject_that_the_edge_cuts() -> None:
    mask = np.zeros((16, 16), np.float32)
    mask[6:16, 5:11] = 1
    (problem,) = subject_problems(Subject(mask, (0.3, 0.4, 0.7, 1.0), 1.0, given=True), (100, 100))
    assert problem.kind == "cut"
    assert "bottom" in problem.message


@pytest.mark.parametrize("how", ["cropped", "mirrored", "lighter"])
def test_nearly_the_same_picture_is_noticed(how: str, folder: Path) -> None:
    first = photo(0)
    second = {
        "cropped": first.crop((24, 18, 296, 222)).resize((400, 300)),
        "mirrored": first.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        "lighter": first.point(lambda value: min(255, value + 20)),
    }[how]
    found = near_duplicates([scene(first, "0.png"), scene(photo(1), "1.png"), scene(second, "2.png")])
    assert list(found) == ["2.png"]
    assert "0.png" in found["2.png"][0].message


def test_one_background(folder: Path) -> None:
    boxes = [(0.1, 0.2, 0.4, 0.6), (0.5, 0.4, 0.8, 0.8), (0.3, 0.5, 0.6, 0.9)]
    same = [scene(photo(index, box, scene=9), f"{index}.png") for index, box in enumerate(boxes)]
    assert "background" in {problem.kind for problem in set_problems(same)}


def test_one_pose() -> None:
    subject = photo(5).crop((96, 72, 224, 168))
    scenes = []
    for index, at in enumerate([(20, 20), (150, 100), (90, 60)]):
        image = backdrop(index)
        image.paste(subject, at)
        box = (at[0] / 320, at[1] / 240, (at[0] + 128) / 320, (at[1] + 96) / 240)
        scenes.append(Scene(f"{index}.png", image, Subject(np.ones((8, 8), np.float32), box, 1.0, given=True)))
    assert photo_scenes.least_posed(scenes) > photo_doctor.ONE_POSE
    assert "pose" in {problem.kind for problem in set_problems(scenes)}


def test_a_mark_in_all_photos(folder: Path) -> None:
    for file in folder.iterdir():
        image = Image.open(file)
        ImageDraw.Draw(image).text((190, 210), "(c) A. N. Other 2021", fill=(255, 255, 255))
        image.save(file)
    assert "mark" in kinds(folder)
    Image.open(folder / "0.png").filter(ImageFilter.GaussianBlur(6)).save(folder / "0.png")
    assert "mark" not in kinds(folder)


def test_many_photos(tmp_path: Path) -> None:
    for index in range(11):
        photo(index).save(tmp_path / f"{index}.png")
    assert "many" in kinds(tmp_path)


def test_a_run_has_its_photos_looked_at_before_it_starts(folder: Path, tiny_sd: Path) -> None:
    def warned() -> list[str]:
        given = {"model": str(tiny_sd), "subjects": [{"photos": folder, "class_noun": "box"}]}
        return make_plans(Recipe.of(given)).warnings

    assert not any("nearly the same" in text for text in warned())
    photo(0).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "9.png")
    (told,) = [text for text in warned() if "nearly the same" in text]
    assert told.startswith("9.png: nearly the same picture as 0.png")
    for index in range(5, planning.EXAMINED):
        (folder / f"{index}.txt").write_text("a [V] box")
        (folder / f".{index}").touch()
    assert any("nearly the same" in text for text in warned())
    for index in range(10, 10 + planning.EXAMINED):
        photo(index).save(folder / f"{index}.png")
    assert not any("nearly the same" in text for text in warned())
    assert any("3 to 10 that differ are enough" in text for text in warned())


def test_in_a_photo_that_keeps_its_shape_no_square_cuts_the_subject() -> None:
    aside = Subject(np.zeros((8, 8), np.float32), (0.0, 0.2, 0.4, 0.8), 1.0)
    assert [found.kind for found in subject_problems(aside, (600, 200))] == ["cut"]
    assert subject_problems(aside, (600, 200), is_cut_square=False) == []


def test_the_saliency_of_a_thumbnail_is_not_believed_and_a_mask_is() -> None:
    tiny = Subject(np.zeros((8, 8), np.float32), (0.45, 0.45, 0.55, 0.6), 1.0)
    assert [found.kind for found in subject_problems(tiny, (300, 300))] == ["tiny"]
    assert subject_problems(tiny, (64, 64)) == []
    assert [found.kind for found in subject_problems(replace(tiny, given=True), (64, 64))] == ["tiny"]


def test_the_command_says_the_risk_and_draws_the_sheet(folder: Path, tmp_path: Path) -> None:
    photo(0).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "9.png")
    told = call("check", folder, "--resolution", 64, "--sheet", tmp_path / "sheet.png")
    assert "near-duplicate: nearly the same picture as 0.png" in told.out
    assert "(else this view counts twice" in told.out
    assert Image.open(tmp_path / "sheet.png").width > 3 * 320
    document = json.loads(call("check", folder, "--resolution", 64, "--json").out)
    (entry,) = [entry for entry in document["photos"] if entry["problems"]]
    assert entry["problems"][0]["risk"]
    assert len(entry["subject"]["box"]) == 4
