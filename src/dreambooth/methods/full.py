"""Full fine-tuning: every weight of the denoiser, as in the paper, and of the text encoder on request."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import DiffusionPipeline

from dreambooth.families import Family
from dreambooth.methods import Group, rate, trained_components
from dreambooth.models import Source
from dreambooth.precision import storage_dtype
from dreambooth.recipe import Recipe


def attach(pipe: DiffusionPipeline, family: Family, recipe: Recipe) -> list[Group]:
    """Thaw the trained components, in float32."""
    groups = []
    for name, module in trained_components(pipe, family, recipe).items():
        module.to(torch.float32).requires_grad_(True)
        groups.append(Group(name, dict(module.named_parameters()), rate(recipe, family, pipe, module)))
    return groups


def save(pipe: DiffusionPipeline, family: Family, source: Source, recipe: Recipe, folder: Path) -> None:
    """Write a stock pipeline folder: the base model with the trained components in place of its own."""
    dtype = storage_dtype(recipe)
    trained = trained_components(pipe, family, recipe)
    whole = family.load(source, dtype)
    for name, module in trained.items():
        getattr(whole, name).load_state_dict(module.state_dict())
    whole.save_pretrained(folder)


def load(family: Family, source: Source, recipe: Recipe, folder: Path) -> DiffusionPipeline:
    """Load the pipeline folder."""
    return family.load(Source(source.name, source.family, folder, source.identity, source.card), storage_dtype(recipe))
