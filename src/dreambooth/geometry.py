"""Sizes and boxes in pixels. A size is width and height."""

from __future__ import annotations

from typing import Literal

Size = tuple[int, int]
Box = tuple[int, int, int, int]
"""Left, top, right and bottom edge in pixels."""
Aspect = Literal["square", "keep"]


def fit(photo: Size, bucket: Size) -> Size:
    """Return the size of the largest part of a photo that has the shape of a bucket, in whole pixels of the photo."""
    (width, height), (across, down) = photo, bucket
    return min(width, round(height * across / down)), min(height, round(width * down / across))


def placed(room: Size, size: Size, across: float, down: float, stride: int = 1) -> Box:
    """Return a box of a size in a room, at shares in [0, 1) of the places, `stride` pixels apart, that there are."""
    free = [(whole - part) // stride + 1 for whole, part in zip(room, size, strict=True)]
    left, top = stride * int(free[0] * across), stride * int(free[1] * down)
    return left, top, left + size[0], top + size[1]
