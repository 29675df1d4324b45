"""What needs nothing from outside, in some minutes: `python benchmarks/all.py`. The last line is JSON.

A step of the loop over its bare arithmetic, LoRA and full (`step.py`); time and peak memory of a whole default run on
the toybox, in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from step import compare

from dreambooth.progress import hush_libraries
from dreambooth.toybox import SUBJECTS


def job(home: Path) -> dict[str, Any]:
    """run.json of a default run, made from nothing."""
    photos = SUBJECTS / "spotted_dog" / "photos"
    command = [sys.executable, "-m", "dreambooth", "train", str(photos), "--class", "dog", "--model", "toybox"]
    environment = {**os.environ, "DREAMBOOTH_CACHE": str(home / "cache")}
    done = subprocess.run([*command, "--out", str(home / "run"), "--json"], env=environment, capture_output=True)
    if done.returncode:
        sys.exit(done.stderr.decode())
    return dict(json.loads(done.stdout))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=12, help="blocks of 10 steps, of each of the two")
    chosen = parser.parse_args()
    hush_libraries()
    print(f"{platform.platform()}, torch {torch.__version__}, {torch.get_num_threads()} threads", flush=True)
    ratios = {}
    for method in ("lora", "full"):
        found = compare({"model": "toybox", "method": method}, chosen.blocks, 10)
        ratios[f"step_over_bare_{method}"] = round(found["ratio"], 3)
        print(method, {name: round(value, 3) for name, value in found.items()}, flush=True)
    with tempfile.TemporaryDirectory() as home:
        run = job(Path(home))
    print("stages of the run, in seconds:", run["times"], flush=True)
    whole = {"job_seconds": round(sum(run["times"].values()), 1), "peak_mb": run["peak_mb"]}
    print(json.dumps({**ratios, **whole}))


if __name__ == "__main__":
    main()
