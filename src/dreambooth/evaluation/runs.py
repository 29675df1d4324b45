"""`dreambooth evaluate`: draws what is missing, scores it, looks for the known limitations, and tells the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dreambooth import environment, photos, targets
from dreambooth.errors import UserError
from dreambooth.evaluation import dreambench, embeddings, leakage, limitations, masks, metrics, statistics
from dreambooth.evaluation.encoders import Encoder
from dreambooth.evaluation.judges import Judges, encoder_names, load_judges
from dreambooth.evaluation.limitations import Finding
from dreambooth.evaluation.masks import Masked
from dreambooth.evaluation.material import Material, Plan, draw_all
from dreambooth.evaluation.metrics import Options, Rows
from dreambooth.evaluation.pictures import PictureSet
from dreambooth.evaluation.preparing import Prepared, prepare, require_alike
from dreambooth.evaluation.scoring import Embedded, Grid, Texts, alone, score
from dreambooth.evaluation.statistics import Estimate, Scores
from dreambooth.files import write_json
from dreambooth.progress import Reporter, Silent
from dreambooth.reporting import report
from dreambooth.run import Run

MAIN = ("dino", "clip_i", "clip_t", "div")
"""Metrics that are told prompt by prompt and kind by kind."""


@dataclass(frozen=True)
class Evaluation:
    """A scored run.

    Attributes:
        run: The run.
        materials: What was scored, subject by subject.
        rows: The rows of every metric, of all subjects.
        figures: The figure of every metric; a mean over subjects.
        document: All of it as it is written to `evaluation/evaluation.json`. Of several subjects each has its own under
            "subjects".
    """

    run: Run
    materials: tuple[Material, ...]
    rows: dict[str, Scores]
    figures: dict[str, Estimate]
    document: dict[str, Any]


def evaluate(
    run: str | Path,
    plan: Plan | None = None,
    options: Options | None = None,
    *,
    identity_encoder: str | None = None,
    clip_encoder: str | None = None,
    held_out: Path | None = None,
    mask_folder: Path | None = None,
    reporter: Reporter | None = None,
) -> Evaluation:
    """Measure a finished run by the paper's protocol (Ruiz et al. 2023, section 4) and write what was found into it.

    Pictures and embeddings that are there already are used again.

    Args:
        run: A run folder.
        plan: How much is drawn.
        options: How scores are taken.
        identity_encoder: A name of `encoders.SPECS` or a folder. Default: by the run's base model.
        clip_encoder: The same for the encoder of pictures and texts.
        held_out: Folder of photos of the subject that were not trained on. Of several subjects each has a folder in
            it, called as its identifier.
        mask_folder: Folder of masks, as `masks.find` says, for scores of the subject and its surroundings alone; of
            several subjects one in it for each, likewise.
        reporter: Listens to the progress.

    Returns:
        The evaluation; `scores.json`, `evaluation/` and `report.html` in the run folder are written.

    Raises:
        UserError: The run is not finished, its photos have gone, or there are no such prompts or encoders.
    """
    return evaluate_all(
        [run],
        plan,
        options,
        identity_encoder=identity_encoder,
        clip_encoder=clip_encoder,
        held_out=held_out,
        mask_folders=[mask_folder],
        reporter=reporter,
    )[0]


def evaluate_all(
    runs: Sequence[str | Path],
    plan: Plan | None = None,
    options: Options | None = None,
    *,
    identity_encoder: str | None = None,
    clip_encoder: str | None = None,
    held_out: Path | None = None,
    mask_folders: Sequence[Path | None] | None = None,
    reporter: Reporter | None = None,
) -> list[Evaluation]:
    """Measure runs that can be compared, as `evaluate` does one; of what any of them lacks none is drawn.

    Args:
        runs: Run folders, of the same subjects.
        plan: As `evaluate` has it, like all that is not said here.
        options: Likewise.
        identity_encoder: Likewise.
        clip_encoder: Likewise.
        held_out: Likewise.
        mask_folders: A folder of masks for each run.
        reporter: Likewise.

    Raises:
        UserError: As of `evaluate`, or the runs differ in their subjects, prompts or encoders.
    """
    plan, options, reporter = plan or Plan(), options or Options(), reporter or Silent()
    opened = [Run.open(run) for run in runs]
    folders = mask_folders or [None] * len(runs)
    prepared = [prepare(run, plan, options, held_out, masked) for run, masked in zip(runs, folders, strict=True)]
    require_alike([[each.material for each in subjects] for subjects in prepared])
    for run in opened:
        run.require_writable()
    if options.diversity == "lpips-alex":
        metrics.load_lpips()  # where it cannot be had, nothing is drawn
    asked = [encoder_names(run, identity_encoder, clip_encoder) for run in opened]
    for run, names in zip(opened, asked, strict=True):
        if names != asked[0]:
            both = f"{opened[0].path} and {run.path}"
            raise UserError(f"{both} are scored by different encoders: name one for both by --identity-encoder")
    judges = load_judges(opened[0], identity_encoder, clip_encoder)
    return [_measure(*each, judges, plan, options, reporter) for each in zip(opened, prepared, strict=True)]


def _measure(
    run: Run, prepared: Sequence[Prepared], judges: Judges, plan: Plan, options: Options, reporter: Reporter
) -> Evaluation:
    """Draw what is missing of a run, score it and write what was found."""
    with run.lock():
        draw_all([each.material for each in prepared], reporter)
        parts = [
            judge(each.material, judges, options, [photo.path for photo in each.held_out], reporter, each.masked)
            for each in prepared
        ]
        evaluation = parts[0] if len(parts) == 1 else _together(run, parts, judges, plan, reporter)
        write_json(run.path / "evaluation" / "evaluation.json", evaluation.document)
        write_json(run.path / "scores.json", evaluation.document["scores"])
        report(run.path)
    return evaluation


def _together(run: Run, parts: Sequence[Evaluation], judges: Judges, plan: Plan, reporter: Reporter) -> Evaluation:
    """The evaluations of several subjects as one, and how far one leaks into another."""
    subjects, nouns = run.recipe.subjects, [subject.class_noun for subject in run.recipe.subjects]
    folder = run.path / "evaluation" / "subjects"
    leaks = leakage.leaks(leakage.measure(targets.find(run.path), subjects, folder, judges.identity, plan, reporter))
    names = set.intersection(*(set(each.rows) for each in parts))
    rows = {name: statistics.joined([each.rows[name] for each in parts]) for name in parts[0].rows if name in names}
    figures = {name: statistics.estimate(scores) for name, scores in rows.items()}
    told = ("identifier", "class", "prompt_set", "scores", "kinds", "prompts", "drift", "copies", "findings")
    document = {
        "scores": {name: figure.as_json() for name, figure in figures.items()},
        **{name: parts[0].document[name] for name in ("by", "encoders", "options", "sampling")},
        "subjects": [{name: each.document[name] for name in told} for each in parts],
        "leakage": [leak.as_json() for leak in leaks],
        "findings": [_finding(leakage.finding(leaks, nouns))],
    }
    return Evaluation(run, tuple(each.materials[0] for each in parts), rows, figures, document)


def judge(
    material: Material,
    judges: Judges,
    options: Options,
    held_out: Sequence[Path],
    reporter: Reporter,
    masked: Masked | None = None,
) -> Evaluation:
    """Score pictures of a subject that have been drawn."""
    identity, clip = (_embed(material, each, held_out, reporter) for each in (judges.identity, judges.clip))
    texts = _texts(material, judges.clip)
    kinds = tuple(prompt.kind for prompt in material.prompts)
    grid = Grid(material.name, kinds, material.tuned.seeds)
    rows = score(identity, clip, texts, grid, options)
    if options.diversity == "lpips-alex":
        rows |= _lpips(material, grid)
    if masked is not None:
        reporter.stage("embeddings by parts", 2 * masked.count)
        rows |= masks.score(judges.identity, masked, grid, options, reporter.advance)
    figures = {name: statistics.estimate(scores) for name, scores in rows.items()}
    found = limitations.find(identity, clip, texts, grid, material.prompts)
    found.append(limitations.entanglement(*_colours(material), grid, material.prompts))
    near = metrics.copying(identity.tuned_GD, identity.photos_RD, options.spread)
    document = {
        "identifier": material.identifier,
        "class": material.noun,
        "prompt_set": dreambench.set_name(material.prompts),
        "scores": {name: figure.as_json() for name, figure in figures.items()},
        "by": {"dino": judges.identity.name, "clip": judges.clip.name, "div": options.diversity},
        "encoders": {"dino": judges.identity.identity, "clip": judges.clip.identity},
        "options": options.as_json(),
        "sampling": material.tuned.sampling.document,
        "kinds": _by_kind(rows),
        "prompts": _by_prompt(material, rows, near),
        "drift": _drift(material, identity),
        "copies": _copies(material, near),
        "findings": [_finding(each, material) for each in found],
    }
    return Evaluation(material.run, (material,), rows, figures, document)


def _embed(material: Material, encoder: Encoder, held_out: Sequence[Path], reporter: Reporter) -> Embedded:
    """All pictures of an evaluation by one encoder."""
    groups: dict[str, list[Path]] = {
        "photos": [photo.path for photo in material.photos],
        "tuned": _flat(material.tuned),
        "frozen": _flat(material.frozen),
        "tuned_class": _flat(material.tuned_class),
        "frozen_class": _flat(material.frozen_class),
        "held_out": list(held_out),
    }
    files = [file for group in groups.values() for file in group]
    reporter.stage(f"embeddings by {encoder.name}", len(files))
    rows_ND = embeddings.embed_files(encoder, files, advance=reporter.advance)
    bounds = np.cumsum([len(group) for group in groups.values()])[:-1]
    part = dict(zip(groups, np.split(rows_ND, bounds), strict=True))
    count = len(material.classes)
    classes_CKD = part["tuned_class"].reshape(count + 1, -1, rows_ND.shape[1])
    return Embedded(
        photos_RD=part["photos"],
        tuned_GD=part["tuned"],
        frozen_GD=part["frozen"],
        own_KD=classes_CKD[0],
        classes_CKD=classes_CKD[1:],
        frozen_classes_CKD=part["frozen_class"].reshape(count, -1, rows_ND.shape[1]),
        held_out_HD=part["held_out"] if held_out else None,
    )


def _lpips(material: Material, grid: Grid) -> dict[str, Scores]:
    """DIV of the run and of the frozen model, as the paper takes it."""
    distance = metrics.load_lpips(str(environment.processes().device))
    sets = {"div": material.tuned, "ceiling_div": material.frozen}
    return {
        name: grid.scores(
            metrics.lpips_diversity([Image.open(file) for file in _flat(pictures)], grid.prompt_G, distance), pairs=True
        )
        for name, pictures in sets.items()
    }


def _texts(material: Material, encoder: Encoder) -> Texts:
    groups = [
        list(material.frozen.texts),
        list(material.tuned.texts),
        [prompt.context for prompt in material.prompts],
        list(material.frozen_class.texts),
    ]
    rows_ND = embeddings.embed_texts(encoder, [text for group in groups for text in group])
    return Texts(*np.split(rows_ND, np.cumsum([len(group) for group in groups])[:-1]))


def _flat(pictures: PictureSet) -> list[Path]:
    return [shot.file for shot in pictures.shots]


def _colours(material: Material) -> tuple[np.ndarray, np.ndarray]:
    """Colour of the subject in each picture, (G, 3), and in each photo, (R, 3), from its mask or its middle."""
    pictures = [limitations.centre_colour(Image.open(file)) for file in _flat(material.tuned)]
    size = (material.tuned.sampling.size, material.tuned.sampling.size)
    taken = [
        limitations.centre_colour(Image.fromarray(photos.crop(photo, size)), _mask(photos.crop_mask(photo, size)))
        for photo in material.photos
    ]
    return np.stack(pictures), np.stack(taken)


def _mask(mask_HW: np.ndarray | None) -> Image.Image | None:
    return None if mask_HW is None else Image.fromarray(mask_HW)


def _by_kind(rows: dict[str, Scores]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for metric in MAIN:
        for kind, figure in statistics.by(rows[metric], "kind").items():
            found.setdefault(kind, {})[metric] = figure.as_json()
    return found


def _by_prompt(material: Material, rows: dict[str, Scores], near: metrics.Copying) -> list[dict[str, Any]]:
    """Every prompt with its figures and its pictures."""
    figures = {metric: list(statistics.by(rows[metric], "prompt").values()) for metric in MAIN}
    shots = material.tuned.shots
    told = []
    for index, prompt in enumerate(material.prompts):
        images = [
            {
                "file": _shown(shot.file, material),
                "seed": shot.seed,
                **{metric: round(float(rows[metric].value_N[at]), 4) for metric in ("dino", "clip_i", "clip_t")},
                "nearest": material.first + int(near.photo_G[at]),
                "nearest_similarity": round(float(near.similarity_G[at]), 4),
                "percentile": None if np.isnan(near.percentile_G[at]) else float(near.percentile_G[at]) / 100,
            }
            for at, shot in enumerate(shots)
            if shot.text == index
        ]
        told.append(
            {
                "text": prompt.text(f"{material.placeholder} {material.noun}"),
                "kind": prompt.kind,
                "scores": {metric: figures[metric][index].as_json() for metric in MAIN},
                "images": images,
                "frozen": [str(file) for file in material.frozen.files[index]],
            }
        )
    return told


def _drift(material: Material, identity: Embedded) -> list[dict[str, Any]]:
    """What became of "a class" and of its siblings."""
    tuned, frozen = material.tuned_class.files[1:], material.frozen_class.files
    told = []
    for index, noun in enumerate(material.classes):
        rows: dict[str, Rows] = {"": identity.classes_CKD[index], "_frozen": identity.frozen_classes_CKD[index]}
        figures = {}
        for suffix, rows_KD in rows.items():
            near = metrics.to_references(rows_KD, identity.photos_RD)
            spread = metrics.diversity(rows_KD, np.zeros(len(rows_KD), int))
            for name, values in (("pres", near), ("diversity", spread)):
                figures[name + suffix] = statistics.estimate(alone("class", values, name == "diversity")).as_json()
        shown = {
            "tuned": [_shown(file, material) for file in tuned[index]],
            "frozen": list(map(str, frozen[index])),
        }
        told.append({"class": noun, "sibling": index > 0, **shown, **figures})
    return told


def _copies(material: Material, near: metrics.Copying, count: int = 6) -> list[dict[str, Any]]:
    """The pictures nearest to a photo, the nearest first."""
    shots = material.tuned.shots
    return [
        {
            "image": _shown(shots[at].file, material),
            "photo": material.first + int(near.photo_G[at]),
            "similarity": round(float(near.similarity_G[at]), 4),
            "percentile": None if np.isnan(near.percentile_G[at]) else float(near.percentile_G[at]) / 100,
            "prompt": material.prompts[shots[at].text].text(f"{material.placeholder} {material.noun}"),
        }
        for at in np.argsort(-near.similarity_G)[:count].tolist()
    ]


def _finding(found: Finding, material: Material | None = None) -> dict[str, Any]:
    images = [_shown(material.tuned.shots[at].file, material) for at in found.pictures] if material else []
    return {**found.as_json(), "images": images}


def _shown(file: Path, material: Material) -> str:
    """A picture's path as `evaluation.json` names it."""
    return str(file.relative_to(material.run.path / "evaluation"))
