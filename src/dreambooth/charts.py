"""Charts as geometry for inline SVG: loss curves, bars of scores, and likeness against prompt fidelity."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from dreambooth.pages import Json, Score

RAW_POINTS = 600
"""The most steps that a curve shows singly; a longer run is thinned out evenly, which keeps its roughness true."""
SMOOTH_POINTS = 150
LABEL_WIDTH = 130
"""About the width of a run's label in a plot, in units of its view box."""
LINE = 14


@dataclass(frozen=True)
class Frame:
    """The axes of a chart: steps from 0 to `end`, loss from 0 to `top`, in the units of the SVG's view box."""

    WIDTH: ClassVar = 440
    HEIGHT: ClassVar = 240
    LEFT: ClassVar = 44
    RIGHT: ClassVar = 430
    TOP: ClassVar = 12
    BOTTOM: ClassVar = 200
    end: float
    top: float

    def x(self, step: Any) -> Any:
        """Abscissa of a step, or of many."""
        return self.LEFT + (self.RIGHT - self.LEFT) * step / self.end

    def y(self, loss: Any) -> Any:
        """Ordinate of a loss, or of many; what lies above the frame is drawn on its upper edge."""
        return self.BOTTOM - (self.BOTTOM - self.TOP) * np.minimum(loss, self.top) / self.top

    def points(self, steps: np.ndarray, losses: np.ndarray) -> str:
        """A polyline's points."""
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(self.x(steps), self.y(losses), strict=True))


@dataclass(frozen=True)
class Chart:
    """A loss curve: single steps (`raw`) and the running mean of all (`smooth`); ticks are (place, label)."""

    part: str
    raw: str
    smooth: str
    window: int
    first: float
    last: float
    frame: Frame
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    cut: bool
    """Whether points of `raw` lie above the frame."""


def loss_charts(steps: list[Json]) -> dict[str, Chart]:
    """Curve the subject part and the prior part, where the run has them, on common axes."""
    series = {part: _series(steps, part) for part in ("subject", "prior")}
    series = {part: (numbers, losses) for part, (numbers, losses) in series.items() if len(losses) > 1}
    if not series:
        return {}
    # A step that drew little noise can cost many times the mean; a few of those would flatten the rest.
    top = 1.05 * float(np.percentile(np.concatenate([losses for _, losses in series.values()]), 98))
    frame = Frame(end=max(numbers[-1] for numbers, _ in series.values()), top=top if top > 0 else 1.0)
    return {part: _chart(part, frame, numbers, losses) for part, (numbers, losses) in series.items()}


def _series(steps: list[Json], part: str) -> tuple[np.ndarray, np.ndarray]:
    """The step numbers and losses of one part, where the loss is a finite number."""
    pairs = [(step["step"], step[part]) for step in steps if step.get(part) is not None]
    numbers, losses = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
    finite = np.isfinite(losses)
    return numbers[finite], losses[finite]


def _chart(part: str, frame: Frame, steps: np.ndarray, losses: np.ndarray) -> Chart:
    window = min(len(losses), max(9, len(losses) // 10))
    raw, centres = _spread(len(losses), RAW_POINTS), _spread(len(losses), SMOOTH_POINTS)
    smooth = _running_mean(losses, centres, window)
    return Chart(
        part=part,
        raw=frame.points(steps[raw], losses[raw]),
        smooth=frame.points(steps[centres], smooth),
        window=window,
        first=float(smooth[0]),
        last=float(smooth[-1]),
        frame=frame,
        x_ticks=[(frame.x(tick), f"{tick:,.0f}") for tick in ticks(frame.end) if tick == round(tick)],
        y_ticks=[(frame.y(tick), f"{tick:g}") for tick in ticks(frame.top)],
        cut=bool((losses[raw] > frame.top).any()),
    )


def _spread(length: int, count: int) -> np.ndarray:
    """At most `count` indices of a sequence, evenly spread, with the first and the last."""
    return np.unique(np.linspace(0, length - 1, count).round().astype(int))


def _running_mean(losses: np.ndarray, centres: np.ndarray, window: int) -> np.ndarray:
    """Mean of the `window` losses around each centre; near an end, of those at that end."""
    total = np.concatenate([[0.0], np.cumsum(losses)])
    start = np.clip(centres - window // 2, 0, len(losses) - window)
    return np.asarray((total[start + window] - total[start]) / window)


def ticks(end: float, start: float = 0.0) -> list[float]:
    """Round numbers from `start` to `end`: a few multiples of 1, 2 or 5 times a power of ten."""
    least = (end - start) / 5 * (1 - 1e-9)
    power = 10.0 ** math.floor(math.log10(least))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least)
    return [index * step for index in range(math.ceil(start / step - 1e-9), math.floor(end / step + 1e-9) + 1)]


@dataclass(frozen=True)
class Mark:
    """A point to compare with on a bar; `place` in percent of its width, `anchor` as SVG sets text."""

    place: float
    label: str
    anchor: str


@dataclass(frozen=True)
class Bar:
    """A score on a line between its marks: where it and its interval lie, in percent of the line's width."""

    value: float
    start: float
    width: float
    marks: list[Mark]


def bar(score: Score, marks: Mapping[str, float]) -> Bar | None:
    """Lay a score out between at least two named marks; None without a score."""
    if score.value is None:
        return None
    low = score.value if score.low is None else score.low
    high = score.value if score.high is None else score.high
    edges = [low, score.value, high, *marks.values()]
    left, length = min(edges), max(edges) - min(edges) or 1.0
    places = {label: 3 + 94 * (place - left) / length for label, place in marks.items()}
    value, start, end = (3 + 94 * (place - left) / length for place in (score.value, low, high))
    order = sorted(places, key=lambda label: places[label])
    anchors = ["start", *["middle"] * (len(order) - 2), "end"]
    return Bar(
        value, start, end - start, [Mark(places[label], label, a) for label, a in zip(order, anchors, strict=True)]
    )


@dataclass(frozen=True)
class Point:
    """A run in the plot: its place, the arms of its cross, and where its label stands, in units of the view box."""

    label: str
    x: float
    y: float
    x_arm: tuple[float, float]
    y_arm: tuple[float, float]
    text_x: float
    text_y: float
    anchor: str


@dataclass(frozen=True)
class Plot:
    """Likeness (x) against prompt fidelity (y), with lines for what bounds them; ticks and lines are (place, label)."""

    WIDTH: ClassVar = 480
    HEIGHT: ClassVar = 360
    LEFT: ClassVar = 52
    RIGHT: ClassVar = 466
    TOP: ClassVar = 26
    BOTTOM: ClassVar = 310
    points: list[Point]
    upright: list[tuple[float, str]]
    level: list[tuple[float, str]]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]


def plot(
    runs: Sequence[tuple[str, Score, Score]], upright: Sequence[tuple[str, Score]], level: Sequence[tuple[str, Score]]
) -> Plot | None:
    """Place runs by (label, x, y), with upright and level lines; None if no run has both scores."""
    runs = [(label, x, y) for label, x, y in runs if x.value is not None and y.value is not None]
    if not runs:
        return None
    x_of = axis([x for _, x, _ in runs] + [line for _, line in upright], Plot.LEFT, Plot.RIGHT)
    y_of = axis([y for _, _, y in runs] + [line for _, line in level], Plot.BOTTOM, Plot.TOP)
    return Plot(
        points=_points(runs, x_of, y_of),
        upright=[(x_of(line.value), name) for name, line in upright if line.value is not None],
        level=[(y_of(line.value), name) for name, line in level if line.value is not None],
        x_ticks=[(x_of(tick), f"{tick:.4g}") for tick in ticks(x_of.end, x_of.start)],
        y_ticks=[(y_of(tick), f"{tick:.4g}") for tick in ticks(y_of.end, y_of.start)],
    )


@dataclass(frozen=True)
class Axis:
    """A linear scale from values to the view box."""

    start: float
    end: float
    near: float
    far: float

    def __call__(self, value: float) -> float:
        """Where a value lies in the view box."""
        return self.near + (self.far - self.near) * (value - self.start) / (self.end - self.start)


def axis(scores: Sequence[Score], near: float, far: float) -> Axis:
    """Hold every value and interval, with a margin of 8 %."""
    edges = [edge for score in scores for edge in (score.value, score.low, score.high) if edge is not None]
    margin = 0.08 * (max(edges) - min(edges)) or 0.05
    return Axis(min(edges) - margin, max(edges) + margin, near, far)


def _points(runs: Sequence[tuple[str, Score, Score]], x_of: Axis, y_of: Axis) -> list[Point]:
    """Place the runs; of labels that would meet, the later one moves down a line."""
    points: list[Point] = []
    for label, score_x, score_y in runs:
        x, x_arm = _cross(score_x, x_of)
        y, y_arm = _cross(score_y, y_of)
        left = x < (Plot.LEFT + Plot.RIGHT) / 2
        text_y = y - 9
        near = [point for point in points if abs(point.x - x) < LABEL_WIDTH]
        while any(abs(point.text_y - text_y) < LINE for point in near):
            text_y += LINE
        points.append(Point(label, x, y, x_arm, y_arm, x + (9 if left else -9), text_y, "start" if left else "end"))
    return points


def _cross(score: Score, axis: Axis) -> tuple[float, tuple[float, float]]:
    place = axis(score.value or 0.0)
    ends = [place if edge is None else axis(edge) for edge in (score.low, score.high)]
    return place, (ends[0], ends[1])
