"""The command line. Each command is a few lines over the public function of the same name."""

from __future__ import annotations

import json as json_module
import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from traceback import extract_tb
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

from cyclopts import App, CycloptsError, Parameter, UnusedCliTokensError
from pydantic import ValidationError

from dreambooth.errors import RunError, UserError
from dreambooth.recipe import Recipe, Settings, first_problem, read_yaml

if TYPE_CHECKING:
    from dreambooth.progress import Reporter

app = App(
    name="dreambooth",
    help="Teach a text-to-image model your subject from 3-5 photos, render it anywhere, and measure how well it did.",
    version=lambda: metadata.version("dreambooth"),
    suppress_keyboard_interrupt=False,
)
cache_app = App(name="cache", help="What is kept for reuse: class images.")
app.command(cache_app)

Json = Annotated[
    bool, Parameter(negative="", help="Print one JSON document to standard output and nothing else there.")
]
LogFormat = Annotated[Literal["text", "json"], Parameter(help="Form of the progress on standard error.")]
ClassNoun = Annotated[str | None, Parameter(name="--class", help="Noun of the subject's class: dog, mug, robot.")]


@app.command
def train(
    photos: Annotated[Path | None, Parameter(help="Folder of 3-5 photos of the subject.")] = None,
    /,
    *,
    class_noun: ClassNoun = None,
    identifier: Annotated[
        str | None, Parameter(help="Rare token that will name the subject. Default: one that fits.")
    ] = None,
    out: Annotated[Path | None, Parameter(help="Run folder. Default: runs/PHOTOS-METHOD-IDENTITY.")] = None,
    recipe: Annotated[Path | None, Parameter(help="YAML recipe; flags given override it.")] = None,
    dry_run: Annotated[
        bool, Parameter(negative="", help="Print the resolved recipe and the reasons, and stop.")
    ] = False,
    settings: Annotated[Settings | None, Parameter(name="*", negative_iterable=())] = None,
    log_format: LogFormat = "text",
    json: Json = False,
) -> None:
    """Teach a model your subject. The same command goes on with an interrupted run."""
    chosen = _recipe(photos, class_noun, identifier, recipe, settings)
    if dry_run:
        _dry_run(chosen, json)
        return
    with _reporting(log_format) as reporter:
        from dreambooth.environment import processes
        from dreambooth.training import train as train_run

        run = train_run(chosen, out, reporter)
    if not processes().is_main_process:
        return
    info = run.info
    if json:
        _print_json({"run": str(run.path), **info})
        return
    for name, seconds in info["times"].items():
        print(f"{name:<14}{seconds:8.1f} s")
    print(f"adapter  {run.adapter}")
    print(f"pictures {run.samples}")
    print(f"report   {run.report}")
    _print_next(run.path, info["class"])


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
    out: Annotated[Path | None, Parameter(help="Folder for the pictures.")] = None,
    negative: Annotated[str, Parameter(help="Negative prompt.")] = "",
    guidance: Annotated[float | None, Parameter(help="Guidance scale.")] = None,
    sampler: Annotated[str | None, Parameter(help="dpm++, dpm++-sde, ddim, ddpm, euler, euler-a or unipc.")] = None,
    inference_steps: Annotated[int | None, Parameter(help="Denoising steps.")] = None,
    size: Annotated[int | None, Parameter(help="Image side in pixels.")] = None,
    adapter: Annotated[
        list[str] | None, Parameter(negative="", help="RUN=0.8: a run's strength, or a further LoRA run.")
    ] = None,
    log_format: LogFormat = "text",
    json: Json = False,
) -> None:
    """Render prompts from a run, or from an untouched base model."""
    with _reporting(log_format) as reporter:
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
            adapters=adapter or (),
            reporter=reporter,
        )
    if json:
        _print_json(
            {"folder": str(folder), **json_module.loads((folder / "manifest.json").read_text(encoding="utf-8"))}
        )
    else:
        print(folder / "grid.png")


@app.command
def check(
    photos: Annotated[Path, Parameter(help="Folder of photos.")],
    /,
    *,
    resolution: Annotated[int, Parameter(help="Side of the training images in pixels.")] = 512,
    json: Json = False,
) -> None:
    """Say which photos will be used and what is wrong with each."""
    from dreambooth import photos as photos_module

    if resolution < 1:
        raise UserError(f"--resolution {resolution}: give a side in pixels, such as 512")
    findings = photos_module.read(photos, resolution)
    if json:
        _print_json(photos_module.to_json(findings))
        return
    for finding in findings:
        print(f"{finding.file}: {'used' if finding.used else 'not used'}")
        for problem in finding.problems:
            print(f"  {problem.kind}: {problem.message}")
    for problem in photos_module.warnings(findings):
        print(f"{problem.kind}: {problem.message}")


@app.command
def prior(
    *,
    class_noun: Annotated[str, Parameter(name="--class", help="Noun of the class.")],
    model: Annotated[str | None, Parameter(help="Base model.")] = None,
    count: Annotated[int | None, Parameter(help="Class images. Default: the model's preset.")] = None,
    out: Annotated[
        Path | None, Parameter(help="Folder to keep them in. Default: the cache, where runs find them.")
    ] = None,
    log_format: LogFormat = "text",
    json: Json = False,
) -> None:
    """Make or top up a set of class images for prior preservation."""
    if count is not None and count < 1:
        raise UserError(f"--count {count}: give at least 1")
    with _reporting(log_format) as reporter:
        from dreambooth.training import make_class_images

        images = make_class_images(class_noun, model, count, out, reporter)
    if json:
        _print_json({"folder": str(images.folder), "count": images.count})
    else:
        print(f"{images.count} class images in {images.folder}")


@app.command
def models(*, json: Json = False) -> None:
    """List the base models that are known by name."""
    from dreambooth.models import CARDS

    if json:
        names = ("name", "family", "repository", "licence", "gated")
        _print_json([{name: getattr(card, name) for name in names} for card in CARDS])
        return
    for card in CARDS:
        gate = ", gated" if card.gated else ""
        print(f"{card.name:<12} {card.resolution:>5} px  {card.repository or 'in the package'} ({card.licence}{gate})")
        print(f"{'':<12} {card.note}")


@app.command
def demo(
    *,
    out: Annotated[Path, Parameter(help="Run folder.")] = Path("runs/demo"),
    log_format: LogFormat = "text",
    json: Json = False,
) -> None:
    """Teach the embedded toybox model a bundled subject, and say what was measured. Needs no network."""
    with _reporting(log_format) as reporter:
        from dreambooth.demo import demo as run_demo

        run, sheet, measured = run_demo(out, reporter)
    if json:
        _print_json({"run": str(run.path), "pictures": str(sheet), "measured": [vars(each) for each in measured]})
        return
    print("\ncolours that pictures share with the photos")
    for each in measured:
        print(f"  '{each.what}'".ljust(16) + f"{each.before:.0%} before training, {each.after:.0%} after")
    print("\n" + "   ".join(f"{name} {seconds:.0f} s" for name, seconds in run.info["times"].items()))
    print(f"pictures {sheet}\nreport   {run.report}")
    _print_next(run.path, "dog")


@app.command
def report(run: Annotated[Path, Parameter(help="Run folder.")], /, *, json: Json = False) -> None:
    """Write a run's report.html anew."""
    from dreambooth.reporting import report as write

    path = write(run)
    if json:
        _print_json({"report": str(path)})
    else:
        print(path)


@cache_app.command(name="list")
def cache_list(*, json: Json = False) -> None:
    """List the class-image sets that are kept."""
    from dreambooth.class_sets import sets

    found = sets()
    if json:
        _print_json(found)
        return
    for entry in found:
        print(f"{entry['megabytes']:8.1f} MB  {entry['images']:>5} x '{entry['prompt']}'  {entry['folder']}")
    if not found:
        print("nothing is kept")


@cache_app.command(name="clear")
def cache_clear(*, json: Json = False) -> None:
    """Remove what is kept. Runs make it again when they need it."""
    from dreambooth.class_sets import clear

    freed = clear()
    if json:
        _print_json({"megabytes": freed})
    else:
        print(f"{freed:.1f} MB freed")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0 done, 2 the user's mistake, 1 anything else, 130 interrupted."""
    os.environ.setdefault("HF_HUB_VERBOSITY", "critical")  # what the hub's library raises is told in one line
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    try:
        app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
    except (UserError, CycloptsError) as error:
        _fail(_one_line(error), 2)
    except (FileExistsError, NotADirectoryError) as error:
        _fail(f"{error.filename} is a file, where a folder is wanted: give another path", 2)
    except RunError as error:
        _fail(str(error), 1)
    except KeyboardInterrupt as error:
        # what launched several processes is not known here
        again = "the same command" if "LOCAL_RANK" in os.environ else shlex.join(["dreambooth", *tokens])
        _fail(f"{str(error) or 'stopped'}; go on with: {again}", 130)
    except Exception as error:  # whatever it is: one line, never a traceback
        _fail(_unforeseen(error), 1)
    sys.exit(0)


def _recipe(
    photos: Path | None, noun: str | None, identifier: str | None, recipe: Path | None, settings: Settings | None
) -> Recipe:
    """Join the recipe's file with the flags given, which win."""
    values: dict[str, Any] = read_yaml(recipe) if recipe else {}
    if settings is not None:
        values.update({name: getattr(settings, name) for name in settings.model_fields_set})
    subjects = values.get("subjects") or [{}]
    given = {"photos": photos, "class_noun": noun, "identifier": identifier}
    if isinstance(subjects, list) and isinstance(subjects[0], dict):
        first = {**subjects[0], **{name: value for name, value in given.items() if value is not None}}
        subjects = [first, *subjects[1:]]
    return Recipe.of({**values, "subjects": subjects})


def _dry_run(recipe: Recipe, as_json: bool) -> None:
    from dreambooth.planning import make_plans

    plans = make_plans(recipe)
    if as_json:
        resolved = plans.recipe.model_dump(mode="json", exclude_none=True)
        _print_json({"recipe": resolved, "reasons": plans.reasons, "warnings": plans.warnings})
        return
    for line in plans.recipe.to_yaml().splitlines():
        reason = plans.reasons.get(line.split(":")[0])
        print(f"{line:<40} # {reason}" if reason else line)
    for warning in plans.warnings:
        print(f"# warning: {warning}")


@contextmanager
def _reporting(log_format: str) -> Iterator[Reporter]:
    """Give a reporter on standard error, where the libraries' own voices are silenced before they are imported."""
    from dreambooth import progress

    progress.hush_libraries()
    reporter = progress.for_console(log_format)
    try:
        yield reporter
    finally:
        reporter.close()


def _print_next(run: Path, noun: str) -> None:
    program = "dreambooth" if shutil.which("dreambooth") else os.path.relpath(sys.argv[0])
    print(f'next     {program} generate {shlex.quote(str(run))} "a [V] {noun} in the snow" --count 4')


def _print_json(value: Any) -> None:
    print(json_module.dumps(value, indent=2, ensure_ascii=False))


def _one_line(error: Exception) -> str:
    cause = error.__cause__
    if isinstance(cause, ValidationError):
        return first_problem(cause)
    if isinstance(error, UnusedCliTokensError):
        return f"unexpected argument '{(error.unused_tokens or [''])[0]}': quote what has spaces, or leave it out"
    return " ".join(str(error).split())


def _unforeseen(error: Exception) -> str:
    """Say what went wrong, and where in our own code: that is what a report of it needs."""
    if isinstance(error, OSError) and error.filename:
        return f"{error.strerror}: {error.filename}"
    ours = [frame for frame in extract_tb(error.__traceback__) if frame.filename.startswith(str(Path(__file__).parent))]
    place = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}"
    return f"{type(error).__name__} at {place}: {' '.join(str(error).split())}"


def _fail(message: str, status: int) -> NoReturn:
    print(f"dreambooth: {message}", file=sys.stderr)
    sys.exit(status)
