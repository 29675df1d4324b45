"""Coarse nouns of what people photograph to teach a model."""

from __future__ import annotations

from collections.abc import Collection

from dreambooth.models import PACKAGE

NOUNS = tuple((PACKAGE / "data" / "nouns.txt").read_text(encoding="utf-8").splitlines())
HELD = (
    *("hamster", "pig", "bird", "lizard", "lion", "mouse", "woman", "doll"),
    *("motorcycle", "rocket", "umbrella", "hat", "jacket", "cup", "kettle", "candle"),
    *("table", "pen", "ball", "painting", "cactus", "pizza", "headphones", "key"),
    *("pillow",),
)
"""A fifth of them, of all kinds and none that an evaluation looks at. A run's weights depend on them in their order."""


def others(own: Collection[str]) -> tuple[str, ...]:
    """Return nouns to be held as they are, without those by which subjects or their classes are called."""
    return tuple(noun for noun in HELD if noun not in own)
