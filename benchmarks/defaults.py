"""Our defaults against diffusers' own: `python benchmarks/defaults.py DIFFUSERS [--subjects spotted_dog tin_robot]`.

DIFFUSERS is a checkout of huggingface/diffusers. Whole jobs from nothing, each in a process of its own: photos in,
adapter out. Theirs are the two examples of its `examples/dreambooth/README.md` (LoRA: 500 steps; prior preservation:
200 class images and 800 steps of the whole U-Net), whose rates are raised to what suits the toybox; ours is
`dreambooth train PHOTOS --class NOUN`. What they trained is scored on the same prompts and seeds, in pairs; our
LoRA also at other `--strengths`, as `dreambooth generate RUN --adapter RUN=0.7` draws it.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import jobs
import numpy as np
import torch

from dreambooth import adapters
from dreambooth.evaluation import statistics
from dreambooth.evaluation.material import Plan
from dreambooth.evaluation.runs import evaluate
from dreambooth.evaluation.statistics import Scores
from dreambooth.progress import Silent, hush_libraries
from dreambooth.recipe import Recipe
from dreambooth.run import Run
from dreambooth.toybox import SUBJECTS
from dreambooth.toybox.study import class_of
from dreambooth.training import train

WEIGHTS = "pytorch_lora_weights.safetensors"
METRICS = ("dino", "truth", "clip_t", "copying")


@dataclass(frozen=True)
class Theirs:
    """One of their examples: what is trained, class images (0: no prior preservation), steps."""

    method: str
    class_images: int
    steps: int


EXAMPLES = {"LoRA": Theirs("lora", 0, 500), "prior preservation": Theirs("full", 200, 800)}
OURS = "ours"


def at(strength: float) -> str:
    """The name of ours, drawn at a strength of its adapter."""
    return OURS if strength == 1 else f"{OURS} at strength {strength:g}"


def ours(subject: str, home: Path, method: str, steps: int | None) -> list[str]:
    """What a user of ours gives; no pictures, since theirs draw none."""
    photos, run = SUBJECTS / subject / "photos", home / "run"
    given = ["train", photos, "--class", class_of(subject), "--model", "toybox", "--samples", 0, "--out", run]
    given += ["--method", method, *([] if steps is None else ["--steps", steps])]
    return [sys.executable, str(jobs.MARKED), "-m", "dreambooth", *map(str, given)]


def adopt(theirs: Path, method: str, subject: str, out: Path) -> Run:
    """Put what they trained into a run of ours, so that it is drawn and scored as ours are."""
    described = {"photos": SUBJECTS / subject / "photos", "class_noun": class_of(subject), "identifier": "sks"}
    values = {
        "model": "toybox",
        "method": method,
        "steps": 1,
        "samples": 0,
        "prior_weight": 0.0,
        "subjects": [described],
    }
    lora = {"rank": jobs.RANK, "targets": "attention"} if method == "lora" else {}
    run = train(Recipe.of({**values, **lora, "allow": ["identifier"]}), out)
    if method == "lora":
        shutil.copy(theirs / WEIGHTS, run.adapter / WEIGHTS)
    else:
        shutil.rmtree(run.adapter)
        shutil.copytree(theirs, run.adapter)
    return run


def scores(run: Run, subject: str) -> dict[str, Scores]:
    """The rows of the metrics that are compared."""
    found = evaluate(run.path, Plan(count=2, siblings=0), held_out=SUBJECTS / subject / "truth", reporter=Silent())
    dino = found.rows["dino"]
    rows = {**found.rows, "truth": replace(dino, value_N=dino.value_N - found.rows["held_out_gap"].value_N)}
    return {name: replace(rows[name], subject_N=np.full(len(dino.value_N), subject)) for name in METRICS}


def measure(chosen: argparse.Namespace, subject: str, home: Path) -> Iterator[tuple[str, float, dict[str, Scores]]]:
    """Yield name, seconds and scores of each way to train a subject."""
    for name in chosen.examples:
        example, out = EXAMPLES[name], home / name
        (out / "cache").mkdir(parents=True)
        job = jobs.theirs(chosen.diffusers, example.method, example.class_images, subject)
        seconds = jobs.cost(job(out, example.steps), out).seconds
        yield name, seconds, scores(adopt(out / "run", example.method, subject, out / "adopted"), subject)
    out = home / OURS
    (out / "cache").mkdir(parents=True)
    seconds = jobs.cost(ours(subject, out, chosen.method, chosen.steps), out).seconds
    for strength in (1.0, *chosen.strengths):
        drawn = Run(shutil.copytree(out / "run", out / f"{strength:g}"))
        if strength != 1:
            adapters.strengthen(drawn.adapter, strength)
        yield at(strength), seconds, scores(drawn, subject)


def main() -> None:
    """Measure and print: a line for each training, then one for each of their examples."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("diffusers", type=Path)
    parser.add_argument("--subjects", nargs="+", default=["spotted_dog", "tin_robot", "painted_teapot"])
    parser.add_argument("--examples", nargs="+", choices=EXAMPLES, default=list(EXAMPLES))
    parser.add_argument("--method", choices=("lora", "full"), default="lora", help="of ours")
    parser.add_argument("--steps", type=int, help="of ours (default: the default)")
    parser.add_argument("--strengths", type=float, nargs="*", default=[0.7], help="of our LoRA, beside 1")
    chosen = parser.parse_args()
    if chosen.method == "full":
        chosen.strengths = []
    hush_libraries()
    print(f"{platform.platform()}, torch {torch.__version__}, {torch.get_num_threads()} threads", flush=True)
    seconds: dict[str, list[float]] = {}
    rows: dict[str, list[dict[str, Scores]]] = {}
    for subject in chosen.subjects:
        with tempfile.TemporaryDirectory() as home:
            for name, taken, found in measure(chosen, subject, Path(home)):
                seconds.setdefault(name, []).append(taken)
                rows.setdefault(name, []).append(found)
                means = {metric: round(float(np.nanmean(each.value_N)), 3) for metric, each in found.items()}
                print(json.dumps({"subject": subject, "way": name, "seconds": round(taken, 1), **means}), flush=True)
    for name, way in product(chosen.examples, map(at, (1.0, *chosen.strengths))):
        pairs = {
            metric: [statistics.joined([r[metric] for r in rows[each]]) for each in (way, name)] for metric in METRICS
        }
        apart = {metric: statistics.compare(*pair).difference.text("+") for metric, pair in pairs.items()}
        ratio = sum(seconds[name]) / sum(seconds[way])
        print(json.dumps({way: f"over {name}", "times as fast": round(ratio, 2), **apart}), flush=True)


if __name__ == "__main__":
    main()
