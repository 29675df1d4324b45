"""The study of words as identifiers: one run a word, each change held against the free word's."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dreambooth.evaluation.scoring import Grid
from dreambooth.toybox.study import Rows, Study, merge
from dreambooth.toybox.words import SHOWN, STEPS, TAKEN, WEAKEST, arm, arms, write_up

SUBJECTS = ("a", "b", "c", "d", "e", "f")


def rows(**levels: float) -> Rows:
    """Scores of six subjects, not quite alike."""
    values = dict.fromkeys(SHOWN[1:], 0.3) | {"floor_dino": 0.2, "oracle_dino": 1.0, "ceiling_clip_t": 0.5} | levels
    found = []
    for index, subject in enumerate(SUBJECTS):
        grid = Grid(subject, ("x", "y"), (0, 1))
        found.append({name: grid.scores(np.full(4, level * (1 + 0.02 * index))) for name, level in values.items()})
    return merge(found)


def test_every_word_has_one_run_that_goes_on(tmp_path: Path) -> None:
    study = Study(tmp_path)
    folders = {
        word: {study.trained(arm(word, steps), "spotted_dog", 0) for steps in STEPS} for word in (WEAKEST, "sks")
    }
    assert [len(some) for some in folders.values()] == [1, 1]
    assert folders[WEAKEST] != folders["sks"]
    assert study.recipe(arm("sks", 100), "spotted_dog", 0).subjects[0].identifier == "sks"
    assert len({each.name for each in arms()}) == len(arms()) == (1 + len(TAKEN)) * len(STEPS)


def test_what_a_word_gains_or_loses_is_told_in_the_right_direction() -> None:
    learned = {each.name: rows() for each in arms()}
    learned[arm("red", 100).name] = rows(dino=0.5, copying=0.5)
    lost = {word: {WEAKEST: rows(taken=0.1, answers=0.0), word: rows(taken=0.6, answers=-0.2)} for word in TAKEN}
    page = write_up(learned, lost, "6 subjects")
    cells = next(line for line in page.splitlines() if line.startswith("| red, 100")).split("|")[2:-1]
    told = dict(zip(SHOWN, cells, strict=True))
    assert "better" in told["dino"]
    assert "worse" in told["copying"]
    assert "no difference" in told["truth"]
    assert "| `red` | 0.630 | 0.105 | +0.525" in page
    assert "| -0.210 | 0.000 | -0.210" in page
