"""From rows to figures: means with 95 % intervals, paired comparisons of runs, corrections for several of them.

A figure is the mean over subjects of the mean over prompts of the mean over pictures. Its interval comes from a
bootstrap of the highest level that has enough units; whatever lies under a drawn unit comes along with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from dreambooth.errors import UserError

Values = npt.NDArray[np.float64]
Names = npt.NDArray[Any]
Level = Literal["subjects", "prompts", "pictures"]

CONFIDENCE = 0.95
RESAMPLES = 5000
LEAST_FREEDOM = 4
"""A bootstrap of fewer units (5 in one stratum) cannot reach as far as the 95 % interval of so small a sample does."""
_EXACT = 12
"""Up to so many units all 2^n sign flips are counted."""
_FLAT = 1e-12
"""A smaller range between units is rounding: nothing varied."""


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval.

    Attributes:
        value: The mean; None where there was nothing to average.
        low: Lower bound; None where it cannot be known: too few units, or none differed from another.
        high: Upper bound, or None.
        n: Rows that were averaged.
        over: What the interval speaks of: other subjects, other prompts for these subjects, or other pictures for
            these prompts. None where there is no interval.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    over: Level | None = None

    def text(self, sign: str = "") -> str:
        """Return "0.512 (0.498 to 0.526)", the value alone without an interval, nothing without a value.

        Args:
            sign: "+" to show the sign of what is positive too.
        """
        if self.value is None:
            return ""
        bounds = "" if self.low is None else f" ({self.low:{sign}.3f} to {self.high:{sign}.3f})"
        return f"{self.value:{sign}.3f}{bounds}"

    def as_json(self) -> dict[str, float | int | None]:
        """Return value, low, high and n."""
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n}


@dataclass(frozen=True)
class Scores:
    """Rows of one score with what each was drawn from. Prompts belong to their subject.

    Attributes:
        value_N: The rows; NaN where a score has no value (no second photo, no second picture): these are left out.
        subject_N: Subject of each.
        prompt_N: Prompt of each.
        seed_N: Seed of each.
        kind_N: Kind of each prompt: recontext, accessory, property.
        pairs: Whether a row is a mean over pairs with the other rows of its prompt, as in DIV and the oracle. Such rows
            share their pairs, so that they differ less than the mean is uncertain.
    """

    value_N: Values
    subject_N: Names
    prompt_N: Names
    seed_N: Names
    kind_N: Names
    pairs: bool = False

    def __post_init__(self) -> None:
        """Refuse columns of different lengths."""
        lengths = {len(column) for column in self._columns.values()}
        if len(lengths) != 1:
            raise ValueError(f"the columns of the scores have different lengths: {sorted(lengths)}")

    def at(self, rows: npt.NDArray[Any]) -> Scores:
        """Return the chosen rows, by index or by mask."""
        return replace(self, **{name: column[rows] for name, column in self._columns.items()})

    @property
    def _columns(self) -> dict[str, Any]:
        return {name: column for name, column in vars(self).items() if name != "pairs"}


def joined(parts: Sequence[Scores]) -> Scores:
    """Return the rows of several subjects, or of several trainings, as one."""
    columns: dict[str, Any] = {
        name: np.concatenate([each._columns[name] for each in parts]) for name in parts[0]._columns
    }
    return replace(parts[0], **columns)


@dataclass(frozen=True)
class Comparison:
    """A run against another on the same subjects, prompts and seeds.

    Attributes:
        difference: Mean of the first minus mean of the second.
        p: Two-sided p-value of a sign-flip permutation test of the units that the interval speaks of; None where there
            is no interval for want of units. With n units it cannot be under 2 / 2^n.
    """

    difference: Estimate
    p: float | None


@dataclass(frozen=True)
class _Stratum:
    """Units that may stand for one another, and the weight of each in the figure."""

    unit_U: Values
    weight: float


_Tree = list[list[Values]]
"""The rows of each prompt of each subject."""


def estimate(
    scores: Scores, over: Level | None = None, resamples: int = RESAMPLES, seed: int = 0, among: int = 1
) -> Estimate:
    """Return the mean of rows with its bootstrap interval.

    Only one level is resampled: resampling pictures within prompts within subjects would count the noise of the lower
    levels twice (Davison and Hinkley 1997, section 3.8). Levels above it stay as they are. Deviations are scaled by
    sqrt(n / (n - 1)) and the percentiles widened from the normal to Student's t, without which intervals of few units
    are too narrow (Hesterberg 2015, section 3.3).

    Args:
        scores: The rows.
        over: The level to resample. Default: the highest with `LEAST_FREEDOM` degrees of freedom.
        resamples: Resamples of the bootstrap.
        seed: Seed of the bootstrap.
        among: Number of intervals that are to hold the truth all together, of which this is one (Bonferroni).
    """
    known = _known(scores)
    if not len(known.value_N):
        return Estimate(None, None, None, 0)
    tree = _tree(known)
    value = _total(_strata(tree, "subjects"))
    level = over or _level(tree)
    strata = _strata(tree, level) if level else []
    if _freedom(strata) < LEAST_FREEDOM or _flat(strata):
        return Estimate(value, None, None, len(known.value_N))
    low, high = _interval(strata, resamples, seed, among)
    return Estimate(value, value + low, value + high, len(known.value_N), level)


def unpaired(one_N: Values, two_M: Values, among: int = 1) -> Estimate:
    """Return the mean of some values minus the mean of others, none of which belongs to one of the first.

    The interval speaks of other values of both groups, each with its own spread; there is none where a group has a
    single value, whose spread nobody knows.

    Args:
        one_N: The first group.
        two_M: The second.
        among: As in `estimate`.
    """
    groups = np.repeat([0, 1], [len(one_N), len(two_M)])
    value_N = np.concatenate([2 * one_N, -2 * two_M])  # the figure is the mean of the two groups' means
    names = np.zeros(len(groups), int)
    found = estimate(Scores(value_N, names, groups, np.arange(len(groups)), names), "pictures", among=among)
    return found if min(len(one_N), len(two_M)) > 1 else replace(found, low=None, high=None, over=None)


def by(scores: Scores, column: Literal["subject", "prompt", "kind"]) -> dict[str, Estimate]:
    """Return an estimate for each subject, prompt or kind of prompt, in order of its first row."""
    names_N = getattr(scores, f"{column}_N")
    return {str(name): estimate(scores.at(names_N == name)) for name in dict.fromkeys(names_N.tolist())}


def compare(one: Scores, two: Scores, over: Level | None = None, seed: int = 0) -> Comparison:
    """Compare two runs on the same pictures: mean difference, its interval, and a sign-flip permutation test.

    The test asks whether the sign of each unit's difference (a subject's, or a prompt's where there are few subjects)
    could as well be the other. All flips are counted up to 12 units, else 10,000 drawn ones.

    Args:
        one: Rows of the first run.
        two: Rows of the second, in any order.
        over: The level whose units are resampled and flipped, see `estimate`.
        seed: Seed of both draws.

    Raises:
        UserError: The runs do not have the same subjects, prompts and seeds.
    """
    one, two = _ordered(one), _ordered(two)
    _require_same(one, two)
    differences = _known(replace(one, value_N=one.value_N - two.value_N))
    found = estimate(differences, over, seed=seed)
    tree = _tree(differences)
    level = over or _level(tree)
    return Comparison(found, _sign_flip(_strata(tree, level), seed) if level and found.n else None)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return p-values corrected for their number (Holm 1979): the chance of any false finding stays under the level."""
    corrected, largest = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[name]))
        corrected[name] = largest
    return {name: corrected[name] for name in p_values}


def _ordered(scores: Scores) -> Scores:
    """The rows in an order of their own, so that the order they came in changes no bit."""
    return scores.at(np.lexsort((scores.value_N, scores.seed_N, scores.prompt_N, scores.subject_N)))


def _known(scores: Scores) -> Scores:
    return _ordered(scores.at(~np.isnan(scores.value_N)))


def _tree(scores: Scores) -> _Tree:
    subjects = [scores.at(scores.subject_N == name) for name in np.unique(scores.subject_N)]
    tree = [[subject.value_N[subject.prompt_N == name] for name in np.unique(subject.prompt_N)] for subject in subjects]
    return [[_pseudo_values(row_N) for row_N in subject] for subject in tree] if scores.pairs else tree


def _pseudo_values(row_N: Values) -> Values:
    """The jackknife's pseudo-values of a mean over all pairs: the same mean, and its true spread (Arvesen 1969)."""
    count = len(row_N)
    if count < 3:
        return row_N
    mean = row_N.mean()
    return np.asarray(mean + 2 * (count - 1) / (count - 2) * (row_N - mean))


def _strata(tree: _Tree, level: Level) -> list[_Stratum]:
    """The units of a level in the groups within which they may stand for one another. Weights of all units sum to 1."""
    prompts = [np.array([picture_N.mean() for picture_N in subject]) for subject in tree]
    if level == "subjects":
        return [_Stratum(np.array([unit_U.mean() for unit_U in prompts]), 1 / len(tree))]
    if level == "prompts":
        return [_Stratum(unit_U, 1 / (len(tree) * len(unit_U))) for unit_U in prompts]
    return [_Stratum(unit_U, 1 / (len(tree) * len(subject) * len(unit_U))) for subject in tree for unit_U in subject]


def _total(strata: list[_Stratum]) -> float:
    return float(sum(stratum.weight * stratum.unit_U.sum() for stratum in strata))


def _freedom(strata: list[_Stratum]) -> int:
    return sum(len(stratum.unit_U) - 1 for stratum in strata)


def _flat(strata: list[_Stratum]) -> bool:
    return all(np.ptp(stratum.unit_U) < _FLAT for stratum in strata)


def _level(tree: _Tree) -> Level | None:
    """The highest level with units enough to resample."""
    levels: tuple[Level, ...] = get_args(Level)
    return next((level for level in levels if _freedom(_strata(tree, level)) >= LEAST_FREEDOM), None)


def _interval(strata: list[_Stratum], resamples: int, seed: int, among: int) -> tuple[float, float]:
    """Lower and upper bound of the figure's error."""
    rng = np.random.default_rng(seed)
    resamples *= among  # the bounds lie farther out, where fewer of them fall
    error_B = np.zeros(resamples)
    for stratum in strata:
        count = len(stratum.unit_U)
        if count > 1:
            deviation_U = (stratum.unit_U - stratum.unit_U.mean()) * math.sqrt(count / (count - 1))
            drawn_BU = rng.integers(count, size=(resamples, count))
            error_B += stratum.weight * deviation_U[drawn_BU].sum(axis=1)
    tail = _normal_tail(_student(_freedom(strata), 1 - (1 - CONFIDENCE) / among))
    low, high = np.quantile(error_B, [tail, 1 - tail])
    return float(low), float(high)


@cache
def _student(freedom: int, confidence: float) -> float:
    """Student's t of the upper bound. Its angle, tan(angle) = t / sqrt(freedom), has the density cos^(freedom - 1)."""
    angle = np.linspace(-np.pi / 2, np.pi / 2, 200_001)
    share = np.cumsum(np.clip(np.cos(angle), 0, None) ** (freedom - 1))
    return math.sqrt(freedom) * math.tan(np.interp((1 + confidence) / 2, share / share[-1], angle))


def _normal_tail(score: float) -> float:
    return math.erfc(score / math.sqrt(2)) / 2


def _sign_flip(strata: list[_Stratum], seed: int) -> float:
    """Share of sign flips of the units that move the figure at least as far from 0."""
    part_U = np.concatenate([stratum.weight * stratum.unit_U for stratum in strata])
    if len(part_U) <= _EXACT:
        sign_BU = np.array(list(product((1.0, -1.0), repeat=len(part_U))))
        return float(np.mean(_as_far(sign_BU @ part_U, part_U)))
    sign_BU = np.random.default_rng(seed).choice((1.0, -1.0), size=(10_000, len(part_U)))
    return float((1 + _as_far(sign_BU @ part_U, part_U).sum()) / (1 + len(sign_BU)))


def _as_far(flipped_B: Values, part_U: Values) -> npt.NDArray[np.bool_]:
    return np.asarray(np.abs(flipped_B) >= abs(part_U.sum()) - _FLAT)


def _require_same(one: Scores, two: Scores) -> None:
    keys = [list(zip(run.subject_N, run.prompt_N, run.seed_N, strict=True)) for run in (one, two)]
    for side in keys:
        if len(set(side)) != len(side):
            twice = next(key for key in side if side.count(key) > 1)
            raise UserError(f"a run has two scores for {_named(twice)}: give each picture one row")
    if keys[0] != keys[1]:
        lone = sorted(set(keys[0]) ^ set(keys[1]), key=str)
        mend = "evaluate both on the same prompts and seeds"
        raise UserError(f"the runs differ in {len(lone)} pictures, such as {_named(lone[0])}: {mend}")


def _named(key: tuple[Any, ...]) -> str:
    return f"subject {key[0]}, prompt '{key[1]}', seed {key[2]}"
