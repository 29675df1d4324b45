"""Work done ahead by threads: in order, bounded, and failing where it is asked for."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from dreambooth.ahead import AHEAD, WORKERS, mapped


def test_results_come_in_order_and_from_several_threads() -> None:
    together = threading.Barrier(WORKERS, timeout=20)

    def meet(number: int) -> int:
        together.wait()
        return number**2

    numbers = range(4 * WORKERS)
    assert list(mapped(meet, numbers)) == [number**2 for number in numbers]


def test_no_more_is_made_than_will_soon_be_used() -> None:
    asked: list[int] = []

    def items() -> Iterator[int]:
        for number in range(1000):
            asked.append(number)
            yield number

    results = mapped(str, items())
    for number in range(5):
        assert next(results) == str(number)
        assert len(asked) <= number + AHEAD + 1
    results.close()  # type: ignore[attr-defined]
    assert len(asked) <= 5 + AHEAD


def test_a_failure_is_raised_in_its_place() -> None:
    results = mapped(lambda number: 1 / number, [1, 2, 0, 4])
    assert [next(results), next(results)] == [1, 0.5]
    with pytest.raises(ZeroDivisionError):
        next(results)
