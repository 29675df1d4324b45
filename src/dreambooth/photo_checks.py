"""What can be wrong with a photo: its size, sharpness, exposure and borders, and whether it is in the folder twice.

All but a tiny size and a copy are warnings. The constants say how far from the threshold every photo of DreamBench and
of the toybox lies, and how far on its other side a copy that was blurred (Gaussian, radius 8 at 512 pixels) or encoded
anew.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from dreambooth.geometry import Aspect, Size

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

DIM = 56.0
"""Lightness, of 255, that the brightest 2 % of a photo stay under if it is too dark."""
BAR = 0.03
"""Least width of a bar along an edge, as a share of the picture."""

RISKS = {
    "blur": "the model learns the blur and draws the subject soft",
    "exposure": "colours and details of the subject that cannot be seen are invented",
    "small": "the model learns the enlargement and draws the subject soft",
    "duplicate": "this view would count twice and be reproduced instead of the subject",
    "near-duplicate": "this view counts twice, and pictures drift towards it whatever the prompt says",
    "bars": "the bars are learnt as part of the subject and drawn into pictures",
    "tiny": "few of the pixels that are learnt show the subject: its details are lost, the scene is learnt instead",
    "cut": "the model does not see the whole subject and draws it cut off or completes it wrongly",
    "background": "the background is learnt as part of the subject and comes along into every scene",
    "pose": "the subject is drawn in this one view only, whatever the prompt says",
    "mark": "the mark is learnt as part of the subject and drawn into pictures",
    "few": "little variety: the model repeats the photos instead of learning the subject",
    "many": "more photos take more steps, and the worst of them are learnt too",
    "mask": "without the mask the background is learnt as much as the subject",
    "caption": "the photo is learnt with the standard label",
    "class": "the subject is learnt against what the model knows of its class, and less like the photos",
    "weak-prior": "the class gives the model little to build on, and new poses and places come out worse",
}
"""What happens in training if a problem of this kind stays."""

_SIDE = 256
_SHARP_SIDE = 512
_TILES = 4
_BAR_LEVELS = 20
_BAR_LINE = 0.7
_MINIATURE = 16


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: a word for programs and a sentence for people."""

    kind: str
    message: str

    @property
    def risk(self) -> str | None:
        """What happens in training if it stays; None for what is not used at all."""
        return RISKS.get(self.kind)


@dataclass(frozen=True)
class Picture:
    """What is compared between photos: name, content id, size in pixels and a miniature (16, 16, 3)."""

    name: str
    id: str
    size: tuple[int, int]
    miniature: npt.NDArray[np.float32]


def check(image: Image.Image, size: Size, resolution: int, aspect: Aspect) -> list[Problem]:
    """Find what is wrong with one photo by itself.

    Args:
        image: A reduced RGB version of it, no larger than the photo.
        size: Width and height of the photo, upright.
        resolution: The side in pixels at which it will be learnt, or that of a square of as many pixels.
        aspect: Whether it will be cut square or keeps its shape.
    """
    sharp, image = image.copy(), image.copy()
    sharp.thumbnail((_SHARP_SIDE, _SHARP_SIDE), Image.Resampling.LANCZOS)
    image.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    found = [_small(size, resolution, aspect), _exposure(image) or _blur(sharp), _bars(image)]
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
    return float((bright & (_channels(image) >= 250).any(axis=0)).mean())


def brightest(image: Image.Image) -> float:
    """Return the lightness, of 255, that only 2 % of the pixels exceed."""
    return float(np.percentile(np.asarray(image.convert("L")), 98))


def bars(image: Image.Image) -> dict[str, float]:
    """Find plain bars along opposite edges: the width of each as a share of the picture.

    A bar is rows of one colour that end in a straight line: what follows differs from it along most of that line. So a
    subject before a plain backdrop has none.
    """
    pixels_CHW = _channels(image).astype(np.float32)
    rows_HCW, columns_WCH = pixels_CHW.transpose(1, 0, 2), pixels_CHW.transpose(2, 0, 1)
    sides = {"top": rows_HCW, "bottom": rows_HCW[::-1], "left": columns_WCH, "right": columns_WCH[::-1]}
    widths = {name: _bar(side) for name, side in sides.items()}
    pairs = (("top", "bottom"), ("left", "right"))
    return {name: widths[name] for pair in pairs if min(widths[one] for one in pair) >= BAR for name in pair}


def _channels(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Return pixels_CHW: numpy reduces a long last axis many times faster than one of three channels."""
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def _bar(rows_HCW: npt.NDArray[np.float32]) -> float:
    """Return the share of rows in the bar at their beginning, 0 if there is none."""
    colour_C1 = np.median(rows_HCW[0], axis=1, keepdims=True)

    def unlike(row_CW: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
        apart_W: npt.NDArray[np.float32] = np.abs(row_CW - colour_C1).max(axis=0)
        return apart_W > _BAR_LEVELS

    count = sum(1 for _ in itertools.takewhile(lambda row_CW: unlike(row_CW).mean() < 0.01, rows_HCW))
    if count in (0, len(rows_HCW)):
        return 0.0
    line = np.any([unlike(row_CW) for row_CW in rows_HCW[count : count + 3]], axis=0)
    return count / len(rows_HCW) if line.mean() > _BAR_LINE else 0.0


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


def _small(size: Size, resolution: int, aspect: Aspect) -> Problem | None:
    width, height = size
    if too_small(size):
        return Problem("small", f"only {width} x {height} pixels, too few to be used: find a larger version of it")
    side = min(size) if aspect == "square" else math.sqrt(width * height)
    if 2 * side < resolution:
        mend = "find a larger version of it, or expect it to be soft"
        return Problem("small", f"{width} x {height} pixels, under half the {resolution} it is learnt at: {mend}")
    return None


def _exposure(image: Image.Image) -> Problem | None:
    black, burnt = black_share(image), burnt_share(image)
    if black >= NEARLY_ALL:
        return Problem("exposure", f"{black:.0%} of it is black: take it again in more light")
    light = brightest(image)
    if light < DIM:
        levels = f"98 % of it is darker than level {light:.0f} of 255"
        return Problem("exposure", f"{levels}: take it again in more light, or lighten it")
    if burnt >= NEARLY_ALL:
        return Problem("exposure", f"{burnt:.0%} of it is white or burnt out: take it again in less light, or closer")
    return None


def _bars(image: Image.Image) -> Problem | None:
    found = bars(image)
    if not found:
        return None
    widths = " and ".join(f"{width:.0%} at the {name}" for name, width in found.items())
    return Problem("bars", f"plain bars along its edges ({widths}): crop them off")


def _blur(image: Image.Image) -> Problem | None:
    measured = sharpness(image)
    if measured > BLURRED:
        return None
    scale = f"sharpness {measured:.0f}, good photos have over {BLURRED:.0f}"
    return Problem("blur", f"nothing in it is sharp ({scale}): take it again in focus and without shake")
