"""One self-contained HTML page that tells the story of a run, drawn from the run folder alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import yaml

from dreambooth.charts import loss_charts
from dreambooth.errors import UserError
from dreambooth.images import PREVIEWS
from dreambooth.pages import Json, Picture, load_picture, show, write_page
from dreambooth.prompts import LABEL, class_prompt, label, scenes
from dreambooth.reporting_applications import application_story
from dreambooth.reporting_evaluation import evaluation_story
from dreambooth.reporting_selection import selection_story
from dreambooth.run import missing

ROLES = ("before", "after")


def report(run_folder: Path) -> Path:
    """Write `report.html` into a run folder, from whatever the run has left there so far.

    The page needs no network, no other file and no script. Missing parts are named on the page.

    Returns:
        The path of the page.

    Raises:
        UserError: The folder holds no run.
        RunError: The disk is full.
    """
    path = run_folder / "report.html"
    write_page("report.html.j2", _story(_read(run_folder)), path)
    return path


@dataclass(frozen=True)
class Record:
    """What a run folder holds; a missing file is an empty mapping, and `notes` say what could not be read."""

    folder: Path
    recipe: Json
    run: Json
    environment: Json
    manifest: Json
    scores: Json
    evaluation: Json
    applications: list[tuple[Path, Json]]
    steps: list[Json]
    notes: list[str]


def _read(folder: Path) -> Record:
    if not folder.exists():
        raise missing(folder)
    if not any((folder / name).is_file() for name in ("recipe.yaml", "run.json")):
        raise UserError(f"{folder} holds no run (no recipe.yaml, no run.json): name the folder of a training run")
    notes: list[str] = []
    return Record(
        folder=folder,
        recipe=_mapping(folder / "recipe.yaml", notes),
        run=_mapping(folder / "run.json", notes),
        environment=_mapping(folder / "environment.json", notes),
        manifest=_mapping(folder / "samples" / "manifest.json", notes),
        scores=_mapping(folder / "scores.json", notes),
        evaluation=_mapping(folder / "evaluation" / "evaluation.json", notes),
        applications=[
            (path.parent, _mapping(path, notes)) for path in sorted(folder.glob("applications/**/application.json"))
        ],
        steps=_steps(folder / "steps.jsonl", notes),
        notes=notes,
    )


def _mapping(path: Path, notes: list[str]) -> Json:
    if not path.is_file():
        return {}
    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text)
    except (ValueError, yaml.YAMLError):
        content = None
    if isinstance(content, dict):
        return content
    notes.append(f"{path.name} could not be read, so this page does without it.")
    return {}


def _steps(path: Path, notes: list[str]) -> list[Json]:
    """Read the steps in order. A resumed run repeats some: the later line counts. A run at work leaves a half line."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    steps = [_step(line) for line in lines]
    if broken := steps[:-1].count(None):
        notes.append(f"{broken} of {len(lines)} lines of steps.jsonl could not be read and are left out.")
    latest = {step["step"]: step for step in steps if step}
    return [latest[number] for number in sorted(latest)]


def _step(line: str) -> Json | None:
    try:
        step = json.loads(line)
    except ValueError:
        return None
    return step if isinstance(step, dict) and isinstance(step.get("step"), int) else None


def _story(record: Record) -> Json:
    """Everything the template tells."""
    recipe, run = record.recipe, record.run
    subjects = recipe.get("subjects") or [{}]
    noun = str(run.get("class") or subjects[0].get("class_noun") or "subject")
    nouns = [noun, *(str(each.get("class_noun")) for each in subjects[1:])]
    photos = _photos(record, noun)
    seconds = sum(step.get("seconds") or 0.0 for step in record.steps)
    return {
        "folder": str(record.folder),
        "noun": noun,
        "labels": [label(recipe.get("label") or LABEL, each, index) for index, each in enumerate(nouns)],
        "class_prompts": list(dict.fromkeys(map(class_prompt, nouns))),
        "scene": scenes(label(recipe.get("label") or LABEL, noun))[0],
        "identifiers": run.get("identifiers") or [each.get("identifier") for each in subjects],
        "model": {"name": recipe.get("model") or "an unnamed model", "family": ""} | (run.get("model") or {}),
        "recipe": recipe,
        "run": run,
        "times": run.get("times") or {},
        "steps": record.steps[-1]["step"] if record.steps else 0,
        "speed": len(record.steps) / seconds if seconds else None,
        "photos": photos,
        "photo_count": len(run.get("photos") or photos),
        "samples": {kind: _samples(record, kind) for kind in ("subject", "scene", "class")},
        "manifest": record.manifest,
        "charts": loss_charts(record.steps),
        "evaluations": list(_evaluations(record, [card.pictures[0] for card in photos], noun)),
        "applications": [application_story(document, folder) for folder, document in record.applications],
        "selection": selection_story(run.get("selection") or {}),
        "warnings": [*(run.get("warnings") or []), *record.notes],
        "settings": _settings(recipe, run.get("derived") or {}),
        "environment": list(_flat(record.environment)),
    }


def _evaluations(record: Record, photos: Sequence[Picture], noun: str) -> Iterator[tuple[str, str, Json]]:
    """A title, a noun and the story of what was measured; of several subjects first of all of them, then of each."""
    folder, parts = record.folder / "evaluation", record.evaluation.get("subjects") or []
    if record.evaluation or record.scores:
        title, all_of = ("All subjects together", "subject") if parts else ("", noun)
        yield title, all_of, evaluation_story(record.evaluation, record.scores, folder, photos, all_of)
    for part in parts:
        own = str(part.get("class"))
        shared = {name: record.evaluation.get(name) for name in ("by", "options")}
        title = f"The {own}, “{part.get('identifier')}”"
        yield title, own, evaluation_story(shared | part, {}, folder, photos, own)


def _settings(recipe: Json, derived: Json) -> list[tuple[str, str, str]]:
    """Rows of (setting, value, reason); no reason for what the user chose or left at its default."""
    rows = {name: show(value) for name, value in _flat(recipe)}
    names = [*rows, *(name for name in derived if name not in rows)]
    return [(name, rows.get(name, ""), str(derived.get(name, ""))) for name in names]


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Walk a tree of mappings and lists: (`subjects[0].photos`, value), ..."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flat(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and any(isinstance(item, (dict, list)) for item in value):
        for index, item in enumerate(value):
            yield from _flat(item, f"{name}[{index}]")
    else:
        yield name, value


@dataclass(frozen=True)
class Card:
    """Pictures to be compared (one, or before and after) and what they share."""

    prompt: str
    caption: str
    pictures: list[Picture]


def _photos(record: Record, noun: str) -> list[Card]:
    """The previews the run saved, named after the photos in the same order."""
    known = record.run.get("photos") or []
    shown, others = known[:PREVIEWS], len(known[PREVIEWS:])
    previews = sorted((record.folder / "photos").glob("*.jpg"), key=lambda path: (len(path.name), path.name))
    cards = []
    for preview, photo in zip_longest(previews, shown):
        name = str(photo["file"] if photo else preview.name)
        caption = f"{name}: {photo['caption']}" if photo and photo.get("caption") else name
        alt = f"Photo of the {noun}, {caption}"
        picture = load_picture(preview, alt, "") if preview else Picture(alt, "", missing="no preview was saved")
        cards.append(Card("", caption, [picture]))
    if others:
        cards.append(Card("", "", [Picture("", "", missing=f"and {others} more photos")]))
    return cards


def _samples(record: Record, kind: str) -> list[Card]:
    """Cards of one kind of sample, a card for each prompt and seed, so that its before and after lie together."""
    images = [image for image in record.manifest.get("images") or [] if image["kind"] == kind]
    roles = [role for role in ROLES if kind != "scene" or any(image["role"] == role for image in images)]
    cards: dict[tuple[str, int], dict[str, Json]] = {}
    for image in images:
        cards.setdefault((image["prompt"], image["seed"]), {})[image["role"]] = image
    return [
        Card(prompt, f"seed {seed}", [_sample(record.folder / "samples", found.get(role), role) for role in roles])
        for (prompt, seed), found in cards.items()
    ]


def _sample(folder: Path, image: Json | None, role: str) -> Picture:
    if image is None:
        return Picture("", role, missing=f"no picture from {role} training")
    return load_picture(folder / image["file"], f"{image['prompt']}, {role} training, seed {image['seed']}", role)
