"""Encoded photos and prompts, found by what they are: a caption cannot meet another photo's latents."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Hashable, Iterable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor

from dreambooth import photos
from dreambooth.ahead import mapped
from dreambooth.families import Family
from dreambooth.geometry import Box, Size
from dreambooth.photos import Photo
from dreambooth.scaling import Scaled

GREY = 128
"""About 0 in what a model is given; the loss leaves it out, but the photo's edge is seen against it."""

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


@dataclass(frozen=True)
class Row:
    """One encoded view of a photo: its centre crop (variant 0) or its k-th random crop to a size, perhaps mirrored.

    The size is width and height in pixels. A view at another scale is what `scaled` says instead.
    """

    photo: Photo
    size: Size
    variant: int = 0
    mirrored: bool = False
    scaled: Scaled | None = None

    def part(self, seed: int) -> Box:
        """Return what is seen of the photo, in its pixels."""
        return self.scaled.part if self.scaled else photos.box(self.photo, self.size, self.variant, seed)

    @property
    def frame(self) -> Box:
        """Where that lies in the view, in the view's pixels: all of it, unless the photo is shrunk."""
        return self.scaled.frame if self.scaled else (0, 0, *self.size)


class Memo(Generic[Key, Value]):
    """Values made from keys, on demand; with `keep`, each is made once.

    Args:
        make: Makes the value of one key. Made one at a time, a value cannot depend on its neighbours.
        keep: Whether to keep values.
        values: Where to keep them. Default: in memory.
    """

    def __init__(
        self, make: Callable[[Key], Value], keep: bool = True, values: MutableMapping[Key, Value] | None = None
    ) -> None:
        self._make = make
        self._keep = keep
        self._values = {} if values is None else values

    def __getitem__(self, key: Key) -> Value:
        if key in self._values:
            return self._values[key]
        value = self._make(key)
        if self._keep:
            self._values[key] = value
        return value

    def __setitem__(self, key: Key, value: Value) -> None:
        self._values[key] = value

    def fill(self, keys: Iterable[Key], advance: Callable[[], None]) -> None:
        """Make the values of `keys`, telling `advance` after each."""
        for key in keys:
            self[key]
            advance()


class Shelf(MutableMapping[Key, dict[str, Tensor]]):
    """Tensors by key, in memory up to a limit; later ones lie in files that are mapped into memory when they are read.

    Args:
        limit: Bytes to keep in memory.
    """

    def __init__(self, limit: int) -> None:
        self._free = limit
        self._near: dict[Key, dict[str, Tensor]] = {}
        self._far: dict[Key, Path] = {}
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __getitem__(self, key: Key) -> dict[str, Tensor]:
        return load_file(self._far[key]) if key in self._far else self._near[key]

    def __setitem__(self, key: Key, value: dict[str, Tensor]) -> None:
        self._free -= sum(tensor.nbytes for tensor in value.values())
        if self._free >= 0:
            self._near[key] = value
            return
        self._folder = self._folder or tempfile.TemporaryDirectory(prefix="dreambooth-cache-")
        file = Path(self._folder.name) / f"{len(self._far)}.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in value.items()}, file)
        self._far[key] = file

    def __delitem__(self, key: Key) -> None:
        del (self._far if key in self._far else self._near)[key]

    def __iter__(self) -> Iterator[Key]:
        return iter([*self._near, *self._far])

    def __len__(self) -> int:
        return len(self._near) + len(self._far)


@dataclass(frozen=True)
class View:
    """What is seen in a view of a photo, all of it uint8.

    Attributes:
        pixels_HWC: The photo, on grey where it does not fill the view.
        mask_HW: Its mask, if it has one: 255 on the subject.
        filled_HW: Where a view at another scale shows the photo: 255 there.
    """

    pixels_HWC: np.ndarray
    mask_HW: np.ndarray | None
    filled_HW: np.ndarray | None = None


def read_view(row: Row, seed: int) -> View:
    """Decode a photo and cut a view from it."""
    part, (left, top, right, bottom) = row.part(seed), row.frame
    inner = (right - left, bottom - top)
    pixels_HWC = photos.crop(row.photo, inner, part)
    mask_HW = photos.crop_mask(row.photo, inner, part)
    filled_HW = np.full(inner[::-1], 255, np.uint8) if row.scaled else None
    return View(
        _put(pixels_HWC, row, GREY),
        None if mask_HW is None else _put(mask_HW, row, 0),
        None if filled_HW is None else _put(filled_HW, row, 0),
    )


@torch.no_grad()
def encode_photo(
    pipe: DiffusionPipeline, family: Family, row: Row, seed: int, view: View | None = None
) -> dict[str, Tensor]:
    """Encode one view of a photo, which is read where it is not given.

    Returns:
        `mean_CHW` and `std_CHW` of its latents and its `view_4`, float32 on the CPU; `mask_1HW` where it has a mask,
        `filled_1HW`, 1 where there is something of the photo, where it is at another scale.
    """
    view = view or read_view(row, seed)
    pixels_1CHW = torch.tensor(view.pixels_HWC).permute(2, 0, 1)[None]
    rows = family.encode_images(pipe, pixels_1CHW.float() / 127.5 - 1)
    encoded = {name.replace("_BCHW", "_CHW"): value_1CHW[0].float().cpu() for name, value_1CHW in rows.items()}
    encoded["view_4"] = _view(row, seed)
    for name, seen_HW in (("mask_1HW", view.mask_HW), ("filled_1HW", view.filled_HW)):
        if seen_HW is not None:
            seen_11HW = torch.tensor(seen_HW)[None, None].float() / 255
            encoded[name] = F.interpolate(seen_11HW, encoded["mean_CHW"].shape[-2:], mode="area")[0]
    return encoded


def encode_photos(
    pipe: DiffusionPipeline, family: Family, rows: Sequence[Row], seed: int
) -> Iterator[tuple[Row, dict[str, Tensor]]]:
    """Encode views of photos one by one, while the files of the next are read."""
    for row, view in zip(rows, mapped(partial(read_view, seed=seed), rows), strict=True):
        yield row, encode_photo(pipe, family, row, seed, view)


@torch.no_grad()
def encode_prompt(pipe: DiffusionPipeline, family: Family, prompt: str) -> dict[str, Tensor]:
    """Encode one prompt to its conditioning row, on the CPU."""
    (row,) = family.encode_prompts(pipe, [prompt])
    return {name: value.cpu() for name, value in row.items()}


def _view(row: Row, seed: int) -> Tensor:
    """Return the photo's height and width, and top and left edge of what is seen of it, scaled as in the view.

    For the models that were trained to be told (Podell et al. 2023, https://arxiv.org/abs/2307.01952, section 2.2).
    """
    width, height = row.photo.size
    (left, top, right, bottom), frame = row.part(seed), row.frame
    across, down = (frame[2] - frame[0]) / (right - left), (frame[3] - frame[1]) / (bottom - top)
    return torch.tensor([height, width, top * down, (width - right if row.mirrored else left) * across])


def _put(pixels: np.ndarray, row: Row, rest: int) -> np.ndarray:
    """Put what was cut out of a photo into its frame, the rest of the view filled; then mirror all of it, or not."""
    left, top, right, bottom = row.frame
    view = np.full((*row.size[::-1], *pixels.shape[2:]), rest, np.uint8)
    view[top:bottom, left:right] = pixels
    return np.ascontiguousarray(view[:, ::-1]) if row.mirrored else view
