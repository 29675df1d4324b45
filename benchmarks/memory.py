"""How good the estimate of a step's memory is: `python benchmarks/memory.py`. Prints a table.

A U-Net of Stable Diffusion's kind and 50 million weights is trained in float32 on the CPU, each case in a process of
its own: by how much the resident memory grows at most in four steps, beside the growth that was foretold. glibc keeps
what is freed, so that each case also runs with an allocator that is told to return it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from real_models import BETAS, UNUSED, clip_tokenizer, real, vae
from step import ours, prepared
from transformers import CLIPTextConfig, CLIPTextModel

from dreambooth import memory
from dreambooth.models import resolve
from dreambooth.progress import hush_libraries

CASES: dict[str, dict[str, Any]] = {
    "2 images": {"batch_size": 1},
    "8 images": {"batch_size": 4},
    "8 images, recomputed": {"batch_size": 4, "gradient_checkpointing": True},
    "2 images, full fine-tuning": {"batch_size": 1, "method": "full", "learning_rate": 1e-5},
}
RETURNING = {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
"""Has glibc return memory that is freed."""
STEPS = 4


def model(folder: Path) -> None:
    """Write a model of random weights."""
    sizes = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 2, "num_attention_heads": 4}
    unet = {"sample_size": 32, "block_out_channels": (128, 256, 384), "cross_attention_dim": 256}
    unet |= {"down_block_types": ("CrossAttnDownBlock2D",) * 2 + ("DownBlock2D",)}
    unet |= {"up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 2}
    StableDiffusionPipeline(
        vae=vae(torch.float32, sample_size=256, block_out_channels=(32, 32, 32, 32)),
        text_encoder=real(CLIPTextModel, CLIPTextConfig(projection_dim=256, **sizes), dtype=torch.float32),
        tokenizer=clip_tokenizer(),
        unet=real(UNet2DConditionModel, dtype=torch.float32, **unet),
        scheduler=DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        **UNUSED,
    ).save_pretrained(folder)


def case(name: str, folder: Path) -> dict[str, float]:
    """Megabytes of a case in this process."""
    hush_libraries()
    values = {"model": str(folder / "model"), "resolution": 256, "precision": "fp32", "prior_steps": 1, **CASES[name]}
    state = prepared(values, folder / "run")
    trainee = state.accelerator.unwrap_model(state.trainee)
    weights = sum(weight.nbytes for weight in trainee._family.denoiser(trainee._pipe).parameters())
    run, device = ours(state), torch.device("cpu")
    grown = growth(lambda: run(STEPS))
    source = trainee._family.load(resolve(values["model"]), torch.float32)
    images = 2 * state.recipe.batch_size
    foretold = memory.step_bytes(source, trainee._family, state.recipe, images, device) - weights
    return {"foretold": foretold / 1e6, "measured": grown / 1e6}


def growth(work: Callable[[], object]) -> int:
    """By how many bytes the resident memory grows at most while something is done."""
    process, done = psutil.Process(), threading.Event()
    before = most = process.memory_info().rss

    def look() -> None:
        nonlocal most
        while not done.wait(0.002):
            most = max(most, process.memory_info().rss)

    watcher = threading.Thread(target=look)
    watcher.start()
    work()
    done.set()
    watcher.join()
    return most - before


def measure(name: str, folder: Path, allocator: dict[str, str]) -> dict[str, float]:
    """Megabytes of a case in a process of its own."""
    with tempfile.TemporaryDirectory(dir=folder) as home:
        (Path(home) / "model").symlink_to(folder / "model")
        command = [sys.executable, __file__, "--case", name, "--home", home]
        environment = {**os.environ, **allocator, "DREAMBOOTH_CACHE": str(Path(home) / "cache")}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--home", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.case:
        print(json.dumps(case(chosen.case, chosen.home)))
        return
    print(f"{platform.platform()}, torch {torch.__version__}, {torch.get_num_threads()} threads", flush=True)
    print("| | foretold, MB | measured, allocator told to return memory | measured, default allocator |")
    print("| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        model(Path(folder) / "model")
        for name in CASES:
            told, usual = (measure(name, Path(folder), allocator) for allocator in (RETURNING, {}))
            figures = (told["foretold"], told["measured"], usual["measured"])
            print("| " + " | ".join([name, *(f"{figure:.0f}" for figure in figures)]) + " |", flush=True)


if __name__ == "__main__":
    main()
