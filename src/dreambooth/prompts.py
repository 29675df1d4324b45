"""Prompt templates. `[V]` stands for a run's identifier, `[V1]`, `[V2]`, ... for those of several subjects."""

from __future__ import annotations

import re
from collections.abc import Sequence

from dreambooth.errors import UserError

PLACEHOLDER = re.compile(r"\[V(\d*)\]")

SCENES = (
    "{label} on the beach",
    "{label} in the snow",
    "{label} on a cobblestone street",
    "{label} with a city in the background",
    "a painting of {label}",
)


def article(noun: str) -> str:
    """Return `noun` behind its indefinite article: "a dog", "an elephant"."""
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"


def class_prompt(class_noun: str) -> str:
    """Return the prior's prompt "a [class noun]" (Ruiz et al. 2023, section 3.2)."""
    return article(class_noun)


def label(class_noun: str) -> str:
    """Return the one caption of every photo, "a [V] class" (Ruiz et al. 2023, section 3.1)."""
    return f"a [V] {class_noun}"


def scenes(class_noun: str) -> tuple[str, ...]:
    """Return five prompts that put the subject into new scenes, for a run's own account."""
    return tuple(scene.format(label=label(class_noun)) for scene in SCENES)


def fill(template: str, identifiers: Sequence[str]) -> str:
    """Put identifiers in place of `[V]` (the first one) and `[V1]`, `[V2]`, ...

    Raises:
        UserError: The template names an identifier that there is not.
    """

    def replace(match: re.Match[str]) -> str:
        index = int(match[1] or 1) - 1
        if not 0 <= index < len(identifiers):
            known = f"{len(identifiers)} identifier(s)" if identifiers else "no identifier: it was not trained on a subject"
            raise UserError(f"prompt '{template}' asks for {match[0]}, but this model has {known}")
        return identifiers[index]

    return PLACEHOLDER.sub(replace, template)
