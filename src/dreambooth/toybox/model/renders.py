"""The rendered world as the tasks see it: pixels, truths, and which part is held out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dreambooth.errors import UserError
from dreambooth.toybox.world.dataset import load_dataset

# Whole shards, so that no subject is on both sides.
HELD_OUT = 1024


@dataclass(frozen=True)
class Renders:
    """Pictures and their truths, row by row.

    Attributes:
        images_NHWC: uint8.
        records: {"seed", "caption", "scene": {"class", "subject_seed", "context", ...}}.
    """

    images_NHWC: NDArray[np.uint8]
    records: list[dict[str, Any]]

    def __len__(self) -> int:
        return len(self.records)

    def part(self, rows: slice) -> Renders:
        """A range of the rows; the pictures are not copied."""
        return Renders(self.images_NHWC[rows], self.records[rows])

    def rows(self, chosen: list[int]) -> Renders:
        """Some of the rows, by number."""
        return Renders(self.images_NHWC[chosen], [self.records[row] for row in chosen])

    def batches(self, size: int) -> list[Tensor]:
        """All the row numbers, in groups of `size`."""
        return [torch.arange(start, min(start + size, len(self))) for start in range(0, len(self), size)]

    def pixels(self, rows: Tensor) -> Tensor:
        """The pictures of these rows, (B, 3, H, W) in [-1, 1]."""
        return to_pixels(self.images_NHWC[rows.numpy()])


@dataclass(frozen=True)
class World:
    """What is trained on, and what is only measured on."""

    train: Renders
    held_out: Renders


def load_world(folder: Path, held_out: int = HELD_OUT) -> World:
    """Reads a rendered data set. The first rows are held out, so that a set that grew holds out the same ones.

    Raises:
        UserError: The folder holds nothing, or nothing but what is held out.
    """
    try:
        images, records = load_dataset(folder)
    except FileNotFoundError as error:
        raise UserError(f"{error}: run `python -m dreambooth.toybox data` first") from None
    if len(records) <= held_out:
        raise UserError(f"{folder} holds only {len(records)} renders, of which {held_out} are held out: render more")
    renders = Renders(images, records)
    return World(renders.part(slice(held_out, None)), renders.part(slice(held_out)))


def to_pixels(images_NHWC: NDArray[np.uint8]) -> Tensor:
    """uint8 (N, H, W, 3) to float (N, 3, H, W) in [-1, 1]."""
    images_NCHW = np.ascontiguousarray(images_NHWC.transpose(0, 3, 1, 2))
    return torch.from_numpy(images_NCHW).float() / 127.5 - 1


def to_images(pixels_BCHW: Tensor) -> NDArray[np.uint8]:
    """The inverse of `to_pixels`, clipped."""
    array = (pixels_BCHW.float().clamp(-1, 1) + 1) * 127.5
    return array.round().byte().permute(0, 2, 3, 1).cpu().numpy()


def flipped(pixels_BCHW: Tensor, draw: torch.Generator) -> Tensor:
    """Each picture mirrored with probability 1/2; captions name no sides."""
    mirror_B = torch.rand(len(pixels_BCHW), generator=draw) < 0.5
    return torch.where(mirror_B[:, None, None, None], pixels_BCHW.flip(-1), pixels_BCHW)


def shifted(pixels_BCHW: Tensor, draw: torch.Generator, reach: int = 4) -> Tensor:
    """The batch moved by up to `reach` pixels, its border repeated."""
    height, width = pixels_BCHW.shape[-2:]
    top, left = torch.randint(0, 2 * reach + 1, (2,), generator=draw).tolist()
    padded = torch.nn.functional.pad(pixels_BCHW, (reach,) * 4, mode="replicate")
    return padded[..., top : top + height, left : left + width]
