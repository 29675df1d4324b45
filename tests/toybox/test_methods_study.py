"""The study of the methods: every arm is a run that would start; the best are chosen and told by what was measured."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dreambooth import planning
from dreambooth.evaluation.scoring import Grid
from dreambooth.evaluation.statistics import estimate
from dreambooth.progress import Silent
from dreambooth.toybox import SUBJECTS as SUBJECT_FILES
from dreambooth.toybox import methods
from dreambooth.toybox.methods import (
    ARMS,
    BECAME,
    KEPT,
    METRICS,
    PACED,
    PRIORS,
    STEPS,
    along,
    best,
    curve_part,
    final_part,
    paced,
)
from dreambooth.toybox.reproduction import PAPER
from dreambooth.toybox.study import Arm, Rows, Study, merge

SUBJECTS = ("a", "b", "c", "d", "e", "f")


def rows(level: float, pres: float = 0.3) -> Rows:
    """Scores of six subjects: DINO and the balance as given, PRES too, of every other metric the same."""
    levels = dict.fromkeys([*METRICS, *KEPT], 0.3)
    found = []
    for index, subject in enumerate(SUBJECTS):
        grid = Grid(subject, ("x", "y"), (0, 1))
        shifts = 0.01 * index * np.array([1.0, -1.0, 1.0, -1.0])
        own = {name: value * (1 + 0.02 * (index - 2.5)) for name, value in {"dino": level, "pres": pres}.items()}
        every = levels | own | {"balance": own["dino"]}
        found.append({name: grid.scores(value + shifts) for name, value in every.items()})
    return merge(found)


@pytest.mark.parametrize(
    "arm", [*ARMS, *methods.drawn()[1:], *methods.IMAGE_STEPS[1:], *methods.HELD], ids=lambda arm: arm.name
)
def test_every_arm_is_a_run_that_would_start(arm: Arm, tmp_path: Path) -> None:
    shutil.copytree(SUBJECT_FILES / "striped_cat" / "photos", tmp_path / "others" / "dog, 20")  # need not be rendered
    plans = planning.make_plans(Study(tmp_path, settings=PAPER).recipe(arm, "spotted_dog", 0))
    assert all(getattr(plans.recipe, name) == value for name, value in arm.settings.items())
    assert bool(arm.others) == bool(plans.class_images[0] if plans.class_images else [])
    assert planning.make_plans(paced(Study(tmp_path, settings=PAPER), arm, "spotted_dog")).recipe.steps == PACED


def test_what_is_drawn_by_consistency_guidance_is_trained_as_without_it(tmp_path: Path) -> None:
    study, arms = Study(tmp_path, settings=PAPER), methods.drawn()
    assert [arm.name for arm in arms if "consistency" not in arm.settings] == [name for name, _ in methods.DRAWN]
    assert len({study.key(arm, "spotted_dog", 0) for arm in arms}) == len(arms)
    shares = [shares for _, shares in methods.DRAWN]
    trained = [study.trained(arm, "spotted_dog", 0).name for arm in arms]
    assert [trained.count(name) for name in dict.fromkeys(trained)] == [1 + len(each) for each in shares]
    page = methods.drawn_part({arm.name: rows(0.5) for arm in arms}).splitlines()
    assert [line.split("|")[1].strip() for line in page if line.startswith("| ")][2:] == [arm.name for arm in arms]


def test_other_classes_are_looked_at_in_cells_of_their_own_and_told_beside_the_usual_figures(tmp_path: Path) -> None:
    study = Study(tmp_path, settings=PAPER)
    alike = replace(study, siblings=methods.SIBLINGS)
    assert study.trained(BECAME, "spotted_dog", 0) == alike.trained(BECAME, "spotted_dog", 0)
    assert study.key(BECAME, "spotted_dog", 0) != alike.key(BECAME, "spotted_dog", 0)
    plain = rows(0.5)
    ways = plain | {"class_way": plain["dino"], "others_way": plain["dino"]}
    page = methods.held_part({arm.name: ways for arm in methods.HELD}).splitlines()
    assert page[0] == "## Other classes, 6 subjects, one seed"
    assert [line.split("|")[1].strip() for line in page if line.startswith("| ")][2:] == [a.name for a in methods.HELD]
    assert page[-2].split("|")[2:5] == [" 0.500 ", " 0.500 ", " 0.500 "]


def test_arms_have_names_of_their_own() -> None:
    every = {*(arm.name for arm in ARMS), *(arm.name for arm in (*methods.IMAGE_STEPS, *methods.HELD))}
    assert len(every) == len(ARMS) + len(methods.IMAGE_STEPS) - 1 + len(methods.HELD) - 3
    assert ARMS[0].settings == {}


def test_the_best_go_on_with_the_papers_among_them() -> None:
    screened = {arm.name: rows(0.5) for arm in ARMS} | {ARMS[0].name: rows(0.1)}
    screened |= {"full": rows(0.9), "DoRA": rows(0.8)}
    assert [arm.name for arm in best(screened, 3)] == [ARMS[0].name, "full", "DoRA"]
    table = methods.screen_part(screened, dict.fromkeys(screened, 1.5), dict.fromkeys(screened, 400)).splitlines()
    names = [line.split("|")[1].strip() for line in table if line.startswith("| ") and "|" in line[2:]]
    assert [name for name in names if name in screened][:2] == ["full", "DoRA"]
    assert names[-1] == ARMS[0].name


def test_what_became_the_default_is_the_default(tmp_path: Path) -> None:
    """The page says so; a default that moves on must be measured anew."""
    plain, told = (
        planning.make_plans(replace(Study(tmp_path), settings=settings).recipe(arm, "spotted_dog", 0)).recipe
        for arm, settings in ((Arm("plain"), {}), (BECAME, PAPER))
    )
    assert plain == told


def test_every_prior_is_compared_to_the_end() -> None:
    assert [arm.name for arm in methods.last(list(ARMS[:2]))] == [
        *(arm.name for arm in ARMS[:2]),
        *PRIORS,
    ]
    named = [arm.name for arm in ARMS if arm.name in PRIORS]
    assert sorted(named) == sorted(PRIORS)


def test_a_difference_from_the_papers_is_told_with_its_interval() -> None:
    found = {ARMS[0].name: rows(0.5), "full": rows(0.6, pres=0.4), "DoRA": rows(0.5)}
    lines = final_part(found, "six").splitlines()
    told = {
        line.split("|")[1].strip(): dict(zip([*METRICS, *KEPT], line.split("|")[2:-1], strict=True))
        for line in lines
        if "better" in line or "no difference" in line
    }
    assert "+0.100" in told["full"]["dino"]
    assert "better" in told["full"]["dino"]
    assert "worse" in told["full"]["pres"], "of PRES less is better"
    assert not any("better" in cell for cell in told["DoRA"].values())


def test_a_pace_is_that_of_two_that_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "PACED", 3)
    study = Study(tmp_path, archive=tmp_path / "archive.jsonl", settings={"prior_weight": 0.0, "rank": 2})
    found = methods.pace(study, Arm("twice the photos", {"batch_size": 8}), "spotted_dog")
    assert 1 < found < 8
    monkeypatch.setattr(methods, "train", None)
    assert methods.pace(study, Arm("again", {"batch_size": 8}), "spotted_dog") == pytest.approx(found, rel=1e-3)


def test_a_curve_is_one_run_looked_at_on_its_way() -> None:
    arms = along(Arm("full", {"method": "full"}))
    assert [arm.settings for arm in arms] == [{"method": "full", "steps": steps} for steps in STEPS]
    assert {arm.chain for arm in arms} == {"full over steps"}
    curves = {arm.name: rows(0.1 * index) for index, arm in enumerate(arms)}
    (line,) = [line for line in curve_part([Arm("full")], curves).splitlines() if line.startswith("| dino")]
    assert [float(cell) for cell in line.strip("| ").split("|")[1:]] == pytest.approx([0, 0.1, 0.2, 0.3])


def test_side_by_side_is_the_same_as_one_after_another(tmp_path: Path) -> None:
    quick = {"prior_weight": 0.0, "inference_steps": 2, "rank": 2, "save_every": 1}
    arms = [Arm(f"{steps} steps", {**quick, "steps": steps}, chain="steps") for steps in (1, 2)]
    one = Study(tmp_path / "one", scenes=1, count=1, archive=tmp_path / "one.jsonl")
    two = replace(one, home=tmp_path / "two", archive=tmp_path / "two.jsonl", workers=2)
    first = one.run(arms, ["spotted_dog"], [1], Silent())
    two.run(arms, ["spotted_dog"], [0, 1], Silent())
    second = two.run(arms, ["spotted_dog"], [1], Silent())
    for arm in arms:
        assert estimate(first[arm.name]["dino"]).value == pytest.approx(estimate(second[arm.name]["dino"]).value)
        assert two.trained(arm, "spotted_dog", 0).is_dir()
        assert two.cost(arm, "spotted_dog", 1).seconds > 0
