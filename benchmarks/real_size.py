"""Steps at real size against diffusers' own scripts: `python benchmarks/real_size.py DIFFUSERS [--models sd15 ...]`.

DIFFUSERS is a checkout of huggingface/diffusers. Both train the same random weights (`real_models.py`; a folder of that
name under `--home` is taken as it is) on the same pictures, one photo and one class image a step, in bf16, with the same
rank, layers and resolution, each in a process of its own that `watched.py` looks at: milliseconds a step after a warm-up,
GB that tensors take at the peak of a step and before it. A line of JSON each.
"""

from __future__ import annotations

import argparse
import json
import os
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
ATTENTION = "attn.to_k,attn.to_q,attn.to_v,attn.to_out.0,attn.add_k_proj,attn.add_q_proj,attn.add_v_proj,attn.to_add_out"
WARMUP, STEPS = 12, 30


@dataclass(frozen=True)
class Job:
    """What both train.

    Attributes:
        script: diffusers' script.
        method: Ours.
        resolution: Side of the pictures.
        rate: Learning rate.
        theirs: What their script is given beside.
        ways: Ours, by name: what it is given beside.
    """

    script: str
    method: str
    resolution: int
    rate: float
    theirs: tuple[str, ...]
    ways: dict[str, tuple[str, ...]]


PLAIN = ("--no-cuda-graphs",)
RECOMPUTED = (*PLAIN, "--gradient-checkpointing")
WAYS = {"plain": PLAIN, "graphs": (), "compiled": ("--compile",), "recomputed": RECOMPUTED}
LORA = ("--rank", "4")
JOBS = {
    "sd15": Job("train_dreambooth.py", "full", 512, 5e-6, (), WAYS),
    "sdxl": Job("train_dreambooth_lora_sdxl.py", "lora", 1024, 1e-4, LORA, WAYS),
    "sd35m": Job("train_dreambooth_lora_sd3.py", "lora", 1024, 1e-4, LORA, WAYS),
    "flux": Job("train_dreambooth_lora_flux.py", "lora", 512, 1e-4, (*LORA, "--lora_layers", ATTENTION), WAYS),
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
    given += ["--prior-images", pictures / "class", "--identifier", "sks", "--method", job.method, "--samples", 0]
    given += ["--steps", 1000, "--learning-rate", job.rate, "--resolution", job.resolution, "--precision", "bf16"]
    given += ["--rank", 4, "--targets", "attention"] if job.method == "lora" else []
    given += ["--save-every", 10**6, "--out", out, "--allow", "learning-rate", "--allow", "identifier"]
    return [*map(str, given), *way]


def watch(command: Sequence[str], home: Path, limit: float) -> dict[str, Any]:
    """Run a trainer until it has been seen; its failure is told by the last line that it printed."""
    began, log = time.perf_counter(), home / "log"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "DREAMBOOTH_CACHE": str(home / "cache")}
    whole = [sys.executable, str(HERE / "watched.py"), str(WARMUP), str(STEPS), *command]
    with log.open("w") as file:
        try:
            subprocess.run(whole, env=environment, stdout=file, stderr=file, timeout=limit, check=False)
        except subprocess.TimeoutExpired:
            file.write(f"\nnot done after {limit:.0f} s")
    lines = log.read_text(errors="replace").strip().splitlines()
    told = next((json.loads(line) for line in lines if line.startswith('{"step_ms"')), None)
    found = told or {"failed": " / ".join(lines[-3:])[-600:]}
    return {**found, "process_s": round(time.perf_counter() - began, 1)}


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


def measure(name: str, home: Path, diffusers: Path, ways: Sequence[str], limit: float) -> Iterator[dict[str, Any]]:
    """Train one model in every way."""
    job, model = JOBS[name], home / name
    if not model.is_dir():
        subprocess.run([sys.executable, str(HERE / "real_models.py"), name, str(model)], check=True)
    pictures = make_pictures(home / f"pictures-{job.resolution}", job.resolution)
    if "diffusers" in ways:
        command = theirs(job, diffusers, model, pictures, home / "out")
        yield {"model": name, "way": "diffusers", **watch(command, home, limit)}
    for number, (way, flags) in enumerate(job.ways.items()):
        if way in ways:
            command = ours(job, model, pictures, home / f"run-{name}-{number}", flags)
            yield {"model": name, "way": way, **watch(command, home, limit)}


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
    parser.add_argument("--limit", type=float, default=600, help="seconds of one process")
    parser.add_argument("--out", type=Path, help="file to append the lines to")
    chosen = parser.parse_args()
    chosen.home.mkdir(parents=True, exist_ok=True)
    about = {"device": "cpu", "torch": torch.__version__}
    if torch.cuda.is_available():
        about |= {"device": torch.cuda.get_device_name(), "bf16_product_tflops": round(peak_tflops())}
    for line in (about, *(row for name in chosen.models for row in _rows(name, chosen))):
        print(json.dumps(line), flush=True)
        if chosen.out:
            with chosen.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def _rows(name: str, chosen: argparse.Namespace) -> Iterator[dict[str, Any]]:
    return measure(name, chosen.home.resolve(), chosen.diffusers, chosen.ways, chosen.limit)


if __name__ == "__main__":
    main()
