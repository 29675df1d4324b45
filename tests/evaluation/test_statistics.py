"""Intervals that cover, tests that see, and nothing said that cannot be known."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

from dreambooth.errors import UserError
from dreambooth.evaluation.statistics import (
    Level,
    Scores,
    _pseudo_values,
    _strata,
    _total,
    _tree,
    by,
    compare,
    estimate,
    holm,
    unpaired,
)


def scores(values: np.ndarray) -> Scores:
    """Rows of an array (subjects, prompts, pictures)."""
    subjects, prompts, seeds = np.indices(values.shape).reshape(3, -1)
    kinds = np.where(prompts < values.shape[1] // 2, "recontext", "property")
    return Scores(values.ravel(), np.char.add("s", subjects.astype(str)), prompts, seeds, kinds)


def drawn(rng: np.random.Generator, shape: tuple[int, int, int], spread: tuple[float, float, float]) -> np.ndarray:
    """Values with a spread between subjects, prompts and pictures, about 0."""
    subject, prompt, picture = spread
    subjects, prompts, _ = shape
    return (
        subject * rng.normal(size=(subjects, 1, 1))
        + prompt * rng.normal(size=(subjects, prompts, 1))
        + picture * rng.normal(size=shape)
    )


def covered(shape: tuple[int, int, int], spread: tuple[float, float, float], over: Level, rounds: int = 300) -> float:
    """Share of 95 % intervals that hold the truth, 0."""
    rng, hits = np.random.default_rng(0), 0
    for _ in range(rounds):
        found = estimate(scores(drawn(rng, shape, spread)), resamples=1000)
        assert found.over == over
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= 0 <= found.high
    return hits / rounds


@pytest.mark.parametrize(
    ("shape", "spread", "over"),
    [
        ((5, 3, 2), (1, 0.5, 0.5), "subjects"),
        ((6, 4, 3), (0, 0, 1), "subjects"),
        ((30, 2, 1), (1, 1, 1), "subjects"),
        ((1, 10, 2), (0, 1, 1), "prompts"),
        ((1, 25, 4), (0, 0, 1), "prompts"),
        ((3, 8, 2), (0, 1, 0.5), "prompts"),
        ((1, 1, 8), (0, 0, 1), "pictures"),
        ((1, 2, 4), (0, 0, 1), "pictures"),
    ],
)
def test_intervals_hold_the_truth_as_often_as_they_say(
    shape: tuple[int, int, int], spread: tuple[float, float, float], over: Level
) -> None:
    # 300 rounds: a standard error of 1.3 points.
    assert 0.89 < covered(shape, spread, over) < 0.99


def test_intervals_of_means_over_pairs_hold_the_truth_too() -> None:
    rng, hits, narrow = np.random.default_rng(0), 0, 0
    for _ in range(300):
        rows = rng.normal(size=(12, 1)) + 3
        product = rows @ rows.T
        values = (product.sum(axis=1) - product.diagonal()) / 11
        table = scores(values.reshape(1, 1, 12))
        found, blind = estimate(replace(table, pairs=True)), estimate(table)
        assert found.value == pytest.approx(blind.value)
        hits += found.low <= 9 <= found.high  # type: ignore[operator]
        narrow += blind.low <= 9 <= blind.high  # type: ignore[operator]
    assert 0.89 < hits / 300 < 0.99
    assert narrow / 300 < 0.8


def test_pseudo_values_are_those_of_leaving_one_out() -> None:
    product = np.random.default_rng(0).normal(size=(6, 6))
    product = product + product.T
    np.fill_diagonal(product, 0)

    def mean_of_pairs(keep: list[int]) -> float:
        return float(product[np.ix_(keep, keep)].sum() / (len(keep) * (len(keep) - 1)))

    everything = list(range(6))
    expected = [
        6 * mean_of_pairs(everything) - 5 * mean_of_pairs([row for row in everything if row != out])
        for out in everything
    ]
    np.testing.assert_allclose(_pseudo_values(product.sum(axis=1) / 5), expected)


def test_the_mean_is_that_of_plain_loops_when_counts_differ() -> None:
    rows = [("a", 0, 0.1), ("a", 0, 0.2), ("a", 1, 0.9), ("b", 0, 0.5)]
    value, subject, prompt = (np.array(column) for column in zip(*[(v, s, p) for s, p, v in rows], strict=True))
    found = estimate(Scores(value, subject, prompt, np.arange(4), np.full(4, "own")))
    assert found.value == pytest.approx(((0.15 + 0.9) / 2 + 0.5) / 2)
    assert found.n == 4


def test_every_level_weighs_to_the_same_mean_when_counts_differ() -> None:
    values = drawn(np.random.default_rng(0), (3, 6, 4), (1, 1, 1))
    table = scores(values)
    uneven = table.at((table.subject_N != "s1") | (table.prompt_N < 2) & ((table.prompt_N > 0) | (table.seed_N > 1)))
    expected = np.mean([values[0].mean(), (values[1, 0, 2:].mean() + values[1, 1].mean()) / 2, values[2].mean()])
    levels: tuple[Level, ...] = ("subjects", "prompts", "pictures")
    for level in levels:
        assert _total(_strata(_tree(uneven), level)) == pytest.approx(expected)


def test_the_order_of_the_rows_changes_no_bit() -> None:
    rng = np.random.default_rng(0)
    for shape in ((7, 4, 3), (1, 12, 3), (1, 1, 20), (2, 3, 4)):
        table = scores(drawn(rng, shape, (1, 1, 1)))
        assert estimate(table) == estimate(table.at(rng.permutation(len(table.value_N))))


def test_intervals_narrow_with_the_root_of_the_units_and_move_with_the_values() -> None:
    rng = np.random.default_rng(0)
    few, many = (estimate(scores(drawn(rng, (count, 2, 2), (1, 0, 0)))) for count in (20, 320))
    ratio = (few.high - few.low) / (many.high - many.low)  # type: ignore[operator]
    assert 3 < ratio < 5.5
    values = drawn(rng, (8, 3, 2), (1, 1, 1))
    one, two = estimate(scores(values)), estimate(scores(3 * values + 1))
    np.testing.assert_allclose([two.value, two.low, two.high], 3 * np.array([one.value, one.low, one.high]) + 1)


def test_the_level_is_the_highest_with_units_enough() -> None:
    rng = np.random.default_rng(0)
    expected = {(5, 2, 2): "subjects", (4, 2, 2): "prompts", (2, 2, 4): "pictures", (1, 5, 1): "prompts"}
    for shape, level in expected.items():
        assert estimate(scores(drawn(rng, shape, (1, 1, 1)))).over == level
    table = scores(drawn(rng, (5, 10, 4), (5, 0.1, 0.1)))
    wide, narrow = estimate(table), estimate(table, over="prompts")
    assert wide.value == narrow.value
    assert wide.high - wide.low > 5 * (narrow.high - narrow.low)  # type: ignore[operator]


def test_an_interval_that_cannot_be_known_is_none() -> None:
    one_row, four_pictures = scores(np.full((1, 1, 1), 0.7)), scores(np.arange(4.0).reshape(1, 1, 4))
    assert estimate(one_row).as_json() == {"value": 0.7, "low": None, "high": None, "n": 1}
    assert estimate(four_pictures).as_json() == {"value": 1.5, "low": None, "high": None, "n": 4}
    assert estimate(four_pictures, over="subjects").low is None
    nothing_varies = estimate(scores(np.full((6, 5, 4), 0.3)))
    assert nothing_varies.value == pytest.approx(0.3)
    assert nothing_varies.low is None
    assert nothing_varies.over is None


def test_rows_without_a_value_are_left_out_and_not_counted() -> None:
    values = drawn(np.random.default_rng(0), (6, 4, 2), (1, 1, 1))
    values[2] = np.nan
    found = estimate(scores(values))
    assert found == estimate(scores(np.delete(values, 2, axis=0)))
    assert found.n == 40
    assert estimate(scores(np.full((6, 4, 2), np.nan))).as_json() == {"value": None, "low": None, "high": None, "n": 0}


def test_groups_are_estimates_of_their_rows() -> None:
    table = scores(drawn(np.random.default_rng(0), (6, 4, 2), (1, 1, 1)))
    kinds = by(table, "kind")
    assert list(kinds) == ["recontext", "property"]
    assert kinds["property"] == estimate(table.at(table.prompt_N >= 2))
    assert np.mean([kind.value for kind in kinds.values()]) == pytest.approx(estimate(table).value)
    assert [found.n for found in by(table, "subject").values()] == [8] * 6
    assert list(by(table, "prompt")) == ["0", "1", "2", "3"]


def test_three_thousand_rows_take_no_time() -> None:
    table = scores(drawn(np.random.default_rng(0), (30, 25, 4), (1, 1, 1)))
    start = time.perf_counter()
    estimate(table, resamples=2000)
    estimate(table, over="pictures", resamples=2000)
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize(("sizes", "spreads"), [((12, 4), (1, 1)), ((12, 4), (0.5, 1)), ((6, 6), (1, 1))])
def test_the_difference_of_two_groups_holds_the_truth(sizes: tuple[int, int], spreads: tuple[float, float]) -> None:
    rng, hits = np.random.default_rng(0), 0
    for _ in range(300):
        one, two = (spread * rng.normal(size=size) for spread, size in zip(spreads, sizes, strict=True))
        found = unpaired(one, two)
        assert found.value == pytest.approx(one.mean() - two.mean())
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= 0 <= found.high
    assert 0.86 < hits / 300 < 0.99


def test_a_group_of_one_has_no_spread_to_know() -> None:
    found = unpaired(np.arange(8.0), np.array([1.0]))
    assert (found.value, found.low, found.high, found.over) == (2.5, None, None, None)


def test_intervals_among_others_hold_the_truth_all_together() -> None:
    rng, hits = np.random.default_rng(0), 0
    for _ in range(200):
        found = [estimate(scores(rng.normal(size=(1, 1, 12))), resamples=1000, among=10) for _ in range(10)]
        hits += all(each.low is not None and each.low <= 0 <= (each.high or 0) for each in found)
    assert hits / 200 > 0.89


def test_a_paired_comparison_sees_what_two_intervals_hide() -> None:
    rng = np.random.default_rng(0)
    base = drawn(rng, (1, 25, 4), (0, 0.2, 0.02))
    better = base + 0.02 + 0.02 * rng.normal(size=base.shape)
    one, two = estimate(scores(better)), estimate(scores(base))
    assert two.high > one.low  # type: ignore[operator]
    found = compare(scores(better), scores(base).at(rng.permutation(100)))
    assert found.difference.value == pytest.approx(float((better - base).mean()))
    assert found.difference.low > 0  # type: ignore[operator]
    assert 0 < found.p < 0.001  # type: ignore[operator]
    back = compare(scores(base), scores(better))
    assert back.difference.value == pytest.approx(-found.difference.value)  # type: ignore[operator]


@pytest.mark.parametrize("shape", [(8, 3, 2), (1, 25, 2)], ids=["all flips", "drawn flips"])
def test_p_is_uniform_when_the_runs_are_alike(shape: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(0)
    spread = (float(shape[0] > 1), 1, 1)
    found = [compare(scores(drawn(rng, shape, spread)), scores(np.zeros(shape))).p for _ in range(200)]
    assert 0.02 <= np.mean(np.array(found) <= 0.05) <= 0.09
    assert 0.42 < np.mean(found) < 0.58


def test_the_test_counts_all_flips_of_the_subjects() -> None:
    difference = np.array([3.0, 1, 2, 5, 4, -1]).reshape(6, 1, 1)
    signs = np.array(np.meshgrid(*[[1, -1]] * 6)).reshape(6, -1).T
    expected = np.mean(np.abs(signs @ difference.ravel()) >= difference.sum() - 1e-9)
    assert compare(scores(difference), scores(np.zeros((6, 1, 1)))).p == pytest.approx(expected)
    all_up = compare(scores(np.arange(1.0, 7).reshape(6, 1, 1)), scores(np.zeros((6, 1, 1))))
    assert all_up.p == 2 / 2**6


def test_a_run_does_not_differ_from_itself() -> None:
    table = scores(drawn(np.random.default_rng(0), (6, 4, 2), (1, 1, 1)))
    found = compare(table, table)
    assert found.p == 1
    assert found.difference.as_json() == {"value": 0, "low": None, "high": None, "n": 48}
    assert compare(scores(np.ones((1, 1, 2))), scores(np.zeros((1, 1, 2)))).p is None


def test_runs_that_do_not_match_are_refused_with_what_differs() -> None:
    table = scores(np.ones((2, 3, 2)))
    with pytest.raises(UserError, match=r"1 pictures, such as subject s1, prompt '2', seed 1"):
        compare(table, table.at(np.arange(11)))
    with pytest.raises(UserError, match=r"two scores for subject s0, prompt '0', seed 0"):
        compare(table.at(np.array([0, 0, 1])), table.at(np.arange(3)))
    with pytest.raises(ValueError, match="different lengths"):
        Scores(np.ones(3), np.ones(3), np.ones(3), np.ones(2), np.ones(3))


def test_holm_by_its_definition() -> None:
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert found == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
    assert list(found) == ["a", "b", "c", "d"]
    assert holm({"a": 0.6, "b": 0.7}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}
