"""What photos of one subject share: nearly the same picture, one background, one pose, a mark in the same place.

Every measure compares reduced photos and the place of the subject in them (`saliency`), 0 to 1, 1 for the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt
from PIL import Image

from dreambooth.saliency import Subject

_SIDE = 40
_SMALLEST_CROP = 0.6
_STEP = 2
_FLAT = 1e-3
_BINS = 8
_POSE = 24
_MARK_SIDE = 192
_EDGE = 8.0
_AROUND = 0.08

Pixels = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Scene:
    """A photo as the comparisons need it: its name, a reduced RGB version, and the subject in it."""

    name: str
    image: Image.Image
    subject: Subject


def overlap(first: Image.Image, second: Image.Image) -> float:
    """Return how well one picture is found as a crop of the other, or mirrored: -1 to 1.

    The highest normalised cross-correlation over crops of 60 to 100 % of the other's sides (Lewis, "Fast Normalized
    Cross-Correlation", 1995), in colour at 40 pixels.
    """
    mirrored = second.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pairs = ((first, second), (second, first), (first, mirrored), (mirrored, first))
    return max(_as_crop(part, whole) for part, whole in pairs)


def _as_crop(part: Image.Image, whole: Image.Image) -> float:
    """Return the highest correlation of a picture with any crop of another, of any place and size."""
    field = np.asarray(whole.resize((_SIDE, _SIDE), Image.Resampling.BOX), dtype=np.float32)
    best = -1.0
    for side in range(round(_SMALLEST_CROP * _SIDE), _SIDE + 1, _STEP):
        template = np.asarray(part.resize((side, side), Image.Resampling.BOX), dtype=np.float32)
        windows = np.lib.stride_tricks.sliding_window_view(field, (side, side), axis=(0, 1))
        stacked = windows[::_STEP, ::_STEP].reshape(-1, 3 * side * side)
        flat = template.transpose(2, 0, 1).ravel() - template.mean()
        spread = np.sqrt((stacked.var(axis=1) * stacked.shape[1]).clip(_FLAT)) * max(float(np.linalg.norm(flat)), _FLAT)
        best = max(best, float((stacked @ flat / spread).max()))
    return best


def surroundings(scene: Scene) -> Pixels:
    """Return what lies around the subject as histograms of colour and of texture, (2, 512), each of sum 1."""
    side = _MARK_SIDE // 2
    pixels = np.asarray(scene.image.convert("YCbCr").resize((side, side), Image.Resampling.BOX), dtype=np.float32)
    left, top, right, bottom = (round(each * side) for each in _enlarged(scene.subject.box))
    outside = np.ones((side, side), dtype=bool)
    outside[top:bottom, left:right] = False
    if outside.mean() < _AROUND:
        outside[:] = True
    bins = np.array([_BINS, _BINS, _BINS])
    colours = np.histogramdd(pixels[outside], bins, [(0, 256), (64, 192), (64, 192)])[0]
    rows, columns = np.gradient(pixels[..., 0])
    steepness = np.log2(1 + np.hypot(rows, columns)[outside])
    lightness = pixels[..., 0][outside]
    texture = np.histogram2d(steepness, lightness, (32, 16), [(0, 7), (0, 256)])[0]
    return np.stack([_shares(colours), _shares(texture)])


def alike(first: Pixels, second: Pixels) -> float:
    """Return how alike two surroundings are, 0 to 1: the lesser of colour's and texture's Bhattacharyya coefficient."""
    return float(np.sqrt(first * second).sum(axis=1).min())


def pose(scene: Scene) -> Pixels:
    """Return the subject in its box as a picture of zero mean and unit length, (1728,)."""
    width, height = scene.image.size
    left, top, right, bottom = scene.subject.box
    box = (left * width, top * height, max(right * width, left * width + 1), max(bottom * height, top * height + 1))
    cut = scene.image.resize((_POSE, _POSE), Image.Resampling.BOX, box=box)
    values = np.asarray(cut, dtype=np.float32).ravel()
    values = values - values.mean()
    return np.asarray(values / max(float(np.linalg.norm(values)), _FLAT), dtype=np.float32)


def least_alike(scenes: Sequence[Scene]) -> float:
    """Return how alike the surroundings are in the two photos where they differ most."""
    around = [surroundings(scene) for scene in scenes]
    return min((alike(first, second) for first, second in combinations(around, 2)), default=0.0)


def least_posed(scenes: Sequence[Scene]) -> float:
    """Return how alike the subject looks in the two photos where it differs most, -1 to 1."""
    poses = [pose(scene) for scene in scenes]
    return min((float(first @ second) for first, second in combinations(poses, 2)), default=0.0)


def mark(images: Sequence[Image.Image]) -> float:
    """Return the share of the picture that is covered by edges which all photos have in the same place.

    A gradient counts with its weakest occurrence, and only if it has the same sign in all photos. So what differs
    between photos cancels and an overlay stays, which the median over many photos does in Dekel et al., "On the
    Effectiveness of Visible Watermarks", CVPR 2017, equation 1; of three to ten the median is too noisy.
    """
    gradients = []
    for image in images:
        grey = np.asarray(image.convert("L").resize((_MARK_SIDE, _MARK_SIDE), Image.Resampling.BOX), dtype=np.float32)
        gradients.append(np.stack([np.gradient(grey, axis=axis) for axis in (0, 1)]))
    stacked = np.stack(gradients)
    common = np.maximum(stacked.min(axis=0), -stacked.max(axis=0)).clip(0)
    return float((common.max(axis=0) > _EDGE).mean())


def _enlarged(box: tuple[float, float, float, float]) -> list[float]:
    left, top, right, bottom = box
    across, down = 0.1 * (right - left), 0.1 * (bottom - top)
    return [max(0.0, left - across), max(0.0, top - down), min(1.0, right + across), min(1.0, bottom + down)]


def _shares(counts: npt.NDArray[np.float64]) -> Pixels:
    return np.asarray(counts.ravel() / max(counts.sum(), 1), dtype=np.float32)
