"""The encoders that score a run's pictures."""

from __future__ import annotations

from dataclasses import dataclass

from dreambooth import environment
from dreambooth.evaluation import encoders
from dreambooth.evaluation.encoders import Encoder
from dreambooth.models import CLIP_ENCODER, IDENTITY_ENCODER, resolve
from dreambooth.run import Run


@dataclass(frozen=True)
class Judges:
    """The encoders that score.

    Attributes:
        identity: Tells subjects apart (DINO in the paper).
        clip: Has pictures and texts in one space.
    """

    identity: Encoder
    clip: Encoder


def load_judges(run: Run, identity: str | None = None, clip: str | None = None) -> Judges:
    """Load the encoders that suit the run's base model, or those asked for.

    Raises:
        UserError: There is no such encoder, or that of pictures and texts reads no text.
    """
    device = str(environment.processes().device)
    judges = Judges(*(encoders.load(name, device) for name in encoder_names(run, identity, clip)))
    judges.clip.require_text()
    return judges


def encoder_names(run: Run, identity: str | None = None, clip: str | None = None) -> tuple[str, str]:
    """Return what the encoders that suit the run's base model are called, or those asked for."""
    recipe = run.recipe
    assert recipe.model is not None, "a run's recipe names its model"
    card = resolve(recipe.model, recipe.revision).card
    return (
        identity or (card.identity_encoder if card else IDENTITY_ENCODER),
        clip or (card.clip_encoder if card else CLIP_ENCODER),
    )
