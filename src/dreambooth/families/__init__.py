"""Model families: one module of plain functions for each, found by name and imported when it is used.

A new family is one module, one line in each of the two tables below and its cards in `cards.yaml`.
This module imports no torch, so the command line can look families up before any work starts.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline
    from torch import Tensor, nn

    from dreambooth.diffusion import Process
    from dreambooth.models import Source

MODULES = {
    "sd": "dreambooth.families.sd",
    "sdxl": "dreambooth.families.sdxl",
    "sd3": "dreambooth.families.sd3",
    "flux": "dreambooth.families.flux",
    "chroma": "dreambooth.families.chroma",
    "sana": "dreambooth.families.sana",
    "z_image": "dreambooth.families.z_image",
    "flux2": "dreambooth.families.flux2",
    "qwen_image": "dreambooth.families.qwen_image",
    "deepfloyd": "dreambooth.families.deepfloyd",
    "deepfloyd_sr": "dreambooth.families.deepfloyd_sr",
}
"""Family name -> the module that implements it."""

PIPELINES = {
    "StableDiffusionPipeline": "sd",
    "StableDiffusionXLPipeline": "sdxl",
    "StableDiffusion3Pipeline": "sd3",
    "FluxPipeline": "flux",
    "ChromaPipeline": "chroma",
    "SanaPipeline": "sana",
    "ZImagePipeline": "z_image",
    "Flux2Pipeline": "flux2",
    "Flux2KleinPipeline": "flux2",
    "QwenImagePipeline": "qwen_image",
    "IFPipeline": "deepfloyd",
    "IFSuperResolutionPipeline": "deepfloyd_sr",
}
"""Class name in a model folder's `model_index.json` -> family name."""

UPSCALERS = ("deepfloyd_sr",)
"""Families that draw an image from a small one, and so nothing from a prompt alone."""


class Family(Protocol):
    """What the loop needs to know of a model family. Stateless: a module satisfies it.

    `Row` below is `dict[str, Tensor]`: the conditioning of one prompt, without a batch dimension, opaque to everyone
    but the family that made it.
    """

    @property
    def PIPELINES(self) -> tuple[str, ...]:
        """Class names of the diffusers pipelines that this family serves."""

    @property
    def STRIDE(self) -> int:
        """Image sides must be a multiple of this many pixels."""

    @property
    def SAMPLERS(self) -> Mapping[str, tuple[str, dict[str, Any]]]:
        """The samplers that suit the process, as `sampling.SAMPLERS` has them."""

    @property
    def LORA_TARGETS(self) -> dict[str, tuple[str, ...]]:
        """Named sets of the denoiser's modules that an adapter may attach to (name endings, as peft takes them)."""

    @property
    def TEXT_LORA_TARGETS(self) -> tuple[str, ...]:
        """Modules of the text encoders that an adapter attaches to (name endings)."""

    @property
    def READERS(self) -> tuple[str, ...]:
        """The tokenizers that read the whole prompt, by their names in the pipeline: none may be too short for it."""

    @property
    def WORD_TOKENIZERS(self) -> tuple[str, ...]:
        """The tokenizers that know rare words whole, as CLIP's do: an identifier must be one token of each.

        T5 and language models read any rare word in pieces.
        """

    def load(self, source: Source, dtype: torch.dtype) -> DiffusionPipeline:
        """Load the stock pipeline on the CPU: every part frozen, in eval mode, its weights cast to `dtype`."""

    def denoiser(self, pipe: DiffusionPipeline) -> nn.Module:
        """Return the network that is trained: U-Net or transformer."""

    def text_encoders(self, pipe: DiffusionPipeline) -> dict[str, nn.Module]:
        """Return the text encoders that can be trained, by their name in the pipeline; others stay frozen."""

    def process(self, pipe: DiffusionPipeline) -> Process:
        """Return the diffusion process that the model was trained with."""

    def encode_images(self, pipe: DiffusionPipeline, pixels_BCHW: Tensor) -> dict[str, Tensor]:
        """Encode float pixels in [-1, 1] to `mean_BCHW` and `std_BCHW` of the latents, in the denoiser's space."""

    def encode_prompts(self, pipe: DiffusionPipeline, prompts: Sequence[str]) -> list[dict[str, Tensor]]:
        """Encode each prompt to a row. Differentiable: the caller decides about `no_grad`."""

    def collate(self, rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Join rows to the conditioning of one batch."""

    def predict(self, denoiser: nn.Module, noisy_BCHW: Tensor, t_B: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """Run the denoiser, wrapped or bare, on noisy latents at the process's times `t_B`.

        `cond` is what `collate` gives and `view_B4`, each image's size before it was cropped and its crop.
        """

    def class_sampler(self, pipe: DiffusionPipeline) -> Any:
        """Return a stochastic scheduler for drawing class images (the paper's ancestral sampling)."""

    def guide(self, pipe: DiffusionPipeline, scale: float, negatives: Sequence[str]) -> dict[str, Any]:
        """Return the arguments by which the pipeline is called with a guidance scale.

        Args:
            pipe: The pipeline.
            scale: Guidance scale; 1 is none.
            negatives: Negative prompts, one an image; "" for none.

        Raises:
            UserError: There is a negative prompt, and the model can take none.
        """


def get(name: str) -> Family:
    """Import and return the family called `name`.

    Raises:
        KeyError: No family has that name; names come from cards and `PIPELINES`, never from the user.
    """
    return cast(Family, importlib.import_module(MODULES[name]))


def of(pipe: DiffusionPipeline) -> Family:
    """Return the family of a loaded pipeline."""
    return get(PIPELINES[type(pipe).__name__])


if TYPE_CHECKING:
    from dreambooth.families import (
        chroma,
        deepfloyd,
        deepfloyd_sr,
        flux,
        flux2,
        qwen_image,
        sana,
        sd,
        sd3,
        sdxl,
        z_image,
    )

    # mypy holds each module against the Protocol
    _FAMILIES: tuple[Family, ...] = (
        sd,
        sdxl,
        sd3,
        flux,
        chroma,
        sana,
        z_image,
        qwen_image,
        flux2,
        deepfloyd,
        deepfloyd_sr,
    )
