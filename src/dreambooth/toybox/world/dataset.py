"""The training set: shards of rendered scenes with captions and truth, resumed by running the same call again."""

from __future__ import annotations

import json
import logging
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from dreambooth.toybox.world.captions import caption
from dreambooth.toybox.world.priors import FRESH_SHARE
from dreambooth.toybox.world.renderer import render
from dreambooth.toybox.world.scenes import Scene, random_scene, random_subject, to_dict
from dreambooth.toybox.world.shapes import Array

SHARD = 256
SIZE = 64
GROUP = 4
GROUPED = SHARD - round(SHARD * FRESH_SHARE)
STRIDE = 10_000_000

log = logging.getLogger(__name__)


def render_dataset(out: Path, count: int, seed: int, processes: int = 2) -> None:
    """Render `count` scenes, rounded up to whole shards.

    `shard_00000.npy` is uint8 (256, 64, 64, 3); `shard_00000.jsonl` has a line for each image: seed, caption, scene.
    Shards that exist are left; a shard that another process is at is left to it.

    Args:
        out: Folder of the shards.
        count: Number of scenes.
        seed: Of the whole set.
        processes: How many render at the same time.
    """
    out.mkdir(parents=True, exist_ok=True)
    shards = range(-(-count // SHARD))
    if processes == 1:
        for shard in shards:
            render_shard(out, shard, seed)
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for done in [pool.submit(render_shard, out, shard, seed) for shard in shards]:
            done.result()


def render_shard(out: Path, shard: int, seed: int) -> None:
    """Render one shard unless it exists or is being rendered elsewhere."""
    target = out / f"shard_{shard:05d}.npy"
    if target.exists():
        return
    try:
        with FileLock(target.with_suffix(".lock"), timeout=0):
            if not target.exists():
                _write(target, [scene_of(index, seed) for index in range(shard * SHARD, (shard + 1) * SHARD)])
                log.info("%s", target)
    except Timeout:
        return


def scene_of(index: int, seed: int) -> Scene:
    """Scene `index` of the set. The first scenes of each shard come in groups of four of the same subject."""
    shard, place = divmod(index, SHARD)
    number = seed * STRIDE + index
    if place >= GROUPED:
        return random_scene(number)
    group = np.random.default_rng([seed, shard, place // GROUP, 3])
    return random_scene(number, random_subject(group))


def _write(target: Path, scenes: list[Scene]) -> None:
    """Images last: their file says that the shard is whole."""
    records = [{"seed": scene.seed, "caption": words(scene), "scene": to_dict(scene)} for scene in scenes]
    images = np.stack([np.asarray(render(scene, SIZE)) for scene in scenes])
    lines, pixels = target.with_suffix(".jsonl.part"), target.with_suffix(".npy.part")
    lines.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    os.replace(lines, target.with_suffix(".jsonl"))
    with pixels.open("wb") as file:
        np.save(file, images)
    os.replace(pixels, target)


def words(scene: Scene) -> str:
    """The scene's caption in the training set."""
    return caption(scene, np.random.default_rng([scene.seed, 13]))


def load_dataset(folder: Path, shards: slice | None = None) -> tuple[Array, list[dict[str, Any]]]:
    """Images uint8 (N, 64, 64, 3) and their records, of all whole shards or of a slice of them.

    Raises:
        FileNotFoundError: No shard there.
    """
    paths = sorted(folder.glob("shard_*.npy"))[shards or slice(None)]
    if not paths:
        raise FileNotFoundError(f"no shards in {folder}")
    texts = [path.with_suffix(".jsonl").read_text(encoding="utf-8") for path in paths]
    records = [json.loads(line) for text in texts for line in text.splitlines()]
    return np.concatenate([np.load(path) for path in paths]), records
