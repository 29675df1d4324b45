"""Several runs on the same prompts and seeds, held against one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from dreambooth.errors import UserError
from dreambooth.evaluation import statistics
from dreambooth.evaluation.runs import Evaluation
from dreambooth.evaluation.statistics import Scores
from dreambooth.files import write_json
from dreambooth.reporting_scores import compare_page

COMPARED = ("dino", "clip_i", "clip_t", "div", "copying", "pres_drift")
"""Metrics of which pairs of runs are compared; the p-values are corrected for all of them together."""


def compare(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """Return the runs' scores and the paired differences of every two, for `comparison.json` and its page.

    Raises:
        UserError: Two runs were not evaluated on the same prompts and seeds, or not by the same encoders.
    """
    pairs = [
        {"a": _name(one), "b": _name(two), "metric": metric, **_difference(one, two, metric)}
        for one, two in combinations(evaluations, 2)
        for metric in COMPARED
    ]
    corrected = statistics.holm({str(at): pair["p"] for at, pair in enumerate(pairs) if pair["p"] is not None})
    for at, pair in enumerate(pairs):
        pair["p_holm"] = corrected.get(str(at))
    return {"runs": [_run(each) for each in evaluations], "pairs": pairs}


def write(compared: dict[str, Any], out: Path) -> Path:
    """Write `comparison.json` and its page into a folder; return the page."""
    write_json(out / "comparison.json", compared)
    return compare_page(compared, out / "comparison.html")


def _difference(one: Evaluation, two: Evaluation, metric: str) -> dict[str, Any]:
    if one.document["encoders"] != two.document["encoders"]:
        raise UserError(f"{_name(one)} and {_name(two)} were scored by different encoders: name one for both")
    found = statistics.compare(_common(one, metric), _common(two, metric))
    return {"difference": found.difference.as_json(), "p": found.p, "n": found.difference.n}


def _common(evaluation: Evaluation, metric: str) -> Scores:
    """The rows without the name of their run, by which subjects of different runs are told apart."""
    scores, name = evaluation.rows[metric], evaluation.run.path.name
    return replace(scores, subject_N=np.array([str(each).removeprefix(name) for each in scores.subject_N]))


def _run(evaluation: Evaluation) -> dict[str, Any]:
    run = evaluation.run
    return {
        "name": run.path.name,
        "folder": str(run.path),
        "label": f"{run.recipe.method}, {run.shipped_steps} steps",
        "scores": evaluation.document["scores"],
    }


def _name(evaluation: Evaluation) -> str:
    return evaluation.run.path.name
