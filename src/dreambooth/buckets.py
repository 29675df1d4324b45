"""To what sizes photos are cut: the square, or the buckets, each of about as many pixels but of another shape."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from dreambooth.geometry import Aspect, Size, fit
from dreambooth.photos import Photo
from dreambooth.recipe import Recipe

STRETCH = 2
"""The long side of a bucket is at most so many times the resolution, and the short one at least a part of it."""
NAMED = 10
"""Photos that are named where a bucket is told in one line."""
FILLED = 0.9
"""Share of the square's pixels that a bucket has at least."""


@dataclass(frozen=True)
class Bucket:
    """A size, and the photos that are cut to it.

    Attributes:
        size: Width and height in pixels.
        lost: The file of each photo, and the share of it that its centre crop leaves out.
    """

    size: Size
    lost: tuple[tuple[str, float], ...]

    def __str__(self) -> str:
        """Say it in one line, of many photos the first."""
        first = self.lost[:NAMED]
        told = [f"{file} ({share:.0%} cut away)" if share >= 0.005 else f"{file} (whole)" for file, share in first]
        told += [f"{len(self.lost) - NAMED} more"] if len(self.lost) > NAMED else []
        return f"{self.size[0]} x {self.size[1]} pixels: {', '.join(told)}"

    def as_json(self) -> dict[str, Any]:
        """Return `{"size": [width, height], "photos": [{"file", "lost"}]}`."""
        photos = [{"file": file, "lost": round(share, 4)} for file, share in self.lost]
        return {"size": list(self.size), "photos": photos}


def plan(photos: Iterable[Photo], recipe: Recipe, stride: int) -> list[Bucket]:
    """Sort photos into the sizes at which a resolved recipe learns them, of which a photo may have several.

    Args:
        photos: The photos of all subjects.
        recipe: The recipe.
        stride: What sides are a multiple of, in pixels.
    """
    found: dict[Size, list[tuple[str, float]]] = {}
    for photo in photos:
        for chosen in learnt(photo.size, recipe, stride):
            found.setdefault(chosen, []).append((photo.path.name, lost(photo.size, chosen)))
    return [Bucket(chosen, tuple(files)) for chosen, files in found.items()]


def learnt(photo: Size, recipe: Recipe, stride: int) -> list[Size]:
    """Return the sizes at which a resolved recipe learns a photo of this size, that of its first resolution first.

    A photo that would have to be enlarged for a further resolution is not learnt at it.
    """
    first = _of(photo, resolutions(recipe)[0], recipe.aspect, stride)
    return list(dict.fromkeys([first, *(size for _, size in _further(photo, recipe, stride))]))


def idle(photos: Iterable[Photo], recipe: Recipe, stride: int) -> list[int]:
    """Return the further resolutions of a resolved recipe for which no photo has the pixels."""
    used = {side for photo in photos for side, _ in _further(photo.size, recipe, stride)}
    return [side for side in recipe.more_resolutions if side not in used]


def flags(recipe: Recipe) -> list[tuple[str, int]]:
    """Return the flag and the side of each resolution of a resolved recipe."""
    first, *further = resolutions(recipe)
    return [("--resolution", first), *(("--more-resolutions", side) for side in further)]


def resolutions(recipe: Recipe) -> list[int]:
    """Return the resolutions of a resolved recipe, that of class images and of generation first."""
    assert recipe.resolution is not None, "presets.fill leaves no resolution open"
    return [recipe.resolution, *recipe.more_resolutions]


def _further(photo: Size, recipe: Recipe, stride: int) -> list[tuple[int, Size]]:
    """Return the further resolutions for which a photo has the pixels, each with its size there."""
    found = [(side, _of(photo, side, recipe.aspect, stride)) for side in recipe.more_resolutions]
    return [(side, size) for side, size in found if size[0] <= fit(photo, size)[0]]


def _of(photo: Size, resolution: int, aspect: Aspect, stride: int) -> Size:
    return (resolution, resolution) if aspect == "square" else nearest(photo, resolution, stride)


def nearest(photo: Size, resolution: int, stride: int) -> Size:
    """Return the bucket that keeps most of a photo; among equals the one of most pixels."""
    return min(sizes(resolution, stride), key=lambda bucket: (lost(photo, bucket), -bucket[0] * bucket[1]))


def sizes(resolution: int, stride: int) -> list[Size]:
    """Return the buckets, the square among them.

    None has more pixels than the square, so that none takes more memory than it.

    Args:
        resolution: Side of the square in pixels, a multiple of the stride.
        stride: What sides are a multiple of, in pixels.
    """
    area = resolution**2
    longs = range(resolution, STRETCH * resolution + 1, stride)
    pairs = [(long, area // long // stride * stride) for long in longs]
    wide = [(long, short) for long, short in pairs if long * short >= FILLED * area]
    return [*wide, *((short, long) for long, short in wide if short < long)]


def lost(photo: Size, bucket: Size) -> float:
    """Return the share of a photo that is cut away to give it the shape of a bucket."""
    width, height = fit(photo, bucket)
    return 1 - width * height / (photo[0] * photo[1])
