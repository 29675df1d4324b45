"""The class noun: proposed from photos, and asked of the base model before anything is trained on it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dreambooth.evaluation import embeddings, encoders
from dreambooth.evaluation.class_noun import COUNT, NEAREST, PROPOSED, count_told, diagnose, mistaken, rank
from dreambooth.evaluation.material import SIBLINGS
from dreambooth.models import resolve
from dreambooth.nouns import NOUNS, others
from dreambooth.progress import Silent
from dreambooth.prompts import class_prompt
from dreambooth.run import Run
from dreambooth.toybox import SUBJECTS
from dreambooth.toybox.stock import class_of
from dreambooth.toybox.world.vocabulary import CLASSES
from tests.calls import call

CAR = sorted((SUBJECTS / "rally_car" / "photos").glob("*.png"))


def test_a_picture_is_told_where_few_nouns_are_nearer() -> None:
    words_CD = np.eye(6, dtype=np.float32)
    for nearer in range(6):
        picture_1D = np.full((1, 6), 0.5, np.float32)
        picture_1D[0, :nearer] = 0.9
        assert count_told(picture_1D, words_CD, 5) == int(nearer < NEAREST)


def test_the_nouns_are_distinct_and_those_of_the_toybox_are_its_classes() -> None:
    assert len(set(NOUNS)) == len(NOUNS)
    assert all(noun == noun.strip().lower() for noun in NOUNS)
    card = resolve("toybox").card
    assert card is not None
    assert card.nouns == CLASSES


def test_the_prior_holds_no_noun_of_the_subjects_and_none_that_evaluation_looks_at() -> None:
    held = others([])
    assert {"pig", "cup"} <= set(held) <= set(NOUNS)
    assert not {noun for kind in SIBLINGS.values() for noun in kind} & set(held)
    assert set(held) - set(others(["pig", "dog"])) == {"pig"}


def test_the_photos_class_is_proposed_and_a_class_that_the_model_knows_passes() -> None:
    done = call("check", CAR[0].parent, "--model", "toybox", "--class", "car", "--resolution", "64", "--json")
    assert done.status == 0, done.err
    found = json.loads(done.out)["class"]
    assert found["proposed"][0] == "car"
    assert found["problems"] == []
    assert found["told"] > COUNT / 2
    assert len(found["pictures"]) == COUNT


def test_a_class_that_neither_the_photos_show_nor_the_model_draws_is_warned_of() -> None:
    found = diagnose(CAR, "toybox", "zebra", Silent())
    assert [problem.kind for problem in found.problems] == ["class", "weak-prior"]
    assert all(problem.risk for problem in found.problems)
    assert found.told < COUNT / 2
    assert "zebra" not in found.proposed


def test_most_subjects_are_given_their_class_among_the_proposed() -> None:
    clip = encoders.load("toybox-clip", "cpu")
    words_CD = embeddings.embed_texts(clip, [class_prompt(noun) for noun in CLASSES])
    right = []
    for folder in sorted(SUBJECTS.glob("*/photos")):
        photos_RD = embeddings.embed_files(clip, sorted(folder.glob("*.png")))
        right.append(class_of(folder.parent.name) in rank(photos_RD, words_CD, CLASSES)[:PROPOSED])
    assert sum(right) >= len(right) - 1


def test_real_class_images_of_another_class_are_told(tmp_path: Path) -> None:
    toybox = resolve("toybox")
    dog = sorted((SUBJECTS / "spotted_dog" / "photos").glob("*.png"))
    assert mistaken(toybox, "dog", dog) == []
    (problem,) = mistaken(toybox, "dog", dog, CAR)
    assert problem.message.startswith("the class images look less like a dog than like: car, ")
    (problem,) = mistaken(toybox, "frog", CAR)
    assert problem.message.startswith("the photos look less like a frog than like: car, ")
    given = ("--class", "dog", "--model", "toybox", "--prior-images", CAR[0].parent, "--out", tmp_path / "run")
    photos = SUBJECTS / "spotted_dog" / "photos"
    done = call("train", photos, *given, "--prior-loss", "images", "--steps", 1, "--samples", 0)
    assert done.status == 0, done
    assert "warning: the class images look less like a dog than like: car, " in done.err
    assert any("the class images look less like" in text for text in Run(tmp_path / "run").info["warnings"])


def test_without_a_clip_at_hand_nothing_is_fetched_for_class_images(
    tiny_sd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoders, "load", lambda *_: pytest.fail("an encoder was loaded"))
    assert not encoders.is_here("clip-vit-b32")
    assert mistaken(resolve(str(tiny_sd)), "frog", CAR, CAR) == []
