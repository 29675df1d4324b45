"""Several subjects in one model, or apart? `python -m dreambooth.toybox.several` measures both: docs/several.md.

Pairs of subjects, of two classes and of one, are trained together; and each alone, whose adapters are then put on
together. Interrupted, the same command goes on.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from dreambooth import planning, targets
from dreambooth.evaluation import embeddings, leakage, metrics, statistics
from dreambooth.evaluation.encoders import Encoder
from dreambooth.evaluation.judges import load_judges
from dreambooth.evaluation.leakage import Drawn
from dreambooth.evaluation.material import Plan
from dreambooth.evaluation.metrics import Rows as EmbeddedRows
from dreambooth.evaluation.scoring import alone
from dreambooth.files import write_text
from dreambooth.progress import Lines, Reporter, Silent, hush_libraries
from dreambooth.recipe import Recipe, Subject
from dreambooth.run import Run
from dreambooth.toybox import SUBJECTS
from dreambooth.toybox.options import options
from dreambooth.toybox.reproduction import WORDS, verdict
from dreambooth.toybox.stock import class_of, other_subject
from dreambooth.toybox.study import Cost, Rows, Study, cost_of, difference, hashed, merge, use_one_thread
from dreambooth.training import train

TOGETHER, FEWER, APART, ALONE = "together", "together, steps of one", "apart, both adapters", "apart, one adapter"
WAYS = (TOGETHER, FEWER, APART, ALONE)
SHOWN = {"way": 1, "right": 1, "named": -1, "bare": -1}
"""The rows of a way, and whether more of each is better or worse."""
PICTURES = Plan(class_count=16)
STRANGER = 1
"""Seed of the other subject of a class; none of the bundle has it."""


@dataclass(frozen=True)
class Pair:
    """Two subjects: folders with their photos and renders of the truth, and their classes."""

    folders: tuple[Path, Path]
    nouns: tuple[str, str]

    @property
    def name(self) -> str:
        """Both subjects' names."""
        return " + ".join(folder.name for folder in self.folders)

    @property
    def is_of_one_class(self) -> bool:
        """Whether the class noun does not tell them apart."""
        return self.nouns[0] == self.nouns[1]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what has not been, then write the page."""
    chosen = options("several", __doc__, "docs/several.md").parse_args(arguments)
    hush_libraries()
    study = Study(chosen.home, chosen.model, archive=chosen.archive)
    everyone = pairs(chosen.subjects, chosen.home / "others")
    if chosen.workers > 1:
        with ProcessPoolExecutor(chosen.workers, get_context("spawn"), initializer=use_one_thread) as pool:
            list(pool.map(measure, [study] * len(everyone), everyone, [Silent()] * len(everyone)))
    found = {pair: measure(study, pair, Lines(sys.stdout)) for pair in everyone}
    write_text(chosen.out, write_up(found))
    return 0


def pairs(subjects: Sequence[str], home: Path) -> list[Pair]:
    """Return every subject with the next of the list, and with another subject of its own class."""
    folders, nouns = [SUBJECTS / name for name in subjects], [class_of(name) for name in subjects]
    strangers = [other_subject(noun, STRANGER, home) for noun in nouns]
    next_to = zip(folders, folders[1:] + folders[:1], nouns, nouns[1:] + nouns[:1], strict=True)
    return [
        *(Pair((one, two), (noun, other)) for one, two, noun, other in next_to if one != two),
        *(Pair((one, two), (noun, noun)) for one, two, noun in zip(folders, strangers, nouns, strict=True)),
    ]


def measure(study: Study, pair: Pair, reporter: Reporter) -> dict[str, Rows]:
    """Return the rows of each way to teach a pair (`rows_of`), training and drawing what has not been."""
    given = [
        Subject(photos=folder / "photos", class_noun=noun)
        for folder, noun in zip(pair.folders, pair.nouns, strict=True)
    ]
    plans = planning.make_plans(_recipe(study, given))
    filled = plans.recipe
    depends = [plans.identity(filled), filled.steps, filled.inference_steps, filled.guidance, filled.sampler]
    found = {}
    for way in WAYS:
        key = hashed([way, "beyond the photos' own likeness", *depends, PICTURES.class_count])
        found[way] = study.recall(way, pair.name, 0, key, functools.partial(_teach, study, pair, given, way, reporter))
    return found


def rows_of(pair: Pair, drawn: Sequence[Drawn], truth_SRD: Sequence[EmbeddedRows]) -> Rows:
    """Return a pair's rows: each value is a mean over pictures.

    `way`: how far each subject's own pictures have come from the frozen model's class (0) to what the photos are to
    one another (1). `right`: how many of them are nearer to its truth than to the other subject's. `named` and `bare`:
    how much of that way is gone by the pictures of each text that names another subject, beyond what that one resembles
    this by itself (`leakage.Leak`), and of each that names none.

    Args:
        pair: The subjects.
        drawn: Their pictures, of both or of one each.
        truth_SRD: Rows of renders of each subject that nothing was trained on.
    """
    own = [each for some in drawn for each in zip(some.tuned_TKD, some.frozen_SKD, some.photos_SRD, strict=False)]
    way_S = [_way(*each) for each in own]
    right_S = [
        np.mean(metrics.to_references(tuned_KD, mine_RD) > metrics.to_references(tuned_KD, other_RD))
        for (tuned_KD, _, _), mine_RD, other_RD in zip(own, truth_SRD, truth_SRD[::-1], strict=True)
    ]
    values: dict[str, Sequence[float]] = {"way": way_S, "right": [float(share) for share in right_S]}
    if len(drawn) == 1:
        values["named"], values["bare"] = _moved(drawn[0])
    return {name: alone(pair.name, np.array(some, float)) for name, some in values.items()}


def write_up(found: Mapping[Pair, Mapping[str, Rows]]) -> str:
    """Return the page."""
    lines = [
        "# Several subjects: together or apart?",
        "",
        "Written by `python -m dreambooth.toybox.several`.",
        f"Pairs of subjects, one training each, {PICTURES.class_count} pictures of a text. *Together*:",
        "`dreambooth train A=FOLDER:NOUN B=FOLDER:NOUN`, by default with the steps of both. *Apart*: two runs, whose",
        "adapters are put on together (`generate RUN --adapter OTHER`), or one at a time, where nothing can leak.",
        "",
        '`way`: how far the pictures of "a [V] class" have come from the frozen model\'s "a class" (0) to what the',
        "photos are to one another (1). `right`: the share of them nearer to renders of their own subject than to the",
        "other's. `named` and `bare`: how much of that way is gone by pictures of the other subject, beyond what its",
        "own photos resemble these, and by those of a bare class, which shall not go it. All by the toybox's identity",
        "encoder; intervals (95 %) are over pairs.",
    ]
    for title, is_one in (("Two classes", False), ("One class", True)):
        some = [rows for pair, rows in found.items() if pair.is_of_one_class is is_one]
        if some:
            lines += ["", f"## {title}, {len(some)} pairs", "", *_table(some)]
    return "\n".join([*lines, ""])


def _table(found: Sequence[Mapping[str, Rows]]) -> Iterator[str]:
    ways = {way: merge([rows[way] for rows in found]) for way in WAYS}
    yield f"| | {' | '.join(SHOWN)} |"
    yield "| --- |" + " --- |" * len(SHOWN)
    for way, rows in ways.items():
        cells = [statistics.estimate(rows[name]).text() if name in rows else "" for name in SHOWN]
        yield f"| {way} | {' | '.join(cells)} |"
    for other in (FEWER, APART):
        yield f"| *{TOGETHER}* over *{other}* | {' | '.join(_over(ways[TOGETHER], ways[other]))} |"


def _over(one: Rows, two: Rows) -> Iterator[str]:
    for name, sign in SHOWN.items():
        gained = difference(*((one[name], two[name]) if sign > 0 else (two[name], one[name])))
        yield f"{difference(one[name], two[name]).text('+')}, {WORDS[verdict(gained)]}"


def _teach(study: Study, pair: Pair, given: Sequence[Subject], way: str, reporter: Reporter) -> tuple[Rows, Cost]:
    whole = _learn(study, given, reporter)
    named = whole.recipe.subjects  # with identifiers that the other has not, also where each is alone
    singles = [_learn(study, [each], reporter) for each in named]
    if way == FEWER:
        whole = _learn(study, given, reporter, steps=singles[0].recipe.steps)
    models: dict[str, list[tuple[Sequence[Run], Sequence[Subject]]]] = {
        APART: [(singles, named)],
        ALONE: [([run], [each]) for run, each in zip(singles, named, strict=True)],
    }
    judge = load_judges(whole).identity
    drawn = [_draw(runs, some, judge, reporter) for runs, some in models.get(way, [([whole], named)])]
    truth = [embeddings.embed_files(judge, sorted((folder / "truth").glob("*.png"))) for folder in pair.folders]
    taken = [cost_of(run) for run in ([whole] if way in (TOGETHER, FEWER) else singles)]
    cost = Cost(sum(each.seconds for each in taken), max(each.megabytes for each in taken))
    return rows_of(pair, drawn, truth), cost


def _learn(study: Study, subjects: Sequence[Subject], reporter: Reporter, **settings: Any) -> Run:
    recipe = _recipe(study, subjects, **settings)
    plans = planning.make_plans(recipe)
    names = " + ".join(subject.photos.parent.name for subject in subjects)
    folder = study.home / "several" / f"{names}-{plans.recipe.steps}-{plans.identity(plans.recipe)}"
    return train(recipe, folder, reporter)


def _recipe(study: Study, subjects: Sequence[Subject], **settings: Any) -> Recipe:
    return Recipe.of({**study.base(0), **settings, "subjects": [subject.model_dump() for subject in subjects]})


def _draw(runs: Sequence[Run], subjects: Sequence[Subject], judge: Encoder, reporter: Reporter) -> Drawn:
    first, *others = [run.path for run in runs]
    target = targets.find(first, [str(other) for other in others])
    folder = first / "several" / "+".join(subject.photos.parent.name for subject in subjects)
    return leakage.measure(target, subjects, folder, judge, PICTURES, reporter)


def _moved(drawn: Drawn) -> tuple[list[float], list[float]]:
    """Return how far pictures of other subjects, and of classes, went towards each subject."""
    names = drawn.texts[: len(drawn.photos_SRD)]
    named: list[float] = []
    bare: list[float] = []
    for leak in leakage.leaks(drawn):
        share = leak.share.value
        (named if leak.text in names else bare).append(float("nan") if share is None else share)
    return named, bare


def _way(tuned_KD: EmbeddedRows, frozen_KD: EmbeddedRows, photos_RD: EmbeddedRows) -> float:
    floor, drawn = (metrics.to_references(each, photos_RD).mean() for each in (frozen_KD, tuned_KD))
    return float((drawn - floor) / (metrics.oracle(photos_RD, self_pairs=False).mean() - floor))


if __name__ == "__main__":
    sys.exit(main())
