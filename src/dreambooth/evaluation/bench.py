"""`dreambooth bench`: the paper's protocol from photos to table, over every subject of a folder like DreamBench.

30 subjects x 25 prompts x 4 pictures are 3,000 (Ruiz et al. 2023, section 4.1). Each subject is a run of its own, which
goes on where it was interrupted; what is done is never done again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreambooth import photos, prompts
from dreambooth.errors import UserError
from dreambooth.evaluation import statistics
from dreambooth.evaluation.dreambench import SUBJECTS, choose
from dreambooth.evaluation.material import Plan
from dreambooth.evaluation.metrics import Diversity, Options, load_lpips, require_reference
from dreambooth.evaluation.runs import Evaluation, evaluate
from dreambooth.evaluation.statistics import Estimate
from dreambooth.files import require_writable, write_json
from dreambooth.planning import make_plans
from dreambooth.progress import Reporter, Silent
from dreambooth.recipe import Recipe
from dreambooth.training import train
from dreambooth.yaml_files import read_yaml

CLASSES = "classes.yaml"
METRICS = ("dino", "clip_i", "clip_t", "pres", "div")
ROWS = {
    "real images": {"dino": "oracle_dino", "clip_i": "oracle_clip_i"},
    "real images, self-pairs": {"dino": "oracle_dino_self", "clip_i": "oracle_clip_i_self"},
    "frozen model, class noun": {
        "dino": "floor_dino",
        "clip_i": "floor_clip_i",
        "clip_t": "ceiling_clip_t",
        "pres": "pres_frozen",
        "div": "ceiling_div",
    },
    "this run": {name: name for name in METRICS},
}
"""Rows of the table that were measured here, and which figure stands in which column."""
PUBLISHED: dict[str, dict[str, float]] = {
    "paper: real images": {"dino": 0.774, "clip_i": 0.885},
    "paper: DreamBooth (Imagen)": {"dino": 0.696, "clip_i": 0.812, "clip_t": 0.306},
    "paper: DreamBooth (Stable Diffusion)": {"dino": 0.668, "clip_i": 0.803, "clip_t": 0.305},
    "paper: Textual Inversion (Stable Diffusion)": {"dino": 0.569, "clip_i": 0.780, "clip_t": 0.255},
    "paper, 15 subjects: with prior preservation": {
        "dino": 0.684,
        "clip_i": 0.815,
        "clip_t": 0.308,
        "pres": 0.493,
        "div": 0.391,
    },
    "paper, 15 subjects: without": {"dino": 0.712, "clip_i": 0.828, "clip_t": 0.306, "pres": 0.664, "div": 0.371},
}
"""Ruiz et al. 2023, tables 1 and 3. Other encoders, other models: not to be compared to the third digit. Its real
images have self-pairs, most likely (docs/evaluation.md); its DIV is of LPIPS, whose scale is another."""


@dataclass(frozen=True)
class Bench:
    """What a benchmark came to.

    Attributes:
        folder: Holds the runs, `scores.json` and `manifest.json`.
        figures: The figure of every metric over all subjects.
        subjects: The same, subject by subject.
        diversity: What DIV is measured by.
    """

    folder: Path
    figures: dict[str, Estimate]
    subjects: dict[str, dict[str, Estimate]]
    diversity: Diversity

    def table(self) -> list[tuple[str, dict[str, Estimate | float]]]:
        """The rows of the paper's tables 1 and 3 with the measured ones beside them, by metric.

        The paper's DIV is there only where it is measured by LPIPS here too.
        """
        rows: list[tuple[str, dict[str, Estimate | float]]] = [
            (name, {metric: self.figures[figure] for metric, figure in row.items()}) for name, row in ROWS.items()
        ]
        alike = [metric for metric in METRICS if metric != "div" or self.diversity == "lpips-alex"]
        rows += [(name, {metric: row[metric] for metric in alike if metric in row}) for name, row in PUBLISHED.items()]
        return rows


def bench(
    folder: Path,
    settings: dict[str, Any],
    out: Path,
    *,
    plan: Plan | None = None,
    options: Options | None = None,
    limit: int | None = None,
    reporter: Reporter | None = None,
) -> Bench:
    """Train and evaluate every subject; run again, it goes on.

    Args:
        folder: One folder of photos a subject. Classes come from its `classes.yaml` (folder: noun), else from
            DreamBench's own table by the folder's name.
        settings: Settings of the recipe, the same for every subject.
        out: Where the runs go.
        plan: How much is drawn.
        options: How scores are taken.
        limit: Only the first so many subjects by name.
        reporter: Listens to the progress.

    Raises:
        UserError: A subject has no known class or no photos, a setting is wrong, or prompts, LPIPS or references that
            are asked for are not there; nothing has been trained then.
    """
    plan, options, reporter = plan or Plan(), options or Options(), reporter or Silent()
    if limit is not None and limit < 1:
        raise UserError(f"--limit {limit}: give at least 1")
    require_writable(out)
    nouns = classes(folder, limit)
    for noun in nouns.values():
        choose(noun, plan.prompts)
    if options.diversity == "lpips-alex":
        load_lpips()
    recipes = {
        name: Recipe.of({**settings, "subjects": [{"photos": folder / name, "class_noun": noun}]})
        for name, noun in nouns.items()
    }
    for recipe in recipes.values():
        taken = photos.usable(make_plans(recipe).findings[0])
        require_reference(options.references, len(taken), held_out=0)
    found = []
    for index, (name, recipe) in enumerate(recipes.items()):
        reporter.say(f"subject {index + 1} of {len(recipes)}: {name}, a {nouns[name]}")
        run = train(recipe, out / "runs" / name, reporter)
        found.append(evaluate(run.path, plan, options, reporter=reporter))
    return _summarise(found, out, options)


def classes(folder: Path, limit: int | None = None) -> dict[str, str]:
    """Return the class noun of every subject in a folder, by the subject's name.

    Raises:
        UserError: There is no subject, one has no photo, or its class is not known.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: give one with a folder of photos for each subject")
    table = folder / CLASSES
    own = read_yaml(table, "classes", "folder: noun") if table.is_file() else {}
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))[:limit]
    if not names:
        raise UserError(f"{folder} holds no folders: give one with a folder of photos for each subject")
    known = {name: noun for name, (noun, _) in SUBJECTS.items()} | {str(name): noun for name, noun in own.items()}
    missing = [name for name in names if name not in known]
    if missing:
        raise UserError(f"the class of {', '.join(missing[:3])} is not known: write '{missing[0]}: noun' to {table}")
    for name in names:
        _require_noun(name, known[name], table)
        photos.usable(photos.read(folder / name, 64))
    return {name: known[name] for name in names}


def _require_noun(name: str, noun: Any, table: Path) -> None:
    """Refuse a class that is no noun before the subjects that come first are trained."""
    if not isinstance(noun, str) or not noun.strip():
        raise UserError(f"{table}: the class of {name} is {noun!r}: write '{name}: noun'")
    try:
        prompts.require_noun(noun)
    except UserError as error:
        raise UserError(f"{table}: the class of {name}: {error}") from None


def _summarise(found: Sequence[Evaluation], out: Path, options: Options) -> Bench:
    rows = {name: statistics.joined([each.rows[name] for each in found]) for name in found[0].rows}
    figures = {name: statistics.estimate(scores) for name, scores in rows.items()}
    subjects = {each.run.path.name: each.figures for each in found}
    made = Bench(out, figures, subjects, options.diversity)
    write_json(out / "manifest.json", _manifest(found, out))
    told = {name: {metric: each.as_json() for metric, each in own.items()} for name, own in subjects.items()}
    write_json(out / "scores.json", {"all": {name: each.as_json() for name, each in figures.items()}, "subjects": told})
    return made


def _manifest(found: Sequence[Evaluation], out: Path) -> dict[str, Any]:
    """Everything that anybody needs to compute every figure again: each picture with its prompt, seed and rows."""
    pictures = [
        {
            "subject": each.run.path.name,
            "class": each.materials[0].noun,
            "prompt": index,
            "text": entry["text"],
            "kind": entry["kind"],
            **{name: image[name] for name in ("seed", "dino", "clip_i", "clip_t")},
            "file": str((each.run.path / "evaluation" / image["file"]).relative_to(out)),
        }
        for each in found
        for index, entry in enumerate(each.document["prompts"])
        for image in entry["images"]
    ]
    first = found[0].document
    return {**{name: first[name] for name in ("by", "encoders", "options", "sampling")}, "pictures": pictures}
