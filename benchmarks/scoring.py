"""What scoring picture files costs beside the encoder itself: `python benchmarks/scoring.py [--count 3000]`.

Files are embedded by `embed_files` (read, hashed, decoded, prepared, encoded, cached) with a ViT-S/16 of random
weights; ready tensors go through the same network bare. Blocks of both alternate, so that what else runs on the
machine slows both. The bar is a ratio of 80 %.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import ViTConfig, ViTModel

from dreambooth.evaluation.embeddings import BATCH, embed_files
from dreambooth.evaluation.encoders import Encoder, load
from dreambooth.evaluation.preprocessing import IMAGENET

PREPROCESSOR = {
    "size": {"shortest_edge": 256},
    "do_center_crop": True,
    "crop_size": 224,
    "image_mean": IMAGENET[0],
    "image_std": IMAGENET[1],
}


def write_encoder(folder: Path) -> None:
    """Write a ViT-S/16 of random weights with DINO's preprocessing."""
    sizes = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 12, "num_attention_heads": 6}
    ViTModel(ViTConfig(**sizes), add_pooling_layer=False).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))


def write_pictures(folder: Path, count: int, side: int, seed: int) -> list[Path]:
    """Write pictures whose PNG files are about as large as those of generated photographs."""
    folder.mkdir()
    paths = [folder / f"{index:04d}.png" for index in range(count)]
    for index, path in enumerate(paths):
        random = np.random.default_rng((seed, index))
        blobs = Image.fromarray(random.integers(0, 256, (12, 12, 3), dtype=np.uint8)).resize((side, side))
        grain_HWC = random.integers(-4, 5, (side, side, 3))
        Image.fromarray((np.asarray(blobs) + grain_HWC).clip(0, 255).astype(np.uint8)).save(path)
    return paths


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock time of a call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def bare(encoder: Encoder, count: int) -> Callable[[], None]:
    """The forward passes of `count` ready pictures and nothing else."""
    ready_BCHW = torch.rand(BATCH, 3, 224, 224)

    def forward() -> None:
        for start in range(0, count, BATCH):
            encoder.embed_images(ready_BCHW[: count - start])

    return forward


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=3000, help="pictures in all")
    parser.add_argument("--block", type=int, default=4 * BATCH, help="pictures in a block")
    parser.add_argument("--side", type=int, default=512, help="their side in pixels")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        os.environ["DREAMBOOTH_CACHE"] = str(home / "cache")
        write_encoder(home / "encoder")
        encoder = load(str(home / "encoder"), options.device)
        bare(encoder, BATCH)()
        rates: list[tuple[float, float]] = []
        for start in range(0, options.count, options.block):
            count = min(options.block, options.count - start)
            files = write_pictures(home / str(start), count, options.side, start)
            scored = seconds(lambda files=files: embed_files(encoder, files))
            rates.append((count / scored, count / seconds(bare(encoder, count))))
            for file in files:
                file.unlink()
    files_rate, bare_rate = (statistics.median(rate) for rate in zip(*rates, strict=True))
    ratio = statistics.median(files / bare for files, bare in rates)
    print(f"{options.count} pictures of {options.side} px in {len(rates)} blocks, {torch.get_num_threads()} threads")
    print(f"files: {files_rate:.1f} pictures/s, bare encoder: {bare_rate:.1f} pictures/s, ratio {100 * ratio:.1f} %")


if __name__ == "__main__":
    main()
