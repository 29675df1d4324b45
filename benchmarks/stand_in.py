"""Runs a trainer as its own command would, also one that imports torchvision's transforms where it is not installed.

The few transforms that diffusers' DreamBooth scripts use, made of Pillow and torch.
"""

from __future__ import annotations

import enum
import importlib.util
import random
import runpy
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor


class InterpolationMode(enum.Enum):
    """Pillow's filters by torchvision's names."""

    NEAREST = Image.Resampling.NEAREST
    BILINEAR = Image.Resampling.BILINEAR
    BICUBIC = Image.Resampling.BICUBIC
    LANCZOS = Image.Resampling.LANCZOS


class Compose:
    """One transform after another."""

    def __init__(self, steps: Sequence[Callable[[Any], Any]]) -> None:
        self.steps = steps

    def __call__(self, image: Any) -> Any:
        """Apply them in order."""
        for step in self.steps:
            image = step(image)
        return image


class Resize:
    """Brings the shorter side to `size`."""

    def __init__(self, size: int, interpolation: InterpolationMode = InterpolationMode.BILINEAR) -> None:
        self.size, self.filter = size, interpolation.value

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the picture scaled."""
        scale = self.size / min(image.size)
        return image.resize((round(image.width * scale), round(image.height * scale)), self.filter)


class CenterCrop:
    """The square in the middle."""

    def __init__(self, size: int) -> None:
        self.size = size

    def _corner(self, room: int) -> int:
        return room // 2

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the square."""
        left, top = (self._corner(side - self.size) for side in image.size)
        return image.crop((left, top, left + self.size, top + self.size))


class RandomCrop(CenterCrop):
    """A square anywhere."""

    def _corner(self, room: int) -> int:
        return random.randint(0, room)


class RandomHorizontalFlip:
    """Mirrors: the scripts ask for it with certainty."""

    def __init__(self, p: float) -> None:
        assert p == 1.0

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the picture mirrored."""
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def crop(image: Image.Image, top: int, left: int, height: int, width: int) -> Image.Image:
    """Return a part of a picture."""
    return image.crop((left, top, left + width, top + height))


class ToTensor:
    """(C, H, W) in [0, 1]."""

    def __call__(self, image: Image.Image) -> Tensor:
        """Return the pixels."""
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


class Normalize:
    """Shifts and scales."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean, self.std = torch.tensor(mean).view(-1, 1, 1), torch.tensor(std).view(-1, 1, 1)

    def __call__(self, pixels_CHW: Tensor) -> Tensor:
        """Return the pixels scaled."""
        return (pixels_CHW - self.mean) / self.std


def put_in_place() -> None:
    """Put the transforms where torchvision's would be, after the libraries have seen that it is not there."""
    import diffusers  # noqa: F401
    from transformers.utils import is_torchvision_available

    if importlib.util.find_spec("torchvision") is None and not is_torchvision_available():
        transforms = types.ModuleType("torchvision.transforms")
        for each in (InterpolationMode, Compose, Resize, CenterCrop, RandomCrop, RandomHorizontalFlip):
            setattr(transforms, each.__name__, each)
        transforms.ToTensor, transforms.Normalize = ToTensor, Normalize  # type: ignore[attr-defined]
        functional = types.ModuleType("torchvision.transforms.functional")
        functional.crop = crop  # type: ignore[attr-defined]
        package = types.ModuleType("torchvision")
        package.transforms = transforms  # type: ignore[attr-defined]
        sys.modules |= {"torchvision": package, transforms.__name__: transforms, functional.__name__: functional}


def run(command: Sequence[str]) -> None:
    """Run a trainer in this process: a script, or -m and a module, and what either is given."""
    put_in_place()
    is_module = command[0] == "-m"
    sys.argv = [*command[is_module:]]
    (runpy.run_module if is_module else runpy.run_path)(sys.argv[0], run_name="__main__")
