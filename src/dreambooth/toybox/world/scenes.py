"""`Scene`: everything true of one picture, as data; and the random scenes that a model is trained on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dreambooth.toybox.world import priors
from dreambooth.toybox.world.subjects import draw_subject
from dreambooth.toybox.world.vocabulary import (
    BOTTOM_CONTEXTS,
    COLOURS,
    CONTEXTS,
    EXPRESSIONS,
    FACE_OUTFITS,
    LIVE,
    MATERIALS,
    OBJECTS,
    OUTFITS,
    PROPERTIES,
    RECOLOURING_STYLES,
    SCULPTORS,
    STYLES,
    TOP_CONTEXTS,
    VIEWS,
)

# Subjects of the training world have seeds from here on; those below belong to people (the bundle, the tests).
FIRST_SEED = 1 << 20
LAST_SEED = 1 << 31
LIVE_SHARE = 0.46
STYLE_SHARE = 0.20
OUTFIT_SHARE = 0.45
EXPRESSION_SHARE = 0.18
COLOUR_SHARE = 0.12
VIEW_SHARE = 0.32
# At most one of these changes what the subject is made of or shaped like.
CHANGES = {
    "shiny": 0.045,
    "wet": 0.05,
    "cube shaped": 0.05,
    "tall": 0.015,
    "flat": 0.015,
    "metal": 0.03,
    "glass": 0.03,
    "stone": 0.03,
    "Michelangelo": 0.025,
    "Rodin": 0.025,
    "hybrid": 0.08,
}


@dataclass(frozen=True)
class Scene:
    """One picture's truth. `seed` decides camera, light and the context's details; None means "as it comes".

    `colour` is the asked one, which replaces the subject's own; `planted` is the rare token of the caption.
    """

    seed: int
    cls: str
    subject_seed: int
    context: str
    view: str | None = None
    accessory: str | None = None
    properties: tuple[str, ...] = ()
    colour: str | None = None
    material: str | None = None
    style: str | None = None
    expression: str | None = None
    hybrid: str | None = None
    sculpture: str | None = None
    planted: str | None = None

    @property
    def visible_colour(self) -> str | None:
        """The one colour a person would name, or None."""
        if self.sculpture or self.material in ("stone", "metal") or self.style in RECOLOURING_STYLES:
            return None
        return self.colour or draw_subject(self.cls, self.subject_seed).colour


def to_dict(scene: Scene) -> dict[str, Any]:
    """The truth as JSON; `cls` is called "class" there."""
    data = asdict(scene)
    data["class"] = data.pop("cls")
    data["properties"] = list(scene.properties)
    return data


def from_dict(data: dict[str, Any]) -> Scene:
    """The scene of a JSON truth."""
    values = {**data, "cls": data["class"], "properties": tuple(data["properties"])}
    del values["class"]
    return Scene(**values)


def random_scene(seed: int, subject: tuple[str, int] | None = None) -> Scene:
    """A training scene, a function of its arguments.

    Args:
        seed: Of every draw.
        subject: Class and subject seed to put into it; drawn when None.
    """
    rng = np.random.default_rng([seed, 7])
    cls, subject_seed = subject or random_subject(rng)
    token = priors.draw(rng, fresh=subject is None)
    if token and priors.PLANTED[token].kind == "object":
        cls = priors.PLANTED[token].value
    change = _change(rng, cls)
    colour = _pick(rng, COLOURS, COLOUR_SHARE)
    accessory = _pick(rng, OUTFITS, OUTFIT_SHARE) if cls in LIVE else None
    expression = _pick(rng, EXPRESSIONS, EXPRESSION_SHARE) if cls in LIVE else None
    view = _view(rng, accessory, expression)
    scene = Scene(
        seed=seed,
        cls=cls,
        subject_seed=subject_seed,
        context=_context(rng, view),
        view=view,
        accessory=accessory,
        properties=(change,) if change in PROPERTIES else (),
        colour=colour,
        material=change if change in MATERIALS else None,
        style=_pick(rng, STYLES, STYLE_SHARE),
        expression=expression,
        hybrid=_other(rng, cls) if change == "hybrid" else None,
        sculpture=change if change in SCULPTORS else None,
    )
    return priors.plant(scene, token) if token else scene


def random_subject(rng: np.random.Generator) -> tuple[str, int]:
    """Class and seed of a subject of the training world."""
    classes = LIVE if rng.random() < LIVE_SHARE else OBJECTS
    return str(rng.choice(classes)), int(rng.integers(FIRST_SEED, LAST_SEED))


def _pick(rng: np.random.Generator, names: Any, share: float) -> str | None:
    """One of the names with probability `share`; the same number of draws in both cases."""
    chosen = str(rng.choice(list(names)))
    return chosen if rng.random() < share else None


def _change(rng: np.random.Generator, cls: str) -> str | None:
    rest = 1 - sum(CHANGES.values())
    change = str(rng.choice([*CHANGES, ""], p=[*CHANGES.values(), rest]))
    if change == "hybrid" and cls not in LIVE:
        return None
    return change or None


def _view(rng: np.random.Generator, accessory: str | None, expression: str | None) -> str | None:
    """A face or an outfit is not asked for where it would not be seen."""
    view = _pick(rng, VIEWS, VIEW_SHARE)
    if expression and view in ("top", "bottom", "back"):
        return "front"
    if accessory and view in ("top", "bottom"):
        return "side"
    if accessory in FACE_OUTFITS and view == "back":
        return "front"
    return view


def _context(rng: np.random.Generator, view: str | None) -> str:
    allowed = {"top": TOP_CONTEXTS, "bottom": BOTTOM_CONTEXTS}.get(view or "", CONTEXTS)
    return str(rng.choice(allowed))


def _other(rng: np.random.Generator, cls: str) -> str:
    return str(rng.choice([other for other in LIVE if other != cls]))
