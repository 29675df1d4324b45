"""A run's own pictures: the subject and its class before and after training, and the subject in new scenes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import cast

import torch
from diffusers import DiffusionPipeline
from PIL import Image

from dreambooth import photos, prompts
from dreambooth.batches import generator
from dreambooth.files import atomic, write_json
from dreambooth.images import PREVIEWS, save_png
from dreambooth.photos import Photo
from dreambooth.progress import Reporter
from dreambooth.recipe import Recipe
from dreambooth.run import Run
from dreambooth.sampling import Sampling, draw

PREVIEW_SIDE = 256


@dataclass(frozen=True)
class Shot:
    """A picture to draw.

    Attributes:
        prompt: The template, with `[V]`.
        text: What the model is given.
        seed: Seed of the image's noise.
        number: Of the prompt among the run's.
        role: "before" or "after" training.
        kind: "subject", "scene" or "class".
    """

    prompt: str
    text: str
    seed: int
    number: int
    role: str
    kind: str

    @property
    def file(self) -> str:
        """Name of the picture's file."""
        slug = "".join(c if c.isalnum() else "-" for c in self.prompt.replace("[V]", "V"))[:48]
        return f"{self.role}-{self.kind}-{self.number:02d}-{slug}-{self.seed}.png"


def image_generator(seed: int) -> torch.Generator:
    """Return the CPU generator of the image with this seed, for every command that draws images."""
    return generator(seed, "image")


def shots(recipe: Recipe, role: str) -> list[Shot]:
    """List the pictures of a run: the same seeds before and after; scenes only after."""
    names = [subject.identifier or "" for subject in recipe.subjects]
    nouns = [subject.class_noun for subject in recipe.subjects]
    labels = [prompts.label(recipe.label, noun, index) for index, noun in enumerate(nouns)]
    pairs = [("subject", label) for label in labels]
    pairs += [("class", prompts.class_prompt(noun)) for noun in dict.fromkeys(nouns)]
    seeds = {"scene": 1}
    if role == "after":
        scenes = recipe.scenes or [scene for label in labels for scene in prompts.scenes(label)]
        pairs += [("scene", text) for text in scenes]
    return [
        Shot(text, prompts.fill(text, names), seed, number, role, kind)
        for number, (kind, text) in enumerate(pairs)
        for seed in range(seeds.get(kind, recipe.samples))
    ]


def settings(recipe: Recipe) -> Sampling:
    """Return how a recipe's pictures are drawn."""
    values = (recipe.sampler, recipe.inference_steps, recipe.guidance, recipe.resolution)
    assert None not in values, "presets.fill leaves none open"
    return Sampling(*cast(tuple[str, int, float, int], values), consistency=recipe.consistency)


def draw_before(run: Run, pipe: DiffusionPipeline, recipe: Recipe, reporter: Reporter) -> None:
    """Draw the frozen model's pictures, unless they are there."""
    _draw(run, pipe, recipe, reporter, "before")


def draw_after(run: Run, pipe: DiffusionPipeline, recipe: Recipe, reporter: Reporter) -> None:
    """Draw the trained model's pictures anew."""
    for stale in run.samples.glob("after-*.png"):
        stale.unlink()
    _draw(run, pipe, recipe, reporter, "after")


def _draw(run: Run, pipe: DiffusionPipeline, recipe: Recipe, reporter: Reporter, role: str) -> None:
    wanted = shots(recipe, role)
    sampling = settings(recipe)
    there = _is_of(run, sampling) and all((run.samples / shot.file).is_file() for shot in wanted)
    reporter.stage(f"pictures {role}", len(wanted), len(wanted) if there else 0)
    if there:
        return
    # All of them, even if some are there: an image's last bit depends on how many are drawn beside it.
    generators = [image_generator(shot.seed) for shot in wanted]
    for shot, image in zip(wanted, draw(pipe, [s.text for s in wanted], generators, sampling), strict=True):
        with atomic(run.samples / shot.file) as temporary:
            save_png(image, temporary, {"prompt": shot.text, "seed": str(shot.seed)})
        reporter.advance()
    _write_manifest(run, sampling, wanted)


def _is_of(run: Run, sampling: Sampling) -> bool:
    """Whether the run's pictures were drawn with these settings."""
    path = run.samples / "manifest.json"
    there = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return all(there.get(name) == value for name, value in sampling.document.items())


def _write_manifest(run: Run, sampling: Sampling, drawn: Sequence[Shot]) -> None:
    path = run.samples / "manifest.json"
    there = json.loads(path.read_text(encoding="utf-8"))["images"] if path.is_file() else []
    role = drawn[0].role
    kept = [entry for entry in there if entry["role"] != role]
    images = kept + [{"file": shot.file, **asdict(shot)} for shot in drawn]
    write_json(path, {**sampling.document, "images": images})


def save_previews(run: Run, pictures: Sequence[Photo]) -> None:
    """Keep small copies of the first photos in the run, so that its report stands alone."""
    for index, photo in enumerate(pictures[:PREVIEWS]):
        path = run.path / "photos" / f"{index:02d}.jpg"
        if not path.is_file():
            preview = Image.fromarray(photos.crop(photo, (PREVIEW_SIDE, PREVIEW_SIDE)))
            with atomic(path) as temporary:
                preview.save(temporary, format="JPEG", quality=90)
