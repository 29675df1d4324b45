"""What can be known of a run before it starts: its settings filled in, its photos and model checked."""

from __future__ import annotations

import copy
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusers import DiffusionPipeline

from dreambooth import (
    buckets,
    environment,
    families,
    identifier_search,
    identifiers,
    mistakes,
    photo_doctor,
    photos,
    presets,
    prior,
    prompts,
    samples,
    sampling,
    scaling,
    starting,
)
from dreambooth.buckets import Bucket
from dreambooth.diffusion import Ddpm
from dreambooth.errors import UserError
from dreambooth.families import Family
from dreambooth.geometry import Aspect
from dreambooth.models import Source, choose_for_device, native_resolution, resolve
from dreambooth.photo_checks import Problem
from dreambooth.photos import Finding, Photo
from dreambooth.recipe import Recipe, Subject, identity

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


EXAMINED = 24
"""Of more photos each is checked by itself, and they are not looked at as a set."""


@dataclass(frozen=True)
class Plans:
    """What can be known of a run before a model is loaded.

    Attributes:
        recipe: The recipe with every setting filled in but the identifiers.
        reasons: Why each value that was filled in is what it is.
        source: The base model.
        findings: For each subject what its folder holds.
        buckets: The sizes at which the photos are learnt.
        class_images: For each subject the real class images to use; empty where they are generated.
        warnings: Lines the user should read.
    """

    recipe: Recipe
    reasons: dict[str, str]
    source: Source
    findings: list[list[Finding]]
    buckets: list[Bucket]
    class_images: list[list[Photo]]
    warnings: list[str]

    def identity(self, recipe: Recipe) -> str:
        """Return the identity of the run of `recipe`, which is this one with its identifiers."""
        pools = [*map(photos.usable, self.findings), *self.class_images]
        begun = hashlib.sha256(starting.file(recipe.start).read_bytes()).hexdigest() if recipe.start else ""
        return identity(recipe, self.source.identity + begun, [_content(pool) for pool in pools])


def make_plans(recipe: Recipe) -> Plans:
    """Check a recipe and fill in what it leaves open, without loading a model.

    Raises:
        UserError: Photos, model or settings cannot be used; the message says how to mend it.
    """
    reasons: dict[str, str] = {}
    if recipe.model is None:
        name, reasons["model"] = choose_for_device()
        recipe = recipe.model_copy(update={"model": name})
    assert recipe.model is not None
    source = resolve(recipe.model, recipe.revision)
    native = native_resolution(source)
    filled, derived = presets.fill(recipe, source, native, environment.processes().device.type)
    family = families.get(source.family)
    _check_settings(filled, family)
    filled = _located(filled, source)
    assert filled.resolution is not None
    seen = [_look_at(subject.photos, filled.resolution, filled.aspect) for subject in filled.subjects]
    findings = [found for found, _ in seen]
    pools = [photos.usable(found) for found in findings]
    idle = buckets.idle(itertools.chain(*pools), filled, family.STRIDE)
    class_images = _real_class_images(filled)
    warnings = list(_of_photos(filled, seen))
    warnings += mistakes.look(mistakes.Plan(recipe, filled, source, native, pools))
    warnings += [f"--more-resolutions {side} adds nothing: no photo has the pixels for it" for side in idle]
    if filled.offload_blocks and environment.processes().device.type == "cpu":
        warnings.append("--offload-blocks makes room on a GPU, and here it takes time for nothing: leave it out")
    learnt = tuple(side for side in filled.more_resolutions if side not in idle)
    filled = filled.model_copy(update={"more_resolutions": learnt})
    sizes = buckets.plan(itertools.chain(*pools), filled, family.STRIDE)
    if filled.method == "textual-inversion" and filled.prior_weight:
        warnings.append("class images change nothing in textual inversion: their prompts do not hold the new token")
    return Plans(filled, {**reasons, **derived}, source, findings, sizes, class_images, warnings)


def _look_at(folder: Path, resolution: int, aspect: Aspect) -> tuple[list[Finding], list[Problem]]:
    """Read a subject's photos; return what was found of each and of all. The doctor sees as many as a person would."""
    if folder.is_dir() and photos.count(folder) <= EXAMINED:
        seen = photo_doctor.examine(folder, resolution, aspect=aspect)
        return seen.findings, seen.warnings
    findings = photos.read(folder, resolution, aspect=aspect)
    return findings, [*photos.warnings(findings), *photo_doctor.many(len(photos.usable(findings)))]


def _of_photos(recipe: Recipe, seen: Sequence[tuple[list[Finding], list[Problem]]]) -> Iterator[str]:
    """Yield what was found of each subject's photos, by the name of its folder where there are several."""
    for subject, (found, of_all) in zip(recipe.subjects, seen, strict=True):
        where = f"{subject.photos.name}: " if len(recipe.subjects) > 1 else ""
        for entry in found:
            yield from (f"{where}{entry.file}: {problem.message}" for problem in entry.problems)
        yield from (f"{where}{problem.message}" for problem in of_all)


def identify(recipe: Recipe, pipe: DiffusionPipeline, pictures: Sequence[Sequence[Photo]]) -> Recipe:
    """Choose or check each subject's identifier, and check that every prompt of the run fits the tokenizers."""
    readers = prompts.readers(pipe)
    subjects: list[Subject] = []
    what = "the class noun in" if "{class}" in recipe.label else "the label"
    for subject in recipe.subjects:
        # an identifier is one token, as "x" is
        prompts.require_fits(what, prompts.fill(prompts.label(recipe.label, subject.class_noun), ["x"]), readers)
        others = [each.identifier for each in (*recipe.subjects, *subjects) if each.identifier and each is not subject]
        chosen = _identifier(recipe, subject, pipe, others)
        subjects.append(subject.model_copy(update={"identifier": chosen}))
    if recipe.min_rank and not isinstance(families.of(pipe).process(pipe), Ddpm):
        raise UserError("--min-rank follows the steps of a noise schedule, and this model is a flow: leave it out")
    named = recipe.model_copy(update={"subjects": tuple(subjects)})
    if recipe.learns_token:
        readers = _with_tokens(readers, [str(each.identifier) for each in subjects])
    for index, pool in enumerate(pictures):
        for photo in pool:
            text = caption(named, index, photo)
            scaled = [scaling.worded(text, words) for words in scaling.WORDS] if named.scales else []
            for each in (text, *scaled):
                prompts.require_fits(f"the caption of {photo.path.name},", each, readers)
    for shot in samples.shots(named, "after") if named.samples else []:
        prompts.require_fits("the prompt", shot.text, readers)
    return named


def _identifier(recipe: Recipe, subject: Subject, pipe: DiffusionPipeline, others: Sequence[str]) -> str:
    knowing = [pipe.components[name] for name in families.of(pipe).WORD_TOKENIZERS]
    is_new = recipe.learns_token
    if subject.identifier is None:
        if is_new:
            return identifiers.invent(subject.class_noun, knowing, others)
        good = identifiers.defaults(subject.class_noun, knowing, others)
        return identifier_search.least(pipe, subject.class_noun, good)
    if is_new:
        identifiers.require_new(subject.identifier, subject.class_noun, knowing, others)
    elif subject.identifier in others:
        raise UserError(f"the identifier '{subject.identifier}' names two subjects: give each its own, or none")
    elif "identifier" not in recipe.allow:
        identifiers.require(subject.identifier, subject.class_noun, knowing, others)
    return subject.identifier


def _with_tokens(readers: Sequence[PreTrainedTokenizerBase], tokens: list[str]) -> list[PreTrainedTokenizerBase]:
    """Return the tokenizers as they will be with new tokens: each is one, however many pieces it has today."""
    extended = list(copy.deepcopy(readers))
    for reader in extended:
        reader.add_tokens(tokens)
    return extended


def caption(recipe: Recipe, index: int, photo: Photo) -> str:
    """Return the prompt a photo is learned under: its sidecar caption, or the recipe's label.

    `[V]` beside a subject's photo is that subject, whichever of the run's it is.
    """
    names = [subject.identifier or "" for subject in recipe.subjects]
    text = photo.caption or recipe.label
    return prompts.fill(prompts.label(text, recipe.subjects[index].class_noun, index), names)


def class_caption(recipe: Recipe, text: str) -> str:
    """Return a caption with the class in place of each subject."""
    return prompts.as_class(text, [(each.identifier or "", each.class_noun) for each in recipe.subjects])


def _check_settings(recipe: Recipe, family: Family) -> None:
    assert recipe.resolution
    assert recipe.sampler
    stride = family.STRIDE
    if recipe.targets not in family.LORA_TARGETS:
        raise UserError(
            f"--targets {recipe.targets} is not there for this model: use {' or '.join(family.LORA_TARGETS)}"
        )
    for flag, side in buckets.flags(recipe):
        if side % stride:
            near = max(stride, side // stride * stride)
            raise UserError(f"{flag} {side} does not fit this model: give a multiple of {stride}, such as {near}")
    sampling.require(recipe.sampler)
    images = recipe.batch_size * (2 if recipe.prior_weight else 1)
    if (recipe.accumulation or 1) > images:
        raise UserError(
            f"--accumulation {recipe.accumulation} splits a step of {images} image{'s' if images > 1 else ''}: "
            f"give {images} or less, or a larger --batch-size"
        )


def _located(recipe: Recipe, source: Source) -> Recipe:
    """Make the recipe's paths absolute, so that it can be given from anywhere."""
    subjects = [each.model_copy(update={"photos": each.photos.expanduser().resolve()}) for each in recipe.subjects]
    values: dict[str, Any] = {"subjects": tuple(subjects)}
    if source.card is None and source.identity.startswith("sha256:"):
        values["model"] = str(source.path.resolve())
    if recipe.prior_images:
        values["prior_images"] = recipe.prior_images.expanduser().resolve()
    if recipe.start:
        values["start"] = starting.file(recipe.start.expanduser()).resolve()
    return recipe.model_copy(update=values)


def _real_class_images(recipe: Recipe) -> list[list[Photo]]:
    if recipe.prior_images is None:
        return []
    assert recipe.resolution is not None
    return [prior.real(recipe.prior_images, subject.class_noun, recipe.resolution) for subject in recipe.subjects]


def _content(pictures: Sequence[Photo]) -> list[list[str]]:
    """Return what each photo is to a run: the hash of its file, its caption, and the hash of its mask."""
    masks = [hashlib.sha256(photo.mask_path.read_bytes()).hexdigest() if photo.mask_path else "" for photo in pictures]
    return [[photo.id, photo.caption or "", mask] for photo, mask in zip(pictures, masks, strict=True)]
