"""Work done by threads a little ahead of who needs it: reading and decoding files while the accelerator computes."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")

WORKERS = min(8, os.cpu_count() or 1)
AHEAD = 16
"""Results that wait at most: each may be a decoded photo."""


def mapped(function: Callable[[Item], Made], items: Iterable[Item]) -> Iterator[Made]:
    """Yield `function` of each item, in order, made by threads while the caller uses those before.

    An exception is raised where its item's result would be.
    """
    waiting: deque[Future[Made]] = deque()
    with ThreadPoolExecutor(WORKERS) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
