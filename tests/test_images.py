from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dreambooth.images import CELL, INLINE_BYTES, LINE_HEIGHT, MARGIN, data_uri, grid, save_png


def noise(seed: int, width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def ink(sheet: Image.Image, band: slice) -> np.ndarray:
    """Columns and rows of the band that hold dark pixels."""
    return np.argwhere(np.asarray(sheet.convert("L"))[band] < 128)


def test_large_images_keep_their_pixels_and_leave_the_gap_white():
    images = [noise(seed, 130, 140) for seed in range(3)]
    sheet = np.asarray(grid(images, columns=2, gap=4))
    assert sheet.shape == (2 * 140 + 4, 2 * 130 + 4, 3)
    for index, image in enumerate(images):
        row, column = divmod(index, 2)
        cell = sheet[row * 144 : row * 144 + 140, column * 134 : column * 134 + 130]
        assert np.array_equal(cell, np.asarray(image))
    assert (sheet[140:144] == 255).all()
    assert (sheet[:, 130:134] == 255).all()
    assert (sheet[144:, 134:] == 255).all(), "the place of the missing fourth image is white"


@pytest.mark.parametrize(("side", "factor"), [(32, 4), (64, 2), (96, 2), (100, 2), (127, 2), (128, 1), (512, 1)])
def test_small_images_grow_by_the_smallest_whole_factor(side: int, factor: int):
    image = noise(0, side, side)
    sheet = np.asarray(grid([image], columns=1))
    assert np.array_equal(sheet, np.asarray(image).repeat(factor, 0).repeat(factor, 1))


def test_the_shorter_side_decides():
    assert grid([noise(0, 64, 200)], columns=1).size == (128, 400)


def test_any_mode_becomes_rgb():
    grey = Image.new("L", (CELL, CELL), 7)
    assert np.asarray(grid([grey], columns=1)).tolist() == np.full((CELL, CELL, 3), 7).tolist()


def test_labels_stand_above_their_rows_inside_the_sheet():
    white = [Image.new("RGB", (64, 64), "white")] * 4
    sheet = grid(white, columns=2, labels=["first", "second"], gap=4)
    head = LINE_HEIGHT + 4
    assert sheet.size == (260, 2 * (head + 128) + 4)
    below = head + 128 + 4
    assert len(ink(sheet, slice(0, head)))
    assert len(ink(sheet, slice(below, below + head)))
    assert not len(ink(sheet, slice(head, below)))


def test_a_long_label_wraps_and_a_long_word_is_cut():
    prompt = "a [V] dog " + "on top of a very purple rug in a forest " * 3 + "M" * 80
    sheet = grid([Image.new("RGB", (128, 128), "white")], columns=1, labels=[prompt])
    assert sheet.width == 128
    assert sheet.height > 128 + 10 * LINE_HEIGHT
    columns = ink(sheet, slice(None))[:, 1]
    assert columns.min() >= MARGIN - 1
    assert columns.max() <= 128 - MARGIN


def test_an_empty_label_takes_no_room():
    assert grid([noise(0, 128, 128)], columns=1, labels=[""]).size == (128, 128)


@pytest.mark.parametrize(
    ("images", "columns", "labels", "message"),
    [
        ([], 2, None, "a grid needs images and columns, got 0 images in 2 columns"),
        ([noise(0, 8, 8)], 0, None, "a grid needs images and columns, got 1 images in 0 columns"),
        ([noise(0, 8, 8), noise(0, 9, 8)], 2, None, "a grid needs images of one size, got [(8, 8), (9, 8)]"),
        ([noise(0, 8, 8)] * 3, 2, ["one"], "1 labels for 2 rows"),
    ],
)
def test_refusals(images: list[Image.Image], columns: int, labels: list[str] | None, message: str):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        grid(images, columns, labels)


def test_png_metadata_survives_with_the_pixels(tmp_path: Path):
    image, path = noise(3, 20, 10), tmp_path / "x.png"
    metadata = {"prompt": "a [V] dog <b>", "seed": "7", "text": "ein Hündchen 犬", "note": "two\nlines"}
    save_png(image, path, metadata)
    with Image.open(path) as saved:
        saved.load()
        assert saved.format == "PNG"
        assert saved.text == metadata
        assert np.array_equal(np.asarray(saved), np.asarray(image))


def decoded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1])))


def test_a_small_file_goes_into_a_page_as_it_is(tmp_path: Path):
    path = tmp_path / "x.png"
    noise(0, 64, 48).save(path)
    uri, size = data_uri(path)
    assert uri == "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
    assert size == (64, 48)


def test_a_large_file_goes_into_a_page_as_a_smaller_jpeg(tmp_path: Path):
    path = tmp_path / "x.png"
    ramp = np.linspace(0, 255, 1024).astype(np.uint8)
    rough = np.random.default_rng(0).integers(0, 8, (512, 1024, 3), dtype=np.uint8)
    original = Image.fromarray(np.clip(ramp[None, :, None] // 2 + rough + 40, 0, 255).astype(np.uint8))
    original.save(path)
    assert path.stat().st_size > INLINE_BYTES
    uri, size = data_uri(path)
    assert uri.startswith("data:image/jpeg;base64,")
    assert size == decoded(uri).size == (768, 384)
    expected = np.asarray(original.resize(size, Image.Resampling.LANCZOS), dtype=float)
    assert np.abs(np.asarray(decoded(uri), dtype=float) - expected).mean() < 2


def test_a_broken_file_is_an_os_error(tmp_path: Path):
    path = tmp_path / "x.png"
    noise(0, 64, 64).save(path)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(OSError, match=r"truncated|whole"):
        data_uri(path)
    path.write_bytes(b"no image")
    with pytest.raises(OSError, match="cannot identify"):
        data_uri(path)
