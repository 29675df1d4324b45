"""A finished run with another average of its weights: chosen after training, of what `--ema-profiles` has kept."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from dreambooth import environment, families, methods, samples, targets
from dreambooth.averaging import combine
from dreambooth.errors import UserError
from dreambooth.files import atomic_folder, require_writable
from dreambooth.placing import place
from dreambooth.precision import storage_dtype
from dreambooth.progress import Reporter, Silent
from dreambooth.reporting import report
from dreambooth.run import Run

NARROWEST, WIDEST = 0.04, 0.2
"""Between them an average of eight snapshots is what it should be to some percent (tests/test_post_hoc.py)."""
LEFT_BEHIND = (
    *("adapter", "checkpoints", "profiles", "evaluation", "applications", "scores.json", "report.html"),
    *("export", "images"),
)
"""What the average shares with the run no longer, or does not need."""


def average(run: str | Path, width: float, out: str | Path | None = None, reporter: Reporter | None = None) -> Run:
    """Write a run that ships an average of another one's weights.

    Args:
        run: A finished run that was trained with `--ema-profiles`.
        width: Of the average, as a share of all steps, such as 0.1: the standard deviation of the steps it is made of.
        out: The new run's folder. Default: beside the run.
        reporter: Listens to the progress.

    Raises:
        UserError: There is no such run, it kept nothing, the width is none, or there is something at `out`.
    """
    opened, reporter = Run(Run.open(run).path.resolve()), reporter or Silent()
    target = Path(out).resolve() if out else opened.path.with_name(f"{opened.path.name}-average-{width:g}")
    require_writable(target.parent)
    if not NARROWEST <= width <= WIDEST:
        raise UserError(
            f"--width {width:g} is none: give a share of the steps from {NARROWEST} to {WIDEST}, such as 0.1"
        )
    if opened.finished_steps is None:
        raise UserError(f"{opened.path} is not finished: give its `dreambooth train` command again")
    if not any(opened.profiles.glob("*.safetensors")):
        raise UserError(f"{opened.path} kept nothing to average: train it with --ema-profiles")
    if target.is_relative_to(opened.path) and target != opened.path:
        raise UserError(f"{target} lies in the run itself: choose another --out")
    if target.exists():
        raise UserError(f"{target} is there already: choose another --out or remove it")
    with atomic_folder(target) as folder:
        shutil.copytree(opened.path, folder, dirs_exist_ok=True, ignore=_left_behind(opened.path))
        made = Run(folder)
        _ship(opened, made, width)
        made.update(average={"width": width, "of": str(opened.path)})
        _draw(opened, made, reporter)
    report(target)
    return Run(target)


def _left_behind(root: Path) -> Callable[[str, list[str]], list[str]]:
    return lambda at, names: [n for n in names if Path(at) == root and (n in LEFT_BEHIND or n.startswith("run.lock"))]


def _ship(run: Run, made: Run, width: float) -> None:
    """Put the average in the place of the weights as a training attaches them, and write what stock diffusers loads."""
    recipe, source = run.recipe, targets.find(run.path).source
    family, method = families.get(source.family), methods.get(recipe.method)
    pipe = family.load(source, storage_dtype(recipe))
    weights = {
        f"{g.component}.{name}": w for g in method.attach(pipe, family, recipe) for name, w in g.parameters.items()
    }
    averaged = combine(run.profiles, width, run.finished_steps or 0)
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(averaged[name])
    made.adapter.mkdir()
    method.save(pipe, family, source, recipe, made.adapter)


def _draw(run: Run, made: Run, reporter: Reporter) -> None:
    recipe, source = run.recipe, targets.find(run.path).source
    if recipe.samples:
        shipped = methods.get(recipe.method).load(families.get(source.family), source, recipe, made.adapter)
        samples.draw_after(made, place(shipped, environment.processes().device), recipe, reporter)
