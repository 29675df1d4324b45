from __future__ import annotations

from itertools import pairwise

import pytest

from dreambooth.charts import LINE, Plot, bar, plot, ticks
from dreambooth.pages import Score


def test_a_bar_keeps_proportions_between_its_marks():
    drawn = bar(Score(0.7, 0.6, 0.75), {"floor": 0.4, "oracle": 0.8})
    assert drawn is not None
    floor, oracle = drawn.marks
    assert (floor.label, floor.anchor, oracle.label, oracle.anchor) == ("floor", "start", "oracle", "end")
    length = oracle.place - floor.place
    assert (drawn.value - floor.place) / length == pytest.approx(0.75)
    assert (drawn.start - floor.place) / length == pytest.approx(0.5)
    assert drawn.width / length == pytest.approx(0.375)


def test_a_bar_holds_what_lies_beyond_its_marks_and_orders_them_by_place():
    drawn = bar(Score(1.2, 1.1, 1.3), {"high": 1.0, "low": 0.0})
    assert drawn is not None
    assert [mark.label for mark in drawn.marks] == ["low", "high"]
    assert drawn.marks[1].place < drawn.start < drawn.value < drawn.start + drawn.width <= 100


def test_a_score_without_an_interval_has_a_bar_without_width_and_no_score_has_none():
    drawn = bar(Score(0.5), {"0": 0.0, "1": 1.0})
    assert drawn is not None
    assert drawn.width == 0
    assert bar(Score(), {"0": 0.0, "1": 1.0}) is None


def test_ticks_between_bounds_are_round_and_inside():
    assert ticks(0.88, 0.38) == pytest.approx([0.4, 0.5, 0.6, 0.7, 0.8])
    assert ticks(0.05, -0.05) == pytest.approx([-0.04, -0.02, 0.0, 0.02, 0.04])
    assert ticks(-0.1, -0.6) == pytest.approx([-0.6, -0.5, -0.4, -0.3, -0.2, -0.1])


RUNS = [("a", Score(0.5, 0.4, 0.6), Score(0.30, 0.29, 0.31)), ("b", Score(0.7, 0.65, 0.72), Score(0.27, 0.26, 0.29))]


def test_a_plot_is_linear_with_more_to_the_right_and_to_the_top():
    drawn = plot(RUNS, [("floor", Score(0.4)), ("oracle", Score(0.8))], [("untrained", Score(0.32))])
    assert drawn is not None
    a, b = drawn.points
    floor, oracle = (place for place, _ in drawn.upright)
    assert (a.x - floor) / (oracle - floor) == pytest.approx(0.25)
    assert (b.x - floor) / (oracle - floor) == pytest.approx(0.75)
    assert a.x_arm[0] == pytest.approx(floor)
    assert b.y > a.y > drawn.level[0][0], "the view box counts downwards"
    assert (b.y - a.y) / (a.y - drawn.level[0][0]) == pytest.approx(1.5)
    assert a.y_arm[0] > a.y > a.y_arm[1]
    for point in drawn.points:
        assert Plot.LEFT < min(point.x_arm) < max(point.x_arm) < Plot.RIGHT
        assert Plot.TOP < min(point.y_arm) < max(point.y_arm) < Plot.BOTTOM


def test_labels_of_runs_that_score_alike_do_not_meet():
    drawn = plot([(str(number), Score(0.5), Score(0.3)) for number in range(4)], [], [])
    assert drawn is not None
    heights = sorted(point.text_y for point in drawn.points)
    assert all(below - above >= LINE for above, below in pairwise(heights))


def test_runs_without_both_scores_are_not_plotted():
    assert plot([("a", Score(0.5), Score())], [], []) is None
    drawn = plot([*RUNS, ("c", Score(), Score(0.3))], [("floor", Score())], [])
    assert drawn is not None
    assert [point.label for point in drawn.points] == ["a", "b"]
    assert drawn.upright == []
