"""Commands that look and measure: check, evaluate, bench, identifier, report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from dreambooth.cli.shared import ClassNoun, Json, LogFormat, app, print_json, reporting
from dreambooth.errors import UserError
from dreambooth.files import atomic, require_writable
from dreambooth.prompts import require_noun
from dreambooth.recipe import Settings

if TYPE_CHECKING:
    from dreambooth.evaluation.bench import Bench
    from dreambooth.evaluation.class_noun import Diagnosis
    from dreambooth.evaluation.statistics import Estimate
    from dreambooth.photo_checks import Problem
    from dreambooth.photo_doctor import Examination, Segment

Diversity = Annotated[
    Literal["dino", "lpips-alex"], Parameter(help="What DIV is measured by; the paper's is lpips-alex.")
]
MEANINGS = {
    "dino": "likeness to the photos",
    "floor_dino": "the frozen model's, with the class noun",
    "oracle_dino": "of the photos to one another",
    "clip_i": "likeness to the photos, by CLIP",
    "floor_clip_i": "the frozen model's",
    "oracle_clip_i": "of the photos to one another",
    "clip_t": "likeness to the prompts",
    "ceiling_clip_t": "the frozen model's, with the class noun",
    "div": "how much the pictures of a prompt differ",
    "ceiling_div": "the frozen model's",
    "copying": "rank of the nearest photo among the photos' own distances, 0 to 1",
    "pres": "likeness of 'a class' to the photos: lower is better",
    "pres_frozen": "the frozen model's",
    "foreground_dino": "likeness to the photos, of the subject alone",
    "background": "likeness of the backgrounds to the photos': lower is better",
    "floor_background": "the frozen model's",
    "held_out_gap": "photos trained on nearer than photos held out",
}


@app.command
def check(
    photos: Annotated[Path, Parameter(help="Folder of photos.")],
    /,
    *,
    resolution: Annotated[
        int | None, Parameter(help="Side of the training images in pixels. Default: the model's own, else 512.")
    ] = None,
    sheet: Annotated[Path | None, Parameter(help="PNG to write: the photos with what was found.")] = None,
    model: Annotated[
        str | None, Parameter(help="Base model: propose the class noun too, and see whether it can draw it.")
    ] = None,
    class_noun: ClassNoun = None,
    segmenter: Annotated[
        str | None, Parameter(help="CLIPSeg that finds the subject by --class: its folder or hub id.")
    ] = None,
    json: Json = False,
) -> None:
    """Say which photos will be used, and what is wrong with each and with all of them."""
    from dreambooth.photo_doctor import examine, to_json
    from dreambooth.photo_sheet import sheet as draw

    if sheet:
        _require_sheet(sheet, photos)
    _require_checkable(resolution, model, class_noun, segmenter)
    side = resolution or _native(model)
    found = examine(photos, side, _segment(segmenter, class_noun) if segmenter and class_noun else None)
    diagnosis = _diagnose(found, model, class_noun) if model else None
    if sheet:
        with atomic(sheet) as temporary:
            draw(found).save(temporary, format="PNG")
    if json:
        print_json(to_json(found) | ({"class": diagnosis.as_json()} if diagnosis else {}))
        return
    for finding in found.findings:
        print(f"{finding.file}: {'used' if finding.used else 'not used'}")
        for problem in finding.problems:
            _print_problem(problem, "  ")
    for problem in found.warnings:
        _print_problem(problem, "")
    if diagnosis:
        _print_diagnosis(diagnosis)


def _require_sheet(sheet: Path, photos: Path) -> None:
    if sheet.is_dir():
        raise UserError(f"--sheet {sheet} is a folder: give a file, such as sheet.png")
    if sheet.resolve().parent == photos.resolve():
        raise UserError(f"--sheet {sheet} lies among the photos, and would be taken for one: give another place")
    require_writable(sheet.parent, "choose another --sheet")


def _require_checkable(
    resolution: int | None, model: str | None, class_noun: str | None, segmenter: str | None
) -> None:
    if resolution is not None and resolution < 1:
        raise UserError(f"--resolution {resolution}: give a side in pixels, such as 512")
    if class_noun and not (model or segmenter):
        raise UserError("--class is asked of a model or a segmenter: give --model too, such as --model toybox")
    if segmenter and not class_noun:
        raise UserError("--segmenter finds what --class names: give --class too, such as --class dog")
    if class_noun is not None:
        require_noun(class_noun)


def _native(model: str | None) -> int:
    if model is None:
        return 512
    with reporting("text"):
        from dreambooth.models import native_resolution, resolve

        return native_resolution(resolve(model))


def _print_diagnosis(diagnosis: Diagnosis) -> None:
    from dreambooth.prompts import class_prompt

    first, *others = diagnosis.proposed
    print(f"class noun: {first} (then {', '.join(others)})")
    for problem in diagnosis.problems:
        _print_problem(problem, "")
    if not diagnosis.problems:
        drawn, asked = len(diagnosis.pictures), class_prompt(diagnosis.noun)
        print(f"the model knows it: {diagnosis.told} of {drawn} of its own pictures of '{asked}' are told as that")


def _segment(segmenter: str, class_noun: str) -> Segment:
    with reporting("text"):
        from dreambooth import environment, segmentation

        segment = segmentation.load(segmenter, environment.processes().device.type)
    return lambda image: segment(image, class_noun)


def _diagnose(found: Examination, model: str, class_noun: str | None) -> Diagnosis:
    with reporting("text") as reporter:
        from dreambooth.evaluation.class_noun import diagnose
        from dreambooth.photos import usable

        return diagnose([photo.path for photo in usable(found.findings)], model, class_noun, reporter)


def _print_problem(problem: Problem, indent: str) -> None:
    print(f"{indent}{problem.kind}: {problem.message}" + (f" (else {problem.risk})" if problem.risk else ""))


@app.command
def evaluate(
    runs: Annotated[list[Path], Parameter(help="Run folders; several of the same photos and class are compared.")],
    /,
    *,
    prompts: Annotated[
        str | None, Parameter(help="live, object, or a YAML list of own prompts. Default: by the class; it is told.")
    ] = None,
    count: Annotated[int, Parameter(help="Pictures of each prompt.")] = 4,
    class_count: Annotated[int, Parameter(help="Pictures of the class, by which drift is measured.")] = 12,
    seed: Annotated[int, Parameter(help="Seed of each prompt's first picture.")] = 0,
    references: Annotated[
        str, Parameter(help="Photos to compare with: all, centroid, fixed:K, or held-out with --held-out.")
    ] = "all",
    held_out: Annotated[Path | None, Parameter(help="Folder of photos that were not trained on.")] = None,
    masks: Annotated[
        Path | None,
        Parameter(
            help="Folder of masks (tuned/, frozen/, photos/, held-out/) for scores without backgrounds; of several runs"
            " one in it for each, called as the run's folder."
        ),
    ] = None,
    diversity: Diversity = "dino",
    identity_encoder: Annotated[str | None, Parameter(help="Encoder of DINO. Default: by the base model.")] = None,
    clip_encoder: Annotated[str | None, Parameter(help="Encoder of CLIP-I and CLIP-T.")] = None,
    out: Annotated[Path, Parameter(help="Folder of the comparison of several runs.")] = Path("comparison"),
    log_format: LogFormat = "text",
    json: Json = False,
) -> None:
    """Measure runs by the paper's protocol: identity, prompt fidelity, diversity, copying, drift."""
    if len(runs) > 1:
        require_writable(out)
    with reporting(log_format) as reporter:
        from dreambooth.evaluation.comparison import compare, write
        from dreambooth.evaluation.material import Plan
        from dreambooth.evaluation.metrics import Options
        from dreambooth.evaluation.runs import evaluate_all

        found = evaluate_all(
            runs,
            Plan(prompts, count, class_count, seed),
            Options(references, diversity=diversity),
            identity_encoder=identity_encoder,
            clip_encoder=clip_encoder,
            held_out=held_out,
            mask_folders=_mask_folders(masks, runs),
            reporter=reporter,
        )
        compared = compare(found) if len(found) > 1 else None
        page = write(compared, out) if compared else None
    if json:
        scores = {str(each.run.path): _scores(each.document) for each in found}
        print_json(scores if compared else _scores(found[0].document))
        return
    for each in found:
        for subject in each.document.get("subjects", []):
            print(f"{subject['class']} '{subject['identifier']}'")
            _print_scores(subject)
        _print_scores(each.document)
        print(f"report   {each.run.report}")
    if page:
        print(f"compared {page}")


def _mask_folders(masks: Path | None, runs: Sequence[Path]) -> list[Path | None]:
    """Where each run's masks lie: pictures of several runs have the same names."""
    names = [run.resolve().name for run in runs]
    if masks is None or len(runs) == 1:
        return [masks] * len(runs)
    twice = next((name for at, name in enumerate(names) if name in names[:at]), None)
    if twice is not None:
        raise UserError(f"two runs are called {twice}, so {masks / twice} cannot hold the masks of both: rename one")
    return [masks / name for name in names]


@app.command
def bench(
    subjects: Annotated[Path, Parameter(help="Folder with a folder of photos for each subject, as in DreamBench.")],
    /,
    *,
    out: Annotated[Path, Parameter(help="Folder of the runs and the table.")] = Path("bench"),
    limit: Annotated[int | None, Parameter(help="Only so many subjects.")] = None,
    prompts: Annotated[str | None, Parameter(help="live, object, or a YAML list. Default: by the class.")] = None,
    count: Annotated[int, Parameter(help="Pictures of each prompt.")] = 4,
    diversity: Diversity = "dino",
    settings: Annotated[Settings | None, Parameter(name="*", negative_iterable=())] = None,
    log_format: LogFormat = "text",
    json: Json = False,
) -> None:
    """Run the paper's benchmark: train and measure every subject, and print the table beside the published one.

    Where no default is shown, it follows from the model and the method: `dreambooth train --dry-run` tells it and why.
    """
    given = {name: getattr(settings, name) for name in settings.model_fields_set} if settings else {}
    with reporting(log_format) as reporter:
        from dreambooth.evaluation.bench import bench as run_bench
        from dreambooth.evaluation.material import Plan
        from dreambooth.evaluation.metrics import Options

        plan, options = Plan(prompts, count), Options(diversity=diversity)
        made = run_bench(subjects, given, out, plan=plan, options=options, limit=limit, reporter=reporter)
    if json:
        print_json({name: figure.as_json() for name, figure in made.figures.items()})
        return
    _print_bench(made)
    print(f"{len(made.subjects)} subjects; every picture with its scores: {out / 'manifest.json'}")


def _print_bench(made: Bench) -> None:
    from rich.console import Console
    from rich.table import Table

    from dreambooth.evaluation.bench import METRICS

    table = Table("", *METRICS[:-1], f"div, by {made.diversity}", box=None)
    for name, row in made.table():
        table.add_row(name, *(_cell(row.get(metric)) for metric in METRICS))
    Console().print(table)


def _cell(figure: Estimate | float | None) -> str:
    if figure is None or isinstance(figure, float):
        return "" if figure is None else f"{figure:.3f}"
    return figure.text()


@app.command
def identifier(
    *,
    class_noun: Annotated[str, Parameter(name="--class", help="Noun of the subject's class.")],
    model: Annotated[str | None, Parameter(help="Base model.")] = None,
    count: Annotated[int, Parameter(help="Candidates to list, beside folklore.")] = 20,
    fast: Annotated[bool, Parameter(negative="", help="Measure by the text encoders alone, without pictures.")] = False,
    letters: Annotated[int, Parameter(help="Most letters of a token.")] = 3,
    tokens: Annotated[int, Parameter(help="Most tokens of an identifier, 1 to 3.")] = 1,
    encoder: Annotated[str | None, Parameter(help="Image encoder that compares pictures.")] = None,
    log_format: LogFormat = "text",
    json: Json = False,
) -> None:
    """Rank rare words by how little the model means by them yet.

    A line has the word, its prior (less is better), the 95 % interval where 5 prompts or seeds at least tell it, and
    its tokens.
    """
    if count < 1:
        raise UserError(f"--count {count}: give at least 1")
    require_noun(class_noun)
    with reporting(log_format) as reporter:
        from dreambooth.identifier_search import search, to_json

        options: dict[str, Any] = {"fast": fast, "letters": letters, "tokens": tokens, "encoder": encoder}
        found = search(model, class_noun, **options, reporter=reporter)
    plain = [each for each in found if not each.note][:count]
    listed = [each for each in found if each.note or each in plain]
    if json:
        print_json(to_json(listed))
        return
    for each in listed:
        bounds = "" if each.low is None else f"({each.low:.2f} to {each.high:.2f})"
        print(f"{each.text:<12} {each.prior:6.2f}  {bounds:<16}  {each.ids}  {each.note}")


def _scores(document: dict[str, Any]) -> dict[str, Any]:
    """The scores of a run; of several subjects those of all together, and those of each by its identifier."""
    subjects = {each["identifier"]: each["scores"] for each in document.get("subjects", [])}
    scores: dict[str, Any] = document["scores"]
    return {"all": scores, **subjects} if subjects else scores


def _print_scores(document: dict[str, Any]) -> None:
    """Print the table of a run's scores, and what the detectors found."""
    from rich.console import Console
    from rich.table import Table

    table = Table("score", "value", "95 % interval", "pictures", "meaning", box=None)
    for name, meaning in MEANINGS.items():
        figure = document["scores"].get(name)
        if figure and figure["value"] is not None:
            bounds = "" if figure["low"] is None else f"{figure['low']:.3f} to {figure['high']:.3f}"
            table.add_row(name, f"{figure['value']:.3f}", bounds, str(figure["n"]), meaning)
    console = Console()
    console.print(table)
    if "prompt_set" in document:
        print(f"prompts  {document['prompt_set']}, {len(document['prompts'])} (--prompts says otherwise)")
    for finding in document["findings"]:
        console.print(f"[bold]{finding['level']}[/bold]: {finding['title']}. {finding['text']}", highlight=False)


@app.command
def report(run: Annotated[Path, Parameter(help="Run folder.")], /, *, json: Json = False) -> None:
    """Write a run's report.html anew."""
    from dreambooth.reporting import report as write

    path = write(run)
    if json:
        print_json({"report": str(path)})
    else:
        print(path)
