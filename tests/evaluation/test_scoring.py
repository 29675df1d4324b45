"""Rows of every metric, and the detectors, on embeddings whose answers are known by construction."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dreambooth.evaluation import limitations, scoring
from dreambooth.evaluation.dreambench import LIVE_PROMPTS
from dreambooth.evaluation.limitations import Finding
from dreambooth.evaluation.metrics import Options, Rows
from dreambooth.evaluation.scoring import Embedded, Grid, Texts
from dreambooth.evaluation.statistics import estimate

PROMPTS = LIVE_PROMPTS
P, K, C, R, D = len(PROMPTS), 4, 3, 5, 64
GRID = Grid("dog", tuple(prompt.kind for prompt in PROMPTS), tuple(range(K)))
RNG = np.random.default_rng(0)


def unit(rows: Rows) -> Rows:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def near(centre: Rows, spread: float, *shape: int) -> Rows:
    """Unit rows around a centre; the larger `spread`, the farther."""
    return unit(centre + spread * RNG.standard_normal((*shape, D)) / D**0.5)


SUBJECT, DOG, CAT, PIG = unit(RNG.standard_normal((4, D)))
SCENES = unit(RNG.standard_normal((P, D)))
# The first six of the seven directions are DOG-like: the subject is a dog.
SUBJECT = unit(SUBJECT + DOG)


def identity(
    likeness: float = 1.0, class_likeness: float = 0.0, copies: bool = False, spread: float = 0.8, **more: Any
) -> Embedded:
    """An identity encoder's rows of a run whose pictures show the subject with some likeness."""
    photos = near(SUBJECT, 0.6, R)
    shown = unit(likeness * SUBJECT + (1 - likeness) * DOG)
    drifted = unit(class_likeness * SUBJECT + (1 - class_likeness) * DOG)
    tuned = np.tile(photos[0], (P * K, 1)) if copies else near(shown, spread, P * K)
    return Embedded(
        photos_RD=photos,
        tuned_GD=tuned,
        frozen_GD=near(DOG, 0.8, P * K),
        own_KD=near(shown, 0.6, 12),
        classes_CKD=np.stack([near(drifted, 0.8, 12), near(CAT, 0.8, 12), near(PIG, 0.8, 12)]),
        frozen_classes_CKD=np.stack([near(each, 0.8, 12) for each in (DOG, CAT, PIG)]),
        **more,
    )


def clip(scene: float = 1.0, frozen_scene: float = 1.0) -> Embedded:
    """A CLIP's rows: pictures lie between their class and their scene."""
    scenes = np.repeat(SCENES, K, axis=0)
    return replace(
        identity(),
        tuned_GD=near(unit(DOG + scene * scenes), 0.5, P * K),
        frozen_GD=near(unit(DOG + frozen_scene * scenes), 0.5, P * K),
    )


TEXTS = Texts(
    plain_PD=unit(DOG + SCENES),
    named_PD=unit(DOG + SUBJECT + SCENES),
    contexts_PD=SCENES,
    classes_CD=np.stack([DOG, CAT, PIG]),
)


def test_every_figure_that_the_issue_names_is_there() -> None:
    rows = scoring.score(identity(), clip(), TEXTS, GRID, Options())
    asked = "dino clip_i clip_t clip_t_identifier pres div copying oracle_dino oracle_clip_i floor_dino floor_clip_i"
    assert {*asked.split(), "ceiling_clip_t", "oracle_dino_self"} <= set(rows)
    assert all(len(rows[name].value_N) == P * K for name in ("dino", "clip_t", "div", "copying", "floor_dino"))


def test_scores_are_plain_means_of_cosines() -> None:
    one, two = identity(), clip()
    rows = scoring.score(one, two, TEXTS, GRID, Options())
    by_hand = []
    for prompt in range(P):
        pictures = [one.tuned_GD[prompt * K + seed] for seed in range(K)]
        by_hand.append(np.mean([picture @ photo for picture in pictures for photo in one.photos_RD]))
    assert estimate(rows["dino"]).value == pytest.approx(np.mean(by_hand))
    texts = [two.tuned_GD[index] @ TEXTS.plain_PD[index // K] for index in range(P * K)]
    assert estimate(rows["clip_t"]).value == pytest.approx(np.mean(texts))
    named = [two.tuned_GD[index] @ TEXTS.named_PD[index // K] for index in range(P * K)]
    assert estimate(rows["clip_t_identifier"]).value == pytest.approx(np.mean(named))
    pairs = [one.tuned_GD[p * K + i] @ one.tuned_GD[p * K + j] for p in range(P) for i in range(K) for j in range(i)]
    assert estimate(rows["div"]).value == pytest.approx(1 - np.mean(pairs))
    pres = [picture @ photo for picture in one.classes_CKD[0] for photo in one.photos_RD]
    assert estimate(rows["pres"]).value == pytest.approx(np.mean(pres))


def test_rows_know_their_prompt_kind_and_seed() -> None:
    rows = scoring.score(identity(), clip(), TEXTS, GRID, Options())["dino"]
    assert rows.prompt_N.tolist() == [index // K for index in range(P * K)]
    assert rows.seed_N.tolist() == list(range(K)) * P
    assert rows.kind_N.tolist() == [PROMPTS[index // K].kind for index in range(P * K)]


def test_the_text_with_the_identifier_can_be_the_main_one() -> None:
    one, two = identity(), clip()
    usual = scoring.score(one, two, TEXTS, GRID, Options())
    named = scoring.score(one, two, TEXTS, GRID, Options(text="identifier"))
    assert (named["clip_t"].value_N == usual["clip_t_identifier"].value_N).all()
    assert (named["clip_t_class"].value_N == usual["clip_t"].value_N).all()
    # the frozen model knows no identifier
    assert (named["ceiling_clip_t"].value_N == usual["ceiling_clip_t"].value_N).all()


def test_the_order_of_floor_run_and_oracle() -> None:
    rows = scoring.score(identity(likeness=0.8), clip(), TEXTS, GRID, Options())
    values = [estimate(rows[name]).value or 0 for name in ("floor_dino", "dino", "oracle_dino")]
    assert values == sorted(values)


def test_held_out_photos() -> None:
    held_out = near(SUBJECT, 0.6, 4)
    fair = scoring.score(identity(held_out_HD=held_out), clip(), TEXTS, GRID, Options())
    assert abs(estimate(fair["held_out_gap"]).value or 1) < 0.05
    copied = scoring.score(identity(copies=True, held_out_HD=held_out), clip(), TEXTS, GRID, Options())
    assert (estimate(copied["held_out_gap"]).value or 0) > (estimate(fair["held_out_gap"]).value or 0) + 0.02
    assert "held_out_gap" not in scoring.score(identity(), clip(), TEXTS, GRID, Options())


def found(name: str, one: Embedded, two: Embedded) -> Finding:
    (finding,) = [each for each in limitations.find(one, two, TEXTS, GRID, PROMPTS) if each.name == name]
    return finding


@pytest.mark.parametrize(("scene", "level"), [(1.0, "good"), (0.5, "watch"), (0.1, "bad")])
def test_contexts_that_are_not_synthesised(scene: float, level: str) -> None:
    assert found("context", identity(), clip(scene)).level == level


def test_lost_contexts_are_named() -> None:
    two = clip()
    lost = next(index for index, prompt in enumerate(PROMPTS) if prompt.context == "on the beach")
    tuned = two.tuned_GD.copy()
    for index, prompt in enumerate(PROMPTS):
        if prompt.kind != "property" and (index == lost or index > 11):
            tuned[index * K : index * K + K] = near(DOG, 0.5, K)
    finding = found("context", identity(), replace(two, tuned_GD=tuned))
    assert finding.level in ("watch", "bad")
    assert len(finding.pictures) == 3


def test_contexts_that_the_frozen_model_cannot_draw_are_not_blamed_on_tuning() -> None:
    assert found("context", identity(), clip(0.0, frozen_scene=0.0)).level == "unknown"


def test_a_weak_prior() -> None:
    assert found("weak prior", identity(), clip()).level == "good"
    two = clip()
    confused = np.stack([near(CAT, 0.8, 12), *two.frozen_classes_CKD[1:]])
    finding = found("weak prior", identity(), replace(two, frozen_classes_CKD=confused))
    assert (finding.level, finding.figures["recognised"].value) == ("bad", 0)


def test_overfitting_is_copies_or_one_picture_again_and_again() -> None:
    assert found("overfitting", identity(likeness=0.4), clip()).level == "good"
    copies = found("overfitting", identity(copies=True), clip())
    assert (copies.level, copies.figures["copies"].value) == ("bad", 1)
    alike = found("overfitting", identity(likeness=-0.2, spread=0.1), clip())
    assert alike.level == "bad"
    assert (alike.figures["copies"].value or 0) < 0.05


@pytest.mark.parametrize(("class_likeness", "level"), [(0.0, "good"), (0.12, "watch"), (0.9, "bad")])
def test_language_drift(class_likeness: float, level: str) -> None:
    assert found("drift", identity(class_likeness=class_likeness), clip()).level == level


@pytest.mark.parametrize(("turned", "level"), [(0, "good"), (4, "watch"), (12, "bad")])
def test_other_classes_that_turn_into_the_subject(turned: int, level: str) -> None:
    one = identity()
    taken = one.frozen_classes_CKD.copy()
    taken[1, :turned] = one.own_KD[:turned]
    finding = found("siblings", replace(one, classes_CKD=taken), clip())
    assert finding.level == level
    expected = turned / 12 / (len(taken) - 1)
    assert finding.figures["share_of_the_way"].value == pytest.approx(expected, abs=0.02)
    assert ("--prior-others 0.1" in finding.text) is (level != "good")
    assert found("drift", replace(one, classes_CKD=taken), clip()).level == "good"


def test_without_other_classes_nothing_is_said_of_them() -> None:
    one = identity()
    lone = replace(one, classes_CKD=one.classes_CKD[:1], frozen_classes_CKD=one.frozen_classes_CKD[:1])
    assert limitations.siblings(lone, GRID) == []


@pytest.mark.parametrize(("left", "level"), [(1.0, "good"), (0.6, "watch"), (0.1, "bad")])
def test_a_class_that_falls_apart_without_becoming_the_subject(left: float, level: str) -> None:
    two = clip()
    between = unit(DOG + CAT + PIG)  # as near to its siblings as to the class itself
    broken = np.stack([near(unit(left * DOG + (1 - left) * between), 0.8, 12), *two.classes_CKD[1:]])
    finding = found("class", identity(), replace(two, classes_CKD=broken))
    assert finding.level == level
    assert ("--prior-dropout 0.1" in finding.text) == (level != "good")


def test_a_broken_class_cannot_be_told_where_the_frozen_model_does_not_draw_it() -> None:
    two = clip()
    another = np.stack([near(CAT, 0.8, 12), *two.frozen_classes_CKD[1:]])
    assert found("class", identity(), replace(two, frozen_classes_CKD=another)).level == "unknown"


def test_the_class_as_it_was_is_kept_seed_by_seed() -> None:
    two = clip()
    same = replace(two, classes_CKD=two.frozen_classes_CKD)
    rows = scoring.score(identity(), same, TEXTS, GRID, Options())
    assert rows["class_kept"].value_N == pytest.approx(np.ones(12))
    assert rows["class_clip_t"].value_N == pytest.approx(rows["class_clip_t_frozen"].value_N)
    assert rows["class_clip_t"].value_N == pytest.approx(two.frozen_classes_CKD[0] @ DOG)
    other = replace(two, classes_CKD=two.frozen_classes_CKD[:, ::-1])
    assert (scoring.score(identity(), other, TEXTS, GRID, Options())["class_kept"].value_N < 0.95).all()


def test_drift_of_a_run_that_learned_nothing_cannot_be_told() -> None:
    assert found("drift", identity(likeness=-0.5), clip()).level == "unknown"


@pytest.mark.parametrize(("shift", "level"), [(0.3, "good"), (1.3, "watch"), (4.0, "bad")])
def test_colours_that_follow_the_scene(shift: float, level: str) -> None:
    photos = np.array([[50.0, 0, 0]] * 3) + np.array([[0, 10, 0], [0, -10, 0], [0, 0, 0]])
    unit_shift = np.linalg.norm(photos - np.median(photos, axis=0), axis=1).mean()
    turn = np.linspace(0, 2 * np.pi, P, endpoint=False)
    per_prompt = np.array([50.0, 0, 0]) + shift * unit_shift * np.stack([0 * turn, np.cos(turn), np.sin(turn)], 1)
    for index, prompt in enumerate(PROMPTS):
        if prompt.kind == "property":  # "a red [V] dog" is to change its colour
            per_prompt[index] += 100
    finding = limitations.entanglement(np.repeat(per_prompt, K, axis=0), photos, GRID, PROMPTS)
    assert finding.level == level


def test_colours_in_cielab() -> None:
    # Lindbloom's calculator, D65
    known = {(255, 0, 0): (53.24, 80.09, 67.20), (0, 0, 255): (32.30, 79.19, -107.86), (255, 255, 255): (100, 0, 0)}
    for rgb, expected in known.items():
        assert limitations.lab(np.array(rgb) / 255) == pytest.approx(expected, abs=0.05)


def test_the_subjects_colour_is_that_of_its_mask_or_of_the_middle() -> None:
    image = Image.new("RGB", (40, 40), "blue")
    image.paste("red", (10, 10, 30, 30))
    red = limitations.lab(np.array([1.0, 0, 0]))
    assert limitations.centre_colour(image) == pytest.approx(red, abs=0.1)
    mask = Image.new("L", (40, 40), 0)
    mask.paste(255, (0, 0, 40, 5))
    assert limitations.centre_colour(image, mask) == pytest.approx(limitations.lab(np.array([0, 0, 1.0])), abs=0.1)


@pytest.mark.parametrize(
    ("asked", "row"),
    [
        ({"references": "fixed:1"}, "dino"),
        ({"references": "centroid"}, "clip_i"),
        ({"references": "held-out"}, "dino"),
        ({"text": "identifier"}, "clip_t"),
        ({"scale": 2.5}, "clip_t"),
        ({"spread": "pairs"}, "copying"),
    ],
)
def test_every_option_changes_its_figure(asked: dict[str, Any], row: str) -> None:
    held_out_RD = near(SUBJECT, 0.9, 3)
    given = replace(identity(), held_out_HD=held_out_RD), replace(clip(), held_out_HD=held_out_RD), TEXTS, GRID
    usual, other = scoring.score(*given, Options()), scoring.score(*given, Options(**asked))
    assert not np.allclose(usual[row].value_N, other[row].value_N)
