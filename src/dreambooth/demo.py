"""`dreambooth demo`: teach the embedded toybox model a bundled subject, show the pictures, say what was measured."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from dreambooth import families, methods, photos
from dreambooth.files import atomic
from dreambooth.heldout import denoising_error
from dreambooth.images import grid
from dreambooth.models import resolve
from dreambooth.progress import Reporter
from dreambooth.recipe import Recipe
from dreambooth.run import Run
from dreambooth.samples import shots
from dreambooth.toybox import SUBJECTS
from dreambooth.training import train

SUBJECT = "spotted_dog"
NOUN = "dog"
OTHER = "striped_cat"
OTHER_TEXT = "a cat"


@dataclass(frozen=True)
class Measured:
    """One figure of the demo: what it is of, and its value before and after training."""

    what: str
    before: float
    after: float


def demo(out: Path, reporter: Reporter) -> tuple[Run, Path, list[Measured]]:
    """Train, draw and measure.

    Returns:
        The run, its contact sheet, and what was measured.
    """
    recipe = Recipe.of({"model": "toybox", "subjects": [{"photos": SUBJECTS / SUBJECT / "photos", "class_noun": NOUN}]})
    run = train(recipe, out, reporter)
    sheet = run.path / "demo.png"
    with atomic(sheet) as temporary:
        contact_sheet(run).save(temporary, format="PNG")
    return run, sheet, measure(run)


def contact_sheet(run: Run) -> Image.Image:
    """Return the photos, "a [V] dog" and "a dog" before and after, and the scenes, on one sheet."""

    def row(paths: Sequence[Path]) -> list[Image.Image]:
        pictures = [Image.open(path).convert("RGB") for path in paths]
        return [picture.resize((128, 128), Image.Resampling.BICUBIC) for picture in pictures]

    drawn = [*shots(run.recipe, "before"), *shots(run.recipe, "after")]
    files: dict[tuple[str, str], list[Path]] = defaultdict(list)
    for shot in drawn:
        files[shot.role, shot.kind].append(run.samples / shot.file)
    rows = {
        "its photos": row(sorted(run.path.glob("photos/*.jpg"))),
        f"'a [V] {NOUN}' before": row(files["before", "subject"]),
        f"'a [V] {NOUN}' after": row(files["after", "subject"]),
        "on the beach, in the snow, on a street, with a city, a painting": row(files["after", "scene"]),
        f"'a {NOUN}' before": row(files["before", "class"]),
        f"'a {NOUN}' after": row(files["after", "class"]),
    }
    columns = max(map(len, rows.values()))
    blank = Image.new("RGB", (128, 128), "white")
    cells = [cell for pictures in rows.values() for cell in [*pictures, *[blank] * (columns - len(pictures))]]
    return grid(cells, columns, list(rows))


def measure(run: Run) -> list[Measured]:
    """Return the denoising error on pictures that were not trained on.

    The subject's are renders of it in eight other places; the other subject's show whether the rest of the model's
    world is where it was.
    """
    recipe, source = run.recipe, resolve("toybox")
    assert recipe.resolution is not None
    side = recipe.resolution
    family = families.get(source.family)
    frozen = family.load(source, torch.float32)
    tuned = methods.get(recipe.method).load(family, source, recipe, run.adapter)
    named = f"a {run.info['identifier']} {NOUN}"
    measured = []
    for what, name, text in (("the subject in other places", SUBJECT, named), ("another subject", OTHER, OTHER_TEXT)):
        pictures = photos.usable(photos.read(SUBJECTS / name / "truth", side))
        before, after = (denoising_error(pipe, family, pictures, text, side) for pipe in (frozen, tuned))
        measured.append(Measured(f"{what}, as '{text}'", before, after))
    return measured
