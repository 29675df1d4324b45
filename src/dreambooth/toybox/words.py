"""What does a word as identifier cost? `python -m dreambooth.toybox.words` measures it: docs/identifiers.md.

Every subject is learned under the word of the weakest prior, which is the default, and under words that mean something
to the model. Interrupted, the same command goes on.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

import numpy as np

from dreambooth import photos, targets
from dreambooth.errors import RunError, UserError
from dreambooth.evaluation import embeddings, metrics, statistics
from dreambooth.evaluation.encoders import Encoder
from dreambooth.evaluation.judges import load_judges
from dreambooth.evaluation.material import draw_sets, sets
from dreambooth.evaluation.metrics import Rows as EmbeddedRows
from dreambooth.evaluation.pictures import PictureSet
from dreambooth.evaluation.scoring import alone
from dreambooth.progress import Lines, Reporter, hush_libraries
from dreambooth.toybox import pages
from dreambooth.toybox.methods import LESS
from dreambooth.toybox.options import options
from dreambooth.toybox.reproduction import WORDS, verdict
from dreambooth.toybox.study import (
    Arm,
    Cost,
    Rows,
    Study,
    balances,
    by_training,
    cost_of,
    difference,
    hashed,
    merge,
    of_trainings,
)

STEPS = (100, 200, 400)
WEAKEST = "the weakest prior"
TAKEN = {
    "sks": "folklore, in one of a hundred captions here, where it is a teapot",
    "red": "a colour",
    "frog": "a class",
}
"""Words with a meaning, and which."""
OTHERS = ("pig", "cup", "boat")
"""Classes that no bundled subject has."""
SEEDS = range(8)
SHOWN = ("balance", "dino", "truth", "clip_t", "copying", "class_clip_t")
BEGIN, END = "<!-- written by python -m dreambooth.toybox.words -->", "<!-- end -->"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what has not been, then write the tables into the page."""
    chosen = options("words", __doc__, "docs/identifiers.md").parse_args(arguments)
    hush_libraries()
    try:
        pages.require(chosen.out, BEGIN, END)
        study = Study(chosen.home, chosen.model, workers=chosen.workers, archive=chosen.archive)
        reporter = Lines(sys.stdout)
        learned = study.run(arms(), chosen.subjects, [0], reporter)
        lost = {word: after(study, word, chosen.subjects, reporter) for word in TAKEN}
    except (UserError, RunError) as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    pages.fill(chosen.out, BEGIN, END, write_up(learned, lost, f"{len(chosen.subjects)} subjects"))
    return 0


def arms() -> list[Arm]:
    """Return one run for each word, as it is after each of the steps."""
    return [arm(word, steps) for word in (WEAKEST, *TAKEN) for steps in STEPS]


def arm(word: str, steps: int) -> Arm:
    """Return a run under a word, after so many steps."""
    return Arm(
        f"{word}, {steps} steps",
        {"steps": steps},
        identifier=None if word == WEAKEST else word,
        chain=f"named {word}",
    )


def after(study: Study, word: str, subjects: Sequence[str], reporter: Reporter) -> dict[str, Rows]:
    """Return what a word's own pictures are after it has become an identifier, and after another has."""
    return {
        named: merge([lost(study, word, arm(named, STEPS[-1]), subject, reporter) for subject in subjects])
        for named in (WEAKEST, word)
    }


def lost(study: Study, word: str, learned: Arm, subject: str, reporter: Reporter) -> Rows:
    """Return how far pictures of "a [word] pig" went to a subject, and how much less they answer their words.

    `taken` is the share of the way from the frozen model's class to the photos; `answers` the change in CLIP-T.
    """
    scores = study.measure(learned, subject, 0, reporter)
    way = float(np.mean(scores["oracle_dino"].value_N) - np.mean(scores["floor_dino"].value_N))
    texts = [f"a {word} {noun}" for noun in OTHERS]

    def made() -> tuple[Rows, Cost]:
        run = study.learn(learned, subject, 0, reporter)
        target = targets.find(run.path)
        tuned, frozen = sets(target, run.path / "words" / word, texts, texts, SEEDS)
        draw_sets(target, tuned, frozen, reporter, "pictures of the word")
        judges = load_judges(run)
        mine = photos.usable(photos.read(run.recipe.subjects[0].photos, tuned.sampling.size))
        photos_RD = embeddings.embed_files(judges.identity, [photo.path for photo in mine])
        words_TD = embeddings.embed_texts(judges.clip, texts)
        rows = {
            "taken": metrics.change(_read(judges.identity, tuned), _read(judges.identity, frozen), photos_RD) / way,
            "answers": _answers(judges.clip, tuned, words_TD) - _answers(judges.clip, frozen, words_TD),
        }
        return {name: alone(subject, value_N) for name, value_N in rows.items()}, cost_of(run)

    key = hashed([study.key(learned, subject, 0), *texts, len(SEEDS)])
    return study.recall(f"{word} after {learned.name}", subject, 0, key, made)


def _read(encoder: Encoder, pictures: PictureSet) -> EmbeddedRows:
    return embeddings.embed_files(encoder, [shot.file for shot in pictures.shots])


def _answers(clip: Encoder, pictures: PictureSet, words_TD: EmbeddedRows) -> metrics.Values:
    return metrics.to_text(_read(clip, pictures), words_TD[[shot.text for shot in pictures.shots]])


def write_up(learned: Mapping[str, Rows], lost: Mapping[str, Mapping[str, Rows]], size: str) -> str:
    """Return the two tables.

    Args:
        learned: The rows of each arm.
        lost: For each word, what its own pictures lost after it became the identifier, and after another did.
        size: What was measured, in words.
    """
    words = "; ".join(f"`{word}` ({meaning})" for word, meaning in TAKEN.items())
    lines = [
        f"{size}, one training each, 20 pictures. {words}. Differences are from {WEAKEST} after as many steps,",
        "subject by subject, with 95 % intervals.",
        "",
        f"| | {' | '.join(SHOWN)} |",
        "| --- |" + " --- |" * len(SHOWN),
        *(_row(word, steps, learned) for steps in STEPS for word in (WEAKEST, *TAKEN)),
        "",
        f'And the word itself: pictures of "a [word] {OTHERS[0]}", {OTHERS[1]} and {OTHERS[2]}, after a subject of',
        "another class has been learned under the word (mine), and under the weakest prior (free). `taken`: the share",
        "of the way to the photos that they went; `answers`: what they gained in CLIP-T.",
        "",
        "| word | taken, mine | free | difference | answers, mine | free | difference |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *(_lost(word, found) for word, found in lost.items()),
    ]
    return "\n".join(lines)


def _row(word: str, steps: int, learned: Mapping[str, Rows]) -> str:
    mine, theirs = (_shown(learned[arm(name, steps).name]) for name in (word, WEAKEST))
    cells = []
    for name in SHOWN:
        apart = difference(mine[name], theirs[name])
        gained = difference(theirs[name], mine[name]) if name in LESS else apart
        told = "" if word == WEAKEST else f"; {apart.text('+')}, {WORDS[verdict(gained)]}"
        cells.append(f"{_mean(mine[name]):.3f}{told}")
    return f"| {word}, {steps} steps | {' | '.join(cells)} |"


def _lost(word: str, found: Mapping[str, Rows]) -> str:
    cells: list[str] = []
    for name in ("taken", "answers"):
        own, other = found[word][name], found[WEAKEST][name]
        cells += [f"{_mean(own):.3f}", f"{_mean(other):.3f}", difference(own, other).text("+")]
    return f"| `{word}` | {' | '.join(cells)} |"


def _shown(rows: Rows) -> Rows:
    return {**rows, "balance": of_trainings(by_training(balances(rows)))}


def _mean(scores: statistics.Scores) -> float:
    value = statistics.estimate(scores).value
    return float("nan") if value is None else value


if __name__ == "__main__":
    sys.exit(main())
