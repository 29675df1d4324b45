"""Arithmetic: which dtype holds the frozen weights."""

from __future__ import annotations

import torch

from dreambooth.recipe import Recipe

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def storage_dtype(recipe: Recipe) -> torch.dtype:
    """Return the dtype of frozen weights and of shipped pipelines."""
    assert recipe.precision is not None, "presets.fill leaves it open for nobody"
    return DTYPES[recipe.precision]
