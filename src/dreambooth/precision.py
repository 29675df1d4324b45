"""Arithmetic: which dtype holds the frozen weights, and what is brought to which."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor

from dreambooth.recipe import Recipe

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def storage_dtype(recipe: Recipe) -> torch.dtype:
    """Return the dtype of frozen weights and of shipped pipelines."""
    assert recipe.precision is not None, "presets.fill leaves it open for nobody"
    return DTYPES[recipe.precision]


def as_they_are(recipe: Recipe) -> bool:
    """Whether a LoRA's inputs need not be brought to float32: under autocast, in passes that are never recomputed.

    Recomputed, which is after the pass, they would be brought there again; and DoRA's own arithmetic wants them so.
    """
    return recipe.precision != "fp32" and recipe.adapter in ("lora", "rslora") and not recipe.gradient_checkpointing


@contextmanager
def inputs_as_they_are(layers: Sequence[LoraLayer]) -> Iterator[None]:
    """Keep peft from bringing inputs to an adapter's float32: under autocast its products bring them back.

    The numbers are the same, without two passes over memory a layer.
    """
    for layer in layers:
        layer.cast_input_dtype_enabled = False
    try:
        yield
    finally:
        for layer in layers:
            layer.cast_input_dtype_enabled = True


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device; to a GPU it travels while the host goes on."""
    if device.type == "cuda" and tensor.device.type == "cpu" and type(tensor) is Tensor:  # none without numbers
        pinned = tensor if tensor.is_pinned() else tensor.pin_memory()
        return pinned.to(device, non_blocking=True)
    return tensor.to(device)
