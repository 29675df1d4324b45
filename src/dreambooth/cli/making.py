"""Commands that train and draw: train, generate, prior, demo."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from dreambooth.cli.shared import ClassNoun, Json, LogFormat, app, print_json, print_next, reporting
from dreambooth.errors import UserError
from dreambooth.prompts import require_noun
from dreambooth.recipe import Recipe, Settings
from dreambooth.yaml_files import read_yaml


@app.command
def train(
    photos: Annotated[
        list[str] | None,
        Parameter(
            help="Folder of 3-5 photos; of several subjects FOLDER:NOUN or IDENTIFIER=FOLDER:NOUN: [V], [V2] ..."
        ),
    ] = None,
    /,
    *,
    class_noun: ClassNoun = None,
    identifier: Annotated[
        str | None, Parameter(help="Rare token that will name the subject. Default: one that fits.")
    ] = None,
    out: Annotated[Path | None, Parameter(help="Run folder. Default: runs/PHOTOS-METHOD-IDENTITY.")] = None,
    recipe: Annotated[Path | None, Parameter(help="YAML recipe; flags given override it.")] = None,
    dry_run: Annotated[
        bool, Parameter(negative="", help="Print the resolved recipe, the reasons and the photos' sizes, and stop.")
    ] = False,
    settings: Annotated[Settings | None, Parameter(name="*", negative_iterable=())] = None,
    log_format: LogFormat = "text",
    json: Json = False,
) -> None:
    """Teach a model your subject. The same command goes on with an interrupted run.

    Where no default is shown, it follows from the model and the method: --dry-run tells it and why.
    """
    chosen = _recipe(photos, class_noun, identifier, recipe, settings)
    if settings and settings.targets:
        _require_adapter(chosen, settings.targets)
    if dry_run:
        with reporting(log_format):
            _dry_run(chosen, out, json)
        return
    with reporting(log_format) as reporter:
        from dreambooth.environment import processes
        from dreambooth.training import train as train_run

        run = train_run(chosen, out, reporter)
    if not processes().is_main_process:
        return
    info = run.info
    if json:
        print_json({"run": str(run.path), **info})
        return
    for name, seconds in info["times"].items():
        print(f"{name:<14}{seconds:8.1f} s")
    print(f"adapter  {run.adapter}")
    if run.samples.is_dir():
        print(f"pictures {run.samples}")
    print(f"report   {run.report}")
    print_next(run)


@app.command
def generate(
    target: Annotated[
        str, Parameter(help="A run folder, or a base model: a name, hub id, folder or .safetensors file.")
    ],
    prompts: Annotated[list[str], Parameter(help="Prompts; [V] stands for the run's identifier.")],
    /,
    *,
    count: Annotated[int, Parameter(help="Pictures of each prompt.")] = 1,
    seed: Annotated[int, Parameter(help="Seed of the first picture.")] = 0,
    out: Annotated[Path | None, Parameter(help="Folder for the pictures. Default: the next images/N.")] = None,
    negative: Annotated[str, Parameter(help="Negative prompt.")] = "",
    guidance: Annotated[float | None, Parameter(help="Guidance scale.")] = None,
    sampler: Annotated[str | None, Parameter(help="dpm++, dpm++-sde, ddim, ddpm, euler, euler-a or unipc.")] = None,
    inference_steps: Annotated[int | None, Parameter(help="Denoising steps.")] = None,
    size: Annotated[int | None, Parameter(help="Image side in pixels.")] = None,
    consistency: Annotated[
        float | Literal["off"] | None,
        Parameter(help="DCO's guidance by the frozen model: share of what a LoRA changed, such as 0.4."),
    ] = None,
    adapter: Annotated[
        list[str] | None, Parameter(negative="", help="RUN=0.8: a run's strength, a further LoRA run or LoRA FILE.")
    ] = None,
    log_format: LogFormat = "text",
    json: Json = False,
) -> None:
    """Render prompts from a run, or from an untouched base model.

    Where no default is shown, it is the run's own, or else the model's.
    """
    with reporting(log_format) as reporter:
        from dreambooth.generation import generate as generate_pictures

        folder = generate_pictures(
            target,
            prompts,
            count=count,
            seed=seed,
            out=out,
            negative=negative,
            guidance=guidance,
            sampler=sampler,
            inference_steps=inference_steps,
            size=size,
            consistency=consistency,
            adapters=adapter or (),
            reporter=reporter,
        )
    if json:
        print_json({"folder": str(folder), **json_module.loads((folder / "manifest.json").read_text(encoding="utf-8"))})
    else:
        print(folder / "grid.png")


@app.command
def prior(
    *,
    class_noun: Annotated[str, Parameter(name="--class", help="Noun of the class.")],
    model: Annotated[str | None, Parameter(help="Base model.")] = None,
    count: Annotated[int | None, Parameter(help="Class images. Default: the model's preset.")] = None,
    precision: Annotated[
        Literal["fp32", "bf16", "fp16"] | None, Parameter(help="As of the runs that they are for.")
    ] = None,
    out: Annotated[
        Path | None, Parameter(help="Folder to keep them in. Default: the cache, where runs find them.")
    ] = None,
    log_format: LogFormat = "text",
    json: Json = False,
) -> None:
    """Make or top up a set of class images for prior preservation."""
    if count is not None and count < 1:
        raise UserError(f"--count {count}: give at least 1")
    require_noun(class_noun)
    with reporting(log_format) as reporter:
        from dreambooth.training import make_class_images

        images = make_class_images(class_noun, model, count, precision, out, reporter)
    if json:
        print_json({"folder": str(images.folder), "count": images.count})
    else:
        print(f"{images.count} class images in {images.folder}")


@app.command
def demo(
    *,
    out: Annotated[Path, Parameter(help="Run folder.")] = Path("runs/demo"),
    log_format: LogFormat = "text",
    json: Json = False,
) -> None:
    """Teach the embedded toybox model a bundled subject, and say what was measured. Needs no network."""
    with reporting(log_format) as reporter:
        from dreambooth.demo import demo as run_demo

        run, sheet, measured = run_demo(out, reporter)
    if json:
        print_json({"run": str(run.path), "pictures": str(sheet), "measured": [vars(each) for each in measured]})
        return
    print("\ncolours that pictures share with the photos")
    for each in measured:
        print(f"  '{each.what}'".ljust(16) + f"{each.before:.0%} before training, {each.after:.0%} after")
    print("\n" + "   ".join(f"{name} {seconds:.0f} s" for name, seconds in run.info["times"].items()))
    print(f"pictures {sheet}\nreport   {run.report}")
    print_next(run)


def _recipe(
    photos: list[str] | None, noun: str | None, identifier: str | None, recipe: Path | None, settings: Settings | None
) -> Recipe:
    """Join the recipe's file with the flags given, which win."""
    values = read_yaml(recipe) if recipe else {}
    Settings.of({name: value for name, value in values.items() if name != "subjects"}, recipe)
    if settings is not None:
        values.update({name: getattr(settings, name) for name in settings.model_fields_set})
    subjects = values.get("subjects") or [{}]
    named = [_subject(text) for text in photos or []]
    if len(named) > 1:
        if noun or identifier:
            raise UserError("--class and --identifier are for one subject: write NAME=FOLDER:NOUN for each of several")
        for text, subject in zip(photos or [], named, strict=True):
            if "class_noun" not in subject:
                raise UserError(f"'{text}' names no class: of several subjects each is written FOLDER:NOUN")
        return Recipe.of({**values, "subjects": named})
    flags, own = {"class_noun": noun, "identifier": identifier}, named[0] if named else {}
    for flag, name in (("--class", "class_noun"), ("--identifier", "identifier")):
        if flags[name] and own.get(name, flags[name]) != flags[name]:
            raise UserError(f"{flag} {flags[name]} contradicts '{' '.join(photos or [])}': leave one out")
    flags |= own
    given = {name: value for name, value in flags.items() if value is not None}
    if isinstance(subjects, list) and isinstance(subjects[0], dict):
        subjects = [{**subjects[0], **given}, *subjects[1:]]
    return Recipe.of({**values, "subjects": subjects}, None if given else recipe)


def _require_adapter(recipe: Recipe, targets: str) -> None:
    """Refuse layers that were given for no LoRA. A run's recipe names them whatever it trains, so it cannot tell."""
    from dreambooth.contradictions import NO_LAYERS

    if not recipe.has_adapter:
        raise UserError(NO_LAYERS.format(targets))


def _subject(text: str) -> dict[str, Any]:
    """Read FOLDER, FOLDER:NOUN or NAME=FOLDER:NOUN; a folder that has such a name is one."""
    if Path(text).exists():
        return {"photos": text}
    name, equals, rest = text.partition("=")
    folder, colon, noun = (rest if equals else text).rpartition(":")
    if not colon or "/" in noun or "\\" in noun:
        folder, noun = (rest if equals else text), ""
    given = {"photos": folder, "class_noun": noun, "identifier": name if equals else ""}
    return {key: value for key, value in given.items() if value}


def _dry_run(recipe: Recipe, out: Path | None, as_json: bool) -> None:
    from dreambooth.files import require_writable
    from dreambooth.planning import make_plans
    from dreambooth.run import RUNS

    require_writable(out or RUNS)
    plans = make_plans(recipe)
    if as_json:
        resolved = plans.recipe.model_dump(mode="json", exclude_none=True)
        sizes = [bucket.as_json() for bucket in plans.buckets]
        print_json({"recipe": resolved, "reasons": plans.reasons, "buckets": sizes, "warnings": plans.warnings})
        return
    for line in plans.recipe.to_yaml().splitlines():
        reason = plans.reasons.get(line.split(":")[0])
        print(f"{line:<40} # {reason}" if reason else line)
    for bucket in plans.buckets:
        print(f"# photos at {bucket}")
    for warning in plans.warnings:
        print(f"# warning: {warning}")
