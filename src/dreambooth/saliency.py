"""Where the subject of a photo is, told without a network: what differs from the border and is cut off from it.

After Zhang et al., "Minimum Barrier Salient Object Detection at 80 FPS", ICCV 2015: the minimum barrier distance to the
border, joined with how unlike the colours of the border a pixel is. Their raster scan is replaced by relaxation of all
pixels at once, which numpy does fast. It finds one subject that stands out. In clutter it finds the wrong thing, and
says so by a low contrast; a mask that is given is always better, and `segmentation` asks a network.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

SIDE = 64
"""Longer side of the saliency map in pixels."""
_STRIP = 0.1
_SWEEPS = 200
_TAIL = 0.02
_SHARPNESS = 10.0

Map = npt.NDArray[np.float32]
Box = tuple[float, float, float, float]
"""Left, top, right and bottom as shares of the width and of the height, 0 to 1."""


@dataclass(frozen=True)
class Subject:
    """Where the subject is.

    Attributes:
        mask: Share of each cell that belongs to it, (H, W), 0 to 1; the longer side has 64 cells.
        box: What holds all of it but stray cells.
        contrast: How clearly it stands out, 0 to 1: the share of the map's variance between subject and surroundings
            (Otsu's criterion). 1 for a mask, 0 for an empty one.
        given: Whether it comes from a mask, beside the photo or of a segmenter.
    """

    mask: Map
    box: Box
    contrast: float
    given: bool = False

    @property
    def share(self) -> float:
        """Share of the picture that the subject covers."""
        return float(self.mask.mean())


def find(image: Image.Image) -> Subject:
    """Find the subject of an RGB photo."""
    salience = saliency(image)
    threshold, contrast = _otsu(salience)
    mask = _connected(salience > threshold, salience).astype(np.float32)
    return Subject(mask, _box(mask), contrast)


def from_mask(mask: Image.Image) -> Subject:
    """Take the subject from a mask that is white where it is."""
    cells = np.asarray(mask.convert("L").resize(_small(mask.size), Image.Resampling.BOX), dtype=np.float32)
    cells = np.asarray(cells / 255, dtype=np.float32)
    return Subject(cells, _box(cells), float(cells.any()), given=True)


def saliency(image: Image.Image) -> Map:
    """Return how far each cell of a photo stands out, (H, W), 0 to 1; the longer side has 64 cells."""
    small = image.convert("YCbCr").resize(_small(image.size), Image.Resampling.BOX)
    colours_CHW = (np.asarray(small, dtype=np.float32) / np.float32(255)).transpose(2, 0, 1).astype(np.float32)
    joined = _unit(barrier_distance(colours_CHW).sum(axis=0)) + _unit(_unlike_border(colours_CHW))
    centred = _unit(joined) * _centre(joined.shape)
    level = _unit(centred)
    return np.asarray(1 / (1 + np.exp(-_SHARPNESS * (level - 0.5))), dtype=np.float32)


def barrier_distance(values_CHW: Map) -> Map:
    """Return for each cell the least difference of maximum and minimum along any path from the border to it.

    Each channel by itself, over paths of 4-neighbours (Zhang et al. 2015, equations 2 and 3; like their raster scan
    this keeps one path a cell, so the distance is an upper bound that is nearly always met).
    """
    high, low = values_CHW.copy(), values_CHW.copy()
    distance = np.full_like(values_CHW, np.inf)
    distance[:, [0, -1]] = 0
    distance[:, :, [0, -1]] = 0
    for _ in range(_SWEEPS):
        changed = False
        for axis in (1, 2):
            for step in (1, -1):
                changed |= _relax(values_CHW, high, low, distance, axis, step)
        if not changed:
            break
    return distance


def _relax(values: Map, high: Map, low: Map, distance: Map, axis: int, step: int) -> bool:
    """Let every cell take the path of its neighbour, where that is the shorter; tell whether any did."""
    here = [slice(None)] * 3
    there = [slice(None)] * 3
    here[axis], there[axis] = (slice(1, None), slice(None, -1)) if step > 0 else (slice(None, -1), slice(1, None))
    to, source = tuple(here), tuple(there)
    top, bottom = np.maximum(high[source], values[to]), np.minimum(low[source], values[to])
    shorter = (top - bottom < distance[to]) & np.isfinite(distance[source])
    np.copyto(high[to], top, where=shorter)
    np.copyto(low[to], bottom, where=shorter)
    np.copyto(distance[to], top - bottom, where=shorter)
    return bool(shorter.any())


def _unlike_border(colours_CHW: Map) -> Map:
    """Return how unlike the four border strips each cell is in colour; the most unlike strip may be the subject's."""
    _, height, width = colours_CHW.shape
    rows, columns = max(1, round(height * _STRIP)), max(1, round(width * _STRIP))
    strips = (
        colours_CHW[:, :rows],
        colours_CHW[:, -rows:],
        colours_CHW[:, :, :columns],
        colours_CHW[:, :, -columns:],
    )
    maps = np.stack([_unit(_mahalanobis(colours_CHW, strip.reshape(3, -1))) for strip in strips])
    return np.asarray(maps.sum(axis=0) - maps.max(axis=0), dtype=np.float32)


def _mahalanobis(colours_CHW: Map, samples_CN: Map) -> Map:
    offset = colours_CHW - samples_CN.mean(axis=1)[:, None, None]
    covariance = np.cov(samples_CN) + 1e-3 * np.eye(3)
    squared = np.einsum("chw,cd,dhw->hw", offset, np.linalg.inv(covariance), offset)
    return np.asarray(np.sqrt(squared.clip(0)), dtype=np.float32)


def _centre(shape: tuple[int, ...]) -> Map:
    """Return a weight that falls off from the centre: people aim their cameras (Zhang et al. 2015, 3.4)."""
    y, x = (np.linspace(-1, 1, side) for side in shape)
    return np.asarray(np.exp(-(y[:, None] ** 2 + x[None] ** 2) / 2), dtype=np.float32)


def _otsu(values: Map) -> tuple[float, float]:
    """Return the threshold that parts the values best, and the share of their variance that lies between the parts."""
    total = float(values.var())
    if total < 1e-9:
        return 0.5, 0.0
    best = (0.5, 0.0)
    for threshold in np.linspace(0.05, 0.95, 46):
        above = values > threshold
        share = float(above.mean())
        if 0 < share < 1:
            gap = float(values[above].mean() - values[~above].mean())
            best = max(best, (float(threshold), share * (1 - share) * gap**2 / total), key=lambda each: each[1])
    return best


def _connected(mask: npt.NDArray[np.bool_], salience: Map) -> npt.NDArray[np.bool_]:
    """Keep the part of a mask that hangs together and holds the most salience."""
    parts: list[npt.NDArray[np.bool_]] = []
    rest = mask.copy()
    while rest.any():
        part = np.zeros_like(rest)
        part.flat[int(rest.argmax())] = True
        grown = _grown(part) & rest
        while not np.array_equal(grown, part):
            part, grown = grown, _grown(grown) & rest
        parts.append(part)
        rest &= ~part
    return max(parts, key=lambda part: float(salience[part].sum()), default=mask)


def _grown(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    padded = np.pad(mask, 1)
    sides = padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
    return np.asarray(sides | mask)


def _box(mask: Map) -> Box:
    left, right = _span(mask.sum(axis=0))
    top, bottom = _span(mask.sum(axis=1))
    return left, top, right, bottom


def _span(weights: Map) -> tuple[float, float]:
    """Return where the middle 96 % of the weights begin and end, as shares of their count."""
    if weights.sum() <= 0:
        return 0.0, 1.0
    share = np.cumsum(weights) / weights.sum()
    first, last = int(np.searchsorted(share, _TAIL)), int(np.searchsorted(share, 1 - _TAIL))
    return first / len(weights), (last + 1) / len(weights)


def _small(size: tuple[int, int]) -> tuple[int, int]:
    longer = max(size)
    return max(2, round(size[0] * SIDE / longer)), max(2, round(size[1] * SIDE / longer))


def _unit(values: Map) -> Map:
    span = float(values.max() - values.min())
    scaled = (values - values.min()) / span if span > 1e-6 else np.zeros_like(values)
    return np.asarray(scaled, dtype=np.float32)
