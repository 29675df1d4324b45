"""What can be wrong with a photo: its size, sharpness and exposure, and whether it is in the folder twice.

Sharpness and exposure are warnings. The constants say how far from the threshold every photo of DreamBench and of the
toybox lies, and how far on its other side a copy that was blurred (Gaussian, radius 8 at 512 pixels) or encoded anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

SMALLEST = 16
"""Photos with a side under this many pixels are not used."""
BLURRED = 25.0
"""Largest sharpness that counts as blurred. Sharp photos have 97 or more, blurred copies of them 7.6 or less."""
NEARLY_ALL = 0.9
"""Share of black or of burnt-out pixels that counts as badly exposed. Good photos have 0.80 or less."""
SAME_LEVELS = 5.0
"""Largest RMS difference, in levels of 255, between miniatures of one picture. Copies (JPEG of quality 30, WebP,
resized to 200 pixels) differ by 2.8 or less, different photos of one subject by 20 or more."""
SAME_CONTRAST = 0.25
"""The same as a share of the miniature's standard deviation, for nearly flat pictures. Copies: 0.10 or less."""

_SIDE = 256
_TILES = 4
_MINIATURE = 16


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: a word for programs and a sentence for people."""

    kind: str
    message: str


@dataclass(frozen=True)
class Picture:
    """What is compared between photos: name, content id, size in pixels and a miniature (16, 16, 3)."""

    name: str
    id: str
    size: tuple[int, int]
    miniature: npt.NDArray[np.float32]


def check(image: Image.Image, size: tuple[int, int], resolution: int) -> list[Problem]:
    """Find what is wrong with one photo by itself.

    Args:
        image: A reduced RGB version of it, no larger than the photo.
        size: Width and height of the photo, upright.
        resolution: The side in pixels at which it will be learnt.
    """
    image = image.copy()
    image.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    found = [_small(size, resolution), _exposure(image) or _blur(image)]
    return [problem for problem in found if problem]


def too_small(size: tuple[int, int]) -> bool:
    """Tell whether a photo has too few pixels to be used at all."""
    return min(size) < SMALLEST


def sharpness(image: Image.Image) -> float:
    """Return the variance of the Laplacian in the sharpest of 4 x 4 tiles, so that one sharp region is enough.

    The variance of the Laplacian as a measure of focus: Pech-Pacheco et al., ICPR 2000.
    """
    padded = np.pad(np.asarray(image.convert("L"), dtype=np.float32), 1, mode="edge")
    neighbours = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]
    laplacian = neighbours - 4 * padded[1:-1, 1:-1]
    rows, columns = (min(_TILES, side) for side in laplacian.shape)
    strips = np.array_split(laplacian, rows, axis=0)
    return max(float(tile.var()) for strip in strips for tile in np.array_split(strip, columns, axis=1))


def black_share(image: Image.Image) -> float:
    """Return the share of pixels that are black or nearly so."""
    return float((np.asarray(image.convert("L")) <= 16).mean())


def burnt_share(image: Image.Image) -> float:
    """Return the share of bright pixels with a channel at its limit. Pure red or blue is no overexposure."""
    bright = np.asarray(image.convert("L")) >= 160
    return float((bright & (np.asarray(image).max(axis=-1) >= 250)).mean())


def miniature(image: Image.Image) -> npt.NDArray[np.float32]:
    """Return a picture's 16 x 16 miniature, which is nearly the same in every size and encoding of it."""
    return np.asarray(image.resize((_MINIATURE, _MINIATURE), Image.Resampling.BOX), dtype=np.float32)


def copies(pictures: Sequence[Picture]) -> dict[str, str]:
    """Find pictures that are there more than once: the same file, or the same picture resized or encoded anew.

    The largest of them is the original, and the first among equals. Miniatures are compared, not difference hashes:
    in a flat background those turn on noise, and copies then differ by more bits than different photos do.

    Returns:
        The name of the original for the name of each copy.
    """
    found: dict[str, str] = {}
    originals: list[Picture] = []
    miniatures = np.empty((len(pictures), _MINIATURE, _MINIATURE, 3), dtype=np.float32)
    for picture in sorted(pictures, key=lambda picture: -picture.size[0] * picture.size[1]):
        twin = _twin(picture, originals, miniatures[: len(originals)])
        if twin:
            found[picture.name] = twin.name
        else:
            miniatures[len(originals)] = picture.miniature
            originals.append(picture)
    return found


def _twin(picture: Picture, originals: Sequence[Picture], miniatures: npt.NDArray[np.float32]) -> Picture | None:
    same_file = [original for original in originals if original.id == picture.id]
    if same_file:
        return same_file[0]
    limit = min(SAME_LEVELS, SAME_CONTRAST * float(picture.miniature.std()))
    differences = np.sqrt(((miniatures - picture.miniature) ** 2).mean(axis=(1, 2, 3)))
    near = np.flatnonzero(differences < limit)
    return originals[near[0]] if near.size else None


def _small(size: tuple[int, int], resolution: int) -> Problem | None:
    width, height = size
    if too_small(size):
        return Problem("small", f"only {width} x {height} pixels, too few to be used: find a larger version of it")
    if 2 * min(size) < resolution:
        mend = "find a larger version of it, or expect it to be soft"
        return Problem("small", f"{width} x {height} pixels, under half the {resolution} it is learnt at: {mend}")
    return None


def _exposure(image: Image.Image) -> Problem | None:
    black, burnt = black_share(image), burnt_share(image)
    if black >= NEARLY_ALL:
        return Problem("exposure", f"{black:.0%} of it is black: take it again in more light")
    if burnt >= NEARLY_ALL:
        return Problem("exposure", f"{burnt:.0%} of it is white or burnt out: take it again in less light, or closer")
    return None


def _blur(image: Image.Image) -> Problem | None:
    measured = sharpness(image)
    if measured > BLURRED:
        return None
    scale = f"sharpness {measured:.0f}, good photos have over {BLURRED:.0f}"
    return Problem("blur", f"nothing in it is sharp ({scale}): take it again in focus and without shake")
