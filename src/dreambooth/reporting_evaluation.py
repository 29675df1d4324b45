"""The evaluation on a run's page: findings, pictures prompt by prompt, copies beside their photos, and drift."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from dreambooth.charts import Bar, bar
from dreambooth.pages import Json, Picture, Score, load_picture
from dreambooth.prompts import article
from dreambooth.reporting_scores import KINDS, METRICS, Metric, figures, kind_table, score_groups, verdict

LARGE, SMALL = 256, 160
"""The most pixels a side of a picture that is looked at, and of one to compare it with."""
EXTREMES = 3
"""How many of the best prompts, and of the worst, stand before all others."""
COPIES = 8
NEAREST = "of your photos are to their nearest other"
PAIRS = "of the pairs of your photos are to each other"
STRIP = 8
"""The most pictures of a class, before and after each."""
LEVELS = ("good", "watch", "bad", "unknown")


@dataclass(frozen=True)
class Shot:
    """A picture with its own measurements as (label, value), and how near a photo it comes."""

    picture: Picture
    figures: list[tuple[str, float | None]]
    photo: int | None
    similarity: float | None
    percentile: float | None


@dataclass(frozen=True)
class Prompt:
    """A prompt with its scores, its pictures, and what the untrained model draws for the class."""

    text: str
    kind: str
    scores: list[tuple[str, Score]]
    shots: list[Shot]
    frozen: list[Picture]


@dataclass(frozen=True)
class Finding:
    """What a detector of the paper's limitations found."""

    title: str
    level: str
    text: str
    figures: list[tuple[str, Score]]
    pictures: list[Picture]


@dataclass(frozen=True)
class Copy:
    """A picture beside the photo it comes nearest to."""

    picture: Picture
    photo: Picture
    number: int
    prompt: str
    similarity: float | None
    percentile: float | None


@dataclass(frozen=True)
class Change:
    """A figure of a class before and after training."""

    metric: Metric
    before: Score
    after: Score
    bar: Bar | None


@dataclass(frozen=True)
class Drift:
    """A class before and after training; `hidden` pictures of each are not shown."""

    noun: str
    sibling: bool
    changes: list[Change]
    before: list[Picture]
    after: list[Picture]
    hidden: int


def evaluation_story(evaluation: Json, scores: Json, folder: Path, photos: Sequence[Picture], noun: str) -> Json:
    """Everything that the page tells about an evaluation.

    Args:
        evaluation: The content of evaluation.json; any part may be missing.
        scores: The content of scores.json, for runs whose evaluation.json holds no scores.
        folder: Where evaluation.json lies; its pictures are named from there.
        photos: The subject's photos, in the order of the run.
        noun: The subject's class.
    """
    numbers = {name: Score.read(score) for name, score in (evaluation.get("scores") or scores).items()}
    findings = [read_finding(finding, folder) for finding in evaluation.get("findings") or []]
    prompts = [_prompt(prompt, folder) for prompt in _best_first(evaluation.get("prompts") or [])]
    count = min(EXTREMES, len(prompts) // 2)
    rest = prompts[count : len(prompts) - count]
    levels = [(finding.title, finding.level) for finding in findings]
    copies = evaluation.get("copies") or []
    drift = evaluation.get("drift") or []
    return {
        "verdict": verdict(numbers, levels, noun) if numbers or findings else None,
        "groups": score_groups(numbers),
        "by": [
            (METRICS[n].label if n in METRICS else n.upper(), str(by)) for n, by in (evaluation.get("by") or {}).items()
        ],
        "options": list((evaluation.get("options") or {}).items()),
        "findings": findings,
        "best": prompts[:count],
        "worst": prompts[len(prompts) - count :][::-1],
        "rest": [
            (KINDS.get(kind, kind), _of_kind(rest, kind), len(_of_kind(prompts, kind))) for kind in _kinds(prompts)
        ],
        "rivals": PAIRS if (evaluation.get("options") or {}).get("spread") == "pairs" else NEAREST,
        "kinds": kind_table(evaluation.get("kinds") or {}),
        "copies": [_copy(copy, folder, photos) for copy in copies[:COPIES]],
        "more_copies": len(copies[COPIES:]),
        "drift": [_drift(item, folder) for item in drift],
    }


def read_finding(data: Json, folder: Path) -> Finding:
    """Read what a detector found; its pictures are named from a folder."""
    title = str(data.get("title") or data.get("name") or "A check without a name")
    level = data.get("level")
    return Finding(
        title=title,
        level=level if level in LEVELS else "unknown",
        text=str(data.get("text") or ""),
        figures=figures(data.get("figures")),
        pictures=[
            load_picture(folder / file, f"{title}, picture {number}", "", SMALL)
            for number, file in enumerate(data.get("images") or [], 1)
        ],
    )


def _best_first(prompts: Sequence[Json]) -> list[Json]:
    """Order prompts by the mean of their ranks in likeness and in prompt fidelity; without scores the order stays."""
    ranks = [0.0] * len(prompts)
    for metric in ("dino", "clip_t"):
        values = [Score.read((prompt.get("scores") or {}).get(metric)).value for prompt in prompts]
        known = [value for value in values if value is not None]
        for index, value in enumerate(values):
            ranks[index] += len(known) / 2 if value is None else sum(other > value for other in known)
    return [prompts[index] for index in sorted(range(len(prompts)), key=lambda index: ranks[index])]


def _prompt(data: Json, folder: Path) -> Prompt:
    text = str(data.get("text") or "")
    plain = text.replace("[V] ", "")
    return Prompt(
        text=text,
        kind=str(data.get("kind") or "other"),
        scores=figures(data.get("scores")),
        shots=[_shot(image, text, folder) for image in data.get("images") or []],
        frozen=[
            load_picture(folder / file, f"{plain}, by the untrained model, picture {number}", "", SMALL)
            for number, file in enumerate(data.get("frozen") or [], 1)
        ],
    )


def _shot(data: Json, text: str, folder: Path) -> Shot:
    seed = f"seed {data.get('seed', 'unknown')}"
    return Shot(
        picture=load_picture(folder / str(data.get("file")), f"{text}, {seed}", seed, LARGE),
        figures=[(METRICS[name].label, data[name]) for name in ("dino", "clip_i", "clip_t") if name in data],
        photo=data.get("nearest"),
        similarity=data.get("nearest_similarity"),
        percentile=data.get("percentile"),
    )


def _kinds(prompts: Sequence[Prompt]) -> list[str]:
    """The kinds there are: the paper's first, in its order."""
    found = dict.fromkeys(prompt.kind for prompt in prompts)
    return [kind for kind in KINDS if kind in found] + sorted(kind for kind in found if kind not in KINDS)


def _of_kind(prompts: Sequence[Prompt], kind: str) -> list[Prompt]:
    return [prompt for prompt in prompts if prompt.kind == kind]


def _copy(data: Json, folder: Path, photos: Sequence[Picture]) -> Copy:
    index, prompt = data.get("photo"), str(data.get("prompt") or "")
    known = isinstance(index, int) and 0 <= index < len(photos)
    number = index + 1 if isinstance(index, int) else 0
    return Copy(
        picture=load_picture(folder / str(data.get("image")), f"{prompt}, suspected copy", "", LARGE),
        photo=photos[number - 1]
        if known
        else Picture("", "", missing=f"photo {number or ''} is not in the run folder"),
        number=number,
        prompt=prompt,
        similarity=data.get("similarity"),
        percentile=data.get("percentile"),
    )


def _drift(data: Json, folder: Path) -> Drift:
    noun = str(data.get("class") or "class")
    pairs = list(zip_longest(data.get("frozen") or [], data.get("tuned") or []))
    changes = {
        "pres": Metric("PRES", "how much it resembles your subject", "lower"),
        "diversity": Metric("Diversity", "how much its pictures differ", "higher"),
    }
    return Drift(
        noun=article(noun),
        sibling=bool(data.get("sibling")),
        changes=[
            _change(data, name, metric) for name, metric in changes.items() if name in data or f"{name}_frozen" in data
        ],
        before=_strip([before for before, _ in pairs[:STRIP]], folder, f"{article(noun)}, before training"),
        after=_strip([after for _, after in pairs[:STRIP]], folder, f"{article(noun)}, after training"),
        hidden=len(pairs[STRIP:]),
    )


def _change(data: Json, name: str, metric: Metric) -> Change:
    before, after = Score.read(data.get(f"{name}_frozen")), Score.read(data.get(name))
    marks = {"0": 0.0, "1": 1.0} | ({"before": before.value} if before.value is not None else {})
    return Change(metric, before, after, bar(after, marks))


def _strip(files: Sequence[str | None], folder: Path, alt: str) -> list[Picture]:
    return [
        load_picture(folder / file, f"{alt}, evaluation picture {number}", "", SMALL)
        if file
        else Picture("", "", missing="no picture")
        for number, file in enumerate(files, 1)
    ]
