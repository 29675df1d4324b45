"""`dreambooth demo`: teach the embedded toybox model a bundled subject, show the pictures, say what was measured."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from dreambooth.files import atomic
from dreambooth.images import grid
from dreambooth.progress import Reporter
from dreambooth.recipe import Recipe
from dreambooth.run import Run
from dreambooth.samples import shots
from dreambooth.toybox import SUBJECTS
from dreambooth.training import train

SUBJECT = "spotted_dog"
NOUN = "dog"
ROLES = ("before", "after")


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
    """Return how many colours the run's pictures share with the photos, before and after training."""
    given = [Image.open(path) for path in sorted(run.path.glob("photos/*.jpg"))]
    texts = {"subject": f"a [V] {NOUN}", "class": f"a {NOUN}"}
    measured = []
    for kind, text in texts.items():
        overlaps = []
        for role in ROLES:
            files = [run.samples / shot.file for shot in shots(run.recipe, role) if shot.kind == kind]
            overlaps.append(colour_overlap([Image.open(file) for file in files], given))
        measured.append(Measured(text, *overlaps))
    return measured


def colour_overlap(drawn: Sequence[Image.Image], given: Sequence[Image.Image]) -> float:
    """Return the share of pixels whose colours two sets of pictures have in common, 0..1, over all pairs.

    The intersection of histograms with 4 x 4 x 4 bins (Swain and Ballard 1991, Color Indexing). It sees no shapes:
    it is what can be said of a 64-px picture without a network that judges it.
    """
    ours, theirs = _histograms(drawn), _histograms(given)
    return float(np.minimum(ours[:, None], theirs[None]).sum(-1).mean())


def _histograms(pictures: Sequence[Image.Image]) -> npt.NDArray[np.float64]:
    small = [np.asarray(each.convert("RGB").resize((64, 64)), np.int64) // 64 for each in pictures]
    counts = [np.bincount((pixels @ (16, 4, 1)).ravel(), minlength=64) for pixels in small]
    return np.stack(counts) / small[0][..., 0].size
