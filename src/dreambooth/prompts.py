"""Prompt templates. `[V]` stands for a run's identifier, `[V1]`, `[V2]`, ... for those of several subjects."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dreambooth import families
from dreambooth.errors import UserError

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from transformers import PreTrainedTokenizerBase

PLACEHOLDER = re.compile(r"\[V(\d*)\]")
NO_NOUN = re.compile(r"\[V\d*\]?|\{\w*\}?|\}", re.IGNORECASE)
"""What stands in a label for identifier or class noun, whole or in part, and so for no noun."""
PLACE = "{}"
"""Stands for identifier and class noun together in a list of prompts."""

ARTICLE = re.compile(r"\ban? \{\}")

LABEL = "a [V] {class}"
"""The caption of every photo (Ruiz et al. 2023, section 3.1); `{class}` stands for the class noun."""

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


def as_class(text: str, names: Sequence[tuple[str, str]]) -> str:
    """Return a prompt with the class in place of the subject: "a ohwx dog in the snow" gives "a dog in the snow".

    Args:
        text: The prompt.
        names: Identifier and class noun of each subject.
    """
    for identifier, noun in names:
        found = rf"(?<!\w)(an?\s+)?{re.escape(identifier)}(\s+{re.escape(noun)})?(?!\w)"
        text = re.sub(found, lambda match, noun=noun: article(noun) if match[1] else noun, text)  # type: ignore[misc]
    return text


def placed(text: str, nouns: Sequence[str]) -> str:
    """Return a prompt of a user's list with `PLACE` for its subject: "a [V] dog in the snow" gives "a {} in the snow".

    Args:
        text: The prompt.
        nouns: The classes that may follow `[V]` in it, as `{class}` may: those of all subjects that the list is for.
    """
    following = "|".join(map(re.escape, [*sorted(nouns, key=len, reverse=True), "{class}"]))
    return re.sub(rf"\[V\](\s+({following})(?!\w))?", PLACE, text, flags=re.IGNORECASE).strip()


def of_class(template: str, noun: str) -> str:
    """Return a prompt with the class noun at its place, after the article that it takes: "an elephant in the snow"."""
    return ARTICLE.sub(lambda _: article(noun), template).replace(PLACE, noun)


def require_noun(class_noun: str) -> None:
    """Refuse what is no class noun.

    Raises:
        UserError: It is empty, has an article of its own, or holds `[V]` or `{class}`, as a label does.
    """
    if not class_noun.strip():
        raise UserError("the class noun is empty: give a noun such as dog, mug or robot")
    first, *rest = NO_NOUN.sub(" ", class_noun).split() or [""]
    has_article = first.lower() in ("a", "an", "the")
    noun = " ".join(rest if has_article else [first, *rest])
    if NO_NOUN.search(class_noun):
        mend = f"'{noun}'" if noun else "a noun such as dog, mug or robot"
        raise UserError(f"the class noun '{class_noun}' holds a placeholder: give {mend} alone")
    if has_article and noun:
        raise UserError(f"the class noun '{class_noun}' has an article of its own: give '{noun}'")


def require_label(template: str) -> str:
    """Return a label's template if it names the subject.

    Raises:
        ValueError: It does not, or has other placeholders or several lines.
    """
    if {match[0] for match in PLACEHOLDER.finditer(template)} != {"[V]"}:
        raise ValueError(f"the label '{template}' does not name its subject by [V] alone: write one like '{LABEL}'")
    if len(template.splitlines()) > 1:
        raise ValueError(f"the label has two lines: write one like '{LABEL}'")
    return template


def label(template: str, class_noun: str, index: int = 0) -> str:
    """Return the one caption of every photo of a subject, with the class noun in place of `{class}`: "a [V] dog".

    Args:
        template: With `[V]`, and `{class}` or not.
        class_noun: The subject's.
        index: Number of the subject in its run, from 0; the second's is "a [V2] mug".
    """
    named = template.replace("[V]", f"[V{index + 1}]") if index else template
    return named.replace("{class}", class_noun)


def called(template: str, class_noun: str, identifier: str) -> str:
    """Return what a run calls a subject: "ohwx dog", or the identifier alone where the label leaves the class out."""
    return f"{identifier} {class_noun}" if "{class}" in template else identifier


def scenes(label: str) -> tuple[str, ...]:
    """Return five prompts that put the subject of a label into new scenes, for a run's own account."""
    return tuple(scene.replace("{label}", label) for scene in SCENES)


def fill(template: str, identifiers: Sequence[str]) -> str:
    """Put identifiers in place of `[V]` (the first one) and `[V1]`, `[V2]`, ...

    Raises:
        UserError: The template names an identifier that there is not.
    """

    def replace(match: re.Match[str]) -> str:
        index = int(match[1] or 1) - 1
        if not 0 <= index < len(identifiers):
            known = [f"[V{k}]" if k > 1 else "[V]" for k in range(1, len(identifiers) + 1)]
            mend = (
                f"write {' or '.join(known)}" if known else "leave it out, or give a run: a base model has no subject"
            )
            raise UserError(f"prompt '{template}' asks for {match[0]}, which is not there: {mend}")
        return identifiers[index]

    return PLACEHOLDER.sub(replace, template)


def tokenizers(pipe: DiffusionPipeline) -> list[PreTrainedTokenizerBase]:
    """Return all tokenizers of a pipeline."""
    return [part for name, part in pipe.components.items() if name.startswith("tokenizer") and part is not None]


def readers(pipe: DiffusionPipeline) -> list[PreTrainedTokenizerBase]:
    """Return the tokenizers that read the whole of a pipeline's prompts, so that none may be too short for one."""
    return [pipe.components[name] for name in families.of(pipe).READERS]


def require_fits(what: str, text: str, tokenizers: Sequence[PreTrainedTokenizerBase]) -> None:
    """Refuse a text that a tokenizer would cut.

    Raises:
        UserError: It is too long; the message names what would be lost.
    """
    for tokenizer in tokenizers:
        limit = tokenizer.model_max_length
        ids = tokenizer(text, verbose=False).input_ids
        if len(ids) > limit:
            lost = _shortened(tokenizer.decode(ids[limit - 1 : -1]))
            tokens = f"has {len(ids)} tokens, {limit} fit"
            raise UserError(f"{what} '{_shortened(text)}' {tokens}: shorten it, '{lost}' would be lost")


def _shortened(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
