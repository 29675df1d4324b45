"""A denoiser's passes as CUDA graphs: in a short step, launching kernels one by one takes longer than they do.

A graph is launched as one. Its kernels are those of the pass that it was captured from; its memory is its own for good.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from dreambooth.errors import UserError
from dreambooth.recipe import Recipe

PIPELINES = (
    *("StableDiffusionPipeline", "StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "FluxPipeline"),
    *("IFPipeline", "IFSuperResolutionPipeline", "SanaPipeline", "Flux2Pipeline", "Flux2KleinPipeline"),
)
"""Models whose passes can be captured: nothing in them comes from the host or waits for it (tests/test_graphs.py)."""
MOST = 4
"""Shapes that get a graph; passes of further ones are launched as usual."""


Predict = Callable[[nn.Module, Tensor, Tensor, dict[str, Tensor]], Tensor]
"""What `Family.predict` is: denoiser, noisy latents, times and conditioning to the prediction."""


class Graphs:
    """`Family.predict`, replayed where it can be.

    A pass without gradients is the frozen model's, of other weights than those that a graph has captured.
    A graph's gradients lie where its next backward pass will put the next ones: use it once between two optimiser steps
    that drop the gradients.

    Args:
        predict: What is captured, once for each set of shapes.
    """

    def __init__(self, predict: Predict) -> None:
        self._predict = predict
        self._captured: dict[Any, nn.Module] = {}

    def __call__(self, denoiser: nn.Module, noisy_BCHW: Tensor, t_B: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """Predict the target for noisy latents."""
        given = (noisy_BCHW, t_B, *cond.values())
        key = (*cond, *((tensor.shape, tensor.dtype) for tensor in given))
        is_full = key not in self._captured and len(self._captured) == MOST
        if is_full or not torch.is_grad_enabled():
            return self._predict(denoiser, noisy_BCHW, t_B, cond)
        if key not in self._captured:
            self._captured[key] = _capture(_Pass(self._predict, denoiser, list(cond)), given)
        predicted_BCHW: Tensor = self._captured[key](*given)
        return predicted_BCHW


class _Pass(nn.Module):
    """A pass as a module of tensors alone, as capturing wants it."""

    def __init__(self, predict: Predict, denoiser: nn.Module, names: list[str]) -> None:
        super().__init__()
        self._predict, self._denoiser, self._names = predict, denoiser, names

    def forward(self, noisy_BCHW: Tensor, t_B: Tensor, *values: Tensor) -> Tensor:
        """Predict, the conditioning's values in the order of their names."""
        return self._predict(self._denoiser, noisy_BCHW, t_B, dict(zip(self._names, values, strict=True)))


def _capture(module: _Pass, given: tuple[Tensor, ...]) -> nn.Module:
    kind = given[0].device.type
    samples = tuple(tensor.detach().clone().requires_grad_(tensor.requires_grad) for tensor in given)
    dtype, enabled = torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
    with torch.autocast(kind, dtype, enabled, cache_enabled=False):  # a cast kept from one pass is stale in the next
        captured = cast(nn.Module, torch.cuda.make_graphed_callables(module, samples, allow_unused_input=True))
    torch.cuda.empty_cache()  # what the passes before the capture took
    return captured


def require(recipe: Recipe, pipe: DiffusionPipeline, device: torch.device, processes: int) -> None:
    """Refuse a run whose passes cannot be captured.

    Args:
        recipe: With nothing left open.
        pipe: The pipeline.
        device: Where it is trained.
        processes: Over how many a step is spread.

    Raises:
        UserError: They cannot; the message says why.
    """
    reasons = {
        "there is no CUDA device": device.type != "cuda",
        "this kind of model cannot be captured": type(pipe).__name__ not in PIPELINES,
        "several processes share a step": processes > 1,
        "a step takes several passes": (recipe.accumulation or 1) > 1
        or recipe.aspect != "square"
        or bool(recipe.more_resolutions),
        "a graph keeps its gradients, which --step-in-backward drops": recipe.step_in_backward,
        "activations are recomputed": bool(recipe.gradient_checkpointing),
        "blocks are compiled": recipe.compile,
        "ranks depend on the noise": recipe.min_rank is not None,
        "the frozen base is of few bits": recipe.base is not None,
        "the text encoder is trained": recipe.train_text_encoder or recipe.method in ("textual-inversion", "pivotal"),
        f"the adapter is {recipe.adapter}": recipe.has_adapter and not recipe.is_lora,
    }
    for reason, holds in reasons.items():
        if holds:
            raise UserError(f"--cuda-graphs does not go here, as {reason}: leave it out")
