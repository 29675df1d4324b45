"""`dreambooth apply`: a run's pictures of an application as a labelled grid, scored cell by cell, weak cells marked.

Each cell is held against the frozen model's pictures of the same prompt, with the class noun alone, and the same seeds.
`docs/applications.md` gives the rule by which a cell is weak, and why.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from diffusers import DiffusionPipeline
from PIL import Image, ImageOps

from dreambooth import photos, prompts
from dreambooth.application_lists import Application, Cell, Kind, choose_all
from dreambooth.errors import UserError
from dreambooth.evaluation import embeddings, limitations, metrics
from dreambooth.evaluation.dreambench import Prompt
from dreambooth.evaluation.encoders import Encoder
from dreambooth.evaluation.judges import Judges, load_judges
from dreambooth.evaluation.limitations import KEPT_BAD, Finding
from dreambooth.evaluation.material import Material, Plan, frozen_pipeline, gather_all, tuned_pipeline
from dreambooth.evaluation.metrics import Values
from dreambooth.evaluation.pictures import PictureSet, cached, draw_missing
from dreambooth.evaluation.scoring import Embedded, Grid, Texts, alone
from dreambooth.evaluation.statistics import Estimate, estimate
from dreambooth.files import atomic, write_json
from dreambooth.images import CELL, grid
from dreambooth.paths import cache_root
from dreambooth.progress import Reporter, Silent
from dreambooth.prompts import class_prompt
from dreambooth.reporting import report
from dreambooth.run import Run

RULE = (
    "All figures are means over a cell's pictures, compared with the frozen model's of the same prompt, with the class "
    "noun alone, and the same seeds. 'words' is weak where the pictures are nearer to their prompt than to the other "
    f"cells' and to the bare class by less than {KEPT_BAD:.0%} of what the frozen model's are; it is not judged where "
    "the frozen model's are not nearer at all. 'subject' is weak where the pictures are no more like the photos than "
    "the frozen model's are."
)
WIDTH, LARGEST = 2048, 256
"""Pixels that a grid is about wide, where pictures need not be smaller than `CELL` for it, nor larger than this."""
ABREAST = 8
"""Pictures beside one another in a grid of one column."""
FRAME, GAP = 32, 12
"""The frame is one so-manieth of a picture's side; pixels between cells."""
WEAK, SOUND = "#cf222e", "#ffffff"


@dataclass(frozen=True)
class Scored:
    """What a cell came to.

    Attributes:
        cell: The cell.
        identity: Likeness of its pictures to the photos, the mean.
        floor: The same of the frozen model's pictures.
        lift: By how much they are more like the photos, picture by picture.
        fidelity: Likeness of its pictures to the prompt with the class noun (CLIP-T), the mean.
        ceiling: The same of the frozen model's pictures.
        kept: How much nearer to the prompt than to the other cells' and to the bare class the pictures are, as a share
            of the frozen model's; None where those are not nearer at all.
        weak: "words", "subject", both or neither.
    """

    cell: Cell
    identity: float
    floor: float
    lift: Estimate
    fidelity: float
    ceiling: float
    kept: float | None
    weak: tuple[str, ...]

    @property
    def caption(self) -> str:
        """The cell's label and figures in words."""
        kept = "not known to the base model" if self.kept is None else f"words {self.kept:.0%}"
        told = f"{kept}, subject {self.identity:z.2f} over {self.floor:z.2f}"
        weak = f"WEAK in {' and '.join(self.weak)}; " if self.weak else ""
        return f"{self.cell.label}: {weak}{told}"


@dataclass(frozen=True)
class Applied:
    """An application of a run, drawn and scored.

    Attributes:
        name: Of the application; of several subjects "subject-2/art", as its folder is called.
        application: What was asked for.
        tuned: The run's pictures, a text for each cell.
        frozen: The frozen model's.
        cells: What each cell came to.
        document: All of it, as it is written to `application.json`.
    """

    name: str
    application: Application
    tuned: PictureSet
    frozen: PictureSet
    cells: tuple[Scored, ...]
    document: dict[str, Any]

    @property
    def folder(self) -> Path:
        """It holds `grid.png`, `application.json` and the pictures."""
        return self.tuned.folder.parent


@dataclass(frozen=True)
class _Task:
    """An application of a subject with the pictures that it needs."""

    name: str
    material: Material
    application: Application
    cells: tuple[Cell, ...]
    tuned: PictureSet
    frozen: PictureSet


def apply(
    run: str | Path,
    applications: Sequence[str],
    *,
    count: int = 4,
    seed: int = 0,
    kind: Kind | None = None,
    identity_encoder: str | None = None,
    clip_encoder: str | None = None,
    reporter: Reporter | None = None,
) -> list[Applied]:
    """Draw and score applications of a finished run. Pictures that are there already are used again.

    Args:
        run: A run folder. Of several subjects each is drawn in what fits its kind.
        applications: Names of `application_lists.APPLICATIONS`, or paths of YAML lists of own prompts.
        count: Pictures of each cell.
        seed: The first seed.
        kind: Whether the subject lives; None: by its class.
        identity_encoder: As in `evaluation.runs.evaluate`.
        clip_encoder: The same.
        reporter: Listens to the progress.

    Returns:
        What each application of each subject came to; `applications/NAME` in the run folder is written, of several
        subjects `applications/subject-1/NAME` and so on, and the report anew.

    Raises:
        UserError: The run is not finished or its photos have gone; there is no such application, or it is for another
            kind of subject than any; a prompt is too long.
    """
    reporter = reporter or Silent()
    if count < 1 or seed < 0:
        raise UserError(f"--count {count} --seed {seed}: give at least 1 picture, and seeds from 0 on")
    if not applications:
        raise UserError("no application given: name one, such as art")
    opened = Run.open(run)
    opened.require_writable()
    materials = gather_all(opened, Plan(count=count, seed=seed))
    chosen = choose_all(applications, [material.noun for material in materials], kind)
    tasks = [
        _task(material, name, *each)
        for material, found in zip(materials, chosen, strict=True)
        for name, each in found.items()
    ]
    judges = load_judges(opened, identity_encoder, clip_encoder)
    with opened.lock():
        _draw(opened, tasks, reporter)
        applied = [_score(task, judges, reporter) for task in tasks]
        report(opened.path)
    return applied


def _task(material: Material, name: str, application: Application, cells: tuple[Cell, ...]) -> _Task:
    named = tuple(cell.named(material.called) for cell in cells)
    plain = [cell.plain(material.noun) for cell in cells]
    own, base = material.tuned, material.frozen
    place = material.folder.relative_to(material.run.path / "evaluation") / name
    folder = material.run.path / "applications" / place / "images"
    tuned = PictureSet(folder, named, own.seeds, own.sampling, own.model)
    frozen = cached(cache_root() / "frozen", plain, base.seeds, base.sampling, base.model)
    return _Task(str(place), material, application, cells, tuned, frozen)


def _draw(run: Run, tasks: Sequence[_Task], reporter: Reporter) -> None:
    """Draw what is not there yet: the run's pictures of everything, then the frozen model's."""
    for load, part, stage in (
        (tuned_pipeline, "tuned", "{} pictures"),
        (frozen_pipeline, "frozen", "{} by the frozen model"),
    ):
        once = functools.cache(functools.partial(load, run))
        for task in tasks:
            pictures: PictureSet = getattr(task, part)
            fitting = functools.partial(_require_fits, once, pictures.texts)
            draw_missing(pictures, fitting, reporter, stage.format(task.name))
        del once, fitting  # the one model, before the other is loaded


def _require_fits(load: Callable[[], DiffusionPipeline], texts: Sequence[str]) -> DiffusionPipeline:
    pipe = load()
    for text in texts:
        prompts.require_fits("the prompt", text, prompts.readers(pipe))
    return pipe


def _score(task: _Task, judges: Judges, reporter: Reporter) -> Applied:
    """Score a task's pictures and write its grid and its document."""
    material, folder = task.material, task.tuned.folder.parent
    scene = Grid(material.name, ("own",) * len(task.cells), task.tuned.seeds)
    identity, clip = (_embed(task, each, reporter) for each in (judges.identity, judges.clip))
    texts = _texts(task, judges.clip)
    rows = _rows(identity, clip, texts, scene)
    cells = tuple(
        _cell(cell, {name: value_CK[index] for name, value_CK in rows.items()}) for index, cell in enumerate(task.cells)
    )
    size = (task.tuned.sampling.size, task.tuned.sampling.size)
    shown = [Image.fromarray(photos.crop(photo, size)) for photo in material.photos]
    document = {
        "application": task.name,
        **{name: getattr(task.application, name) for name in ("title", "source")},
        "class": material.noun,
        "identifier": material.identifier,
        "rule": RULE,
        "encoders": {"identity": judges.identity.identity, "clip": judges.clip.identity},
        "sampling": task.tuned.sampling.document,
        "weak": sum(bool(cell.weak) for cell in cells),
        "cells": [_entry(task, index, cell, rows) for index, cell in enumerate(cells)],
        "findings": [each.as_json() for each in _findings(task, identity, clip, texts, scene, shown)],
    }
    write_json(folder / "application.json", document)
    heading = f"{task.application.title}. The photos of '{material.identifier} {material.noun}':"
    with atomic(folder / "grid.png") as temporary:
        sheet(heading, shown, cells, task.tuned.files, len(task.application.columns)).save(temporary, format="PNG")
    return Applied(task.name, task.application, task.tuned, task.frozen, cells, document)


def _embed(task: _Task, encoder: Encoder, reporter: Reporter) -> Embedded:
    """Photos and pictures by one encoder; there are no class pictures among them."""
    groups = [
        [photo.path for photo in task.material.photos],
        *([shot.file for shot in pictures.shots] for pictures in (task.tuned, task.frozen)),
    ]
    files = [file for group in groups for file in group]
    reporter.stage(f"{task.name} embeddings by {encoder.name}", len(files))
    rows_ND = embeddings.embed_files(encoder, files, advance=reporter.advance)
    photos_RD, tuned_GD, frozen_GD = np.split(rows_ND, np.cumsum([len(group) for group in groups])[:-1])
    nothing = rows_ND[:0]
    return Embedded(photos_RD, tuned_GD, frozen_GD, nothing, nothing[None], nothing[None])


def _texts(task: _Task, encoder: Encoder) -> Texts:
    """The prompts as they were given and with the class noun alone, and the bare class."""
    given = [*task.frozen.texts, *task.tuned.texts, class_prompt(task.material.noun)]
    plain_CD, named_CD, class_1D = np.split(embeddings.embed_texts(encoder, given), [len(task.cells), len(given) - 1])
    return Texts(plain_CD, named_CD, plain_CD, class_1D)


def _rows(identity: Embedded, clip: Embedded, texts: Texts, scene: Grid) -> dict[str, Values]:
    """Rows of every score, (cells, pictures)."""
    asked_GD, others_TD = texts.plain_PD[scene.prompt_G], np.concatenate([texts.plain_PD, texts.classes_CD])
    rows = {
        "identity": metrics.to_references(identity.tuned_GD, identity.photos_RD),
        "floor": metrics.to_references(identity.frozen_GD, identity.photos_RD),
        "fidelity": metrics.to_text(clip.tuned_GD, asked_GD),
        "ceiling": metrics.to_text(clip.frozen_GD, asked_GD),
        "clear": limitations.margin(clip.tuned_GD, others_TD, scene),
        "frozen_clear": limitations.margin(clip.frozen_GD, others_TD, scene),
    }
    return {name: value_G.reshape(len(scene.kinds), -1) for name, value_G in rows.items()}


def _cell(cell: Cell, rows: dict[str, Values]) -> Scored:
    """Judge a cell by the rule, from its pictures' rows, (pictures,)."""
    mean = {name: float(value_K.mean()) for name, value_K in rows.items()}
    lift = estimate(alone(cell.label, rows["identity"] - rows["floor"]))
    kept = mean["clear"] / mean["frozen_clear"] if mean["frozen_clear"] > 0 else None
    lost = {"words": kept is not None and kept < KEPT_BAD, "subject": mean["identity"] <= mean["floor"]}
    weak = tuple(name for name, is_lost in lost.items() if is_lost)
    return Scored(cell, mean["identity"], mean["floor"], lift, mean["fidelity"], mean["ceiling"], kept, weak)


def _findings(
    task: _Task, identity: Embedded, clip: Embedded, texts: Texts, scene: Grid, shown: Sequence[Image.Image]
) -> list[Finding]:
    """What the detectors of the paper's limitations say of the whole application."""
    asked = [Prompt(re.sub("[{}]", "", cell.label), "own") for cell in task.cells]  # braces are the subject's there
    found = [limitations.context(clip, texts, scene, asked), limitations.overfitting(identity, scene)]
    if task.application.keeps_colour:
        drawn = [limitations.centre_colour(Image.open(shot.file)) for shot in task.tuned.shots]
        taken = [limitations.centre_colour(image) for image in shown]
        found.append(limitations.entanglement(np.stack(drawn), np.stack(taken), scene, asked))
    return found


def _entry(task: _Task, index: int, scored: Scored, rows: dict[str, Values]) -> dict[str, Any]:
    """A cell as JSON, with every picture's rows."""
    home, seeds = task.tuned.folder.parent, task.tuned.seeds
    images = [
        {
            "file": str(file.relative_to(home)),
            "seed": seed,
            **{name: round(float(value_CK[index, at]), 4) for name, value_CK in rows.items()},
        }
        for at, (file, seed) in enumerate(zip(task.tuned.files[index], seeds, strict=True))
    ]
    return {
        "row": scored.cell.row,
        "column": scored.cell.column,
        "prompt": task.tuned.texts[index],
        "plain": task.frozen.texts[index],
        "weak": list(scored.weak),
        **{name: getattr(scored, name) for name in ("identity", "floor", "fidelity", "ceiling", "kept")},
        "lift": scored.lift.as_json(),
        "images": images,
        "frozen": [str(file) for file in task.frozen.files[index]],
    }


def sheet(
    heading: str, shown: Sequence[Image.Image], cells: Sequence[Scored], files: Sequence[Sequence[Path]], columns: int
) -> Image.Image:
    """Lay an application out as the paper's figures are: the photos on top, then every cell under its caption.

    Args:
        heading: Caption of the photos.
        shown: The photos.
        cells: What each cell came to; those that are weak get a red frame.
        files: Pictures of each cell.
        columns: Columns of the application; cells of one that has one column are put beside one another too.
    """
    count = len(files[0])
    abreast = columns if columns > 1 else max(1, ABREAST // count)
    side = min(LARGEST, max(CELL, WIDTH // (abreast * count)))
    cards = [
        grid([_framed(Image.open(file), side, bool(cell.weak)) for file in some], count, [cell.caption])
        for cell, some in zip(cells, files, strict=True)
    ]
    photos_card = grid([_framed(image, side, False) for image in shown], ABREAST, [heading])
    return _stacked([[photos_card], *(cards[start : start + abreast] for start in range(0, len(cards), abreast))])


def _framed(image: Image.Image, side: int, is_weak: bool) -> Image.Image:
    small = image.convert("RGB")
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return ImageOps.expand(small, max(1, small.width // FRAME), WEAK if is_weak else SOUND)


def _stacked(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Put cards in rows; those of one row stand on one line, whatever the length of their captions."""
    heights = [max(card.height for card in row) for row in rows]
    width = max(sum(card.width + GAP for card in row) - GAP for row in rows)
    body = Image.new("RGB", (width, sum(height + GAP for height in heights) - GAP), "white")
    bottom = -GAP
    for row, height in zip(rows, heights, strict=True):
        left, bottom = 0, bottom + GAP + height
        for card in row:
            body.paste(card, (left, bottom - card.height))
            left += card.width + GAP
    return body
