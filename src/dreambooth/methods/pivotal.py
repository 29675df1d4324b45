"""Pivotal tuning: a new token's embedding first, in every text encoder; then an adapter, around the token as it is.

Roich et al. 2021, https://arxiv.org/abs/2106.05744, for diffusion models as in https://github.com/cloneofsimo/lora and
in diffusers' advanced DreamBooth scripts. Shipped as the files of both methods, side by side.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from diffusers import DiffusionPipeline

from dreambooth.families import Family
from dreambooth.methods import Group, lora, textual_inversion
from dreambooth.models import Source
from dreambooth.recipe import Recipe

PIVOT = 0.5
"""Share of the steps that are the token's."""


def attach(pipe: DiffusionPipeline, family: Family, recipe: Recipe) -> list[Group]:
    """Add the adapter, and each subject's token, whose rate is the text encoder's."""
    token = _token(recipe).model_copy(update={"learning_rate": recipe.text_encoder_learning_rate})
    adapter = lora.attach(pipe, family, _adapter(recipe))
    rows = textual_inversion.attach(pipe, family, token)
    return [replace(g, span=(PIVOT, 1.0)) for g in adapter] + [replace(g, span=(0.0, PIVOT)) for g in rows]


def save(pipe: DiffusionPipeline, family: Family, source: Source, recipe: Recipe, folder: Path) -> None:
    """Write the adapter and the embeddings to the same folder."""
    lora.save(pipe, family, source, _adapter(recipe), folder)
    textual_inversion.save(pipe, family, source, _token(recipe), folder)


def load(family: Family, source: Source, recipe: Recipe, folder: Path) -> DiffusionPipeline:
    """Load the base model and both into it."""
    pipe = lora.load(family, source, _adapter(recipe), folder)
    textual_inversion.put(pipe, family, recipe, folder)
    return pipe


def _adapter(recipe: Recipe) -> Recipe:
    return recipe.model_copy(update={"method": "lora"})


def _token(recipe: Recipe) -> Recipe:
    return recipe.model_copy(update={"method": "textual-inversion"})
