"""Stopping in good order: the first Ctrl-C or termination is noted, the second one kills."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def noted() -> Iterator[list[bool]]:
    """Note the first Ctrl-C or termination in the list given, so that work can end well; the second acts as ever."""
    asked: list[bool] = []
    before: dict[signal.Signals, Any] = {}

    def note(number: int, frame: object) -> None:
        asked.append(True)
        for name, handler in before.items():
            signal.signal(name, handler)

    try:
        for name in (signal.SIGINT, signal.SIGTERM):
            before[name] = signal.signal(name, note)
    except ValueError:  # not the main thread: the caller handles signals
        before.clear()
    try:
        yield asked
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
