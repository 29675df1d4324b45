from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image, ImageFilter

from dreambooth import photo_checks, photos
from tests.pictures import TURNS, kinds, picture, used


def test_a_small_photo_is_used_with_a_word_and_a_tiny_one_is_not(tmp_path):
    sizes = {"enough": (256, 300), "small": (255, 300), "least": (16, 300), "tiny": (15, 300)}
    for seed, (name, size) in enumerate(sizes.items()):
        picture(seed, size).save(tmp_path / f"{name}.png")
    assert kinds(tmp_path, 512) == {
        "enough.png": [],
        "least.png": ["small"],
        "small.png": ["small"],
        "tiny.png": ["small"],
    }
    assert used(tmp_path, 512) == ["enough.png", "least.png", "small.png"]
    kept = photos.read(tmp_path, 512, aspect="keep")
    assert [found.file for found in kept if found.problems] == ["least.png", "tiny.png"], (
        "small.png has 276 x 276 in all"
    )


# Blur and exposure


def test_a_strong_blur_is_named(tmp_path):
    picture(0, (512, 512)).filter(ImageFilter.GaussianBlur(8)).save(tmp_path / "soft.png")
    picture(1, (512, 512)).save(tmp_path / "sharp.png")
    assert kinds(tmp_path) == {"sharp.png": [], "soft.png": ["blur"]}
    assert used(tmp_path) == ["sharp.png", "soft.png"]


def test_a_sharp_subject_before_a_blurred_background_is_sharp(tmp_path):
    photo = picture(0, (512, 512)).filter(ImageFilter.GaussianBlur(8))
    photo.paste(picture(1, (128, 128)), (300, 200))
    photo.save(tmp_path / "portrait.png")
    assert kinds(tmp_path) == {"portrait.png": []}


def test_sharpness_is_the_largest_variance_of_the_laplacian():
    checks = np.zeros((32, 32), dtype=np.uint8)
    checks[8:16, 16:24] = np.indices((8, 8)).sum(axis=0) % 2 * 100
    inner = [
        4 * int(checks[y, x]) - sum(int(checks[y + dy, x + dx]) for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0)))
        for y in range(8, 16)
        for x in range(16, 24)
    ]
    assert photo_checks.sharpness(Image.fromarray(checks)) == pytest.approx(np.var(inner))


@pytest.mark.parametrize(
    ("name", "levels", "word"),
    [("black", lambda v: v // 20, "black"), ("blown", lambda v: min(255, 215 + v), "white or burnt out")],
)
def test_black_and_blown_out_photos_are_named(tmp_path, name, levels, word):
    picture(0).point(levels).save(tmp_path / f"{name}.png")
    [finding] = photos.read(tmp_path, 64)
    assert finding.used
    assert [problem.kind for problem in finding.problems] == ["exposure"]
    assert word in finding.problems[0].message


def test_a_product_on_white_and_strong_colours_are_well_exposed(tmp_path):
    product = Image.new("RGB", (200, 200), "white")
    product.paste(picture(0, (100, 60)), (50, 70))
    product.save(tmp_path / "product.png")
    poster = Image.fromarray(np.kron(np.indices((10, 10)).sum(axis=0) % 2, np.ones((20, 20))).astype(np.uint8))
    poster.putpalette([255, 0, 0, 0, 0, 255])
    poster.save(tmp_path / "poster.png")
    assert kinds(tmp_path) == {"poster.png": [], "product.png": []}


# Duplicates


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("99.png", lambda image: image),
        ("99.jpg", lambda image: image),
        ("99.webp", lambda image: image),
        ("half.png", lambda image: image.resize((100, 75), Image.Resampling.BILINEAR)),
    ],
)
def test_the_same_picture_is_used_once(tmp_path, name, change):
    for seed in range(3):
        picture(seed, (200, 150)).save(tmp_path / f"{seed:02}.png")
    change(picture(1, (200, 150))).save(tmp_path / name, quality=40)
    copy = photos.read(tmp_path, 64)[-1]
    message = "the same picture as 01.png, which is used: remove it"
    assert copy == photos.Finding(name, None, (photos.Problem("duplicate", message),))
    assert used(tmp_path) == ["00.png", "01.png", "02.png"]


def test_the_same_file_is_used_once_even_if_flat(tmp_path):
    Image.new("RGB", (64, 64), "grey").save(tmp_path / "a.png")
    shutil.copy(tmp_path / "a.png", tmp_path / "b.png")
    assert used(tmp_path) == ["a.png"]
    assert kinds(tmp_path)["b.png"] == ["blur", "duplicate"]


def test_the_largest_of_several_copies_is_kept(tmp_path):
    for name, side in (("a", 100), ("b", 300), ("c", 200)):
        picture(0, (300, 300)).resize((side, side)).save(tmp_path / f"{name}.png")
    assert used(tmp_path) == ["b.png"]


def test_a_copy_stored_turned_is_found(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(2).save(tmp_path / "original.png")
    picture(2).transpose(TURNS[6]).save(tmp_path / "turned.jpg", exif=exif, quality=90)
    assert kinds(tmp_path)["turned.jpg"] == ["duplicate"]


def test_different_pictures_are_no_duplicates(tmp_path):
    """Not even noise, black and white, a moved subject, and one picture in two colours."""
    random = np.random.default_rng(0)
    for index in range(3):
        Image.fromarray(random.integers(0, 256, (256, 256, 3), dtype=np.uint8)).save(tmp_path / f"noise{index}.png")
    for colour in ("black", "white", "grey"):
        Image.new("RGB", (64, 64), colour).save(tmp_path / f"{colour}.png")
    for left in (20, 80):
        photo = picture(5, (256, 256))
        photo.paste(picture(6, (100, 100)), (left, 60))
        photo.save(tmp_path / f"moved{left}.png")
    for name, order in (("rgb", (0, 1, 2)), ("bgr", (2, 1, 0))):
        Image.fromarray(np.asarray(picture(7))[..., order]).save(tmp_path / f"{name}.png")
    assert not [name for name, found in kinds(tmp_path).items() if "duplicate" in found]
