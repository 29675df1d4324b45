"""Studies: several ways to train, each on the same subjects with the same seeds, measured alike and kept.

A study is a grid of cells (arm, subject, seed). What a cell came to is a line of an archive: its rows, one a picture,
so that any figure can be made of it later, under a key of all that it depends on. An interrupted study goes on with
the cells that the archive lacks, on whatever machine; a cell whose defaults have changed since is measured again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from filelock import FileLock

from dreambooth import environment, families, memory, planning, targets
from dreambooth.evaluation import dreambench, statistics
from dreambooth.evaluation.material import Plan, frozen_pipeline
from dreambooth.evaluation.runs import Evaluation, evaluate
from dreambooth.evaluation.scoring import alone
from dreambooth.evaluation.statistics import Estimate, Scores
from dreambooth.files import remove_folder
from dreambooth.looks import EARLIEST, GUIDANCES, STRENGTHS
from dreambooth.progress import Reporter, Silent, hush_libraries
from dreambooth.recipe import Recipe
from dreambooth.run import Run
from dreambooth.select import LEVEL, LOOKS, PATIENCE
from dreambooth.toybox import SUBJECTS, held_out
from dreambooth.toybox.stock import class_of, first_photos, photos_of_others, with_masks
from dreambooth.training import train

ARCHIVE = Path("docs/studies.jsonl")
DEFAULT = "the default"
"""The arm that sets nothing."""
Rows = dict[str, Scores]
KEPT = (
    *("dino", "truth", "clip_i", "clip_t", "pres", "pres_frozen", "pres_drift", "div", "copying"),
    *("class_kept", "class_clip_t", "class_clip_t_frozen"),
    *("oracle_dino", "floor_dino", "oracle_clip_i", "floor_clip_i", "ceiling_clip_t", "ceiling_div"),
)
"""The rows that the archive keeps."""


@dataclass(frozen=True)
class Arm:
    """A way to train.

    Attributes:
        name: Of the arm, unique in the study.
        settings: What its recipe sets.
        photos: Only the first so many photos; None for all.
        masked: Whether the photos have their masks.
        noun: A class noun other than the subject's own.
        identifier: A word for the subject, whether it is a good one or not; None for the default.
        others: Photos of so many other subjects of the class are its class images: real ones, in this world.
        chain: Arms of one chain are one run, of which each takes more steps than the one before.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    photos: int | None = None
    masked: bool = False
    noun: str | None = None
    identifier: str | None = None
    others: int = 0
    chain: str | None = None


@dataclass(frozen=True)
class Cost:
    """What a training takes: seconds, without class images, which runs share, and megabytes of a step."""

    seconds: float
    megabytes: float


Cell = tuple[Arm, str, int]
"""An arm, the name of a subject, and a seed."""
Training = tuple[str, int]
"""A subject and the seed of the training."""


@dataclass(frozen=True)
class Study:
    """Where cells are kept, and how much is drawn to measure them.

    Attributes:
        home: Folder of the runs.
        model: Base model.
        scenes: Prompts of the paper's list to measure with, evenly chosen.
        count: Pictures of each.
        workers: Processes that measure cells side by side; of one thread each where there are several.
        archive: File of what was measured, a line a cell.
        settings: What every arm's recipe sets, unless the arm sets it otherwise.
        asked: Rows that a cell must have; one that was kept before there were such rows is measured again.
        siblings: Other classes, of which the way that they and the subject's own went towards it is measured.
    """

    home: Path
    model: str = "toybox"
    scenes: int = 10
    count: int = 2
    workers: int = 1
    archive: Path = ARCHIVE
    settings: Mapping[str, Any] = field(default_factory=dict)
    asked: tuple[str, ...] = ()
    siblings: int = 0

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
            kept = self._kept()
            self._side_by_side(
                [cell for cell in cells if not _answers(kept.get(self.key(*cell)), self.asked)], reporter
            )
        found: dict[str, list[Rows]] = {arm.name: [] for arm in arms}
        for index, (arm, subject, seed) in enumerate(cells):
            reporter.say(f"cell {index + 1} of {len(cells)}: {arm.name}, {subject}, seed {seed}")
            found[arm.name].append(self.measure(arm, subject, seed, reporter))
        return {name: merge(rows) for name, rows in found.items()}

    def trained(self, arm: Arm, subject: str, seed: int) -> Path:
        """Return the folder of a cell's run, which other defaults would give another name."""
        plans = planning.make_plans(self.recipe(arm, subject, seed))
        return self.home / (arm.chain or arm.name) / f"{subject}-{seed}-{plans.identity(plans.recipe)}"

    def learn(self, arm: Arm, subject: str, seed: int, reporter: Reporter) -> Run:
        """Train a cell's run, unless that has been done here."""
        return train(self.recipe(arm, subject, seed), self.trained(arm, subject, seed), reporter)

    def cost(self, arm: Arm, subject: str, seed: int) -> Cost:
        """Return what the training of a measured cell took."""
        kept = self._kept()[self.key(arm, subject, seed)]
        return Cost(kept["seconds"], kept["megabytes"])

    def measure(self, arm: Arm, subject: str, seed: int, reporter: Reporter) -> Rows:
        """Train and measure one cell, unless that has been done."""

        def made() -> tuple[Rows, Cost]:
            run = self.learn(arm, subject, seed, reporter)
            cost = cost_of(run)
            plan = Plan(str(self.prompts(subject)), self.count, siblings=self.siblings)
            found = evaluate(run.path, plan, held_out=SUBJECTS / subject / "truth", reporter=reporter)
            rows = {
                **_rows(found),
                **_ways(found, subject),
                **_choice(run, subject),
                "held_out_loss": held_out.loss(run, subject),
            }
            if arm.chain is None and run.checkpoints.is_dir():
                remove_folder(run.checkpoints)
            return rows, cost

        return self.recall(arm.name, subject, seed, self.key(arm, subject, seed), made, self.asked)

    def recall(
        self,
        name: str,
        subject: str,
        seed: int,
        key: str,
        make: Callable[[], tuple[Rows, Cost]],
        asked: Iterable[str] = (),
    ) -> Rows:
        """Return the rows that the archive has under a key; where some are not there, those made and kept now."""
        document = self._kept().get(key)
        if document is None or not _answers(document, asked):
            rows, cost = make()
            device = environment.processes().device.type
            told = {"key": key, "arm": name, "subject": subject, "seed": seed, "device": device, **asdict(cost)}
            document = {**told, "rows": _document(rows)}
            self.home.mkdir(parents=True, exist_ok=True)
            with FileLock(self.home / "archive.lock"), self.archive.open("a", encoding="utf-8") as file:
                file.write(json.dumps(document, separators=(",", ":")) + "\n")
        return dict(_scores(document["rows"], subject, seed))

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
        with ProcessPoolExecutor(self.workers, get_context("spawn"), initializer=use_one_thread) as pool:
            waiting = {pool.submit(self._measure_all, some): path for path, some in runs.items()}
            for number, done in enumerate(as_completed(waiting), 1):
                how = "failed" if done.exception() else "done"
                reporter.say(f"run {number} of {len(runs)} {how}: {waiting[done]}")
        for done in waiting:
            done.result()  # what failed is told when all else is there

    def _measure_all(self, cells: Sequence[Cell]) -> None:
        for cell in cells:
            self.measure(*cell, Silent())

    def _kept(self) -> dict[str, dict[str, Any]]:
        if not self.archive.is_file():
            return {}
        documents = map(json.loads, self.archive.read_text(encoding="utf-8").splitlines())
        return {document["key"]: document for document in documents}

    def key(self, arm: Arm, subject: str, seed: int) -> str:
        """Hash all that a cell's rows depend on."""
        plans = planning.make_plans(self.recipe(arm, subject, seed))
        filled = plans.recipe
        drawn = [filled.steps, filled.inference_steps, filled.guidance, filled.sampler, self.scenes, self.count]
        drawn += [] if filled.consistency is None else ["consistency", filled.consistency]
        drawn += ["siblings", self.siblings] if self.siblings else []
        drawn += [str((LOOKS, EARLIEST, LEVEL, PATIENCE, STRENGTHS, GUIDANCES))] if filled.select else []
        return hashed([plans.identity(filled), *drawn])

    def recipe(self, arm: Arm, subject: str, seed: int) -> Recipe:
        """Return what a cell's run is given."""
        photos = SUBJECTS / subject / "photos"
        if arm.photos is not None:
            photos = first_photos(photos, arm.photos, self.home / "photos" / f"{subject}-{arm.photos}")
        if arm.masked:
            photos = with_masks(
                photos, SUBJECTS / subject / "masks" / "photos", self.home / "photos" / f"{subject}, masked"
            )
        described = {"photos": photos, "class_noun": arm.noun or class_of(subject), "identifier": arm.identifier}
        base = self.base(seed)
        if arm.identifier:
            base["allow"] = ("identifier",)
        if arm.others:
            base["prior_images"] = photos_of_others(class_of(subject), arm.others, self.home / "others")
        return Recipe.of({**base, **self.settings, **arm.settings, "subjects": [described]})

    def base(self, seed: int) -> dict[str, Any]:
        """Return what every recipe of the study sets."""
        return {"model": self.model, "precision": "fp32", "seed": seed, "samples": 0, "keep": 1}


def hashed(parts: Sequence[Any]) -> str:
    """Return the key of a cell that depends on these plain values."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def by_training(scores: Scores) -> dict[Training, float]:
    """Return the mean of each training's scores."""
    trainings = list(zip(scores.subject_N.tolist(), (scores.seed_N // 1000).tolist(), strict=True))
    return {
        each: float(
            np.nanmean([value for value, owner in zip(scores.value_N, trainings, strict=True) if owner == each])
        )
        for each in dict.fromkeys(trainings)
    }


def balances(rows: Rows) -> Scores:
    """Return for each training the mean of two shares: the way in DINO from class to photos, and of CLIP-T kept."""
    dino, floor, oracle, clip_t, ceiling = (
        by_training(rows[name]) for name in ("dino", "floor_dino", "oracle_dino", "clip_t", "ceiling_clip_t")
    )
    return of_trainings(
        {
            each: ((dino[each] - floor[each]) / (oracle[each] - floor[each]) + clip_t[each] / ceiling[each]) / 2
            for each in dino
        }
    )


def of_trainings(values: Mapping[Training, float]) -> Scores:
    """Return one row for each training."""
    count = len(values)
    subject_N = np.array([subject for subject, _ in values])
    seed_N = np.array([1000 * seed for _, seed in values])  # as in the rows of cells, so that `by_training` reads them
    return Scores(np.array(list(values.values())), subject_N, np.zeros(count, int), seed_N, np.full(count, ""))


def merge(found: Sequence[Rows]) -> Rows:
    """Join the rows of several cells, of the metrics that all of them have."""
    names = [name for name in found[0] if all(name in rows for rows in found)]
    return {name: statistics.joined([rows[name] for rows in found]) for name in names}


def difference(one: Scores, two: Scores) -> Estimate:
    """Return the mean difference of two scores over subjects, each subject one unit, with its interval.

    Unlike `statistics.compare` it takes scores of different pictures, such as the photos' own likeness.
    """
    first, second = _by_subject(one), _by_subject(two)
    names = sorted(first)
    value_N = np.array([first[name] - second[name] for name in names])
    nothing = np.zeros(len(names), int)
    return statistics.estimate(Scores(value_N, np.array(names), nothing, nothing, np.full(len(names), "")))


def _answers(document: Mapping[str, Any] | None, asked: Iterable[str]) -> bool:
    return document is not None and set(asked) <= document["rows"].keys()


def use_one_thread() -> None:
    """Set up a process of several."""
    hush_libraries()
    torch.set_num_threads(1)


def _by_subject(scores: Scores) -> dict[str, float]:
    found = statistics.by(scores, "subject")
    return {name: figure.value for name, figure in found.items() if figure.value is not None}


def cost_of(run: Run) -> Cost:
    """Return what a training took, and what a step of it needs, as the estimate says."""
    times: dict[str, float] = run.info["times"]
    seconds = sum(value for stage, value in times.items() if stage != "class images")
    family = families.get(targets.find(run.path).source.family)
    images = run.recipe.batch_size * (2 if run.recipe.prior_weight else 1)
    needed = memory.step_bytes(frozen_pipeline(run), family, run.recipe, images, torch.device("cpu"))
    return Cost(round(seconds, 1), round(needed / 1e6))


def _rows(found: Evaluation) -> Rows:
    rows = dict(found.rows)
    # likeness to pictures of the truth, none of which was trained on
    rows["truth"] = replace(rows["dino"], value_N=rows["dino"].value_N - rows["held_out_gap"].value_N)
    return {name: rows[name] for name in KEPT if name in rows}


def _ways(found: Evaluation, subject: str) -> Rows:
    """What share of the way to the subject its own class and, where they were drawn, others went, as findings say."""
    figures = {entry["name"]: entry["figures"] for entry in found.document["findings"]}
    names = {"class_way": "drift", "others_way": "siblings"}
    shares = {row: figures[name].get("share_of_the_way") for row, name in names.items() if name in figures}
    return {row: alone(subject, np.array([share and share["value"]], float)) for row, share in shares.items()}


def _choice(run: Run, subject: str) -> Rows:
    """What a run that selects has chosen, and the seconds that looking took."""
    selection = run.info.get("selection")
    told = {"chosen_step": selection["step"], "looking": selection["seconds"]} if selection else {}
    return {name: alone(subject, np.array([float(value)])) for name, value in told.items()}


def _document(rows: Rows) -> dict[str, Any]:
    return {
        name: {
            "value": [None if np.isnan(value) else round(float(value), 4) for value in scores.value_N],
            "prompt": scores.prompt_N.tolist(),
            "seed": scores.seed_N.tolist(),
            "pairs": scores.pairs,
        }
        for name, scores in rows.items()
    }


def _scores(rows: Mapping[str, Any], subject: str, seed: int) -> Iterator[tuple[str, Scores]]:
    """The rows of a cell. Pictures of several trainings are told apart by their seeds."""
    for name, row in rows.items():
        value_N = np.array([np.nan if value is None else value for value in row["value"]])
        names, count = np.full(len(value_N), subject), len(value_N)
        seed_N = np.array(row["seed"]) + 1000 * seed
        # DIV and the oracle are means over pairs of one training: another one is another set
        prompt_N = np.array(row["prompt"]) + (1000 * seed if row["pairs"] else 0)
        yield name, Scores(value_N, names, prompt_N, seed_N, np.full(count, ""), row["pairs"])
