"""What keeps the class from drifting: the settings of the prior that a user left open."""

from __future__ import annotations

from typing import Literal

from dreambooth import environment, families, upscaling
from dreambooth.models import Source
from dreambooth.recipe import Recipe


def weight(recipe: Recipe, source: Source) -> tuple[float, str]:
    """Return lambda of the loss that keeps the class, and why."""
    if source.family in families.UPSCALERS and not upscaling.has_class_images(recipe):
        return 0.0, upscaling.UNPROMPTED
    if recipe.method == "textual-inversion":
        return 0.0, "the model is frozen but for a new token: its classes cannot drift"
    if recipe.dco_beta:
        return 0.0, "DCO keeps the class by itself (Lee et al. 2024)"
    if recipe.l2_to_base and recipe.prior_loss is None:
        return 0.0, "the distance to the base model takes its place (Preserve and Personalize, 2025)"
    return 1.0, "Ruiz et al. 2023"


def precision(given: Recipe, filled: Recipe, accelerator: str) -> tuple[Literal["bf16"] | None, str]:
    """Return whether class images are drawn in bf16 while steps are in fp32, and why. A given precision is for both."""
    if not filled.draws_class_images or filled.precision != "fp32":
        return None, "there are no class images in fp32"
    if given.precision is None and accelerator == "cpu" and environment.has_bf16():
        return "bf16", "this CPU draws nearly twice as fast in it; steps stay in fp32"
    return given.prior_precision, "as given"
