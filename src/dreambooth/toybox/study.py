"""Studies: several ways to train, each on the same subjects with the same seeds, measured alike and kept.

A study is a grid of cells (arm, subject, seed). What a cell came to is written as its rows, one a picture, so that any
figure can be made of it later; a study that was interrupted goes on with the cell it was at.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from dreambooth.evaluation import dreambench, statistics
from dreambooth.evaluation.bench import joined
from dreambooth.evaluation.material import Plan
from dreambooth.evaluation.runs import Evaluation, evaluate
from dreambooth.evaluation.statistics import Estimate, Scores
from dreambooth.files import remove_folder, write_json
from dreambooth.progress import Reporter, Silent, hush_libraries
from dreambooth.recipe import Recipe
from dreambooth.toybox import SUBJECTS
from dreambooth.training import train

ROWS = "rows.json"
Rows = dict[str, Scores]


@dataclass(frozen=True)
class Arm:
    """A way to train.

    Attributes:
        name: Of the arm, unique in the study.
        settings: What its recipe sets.
        photos: Only the first so many photos; None for all.
        noun: A class noun other than the subject's own.
        chain: Arms of one chain are one run, of which each takes more steps than the one before.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    photos: int | None = None
    noun: str | None = None
    chain: str | None = None


Cell = tuple[Arm, str, int]
"""An arm, the name of a subject, and a seed."""


@dataclass(frozen=True)
class Study:
    """Where cells are kept, and how much is drawn to measure them.

    Attributes:
        home: The folder.
        model: Base model.
        scenes: Prompts of the paper's list to measure with, evenly chosen.
        count: Pictures of each.
        workers: Processes that measure cells side by side; of one thread each where there are several.
    """

    home: Path
    model: str = "toybox"
    scenes: int = 10
    count: int = 2
    workers: int = 1

    def run(
        self, arms: Sequence[Arm], subjects: Sequence[str], seeds: Iterable[int], reporter: Reporter
    ) -> dict[str, Rows]:
        """Measure every cell that has not been; return each arm's rows over all subjects and seeds.

        Args:
            arms: The arms; those of a chain in the order of their steps.
            subjects: Names of bundled subjects.
            seeds: Of the training.
            reporter: Listens to the progress.
        """
        cells = [(arm, subject, seed) for seed in seeds for subject in subjects for arm in arms]
        if self.workers > 1:
            self._side_by_side([cell for cell in cells if not self._rows(*cell).is_file()], reporter)
        found: dict[str, list[Rows]] = {arm.name: [] for arm in arms}
        for index, (arm, subject, seed) in enumerate(cells):
            reporter.say(f"cell {index + 1} of {len(cells)}: {arm.name}, {subject}, seed {seed}")
            found[arm.name].append(self.measure(arm, subject, seed, reporter))
        return {name: merge(rows) for name, rows in found.items()}

    def trained(self, arm: Arm, subject: str, seed: int) -> Path:
        """Return the folder of a cell's run."""
        return self.home / (arm.chain or arm.name) / f"{subject}-{seed}" / "run"

    def seconds(self, arm: Arm, subject: str, seed: int) -> float:
        """Return what the training of a measured cell took, class images included."""
        return float(json.loads(self._rows(arm, subject, seed).read_text(encoding="utf-8"))["seconds"])

    def measure(self, arm: Arm, subject: str, seed: int, reporter: Reporter) -> Rows:
        """Train and measure one cell, unless that has been done."""
        file = self._rows(arm, subject, seed)
        if not file.is_file():
            began = time.monotonic()
            run = train(self._recipe(arm, subject, seed), self.trained(arm, subject, seed), reporter)
            trained = time.monotonic() - began
            plan = Plan(str(self.prompts(subject)), self.count)
            found = evaluate(run.path, plan, held_out=SUBJECTS / subject / "truth", reporter=reporter)
            if arm.chain is None:
                remove_folder(run.checkpoints)
            write_json(file, {"seconds": trained, "rows": _document(found)})
        return _read(file, subject, seed)

    def prompts(self, subject: str) -> Path:
        """Write the list of a subject's prompts and return its path; every tenth of the list has its share in it."""
        noun = class_of(subject)
        whole = dreambench.choose(noun)
        chosen = [whole[index] for index in np.linspace(0, len(whole) - 1, self.scenes).round().astype(int)]
        path = self.home / f"prompts-{noun}-{self.scenes}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump([f"a {prompt.scene}" for prompt in chosen]), encoding="utf-8")
        return path

    def _side_by_side(self, cells: Sequence[Cell], reporter: Reporter) -> None:
        """Measure cells in several processes; those of one run stay in one, in their order."""
        runs: dict[Path, list[Cell]] = {}
        for cell in cells:
            runs.setdefault(self.trained(*cell), []).append(cell)
        with ProcessPoolExecutor(self.workers, get_context("spawn"), initializer=_alone) as pool:
            for number, path in enumerate(pool.map(self._measure_all, runs.values()), 1):
                reporter.say(f"run {number} of {len(runs)}: {path}")

    def _measure_all(self, cells: Sequence[Cell]) -> Path:
        for cell in cells:
            self.measure(*cell, Silent())
        return self.trained(*cells[0])

    def _rows(self, arm: Arm, subject: str, seed: int) -> Path:
        return self.home / arm.name / f"{subject}-{seed}" / ROWS

    def _recipe(self, arm: Arm, subject: str, seed: int) -> Recipe:
        photos = SUBJECTS / subject / "photos"
        if arm.photos is not None:
            photos = _first(photos, arm.photos, self.home / "photos" / f"{subject}-{arm.photos}")
        described = {"photos": photos, "class_noun": arm.noun or class_of(subject)}
        base = {"model": self.model, "seed": seed, "samples": 0, "keep": 1}
        return Recipe.of({**base, **arm.settings, "subjects": [described]})


def class_of(subject: str) -> str:
    """Return the class noun of a bundled subject."""
    described = json.loads((SUBJECTS / subject / "subject.json").read_text(encoding="utf-8"))
    return str(described["class"])


def merge(found: Sequence[Rows]) -> Rows:
    """Join the rows of several cells, of the metrics that all of them have."""
    names = [name for name in found[0] if all(name in rows for rows in found)]
    return {name: joined([rows[name] for rows in found]) for name in names}


def difference(one: Scores, two: Scores) -> Estimate:
    """Return the mean difference of two scores over subjects, each subject one unit, with its interval.

    Unlike `statistics.compare` it takes scores of different pictures, such as the photos' own likeness.
    """
    first, second = _by_subject(one), _by_subject(two)
    names = sorted(first)
    value_N = np.array([first[name] - second[name] for name in names])
    nothing = np.zeros(len(names), int)
    return statistics.estimate(Scores(value_N, np.array(names), nothing, nothing, np.full(len(names), "")))


def _alone() -> None:
    hush_libraries()
    torch.set_num_threads(1)


def _by_subject(scores: Scores) -> dict[str, float]:
    found = statistics.by(scores, "subject")
    return {name: figure.value for name, figure in found.items() if figure.value is not None}


def _first(photos: Path, count: int, out: Path) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    for file in sorted(photos.glob("*.png"))[:count]:
        shutil.copyfile(file, out / file.name)
    return out


def _document(found: Evaluation) -> dict[str, Any]:
    rows = dict(found.rows)
    # likeness to pictures of the truth, none of which was trained on
    rows["truth"] = replace(rows["dino"], value_N=rows["dino"].value_N - rows["held_out_gap"].value_N)
    return {
        name: {
            "value": [None if np.isnan(value) else float(value) for value in scores.value_N],
            "prompt": scores.prompt_N.tolist(),
            "seed": scores.seed_N.tolist(),
            "pairs": scores.pairs,
        }
        for name, scores in rows.items()
    }


def _read(file: Path, subject: str, seed: int) -> Rows:
    """The rows of a cell. Pictures of several trainings are told apart by their seeds."""
    return dict(_scores(json.loads(file.read_text(encoding="utf-8"))["rows"], subject, seed))


def _scores(rows: Mapping[str, Any], subject: str, seed: int) -> Iterator[tuple[str, Scores]]:
    for name, row in rows.items():
        value_N = np.array([np.nan if value is None else value for value in row["value"]])
        names, count = np.full(len(value_N), subject), len(value_N)
        seed_N = np.array(row["seed"]) + 1000 * seed
        # DIV and the oracle are means over pairs of one training: another one is another set
        prompt_N = np.array(row["prompt"]) + (1000 * seed if row["pairs"] else 0)
        yield name, Scores(value_N, names, prompt_N, seed_N, np.full(count, ""), row["pairs"])
