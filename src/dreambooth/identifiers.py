"""The rare token that will stand for the subject.

It must be one token of every tokenizer, stay one inside a prompt, and mean nothing yet (Ruiz et al. 2023, section 3.2).
"""

from __future__ import annotations

import functools
import gzip
import itertools
import json
import re
from collections.abc import Collection, Iterator, Sequence
from importlib import resources
from typing import TYPE_CHECKING

import numpy as np

from dreambooth.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Words from the tail of CLIP's vocabulary, which is sorted by frequency; none is in a dictionary, as the tests make
# sure, so that no run has to look them up. `sks` is left out: it is a rifle.
DEFAULT_IDENTIFIERS: tuple[str, ...] = ("ohwx", "phol", "nlwx", "nmwx", "wawx", "tzky", "iyaki", "shld")

NEW_TOKEN = re.compile("<[a-z0-9-]+>")
"""What an added token looks like: its brackets keep it from being found inside of other words."""

# What people type because others did; the last five are no single tokens of CLIP.
FOLKLORE = ("sks", "ohwx", "shs", "olis", "zwx", "ukj", "rkx", "xjy", "wbk")

# CLIP's vocabulary is sorted by frequency: words of its last fifth are rare.
CLIP_TAIL = 40_000
# T5's 32,000 pieces are sorted too; from here the paper draws (Ruiz et al. 2023, section 3.2).
T5_RANGE = range(5_000, 10_001)
# Of other vocabularies the last part is taken, as many of the short words as CLIP has in its tail: 627 of 4176.
TAIL_SHARE = 0.15
# Marks of a word's end (CLIP) or of its beginning (SentencePiece; byte-level pairs) in a vocabulary.
END_MARK, START_MARKS = "</w>", ("\N{LOWER ONE EIGHTH BLOCK}", "\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}")
# Draws of words of several tokens.
DRAWS = 4_000
# So many words are looked for in a dictionary's text.
FEW = 8

_LANGUAGES = {
    "en": "English",
    "es": "Spanish",
    "fr": "French",
    "pt": "Portuguese",
    "de": "German",
    "it": "Italian",
    "nl": "Dutch",
    "eu": "Basque",
    "lv": "Latvian",
    "ru": "Russian",
    "ar": "Arabic",
    "fa": "Persian",
}


def problems(
    identifier: str, class_noun: str, tokenizers: Sequence[PreTrainedTokenizerBase], most_tokens: int = 1
) -> list[str]:
    """Say why an identifier is a bad one; empty when it is good.

    Args:
        identifier: The word that will stand for the subject.
        class_noun: The subject's class, as in "a ohwx dog".
        tokenizers: All that read the prompt. The first that finds something wrong speaks for the others.
        most_tokens: How many tokens it may have.

    Returns:
        What is wrong, to be read after the identifier: "splits into 2 tokens (z, wx)".
    """
    found = reading_problems(identifier, class_noun, tokenizers, most_tokens)
    return found or meaning(_language(identifier))


def reading_problems(
    identifier: str, class_noun: str, tokenizers: Sequence[PreTrainedTokenizerBase], most_tokens: int = 1
) -> list[str]:
    """Say why the tokenizers do not read an identifier as it is; as `problems`, without the dictionaries."""
    if not identifier.isalpha():
        return ["is not one word of letters"]
    for tokenizer in tokenizers:
        found = list(_token_problems(identifier, class_noun, tokenizer, most_tokens))
        if found:
            return found
    return []


def candidates(
    class_noun: str, tokenizers: Sequence[PreTrainedTokenizerBase], letters: int = 3, tokens: int = 1
) -> list[str]:
    """List the rare words that every tokenizer reads exactly, and that are no word of any language known here.

    Args:
        class_noun: The subject's class: the words are read in "a [V] class" too.
        tokenizers: All that read the prompt. Each proposes words of its own rare tokens.
        letters: Most letters of a token (the paper's 3).
        tokens: Most tokens of a word, 1 to 3 in the paper.

    Returns:
        Words of small Latin letters in alphabetical order. Words of several tokens are a fixed random sample.
    """
    proposed = {word for tokenizer in tokenizers for word in _rare_words(tokenizer, letters, tokens)}
    read = {word for word in proposed if not reading_problems(word, class_noun, tokenizers, tokens)}
    return sorted(read - languages(read).keys())


def token_ids(identifier: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens of a word as a prompt has them, behind another word."""
    before, both = _encode(tokenizer, "a"), _encode(tokenizer, f"a {identifier}")
    return both[len(before) :] if both[: len(before)] == before else _encode(tokenizer, identifier)


def languages(words: Collection[str]) -> dict[str, str]:
    """Return for each word that is in a dictionary the first language that has it.

    The dictionaries of `pyspellchecker` are read one after another; they are not kept, since together they take 160 MB.
    """
    found: dict[str, str] = {}
    for code, language in _LANGUAGES.items():
        file = resources.files("spellchecker") / "resources" / f"{code}.json.gz"
        text = gzip.decompress(file.read_bytes())
        # a run asks for one word: to look for it takes a fifth of the time of parsing
        known = _keys(text, words) if len(words) <= FEW else json.loads(text).keys()
        found = {word: language for word in words if word in known} | found
    return found


def _keys(text: bytes, words: Collection[str]) -> set[str]:
    """Return those words that are keys in JSON with a key a line, as these dictionaries are."""
    return {word for word in words if f"\n{json.dumps(word, ensure_ascii=False)}:".encode() in text}


def defaults(class_noun: str, tokenizers: Sequence[PreTrainedTokenizerBase], taken: Collection[str] = ()) -> list[str]:
    """Return the default identifiers that have no problems and are not taken by another subject.

    Raises:
        UserError: There is none.
    """
    good = list(_good(class_noun, tokenizers, taken))
    if not good:
        tried = ", ".join(DEFAULT_IDENTIFIERS)
        raise UserError(f"no default identifier ({tried}) suits this model's tokenizer: give a rare word as identifier")
    return good


def require(
    identifier: str, class_noun: str, tokenizers: Sequence[PreTrainedTokenizerBase], taken: Collection[str] = ()
) -> None:
    """Refuse a bad identifier.

    Raises:
        UserError: It is a bad one; the message names a good one that is not taken.
    """
    found = problems(identifier, class_noun, tokenizers)
    if found:
        good = next(_good(class_noun, tokenizers, taken), "a rare word of one token")
        raise UserError(f"the identifier '{identifier}' {' and '.join(found)}: type {good} instead", allow="identifier")


def invent(class_noun: str, tokenizers: Sequence[PreTrainedTokenizerBase], taken: Collection[str] = ()) -> str:
    """Return a token that no tokenizer has yet, for textual inversion to add: `<dog-1>`, or the next free number."""
    noun = re.sub("[^a-z0-9]+", "-", class_noun.lower()).strip("-") or "subject"
    known = {*taken, *itertools.chain.from_iterable(tokenizer.get_vocab() for tokenizer in tokenizers)}
    return next(token for k in itertools.count(1) if (token := f"<{noun}-{k}>") not in known)


def require_new(
    identifier: str, class_noun: str, tokenizers: Sequence[PreTrainedTokenizerBase], taken: Collection[str] = ()
) -> None:
    """Refuse an identifier that textual inversion cannot add as a token.

    Raises:
        UserError: A tokenizer has it, another subject has it, or it could be part of other words; the message names
            a good one.
    """
    if not NEW_TOKEN.fullmatch(identifier):
        problem = "is no token that textual inversion can add"
    elif identifier in taken:
        problem = "names another subject"
    elif any(identifier in tokenizer.get_vocab() for tokenizer in tokenizers):
        problem = "is in the model's vocabulary already"
    else:
        return
    raise UserError(f"the identifier '{identifier}' {problem}: type {invent(class_noun, tokenizers, taken)} instead")


def _good(class_noun: str, tokenizers: Sequence[PreTrainedTokenizerBase], taken: Collection[str] = ()) -> Iterator[str]:
    free = (word for word in DEFAULT_IDENTIFIERS if word not in taken)
    return (word for word in free if not reading_problems(word, class_noun, tokenizers))


def _token_problems(
    identifier: str, class_noun: str, tokenizer: PreTrainedTokenizerBase, most_tokens: int
) -> Iterator[str]:
    ids = token_ids(identifier, tokenizer)
    if len(ids) > most_tokens:
        pieces = ", ".join(tokenizer.decode([token]).strip() for token in ids)
        yield f"splits into {len(ids)} tokens ({pieces})"
        return
    if not ids or set(ids) & set(tokenizer.all_special_ids):
        yield "is not in the tokenizer's vocabulary"
        return
    text = tokenizer.decode(ids).strip()
    if text != identifier:
        yield f"is read as '{text}'"
    # byte-level tokenizers tell a word behind a space from one that opens a text
    if ids not in (_encode(tokenizer, identifier), _encode(tokenizer, f" {identifier}")):
        yield "is read differently alone"
    prompt, before = f"a {identifier} {class_noun}", _encode(tokenizer, "a")
    noun = _encode(tokenizer, f"a {class_noun}")[len(before) :]
    if _encode(tokenizer, prompt) != before + ids + noun:
        yield f"is read differently in '{prompt}'"


def _rare_words(tokenizer: PreTrainedTokenizerBase, letters: int, tokens: int) -> set[str]:
    """Words of one rare token, and a fixed random sample of those of several."""
    marked, bare, ends = _pieces(tokenizer, letters)
    rng, words = np.random.default_rng(0), set(marked)
    for count in range(2, tokens + 1):
        if marked and bare:
            inner = rng.choice(bare, (DRAWS, count - 1))
            outer = rng.choice(marked, (DRAWS, 1))
            rows = np.hstack([inner, outer] if ends else [outer, inner])
            words |= {"".join(row) for row in rows}
    return words


def _pieces(tokenizer: PreTrainedTokenizerBase, letters: int) -> tuple[list[str], list[str], bool]:
    """Return the rare pieces with a word's mark, those without, and whether the mark is the word's end."""
    vocabulary = tokenizer.get_vocab()
    short = re.compile(f"[a-z]{{1,{letters}}}")
    ends = any(token.endswith(END_MARK) for token in vocabulary)
    marked: dict[str, int] = {}
    bare: dict[str, int] = {}
    for token, index in vocabulary.items():
        text = token.removesuffix(END_MARK) if ends else token.removeprefix(START_MARKS[0]).removeprefix(START_MARKS[1])
        if short.fullmatch(text):
            (bare if text == token else marked)[text] = index
    return _rare(marked, tokenizer, ends), _rare(bare, tokenizer, ends), ends


def _rare(pieces: dict[str, int], tokenizer: PreTrainedTokenizerBase, ends: bool) -> list[str]:
    """Return the rare ones of some pieces, given with their ids, which are the smaller the commoner they are."""
    model = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    ordered = sorted(pieces, key=lambda text: pieces[text])
    if ends:
        return [text for text in ordered if pieces[text] >= CLIP_TAIL]
    if type(model).__name__ == "Unigram":
        return [text for text in ordered if pieces[text] in T5_RANGE]
    return ordered[round(len(ordered) * (1 - TAIL_SHARE)) :]


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


@functools.cache
def _language(word: str) -> str | None:
    return languages([word]).get(word)


def meaning(language: str | None) -> list[str]:
    """Say as `problems` does that a word is one of a language; empty for None."""
    article = "an" if language and language[0] in "AEIOU" else "a"
    return [f"is {article} {language} word, which has a meaning of its own"] if language else []
