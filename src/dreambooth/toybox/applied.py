"""Which applications succeed here? `python -m dreambooth.toybox.applied` asks the toybox's truth.

Bundled subjects are trained with the defaults, and runs that are there are used; every cell whose words a classifier
of renders knows is drawn by the run and by the frozen model, and the classifier says whether the pictures show what was
asked for. Interrupted, the same command goes on.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dreambooth.application_lists import APPLICATIONS, Cell, fitting, kind_of
from dreambooth.applications import Applied, apply
from dreambooth.errors import RunError, UserError
from dreambooth.evaluation import statistics
from dreambooth.evaluation.statistics import Estimate, Scores
from dreambooth.progress import Lines, Reporter, hush_libraries
from dreambooth.toybox import CLASSIFIERS, pages
from dreambooth.toybox.model import classifiers
from dreambooth.toybox.model.classifiers import Classifier
from dreambooth.toybox.model.renders import to_pixels
from dreambooth.toybox.model.train import RECORD
from dreambooth.toybox.options import options
from dreambooth.toybox.stock import class_of
from dreambooth.toybox.study import DEFAULT, Arm, Study, difference

ASKED: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "recontext": (("context",), ()),
    "art": (("style", "sculpture"), ()),
    "views": (("view",), ()),
    "properties": (("colour", "property", "material"), ()),
    "accessories": (("accessory",), ()),
    "expressions": (("expression",), ()),
    "comic": (("context",), ("style",)),
}
"""What an application may ask by the label of its rows, and of its columns, as the classifiers call it."""
CALLED = {"transparent": "glass"}
"""What the toybox calls by another word than its label."""
HYBRIDS = "hybrids"
"""A hybrid has the body of one class and the head of another: its two likeliest classes must be these two."""
BEGIN, END = "<!-- written by python -m dreambooth.toybox.applied -->", "<!-- end -->"


@dataclass(frozen=True)
class Judged:
    """A cell's picture held against the truth, and the frozen model's of the same words and seed.

    Attributes:
        application: Name.
        subject: Name.
        cell: Number of the cell in its application.
        seed: Of the picture and the training, as one number.
        right: Whether the picture shows all that was asked for.
        frozen: Whether the frozen model's does.
        weak: Whether the words of the cell were marked weak.
    """

    application: str
    subject: str
    cell: int
    seed: int
    right: bool
    frozen: bool
    weak: bool


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, draw and judge what has not been, then write the table into the page."""
    parser = options("applied", __doc__, "docs/applications.md", seeds=1, kept=False)
    parser.add_argument("--classifiers", type=Path, default=CLASSIFIERS, help="folder (default: what ships)")
    parser.add_argument("--count", type=int, default=4, help="pictures of each cell (default 4)")
    chosen = parser.parse_args(arguments)
    hush_libraries()
    try:
        classifier = classifiers.load(chosen.classifiers)
        pages.require(chosen.out, BEGIN, END)
        found = study(Study(chosen.home, chosen.model), chosen.subjects, chosen.seeds, chosen.count, Lines(sys.stdout))
        judged = [each for made in found for each in judge(*made, classifier)]
        size = f"{len(chosen.subjects)} subjects x {chosen.seeds} trainings x {chosen.count} pictures of each cell"
        lines = [*write_up(judged, size), "", seen(chosen.classifiers)]
        write(chosen.out, lines, [made for made, _, _ in found])
    except (UserError, RunError) as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    return 0


def study(
    where: Study, subjects: Sequence[str], seeds: int, count: int, reporter: Reporter
) -> list[tuple[Applied, str, int]]:
    """Apply everything that fits to every training of every subject; return each with the subject and its seed."""
    found = []
    for seed in range(seeds):
        for subject in subjects:
            run = where.learn(Arm(DEFAULT), subject, seed, reporter).path
            noun = class_of(subject)
            made = apply(run, fitting(noun, kind_of(noun)), count=count, reporter=reporter)
            found += [(each, subject, seed) for each in made]
    return found


def judge(made: Applied, subject: str, seed: int, classifier: Classifier) -> Iterator[Judged]:
    """Hold every picture of the cells that the classifier knows against what was asked for."""
    noun = class_of(subject)
    for index, scored in enumerate(made.cells):
        asked = truth(made.name, scored.cell, noun, classifier.labels)
        if not asked:
            continue
        right, frozen = (_right(classifier, files[index], asked) for files in (made.tuned.files, made.frozen.files))
        for at, picture in enumerate(zip(right, frozen, strict=True)):
            number = 1000 * seed + made.tuned.seeds[at]
            yield Judged(made.name, subject, index, number, *picture, "words" in scored.weak)


def truth(name: str, cell: Cell, noun: str, known: classifiers.Labels) -> dict[str, tuple[str, ...]]:
    """What a right picture of a cell shows: of each attribute the likeliest answers, in any order.

    Args:
        name: The application.
        cell: The cell.
        noun: The subject's class.
        known: The classifiers' answers.

    Returns:
        Nothing where the classifiers do not know one of the words.
    """
    if name == HYBRIDS:
        both = (noun, cell.row)
        return {"class": both} if set(both) <= set(known.get("class", ())) else {}
    asked: dict[str, tuple[str, ...]] = {}
    for attributes, label in zip(ASKED[name], (cell.row, cell.column), strict=True):
        answer = CALLED.get(label, label)
        found = next((attribute for attribute in attributes if answer in known.get(attribute, ())), None)
        if attributes and not found:
            return {}
        if found:
            asked[found] = (answer,)
    return asked


@torch.no_grad()
def _right(classifier: Classifier, files: Sequence[Path], asked: dict[str, tuple[str, ...]]) -> list[bool]:
    pixels_BCHW = to_pixels(np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files]))
    logits = classifier(pixels_BCHW)
    hits = [
        [
            {classifier.labels[attribute][at] for at in best_K.tolist()} == set(answers)
            for best_K in logits[attribute].topk(len(answers)).indices
        ]
        for attribute, answers in asked.items()
    ]
    return [all(answers) for answers in zip(*hits, strict=True)]


def write_up(judged: Sequence[Judged], size: str) -> list[str]:
    """Return the lines of the table, an application a row."""
    lines = [
        f"{size}. Intervals (95 %) are over subjects where there are five, else over cells.",
        "",
        "| application | cells | right | frozen model | difference | marked weak | right there | right elsewhere |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in APPLICATIONS:
        some = [each for each in judged if each.application == name]
        lines.append(_row(name, some) if some else f"| {name} | none: the classifiers do not know it | | | | | | |")
    return lines


def seen(folder: Path) -> str:
    """Say how often the classifiers see in renders what the applications ask for: more they can never find."""
    measured: dict[str, float] = json.loads((folder / RECORD).read_text(encoding="utf-8"))["measured"]
    asked = [attribute for parts in ASKED.values() for part in parts for attribute in part]
    shares = {name: measured.get(f"{name}_shown", measured[name]) for name in dict.fromkeys([*asked, "class"])}
    told = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
    return f"Of renders never trained on, in which it is what was asked for, the classifiers see: {told}."


def write(page: Path, lines: Sequence[str], found: Sequence[Applied]) -> None:
    """Put the table and a grid of each application between the page's marks."""
    first = {made.name: made for made in reversed(found)}
    pictures = []
    for name in (name for name in APPLICATIONS if name in first):
        file = page.parent / "applications" / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(first[name].folder / "grid.png", file)
        pictures += ["", f"![{first[name].application.title}]({file.relative_to(page.parent)})"]
    pages.fill(page, BEGIN, END, "\n".join([*lines, *pictures]))


def _row(name: str, some: Sequence[Judged]) -> str:
    right, frozen = (_scores(some, [getattr(each, what) for each in some]) for what in ("right", "frozen"))
    share = sum(each.weak for each in some) / len(some)
    parts = [[each for each in some if each.weak is is_weak] for is_weak in (True, False)]
    there = [_share(statistics.estimate(_scores(part, [each.right for each in part]))) for part in parts]
    figures = [_share(statistics.estimate(scores)) for scores in (right, frozen)]
    cells = len({each.cell for each in some})
    apart = _share(difference(right, frozen), "+")
    return f"| {name} | {cells} | {' | '.join(figures)} | {apart} | {share:.0%} | {' | '.join(there)} |"


def _scores(some: Sequence[Judged], values: Sequence[bool]) -> Scores:
    return Scores(
        np.array(values, float),
        np.array([each.subject for each in some]),
        np.array([each.cell for each in some]),
        np.array([each.seed for each in some]),
        np.full(len(some), ""),
    )


def _share(figure: Estimate, sign: str = "") -> str:
    if figure.value is None:
        return ""
    bounds = "" if figure.low is None or figure.high is None else f" ({figure.low:.0%} to {figure.high:.0%})"
    return f"{figure.value:{sign}.0%}{bounds}"


if __name__ == "__main__":
    sys.exit(main())
