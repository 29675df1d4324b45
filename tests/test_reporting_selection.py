"""The section about when to stop says what run.json says, in the right places."""

from __future__ import annotations

import itertools
from statistics import mean
from typing import Any

import pytest

from dreambooth.reporting_selection import LABEL_WIDTH, Track, selection_story


def look(step: int, identity: float, fidelity: float) -> dict[str, Any]:
    spread = (-0.1, 0.1, 0.05, -0.05, 0.02, -0.02)
    rows = {"identity": [identity + each for each in spread], "fidelity": [fidelity + each for each in spread]}
    return {"step": step, **rows, "copies": [False] * 6, "drift": [0.1, 0.2]}


def selection() -> dict[str, Any]:
    looks = [look(40, 0.3, 0.4), look(80, 0.5, 0.38), look(120, 0.6, 0.2)]
    return {"step": 80, "trained": 120, "reason": "so", "frozen": look(0, 0.1, 0.42), "looks": looks, "seconds": 3.0}


def test_a_run_that_did_not_select_has_no_such_section() -> None:
    assert selection_story({}) == {}


def test_marks_stand_where_their_figures_are() -> None:
    story = selection_story(selection())
    assert story["drawn"] == 4 * (6 + 2)
    assert story["tried"] == {"strength": [], "guidance": []}
    likeness, fidelity, copies, _ = story["tracks"]
    heights = [y for _, y, _, _ in likeness.marks]
    assert heights == sorted(heights, reverse=True)
    assert likeness.frozen > heights[0]
    assert fidelity.frozen < min(y for _, y, _, _ in fidelity.marks)
    assert {y for _, y, _, _ in copies.marks} == {copies.frozen}  # none
    for track in (likeness, fidelity):
        for x, y, low, high in track.marks:
            assert Track.LEFT <= x <= Track.RIGHT
            assert Track.TOP <= high < y < low <= Track.BOTTOM
        assert track.chosen == track.marks[1][0]
    values = [mean(each["identity"]) for each in selection()["looks"]]
    scale = (heights[0] - heights[1]) / (values[1] - values[0])
    assert (heights[1] - heights[2]) / (values[2] - values[1]) == pytest.approx(scale)


def test_what_was_tried_is_told_with_its_intervals() -> None:
    tried = [{"value": value, **look(120, value / 2, 0.4), "copies": [True] + [False] * 5} for value in (0.8, 1.0)]
    story = selection_story({**selection(), "strength": 1.0, "strength_looks": tried})
    (weaker, usual), nothing = story["tried"]["strength"], story["tried"]["guidance"]
    assert (weaker[0], usual[0], nothing) == (0.8, 1.0, [])
    assert weaker[1].startswith("0.4")
    assert usual[3] == "1 of 6"


def test_labels_of_close_looks_do_not_lie_upon_one_another() -> None:
    steps = [114, 158, 219, 302, 418, 578, 800]
    story = selection_story({**selection(), "step": 800, "looks": [look(step, 0.3, 0.4) for step in steps]})
    track = story["tracks"][0]
    places = sorted(place for place, _ in track.x_ticks)
    assert len(track.marks) == len(steps)
    assert min(right - left for left, right in itertools.pairwise(places)) >= LABEL_WIDTH
    assert {"800", "578"} <= {label for _, label in track.x_ticks} < set(map(str, steps))
