from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

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
    monkeypatch.setattr(identifiers, "languages", lambda words: {})
    identifiers._language.cache_clear()
    yield
    identifiers._language.cache_clear()


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
    assert identifiers.languages(identifiers.DEFAULT_IDENTIFIERS) == {}


def test_every_shipped_dictionary_is_asked():
    from spellchecker import SpellChecker

    assert set(identifiers._LANGUAGES) == set(SpellChecker.languages())
    words = {"dog": "English", "noche": "Spanish", "etxe": "Basque", "собака": "Russian", "zwx": None}
    assert identifiers.languages(words) == {word: language for word, language in words.items() if language}


def test_a_dictionary_is_read_as_its_package_reads_it():
    from spellchecker import SpellChecker

    words = ["txakur", "etxe", "eko", "zwx", "ohwx", "olis"]  # blues"eko is one of its words
    basque = SpellChecker(language="eu")
    found = identifiers.languages(words)
    assert {word for word in words if word in basque} == {word for word, name in found.items() if name == "Basque"}
    more = [*words, *(f"zwx{number}" for number in range(identifiers.FEW))]
    assert identifiers.languages(more) == found


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
    assert identifiers.problems("ohwx", "dog", [letters]) == ["is read differently in 'a ohwx dog'"]
    assert identifiers.problems("ohwx", "cat", [letters]) == []


def test_an_unknown_word_is_noticed():
    class Unknown(Letters):
        def encode(self, text: str, add_special_tokens: bool) -> list[int]:
            return [0 for _ in text.split()]

    assert identifiers.problems("ohwx", "dog", [Unknown({})]) == ["is not in the tokenizer's vocabulary"]


def sentencepiece(words: dict[int, str], size: int):
    """A tokenizer of T5's kind that has some words at the ids given."""
    pieces = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        *((letter, -20.0) for letter in "\u2581abcdefghijklmnopqrstuvwxyz"),
    ]
    pieces += [(f"\u2581filler{index}", -12.0) for index in range(len(pieces), size)]
    for index, word in words.items():
        pieces[index] = (f"\u2581{word}", -10.0)
    pieces[50], pieces[51] = ("\u2581a", -5.0), ("\u2581dog", -5.0)
    core = Tokenizer(models.Unigram(pieces, unk_id=2))
    core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", pad_token="<pad>", eos_token="</s>")


def byte_level(words: list[str]):
    """A tokenizer of Qwen's kind that learned words in this order."""
    vocabulary, merges = sorted(pre_tokenizers.ByteLevel.alphabet()), []
    for word in ["a", "dog", *words]:
        done = "\u0120"
        for letter in word:
            if f"{done}{letter}" not in vocabulary:
                merges.append((done, letter))
                vocabulary.append(f"{done}{letter}")
            done += letter
    core = Tokenizer(models.BPE({token: index for index, token in enumerate(vocabulary)}, merges))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core)


def test_candidates_of_clip_are_rare_short_single_and_no_words(clip):
    found = identifiers.candidates("dog", [clip])
    vocabulary = clip.get_vocab()
    assert len(found) > 400
    assert found == sorted(set(found))
    assert {"npa", "zw", "sks"} <= set(found)
    assert not {"ohwx", "dog", "fay", "shs"} & set(found)  # too long, common, a word, not in the tail
    for word in found:
        assert len(word) <= 3
        assert word.isalpha()
        assert clip.encode(f"a {word} dog", add_special_tokens=False) == [320, vocabulary[f"{word}</w>"], 1929]
        assert vocabulary[f"{word}</w>"] >= 40_000
    assert identifiers.languages(found) == {}


@pytest.mark.usefixtures("no_words")
def test_longer_candidates_come_on_request(clip):
    found = identifiers.candidates("dog", [clip], letters=4)
    assert {"ohwx", "npa"} <= set(found)
    assert max(map(len, found)) == 4


@pytest.mark.usefixtures("no_words")
def test_candidates_of_two_tokens_read_back_as_two(clip):
    found = identifiers.candidates("dog", [clip], tokens=2)
    counts = {word: len(identifiers.token_ids(word, clip)) for word in found}
    assert set(counts.values()) == {1, 2}
    pair = next(word for word, count in counts.items() if count == 2)
    first, second = identifiers.token_ids(pair, clip)
    assert clip.decode([first, second]) == pair
    assert min(first, second) >= 40_000
    assert len(pair) <= 6
    assert found == identifiers.candidates("dog", [clip], tokens=2)


def test_candidates_of_t5_come_from_the_range_of_the_paper():
    words = {4_999: "xqa", 5_000: "xqb", 7_000: "xqc", 10_000: "xqd", 10_001: "xqe", 8_000: "xqfg", 9_000: "the"}
    assert identifiers.candidates("dog", [sentencepiece(words, 12_000)]) == ["xqb", "xqc", "xqd"]


@pytest.mark.usefixtures("no_words")
def test_candidates_of_byte_level_pairs_come_from_the_tail():
    words = [f"xq{letter}" for letter in "abcdefghijklmnopqr"]
    tokenizer = byte_level(words)
    found = identifiers.candidates("dog", [tokenizer])
    assert found == ["xqo", "xqp", "xqq", "xqr"]  # of 24: the words, and a, d, do, dog, x, xq
    assert len(tokenizer.encode("xqr")) == 3
    assert identifiers.token_ids("xqr", tokenizer) == tokenizer.encode(" xqr") == [tokenizer.get_vocab()["\u0120xqr"]]


@pytest.mark.usefixtures("no_words")
def test_candidates_suit_every_tokenizer_at_once(clip):
    t5 = sentencepiece({6_000: "npa", 6_001: "zqxj", 6_002: "xqb"}, 12_000)
    assert identifiers.candidates("dog", [clip, t5]) == ["npa"]
    assert identifiers.candidates("dog", [t5, clip]) == ["npa"]


@pytest.mark.usefixtures("no_words")
def test_words_of_two_tokens_are_good_where_two_are_allowed(clip):
    assert identifiers.problems("zwx", "dog", [clip], most_tokens=2) == []


@pytest.mark.usefixtures("no_words")
def test_the_defaults_are_those_that_are_good_and_free(clip):
    first, second, *others = identifiers.DEFAULT_IDENTIFIERS
    assert identifiers.defaults("dog", [clip]) == [first, second, *others]
    assert identifiers.defaults("dog", [clip], taken=[first]) == [second, *others]
    assert identifiers.defaults("dog", [clip, Letters({second: second})]) == [second]


def test_a_model_that_splits_every_default_is_refused():
    with pytest.raises(UserError, match=r"no default identifier \(ohwx, .*: give a rare word as identifier$"):
        identifiers.defaults("dog", [Letters({})])


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
