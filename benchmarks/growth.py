"""How cost grows: `python benchmarks/growth.py [photos resolution batch classes processes encoder]`.

Whole `dreambooth train` commands on the toybox, each in a process of its own, that differ in one thing: the number of
photos, the resolution, the batch, the class images to make, the processes. "start" is all before the first step but
class images. Beside 1,000 photos stands what the encoder alone takes for as many ready tensors; `encoder` measures the
same with an autoencoder of real size (Stable Diffusion's shapes, random weights) and photos of 12 megapixels.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import real_models
import torch
from PIL import Image

from dreambooth import families, photos
from dreambooth.cache import Row, encode_photos
from dreambooth.families import common
from dreambooth.models import resolve
from dreambooth.progress import hush_libraries

GROWTH: dict[str, tuple[int, ...]] = {
    "photos": (1, 10, 100, 1000),
    "resolution": (64, 96, 128),
    "batch": (1, 2, 4, 8),
    "classes": (0, 25, 100, 500, 2000),
    "processes": (1, 2),
}
STEPS = 30
SIDE = 128
"""Of the photos, in pixels."""


def write_photos(folder: Path, count: int) -> Path:
    """Write photos whose files are about as large as real ones of their size."""
    folder.mkdir()
    for index in range(count):
        random = np.random.default_rng(index)
        blobs = Image.fromarray(random.integers(0, 256, (12, 12, 3), dtype=np.uint8)).resize((SIDE, SIDE))
        grain_HWC = random.integers(-4, 5, (SIDE, SIDE, 3))
        Image.fromarray((np.asarray(blobs) + grain_HWC).clip(0, 255).astype(np.uint8)).save(folder / f"{index}.png")
    return folder


def command(what: str, count: int, home: Path) -> list[str]:
    """The command of a case."""
    folder = write_photos(home / "photos", count if what == "photos" else 8)
    given: list[object] = ["train", folder, "--class", "dog", "--model", "toybox", "--samples", 0, "--json"]
    given += ["--steps", STEPS, "--out", home / "run"]
    given += ["--resolution", count if what == "resolution" else 64]
    given += ["--batch-size", {"batch": count, "processes": 2}.get(what, 1)]
    given += ["--prior-count", count] if what == "classes" and count else ["--prior-weight", 0]
    launch = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", count] if what == "processes" else []
    return [sys.executable, *map(str, [*launch, "-m", "dreambooth", *given])]


def measure(what: str, count: int) -> dict[str, Any]:
    """Seconds and megabytes of a case."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        words = command(what, count, home)
        environment = {**os.environ, "DREAMBOOTH_CACHE": str(home / "cache")}
        began = time.perf_counter()
        done = subprocess.run(words, env=environment, capture_output=True)
        taken = time.perf_counter() - began
        if done.returncode:
            sys.exit(done.stderr.decode()[-3000:])
        info = json.loads((home / "run" / "run.json").read_text(encoding="utf-8"))
    drawn = info["times"].get("class images", 0.0)
    figures = {
        "start": taken - info["times"]["training"] - drawn,
        "caching": info["times"]["caching"],
        "class images": drawn,
        "step": info["times"]["training"] / STEPS,
        "peak MB": info["peak_mb"],
    }
    return {what: count, **{name: round(value, 3) for name, value in figures.items()}}


@torch.no_grad()
def encoder_alone(count: int) -> float:
    """Seconds in which the VAE encodes so many ready pictures, one at a time as caching does."""
    source = resolve("toybox")
    family = families.get(source.family)
    pipe = family.load(source, torch.float32)
    pixels_1CHW = torch.rand(1, 3, 64, 64)
    family.encode_images(pipe, pixels_1CHW)
    began = time.perf_counter()
    for _ in range(count):
        family.encode_images(pipe, pixels_1CHW)
    return time.perf_counter() - began


@torch.no_grad()
def real_encoder(count: int = 8, side: int = 256) -> dict[str, float]:
    """Seconds in which photos as they come are read, checked and encoded, and those of the encoder alone."""
    family: Any = common
    pipe: Any = SimpleNamespace(vae=real_models.vae(torch.float32))
    pixels_1CHW = torch.rand(1, 3, side, side)
    family.encode_images(pipe, pixels_1CHW)
    began = time.perf_counter()
    for _ in range(count):
        family.encode_images(pipe, pixels_1CHW)
    alone = time.perf_counter() - began
    with tempfile.TemporaryDirectory() as folder:
        for index in range(count):
            blobs = np.random.default_rng(index).integers(0, 256, (24, 32, 3), dtype=np.uint8)
            Image.fromarray(blobs).resize((4000, 3000)).save(Path(folder) / f"{index}.jpg", quality=92)
        began = time.perf_counter()
        rows = [Row(photo, (side, side)) for photo in photos.usable(photos.read(Path(folder), side))]
        for _ in encode_photos(pipe, family, rows, seed=0):
            pass
        whole = time.perf_counter() - began
    return {
        "photos": count,
        "side": side,
        "the encoder alone": round(alone, 2),
        "read, checked, encoded": round(whole, 2),
    }


def main() -> None:
    """Measure and print, a JSON line a case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", help=f"of {', '.join(GROWTH)} (default: all)")
    chosen = parser.parse_args()
    known = [*GROWTH, "encoder"]
    if not set(chosen.what) <= set(known):
        parser.error(f"choose from {', '.join(known)}")
    hush_libraries()
    print(f"{platform.platform()}, torch {torch.__version__}, {torch.get_num_threads()} threads", flush=True)
    for what in chosen.what or known:
        for count in GROWTH.get(what, ()):
            print(json.dumps(measure(what, count)), flush=True)
        if what == "photos":
            print(json.dumps({"the encoder alone, 1000 photos": round(encoder_alone(1000), 3)}), flush=True)
        if what == "encoder":
            print(json.dumps(real_encoder()), flush=True)


if __name__ == "__main__":
    main()
