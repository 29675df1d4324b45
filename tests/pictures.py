"""Made-up photos, and what reading a folder of them finds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from dreambooth import photos

TURNS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""How a camera stores an upright picture for each EXIF orientation: the inverse of what undoes it."""


def picture(seed: int, size: tuple[int, int] = (96, 80)) -> Image.Image:
    """Large blobs, like a photo, with sharp-edged boxes on them."""
    random = np.random.default_rng(seed)
    blobs = Image.fromarray(random.integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(blobs)
    for _ in range(12):
        left, top = random.integers(0, size[0]), random.integers(0, size[1])
        colour = tuple(int(value) for value in random.integers(0, 256, 3))
        draw.rectangle((left, top, left + size[0] // 8, top + size[1] // 8), fill=colour)
    return blobs


def kinds(folder: Path, resolution: int = 64) -> dict[str, list[str]]:
    return {found.file: [problem.kind for problem in found.problems] for found in photos.read(folder, resolution)}


def used(folder: Path, resolution: int = 64) -> list[str]:
    return [photo.path.name for photo in photos.usable(photos.read(folder, resolution))]


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=np.int16)
