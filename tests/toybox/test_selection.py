"""The study of `--select`: its counts are those at which it looks, and each rule is judged by what it chose."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dreambooth.evaluation.scoring import Grid
from dreambooth.planning import make_plans
from dreambooth.toybox import selection
from dreambooth.toybox.selection import SELECT, SHOWN, counts, excessive, least_loss, long_part, write_up
from dreambooth.toybox.study import Arm, Rows, Study, balances, by_training, merge

SUBJECTS = ("a", "b", "c", "d", "e", "f")
FIXED = ["100 steps", "200 steps"]


def rows(dino: float, loss: dict[str, float] | None = None) -> Rows:
    """Scores of two trainings of six subjects, alike but for DINO."""
    levels = dict.fromkeys(SHOWN, 0.3) | {"floor_dino": 0.2, "oracle_dino": 1.0, "ceiling_clip_t": 0.5, "clip_t": 0.4}
    levels |= {"dino": dino, "chosen_step": 100.0, "looking": 9.0}
    found = []
    for training in (0, 1):
        for index, subject in enumerate(SUBJECTS):
            grid = Grid(subject, ("x", "y"), (1000 * training, 1000 * training + 1))
            own = {"dino": dino * (1 + 0.02 * index), "held_out_loss": (loss or {}).get(subject, 0.5)}
            found.append({name: grid.scores(np.full(4, level)) for name, level in (levels | own).items()})
    return merge(found)


def test_the_counts_go_up_to_what_selects_and_the_default_is_one_of_them(tmp_path: Path) -> None:
    study = Study(tmp_path)
    arms, default = counts(study, "spotted_dog")
    assert default in arms
    assert default.settings["steps"] == make_plans(study.recipe(Arm(""), "spotted_dog", 0)).recipe.steps
    steps = [int(str(arm.settings["steps"])) for arm in arms]
    assert steps == sorted(steps)
    assert len(steps) == selection.COUNTS + 1
    assert steps[-1] == make_plans(study.recipe(SELECT, "spotted_dog", 0)).recipe.steps == 2 * default.settings["steps"]
    assert {arm.chain for arm in arms} == {"fixed"}
    assert len({study.trained(arm, "spotted_dog", 0) for arm in arms}) == 1
    assert study.trained(SELECT, "spotted_dog", 0) != study.trained(arms[0], "spotted_dog", 0)


def test_a_training_has_a_balance_of_its_own() -> None:
    found = by_training(balances(rows(0.6)))
    assert len(found) == 12
    assert found["a", 0] == found["a", 1] == pytest.approx((0.5 + 0.8) / 2)
    assert found["f", 1] == pytest.approx((0.46 / 0.8 + 0.8) / 2)


def test_the_held_out_loss_stops_each_training_by_itself() -> None:
    found = {FIXED[0]: rows(0.6, {"b": 0.1}), FIXED[1]: rows(0.7, {"c": 0.2})}
    chosen = least_loss(found, FIXED)
    assert chosen["b", 0] == FIXED[0]
    assert chosen["c", 1] == FIXED[1]


def test_the_page_tells_what_too_many_steps_do() -> None:
    plain, selected = excessive(Arm("400 steps", {"steps": 400}))
    assert (plain.settings, selected.settings) == ({"steps": 1600}, {"steps": 1600, "select": True})
    page = long_part({plain.name: rows(0.5), selected.name: rows(0.6)})
    (told,) = [line.split("|")[2:-1] for line in page.splitlines() if line.startswith("| difference |")]
    assert [each.split(", ")[-1].strip() for each in told] == ["better", "better", *["no difference shown"] * 4]
    assert "`--select of 1600 steps` ships a step from 100 to 100, 100 in the mean; looking takes 9 s of a run." in page


def test_the_page_tells_what_is_better_than_what() -> None:
    found = {FIXED[0]: rows(0.6), FIXED[1]: rows(0.5), SELECT.name: rows(0.6)}
    lines = {
        line.split("|")[1].strip(): line
        for line in write_up(found, FIXED, FIXED[1], "six").splitlines()
        if line.startswith("|")
    }
    assert "better" in lines["--select over 200 steps"]
    gains = [line for line in write_up(found, FIXED, FIXED[1], "six").splitlines() if "--select over 200" in line]
    assert [line.count("|") for line in gains] == [2 + 1 + len(SHOWN), 4]
    assert "no difference shown" in lines["--select over 100 steps"]
    assert set(lines) >= {f"{selection.HELD_OUT} over 200 steps"}
