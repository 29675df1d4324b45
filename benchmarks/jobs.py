"""Whole jobs against diffusers' own scripts: `python benchmarks/jobs.py DIFFUSERS [--method full] [--steps 300]`.

DIFFUSERS is a checkout of huggingface/diffusers. Both train the toybox on the same photos with the same settings, each
job in a process of its own, once from nothing and once with the class images there. They take turns, `--repeats` times;
medians, and from the least to the most. The stages of a job from nothing:

    start         from the start of the process to the first step, without class images and caching
    class images  by how much later the first step is when they have to be made
    caching       what is encoded before the first step; theirs encodes at every step
    a step        from the first to the last, over their number
    saving        from the last step to the end of the process
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
from functools import partial
from pathlib import Path

import torch

from dreambooth.toybox import BASE, SUBJECTS
from dreambooth.toybox.study import class_of

SUBJECT = "spotted_dog"
SCRIPTS = {"lora": "train_dreambooth_lora.py", "full": "train_dreambooth.py"}
THEIRS, BF16 = "diffusers", "class images in bf16"
RATES = {"lora": 1e-3, "full": 1e-4}
RANK = 4
SIZE = 64
MARKED = Path(__file__).parent / "marked.py"


@dataclass(frozen=True)
class Cost:
    """Of one process, in seconds from its start: to its first step, to its last, to its end; and its most memory."""

    first: float
    last: float
    seconds: float
    steps: int
    peak_mb: float


Job = Callable[[Path, int], list[str]]
"""From a folder of its own and a number of steps to a command."""


def ours(method: str, class_images: int, same: bool, bf16_images: bool = False) -> Job:
    """Our command: with their settings and perhaps class images in bf16, or with our defaults."""

    def command(home: Path, steps: int) -> list[str]:
        given = [sys.executable, MARKED, "-m", "dreambooth", "train", SUBJECTS / SUBJECT / "photos"]
        given += ["--model", "toybox", "--class", class_of(SUBJECT), "--method", method, "--steps", steps]
        given += ["--samples", 0, "--out", home / "run", "--save-every", 10**6]
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
        preserved = ["--with_prior_preservation"] if class_images else []
        preserved += ["--prior_generation_precision", "bf16"] if bf16_images else []
        return [sys.executable, str(MARKED), str(script), *flags, *preserved, "--center_crop"]

    return command


def cost(command: list[str], home: Path) -> Cost:
    """Run a process and wait for it.

    Raises:
        SystemExit: It failed; its last lines are shown.
    """
    environment = {**os.environ, "DREAMBOOTH_CACHE": str(home / "cache"), "HF_HUB_OFFLINE": "1"}
    began = time.monotonic()
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            command, env={**environment, "MARKS": str(home / "marks.json")}, stdout=log, stderr=log
        )
        _, status, usage = os.wait4(process.pid, 0)
    ended = time.monotonic()
    if status:
        sys.exit((home / "log").read_text(errors="replace")[-3000:])
    marks = json.loads((home / "marks.json").read_text(encoding="utf-8"))
    peak = usage.ru_maxrss / 1000 * (1.024 if sys.platform == "linux" else 1e-3)
    return Cost(marks["first"] - began, marks["last"] - began, ended - began, marks["count"], peak)


def stages(job: Job, steps: int) -> dict[str, float]:
    """Seconds of a whole job and of its stages, and its peak."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        (home / "cache").mkdir()
        whole = cost(job(home, steps), home)
        shutil.rmtree(home / "run")
        again = cost(job(home, steps), home)
        told = home / "run" / "run.json"
        times = json.loads(told.read_text(encoding="utf-8"))["times"] if told.is_file() else {}
    caching = times.get("caching", 0.0)
    step = (whole.last - whole.first) / (whole.steps - 1)
    return {
        "whole": whole.seconds,
        "start": again.first - caching,
        "class images": whole.first - again.first,
        "caching": caching,
        "a step": step,
        "saving": whole.seconds - whole.last - step,
        "peak MB": whole.peak_mb,
        "peak MB, class images there": again.peak_mb,
    }


def spread(values: list[float], digits: int) -> str:
    """The median, and from the least to the most."""
    middle, low, high = (f"{value:.{digits}f}" for value in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({low} to {high})" if len(values) > 1 else middle


def table(found: dict[str, list[dict[str, float]]]) -> str:
    """A row for each job: its stages, and how many times as fast as diffusers' beside it in the same round."""
    names = list(next(iter(found.values()))[0])
    lines = ["| " + " | ".join(["", *names, "times as fast"]) + " |", "| --- " * (len(names) + 2) + "|"]
    for way, rows in found.items():
        digits = [0 if "MB" in name else 3 if name == "a step" else 1 for name in names]
        cells = [spread([row[name] for row in rows], each) for name, each in zip(names, digits, strict=True)]
        theirs = found[f"{THEIRS}, {BF16}" if way.endswith(BF16) else THEIRS]
        faster = [other["whole"] / row["whole"] for other, row in zip(theirs, rows, strict=True)]
        lines.append("| " + " | ".join([way, *cells, spread(faster, 2)]) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("diffusers", type=Path)
    parser.add_argument("--method", choices=SCRIPTS, default="lora")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--class-images", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=3)
    chosen = parser.parse_args()
    print(f"{platform.platform()}, torch {torch.__version__}, {torch.get_num_threads()} threads", flush=True)
    their = partial(theirs, chosen.diffusers, chosen.method, chosen.class_images)
    our = partial(ours, chosen.method, chosen.class_images)
    jobs = {
        THEIRS: their(),
        f"{THEIRS}, {BF16}": their(bf16_images=True),
        "ours, their settings": our(same=True),
        f"ours, their settings, {BF16}": our(same=True, bf16_images=True),
        "ours, our defaults": our(same=False),
    }
    found: dict[str, list[dict[str, float]]] = {name: [] for name in jobs}
    for _ in range(chosen.repeats):
        for name, job in jobs.items():
            found[name].append(stages(job, chosen.steps))
            print(name, {stage: round(value, 3) for stage, value in found[name][-1].items()}, flush=True)
    print(table(found))


if __name__ == "__main__":
    main()
