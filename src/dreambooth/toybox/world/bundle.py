"""Subjects with photos and known truth: what DreamBooth is tried on and measured against."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dreambooth.errors import UserError
from dreambooth.toybox.world.captions import prompt
from dreambooth.toybox.world.renderer import render, render_mask
from dreambooth.toybox.world.scenes import Scene, to_dict
from dreambooth.toybox.world.vocabulary import CLASSES, CONTEXTS, LIVE, PAPER_OUTFITS, TOP_CONTEXTS

SIZE = 256
SAMPLES = 36
PHOTOS = 5
# Patterned and of several colours, so that no caption could describe them: class and subject seed.
BUNDLE = {
    "spotted_dog": ("dog", 57),
    "striped_cat": ("cat", 72),
    "patched_bear": ("bear", 65),
    "tin_robot": ("robot", 136),
    "painted_teapot": ("teapot", 417),
    "rally_car": ("car", 152),
    "school_backpack": ("backpack", 210),
    "garden_duck": ("duck", 160),
    "harlequin_rabbit": ("rabbit", 98),
    "circus_elephant": ("elephant", 80),
    "banded_boot": ("boot", 168),
    "chequered_lamp": ("lamp", 236),
}
# A photo is taken of what is there: from about the front, with a context of the everyday kind.
PHOTO_CONTEXTS = tuple(context for context in CONTEXTS if context not in ("at night", "on the moon", "in the sky"))


def render_bundle(out: Path) -> None:
    """Render every subject of the bundle into its own folder."""
    for name, (cls, subject_seed) in BUNDLE.items():
        render_subject(cls, subject_seed, out / name)


def render_subject(cls: str, subject_seed: int, out: Path) -> None:
    """Photos, truth pictures and masks of one subject, 256 px, and `subject.json` that says what they show.

    `photos/00.png` ... `04.png` in five contexts; `truth/00.png` ... `07.png` in eight other contexts, views, outfits
    and properties. In `masks`, under the same names, 255 where the subject is seen, without its outfit; they lie apart,
    for masks beside photos would change how these are learned.

    Raises:
        UserError: The class is not one of the world's.
    """
    if cls not in CLASSES:
        raise UserError(f"no class {cls!r} in the toy world: choose one of {', '.join(CLASSES)}")
    photos, truth = subject_scenes(cls, subject_seed)
    described = {
        "class": cls,
        "seed": subject_seed,
        "contexts": [scene.context for scene in photos],
        "photos": list(_render_all(photos, out, "photos")),
        "truth": list(_render_all(truth, out, "truth")),
    }
    (out / "subject.json").write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")


def render_photos(cls: str, subject_seed: int, out: Path) -> list[Path]:
    """Render a subject's photos alone, as `render_subject` does, and return their files."""
    photos, _ = subject_scenes(cls, subject_seed)
    return [out / "photos" / described["file"] for described in _render_all(photos, out, "photos")]


def subject_scenes(cls: str, subject_seed: int) -> tuple[list[Scene], list[Scene]]:
    """The five photos' and the eight truth pictures' scenes of a subject; no context comes twice."""
    rng = np.random.default_rng([CLASSES.index(cls), subject_seed, 17])
    from_above = str(rng.choice(TOP_CONTEXTS))
    contexts = [str(context) for context in rng.permutation(PHOTO_CONTEXTS) if context != from_above]
    seeds = rng.integers(1 << 30, size=PHOTOS + 8)
    scenes = [Scene(int(seed), cls, subject_seed, context) for seed, context in zip(seeds, contexts, strict=False)]
    photos, truth = scenes[:PHOTOS], scenes[PHOTOS:]
    photos[0] = replace(photos[0], view="front")
    changes: list[dict[str, Any]] = [{}, {}, {"view": "side"}, {"view": "back"}, {"view": "top", "context": from_above}]
    changes += _live_changes(rng) if cls in LIVE else _object_changes()
    return photos, [replace(scene, **change) for scene, change in zip(truth, changes, strict=True)]


def _live_changes(rng: np.random.Generator) -> list[dict[str, Any]]:
    one, two = (str(outfit) for outfit in rng.permutation(PAPER_OUTFITS)[:2])
    return [{"accessory": one}, {"accessory": two}, {"properties": ("wet",)}]


def _object_changes() -> list[dict[str, Any]]:
    return [{"colour": "red"}, {"properties": ("wet",)}, {"properties": ("shiny",)}]


def _render_all(scenes: list[Scene], out: Path, part: str) -> Iterator[dict[str, Any]]:
    """Render scenes and their masks; yields what `subject.json` says of each."""
    pictures, masks = out / part, out / "masks" / part
    for folder in (pictures, masks):
        folder.mkdir(parents=True, exist_ok=True)
    for index, scene in enumerate(scenes):
        name = f"{index:02d}.png"
        render(scene, SIZE, SAMPLES).save(pictures / name)
        render_mask(scene, SIZE).save(masks / name)
        yield {"file": name, "prompt": prompt(scene), "scene": to_dict(scene)}
