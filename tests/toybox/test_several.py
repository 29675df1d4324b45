"""The study of several subjects: its figures are those of pictures that are planted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dreambooth.evaluation.leakage import Drawn
from dreambooth.evaluation.scoring import alone
from dreambooth.toybox.several import APART, SHOWN, TOGETHER, WAYS, Pair, rows_of, write_up
from dreambooth.toybox.study import Rows

PAIR = Pair((Path("one"), Path("two")), ("dog", "dog"))
EVERYONE = [Pair((Path(name), Path("x")), ("dog", "cat")) for name in "abcdef"]
DOG, OTHER, PLAIN = np.eye(8)[:3]


def pictures(*parts: tuple[float, np.ndarray]) -> np.ndarray:
    row_D = sum(share * direction for share, direction in parts)
    return np.tile(row_D / np.linalg.norm(row_D), (4, 1))


def drawn(second: np.ndarray, bare: np.ndarray) -> Drawn:
    """The first subject is as its photos are; what the second and the bare class look like is given."""
    texts = ("a x dog", "a y dog", "a dog", "a dog")
    photos = [np.tile(DOG, (3, 1)), np.tile(OTHER, (3, 1))]
    plain = pictures((1, PLAIN))
    return Drawn(texts, [pictures((1, DOG)), second, bare, bare], [plain, plain], photos)


def found(second: np.ndarray, bare: np.ndarray) -> dict[str, float]:
    truth = [np.tile(DOG, (2, 1)), np.tile(OTHER, (2, 1))]
    return {name: float(scores.value_N.mean()) for name, scores in rows_of(PAIR, [drawn(second, bare)], truth).items()}


def test_subjects_that_are_learned_and_stay_apart() -> None:
    assert found(pictures((1, OTHER)), pictures((1, PLAIN))) == pytest.approx(
        {"way": 1, "right": 1, "named": 0, "bare": 0}
    )


def test_a_subject_that_is_drawn_for_the_other_is_told_by_all_but_the_bare_class() -> None:
    mixed = found(pictures((1, DOG)), pictures((1, PLAIN)))
    assert mixed["way"] == pytest.approx(0.5)
    assert mixed["right"] == pytest.approx(0.5)
    assert mixed["bare"] == pytest.approx(0, abs=1e-9) or np.isnan(mixed["bare"])


def test_a_bare_class_that_becomes_a_subject_is_told() -> None:
    taken = found(pictures((1, OTHER)), pictures((1, DOG)))
    assert (taken["named"], taken["bare"]) == pytest.approx((0, 0.5))


def test_one_adapter_alone_has_nothing_to_leak() -> None:
    whole = drawn(pictures((1, OTHER)), pictures((1, PLAIN)))
    single = [
        Drawn(("a x dog", "a dog"), whole.tuned_TKD[::2][:2], whole.frozen_SKD[:1], whole.photos_SRD[:1]),
        Drawn(
            ("a y dog", "a dog"), [whole.tuned_TKD[1], whole.tuned_TKD[2]], whole.frozen_SKD[1:], whole.photos_SRD[1:]
        ),
    ]
    rows = rows_of(PAIR, single, [np.tile(DOG, (2, 1)), np.tile(OTHER, (2, 1))])
    assert rows.keys() == {"way", "right"}
    assert rows["way"].value_N.tolist() == pytest.approx([1, 1])


def test_the_page_says_which_way_is_better() -> None:
    def rows(index: int, is_together: bool) -> Rows:
        gained = 0.3 + 0.01 * index if is_together else 0.0
        values = {"way": 0.5 + gained, "right": 0.9, "named": 0.1 + gained, "bare": 0.1}
        return {name: alone(EVERYONE[index].name, np.array([values[name]])) for name in SHOWN}

    page = write_up({pair: {way: rows(at, way == TOGETHER) for way in WAYS} for at, pair in enumerate(EVERYONE)})
    assert "Two classes, 6 pairs" in page
    assert "One class" not in page
    line = next(line for line in page.splitlines() if f"over *{APART}*" in line)
    told = [(cell[:6].strip(), cell.rpartition(", ")[2].strip()) for cell in line.split("|")[2:-1]]
    assert told == [
        ("+0.32", "better"),
        ("+0.00", "no difference shown"),
        ("+0.32", "worse"),
        ("+0.00", "no difference shown"),
    ]
