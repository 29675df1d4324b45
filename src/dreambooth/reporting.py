"""One self-contained HTML page that tells the story of a run, drawn from the run folder alone."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import zip_longest
from pathlib import Path
from typing import Any, ClassVar

import jinja2
import numpy as np
import yaml

from dreambooth.errors import UserError
from dreambooth.files import write_text
from dreambooth.images import data_uri
from dreambooth.prompts import class_prompt, scenes

Json = dict[str, Any]

ROLES = ("before", "after")
RAW_POINTS = 600
"""The most steps that a curve shows singly; a longer run is thinned out evenly, which keeps its roughness true."""
SMOOTH_POINTS = 150


def report(run_folder: Path) -> Path:
    """Write `report.html` into a run folder, from whatever the run has left there so far.

    The page needs no network, no other file and no script. Missing parts are named on the page.

    Returns:
        The path of the page.

    Raises:
        UserError: The folder holds no run.
        RunError: The disk is full.
    """
    loader = jinja2.PackageLoader("dreambooth")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(show=_show, duration=_duration, date=_date, command=shlex.join)
    page = environment.get_template("report.html.j2").render(_story(_read(run_folder)))
    path = run_folder / "report.html"
    write_text(path, page)
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
    steps: list[Json]
    notes: list[str]


def _read(folder: Path) -> Record:
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
    subject = (recipe.get("subjects") or [{}])[0]
    noun = str(run.get("class") or subject.get("class_noun") or "subject")
    seconds = sum(step.get("seconds") or 0.0 for step in record.steps)
    return {
        "folder": str(record.folder),
        "noun": noun,
        "class_prompt": class_prompt(noun),
        "scene": scenes(noun)[0],
        "identifier": run.get("identifier") or subject.get("identifier"),
        "model": {"name": recipe.get("model") or "an unnamed model", "family": ""} | (run.get("model") or {}),
        "recipe": recipe,
        "run": run,
        "times": run.get("times") or {},
        "steps": record.steps[-1]["step"] if record.steps else 0,
        "speed": len(record.steps) / seconds if seconds else None,
        "photos": _photos(record, noun),
        "samples": {kind: _samples(record, kind) for kind in ("subject", "scene", "class")},
        "manifest": record.manifest,
        "charts": _charts(record.steps),
        "scores": {metric: score for metric, score in record.scores.items() if isinstance(score, dict)},
        "warnings": [*(run.get("warnings") or []), *record.notes],
        "settings": _settings(recipe, run.get("derived") or {}),
        "environment": list(_flat(record.environment)),
    }


def _settings(recipe: Json, derived: Json) -> list[tuple[str, str, str]]:
    """Rows of (setting, value, reason); no reason for what the user chose or left at its default."""
    rows = {name: _show(value) for name, value in _flat(recipe)}
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


def _show(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return ", ".join(map(_show, value)) or "none"
    return str(value)


def _duration(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _date(created: str) -> str:
    try:
        moment = datetime.fromisoformat(created)
    except ValueError:
        return created
    return f"{moment.day} {moment:%B %Y, %H:%M}"


@dataclass(frozen=True)
class Picture:
    """An image of the page: a data URI and its size in pixels, or the reason why there is none."""

    alt: str
    caption: str
    src: str = ""
    size: tuple[int, int] = (0, 0)
    missing: str = ""


@dataclass(frozen=True)
class Card:
    """Pictures to be compared (one, or before and after) and what they share."""

    prompt: str
    caption: str
    pictures: list[Picture]


def _picture(path: Path, alt: str, caption: str) -> Picture:
    try:
        src, size = data_uri(path)
    except FileNotFoundError:
        return Picture(alt, caption, missing=f"{path.name} is missing")
    except OSError:
        return Picture(alt, caption, missing=f"{path.name} cannot be read")
    return Picture(alt, caption, src, size)


def _photos(record: Record, noun: str) -> list[Card]:
    """The previews the run saved, named after the photos in the same order."""
    previews = sorted((record.folder / "photos").glob("*.jpg"), key=lambda path: (len(path.name), path.name))
    cards = []
    for preview, photo in zip_longest(previews, record.run.get("photos") or []):
        name = str(photo["file"] if photo else preview.name)
        caption = f"{name}: {photo['caption']}" if photo and photo.get("caption") else name
        alt = f"Photo of the {noun}, {caption}"
        picture = _picture(preview, alt, "") if preview else Picture(alt, "", missing="no preview was saved")
        cards.append(Card("", caption, [picture]))
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
    return _picture(folder / image["file"], f"{image['prompt']}, {role} training, seed {image['seed']}", role)


@dataclass(frozen=True)
class Frame:
    """The axes of a chart: steps from 0 to `end`, loss from 0 to `top`, in the units of the SVG's view box."""

    WIDTH: ClassVar = 440
    HEIGHT: ClassVar = 240
    LEFT: ClassVar = 44
    RIGHT: ClassVar = 430
    TOP: ClassVar = 12
    BOTTOM: ClassVar = 200
    end: float
    top: float

    def x(self, step: Any) -> Any:
        """Abscissa of a step, or of many."""
        return self.LEFT + (self.RIGHT - self.LEFT) * step / self.end

    def y(self, loss: Any) -> Any:
        """Ordinate of a loss, or of many; what lies above the frame is drawn on its upper edge."""
        return self.BOTTOM - (self.BOTTOM - self.TOP) * np.minimum(loss, self.top) / self.top

    def points(self, steps: np.ndarray, losses: np.ndarray) -> str:
        """A polyline's points."""
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(self.x(steps), self.y(losses), strict=True))


@dataclass(frozen=True)
class Chart:
    """A loss curve: single steps (`raw`) and the running mean of all (`smooth`); ticks are (place, label)."""

    part: str
    raw: str
    smooth: str
    window: int
    first: float
    last: float
    frame: Frame
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    cut: bool
    """Whether points of `raw` lie above the frame."""


def _charts(steps: list[Json]) -> dict[str, Chart]:
    """Curves of the subject part and of the prior part, where the run has them, on common axes."""
    series = {part: _series(steps, part) for part in ("subject", "prior")}
    series = {part: (numbers, losses) for part, (numbers, losses) in series.items() if len(losses) > 1}
    if not series:
        return {}
    # A step that drew little noise can cost many times the mean; a few of those would flatten the rest.
    top = 1.05 * float(np.percentile(np.concatenate([losses for _, losses in series.values()]), 98))
    frame = Frame(end=max(numbers[-1] for numbers, _ in series.values()), top=top if top > 0 else 1.0)
    return {part: _chart(part, frame, numbers, losses) for part, (numbers, losses) in series.items()}


def _series(steps: list[Json], part: str) -> tuple[np.ndarray, np.ndarray]:
    """The step numbers and losses of one part, where the loss is a finite number."""
    pairs = [(step["step"], step[part]) for step in steps if step.get(part) is not None]
    numbers, losses = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
    finite = np.isfinite(losses)
    return numbers[finite], losses[finite]


def _chart(part: str, frame: Frame, steps: np.ndarray, losses: np.ndarray) -> Chart:
    window = min(len(losses), max(9, len(losses) // 10))
    raw, centres = _spread(len(losses), RAW_POINTS), _spread(len(losses), SMOOTH_POINTS)
    smooth = _running_mean(losses, centres, window)
    return Chart(
        part=part,
        raw=frame.points(steps[raw], losses[raw]),
        smooth=frame.points(steps[centres], smooth),
        window=window,
        first=float(smooth[0]),
        last=float(smooth[-1]),
        frame=frame,
        x_ticks=[(frame.x(tick), f"{tick:,.0f}") for tick in _ticks(frame.end) if tick == round(tick)],
        y_ticks=[(frame.y(tick), f"{tick:g}") for tick in _ticks(frame.top)],
        cut=bool((losses[raw] > frame.top).any()),
    )


def _spread(length: int, count: int) -> np.ndarray:
    """At most `count` indices of a sequence, evenly spread, with the first and the last."""
    return np.unique(np.linspace(0, length - 1, count).round().astype(int))


def _running_mean(losses: np.ndarray, centres: np.ndarray, window: int) -> np.ndarray:
    """Mean of the `window` losses around each centre; near an end, of those at that end."""
    total = np.concatenate([[0.0], np.cumsum(losses)])
    start = np.clip(centres - window // 2, 0, len(losses) - window)
    return np.asarray((total[start + window] - total[start]) / window)


def _ticks(end: float) -> list[float]:
    """Round numbers from 0 to `end`: three to six multiples of 1, 2 or 5 times a power of ten."""
    least = end / 5 * (1 - 1e-9)
    power = 10.0 ** math.floor(math.log10(least))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least)
    return [index * step for index in range(int(end / step * (1 + 1e-9)) + 1)]
