"""Encoded photos and prompts, found by what they are: a caption cannot meet another photo's latents."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Hashable, Iterable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import psutil
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor

from dreambooth import photos
from dreambooth.ahead import mapped
from dreambooth.buckets import Size
from dreambooth.families import Family
from dreambooth.photos import Photo

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


@dataclass(frozen=True)
class Row:
    """One encoded view of a photo: its centre crop (variant 0) or its k-th random crop to a size, perhaps mirrored.

    The size is width and height in pixels.
    """

    photo: Photo
    size: Size
    variant: int = 0
    mirrored: bool = False


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
        limit: Bytes to keep in memory. Default: a quarter of what is free now.
    """

    def __init__(self, limit: int | None = None) -> None:
        self._free = psutil.virtual_memory().available // 4 if limit is None else limit
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
    """What is seen in a view of a photo: pixels_HWC, uint8, and mask_HW, uint8, where it has a mask."""

    pixels_HWC: np.ndarray
    mask_HW: np.ndarray | None


def read_view(row: Row, seed: int) -> View:
    """Decode a photo and cut a view from it."""
    pixels_HWC = photos.crop(row.photo, row.size, row.variant, seed)
    mask_HW = photos.crop_mask(row.photo, row.size, row.variant, seed)
    return View(_flip(pixels_HWC, row.mirrored), None if mask_HW is None else _flip(mask_HW, row.mirrored))


@torch.no_grad()
def encode_photo(
    pipe: DiffusionPipeline, family: Family, row: Row, seed: int, view: View | None = None
) -> dict[str, Tensor]:
    """Encode one view of a photo, which is read where it is not given.

    Returns:
        `mean_CHW` and `std_CHW` of its latents and its `view_4`, float32 on the CPU; `mask_1HW` where it has a mask.
    """
    view = view or read_view(row, seed)
    pixels_1CHW = torch.tensor(view.pixels_HWC).permute(2, 0, 1)[None]
    rows = family.encode_images(pipe, pixels_1CHW.float() / 127.5 - 1)
    encoded = {name.replace("_BCHW", "_CHW"): value_1CHW[0].float().cpu() for name, value_1CHW in rows.items()}
    encoded["view_4"] = _view(row, seed)
    if view.mask_HW is not None:
        mask_11HW = torch.tensor(view.mask_HW)[None, None].float() / 255
        encoded["mask_1HW"] = F.interpolate(mask_11HW, encoded["mean_CHW"].shape[-2:], mode="area")[0]
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
    """Return the photo's height and width, and top and left edge of the view in the photo scaled as the view is.

    For the models that were trained to be told (Podell et al. 2023, https://arxiv.org/abs/2307.01952, section 2.2).
    """
    width, height = row.photo.size
    left, top, right, bottom = photos.box(row.photo, row.size, row.variant, seed)
    across, down = row.size[0] / (right - left), row.size[1] / (bottom - top)
    return torch.tensor([height, width, top * down, (width - right if row.mirrored else left) * across])


def _flip(pixels: np.ndarray, mirrored: bool) -> np.ndarray:
    return np.ascontiguousarray(pixels[:, ::-1]) if mirrored else pixels
