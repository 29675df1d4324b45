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
from dreambooth.progress import Reporter
from dreambooth.recipe import Subject
from dreambooth.targets import Target

ORDER: tuple[Level, ...] = ("good", "unknown", "watch", "bad")
"""Of levels, the best first."""


@dataclass(frozen=True)
class Leak:
    """How far pictures of one text went towards a subject that it does not name.

    Of a text that names no subject all counts that tuning did to its pictures. Of one that names another subject only
    that counts which is beyond this subject's own likeness: its photos', as far as it was learned, the frozen model's
    class's for the rest. Two subjects that look alike do not leak.

    Attributes:
        text: What was asked for.
        towards: Index of the subject.
        share: Of the way from the frozen model's pictures of its class to what its photos are to one another; 1 is
            all of it. None where the photos are no nearer to one another than those pictures are to them. The 95 %
            intervals of all leaks of a run hold together.
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
    ways = [
        # not to the subject's own pictures, which may have gone nowhere
        metrics.oracle(photos_RD, self_pairs=False).mean() - metrics.to_references(frozen_KD, photos_RD).mean()
        for photos_RD, frozen_KD in zip(drawn.photos_SRD, drawn.frozen_SKD, strict=True)
    ]
    asked = [
        (towards, index)
        for towards in range(len(ways))
        for index, text in enumerate(drawn.texts)
        if index != towards and text not in drawn.texts[:index]  # subjects of one class share its pictures
    ]
    return [
        Leak(drawn.texts[index], towards, _share(drawn, index, towards, ways, len(asked))) for towards, index in asked
    ]


def _share(drawn: Drawn, index: int, towards: int, ways: Sequence[float], among: int) -> Estimate:
    """How much nearer a text's pictures are to a subject than they would be without leakage."""
    way, photos_RD, subject = ways[towards], drawn.photos_SRD[towards], index % len(ways)
    if not way > 0:
        return Estimate(None, None, None, 0)
    tuned_K, frozen_K, named_R = (
        metrics.to_references(each, photos_RD) / way
        for each in (drawn.tuned_TKD[index], drawn.frozen_SKD[subject], drawn.photos_SRD[subject])
    )
    if index != subject:  # it names none
        return statistics.estimate(alone(drawn.texts[index], tuned_K - frozen_K), among=among)
    learned, typical = _learned(drawn, subject, ways[subject])
    return statistics.unpaired(tuned_K - (1 - learned) * frozen_K, learned * typical * named_R, among)


def _learned(drawn: Drawn, subject: int, way: float) -> tuple[float, float]:
    """How much of a subject its pictures show, 0 to 1; and how much nearer to its photos they are than these, from 1.

    Pictures without the accidents of single photos are nearer to whatever the subject resembles, not to it alone.
    """
    photos_RD = drawn.photos_SRD[subject]
    drawn_mean = float(metrics.to_references(drawn.tuned_TKD[subject], photos_RD).mean())
    oracle = float(metrics.oracle(photos_RD, self_pairs=False).mean())
    learned = 1 - (oracle - drawn_mean) / way if way > 0 else 1.0
    return float(np.clip(learned, 0, 1)), max(1.0, drawn_mean / oracle) if oracle > 0 else 1.0


def finding(found: Sequence[Leak], nouns: Sequence[str]) -> Finding:
    """Say the worst leak in words."""
    known = [leak for leak in found if leak.share.value is not None]
    if not known:
        text = "No subject's photos are nearer to one another than the frozen model's class is to them."
        return Finding("leakage", "Leakage", "unknown", text, {})
    worst = max(known, key=lambda leak: (ORDER.index(_level(leak.share)), leak.share.value or 0.0))
    level, value = _level(worst.share), max(0.0, worst.share.value or 0.0)
    text = f'"{worst.text}" moved {value:.0%} of the way towards the {nouns[worst.towards]} it does not name.'
    title = {"good": "Subjects stay apart", "unknown": "Leakage"}.get(level, "Subjects leak into one another")
    if level == "unknown":
        text += " It may be chance: draw more pictures (--class-count), or give more photos."
    elif level == "good" and len(known) < len(found):
        level, title = "unknown", "Leakage"
        text += " Of a subject whose photos are less alike than the frozen model's class it cannot be told."
    elif level != "good":
        text += " Give more --steps or raise --prior-weight, or train each alone and draw with one adapter at a time."
    return Finding("leakage", title, level, text, {"share_of_the_way": worst.share})


def _level(share: Estimate) -> Level:
    """Each level must be proven to lie above the one before it: the worst of many leaks is large by chance too."""
    value, low = share.value or 0.0, share.low or 0.0
    if value <= DRIFT_WATCH:
        return "good"
    if low <= 0:
        return "unknown"
    return "bad" if value > DRIFT_BAD and low > DRIFT_WATCH else "watch"
