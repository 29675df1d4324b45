"""Several subjects in one model: does one appear where another, or no one, was asked for?

Ruiz et al. 2023 teach one subject a model; of several, the usual complaint is that they blend.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dreambooth import photos, prompts
from dreambooth.evaluation import embeddings, metrics, statistics
from dreambooth.evaluation.encoders import Encoder
from dreambooth.evaluation.limitations import DRIFT_BAD, DRIFT_WATCH, Finding, Level
from dreambooth.evaluation.material import Plan, draw_sets, sets
from dreambooth.evaluation.metrics import Rows
from dreambooth.evaluation.scoring import alone
from dreambooth.evaluation.statistics import Estimate
from dreambooth.generation import Target
from dreambooth.progress import Reporter
from dreambooth.recipe import Subject


@dataclass(frozen=True)
class Leak:
    """How far pictures of one text went towards a subject that it does not name.

    Attributes:
        text: What was asked for.
        towards: Index of the subject.
        share: Of the way from the frozen model's pictures of its class to what its photos are to one another; 1 is
            all of it. None where the photos are no nearer to one another than those pictures are to them.
    """

    text: str
    towards: int
    share: Estimate

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {"text": self.text, "towards": self.towards, "share": self.share.as_json()}


@dataclass(frozen=True)
class Drawn:
    """Pictures of several subjects and of their classes, as rows of an encoder that tells subjects apart.

    Attributes:
        texts: "a [V] class" of each subject, then "a class" of each.
        tuned_TKD: Rows of the pictures of each text.
        frozen_SKD: Rows of the frozen model's pictures of each class, with the same seeds.
        photos_SRD: Rows of the photos of each subject.
    """

    texts: Sequence[str]
    tuned_TKD: Sequence[Rows]
    frozen_SKD: Sequence[Rows]
    photos_SRD: Sequence[Rows]


def measure(
    target: Target, subjects: Sequence[Subject], folder: Path, encoder: Encoder, plan: Plan, reporter: Reporter
) -> Drawn:
    """Draw every subject and every bare class, as far as that has not been done, and read the pictures.

    Args:
        target: What draws: a run of the subjects, or one of them with the others' adapters.
        subjects: The subjects, whose identifiers it knows.
        folder: Keeps the pictures.
        encoder: Tells subjects apart.
        plan: How many pictures of each text (`class_count`), and the first seed.
        reporter: Listens to the progress.
    """
    assert target.run is not None, "a base model is not trained"
    label = target.run.recipe.label
    own = [f"a {prompts.called(label, each.class_noun, each.identifier or '')}" for each in subjects]
    bare = [prompts.class_prompt(subject.class_noun) for subject in subjects]
    classes = list(dict.fromkeys(bare))
    seeds = range(plan.seed, plan.seed + plan.class_count)
    tuned, frozen = sets(target, folder, (*own, *classes), classes, seeds)
    draw_sets(target, tuned, frozen, reporter, "pictures of all subjects")
    pools = [photos.usable(photos.read(subject.photos, tuned.sampling.size)) for subject in subjects]
    own_files, class_files = tuned.files[: len(own)], dict(zip(classes, tuned.files[len(own) :], strict=True))
    frozen_files = dict(zip(classes, frozen.files, strict=True))
    return Drawn(
        (*own, *bare),
        [embeddings.embed_files(encoder, files) for files in (*own_files, *(class_files[each] for each in bare))],
        [embeddings.embed_files(encoder, frozen_files[each]) for each in bare],
        [embeddings.embed_files(encoder, [photo.path for photo in pool]) for pool in pools],
    )


def leaks(drawn: Drawn) -> list[Leak]:
    """Return the leak of every text towards every subject that it does not name."""
    count, found = len(drawn.photos_SRD), []
    for towards, photos_RD in enumerate(drawn.photos_SRD):
        # not to the subject's own pictures, which may have gone nowhere
        way = metrics.oracle(photos_RD, self_pairs=False).mean()
        way -= metrics.to_references(drawn.frozen_SKD[towards], photos_RD).mean()
        for index, text in enumerate(drawn.texts):
            if index == towards or text in drawn.texts[:index]:  # subjects of one class share its pictures
                continue
            moved_K = metrics.change(drawn.tuned_TKD[index], drawn.frozen_SKD[index % count], photos_RD)
            share_K = moved_K / way if way > 0 else np.full(len(moved_K), np.nan)
            found.append(Leak(text, towards, statistics.estimate(alone(text, share_K))))
    return found


def finding(found: Sequence[Leak], nouns: Sequence[str]) -> Finding:
    """Say the worst leak in words."""
    known = [leak for leak in found if leak.share.value is not None]
    if not known:
        text = "No subject's photos are nearer to one another than the frozen model's class is to them."
        return Finding("leakage", "Leakage", "unknown", text, {})
    worst = max(known, key=lambda leak: leak.share.value or 0.0)
    value = worst.share.value or 0.0
    level: Level = "good" if value <= DRIFT_WATCH else "watch" if value <= DRIFT_BAD else "bad"
    text = f'"{worst.text}" moved {max(0.0, value):.0%} of the way towards the {nouns[worst.towards]} it does not name.'
    title = "Subjects stay apart" if level == "good" else "Subjects leak into one another"
    if level == "good" and len(known) < len(found):
        level, title = "unknown", "Leakage"
        text += " Of a subject whose photos are less alike than the frozen model's class it cannot be told."
    if level in ("watch", "bad"):
        text += " Give more --steps or raise --prior-weight, or train each alone and draw with one adapter at a time."
    return Finding("leakage", title, level, text, {"share_of_the_way": worst.share})
