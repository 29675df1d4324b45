"""A run under way: what its stages share."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from accelerate import Accelerator
from diffusers import DiffusionPipeline
from torch import Tensor

from dreambooth import environment
from dreambooth.families import Family
from dreambooth.methods import Method
from dreambooth.photos import Photo
from dreambooth.planning import Plans
from dreambooth.progress import Reporter
from dreambooth.recipe import Recipe
from dreambooth.run import Run


@dataclass
class Job:
    """A run under way.

    Attributes:
        start: The LoRA that the adapter begins as, if it does.
        times: Seconds of each stage.
        peaks: Peak memory of each stage in MB, as `environment.peak_mb` measures it.
        step_mb: What a training step was expected to take, where somebody had to know.
    """

    recipe: Recipe
    plans: Plans
    family: Family
    method: Method
    pipe: DiffusionPipeline
    accelerator: Accelerator
    reporter: Reporter
    run: Run
    photos: list[list[Photo]]
    start: dict[str, Tensor] = field(default_factory=dict)
    times: dict[str, float] = field(default_factory=dict)
    peaks: dict[str, int] = field(default_factory=dict)
    step_mb: int | None = None

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes."""
        return bool(self.accelerator.is_main_process)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add a stage's duration to the run's times, and note its peak of memory."""
        began, device = time.perf_counter(), self.accelerator.device
        environment.restart_peak(device)
        try:
            yield
        finally:
            self.times[name] = round(self.times.get(name, 0.0) + time.perf_counter() - began, 3)
            self.peaks[name] = max(self.peaks.get(name, 0), round(environment.peak_mb(device)))
            if self.is_main:
                self.run.update(times=self.times, peaks=self.peaks)

    def warn(self, text: str) -> None:
        """Tell the user, and record it in the run."""
        self.reporter.say(f"warning: {text}")
        if self.is_main:
            self.run.update(warnings=[text])
