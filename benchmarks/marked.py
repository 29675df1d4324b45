"""Runs a trainer as its own command would and marks when it trains: `python marked.py SCRIPT|-m MODULE ...`.

Each call of accelerate's `backward` is a step. At the end the file that the environment names as MARKS holds the clock
at the first and at the last of them, and how many there were. The clock is `time.monotonic`, which processes share.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from accelerate import Accelerator
from stand_in import run


def main() -> None:
    """Mark a trainer's steps."""
    backward, steps = Accelerator.backward, []

    def marking(self, loss, **more):
        steps.append(time.monotonic())
        backward(self, loss, **more)

    Accelerator.backward = marking
    try:
        run(sys.argv[1:])
    finally:
        if steps:
            marks = {"first": steps[0], "last": steps[-1], "count": len(steps)}
            Path(os.environ["MARKS"]).write_text(json.dumps(marks), encoding="utf-8")


if __name__ == "__main__":
    main()
