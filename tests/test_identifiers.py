from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

import dreambooth.identifiers
from dreambooth import identifiers
from dreambooth.errors import UserError

CLIP = Path(dreambooth.identifiers.__file__).parent / "data" / "clip_tokenizer"


@pytest.fixture(scope="module")
def clip():
    return AutoTokenizer.from_pretrained(CLIP)


@pytest.fixture
def no_words(monkeypatch):
    """Without the word lists, which take two seconds to read."""
    monkeypatch.setattr(identifiers, "_language", lambda word: None)


class Letters:
    """A tokenizer of one token a letter, but for the words it is given; it may read a word as another."""

    all_special_ids = (0,)

    def __init__(self, words: dict[str, str], context: str | None = None):
        self.words = words
        self.context = context

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        whole = self.words if text != self.context else {}
        tokens: list[int] = []
        for word in text.split():
            tokens += [1000 + list(whole).index(word)] if word in whole else [ord(letter) for letter in word]
        return tokens

    def decode(self, ids: list[int]) -> str:
        return "".join(list(self.words.values())[i - 1000] if i >= 1000 else chr(i) for i in ids)


def test_every_default_is_one_rare_token(clip):
    vocabulary = clip.get_vocab()
    for word in identifiers.DEFAULT_IDENTIFIERS:
        assert vocabulary[f"{word}</w>"] > 45_000
    assert identifiers.DEFAULT_IDENTIFIERS[0] == "ohwx"


@pytest.mark.usefixtures("no_words")
def test_every_default_is_good_for_clip(clip):
    for word in identifiers.DEFAULT_IDENTIFIERS:
        assert identifiers.problems(word, "small dog", [clip, clip]) == []


def test_no_default_is_a_word():
    from spellchecker import SpellChecker

    for code in ("en", "es", "fr", "pt", "de", "it"):
        assert not SpellChecker(language=code).known(identifiers.DEFAULT_IDENTIFIERS)


@pytest.mark.parametrize(
    ("identifier", "problem"),
    [
        ("zwx", "splits into 2 tokens (z, wx)"),
        ("ohwxohwx", "splits into 3 tokens (oh, wx, ohwx)"),
        ("OHWX", "is read as 'ohwx'"),
        ("dog", "is an English word, which has a meaning of its own"),
        ("noche", "is a Spanish word, which has a meaning of its own"),
        ("", "is not one word of letters"),
        ("ohwx dog", "is not one word of letters"),
        ("<|endoftext|>", "is not one word of letters"),
        ("!", "is not one word of letters"),
    ],
)
def test_bad_identifiers_are_named(clip, identifier, problem):
    assert identifiers.problems(identifier, "dog", [clip]) == [problem]


def test_every_tokenizer_is_asked(clip):
    letters = Letters({})
    assert identifiers.problems("ohwx", "dog", [clip, letters]) == ["splits into 4 tokens (o, h, w, x)"]


def test_a_tokenizer_that_reads_another_word_is_noticed():
    assert identifiers.problems("ohwx", "dog", [Letters({"ohwx": "ohio"})]) == ["is read as 'ohio'"]


@pytest.mark.usefixtures("no_words")
def test_a_token_that_splits_in_the_prompt_is_noticed():
    letters = Letters({"ohwx": "ohwx"}, context="a ohwx dog")
    assert identifiers.problems("ohwx", "dog", [letters]) == ["does not stay one token in 'a ohwx dog'"]
    assert identifiers.problems("ohwx", "cat", [letters]) == []


def test_an_unknown_word_is_noticed():
    class Unknown(Letters):
        def encode(self, text: str, add_special_tokens: bool) -> list[int]:
            return [0 for _ in text.split()]

    assert identifiers.problems("ohwx", "dog", [Unknown({})]) == ["is not in the tokenizer's vocabulary"]


@pytest.mark.usefixtures("no_words")
def test_the_first_good_default_is_chosen(clip):
    first, second, *_ = identifiers.DEFAULT_IDENTIFIERS
    assert identifiers.choose("dog", [clip]) == first
    assert identifiers.choose("dog", [clip], taken=[first]) == second
    assert identifiers.choose("dog", [clip, Letters({second: second})]) == second


def test_a_model_that_splits_every_default_is_refused():
    with pytest.raises(UserError, match=r"no default identifier \(ohwx, .*: give a rare word as identifier$"):
        identifiers.choose("dog", [Letters({})])


def test_a_good_identifier_is_accepted(clip):
    identifiers.require("ohwx", "dog", [clip])


def test_a_bad_identifier_is_refused_with_a_better_one(clip):
    with pytest.raises(UserError) as caught:
        identifiers.require("zwx", "dog", [clip])
    message = "the identifier 'zwx' splits into 2 tokens (z, wx): type ohwx instead (--allow identifier overrides)"
    assert str(caught.value) == message
    assert caught.value.allow == "identifier"


def test_a_refusal_without_a_better_one_asks_for_one():
    with pytest.raises(UserError, match="type a rare word of one token instead"):
        identifiers.require("zwx", "dog", [Letters({})])
