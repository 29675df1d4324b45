"""The story of a run that was looked at while it trained: two curves, the step, the strength and the guidance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from dreambooth.charts import axis, ticks
from dreambooth.evaluation import statistics
from dreambooth.evaluation.scoring import alone
from dreambooth.pages import Json, Score

LABEL_WIDTH = 34
"""Of a number under the axis, with the space around it."""


@dataclass(frozen=True)
class Track:
    """A score over the steps: a mark with its interval for each look, a level line for the frozen model."""

    WIDTH: ClassVar = 440
    HEIGHT: ClassVar = 240
    LEFT: ClassVar = 48
    RIGHT: ClassVar = 424
    TOP: ClassVar = 14
    BOTTOM: ClassVar = 196
    part: str
    title: str
    line: str
    marks: list[tuple[float, float, float, float]]
    """Place, and the ends of the interval: x, y, low, high."""
    frozen: float
    chosen: float
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]


def selection_story(selection: Json) -> Json:
    """What the page tells of `selection` in run.json; empty where the run did not select."""
    if not selection.get("looks"):
        return {}
    tracks = [
        _track(selection, "identity", "subject", "Likeness to the photos"),
        _track(selection, "fidelity", "prior", "Likeness to the prompts"),
        _track(selection, "copies", "subject", "Share of copies"),
        _track(selection, "drift", "prior", "Likeness of the bare class to the photos"),
    ]
    drawn = sum(len(look["identity"]) + len(look["drift"]) for look in [selection["frozen"], *selection["looks"]])
    tried = {name: [_tried(look) for look in selection.get(f"{name}_looks", [])] for name in ("strength", "guidance")}
    return {**selection, "tracks": tracks, "drawn": drawn, "tried": tried}


def _apart(marks: Sequence[tuple[float, str]]) -> Iterator[tuple[float, str]]:
    """Yield the marks whose labels have room, the last first in line: early looks are close together."""
    place = np.inf
    for mark in reversed(marks):
        if place - mark[0] >= LABEL_WIDTH:
            place = mark[0]
            yield mark


def _tried(look: Json) -> tuple[float, str, str, str]:
    """Value, likeness to the photos and to the prompts with their intervals, and copies."""
    copies = f"{sum(look['copies'])} of {len(look['copies'])}"
    return look["value"], str(_score(look["identity"])), str(_score(look["fidelity"])), copies


def _track(selection: Json, name: str, part: str, title: str) -> Track:
    looks = selection["looks"]
    steps = [look["step"] for look in looks]
    scores = [_score(look[name]) for look in looks]
    frozen = _score(selection["frozen"][name])
    x_of = axis([Score(0), Score(max(steps))], Track.LEFT, Track.RIGHT)
    y_of = axis([*scores, Score(frozen.value)], Track.BOTTOM, Track.TOP)
    places = [(x_of(step), y_of(score.value or 0.0)) for step, score in zip(steps, scores, strict=True)]
    ends = [(y_of(_or(score.low, score)), y_of(_or(score.high, score))) for score in scores]
    return Track(
        part,
        title,
        " ".join(f"{x:.1f},{y:.1f}" for x, y in places),
        [(*place, *end) for place, end in zip(places, ends, strict=True)],
        y_of(frozen.value or 0.0),
        x_of(selection["step"]),
        list(_apart([(x_of(step), f"{step:,}") for step in steps])),
        [(y_of(tick), f"{tick:.4g}") for tick in ticks(y_of.end, y_of.start)],
    )


def _score(values: Any) -> Score:
    return Score.read(statistics.estimate(alone("look", np.array(values, float))).as_json())


def _or(edge: float | None, score: Score) -> float:
    return (score.value or 0.0) if edge is None else edge
