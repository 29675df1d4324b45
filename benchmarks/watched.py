"""Runs a trainer as its own command would and watches its steps: `python watched.py WARMUP STEPS SCRIPT|-m MODULE ...`.

Each call of accelerate's `backward` is a step. After WARMUP of them and after STEPS more the GPU is waited for and the
clock is read; then what was seen is printed as a line of JSON, and the trainer is ended. Where the environment names a
folder as GATE, the trainer stops after two steps, puts a file `ready` there and goes on when there is one called `go`:
so that several get ready together and are then measured one at a time.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
from accelerate import Accelerator
from stand_in import put_in_place, run


class Watch:
    """Stands in for `Accelerator.backward`."""

    def __init__(self, warmup: int, steps: int) -> None:
        self._warmup, self._last, self._count = warmup, warmup + steps, 0
        self._began = time.perf_counter()
        self._start = self._first = 0.0
        self._backward = Accelerator.backward

    def __call__(self, accelerator: Accelerator, loss: torch.Tensor, **more: Any) -> None:
        """Count the step, and do what it stands in for."""
        if self._count in (1, 2, self._warmup, self._last) and torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        if self._count == 1:
            self._first = now - self._began
        if self._count == 2 and "GATE" in os.environ:
            _wait(Path(os.environ["GATE"]))
        if self._count == self._warmup:
            self._start = now
            self._peak = _peak_gb()
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
        if self._count == self._last:
            self._tell(now)
        self._count += 1
        self._backward(accelerator, loss, **more)

    def _tell(self, now: float) -> None:
        seen = {
            "step_ms": round(1000 * (now - self._start) / (self._last - self._warmup), 2),
            "steady_gb": _peak_gb(),
            "before_gb": self._peak,
            "first_step_s": round(self._first, 1),
        }
        print(f"\n{json.dumps(seen)}", flush=True)
        os._exit(0)


def _wait(gate: Path) -> None:
    (gate / "ready").touch()
    while not (gate / "go").exists():
        time.sleep(0.05)


def _peak_gb() -> float:
    return round(torch.cuda.max_memory_allocated() / 1e9, 2) if torch.cuda.is_available() else 0.0


def main() -> None:
    """Watch a trainer."""
    warmup, steps, *command = sys.argv[1:]
    put_in_place()
    watch = Watch(int(warmup), int(steps))
    Accelerator.backward = lambda self, loss, **more: watch(self, loss, **more)
    run(command)


if __name__ == "__main__":
    main()
