"""What photos and scenes are called, under the default label and others."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import CLIPTokenizer

from dreambooth import identifiers, planning, prompts, samples
from dreambooth.errors import UserError
from dreambooth.photos import Photo
from dreambooth.recipe import Recipe
from tests.debug_models import TOKENIZER

DOG = {"photos": ".", "class_noun": "dog", "identifier": "ohwx"}
TEAPOT = {"photos": ".", "class_noun": "old teapot", "identifier": "phol"}
NEW = {"method": "textual-inversion"}


class StableDiffusionPipeline(SimpleNamespace):
    """Stands for a pipeline that has its tokenizers alone; its name says its family."""


@pytest.fixture(scope="module")
def pipe() -> Any:
    return StableDiffusionPipeline(components={"tokenizer": CLIPTokenizer.from_pretrained(TOKENIZER)})


def recipe(**values: Any) -> Recipe:
    return Recipe.of({"subjects": [DOG, TEAPOT], **values})


def photo(caption: str | None = None) -> Photo:
    return Photo("id", Path("x.png"), (32, 32), caption, None)


@pytest.mark.parametrize(
    ("label", "captions"),
    [
        (None, ["a ohwx dog", "a phol old teapot"]),
        ("a [V]", ["a ohwx", "a phol"]),
        ("{class} {0}, [V]'s {class}", ["dog {0}, ohwx's dog", "old teapot {0}, phol's old teapot"]),
    ],
)
def test_photos_are_learned_under_the_label(label: str | None, captions: list[str]) -> None:
    named = recipe(label=label) if label else recipe()
    assert [planning.caption(named, index, photo()) for index in (0, 1)] == captions
    assert planning.caption(named, 1, photo("the [V1] and the [V2]")) == "the ohwx and the phol"
    assert [planning.caption(named, index, photo("[V] asleep")) for index in (0, 1)] == ["ohwx asleep", "phol asleep"]


def test_the_runs_own_pictures_follow_the_label() -> None:
    drawn = samples.shots(recipe(label="a [V]", samples=1), "after")
    assert [shot.text for shot in drawn if shot.kind == "subject"] == ["a ohwx", "a phol"]
    assert [shot.text for shot in drawn if shot.kind == "class"] == ["a dog", "an old teapot"]
    scenes = [shot.text for shot in drawn if shot.kind == "scene"]
    assert scenes[0] == "a ohwx on the beach"
    assert scenes[-1] == "a painting of a phol"
    assert len(scenes) == 2 * len(prompts.SCENES)
    assert prompts.scenes("a [V] dog")[1] == "a [V] dog in the snow"


def test_two_scenes_that_begin_alike_are_two_pictures() -> None:
    begin = "a [V] dog sitting on a wooden table in a bright kitchen"
    drawn = samples.shots(recipe(scenes=(f"{begin}, photo", f"{begin}, painting", "a-[V]", "a [V]")), "after")
    assert len({shot.file for shot in drawn}) == len(drawn)
    before = samples.shots(recipe(), "before")
    assert [shot.file.partition("-")[2] for shot in drawn[: len(before)]] == [
        shot.file.partition("-")[2] for shot in before
    ]


@pytest.mark.parametrize(
    ("label", "problem"),
    [
        ("a {class}", "does not name its subject by [V] alone"),
        ("a [V2] {class}", "does not name its subject by [V] alone"),
        ("a [V] and a [V2]", "does not name its subject by [V] alone"),
        ("", "does not name its subject by [V] alone"),
        ("a [V]\ndog", "has two lines"),
    ],
)
def test_labels_that_are_refused(label: str, problem: str) -> None:
    with pytest.raises(UserError) as caught:
        recipe(label=label)
    assert problem in str(caught.value)
    assert str(caught.value).endswith("write one like 'a [V] {class}'")


def test_a_label_that_does_not_fit_is_refused(pipe: Any) -> None:
    with pytest.raises(UserError, match=r"^the label 'a x very very .* has 79 tokens, 77 fit: shorten it"):
        planning.identify(recipe(label="a [V]" + " very" * 75), pipe, [[], []])


def identified(pipe: Any, *subjects: dict[str, Any], **values: Any) -> list[str | None]:
    named = planning.identify(recipe(subjects=subjects, **NEW, **values), pipe, [[] for _ in subjects])
    return [subject.identifier for subject in named.subjects]


def test_textual_inversion_names_subjects_by_tokens_of_its_own(pipe: Any) -> None:
    open_dog = {**DOG, "identifier": None}
    given = {**DOG, "identifier": "<dog-1>"}
    assert identified(pipe, open_dog) == ["<dog-1>"]
    assert identified(pipe, open_dog, given, open_dog) == ["<dog-2>", "<dog-1>", "<dog-3>"]
    assert identified(pipe, {**TEAPOT, "identifier": None}) == ["<old-teapot-1>"]


@pytest.mark.parametrize(
    ("identifier", "problem"),
    [
        ("ohwx", "is no token that textual inversion can add: type <dog-1> instead"),
        ("<Dog>", "is no token that textual inversion can add: type <dog-1> instead"),
        ("<my dog>", "is no token that textual inversion can add: type <dog-1> instead"),
        ("<|endoftext|>", "is no token that textual inversion can add: type <dog-1> instead"),
    ],
)
def test_identifiers_that_textual_inversion_refuses_whatever_is_allowed(
    identifier: str, problem: str, pipe: Any
) -> None:
    with pytest.raises(UserError) as caught:
        identified(pipe, {**DOG, "identifier": identifier}, allow=["identifier"])
    assert str(caught.value) == f"the identifier '{identifier}' {problem}"


def test_a_token_is_new_to_all_tokenizers() -> None:
    """Stock loading refuses a token that a tokenizer has."""
    first, second = (SimpleNamespace(get_vocab=lambda words=words: words) for words in ({"a": 0}, {"<dog-1>": 0}))
    assert identifiers.invent("dog", [first]) == "<dog-1>"
    assert identifiers.invent("dog", [first, second], taken=["<dog-2>"]) == "<dog-3>"
    assert identifiers.invent("\N{CJK UNIFIED IDEOGRAPH-72AC}", [first]) == "<subject-1>"
    identifiers.require_new("<dog-1>", "dog", [first])
    with pytest.raises(UserError, match="'<dog-1>' is in the model's vocabulary already: type <dog-2> instead"):
        identifiers.require_new("<dog-1>", "dog", [first, second])


def test_two_subjects_cannot_share_a_token(pipe: Any) -> None:
    given = {**DOG, "identifier": "<dog-1>"}
    with pytest.raises(UserError, match="the identifier '<dog-1>' names another subject: type <dog-2> instead"):
        identified(pipe, given, given)


def test_a_new_token_is_counted_as_one(pipe: Any) -> None:
    """Before it is added the tokenizer sees five pieces, which must not make a caption too long that is not."""
    words = 77 - 2 - 3
    fits = planning.identify(
        recipe(subjects=[{**DOG, "identifier": None}], **NEW), pipe, [[photo("a [V]" + " x" * (words + 1))]]
    )
    assert fits.subjects[0].identifier == "<dog-1>"
    with pytest.raises(UserError, match=r"the caption of x.png, 'a <dog-1> .* has 78 tokens, 77 fit"):
        planning.identify(fits, pipe, [[photo("a [V]" + " x" * (words + 2))]])
    assert "<dog-1>" not in pipe.components["tokenizer"].get_vocab()
