"""Are the paper's claims true here? `python -m dreambooth.toybox.reproduction` tests them on the toybox.

Interrupted, the same command goes on. Each claim is a difference of two figures, subject by subject: it holds where its
95 % interval lies above zero, is contradicted where it lies below, and is open where zero is inside.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dreambooth.evaluation import embeddings, metrics, statistics
from dreambooth.evaluation.judges import load_judges
from dreambooth.evaluation.material import Plan, draw_all, frozen_pipeline, gather
from dreambooth.evaluation.pictures import cached, draw_missing
from dreambooth.evaluation.scoring import Grid
from dreambooth.evaluation.statistics import Estimate, Scores
from dreambooth.paths import cache_root
from dreambooth.progress import Lines, Reporter, hush_libraries
from dreambooth.toybox import SUBJECTS
from dreambooth.toybox.options import options
from dreambooth.toybox.stock import class_of
from dreambooth.toybox.study import Arm, Cost, Rows, Study, by_training, difference, merge
from dreambooth.toybox.world.subjects import draw_subject
from dreambooth.toybox.world.vocabulary import COLOURS

STEPS = (100, 200, 400, 800)
SUBJECT_NAMES = ("spotted_dog", "striped_cat", "tin_robot", "painted_teapot", "rally_car", "garden_duck")
OURS, BARE, TOKEN, DESCRIBED = "DreamBooth", "without prior", "textual inversion", "described"
PAPER = {"prior_loss": "images", "steps": 600}
"""The paper's prior in every arm, and as many steps as its LoRA wants with it."""
ARMS = (
    Arm(OURS),
    Arm(BARE, {"prior_weight": 0.0}),
    Arm("full", {"method": "full"}),
    Arm("full without prior", {"method": "full", "prior_weight": 0.0}),
    Arm(TOKEN, {"method": "textual-inversion", "steps": 400}),
    Arm("wrong class", noun="clock"),
    Arm("no class", {"label": "a [V]"}),
    *(Arm(f"photos {count}", photos=count) for count in (1, 2, 3, 4)),
    *(Arm(f"steps {steps}", {"steps": steps}, chain="steps") for steps in STEPS),
)
COLUMNS = ("dino", "truth", "clip_i", "clip_t", "pres", "div", "copying", "pres_drift")


@dataclass(frozen=True)
class Claim:
    """One figure is greater than another.

    Attributes:
        source: Where the paper says so.
        text: What is claimed.
        greater: Arm and metric.
        smaller: Arm and metric.
    """

    source: str
    text: str
    greater: tuple[str, str]
    smaller: tuple[str, str]


CLAIMS = (
    Claim("Table 1", "real photos are more like one another than its pictures", (OURS, "oracle_dino"), (OURS, "dino")),
    Claim(
        "Table 1", "its pictures are more like the subject than textual inversion's", (OURS, "dino"), (TOKEN, "dino")
    ),
    Claim("Table 1", "textual inversion's more than those of the bare class", (TOKEN, "dino"), (OURS, "floor_dino")),
    Claim("Table 1", "it follows prompts better than textual inversion", (OURS, "clip_t"), (TOKEN, "clip_t")),
    Claim("Table 3", "prior preservation lowers PRES (full)", ("full without prior", "pres"), ("full", "pres")),
    Claim("Table 3", "prior preservation raises DIV (full)", ("full", "div"), ("full without prior", "div")),
    Claim("Table 3", "it costs some likeness (full)", ("full without prior", "dino"), ("full", "dino")),
    Claim("Table 3", "prior preservation lowers PRES (LoRA)", (BARE, "pres"), (OURS, "pres")),
    Claim("Table 3", "prior preservation raises DIV (LoRA)", (OURS, "div"), (BARE, "div")),
    Claim("Table 3", "it costs some likeness (LoRA)", (BARE, "dino"), (OURS, "dino")),
    Claim("Table 4", "the right class beats a wrong one", (OURS, "dino"), ("wrong class", "dino")),
    Claim("Table 4", "the right class beats none", (OURS, "dino"), ("no class", "dino")),
    Claim("Table 4", "no class beats a wrong one", ("no class", "dino"), ("wrong class", "dino")),
    Claim("Table 5", "three photos beat one", ("photos 3", "dino"), ("photos 1", "dino")),
    Claim("Table 5", "five photos beat three", (OURS, "dino"), ("photos 3", "dino")),
    Claim("4.4", "without prior preservation the class drifts", (BARE, "pres"), (BARE, "pres_frozen")),
    Claim(
        "4.4",
        "with it the class drifts too, the more the more steps",
        (f"steps {STEPS[-1]}", "pres"),
        (f"steps {STEPS[0]}", "pres"),
    ),
    Claim("4.4", "likeness rises with the steps", (f"steps {STEPS[-1]}", "dino"), (f"steps {STEPS[0]}", "dino")),
    Claim("supplement", "it beats a description of the subject", (OURS, "dino"), (DESCRIBED, "dino")),
    Claim("supplement", "a description beats the bare class", (DESCRIBED, "dino"), (OURS, "floor_dino")),
    Claim("truth", "pictures are like new renders too, beyond a description", (OURS, "truth"), (DESCRIBED, "truth")),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what has not been run, then write the page."""
    chosen = options("reproduction", __doc__, "docs/reproduction.md", subjects=SUBJECT_NAMES, seeds=3).parse_args(
        arguments
    )
    hush_libraries()
    reporter = Lines(sys.stdout)
    study = Study(chosen.home, chosen.model, workers=chosen.workers, archive=chosen.archive, settings=PAPER)
    seeds = range(chosen.seeds)
    found = study.run(ARMS, chosen.subjects, seeds, reporter)
    found[DESCRIBED] = merge([described(study, name, seed, reporter) for seed in seeds for name in chosen.subjects])
    pictures = study.scenes * study.count
    page = write_up(found, f"{len(chosen.subjects)} subjects x {chosen.seeds} seeds x {pictures} pictures")
    chosen.out.write_text(page, encoding="utf-8")
    return 0


def described(study: Study, subject: str, seed: int, reporter: Reporter) -> Rows:
    """Score the frozen model's pictures of the subject's description in place of a training."""
    key = f"{DESCRIBED}-{study.key(Arm(OURS), subject, seed)}"
    return study.recall(DESCRIBED, subject, seed, key, lambda: _described(study, subject, seed, reporter))


def _described(study: Study, subject: str, seed: int, reporter: Reporter) -> tuple[Rows, Cost]:
    began = time.monotonic()
    run = study.learn(Arm(OURS), subject, seed, reporter)
    material = gather(run, Plan(str(study.prompts(subject)), study.count, siblings=0))
    draw_all([material], reporter)
    texts = [prompt.text(description(subject)) for prompt in material.prompts]
    base = material.frozen
    pictures = cached(cache_root() / "frozen", texts, base.seeds, base.sampling, base.model)
    draw_missing(pictures, lambda: frozen_pipeline(run), reporter, "described pictures")
    judges = load_judges(run)
    files = [shot.file for shot in pictures.shots]
    rows_GD = embeddings.embed_files(judges.identity, files)
    truth = sorted((SUBJECTS / subject / "truth").glob("*.png"))
    grid = Grid(subject, ("",) * len(texts), base.seeds)
    references = {"dino": [photo.path for photo in material.photos], "truth": truth}
    scores = {
        name: grid.scores(metrics.to_references(rows_GD, embeddings.embed_files(judges.identity, paths)))
        for name, paths in references.items()
    }
    scores["div"] = grid.scores(metrics.diversity(rows_GD, grid.prompt_G), pairs=True)
    return scores, Cost(round(time.monotonic() - began, 1), 0)


def description(subject: str) -> str:
    """Return what a person would say of a subject: the two nearest colour names, its pattern and its class."""
    told = json.loads((SUBJECTS / subject / "subject.json").read_text(encoding="utf-8"))
    drawn = draw_subject(told["class"], told["seed"])
    names = [min(COLOURS, key=lambda name: _distance(COLOURS[name], colour)) for colour in drawn.palette[:2]]
    return f"{' and '.join(dict.fromkeys(names))} {class_of(subject)} with {drawn.pattern}"


def write_up(found: Mapping[str, Rows], size: str) -> str:
    """Return the page: every claim with its interval, and the table of every arm."""
    lines = [
        "# The paper's claims, tested on the toybox",
        "",
        f"{size}; written by `python -m dreambooth.toybox.reproduction`, which takes",
        "about 3.5 core-hours for 6 subjects x 3 seeds. A claim is a",
        "difference of two figures, its interval is over subjects: above zero it holds, below it is contradicted,",
        "else it is open.",
        "DINO stands for the toybox's identity encoder, CLIP for its CLIP: no figure compares with the paper's own.",
        "",
        "| paper | claim | difference | 95 % interval | verdict |",
        "| --- | --- | --- | --- | --- |",
        *(_claim(claim, found) for claim in CLAIMS),
        "",
        f"{_between(found[OURS])}.",
        "",
        "`truth` is the likeness to eight renders of the subject that nothing was trained on. `described` is a",
        "description of the subject in the prompt, in place of training.",
        "",
        f"| | {' | '.join(COLUMNS)} |",
        "| --- |" + " --- |" * len(COLUMNS),
        *_table(found),
        "",
    ]
    return "\n".join(lines)


WORDS = {"holds": "better", "contradicted": "worse", "open": "no difference shown"}
"""A verdict on one way over another, in words."""


def verdict(difference: Estimate) -> str:
    """Return what an interval says of a claim that it is above zero."""
    if difference.low is None or difference.high is None or difference.low <= 0 <= difference.high:
        return "open"
    return "holds" if difference.low > 0 else "contradicted"


def _claim(claim: Claim, found: Mapping[str, Rows]) -> str:
    (one, first), (two, second) = claim.greater, claim.smaller
    apart = difference(found[one][first], found[two][second])
    interval = "" if apart.low is None else f"{apart.low:+.3f} to {apart.high:+.3f}"
    return f"| {claim.source} | {claim.text} | {apart.value:+.3f} | {interval} | {verdict(apart)} |"


def _between(ours: Rows) -> str:
    """In how many trainings the run is more like the photos than the frozen model's class, and less than they are."""
    floor, dino, oracle = (by_training(ours[name]) for name in ("floor_dino", "dino", "oracle_dino"))
    count = sum(floor[each] < dino[each] < oracle[each] for each in dino)
    return f"DINO of {OURS} lies between the frozen model's class and real photos in {count} of {len(dino)} trainings"


def _table(found: Mapping[str, Rows]) -> Iterator[str]:
    ours = found[OURS]
    rows: dict[str, dict[str, Scores]] = {
        "real photos": {"dino": ours["oracle_dino"], "clip_i": ours["oracle_clip_i"]},
        "class prompt": {
            **{name: ours[f"floor_{name}"] for name in ("dino", "clip_i")},
            **{"clip_t": ours["ceiling_clip_t"], "pres": ours["pres_frozen"], "div": ours["ceiling_div"]},
        },
        **found,
    }
    for name, scores in rows.items():
        cells = [statistics.estimate(scores[column]).text() if column in scores else "" for column in COLUMNS]
        yield f"| {name} | {' | '.join(cells)} |"


def _distance(one: Sequence[float], two: Sequence[float]) -> float:
    return float(np.linalg.norm(np.subtract(one, two)))


if __name__ == "__main__":
    sys.exit(main())
