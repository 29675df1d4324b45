"""Several subjects in one model: does one appear where another, or no one, was asked for?

Ruiz et al. 2023 teach one subject a model; of several, the usual complaint is that they blend.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dreambooth import generation, photos, prompts, samples
from dreambooth.evaluation import embeddings, metrics, statistics
from dreambooth.evaluation.encoders import Encoder
from dreambooth.evaluation.limitations import DRIFT_BAD, DRIFT_WATCH, Finding, Level
from dreambooth.evaluation.material import Plan, frozen_pipeline
from dreambooth.evaluation.metrics import Rows
from dreambooth.evaluation.pictures import PictureSet, cached, draw_missing
from dreambooth.evaluation.scoring import alone
from dreambooth.evaluation.statistics import Estimate
from dreambooth.paths import cache_root
from dreambooth.precision import storage_dtype
from dreambooth.progress import Reporter
from dreambooth.run import Run


@dataclass(frozen=True)
class Leak:
    """How far pictures of one text went towards a subject that it does not name.

    Attributes:
        text: What was asked for.
        towards: Index of the subject.
        share: Of the way from the frozen model's pictures of that class to the subject's own pictures; 1 is all of it.
    """

    text: str
    towards: int
    share: Estimate

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {"text": self.text, "towards": self.towards, "share": self.share.as_json()}


def measure(run: Run, encoder: Encoder, plan: Plan, reporter: Reporter) -> list[Leak]:
    """Draw every subject and every bare class of a run, and see how like each subject's photos they are.

    Args:
        run: A finished run of several subjects.
        encoder: Tells subjects apart.
        plan: How many pictures of each text (`class_count`), and the first seed.
        reporter: Listens to the progress.
    """
    recipe = run.recipe
    nouns = [subject.class_noun for subject in recipe.subjects]
    names = [subject.identifier or "" for subject in recipe.subjects]
    own = [f"a {name} {noun}" for name, noun in zip(names, nouns, strict=True)]
    bare = [prompts.class_prompt(noun) for noun in nouns]
    seeds, sampling = range(plan.seed, plan.seed + plan.class_count), samples.settings(recipe)
    target = generation.find(run.path)
    base = f"{target.source.identity} {storage_dtype(recipe)}"
    tuned = PictureSet(
        run.path / "evaluation" / "subjects",
        (*own, *bare),
        tuple(seeds),
        sampling,
        f"{base} {generation.digest(run)} at {target.strength}",
    )
    frozen = cached(cache_root() / "frozen", bare, seeds, sampling, base)
    draw_missing(tuned, functools.partial(generation.load, target), reporter, "pictures of all subjects")
    draw_missing(frozen, functools.partial(frozen_pipeline, run), reporter, "frozen class pictures")
    side = sampling.size
    photos_SRD = [
        _rows(encoder, [photo.path for photo in photos.usable(photos.read(subject.photos, side))])
        for subject in recipe.subjects
    ]
    tuned_TKD = [_rows(encoder, files) for files in tuned.files]
    frozen_SKD = [_rows(encoder, files) for files in frozen.files]
    return leaks([*own, *bare], tuned_TKD, frozen_SKD, photos_SRD)


def leaks(
    texts: Sequence[str], tuned_TKD: Sequence[Rows], frozen_SKD: Sequence[Rows], photos_SRD: Sequence[Rows]
) -> list[Leak]:
    """Return the leak of every text towards every subject that it does not name.

    Args:
        texts: "a [V] class" of each subject, then "a class" of each.
        tuned_TKD: Rows of the pictures of each text.
        frozen_SKD: Rows of the frozen model's pictures of each class, with the same seeds.
        photos_SRD: Rows of the photos of each subject.
    """
    count, found = len(photos_SRD), []
    for towards, photos_RD in enumerate(photos_SRD):
        own = metrics.to_references(tuned_TKD[towards], photos_RD).mean()
        way = own - metrics.to_references(frozen_SKD[towards], photos_RD).mean()
        for index, text in enumerate(texts):
            if index == towards:
                continue
            moved_K = metrics.change(tuned_TKD[index], frozen_SKD[index % count], photos_RD)
            share_K = moved_K / way if way > 0 else np.full(len(moved_K), np.nan)
            found.append(Leak(text, towards, statistics.estimate(alone(text, share_K))))
    return found


def finding(found: Sequence[Leak], nouns: Sequence[str]) -> Finding:
    """Say the worst leak in words."""
    known = [leak for leak in found if leak.share.value is not None]
    if not known:
        text = "No subject is nearer to its photos than the frozen model's class: nothing was learned yet."
        return Finding("leakage", "Leakage", "unknown", text, {})
    worst = max(known, key=lambda leak: leak.share.value or 0.0)
    value = worst.share.value or 0.0
    level: Level = "good" if value <= DRIFT_WATCH else "watch" if value <= DRIFT_BAD else "bad"
    text = f'"{worst.text}" moved {max(0.0, value):.0%} of the way towards the {nouns[worst.towards]} it does not name.'
    title = "Subjects stay apart" if level == "good" else "Subjects leak into one another"
    if level != "good":
        text += " Train them separately and put both on (`generate RUN --adapter OTHER`), or raise --prior-weight."
    return Finding("leakage", title, level, text, {"share_of_the_way": worst.share})


def _rows(encoder: Encoder, files: Sequence[Path]) -> Rows:
    return embeddings.embed_files(encoder, files)
