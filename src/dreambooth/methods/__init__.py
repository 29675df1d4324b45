"""Ways to train a model: one module of plain functions for each."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

from diffusers import DiffusionPipeline
from torch import nn

from dreambooth.families import Family
from dreambooth.models import Source
from dreambooth.recipe import Recipe

MODULES = {
    "lora": "dreambooth.methods.lora",
    "full": "dreambooth.methods.full",
    "textual-inversion": "dreambooth.methods.textual_inversion",
    "pivotal": "dreambooth.methods.pivotal",
}
"""Method name -> the module that implements it."""


@dataclass(frozen=True)
class Group:
    """Trained weights of one component of the pipeline.

    Attributes:
        component: Name of the component in the pipeline, such as "unet".
        parameters: Name -> weight, float32.
        rate: Peak learning rate.
        span: Part of the steps in which they are trained: from a share of them, to a share of them.
    """

    component: str
    parameters: dict[str, nn.Parameter]
    rate: float
    span: tuple[float, float] = (0.0, 1.0)


class Method(Protocol):
    """A way to train a model. Stateless: a module satisfies it."""

    def attach(self, pipe: DiffusionPipeline, family: Family, recipe: Recipe) -> list[Group]:
        """Make the weights to train trainable, in float32; everything else stays frozen. Seeded by the recipe."""

    def save(self, pipe: DiffusionPipeline, family: Family, source: Source, recipe: Recipe, folder: Path) -> None:
        """Write what was trained to `folder` in the form stock diffusers loads.

        `pipe` holds the trained components; others may have been freed.
        """

    def load(self, family: Family, source: Source, recipe: Recipe, folder: Path) -> DiffusionPipeline:
        """Return the stock pipeline with what `save` wrote, loaded by stock code alone."""


def get(name: str) -> Method:
    """Import and return the method called `name`."""
    return cast(Method, importlib.import_module(MODULES[name]))


def trains_text_encoders(recipe: Recipe) -> bool:
    """Whether something in the text encoders is trained, so that prompts cannot be encoded once for all steps."""
    return recipe.train_text_encoder or recipe.learns_token


def trained_components(pipe: DiffusionPipeline, family: Family, recipe: Recipe) -> dict[str, nn.Module]:
    """Return the components that a recipe trains, by their name in the pipeline, the denoiser first."""
    texts = family.text_encoders(pipe) if trains_text_encoders(recipe) else {}
    if recipe.method == "textual-inversion":
        return texts
    denoiser = family.denoiser(pipe)
    (name,) = [name for name, part in pipe.components.items() if part is denoiser]
    return {name: denoiser, **texts}


def rate(recipe: Recipe, family: Family, pipe: DiffusionPipeline, module: nn.Module) -> float:
    """Return the peak learning rate of a trained component."""
    chosen = recipe.learning_rate if module is family.denoiser(pipe) else recipe.text_encoder_learning_rate
    assert chosen is not None, "presets.fill leaves no rate open"
    return chosen
