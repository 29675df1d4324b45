"""The model card of the toybox, written from what training and evaluation recorded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dreambooth.toybox.model.engine import CURVE
from dreambooth.toybox.model.evaluate import SHOWN
from dreambooth.toybox.model.sizes import NETWORKS
from dreambooth.toybox.model.train import RECORD

EVALUATION = "evaluation.json"
POINTS = 8
OF_MODEL = tuple(name for name in NETWORKS if name != "classifiers")


def parts(home: Path) -> dict[str, str]:
    """The records in the folder of a size, as Markdown: "training" and "evaluation", as far as each is done."""
    found = {}
    if all((home / name / RECORD).exists() for name in OF_MODEL):
        records = [json.loads((home / name / RECORD).read_text()) for name in OF_MODEL]
        found["training"] = f"{_training(records)}\n{_curves(home, records)}"
    if (home / EVALUATION).exists():
        found["evaluation"] = _evaluation(json.loads((home / EVALUATION).read_text()))
    return found


def marks(part: str) -> tuple[str, str]:
    """What a page has before and after a part of the card."""
    return f"<!-- {part}, written by python -m dreambooth.toybox card -->", f"<!-- end of {part} -->"


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _training(records: list[dict[str, Any]]) -> str:
    head = ["network", "parameters", "steps", "batch", "hours", "renders", "held out", "seed", "commit"]
    rows = [
        [
            record["network"],
            f"{record['parameters'] / 1e6:.2f} M",
            f"{record['steps']:,}",
            str(record["plan"]["batch"]),
            f"{record['hours']:.2f}",
            f"{record['renders']:,}",
            _values(record["measured"]),
            str(record["seed"]),
            str(record["commit"]),
        ]
        for record in records
    ]
    machines = {
        f"{row['device']}, {row['threads']} threads, {row['precision']}, torch {row['torch']}" for row in records
    }
    return "## Training\n\n" + table(head, rows) + "\nMade on: " + "; ".join(sorted(machines)) + ".\n"


def _curves(home: Path, records: list[dict[str, Any]]) -> str:
    """The loss of each network at a few steps (means since the line before)."""
    lines = ["## Curves", ""]
    for record in records:
        rows = [json.loads(line) for line in (home / record["network"] / CURVE).read_text().splitlines()]
        losses = [f"{row['values']['loss']:.4f} at {row['step']:,}" for row in _some(rows)]
        lines.append(f"- {record['network']}: loss {', '.join(losses)}")
    return "\n".join([*lines, ""])


def _some(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    losses = [row for row in rows if "loss" in row["values"]]
    for index in range(1, POINTS + 1):
        yield losses[index * len(losses) // POINTS - 1]


def _evaluation(result: dict[str, Any]) -> str:
    chosen = result["chosen"]
    head = ["attribute", "asked", "right (95 % interval)", "renders (ceiling)"]
    accuracy, ceiling = result["model"]["accuracy"], result["renders"]["accuracy"]
    rows = [[name, str(row["count"]), _share(row), _share(ceiling[name])] for name, row in accuracy.items()]
    sweep = [
        [str(row["steps"]), str(row["guidance"]), _share(row["accuracy"]["all"]), f"{row['frechet']:.2f}"]
        for row in result["sweep"]
    ]
    return "\n".join(
        [
            "## Evaluation against truth",
            "",
            f"{result['count']} prompts composed at random, at the best setting of the second table:"
            f" {chosen['steps']} steps, guidance {chosen['guidance']}. What pictures show is read by classifiers that"
            f" were trained on renders only: {_judge(result['classifiers'])}",
            "",
            table(head, rows),
            f"Frechet distance in the image encoder's features to fresh renders of the same scenes:"
            f" {result['model']['frechet']:.2f}; between two halves of the renders: {result['renders']['frechet']:.2f}."
            f" 16 pictures in 25 steps take {result['seconds_16']:.1f} s.",
            "",
            table(["steps", "guidance", "all right", "Frechet distance"], sweep),
            f"The first {SHOWN} prompts, whatever they came to:",
            "",
            "![Pictures of the model, row by row under their prompts](toybox-samples.png)",
            "",
        ]
    )


def _judge(record: dict[str, Any]) -> str:
    return (
        f"{record['parameters'] / 1e6:.2f} M parameters, {record['steps']:,} steps of {record['plan']['batch']},"
        f" {record['renders']:,} renders, {record['hours']:.1f} hours; right on held-out renders:"
        f" {_values(record['measured'])}."
    )


def _share(row: dict[str, float]) -> str:
    return f"{100 * row['value']:.1f} % ({100 * row['low']:.1f} - {100 * row['high']:.1f})"


def _values(measured: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in measured.items())
