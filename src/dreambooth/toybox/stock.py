"""What studies train on: the bundled subjects, a part of their photos, and others of their classes."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

from dreambooth.files import atomic_folder
from dreambooth.toybox import SUBJECTS


def class_of(subject: str) -> str:
    """Return the class noun of a bundled subject."""
    described = json.loads((SUBJECTS / subject / "subject.json").read_text(encoding="utf-8"))
    return str(described["class"])


def other_subject(noun: str, seed: int, home: Path) -> Path:
    """Return the folder of another subject of a class, rendered once; none of the bundle has so small a seed."""
    from dreambooth.toybox.world.bundle import render_subject

    folder = home / f"{noun}-{seed}"
    if not (folder / "subject.json").is_file():
        render_subject(noun, seed, folder)
    return folder


def photos_of_others(noun: str, count: int, home: Path) -> Path:
    """Return a folder of photos of so many other subjects of a class, rendered once."""
    from dreambooth.toybox.world.bundle import render_photos

    out = home / f"{noun}, {count}"
    if not out.is_dir():
        with atomic_folder(out) as folder:
            for seed in range(1, count + 1):
                with tempfile.TemporaryDirectory() as scratch:
                    for file in render_photos(noun, seed, Path(scratch)):
                        shutil.copyfile(file, folder / f"{seed}-{file.name}")
    return out


def first_photos(photos: Path, count: int, out: Path) -> Path:
    """Copy the first photos of a folder."""
    out.mkdir(parents=True, exist_ok=True)
    for file in sorted(photos.glob("*.png"))[:count]:
        shutil.copyfile(file, out / file.name)
    return out


def with_masks(photos: Path, masks: Path, out: Path) -> Path:
    """Put photos and their masks side by side, as a run wants them."""
    out.mkdir(parents=True, exist_ok=True)
    for file in sorted(photos.glob("*.png")):
        shutil.copyfile(file, out / file.name)
        shutil.copyfile(masks / file.name, out / f"{file.stem}.mask.png")
    return out
