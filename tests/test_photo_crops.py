from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dreambooth import photos
from tests.pictures import picture, pixels


@pytest.fixture
def ramp(tmp_path: Path) -> photos.Photo:
    """A photo whose red is x and whose green is y, with a mask that is white from x = 100 on."""
    y, x = np.indices((120, 200), dtype=np.uint8)
    Image.fromarray(np.stack([x, y, np.zeros_like(x)], axis=-1)).save(tmp_path / "ramp.png")
    Image.fromarray(((x >= 100) * 255).astype(np.uint8)).save(tmp_path / "ramp.mask.png")
    return photos.usable(photos.read(tmp_path, 64))[0]


def cut_out(photo: photos.Photo, size: tuple[int, int], variant: int, seed: int) -> np.ndarray:
    return photos.crop(photo, size, photos.box(photo, size, variant, seed))


def square(pixels_HWC: np.ndarray, side: int) -> tuple[float, float, float]:
    """Left, top and side of the crop of a ramp, from the colours in its centre and near its edges."""
    red, green = pixels_HWC[side // 2, :, 0].astype(float), pixels_HWC[:, side // 2, 1].astype(float)
    low, high = side // 4, 3 * side // 4
    scale = (red[high] - red[low]) / (high - low)
    assert (green[high] - green[low]) / (high - low) == pytest.approx(scale, abs=0.06)
    return red[side // 2] - scale * side / 2, green[side // 2] - scale * side / 2, scale * side


def test_variant_0_is_the_centre(ramp):
    reference = Image.open(ramp.path).crop((40, 0, 160, 120)).resize((48, 48), Image.Resampling.LANCZOS)
    cut = photos.crop(ramp, (48, 48))
    assert (cut.shape, cut.dtype) == ((48, 48, 3), np.uint8)
    assert np.abs(cut.astype(int) - pixels(reference)).max() <= 1
    assert np.array_equal(cut, cut_out(ramp, (48, 48), 0, 8))


def test_other_variants_are_random_squares_of_the_stated_size(ramp):
    squares = np.array([square(cut_out(ramp, (60, 60), variant, 0), 60) for variant in range(1, 60)])
    left, top, side = squares.T
    assert side.min() >= 0.85 * 120 - 3
    assert side.max() <= 120 + 3
    assert side.max() - side.min() > 12
    assert left.min() > -3
    assert left.min() < 12
    assert (left + side).max() < 203
    assert (left + side).max() > 188
    assert top.min() > -3
    assert (top + side).max() < 123
    assert len({tuple(row) for row in squares}) > 50


def test_crops_depend_on_seed_photo_and_variant_alone(ramp):
    first = cut_out(ramp, (32, 32), 1, 0)
    assert np.array_equal(first, cut_out(ramp, (32, 32), 1, 0))
    other = photos.Photo("0" * 32, ramp.path, ramp.size)
    for photo, variant, seed in ((ramp, 2, 0), (ramp, 1, 1), (other, 1, 0)):
        assert not np.array_equal(first, cut_out(photo, (32, 32), variant, seed))


def test_small_photos_are_enlarged(ramp):
    assert photos.crop(ramp, (300, 300)).shape == (300, 300, 3)


@pytest.mark.parametrize("size", [(96, 96), (60, 120), (160, 80)])
def test_squares_are_as_they_always_were_and_other_parts_have_the_shape_asked_for(ramp, size):
    """The square's box is written out as it was before there were other shapes."""
    for variant in range(30):
        draw = random.Random(f"3 {ramp.id} {variant}")
        scale, across, down = (0.85 + 0.15 * draw.random(), draw.random(), draw.random()) if variant else (1, 0.5, 0.5)
        left, top, right, bottom = photos.box(ramp, size, variant, 3)
        assert 0 <= left < right <= 200
        assert 0 <= top < bottom <= 120
        assert (right - left) / (bottom - top) == pytest.approx(size[0] / size[1], rel=0.02)
        if size == (96, 96):
            side = round(120 * scale)
            assert (left, top) == (int((200 - side + 1) * across), int((120 - side + 1) * down))
            assert (right - left, bottom - top) == (side, side)


@pytest.mark.parametrize("variant", range(6))
@pytest.mark.parametrize("size", [(120, 120), (184, 120), (80, 120)])
def test_the_mask_is_cut_where_the_photo_is(ramp, size, variant):
    part = photos.box(ramp, size, variant, 0)
    cut, mask = photos.crop(ramp, size, part), photos.crop_mask(ramp, size, part)
    assert (mask.shape, mask.dtype) == (size[::-1], np.uint8)
    assert np.all(mask[cut[..., 0] >= 102] == 255)
    assert np.all(mask[cut[..., 0] <= 97] == 0)


def test_without_a_mask_there_is_none_to_cut(tmp_path):
    picture(0).save(tmp_path / "a.png")
    assert photos.crop_mask(photos.usable(photos.read(tmp_path, 64))[0], (32, 32)) is None


def test_what_is_transparent_in_a_mask_is_not_the_subject(tmp_path):
    picture(0).save(tmp_path / "a.png")
    mask = Image.new("LA", (96, 80), (255, 0))
    mask.paste((255, 255), (0, 0, 48, 80))
    mask.save(tmp_path / "a.mask.png")
    photo = photos.usable(photos.read(tmp_path, 64))[0]
    cut = photos.crop_mask(photo, (40, 40))
    assert (cut[20, 2], cut[20, 37]) == (255, 0)
