"""What a long job tells while it works. The core talks to a `Reporter`; who listens is the caller's business."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import warnings
from dataclasses import asdict, dataclass
from typing import IO, Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


@dataclass(frozen=True)
class Step:
    """One optimiser step.

    Attributes:
        step: Steps done, this one included.
        loss: Sum over the images of weight times loss.
        subject: The part of it that comes from photos.
        prior: The part that keeps the class, before lambda; None without one.
        lr: Learning rate of the denoiser.
        grad_norm: Norm of the gradient before clipping; None where it was not finite, so that fp16 took no step.
        seconds: Duration; on an accelerator the mean since the last reading.
        images_per_second: Images of the step over its duration.
    """

    step: int
    loss: float
    subject: float
    prior: float | None
    lr: float
    grad_norm: float | None
    seconds: float
    images_per_second: float


class Reporter(Protocol):
    """Listens to a job."""

    def stage(self, name: str, total: int, done: int = 0) -> None:
        """A stage of `total` units begins, `done` of which are there already."""

    def advance(self, count: int = 1) -> None:
        """So many more units of the stage are done."""

    def step(self, step: Step) -> None:
        """An optimiser step has been read from the device."""

    def say(self, message: str) -> None:
        """A line the user should read."""

    def close(self) -> None:
        """The job has ended."""


class Silent:
    """Listens to nothing: the default from Python, and on all processes but the first."""

    def stage(self, name: str, total: int, done: int = 0) -> None:
        """Ignore it."""

    def advance(self, count: int = 1) -> None:
        """Ignore it."""

    def step(self, step: Step) -> None:
        """Ignore it."""

    def say(self, message: str) -> None:
        """Ignore it."""

    def close(self) -> None:
        """Nothing to close."""


class Bar:
    """A progress bar for a terminal, on standard error."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description:<14}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self._console,
        )
        self._progress.start()
        self._task: TaskID | None = None

    def stage(self, name: str, total: int, done: int = 0) -> None:
        """Start a new bar."""
        self._task = self._progress.add_task(name, total=total, completed=done, note="")

    def advance(self, count: int = 1) -> None:
        """Move the bar."""
        if self._task is not None:
            self._progress.advance(self._task, count)

    def step(self, step: Step) -> None:
        """Move the bar and show the loss and the speed."""
        if self._task is not None:
            note = f"loss {step.loss:.4f}  {step.images_per_second:.1f} images/s"
            self._progress.update(self._task, completed=step.step, note=note)

    def say(self, message: str) -> None:
        """Print above the bar."""
        self._console.print(message, highlight=False, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Leave the bars as they are."""
        self._progress.stop()


class Lines:
    """One plain line a stage and one every few seconds of training, for logs and pipes."""

    def __init__(self, out: IO[str], every: float = 10.0) -> None:
        self._out = out
        self._every = every
        self._last = 0.0
        self._total = 0

    def stage(self, name: str, total: int, done: int = 0) -> None:
        """Say what begins."""
        self._total = total
        self._last = time.monotonic()
        self._write(f"{name}: {total - done} to do" + (f", {done} there" if done else ""))

    def advance(self, count: int = 1) -> None:
        """Stay quiet."""

    def step(self, step: Step) -> None:
        """Say where training is, every few seconds."""
        now = time.monotonic()
        if now - self._last >= self._every or step.step == self._total:
            self._last = now
            left = (self._total - step.step) * step.seconds
            speed = f"{step.images_per_second:.1f} images/s {left:.0f} s left"
            self._write(f"step {step.step}/{self._total} loss {step.loss:.4f} {speed}")

    def say(self, message: str) -> None:
        """Print the line."""
        self._write(message)

    def close(self) -> None:
        """Nothing to close."""

    def _write(self, line: str) -> None:
        print(line, file=self._out, flush=True)


class JsonLines:
    """One JSON object a line and event."""

    def __init__(self, out: IO[str]) -> None:
        self._out = out

    def stage(self, name: str, total: int, done: int = 0) -> None:
        """Write a `stage` event."""
        self._write({"event": "stage", "name": name, "total": total, "done": done})

    def advance(self, count: int = 1) -> None:
        """Write an `advance` event."""
        self._write({"event": "advance", "count": count})

    def step(self, step: Step) -> None:
        """Write a `step` event."""
        self._write({"event": "step", **asdict(step)})

    def say(self, message: str) -> None:
        """Write a `message` event."""
        self._write({"event": "message", "message": message})

    def close(self) -> None:
        """Nothing to close."""

    def _write(self, event: dict[str, object]) -> None:
        print(json.dumps(event), file=self._out, flush=True)


def for_console(log_format: str, quiet: bool = False) -> Reporter:
    """Return the reporter for standard error: a bar on a terminal, plain lines elsewhere, or JSON lines."""
    if quiet:
        return Silent()
    if log_format == "json":
        return JsonLines(sys.stderr)
    return Bar() if sys.stderr.isatty() else Lines(sys.stderr)


def hush_libraries() -> None:
    """Keep the libraries' bars, warnings and errors (raised too) off standard error: a reporter speaks there."""
    os.environ["TRANSFORMERS_VERBOSITY"] = os.environ["DIFFUSERS_VERBOSITY"] = "critical"  # while they are imported
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity(logging.CRITICAL)
        library.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)  # kernels that it misses, though nobody asked for them
    warnings.filterwarnings("ignore", module=r"(diffusers|transformers|peft)\b")
    warnings.filterwarnings("ignore", message="find_unused_parameters=True was specified")
