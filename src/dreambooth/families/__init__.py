"""Model families: one module of plain functions for each, found by name and imported when it is used.

A new family is one module, one line in each of the two tables below and its cards in `cards.yaml`.
This module imports no torch, so the command line can look families up before any work starts.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline
    from torch import Tensor, nn

    from dreambooth.diffusion import Process
    from dreambooth.models import Source

MODULES = {"sd": "dreambooth.families.sd"}
"""Family name -> the module that implements it."""

PIPELINES = {"StableDiffusionPipeline": "sd"}
"""Class name in a model folder's `model_index.json` -> family name."""


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
    def LORA_TARGETS(self) -> dict[str, tuple[str, ...]]:
        """Named sets of the denoiser's modules that an adapter may attach to (name endings, as peft takes them)."""

    @property
    def TEXT_LORA_TARGETS(self) -> tuple[str, ...]:
        """Modules of the text encoders that an adapter attaches to (name endings)."""

    def load(self, source: Source, dtype: torch.dtype) -> DiffusionPipeline:
        """Load the stock pipeline on the CPU: every part frozen, in eval mode, its weights cast to `dtype`."""

    def denoiser(self, pipe: DiffusionPipeline) -> nn.Module:
        """Return the network that is trained: U-Net or transformer."""

    def text_encoders(self, pipe: DiffusionPipeline) -> dict[str, nn.Module]:
        """Return the text encoders by their name in the pipeline."""

    def process(self, pipe: DiffusionPipeline) -> Process:
        """Return the diffusion process that the model was trained with."""

    def encode_images(self, pipe: DiffusionPipeline, pixels_BCHW: Tensor) -> dict[str, Tensor]:
        """Encode float pixels in [-1, 1] to `mean_BCHW` and `std_BCHW` of the latents, in the denoiser's space."""

    def encode_prompts(self, pipe: DiffusionPipeline, prompts: Sequence[str]) -> list[dict[str, Tensor]]:
        """Encode each prompt to a row. Differentiable: the caller decides about `no_grad`."""

    def collate(self, rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Join rows to the conditioning of one batch."""

    def predict(self, denoiser: nn.Module, noisy_BCHW: Tensor, t_B: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """Run the denoiser, wrapped or bare, on noisy latents at the process's times `t_B`."""

    def class_sampler(self, pipe: DiffusionPipeline) -> Any:
        """Return a stochastic scheduler for drawing class images (the paper's ancestral sampling)."""


def get(name: str) -> Family:
    """Import and return the family called `name`.

    Raises:
        KeyError: No family has that name; names come from cards and `PIPELINES`, never from the user.
    """
    return cast(Family, importlib.import_module(MODULES[name]))


if TYPE_CHECKING:
    from dreambooth.families import sd

    _FAMILIES: tuple[Family, ...] = (sd,)  # mypy holds each module against the Protocol
