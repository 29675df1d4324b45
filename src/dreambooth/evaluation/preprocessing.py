"""How a picture becomes the pixels that an encoder knows: one function of size, crop, filter and normalisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

Numbers = tuple[float, float, float]

IMAGENET: tuple[Numbers, Numbers] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
OPENAI: tuple[Numbers, Numbers] = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF: tuple[Numbers, Numbers] = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""Mean and standard deviation of red, green and blue in [0, 1]."""


@dataclass(frozen=True)
class Preprocess:
    """Resizes (antialiased), cuts out the centre and normalises.

    The rounding is that of torchvision's `Resize` and `CenterCrop` on PIL images, which the published evaluators use.

    Attributes:
        size: Pixels of the shorter side after resizing; of both sides where nothing is cut out.
        crop: Side in pixels of the square cut out of the centre, at most `size`; None squashes to a square instead.
        norm: Mean and standard deviation of red, green and blue in [0, 1].
        filter: The resampling filter.
    """

    size: int
    crop: int | None
    norm: tuple[Numbers, Numbers]
    filter: Image.Resampling = Image.Resampling.BICUBIC

    def __call__(self, image: Image.Image) -> Tensor:
        """Return the pixels of an RGB picture, float32 (3, H, W). Pure, and safe to call from several threads.

        Raises:
            ValueError: The picture is not RGB; `photos.open_upright` reads every file as RGB.
        """
        if image.mode != "RGB":
            raise ValueError(f"expected an RGB picture, not one of mode {image.mode}")
        image = image.resize(self._resized(*image.size), self.filter)
        if self.crop is not None:
            left, top = (round((side - self.crop) / 2) for side in image.size)
            image = image.crop((left, top, left + self.crop, top + self.crop))
        mean_C, std_C = (np.asarray(values, np.float32) for values in self.norm)
        # In numpy, which stays on this thread: torch would start a team of its own in each thread that decodes.
        pixels_HWC = (np.asarray(image, np.float32) / 255 - mean_C) / std_C
        return torch.from_numpy(np.ascontiguousarray(pixels_HWC.transpose(2, 0, 1)))

    def __str__(self) -> str:
        """All that the pixels depend on, for the identity of an encoder."""
        shape = f"squash {self.size}" if self.crop is None else f"resize {self.size} crop {self.crop}"
        return f"{shape} {self.filter.name.lower()} mean {self.norm[0]} std {self.norm[1]}"

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        if self.crop is None:
            return self.size, self.size
        shorter = min(width, height)
        return int(self.size * width / shorter), int(self.size * height / shorter)


def parse(settings: Mapping[str, Any]) -> Preprocess:
    """Read the settings of a transformers image processor, as its preprocessor_config.json has them.

    Raises:
        ValueError: They ask for what `Preprocess` does not do.
    """
    if not settings.get("do_resize", True):
        raise ValueError("do_resize is off")
    missing = {"size", "image_mean", "image_std"} - settings.keys()
    if missing:
        raise ValueError(f"{', '.join(sorted(missing))} missing")
    size, crop = settings["size"], None
    if settings.get("do_center_crop"):
        crop = _side(settings["crop_size"])
    squashed = crop is None if isinstance(size, int) else "shortest_edge" not in size
    side = _side(size)
    if squashed != (crop is None) or side < (crop or 0):
        raise ValueError(f"size {size}, crop {crop}")
    normalised = settings.get("do_normalize", True)
    mean = _numbers(settings["image_mean"]) if normalised else (0.0, 0.0, 0.0)
    std = _numbers(settings["image_std"]) if normalised else (1.0, 1.0, 1.0)
    return Preprocess(side, crop, (mean, std), Image.Resampling(settings.get("resample", Image.Resampling.BICUBIC)))


def _side(size: int | Mapping[str, int]) -> int:
    """Side of a square, or the shorter side; older files give it as one number."""
    if isinstance(size, int):
        return size
    if "shortest_edge" in size:
        return size["shortest_edge"]
    if size.get("height") is None or size.get("height") != size.get("width"):
        raise ValueError(f"size {dict(size)}")
    return size["height"]


def _numbers(values: Sequence[float]) -> Numbers:
    red, green, blue = values
    return float(red), float(green), float(blue)
