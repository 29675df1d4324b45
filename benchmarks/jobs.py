"""Whole jobs against diffusers' own scripts: `python benchmarks/jobs.py DIFFUSERS [--method full] [--steps 300]`.

DIFFUSERS is a checkout of huggingface/diffusers. Both train the toybox on the same photos with the same settings, each
job in a process of its own that is looked at from outside only: from nothing; with class images there; and one step
with class images there. The differences of the three are the stages. They take turns, `--repeats` times; medians.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from dreambooth.toybox import BASE, SUBJECTS
from dreambooth.toybox.study import class_of

SUBJECT = "spotted_dog"
SCRIPTS = {"lora": "train_dreambooth_lora.py", "full": "train_dreambooth.py"}
RATES = {"lora": 1e-3, "full": 1e-4}
RANK = 4
SIZE = 64


@dataclass(frozen=True)
class Cost:
    """Of one process: seconds from start to exit, and the most memory that it had resident."""

    seconds: float
    peak_mb: float


Job = Callable[[Path, int], list[str]]
"""From a folder of its own and a number of steps to a command."""


def ours(method: str, class_images: int, same: bool, bf16_images: bool = False) -> Job:
    """Our command: with their settings and perhaps class images in bf16, or with our defaults."""

    def command(home: Path, steps: int) -> list[str]:
        given = [sys.executable, "-m", "dreambooth", "train", SUBJECTS / SUBJECT / "photos", "--model", "toybox"]
        given += [
            "--class",
            class_of(SUBJECT),
            "--method",
            method,
            "--steps",
            steps,
            "--samples",
            0,
            "--out",
            home / "run",
            "--save-every",
            10**6,
        ]
        if same:
            given += ["--learning-rate", RATES[method], "--identifier", "sks", "--prior-loss", "images"]
            given += ["--prior-count", class_images, "--prior-steps", 50, "--prior-guidance", 7.5]
            given += ["--resolution", SIZE, "--precision", "fp32"]
            given += ["--prior-precision", "bf16"] if bf16_images else []
            given += ["--rank", RANK, "--targets", "attention"] if method == "lora" else []
        return [str(word) for word in given]

    return command


def theirs(diffusers: Path, method: str, class_images: int, subject: str = SUBJECT, bf16_images: bool = False) -> Job:
    """Their command; without class images it has no prior preservation."""
    noun = class_of(subject)
    prior = {"class_prompt": f"a {noun}", "num_class_images": class_images}
    script = diffusers / "examples" / "dreambooth" / SCRIPTS[method]

    def command(home: Path, steps: int) -> list[str]:
        given = {
            "pretrained_model_name_or_path": BASE,
            "instance_data_dir": SUBJECTS / subject / "photos",
            "instance_prompt": f"a sks {noun}",
            "output_dir": home / "run",
            "resolution": SIZE,
            "train_batch_size": 1,
            "max_train_steps": steps,
            "learning_rate": RATES[method],
            "lr_scheduler": "constant",
            "lr_warmup_steps": 0,
            "checkpointing_steps": 10**6,
            "seed": 0,
            **({"rank": RANK} if method == "lora" else {}),
            **(prior | {"class_data_dir": home / "cache"} if class_images else {}),
        }
        flags = [word for name, value in given.items() for word in (f"--{name}", str(value))]
        runner = Path(__file__).parent / "stand_in.py"
        preserved = ["--with_prior_preservation"] if class_images else []
        preserved += ["--prior_generation_precision", "bf16"] if bf16_images else []
        return [sys.executable, str(runner), str(script), *flags, *preserved, "--center_crop"]

    return command


def cost(command: list[str], home: Path) -> Cost:
    """Run a process and wait for it.

    Raises:
        SystemExit: It failed; its last lines are shown.
    """
    environment = {**os.environ, "DREAMBOOTH_CACHE": str(home / "cache"), "HF_HUB_OFFLINE": "1"}
    began = time.perf_counter()
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit((home / "log").read_text(errors="replace")[-3000:])
    return Cost(time.perf_counter() - began, usage.ru_maxrss / 1000 * (1.024 if sys.platform == "linux" else 1e-3))


def stages(job: Job, steps: int) -> dict[str, float]:
    """Seconds of a whole job and of its stages, and its peak."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        (home / "cache").mkdir()
        whole = cost(job(home, steps), home)
        shutil.rmtree(home / "run")
        trained = cost(job(home, steps), home)
        shutil.rmtree(home / "run")
        short = cost(job(home, 1), home)
    step = (trained.seconds - short.seconds) / (steps - 1)
    drawn = whole.seconds - trained.seconds
    return {
        "whole": whole.seconds,
        "class images": drawn,
        "step": step,
        "start and saving": short.seconds - step,
        "peak MB": whole.peak_mb,
        "peak MB without class images": trained.peak_mb,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("diffusers", type=Path)
    parser.add_argument("--method", choices=SCRIPTS, default="lora")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--class-images", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=1)
    chosen = parser.parse_args()
    print(f"{platform.platform()}, torch {torch.__version__}, {torch.get_num_threads()} threads", flush=True)
    jobs = {
        "diffusers": theirs(chosen.diffusers, chosen.method, chosen.class_images),
        "diffusers, class images in bf16": theirs(
            chosen.diffusers, chosen.method, chosen.class_images, bf16_images=True
        ),
        "ours, their settings": ours(chosen.method, chosen.class_images, same=True),
        "ours, class images in bf16": ours(chosen.method, chosen.class_images, same=True, bf16_images=True),
        "ours, our defaults": ours(chosen.method, chosen.class_images, same=False),
    }
    found: dict[str, list[dict[str, float]]] = {name: [] for name in jobs}
    for _ in range(chosen.repeats):
        for name, job in jobs.items():
            found[name].append(stages(job, chosen.steps))
            print(name, {stage: round(value, 3) for stage, value in found[name][-1].items()}, flush=True)
    medians = {
        name: {stage: round(statistics.median(row[stage] for row in rows), 3) for stage in rows[0]}
        for name, rows in found.items()
    }
    print(json.dumps(medians))


if __name__ == "__main__":
    main()
