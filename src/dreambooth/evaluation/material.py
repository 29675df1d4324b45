"""What an evaluation needs of a run: its photos, its prompts, and the sets of pictures to draw, tuned and frozen."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from diffusers import DiffusionPipeline

from dreambooth import environment, families, photos, prompts, targets
from dreambooth.errors import UserError
from dreambooth.evaluation import dreambench
from dreambooth.evaluation.dreambench import Prompt
from dreambooth.evaluation.pictures import PictureSet, cached, draw_missing
from dreambooth.paths import cache_root
from dreambooth.photos import Photo
from dreambooth.placing import place
from dreambooth.precision import storage_dtype
from dreambooth.progress import Reporter
from dreambooth.recipe import Recipe
from dreambooth.run import Run
from dreambooth.targets import Target

SIBLINGS = {"live": ("cat", "dog", "duck"), "object": ("car", "teapot", "clock")}
"""Other classes of the same kind, whose drift is looked at too."""


@dataclass(frozen=True)
class Plan:
    """How much is drawn and with what.

    Attributes:
        prompts: "live", "object" or a YAML list; None: by the class.
        count: Pictures of each prompt (4 in the paper).
        class_count: Pictures of "a [V] class", of "a class" and of each sibling class.
        seed: The first seed.
        siblings: Sibling classes, whose drift is looked at too.
    """

    prompts: str | None = None
    count: int = 4
    class_count: int = 12
    seed: int = 0
    siblings: int = 2

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn, before any work.

        Raises:
            UserError: A count is less than 1, or the seed negative.
        """
        given = (("count", self.count, 1), ("class-count", self.class_count, 1), ("seed", self.seed, 0))
        for flag, value, least in given:
            if value < least:
                raise UserError(f"--{flag} {value}: give at least {least}")


@dataclass(frozen=True)
class Material:
    """What is to be scored: one subject of a run.

    Attributes:
        run: The run.
        name: What tells the subject from those of other runs, and from the others of its own.
        folder: Holds what is drawn and found of the subject, beside its pictures.
        noun: The class noun.
        identifier: What its placeholder stands for.
        placeholder: `[V]`, or `[V2]` of the second of several subjects.
        called: Identifier and class noun, as the run's prompts have them.
        photos: The photos it was trained on.
        first: How many photos of other subjects come before them in the run's list.
        prompts: The prompts.
        classes: The class noun and its siblings.
        tuned: The run's pictures, a text for each prompt.
        frozen: The frozen model's, with the class noun alone.
        tuned_class: The run's "a [V] class", and one text for each of `classes`.
        frozen_class: The frozen model's pictures of `classes`.
    """

    run: Run
    name: str
    folder: Path
    noun: str
    identifier: str
    placeholder: str
    called: str
    photos: list[Photo]
    first: int
    prompts: tuple[Prompt, ...]
    classes: tuple[str, ...]
    tuned: PictureSet
    frozen: PictureSet
    tuned_class: PictureSet
    frozen_class: PictureSet


def gather(run: Run, plan: Plan, index: int = 0) -> Material:
    """Find out what there is to draw and to score of a subject, without loading a model.

    Args:
        run: The run.
        plan: How much is drawn and with what.
        index: Of the subject.

    Raises:
        UserError: The run is not finished, its photos have gone or changed, or there are no such prompts.
    """
    target = targets.find(run.path)
    recipe = run.recipe
    subject = recipe.subjects[index]
    noun, identifier = subject.class_noun, subject.identifier or ""
    chosen = dreambench.choose(noun, plan.prompts, [each.class_noun for each in recipe.subjects])
    classes = (noun, *_siblings(noun)[: plan.siblings])
    seeds, class_seeds = (range(plan.seed, plan.seed + count) for count in (plan.count, plan.class_count))
    part = f"subject-{index + 1}" if len(recipe.subjects) > 1 else ""
    home = run.path / "evaluation" / part
    called = prompts.called(recipe.label, noun, identifier)
    named = [prompt.named(called) for prompt in chosen]
    plain = [prompt.text(noun) for prompt in chosen]
    class_texts = [prompts.class_prompt(each) for each in classes]
    return Material(
        run,
        "/".join(filter(None, (run.path.name, part))),
        home,
        noun,
        identifier,
        f"[V{index + 1}]" if index else "[V]",
        called,
        *_photos(run, recipe, index),
        chosen,
        classes,
        *sets(target, home / "images", named, plain, seeds),
        *sets(target, home / "class", (f"a {called}", *class_texts), class_texts, class_seeds),
    )


def gather_all(run: Run, plan: Plan) -> list[Material]:
    """Find out what there is to draw and to score of every subject of a run, as `gather` does."""
    return [gather(run, plan, index) for index in range(len(run.recipe.subjects))]


def sets(
    target: Target, folder: Path, named: Sequence[str], plain: Sequence[str], seeds: Sequence[int]
) -> tuple[PictureSet, PictureSet]:
    """Return the pictures of a trained model, and of its frozen one, with the same seeds.

    Args:
        target: A run, maybe with further adapters.
        folder: Keeps the trained model's pictures.
        named: Texts for the trained model.
        plain: Texts for the frozen one.
        seeds: Of each text.
    """
    assert target.run is not None, "a base model is not trained"
    base = f"{target.source.identity} {storage_dtype(target.run.recipe)}"
    tuned = " ".join([base, *(_weights(*each) for each in target.adapters)])
    return (
        PictureSet(folder, tuple(named), tuple(seeds), target.defaults, tuned),
        cached(cache_root() / "frozen", plain, seeds, target.defaults, base),
    )


def _weights(run: Run, strength: float) -> str:
    return targets.digest(run) + ("" if strength == 1 else f" at {strength}")


def draw_sets(target: Target, tuned: PictureSet, frozen: PictureSet, reporter: Reporter, what: str) -> None:
    """Draw what is not there of `sets`; `what` they are is told."""
    assert target.run is not None, "a base model is not trained"
    draw_missing(tuned, functools.partial(targets.load, target), reporter, what)
    draw_missing(frozen, functools.partial(frozen_pipeline, target.run), reporter, f"frozen {what}")


def draw_all(materials: Sequence[Material], reporter: Reporter) -> None:
    """Draw every picture of a run's subjects that is not there yet: first the run's, then the frozen model's."""
    for load, sets in (
        (tuned_pipeline, {"pictures": "tuned", "class pictures": "tuned_class"}),
        (frozen_pipeline, {"frozen pictures": "frozen", "frozen class pictures": "frozen_class"}),
    ):
        once = functools.cache(functools.partial(load, materials[0].run))
        for material in materials:
            of = f" of {material.identifier} {material.noun}" if len(materials) > 1 else ""
            for stage, name in sets.items():
                draw_missing(getattr(material, name), once, reporter, f"{stage}{of}")


def tuned_pipeline(run: Run) -> DiffusionPipeline:
    """Load what a run ships, on its device."""
    return targets.load(targets.find(run.path))


def frozen_pipeline(run: Run) -> DiffusionPipeline:
    """Load a run's base model, on its device."""
    source = targets.find(run.path).source
    pipe = families.get(source.family).load(source, storage_dtype(run.recipe))
    return place(pipe, environment.processes().device)


def _siblings(noun: str) -> Sequence[str]:
    """Other classes, and so none that the subject is of: a sports car is a car, a corgi a dog."""
    kind, words = "live" if dreambench.is_live(noun) else "object", set(noun.lower().split())
    return [each for each in SIBLINGS[kind] if not words & {each, *dreambench.KIN.get(each, "").split()}]


def _photos(run: Run, recipe: Recipe, index: int) -> tuple[list[Photo], int]:
    """A subject's photos, made sure to be those that it was trained on, and how many of the run's come before them.

    They are in the run's order, whatever their files are called by now.
    """
    folder, side = recipe.subjects[index].photos, recipe.resolution
    assert side is not None, "presets.fill leaves it open for no run"
    trained = [entry["id"] for entry in run.info["photos"] if entry.get("subject", 0) == index]
    found = {photo.id: photo for photo in photos.usable(photos.read(folder, side))} if folder.is_dir() else {}
    if set(found) != set(trained):
        raise UserError(f"{folder} no longer holds the photos that {run.path} was trained on: put them back")
    return [found[each] for each in trained], sum(entry.get("subject", 0) < index for entry in run.info["photos"])
