"""The class noun before any training: what the photos show, and whether the base model draws what the noun says.

Both ask the model's CLIP. A subject is learned on top of what the model knows of its class: a wrong noun, or one that
the model hardly draws, costs likeness (Ruiz et al. 2023, table 4 and section 5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dreambooth import environment, families, presets, prompts, samples
from dreambooth.evaluation import embeddings, encoders
from dreambooth.evaluation.encoders import Encoder
from dreambooth.evaluation.metrics import Rows
from dreambooth.evaluation.pictures import PictureSet, cached, draw_missing
from dreambooth.models import CLIP_ENCODER, Source, native_resolution, resolve
from dreambooth.nouns import NOUNS
from dreambooth.paths import cache_root
from dreambooth.photo_checks import Problem
from dreambooth.placing import place
from dreambooth.precision import storage_dtype
from dreambooth.progress import Reporter
from dreambooth.recipe import Recipe

PROPOSED = 3
COUNT = 12
"""Pictures of the class that are drawn."""
LOOKED_AT = 32
"""Photos, or class images, that are looked at, at most."""
NEAREST = 3
"""A picture is told as its class if so few nouns at most are nearer to it, itself among them: synonyms are near."""
LEAST_TOLD = 0.5
UNLIKELY = 0.2
"""Share of the nouns among which a given one should be."""


@dataclass(frozen=True)
class Diagnosis:
    """What the photos and the base model say of the class noun.

    Attributes:
        proposed: The nouns that the photos are likest to, the likest first.
        noun: The class noun: the one given, else the first proposed.
        told: How many of the base model's pictures of "a [noun]" are told as it.
        problems: What is wrong with the noun.
        pictures: The base model's pictures.
    """

    proposed: tuple[str, ...]
    noun: str
    told: int
    problems: list[Problem]
    pictures: tuple[Path, ...]

    def as_json(self) -> dict[str, Any]:
        """Return `{"proposed", "noun", "told", "problems", "pictures"}`."""
        problems = [{"kind": each.kind, "message": each.message, "risk": each.risk} for each in self.problems]
        pictures = [str(path) for path in self.pictures]
        said = {"proposed": list(self.proposed), "noun": self.noun, "told": self.told}
        return {**said, "problems": problems, "pictures": pictures}


def diagnose(photos: Sequence[Path], model: str, noun: str | None, reporter: Reporter) -> Diagnosis:
    """Hold the photos and the base model's own pictures of a class against nouns.

    Args:
        photos: The photos; at least one.
        model: The base model.
        noun: The class noun; None for the first proposed.
        reporter: Listens to the progress.

    Raises:
        UserError: The model or its CLIP cannot be had.
    """
    source = resolve(model)
    clip, nouns, words_CD = _words(source, noun)
    ranked = rank(embeddings.embed_files(clip, photos), words_CD, nouns)
    chosen = noun or ranked[0]
    drawn = _draw(source, chosen, reporter)
    files = [shot.file for shot in drawn.shots]
    told = count_told(embeddings.embed_files(clip, files), words_CD, nouns.index(chosen))
    found = [*_unlikely(ranked, chosen, "the photos", "check --class"), *_weak(told, chosen)]
    return Diagnosis(tuple(ranked[:PROPOSED]), chosen, told, found, tuple(files))


def mistaken(source: Source, noun: str, photos: Sequence[Path], class_images: Sequence[Path] = ()) -> list[Problem]:
    """Say whether photos, or real class images, look like another class, where the model's CLIP is on this machine.

    Args:
        source: The base model.
        noun: The class noun.
        photos: The photos of the subject.
        class_images: Real class images, where there are some.
    """
    if not encoders.is_here(_clip_of(source)):
        return []
    clip, nouns, words_CD = _words(source, noun)
    sets = {
        ("the photos", "check --class"): photos,
        ("the class images", "give pictures of others of its class as --prior-images"): class_images,
    }
    found = []
    for told, pictures in sets.items():
        if pictures:
            ranked = rank(embeddings.embed_files(clip, pictures[:LOOKED_AT]), words_CD, nouns)
            found += _unlikely(ranked, noun, *told)
    return found


def _clip_of(source: Source) -> str:
    return source.card.clip_encoder if source.card else CLIP_ENCODER


def _words(source: Source, noun: str | None) -> tuple[Encoder, Sequence[str], Rows]:
    """The model's CLIP, the nouns that pictures are held against, the given one among them, and their embeddings."""
    card = source.card
    clip = encoders.load(_clip_of(source), environment.processes().device.type)
    known = card.nouns if card and card.nouns else NOUNS
    nouns = known if noun is None or noun in known else (*known, noun)
    return clip, nouns, embeddings.embed_texts(clip, [prompts.class_prompt(each) for each in nouns])


def rank(photos_RD: Rows, words_CD: Rows, nouns: Sequence[str]) -> list[str]:
    """Return nouns by the mean likeness of photos to their embeddings, the likest first."""
    order = np.argsort(-(photos_RD @ words_CD.T).mean(axis=0))
    return [nouns[index] for index in order]


def count_told(pictures_KD: Rows, words_CD: Rows, own: int) -> int:
    """Return how many pictures are told as a noun.

    Args:
        pictures_KD: Their embeddings.
        words_CD: The nouns'.
        own: Index of the noun.
    """
    likeness_KC = pictures_KD @ words_CD.T
    rank_K = (likeness_KC > likeness_KC[:, [own]]).sum(axis=1)
    return int((rank_K < NEAREST).sum())


def _unlikely(ranked: Sequence[str], noun: str, what: str, mend: str) -> list[Problem]:
    if ranked.index(noun) < max(PROPOSED, UNLIKELY * len(ranked)):
        return []
    others = ", ".join(ranked[:PROPOSED])
    return [Problem("class", f"{what} look less like {prompts.class_prompt(noun)} than like: {others}: {mend}")]


def _weak(told: int, noun: str) -> list[Problem]:
    if told >= LEAST_TOLD * COUNT:
        return []
    drawn = f"{told} of {COUNT} of the base model's own pictures of '{prompts.class_prompt(noun)}' are told as that"
    return [Problem("weak-prior", f"{drawn}: try a broader or commoner class noun")]


def _draw(source: Source, noun: str, reporter: Reporter) -> PictureSet:
    """Draw the base model's pictures of a class as a run would, unless they are there."""
    device = environment.processes().device
    subject = {"photos": ".", "class_noun": noun}
    recipe, _ = presets.fill(
        Recipe.of({"model": source.name, "subjects": [subject]}), source, native_resolution(source), device.type
    )
    dtype = storage_dtype(recipe)
    texts = [prompts.class_prompt(noun)]
    base = f"{source.identity} {dtype}"
    pictures = cached(cache_root() / "frozen", texts, range(COUNT), samples.settings(recipe), base)
    draw_missing(
        pictures,
        lambda: place(families.get(source.family).load(source, dtype), device),
        reporter,
        "class pictures",
    )
    return pictures
