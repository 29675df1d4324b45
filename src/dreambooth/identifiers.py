"""The rare token that will stand for the subject.

It must be one token of every tokenizer, stay one inside a prompt, and mean nothing yet (Ruiz et al. 2023, section 3.2).
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

from dreambooth.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Words from the tail of CLIP's vocabulary, which is sorted by frequency. `sks` is left out: it is a rifle.
DEFAULT_IDENTIFIERS: tuple[str, ...] = ("ohwx", "phol", "nlwx", "nmwx", "wawx", "tzky", "iyaki", "shld")

_LANGUAGES = {"en": "English", "es": "Spanish", "fr": "French", "pt": "Portuguese", "de": "German", "it": "Italian"}


def problems(identifier: str, class_noun: str, tokenizers: Sequence[PreTrainedTokenizerBase]) -> list[str]:
    """Say why an identifier is a bad one; empty when it is good.

    Args:
        identifier: The word that will stand for the subject.
        class_noun: The subject's class, as in "a ohwx dog".
        tokenizers: All that read the prompt. The first that finds something wrong speaks for the others.

    Returns:
        What is wrong, to be read after the identifier: "splits into 2 tokens (z, wx)".
    """
    if not identifier.isalpha():
        return ["is not one word of letters"]
    for tokenizer in tokenizers:
        found = list(_token_problems(identifier, class_noun, tokenizer))
        if found:
            return found
    language = _language(identifier)
    return [f"is {_article(language)} {language} word, which has a meaning of its own"] if language else []


def choose(class_noun: str, tokenizers: Sequence[PreTrainedTokenizerBase], taken: Collection[str] = ()) -> str:
    """Return the first default identifier that has no problems and is not taken by another subject.

    Raises:
        UserError: None of them is good.
    """
    good = _first_good(class_noun, tokenizers, taken)
    if good is None:
        tried = ", ".join(DEFAULT_IDENTIFIERS)
        raise UserError(f"no default identifier ({tried}) suits this model's tokenizer: give a rare word as identifier")
    return good


def require(identifier: str, class_noun: str, tokenizers: Sequence[PreTrainedTokenizerBase]) -> None:
    """Refuse a bad identifier.

    Raises:
        UserError: It is a bad one; the message names a good one.
    """
    found = problems(identifier, class_noun, tokenizers)
    if found:
        good = _first_good(class_noun, tokenizers) or "a rare word of one token"
        raise UserError(f"the identifier '{identifier}' {' and '.join(found)}: type {good} instead", allow="identifier")


def _first_good(
    class_noun: str, tokenizers: Sequence[PreTrainedTokenizerBase], taken: Collection[str] = ()
) -> str | None:
    free = (word for word in DEFAULT_IDENTIFIERS if word not in taken)
    return next((word for word in free if not problems(word, class_noun, tokenizers)), None)


def _token_problems(identifier: str, class_noun: str, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    ids = _encode(tokenizer, identifier)
    if len(ids) != 1:
        pieces = ", ".join(tokenizer.decode([token]).strip() for token in ids)
        yield f"splits into {len(ids)} tokens ({pieces})"
        return
    if ids[0] in tokenizer.all_special_ids:
        yield "is not in the tokenizer's vocabulary"
        return
    text = tokenizer.decode(ids).strip()
    if text != identifier:
        yield f"is read as '{text}'"
    prompt = f"a {identifier} {class_noun}"
    if _encode(tokenizer, prompt) != _encode(tokenizer, "a") + ids + _encode(tokenizer, class_noun):
        yield f"does not stay one token in '{prompt}'"


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


@functools.cache
def _language(word: str) -> str | None:
    """Return the language that has this word, if one does. The word lists are not kept: together they take 160 MB."""
    from spellchecker import SpellChecker

    return next((name for code, name in _LANGUAGES.items() if word in SpellChecker(language=code)), None)


def _article(word: str) -> str:
    return "an" if word[0] in "AEIOU" else "a"
