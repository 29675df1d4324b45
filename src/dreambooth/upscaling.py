"""What is different about a recipe for a super-resolution model, which draws from a small image."""

from __future__ import annotations

from typing import Any

from dreambooth import families
from dreambooth.errors import UserError
from dreambooth.models import Source
from dreambooth.recipe import Recipe

UNPROMPTED = "a super-resolution model draws nothing from a prompt alone"


def fill(recipe: Recipe, source: Source) -> tuple[dict[str, Any], dict[str, str]]:
    """Return what a recipe for a super-resolution model leaves open, and the reasons; nothing for another model."""
    values: dict[str, Any] = {}
    reasons: dict[str, str] = {}
    if source.family not in families.UPSCALERS:
        return values, reasons
    if "samples" not in recipe.model_fields_set:
        values["samples"], reasons["samples"] = 0, UNPROMPTED
    if recipe.low_resolution_noise is None:
        values["low_resolution_noise"] = 0
        reasons["low_resolution_noise"] = "the least there is: more of it blurs fine detail (Ruiz et al. 2023)"
    return values, reasons


def has_class_images(recipe: Recipe) -> bool:
    """Whether none need to be drawn for the recipe's prior."""
    return recipe.prior_images is not None or recipe.prior_loss == "parent"


def refuse(recipe: Recipe, source: Source) -> None:
    """Refuse what only super-resolution models have, or have not.

    Args:
        recipe: A resolved recipe.
        source: The base model.

    Raises:
        UserError: A level of noise for another model; pictures or class images that would have to be drawn.
    """
    if source.family not in families.UPSCALERS:
        if recipe.low_resolution_noise is not None:
            raise UserError("--low-resolution-noise is a setting of super-resolution models: leave it out")
        return
    if recipe.prior_weight and not has_class_images(recipe):
        raise UserError(f"--prior-weight {recipe.prior_weight:g}: {UNPROMPTED}: give --prior-images FOLDER")
    guided = recipe.consistency is not None
    for flag, draws in (("--samples", recipe.samples), ("--select", recipe.select), ("--consistency", guided)):
        if draws:
            raise UserError(f"{flag}: {UNPROMPTED}: leave it out")
