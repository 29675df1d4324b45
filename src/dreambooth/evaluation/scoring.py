"""From embeddings to scores: every metric of one run as rows, one value a picture, and the figures made of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dreambooth.evaluation import metrics
from dreambooth.evaluation.metrics import Indices, Options, Rows, Values
from dreambooth.evaluation.statistics import Scores

PAIRED = frozenset({"div", "ceiling_div", "diversity_drift"})
"""Metrics whose rows share pairs of pictures."""
ALONE = "alone"
"""The kind of rows that belong to no prompt of the list."""


@dataclass(frozen=True)
class Grid:
    """What the pictures of a set are: prompt-major, the same seeds for each prompt.

    Attributes:
        subject: Name of the subject.
        kinds: Kind of each prompt.
        seeds: Seeds of each prompt's pictures.
    """

    subject: str
    kinds: tuple[str, ...]
    seeds: tuple[int, ...]

    @property
    def prompt_G(self) -> Indices:
        """Index of each picture's prompt."""
        return np.repeat(np.arange(len(self.kinds)), len(self.seeds))

    def scores(self, value_G: Values, pairs: bool = False) -> Scores:
        """A value for each picture, with what each was drawn from; `pairs` as in `statistics.Scores`."""
        seeds_G = np.tile(np.array(self.seeds), len(self.kinds))
        kinds_G = np.array(self.kinds)[self.prompt_G]
        return Scores(value_G, np.full(len(value_G), self.subject), self.prompt_G, seeds_G, kinds_G, pairs)


@dataclass(frozen=True)
class Embedded:
    """Unit rows of one encoder.

    Attributes:
        photos_RD: The photos.
        tuned_GD: The run's pictures of the prompts.
        frozen_GD: The frozen model's, of the same prompts with the class noun alone, and the same seeds.
        own_KD: The run's pictures of "a [V] class".
        classes_CKD: The run's pictures of "a class" and of sibling classes.
        frozen_classes_CKD: The frozen model's.
        held_out_HD: Photos that were not trained on, where there are some.
    """

    photos_RD: Rows
    tuned_GD: Rows
    frozen_GD: Rows
    own_KD: Rows
    classes_CKD: Rows
    frozen_classes_CKD: Rows
    held_out_HD: Rows | None = None


@dataclass(frozen=True)
class Texts:
    """Unit rows of the texts, by the encoder that has pictures and texts in one space.

    Attributes:
        plain_PD: The prompts with the class noun alone.
        named_PD: The prompts as the model was given them.
        contexts_PD: What the prompts ask for, without the subject.
        classes_CD: "a class" and its siblings.
    """

    plain_PD: Rows
    named_PD: Rows
    contexts_PD: Rows
    classes_CD: Rows


def alone(subject: str, value_N: Values, pairs: bool = False) -> Scores:
    """Values of pictures of one text, or of photos: the interval speaks of other ones."""
    return Grid(subject, (ALONE,), tuple(range(len(value_N)))).scores(value_N, pairs)


def score(identity: Embedded, clip: Embedded, texts: Texts, grid: Grid, options: Options) -> dict[str, Scores]:
    """Return the rows of every metric (docs/evaluation.md), by its name in `scores.json`."""
    prompt_G = grid.prompt_G
    text_GD = {"class": texts.plain_PD, "identifier": texts.named_PD}
    other = "class" if options.text == "identifier" else "identifier"

    def to_photos(embedded: Embedded, pictures_GD: Rows) -> Values:
        return metrics.to_references(pictures_GD, embedded.photos_RD, options.references, embedded.held_out_HD)

    def to_prompt(pictures_GD: Rows, rule: str) -> Values:
        return metrics.to_text(pictures_GD, text_GD[rule][prompt_G], options.scale)

    rows = {
        "dino": to_photos(identity, identity.tuned_GD),
        "clip_i": to_photos(clip, clip.tuned_GD),
        "clip_t": to_prompt(clip.tuned_GD, options.text),
        f"clip_t_{other}": to_prompt(clip.tuned_GD, other),
        "div": metrics.diversity(identity.tuned_GD, prompt_G),
        "copying": metrics.copying(identity.tuned_GD, identity.photos_RD, options.spread).percentile_G / 100,
        "floor_dino": to_photos(identity, identity.frozen_GD),
        "floor_clip_i": to_photos(clip, clip.frozen_GD),
        "ceiling_clip_t": metrics.to_text(clip.frozen_GD, texts.plain_PD[prompt_G], options.scale),
        "ceiling_div": metrics.diversity(identity.frozen_GD, prompt_G),
    }
    if identity.held_out_HD is not None:
        rows["held_out_gap"] = metrics.held_out_gap(identity.tuned_GD, identity.photos_RD, identity.held_out_HD)
    found = {name: grid.scores(value_G, name in PAIRED) for name, value_G in rows.items()}
    return found | _oracles(identity, clip, grid) | _class_scores(identity, clip, texts, grid)


def _oracles(identity: Embedded, clip: Embedded, grid: Grid) -> dict[str, Scores]:
    """Real photos against one another, without themselves and with."""
    found = {}
    for name, embedded in (("dino", identity), ("clip_i", clip)):
        for suffix, self_pairs in (("", False), ("_self", True)):
            found[f"oracle_{name}{suffix}"] = alone(
                grid.subject, metrics.oracle(embedded.photos_RD, self_pairs), pairs=True
            )
    return found


def _class_scores(identity: Embedded, clip: Embedded, texts: Texts, grid: Grid) -> dict[str, Scores]:
    """PRES of "a class", what tuning did to it and to its siblings, and whether it still is that class."""
    tuned_KD, frozen_KD, photos_RD = identity.classes_CKD[0], identity.frozen_classes_CKD[0], identity.photos_RD
    clip_KD, clip_frozen_KD, text_D = clip.classes_CKD[0], clip.frozen_classes_CKD[0], texts.classes_CD[0]
    same_K = np.zeros(len(tuned_KD), int)
    siblings = [
        metrics.change(tuned, frozen, photos_RD)
        for tuned, frozen in zip(identity.classes_CKD[1:], identity.frozen_classes_CKD[1:], strict=True)
    ]
    rows = {
        "pres": metrics.to_references(tuned_KD, photos_RD),
        "pres_frozen": metrics.to_references(frozen_KD, photos_RD),
        "pres_drift": metrics.change(tuned_KD, frozen_KD, photos_RD),
        "diversity_drift": metrics.diversity_change(tuned_KD, frozen_KD, same_K),
        "class_clip_t": clip_KD @ text_D,
        "class_clip_t_frozen": clip_frozen_KD @ text_D,
        "class_kept": (clip_KD * clip_frozen_KD).sum(axis=1),
        "own_dino": metrics.to_references(identity.own_KD, photos_RD),
    }
    if siblings:
        rows["sibling_drift"] = np.concatenate(siblings)
    return {name: alone(grid.subject, values, name in PAIRED) for name, values in rows.items()}
