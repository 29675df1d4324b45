"""Steps at real size against diffusers' own scripts: `python benchmarks/real_size.py DIFFUSERS [--models sd15 ...]`.

DIFFUSERS is a checkout of huggingface/diffusers. Both train the same random weights (`real_models.py`; a folder of
that name under `--home` is taken as it is) on the same pictures, one photo and one class image a step, in bf16, with
the same rank, layers and resolution, each in a process of its own that `watched.py` looks at: milliseconds a step after
a warm-up, GB that tensors take at the peak of a step and before it. A line of JSON each. All ways to train one model
get ready side by side, so that the GPU must hold them together, or give fewer `--ways` at a time.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

HERE = Path(__file__).resolve().parent
LAYERS = ("to_k", "to_q", "to_v", "to_out.0", "add_k_proj", "add_q_proj", "add_v_proj", "to_add_out")
ATTENTION = ",".join(f"attn.{name}" for name in LAYERS)
WARMUP, STEPS = 6, 20


@dataclass(frozen=True)
class Job:
    """What both train.

    Attributes:
        script: diffusers' script.
        method: Ours.
        resolution: Side of the pictures.
        rate: Learning rate.
        theirs: What their script is given beside.
    """

    script: str
    method: str
    resolution: int
    rate: float
    theirs: tuple[str, ...]


WAYS = {
    "plain": (),
    "graphs": ("--cuda-graphs",),
    "compiled": ("--compile",),
    "recomputed": ("--gradient-checkpointing",),
    "compiled, recomputed": ("--compile", "--gradient-checkpointing"),
}
"""Ours, by name: what it is given beside."""
LORA = ("--rank", "4")
JOBS = {
    "sd15": Job("train_dreambooth.py", "full", 512, 5e-6, ()),
    "sdxl": Job("train_dreambooth_lora_sdxl.py", "lora", 1024, 1e-4, LORA),
    "sd35m": Job("train_dreambooth_lora_sd3.py", "lora", 1024, 1e-4, LORA),
    "flux": Job("train_dreambooth_lora_flux.py", "lora", 512, 1e-4, (*LORA, "--lora_layers", ATTENTION)),
}


def theirs(job: Job, diffusers: Path, model: Path, pictures: Path, out: Path) -> list[str]:
    """Their command."""
    given = {
        "pretrained_model_name_or_path": model,
        "instance_data_dir": pictures / "photos",
        "instance_prompt": "a sks dog",
        "class_data_dir": pictures / "class",
        "class_prompt": "a dog",
        "num_class_images": len(list((pictures / "class").iterdir())),
        "output_dir": out,
        "resolution": job.resolution,
        "train_batch_size": 1,
        "max_train_steps": 1000,
        "learning_rate": job.rate,
        "lr_scheduler": "constant",
        "lr_warmup_steps": 0,
        "checkpointing_steps": 10**6,
        "mixed_precision": "bf16",
        "seed": 0,
    }
    flags = [str(word) for name, value in given.items() for word in (f"--{name}", value)]
    script = diffusers / "examples" / "dreambooth" / job.script
    return [str(script), *flags, *job.theirs, "--with_prior_preservation", "--center_crop"]


def ours(job: Job, model: Path, pictures: Path, out: Path, way: Sequence[str]) -> list[str]:
    """Our command."""
    given: list[Any] = ["-m", "dreambooth", "train", pictures / "photos", "--class", "dog", "--model", model]
    given += ["--prior-loss", "images", "--prior-images", pictures / "class", "--identifier", "sks"]
    given += ["--method", job.method, "--samples", 0]
    given += ["--steps", 1000, "--learning-rate", job.rate, "--resolution", job.resolution, "--precision", "bf16"]
    given += ["--rank", 4, "--targets", "attention"] if job.method == "lora" else []
    given += [
        "--save-every",
        10**6,
        "--memory",
        1000,
        "--out",
        out,
        "--allow",
        "learning-rate",
        "--allow",
        "identifier",
    ]
    return [*map(str, given), *way]


@dataclass
class Trainer:
    """A process that `watched.py` holds at its gate."""

    way: str
    home: Path
    command: Sequence[str]

    def __post_init__(self) -> None:
        shutil.rmtree(self.home, ignore_errors=True)
        self.home.mkdir(parents=True)
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "GATE": str(self.home)}
        environment["DREAMBOOTH_CACHE"] = str(self.home.parents[1] / "cache")
        whole = [sys.executable, str(HERE / "watched.py"), str(WARMUP), str(STEPS), *self.command]
        with (self.home / "log").open("w") as log:
            self._process = subprocess.Popen(whole, env=environment, stdout=log, stderr=log)

    def prepare(self, until: float) -> None:
        """Wait until it is ready, or has ended, or the time is up."""
        while not (self.home / "ready").exists() and self._process.poll() is None and time.monotonic() < until:
            time.sleep(0.1)

    def measure(self, limit: float) -> dict[str, Any]:
        """Let it go; return what was seen, or the last lines of one that has failed."""
        (self.home / "go").touch()
        try:
            self._process.wait(limit)
        except subprocess.TimeoutExpired:
            self._process.kill()
        lines = (self.home / "log").read_text(errors="replace").strip().splitlines()
        told = next((json.loads(line) for line in lines if line.startswith('{"step_ms"')), None)
        return told or {"failed": " / ".join(lines[-3:])[-600:]}


def make_pictures(folder: Path, side: int) -> Path:
    """Five photos and eight class images of noise."""
    source = np.random.default_rng(0)
    for name, count in (("photos", 5), ("class", 8)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            coarse = source.integers(0, 255, (16, 16, 3), dtype=np.uint8)
            picture = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
            picture.save(folder / name / f"{index}.png")
    return folder


def measure(name: str, chosen: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Train one model in every way: all get ready side by side, then each is measured alone."""
    job, home = JOBS[name], chosen.home.resolve()
    model, pictures = home / name, make_pictures(home / f"pictures-{job.resolution}", job.resolution)
    if not model.is_dir():
        subprocess.run([sys.executable, str(HERE / "real_models.py"), name, str(model)], check=True)
    commands = {"diffusers": theirs(job, chosen.diffusers, model, pictures, home / "out" / name)}
    commands |= {way: ours(job, model, pictures, home / "out" / f"{name}-{way}", WAYS[way]) for way in WAYS}
    trainers = [Trainer(way, home / "log" / f"{name}-{way}", commands[way]) for way in chosen.ways]
    until = time.monotonic() + chosen.limit
    for trainer in trainers:
        trainer.prepare(until)
    if chosen.before:
        subprocess.run(chosen.before, shell=True, check=False)
    for trainer in trainers:
        yield {"model": name, "way": trainer.way, **trainer.measure(chosen.limit)}
    if chosen.after:
        subprocess.run(chosen.after, shell=True, check=False)


def peak_tflops(side: int = 8192) -> float:
    """What a large bf16 product reaches on the GPU."""
    a, b = (torch.randn(side, side, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(20):
        a @ b
    torch.cuda.synchronize()
    return 20 * 2 * side**3 / (time.perf_counter() - began) / 1e12


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("diffusers", type=Path)
    parser.add_argument("--home", type=Path, default=Path("real-size"), help="models and pictures are kept here")
    parser.add_argument("--models", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--ways", nargs="+", default=["diffusers", *WAYS])
    parser.add_argument("--limit", type=float, default=600, help="seconds for getting ready, and for each measurement")
    parser.add_argument("--before", help="command before what is ready is measured, such as one that stops other work")
    parser.add_argument("--after", help="command after it")
    parser.add_argument("--out", type=Path, help="file to append the lines to")
    chosen = parser.parse_args()
    chosen.home.mkdir(parents=True, exist_ok=True)
    about = {"device": "cpu", "torch": torch.__version__}
    if torch.cuda.is_available():
        about |= {"device": torch.cuda.get_device_name(), "bf16_product_tflops": round(peak_tflops())}
    for line in (about, *(row for name in chosen.models for row in measure(name, chosen))):
        print(json.dumps(line), flush=True)
        if chosen.out:
            with chosen.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
