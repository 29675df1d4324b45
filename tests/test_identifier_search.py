from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from dreambooth import families, identifier_search, identifiers
from dreambooth.errors import UserError
from dreambooth.identifier_search import Found
from dreambooth.models import resolve
from dreambooth.progress import Silent
from dreambooth.toybox import planted
from dreambooth.toybox.world.priors import FREE, PLANTED
from tests import calls
from tests.debug_models import TOKENIZER

WORDS = ["npa", "zw", "xq", "usm", "brc", "shs", "kpk"]


@pytest.fixture(scope="module")
def tokenizer():
    return CLIPTokenizer.from_pretrained(TOKENIZER)


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    config = CLIPTextConfig(
        hidden_size=32,
        intermediate_size=32,
        num_attention_heads=2,
        num_hidden_layers=2,
        vocab_size=49408,
        bos_token_id=49406,
        eos_token_id=49407,
    )
    return CLIPTextModel(config).eval().requires_grad_(False)


def row_of(encoder, tokenizer, word):
    return encoder.get_input_embeddings().weight[tokenizer.get_vocab()[f"{word}</w>"]]


def priors(reader, words=WORDS, noun="dog"):
    return {word: values.mean() for word, values in identifier_search.conditioning([reader], words, noun).items()}


def test_a_row_that_training_moved_has_the_strongest_prior(encoder, tokenizer):
    row_of(encoder, tokenizer, "usm").mul_(4)
    row_of(encoder, tokenizer, "zw").mul_(2)
    found = priors((tokenizer, encoder))
    assert sorted(found, key=found.get)[-2:] == ["zw", "usm"]
    assert np.median(list(found.values())) == pytest.approx(1)


def test_a_word_like_all_the_others_has_the_weakest_prior(encoder, tokenizer):
    rows = torch.stack([row_of(encoder, tokenizer, word) for word in WORDS])
    row_of(encoder, tokenizer, "xq").copy_(rows.median(0).values)
    found = priors((tokenizer, encoder))
    assert min(found, key=found.get) == "xq"


def test_a_prior_depends_on_no_word_that_is_read_beside(encoder, tokenizer):
    """Longer neighbours pad a prompt; what follows the word must be found all the same."""
    template = "a [V] dog in the snow"
    alone = identifier_search._states(tokenizer, encoder, ["npa"], template)
    beside = identifier_search._states(tokenizer, encoder, ["npa", "zqxjkvwqzx"], template)
    torch.testing.assert_close(alone[0], beside[0])
    ids = tokenizer("a npa dog in the snow", return_tensors="pt").input_ids
    expected = encoder(input_ids=ids).last_hidden_state[0, 3:].mean(0)  # behind the start, "a" and the word
    torch.testing.assert_close(alone[0], expected)


def test_several_text_encoders_are_heard(encoder, tokenizer):
    other = CLIPTextModel(encoder.config).eval().requires_grad_(False)
    row_of(other, tokenizer, "brc").mul_(6)
    found = identifier_search.conditioning([(tokenizer, encoder), (tokenizer, other)], WORDS, "dog")
    means = {word: values.mean() for word, values in found.items()}
    assert max(means, key=means.get) == "brc"


def test_the_default_of_a_run_is_the_word_that_its_encoders_know_least(tiny_sd):
    source = resolve(str(tiny_sd))
    pipe = families.get(source.family).load(source, torch.float32)
    names = list(identifiers.DEFAULT_IDENTIFIERS)
    for kept in names[1:3]:
        for word in names:
            row = row_of(pipe.text_encoder, pipe.tokenizer, word)
            row.copy_(torch.randn(row.shape, generator=torch.Generator().manual_seed(names.index(word))))
        rows = torch.stack([row_of(pipe.text_encoder, pipe.tokenizer, word) for word in names])
        row_of(pipe.text_encoder, pipe.tokenizer, kept).copy_(rows.median(0).values)
        assert identifier_search.least(pipe, "dog", names) == kept
    assert identifier_search.least(pipe, "dog", ["phol"]) == "phol"


def test_rounds_are_bounded_and_use_each_seed_once():
    planned = identifier_search.rounds(32)
    assert [(each.words, list(each.seeds)) for each in planned] == [
        (32, [0, 1]),
        (16, [2, 3]),
        (8, [4, 5, 6, 7]),
        (4, list(range(8, 16))),
    ]
    assert sum(each.pictures for each in planned) == 66 + 34 + 36 + 40
    assert [each.words for each in identifier_search.rounds(3)] == [3]


class Told(Silent):
    """Keeps what it is told."""

    def __init__(self):
        self.lines, self.total, self.done = [], 0, 0

    def say(self, message):
        self.lines.append(message)

    def stage(self, name, total, done=0):
        self.total = total

    def advance(self, count=1):
        self.done += count


def test_pictures_rank_words_by_how_far_they_lead(monkeypatch):
    """A stand-in for the model draws an angle: strong words turn it far, and each seed adds its own to all."""
    strength = {f"w{index}": 0.1 + 0.1 * index for index in range(12)}
    asked = []

    def draw(pipe, texts, generators, sampling):
        for text, generator in zip(texts, generators, strict=True):
            asked.append((text, generator.initial_seed()))
            noise = torch.randn(2, generator=generator)
            angle = noise[0] + (strength.get(text.split()[1], 0) * (1 + 0.05 * noise[1]))
            yield Image.new("F", (1, 1), float(angle))

    def features(images):
        angle = torch.tensor([image.getpixel((0, 0)) for image in images])
        return torch.stack([angle.cos(), angle.sin()], dim=1)

    monkeypatch.setattr(identifier_search, "draw", draw)
    told = Told()
    words = list(reversed(strength))
    found = identifier_search.in_pictures(None, words, "dog", None, features, told)
    order = identifier_search.rank(found)
    assert order[:4] == ["w0", "w1", "w2", "w3"]
    assert [len(found[word]) for word in order] == [8] * 4 + [4] * 2 + [2] * 6
    assert told.done == told.total == len(asked)
    assert str(told.total) in told.lines[0]
    assert max(text.count(" ") for text, _ in asked) == 2
    assert {text for text, _ in asked} == {"a dog", *(f"a {word} dog" for word in words)}
    assert len(set(asked)) == len(asked)
    middle = np.median([found[word][:2].mean() for word in words])
    assert middle == pytest.approx(1)


@pytest.mark.parametrize("count", [6, 8, 16])
def test_an_interval_covers_the_truth_as_often_as_it_says(count):
    samples = np.random.default_rng(0).normal(1, 0.3, (300, count))
    found = [identifier_search.Found.of("xq", [1], values) for values in samples]
    assert [each.prior for each in found] == pytest.approx(samples.mean(1))
    assert 0.91 < np.mean([each.low <= 1 <= each.high for each in found]) < 0.99


@pytest.mark.parametrize("values", [[2.0], [1.0, 2.0], [1.0, 2.0, 1.5, 1.2], [2.0] * 6])
def test_an_interval_that_cannot_be_known_is_none(values):
    found = identifier_search.Found.of("xq", [1], np.array(values))
    assert (found.prior, found.low, found.high) == (pytest.approx(np.mean(values)), None, None)


def test_the_command_prints_an_interval_where_there_is_one(monkeypatch):
    words = [Found("xq", [1], 0.7, 0.6, 0.8), Found("zw", [2], 0.9, None, None)]
    monkeypatch.setattr(identifier_search, "search", lambda *_, **__: words)
    one, two = calls.call("identifier", "--class", "dog").out.splitlines()
    assert one.split() == ["xq", "0.70", "(0.60", "to", "0.80)", "[1]"]
    assert two.split() == ["zw", "0.90", "[2]"]
    assert one.index("[1]") == two.index("[2]")


def test_a_search_lists_good_words_before_bad_ones(tiny_sd, tokenizer):
    found = identifier_search.search(str(tiny_sd), "dog", fast=True)
    listed = identifier_search.to_json(found)
    assert all(set(each) == {"text", "ids", "prior", "low", "high", "note"} for each in listed)
    good = [each for each in found if ":" not in each.note]
    assert found[: len(good)] == good
    assert [each.prior for each in good] == sorted(each.prior for each in good)
    assert all(each.low <= each.prior <= each.high for each in found)
    assert [each.ids for each in found if each.text == "sks"] == [[48136]]
    notes = {each.text: each.note for each in found}
    assert notes["sks"] == "folklore"
    assert notes["zwx"] == "folklore: splits into 2 tokens (z, wx)"
    assert notes["npa"] == ""
    assert {each.text for each in found} == {*identifiers.candidates("dog", [tokenizer]), *identifiers.FOLKLORE}


def test_a_search_by_pictures_draws_the_best_and_the_folklore(tiny_sd, monkeypatch):
    told, seen = Told(), []

    def features(images):
        seen.extend(image.size for image in images)
        flat = torch.stack([torch.tensor(np.array(image)).float().flatten() for image in images])
        return torch.nn.functional.normalize(flat - flat.mean(1, keepdim=True), dim=1)

    monkeypatch.setattr(identifier_search, "POOL", 1)
    monkeypatch.setattr(identifier_search, "MOST_SEEDS", 2)
    monkeypatch.setattr(identifier_search, "load_features", lambda encoder, device: features)
    found_target = identifier_search.targets.find(str(tiny_sd))
    target = replace(found_target, defaults=replace(found_target.defaults, steps=1, size=32))
    monkeypatch.setattr(identifier_search.targets, "find", lambda model: target)
    found = identifier_search.search("sd", "dog", reporter=told)
    assert len(found) == len(identifiers.FOLKLORE) + 1
    assert len(seen) == told.total == 2 * (len(found) + 1)
    assert all(np.isfinite(each.prior) and each.low is each.high is None for each in found)


@pytest.mark.parametrize("given", [{"letters": 0}, {"tokens": 4}])
def test_a_search_that_makes_no_sense_is_refused(given):
    ((name, value),) = given.items()
    with pytest.raises(UserError, match=f"^--{name} {value}: give 1 to"):
        identifier_search.search("toybox", "dog", fast=True, **given)


def test_spearman_against_values_worked_out_by_hand():
    assert planted.spearman(np.array([1.0, 2, 3]), np.array([10.0, 20, 15])) == pytest.approx(0.5)
    # ranks 1.5 1.5 3 4 and 1 3 3 3... their Pearson correlation
    one, two = np.array([1.0, 1, 2, 3]), np.array([0.0, 5, 5, 5])
    expected = np.corrcoef([1.5, 1.5, 3, 4], [1, 3, 3, 3])[0, 1]
    assert planted.spearman(one, two) == pytest.approx(expected)
    assert planted.spearman(np.array([1.0, 1, 1]), np.array([1.0, 2, 3])) == 0


def test_planted_tokens_that_training_moved_are_found_out(encoder, tokenizer):
    free = planted.unseen(tokenizer, 60)
    assert len(set(free)) == 60
    assert set(FREE) <= set(free)
    assert not set(free) & set(PLANTED)
    words = [*PLANTED, *free]
    before = planted.summary(priors((tokenizer, encoder), words))
    for word, binding in PLANTED.items():
        row_of(encoder, tokenizer, word).mul_(1 + 2 * (4 + np.log10(binding.rate) + 0.5))
    after = planted.summary(priors((tokenizer, encoder), words))
    assert abs(before["spearman"]) < 0.25
    assert after["spearman"] > 0.95
    assert list(after["medians"].values()) == sorted(after["medians"].values())


@pytest.mark.parametrize("noun", planted.NOUNS)
def test_the_search_orders_the_toyboxs_words_by_how_often_they_were_planted(noun):
    reader = planted.read(planted.BASE / "text_encoder")
    words = [*PLANTED, *planted.unseen(reader[0], len(PLANTED))]
    assert planted.summary(priors(reader, words, noun))["spearman"] >= 0.8
