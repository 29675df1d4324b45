"""DeepFloyd IF's super-resolution stages: a U-Net that draws an image from one of a quarter of its side.

Conventions as in diffusers' `IFSuperResolutionPipeline`: the first half of the U-Net's channels is the noisy image, the
second the small one, upscaled and with noise of its own (noise conditioning augmentation, Ho et al. 2021,
https://arxiv.org/abs/2106.15282; Saharia et al. 2022, https://arxiv.org/abs/2205.11487), its level a class label. Here
the small image is made from the photo itself; diffusers' DreamBooth scripts show the noisy photo twice instead.

The level is a whole step s of the pipeline's `image_noising_scheduler`: the small image is scaled by sqrt(a_s) and gets
noise of variance 1 - a_s. With the published squared-cosine schedule of 1000 steps that is 4.1e-5 at s = 0, the least
there is, 1.0e-3 at 13, 0.15 at 250, where the stock pipeline draws by default. Ruiz et al. 2023, whose model takes any
variance, found a subject's fine detail blurred when they fine-tuned at 1e-3 and sharp at 1e-5: so the default is 0.
Fine-tune and draw at the same level: `noise_level` of the stock pipeline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline, IFSuperResolutionPipeline
from torch import Tensor, nn

from dreambooth.diffusion import Ddpm
from dreambooth.errors import UserError
from dreambooth.families import common, deepfloyd
from dreambooth.families.common import collate as collate
from dreambooth.families.deepfloyd import LORA_TARGETS as LORA_TARGETS
from dreambooth.families.deepfloyd import READERS as READERS
from dreambooth.families.deepfloyd import SAMPLERS as SAMPLERS
from dreambooth.families.deepfloyd import STRIDE as STRIDE
from dreambooth.families.deepfloyd import TEXT_LORA_TARGETS as TEXT_LORA_TARGETS
from dreambooth.families.deepfloyd import WORD_TOKENIZERS as WORD_TOKENIZERS
from dreambooth.families.deepfloyd import class_sampler as class_sampler
from dreambooth.families.deepfloyd import denoiser as denoiser
from dreambooth.families.deepfloyd import text_encoders as text_encoders
from dreambooth.models import Source

PIPELINES = ("IFSuperResolutionPipeline",)

FACTOR = 4
"""An image's side over the small one's: 64 to 256, and 256 to 1024."""


@dataclass(frozen=True, eq=False)
class SuperResolution(Ddpm):
    """The diffusion of an image (first half of the channels) beside a small one with a fixed amount of noise.

    Attributes:
        small: The noise schedule of the small image.
        level: Its step on that schedule, at every time of the large one.
    """

    small: Ddpm
    level: int

    def on(self, device: torch.device) -> Self:
        """Return the process with both schedules on a device."""
        return replace(super().on(device), small=self.small.on(device))

    def mix(self, x_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor) -> Tensor:
        """Return the image with the noise of time `t_B` and the small image with that of its level."""
        (image_BCHW, small_BCHW), (first_BCHW, second_BCHW) = x_BCHW.chunk(2, dim=1), noise_BCHW.chunk(2, dim=1)
        level_B = torch.full_like(t_B, self.level)
        halves = [super().mix(image_BCHW, first_BCHW, t_B), self.small.mix(small_BCHW, second_BCHW, level_B)]
        return torch.cat(halves, dim=1)

    def target(self, x_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor) -> Tensor:
        """Return what should be predicted of the image: nothing is of the small one."""
        return super().target(x_BCHW.chunk(2, dim=1)[0], noise_BCHW.chunk(2, dim=1)[0], t_B)


def load(source: Source, dtype: torch.dtype) -> DiffusionPipeline:
    """Load the stock pipeline on the CPU: every part frozen, in eval mode, its weights cast to `dtype`.

    Raises:
        UserError: The model was saved without its text encoder.
    """
    pipe = common.load_folder(IFSuperResolutionPipeline, source.path, dtype, **deepfloyd.LEFT_OUT)
    if pipe.text_encoder is None or pipe.tokenizer is None:
        raise UserError(f"{source.name} was saved without its text encoder: get the whole model")
    pipe.tokenizer.model_max_length = deepfloyd.TOKENS
    return common.frozen(pipe)


def process(pipe: DiffusionPipeline) -> SuperResolution:
    """Return the noise schedules that the pipeline's two schedulers are configured for.

    Raises:
        UserError: The small image's schedule has no such level.
    """
    large, small = (Ddpm.from_scheduler_config(each.config) for each in (pipe.scheduler, pipe.image_noising_scheduler))
    level, steps = _level(pipe), len(small.alphas_cumprod_T)
    if level >= steps:
        raise UserError(
            f"--low-resolution-noise {level}: this model has levels from 0 to {steps - 1}: give a smaller one"
        )
    return SuperResolution(large.alphas_cumprod_T, large.prediction, small, level)


def encode_images(pipe: DiffusionPipeline, pixels_BCHW: Tensor) -> dict[str, Tensor]:
    """Return the pixels and, as further channels, their small copy, upscaled as the stock pipeline upscales it.

    `std_BCHW` is 0: the model has no autoencoder.
    """
    height, width = pixels_BCHW.shape[-2:]
    small = F.interpolate(pixels_BCHW, (height // FACTOR, width // FACTOR), mode="bicubic", antialias=True)
    upscaled_BCHW = F.interpolate(small.clamp(-1, 1), (height, width), mode="bilinear", align_corners=True)
    both_BCHW = torch.cat([pixels_BCHW, upscaled_BCHW], dim=1)
    return {"mean_BCHW": both_BCHW, "std_BCHW": torch.zeros_like(both_BCHW)}


def encode_prompts(pipe: DiffusionPipeline, prompts: Sequence[str]) -> list[dict[str, Tensor]]:
    """Encode each prompt as stage I does, and say the small image's `level` beside it.

    Raises:
        UserError: A prompt is longer than the model was trained to read.
    """
    return [{**row, "level": torch.tensor(_level(pipe))} for row in deepfloyd.encode_prompts(pipe, prompts)]


def predict(denoiser: nn.Module, noisy_BCHW: Tensor, t_B: Tensor, cond: dict[str, Tensor]) -> Tensor:
    """Run the U-Net, wrapped or bare, and leave out the second half of what it says, the variance."""
    predicted_BKHW: Tensor = denoiser(
        noisy_BCHW, t_B, encoder_hidden_states=cond["prompt_embeds_BLD"], class_labels=cond["level_B"]
    ).sample
    return predicted_BKHW.chunk(2, dim=1)[0]


def guide(pipe: DiffusionPipeline, scale: float, negatives: Sequence[str]) -> dict[str, Any]:
    """Return how the pipeline is told to guide, and the level of noise that it gives the small image."""
    return {**deepfloyd.guide(pipe, scale, negatives), "noise_level": _level(pipe)}


def _level(pipe: DiffusionPipeline) -> int:
    """Return the recipe's setting, which training leaves on the pipeline, or its default."""
    return int(getattr(pipe, "low_resolution_noise", 0))
