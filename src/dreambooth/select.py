"""Which checkpoint to ship, and when to stop: a rule on measurements, with paired tests and no decision on noise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dreambooth.evaluation import statistics
from dreambooth.evaluation.scoring import Grid
from dreambooth.evaluation.statistics import Comparison

Values = npt.NDArray[np.float64]

LOOKS = 7
"""Looks at a run."""
LEVEL = 0.05 / LOOKS
"""Level of every one-sided test: each kind wrongs all looks together in fewer than one run of twenty, but for copying
(`least_copies`)."""
PATIENCE = 3
"""Looks without a new best after which nothing better can be expected."""


@dataclass(frozen=True)
class Look:
    """What a small fixed set of pictures scored after some steps; the frozen model's too, as step 0.

    Attributes:
        step: Steps done.
        identity: Likeness of each picture to the photos.
        fidelity: Likeness of each picture to its prompt.
        copies: Whether each picture is nearer to a photo than any two photos are to each other.
        drift: Likeness of pictures of the bare class to the photos.
    """

    step: int
    identity: tuple[float, ...]
    fidelity: tuple[float, ...]
    copies: tuple[bool, ...]
    drift: tuple[float, ...]

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)

    @classmethod
    def of(cls, values: dict[str, Any]) -> Look:
        """Return the look that `as_json` gave."""
        rows = {name: tuple(value) for name, value in values.items() if name != "step"}
        return cls(values["step"], **rows)


@dataclass(frozen=True)
class Choice:
    """The look to ship.

    Attributes:
        look: It.
        admissible: Steps of the looks that follow prompts and do not copy.
        tied: Steps of the other admissible looks whose likeness cannot be told from it.
        reason: One sentence.
    """

    look: Look
    admissible: tuple[int, ...]
    tied: tuple[int, ...]
    reason: str


def choose(looks: Sequence[Look], frozen: Look, chance: float) -> Choice:
    """Choose among looks.

    Of those whose prompt fidelity is not significantly under the frozen model's and that do not copy significantly
    more than chance, the most like the photos: docs/selection.md.

    Args:
        looks: In the order of their steps; at least one.
        frozen: The frozen model's pictures of the same prompts and seeds.
        chance: Share of copies among pictures that copy nothing (`metrics.Copying`).
    """
    admissible = [look for look in looks if _is_admissible(look, frozen, chance)]
    if not admissible:
        kept = max(looks, key=lambda look: float(np.mean(look.fidelity)))
        reason = "every look follows its prompts less than the frozen model, or copies: this one follows them best"
        return Choice(kept, (), (), reason)
    best = max(admissible, key=_likeness)
    tied = tuple(each.step for each in admissible if each is not best and not _is_less(each.identity, best.identity))
    reason = "the most like the photos of those that follow prompts and do not copy"
    if tied:
        reason += f", though these pictures cannot tell it from {', '.join(map(str, tied))}"
    return Choice(best, tuple(look.step for look in admissible), tied, reason)


def setting(looks: Mapping[float, Look], usual: float, name: str, frozen: Look, chance: float) -> tuple[float, str]:
    """Choose a setting of what is shipped, such as its strength: the usual one, unless another is better beyond noise.

    Args:
        looks: By the setting's value.
        usual: One of these values.
        name: Of the setting.
        frozen: The frozen model's pictures of the same prompts and seeds.
        chance: As for `choose`.

    Returns:
        The value, and one sentence why.
    """
    admissible = {value: look for value, look in looks.items() if _is_admissible(look, frozen, chance)}
    if not admissible:
        return usual, f"no {name} follows prompts as the frozen model does"
    best = max(admissible, key=lambda value: _likeness(admissible[value]))
    if usual not in admissible:
        return best, "the most like the photos of those that follow prompts"
    if not _is_less(admissible[usual].identity, admissible[best].identity):
        return usual, f"no other {name} is more like the photos beyond noise"
    return best, f"more like the photos than at {usual:g}"


def is_over(looks: Sequence[Look], frozen: Look, chance: float) -> bool:
    """Whether nothing better can be expected: what would be chosen is older than the last `PATIENCE` looks."""
    return len(looks) > PATIENCE and choose(looks, frozen, chance).look not in looks[-PATIENCE:]


def _likeness(look: Look) -> float:
    return float(np.mean(look.identity))


def _is_admissible(look: Look, frozen: Look, chance: float) -> bool:
    return not _is_less(look.fidelity, frozen.fidelity) and not _copies(look, chance)


def _is_less(one: Sequence[float], two: Sequence[float]) -> bool:
    """Whether pictures score less than others of the same prompts and seeds, beyond noise."""
    found = _compare(one, two)
    return found.difference.value is not None and found.difference.value < 0 and (found.p or 1.0) <= 2 * LEVEL


def _compare(one: Sequence[float], two: Sequence[float]) -> Comparison:
    """Each picture has a prompt of its own."""
    grid = Grid("subject", ("look",) * len(one), (0,))
    return statistics.compare(grid.scores(np.array(one)), grid.scores(np.array(two)))


def least_copies(count: int, chance: float) -> int:
    """Return from how many copies on a look counts as copying: by chance fewer than `LEVEL` have as many.

    Binomial, as though each picture were held against photos of its own. All are held against the same ones, so that
    of looks whose pictures are as like the photos as these are to one another 12 % have as many where there are three
    photos, 5 % with four, 7 % with five (`tests/test_select.py` draws them). What a model has made of the photos is
    less like them, unless it copies.

    Args:
        count: Pictures of the look.
        chance: As for `choose`.

    Returns:
        One more than there are pictures where no number is enough.
    """
    tail = 0.0
    for seen in range(count, -1, -1):
        tail += math.comb(count, seen) * chance**seen * (1 - chance) ** (count - seen)
        if tail >= LEVEL:
            return seen + 1
    return 0


def _copies(look: Look, chance: float) -> bool:
    return sum(look.copies) >= least_copies(len(look.copies), chance)
