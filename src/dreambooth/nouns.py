"""Coarse nouns of what people photograph to teach a model."""

from __future__ import annotations

from collections.abc import Collection

from dreambooth.models import PACKAGE

NOUNS = tuple((PACKAGE / "data" / "nouns.txt").read_text(encoding="utf-8").splitlines())
EVERY, FIRST = 5, 3
"""Which of them training holds: a fifth, of all kinds, and none that an evaluation looks at (`material.SIBLINGS`)."""


def others(classes: Collection[str]) -> tuple[str, ...]:
    """Return nouns that a subject of these classes is not."""
    return tuple(noun for noun in NOUNS[FIRST::EVERY] if noun not in classes)
