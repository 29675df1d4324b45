"""What keeps the class from drifting: the settings of the prior that a user left open."""

from __future__ import annotations

from typing import Literal

from dreambooth import environment, families, upscaling
from dreambooth.models import Source
from dreambooth.recipe import Recipe

EMBEDDED = ("flux", "flux2-dev")
"""Families and models that are told the guidance, and predict once."""


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


def loss(filled: Recipe) -> tuple[str, str]:
    """Return what the class is kept by, and why; `filled` has the weight."""
    if filled.prior_weight == 0:
        return "images", "there is no prior"
    if filled.method != "lora":
        return "images", "Ruiz et al. 2023"
    return "distilled", "more of the subject and no less of its class than by class images themselves: docs/methods.md"


def dropout(filled: Recipe, source: Source, guidance: float) -> tuple[float, str]:
    """Return the share of the prior that is learned without a prompt, and why.

    Args:
        filled: Has the weight and the kind of the prior.
        source: The base model.
        guidance: What it is drawn with as a rule, not by this recipe alone.
    """
    # Guidance magnifies what lies between two predictions. Where only that for the class is held to the frozen model's,
    # the other one moves, and the class falls apart in pictures though not in the loss.
    if filled.prior_weight == 0 or filled.prior_loss == "images":
        return 0.0, "Ruiz et al. 2023"
    if guidance <= 1 or {source.family, source.name} & set(EMBEDDED):
        return 0.0, "this model's guidance does not lead away from an empty prompt"
    return 0.1, "guidance leads away from the empty prompt, which has to stay as it was: docs/methods.md"


def precision(given: Recipe, filled: Recipe, accelerator: str) -> tuple[Literal["bf16"] | None, str]:
    """Return whether class images are drawn in bf16 while steps are in fp32, and why. A given precision is for both."""
    if not filled.draws_class_images or filled.precision != "fp32":
        return None, "there are no class images in fp32"
    if given.precision is None and accelerator == "cpu" and environment.has_bf16():
        return "bf16", "this CPU draws nearly twice as fast in it; steps stay in fp32"
    return given.prior_precision, "as given"
