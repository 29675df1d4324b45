"""What can be known of a run before it starts: its settings filled in, its photos and model checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from diffusers import DiffusionPipeline

from dreambooth import environment, identifiers, photos, presets, prompts
from dreambooth.errors import UserError
from dreambooth.models import Source, choose_for_device, native_resolution, resolve
from dreambooth.photos import Finding, Photo
from dreambooth.recipe import Recipe, Subject


@dataclass(frozen=True)
class Plans:
    """What can be known of a run before a model is loaded.

    Attributes:
        recipe: The recipe with every setting filled in but the identifiers.
        reasons: Why each value that was filled in is what it is.
        source: The base model.
        findings: For each subject what its folder holds.
        warnings: Lines the user should read.
    """

    recipe: Recipe
    reasons: dict[str, str]
    source: Source
    findings: list[list[Finding]]
    warnings: list[str]


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
    assert filled.resolution is not None
    findings = [photos.read(subject.photos, filled.resolution) for subject in filled.subjects]
    warnings = [f"{finding.file}: {problem.message}" for found in findings for finding in found for problem in finding.problems]
    warnings += [problem.message for found in findings for problem in photos.warnings(found)]
    return Plans(filled, {**reasons, **derived}, source, findings, warnings)


def identify(recipe: Recipe, pipe: DiffusionPipeline, pictures: Sequence[Sequence[Photo]]) -> Recipe:
    """Choose or check each subject's identifier, and check that every caption fits the tokenizers."""
    tokenizers = [part for name, part in pipe.components.items() if name.startswith("tokenizer") and part is not None]
    subjects: list[Subject] = []
    for subject in recipe.subjects:
        _check_length(subject.class_noun, prompts.class_prompt(subject.class_noun), tokenizers)
        if subject.identifier is None:
            subject = subject.model_copy(update={"identifier": identifiers.choose(subject.class_noun, tokenizers)})
        elif "identifier" not in recipe.allow:
            identifiers.require(subject.identifier, subject.class_noun, tokenizers)
        subjects.append(subject)
    named = recipe.model_copy(update={"subjects": tuple(subjects)})
    for index, pool in enumerate(pictures):
        for photo in pool:
            _check_length(f"the caption of {photo.path.name}", caption(named, index, photo), tokenizers)
    return named


def _check_length(what: str, text: str, tokenizers: Sequence[Any]) -> None:
    for tokenizer in tokenizers:
        length, limit = len(tokenizer(text, truncation=False).input_ids), tokenizer.model_max_length
        if length > limit:
            raise UserError(f"{what} is too long: '{text[:60]}...' takes {length} tokens, the model {limit}: shorten it")


def caption(recipe: Recipe, index: int, photo: Photo) -> str:
    """Return the prompt a photo is learned under: its sidecar caption, or "a [V] class"."""
    names = [subject.identifier or "" for subject in recipe.subjects]
    if photo.caption:
        return prompts.fill(photo.caption, names)
    return prompts.fill(prompts.label(recipe.subjects[index].class_noun), [names[index]])
