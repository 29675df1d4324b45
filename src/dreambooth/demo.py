"""`make demo`: teach the embedded toybox model a bundled subject, show the pictures, say what was measured."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from dreambooth import families, methods, photos, progress
from dreambooth.files import atomic
from dreambooth.heldout import denoising_error
from dreambooth.images import grid
from dreambooth.models import resolve
from dreambooth.recipe import Recipe
from dreambooth.run import Run
from dreambooth.toybox import SUBJECTS
from dreambooth.training import train

SUBJECT = "spotted_dog"
NOUN = "dog"


def main(out: Path = Path("runs/demo")) -> None:
    """Train, draw and measure; print where everything is."""
    recipe = Recipe.of({"model": "toybox", "subjects": [{"photos": SUBJECTS / SUBJECT / "photos", "class_noun": NOUN}]})
    reporter = progress.for_console("text")
    try:
        run = train(recipe, out, reporter)
    finally:
        reporter.close()
    sheet = run.path / "demo.png"
    with atomic(sheet) as temporary:
        contact_sheet(run).save(temporary, format="PNG")
    print("\ndenoising error on pictures that were not trained on (lower is better):")
    for what, before, after in measure(run):
        print(f"  {what:<44} {before:.4f} before, {after:.4f} after ({after / before - 1:+.0%})")
    print("\n" + "   ".join(f"{name} {seconds:.0f} s" for name, seconds in run.info["times"].items()))
    print(f"pictures {sheet}\nreport   {run.report}")
    print(f'next     {Path(".venv/bin/dreambooth")} generate {run.path} "a [V] {NOUN} in the snow" --count 4')


def contact_sheet(run: Run) -> Image.Image:
    """Return the photos, "a [V] dog" and "a dog" before and after, and the scenes, on one sheet."""

    def row(pattern: str) -> list[Image.Image]:
        return [Image.open(path).convert("RGB").resize((128, 128), Image.Resampling.BICUBIC) for path in sorted(run.path.glob(pattern))]

    rows = {
        "its photos": row("photos/*.jpg"),
        f"'a [V] {NOUN}' before": row("samples/before-subject-*.png"),
        f"'a [V] {NOUN}' after": row("samples/after-subject-*.png"),
        "beach, snow, street, city, painting": row("samples/after-scene-*.png"),
        f"'a {NOUN}' before": row("samples/before-class-*.png"),
        f"'a {NOUN}' after": row("samples/after-class-*.png"),
    }
    columns = max(map(len, rows.values()))
    blank = Image.new("RGB", (128, 128), "white")
    cells = [cell for pictures in rows.values() for cell in [*pictures, *[blank] * (columns - len(pictures))]]
    return grid(cells, columns, list(rows))


def measure(run: Run) -> list[tuple[str, float, float]]:
    """Return what was measured, and its values before and after training.

    The subject's pictures are renders of it in eight other places; the class's are renders of other subjects.
    """
    recipe, source = run.recipe, resolve("toybox")
    assert recipe.resolution is not None
    family = families.get(source.family)
    frozen = family.load(source, torch.float32)
    tuned = methods.get(recipe.method).load(family, source, recipe, run.adapter)
    unseen = photos.usable(photos.read(SUBJECTS / SUBJECT / "truth", recipe.resolution))
    others = photos.usable(photos.read(SUBJECTS / "striped_cat" / "truth", recipe.resolution))
    named = f"a {run.info['identifier']} {NOUN}"
    return [
        (what, *(denoising_error(pipe, family, pictures, text, recipe.resolution) for pipe in (frozen, tuned)))
        for what, pictures, text in (
            (f"the subject in other places, '{named}'", unseen, named),
            ("another subject, 'a cat'", others, "a cat"),
        )
    ]


if __name__ == "__main__":
    main()
