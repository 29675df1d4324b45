"""Class images for prior preservation: drawn once from the frozen model, kept under an identity, reused by it.

Ruiz et al. 2023, section 3.2: x_pr is drawn from the frozen model by ancestral sampling, given "a [class noun]".
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import filelock
import torch
from diffusers import DiffusionPipeline

from dreambooth import class_sets, photos, prompts
from dreambooth.batches import generator
from dreambooth.errors import UserError
from dreambooth.families import Family
from dreambooth.files import atomic, sweep, write_json
from dreambooth.models import Source
from dreambooth.photos import Photo
from dreambooth.precision import DTYPES
from dreambooth.progress import Reporter
from dreambooth.recipe import Recipe
from dreambooth.sampling import Sampling, batch_size, draw

SEED = 0
"""Class images are the same for every run's seed, so that runs share them."""


@dataclass(frozen=True)
class Identity:
    """What makes a set of class images: change anything and it is another set."""

    model: str
    prompt: str
    sampler: str
    steps: int
    guidance: float
    size: int
    dtype: str
    batch: int
    seed: int
    scenes: tuple[str, ...] = ()

    def text(self, index: int) -> str:
        """Return the prompt of an image: the class in each scene in turn."""
        return f"{self.prompt} {self.scenes[index % len(self.scenes)]}" if self.scenes else self.prompt

    def document(self) -> dict[str, Any]:
        """Return it as its manifest has it; a set of the class alone says nothing of scenes."""
        rest = {name: value for name, value in asdict(self).items() if name != "scenes"}
        return {**rest, "scenes": list(self.scenes)} if self.scenes else rest

    @property
    def name(self) -> str:
        """Folder name: readable, and unique."""
        digest = hashlib.sha256(json.dumps(self.document(), sort_keys=True).encode()).hexdigest()
        noun = re.sub(r"\W+", "-", self.prompt.split(maxsplit=1)[1])[:40]
        return f"{noun}-{digest[:12]}"


@dataclass(frozen=True)
class ClassImages:
    """A set of class images, some of which may still have to be drawn.

    Attributes:
        folder: Where they are.
        identity: What they are.
        count: How many are wanted.
        autocast: What the model computes in to draw them, where it is not held in that.
    """

    folder: Path
    identity: Identity
    count: int
    autocast: torch.dtype | None

    @property
    def missing(self) -> list[int]:
        """First indices of the batches that lack an image. Batches are drawn whole, so topping up changes nothing."""
        size = self.identity.batch
        starts = range(0, self.count, size)
        return [start for start in starts if not all(self.path(k).is_file() for k in range(start, start + size))]

    def path(self, index: int) -> Path:
        """Return the file of an image."""
        return self.folder / f"{index:05d}.png"

    def photos(self) -> list[Photo]:
        """Return the images wanted, named by the set and their place in it, with the prompts that drew them."""
        size, name = (self.identity.size, self.identity.size), self.identity.name
        return [
            Photo(f"{name}/{index}", self.path(index), size, self.identity.text(index), None)
            for index in range(self.count)
        ]


def plan(
    pipe: DiffusionPipeline, family: Family, source: Source, recipe: Recipe, class_noun: str, folder: Path | None = None
) -> ClassImages:
    """Find the set that a recipe needs and write its manifest.

    Args:
        pipe: The frozen model.
        family: Its family.
        source: Its identity.
        recipe: A resolved recipe.
        class_noun: The class.
        folder: Where to keep the set. Default: the user's cache, by identity.

    Raises:
        UserError: The folder holds something else, or the class noun is too long.
    """
    readers, scenes = prompts.readers(pipe), recipe.prior_scenes or ()
    prompts.require_fits("the class noun in", prompts.class_prompt(class_noun), readers)
    for scene in scenes:
        prompts.require_fits("the class image's prompt", f"{prompts.class_prompt(class_noun)} {scene}", readers)
    assert recipe.prior_steps
    assert recipe.prior_guidance is not None
    assert recipe.resolution
    assert recipe.prior_count
    identity = Identity(
        model=source.identity,
        prompt=prompts.class_prompt(class_noun),
        sampler=_sampler_name(family.class_sampler(pipe)),
        steps=recipe.prior_steps,
        guidance=recipe.prior_guidance,
        size=recipe.resolution,
        dtype=" on ".join(filter(None, (recipe.prior_precision, recipe.precision, recipe.base))),
        batch=batch_size(recipe.resolution),
        seed=SEED,
        scenes=scenes,
    )
    folder = folder or class_sets.folder() / identity.name
    check_manifest(folder, identity)
    return ClassImages(folder, identity, recipe.prior_count, DTYPES.get(recipe.prior_precision or ""))


def _sampler_name(scheduler: Any) -> str:
    name = type(scheduler).__name__
    return f"{name} (stochastic)" if scheduler.config.get("stochastic_sampling") else name


def check_manifest(folder: Path, identity: Identity) -> None:
    """Make `folder` the home of a set, or make sure that it is.

    Raises:
        UserError: It holds other images, or another set (what differs is named).
    """
    path = folder / "manifest.json"
    is_used = folder.is_dir() and any(not file.name.startswith(".") for file in folder.iterdir())
    if path.is_file():  # asked last: another run may have written it meanwhile
        there = json.loads(path.read_text(encoding="utf-8"))
        asked = identity.document()
        differ = [name for name in {**asked, **there} if there.get(name) != asked.get(name)]
        if differ:
            what = f"{differ[0]} {there.get(differ[0])!r} there, {asked.get(differ[0])!r} asked"
            raise UserError(f"{folder} holds other class images ({what}): choose another folder or remove it")
    elif is_used:
        raise UserError(f"{folder} holds files and no manifest of class images: choose an empty folder")
    else:
        write_json(path, identity.document())


@contextmanager
def turn(images: ClassImages, reporter: Reporter) -> Iterator[None]:
    """Wait until no other run draws this set, and keep others from drawing it meanwhile. A whole set needs no turn."""
    if not images.missing:
        yield
        return
    lock = filelock.FileLock(images.folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        reporter.say(f"waiting for another run that draws the same class images, in {images.folder}")
        lock.acquire()
    try:
        sweep(images.folder, "*.png")  # a run that only plans may be writing the manifest
        yield
    finally:
        lock.release()


@torch.no_grad()
def make(
    pipe: DiffusionPipeline, family: Family, images: ClassImages, reporter: Reporter, rank: int = 0, world: int = 1
) -> None:
    """Draw the images that are missing, this process's batches of them.

    Each image has a seed of its own and batches have fixed bounds, so that the set is the same however it comes about:
    at once, topped up, interrupted, or by several processes. A process's share does not depend on what is missing: the
    others change that as they draw.
    """
    identity = images.identity
    missing = images.missing
    reporter.stage("class images", images.count, images.count - min(images.count, len(missing) * identity.batch))
    for start in [start for start in missing if start // identity.batch % world == rank]:
        indices = range(start, start + identity.batch)
        generators = [generator(identity.seed, "class image", index) for index in indices]
        sampling = Sampling("", identity.steps, identity.guidance, identity.size)
        texts = [identity.text(index) for index in indices]
        with _computing_in(images.autocast, pipe):
            drawn = [*draw(pipe, texts, generators, sampling, family.class_sampler(pipe))]
        for index, image in zip(indices, drawn, strict=True):
            with atomic(images.path(index)) as temporary:
                image.save(temporary, format="PNG")
        reporter.advance(min(identity.batch, images.count - start))


def _computing_in(dtype: torch.dtype | None, pipe: DiffusionPipeline) -> AbstractContextManager[None]:
    device: torch.device = pipe._execution_device  # `device` is another where parts wait in host memory
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def real(folder: Path, class_noun: str, resolution: int) -> list[Photo]:
    """Read a folder of real class images.

    Raises:
        UserError: It has no readable image, or holds generated images of another class.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: give a folder of real class images as --prior-images")
    manifest = folder / "manifest.json"
    made = json.loads(manifest.read_text(encoding="utf-8")) if manifest.is_file() else {}
    wanted = prompts.class_prompt(class_noun)
    if made.get("prompt", wanted) != wanted:
        raise UserError(f"{folder} holds class images of '{made['prompt']}', not of '{wanted}': choose another")
    found = photos.usable(photos.read(folder, resolution, of=f"pictures of {class_noun}s other than the subject"))
    return [replace(photo, caption=None) for photo in found if not (made and photo.path.name == "grid.png")]
