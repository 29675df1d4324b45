"""What the commands share: the app, options that several have, progress and output."""

from __future__ import annotations

import json as json_module
import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter
from rich.console import Console

from dreambooth import __version__

if TYPE_CHECKING:
    from dreambooth.progress import Reporter
    from dreambooth.run import Run


class _Pages(Console):
    """Where help is printed. When nobody reads it, rich by itself exits as after a failure."""

    def on_broken_pipe(self) -> None:
        """Let `main` end the command as one whose reader has left."""
        raise BrokenPipeError


app = App(
    name="dreambooth",
    console=_Pages(),
    help="Teach a text-to-image model your subject from 3-5 photos, render it anywhere, and measure how well it did.",
    version=__version__,
    suppress_keyboard_interrupt=False,
)
Json = Annotated[
    bool, Parameter(negative="", help="Print one JSON document to standard output and nothing else there.")
]
LogFormat = Annotated[Literal["text", "json"], Parameter(help="Form of the progress on standard error.")]
ClassNoun = Annotated[str | None, Parameter(name="--class", help="Noun of the subject's class: dog, mug, robot.")]


@contextmanager
def reporting(log_format: str) -> Iterator[Reporter]:
    """Give a reporter on standard error, where the libraries' own voices are silenced before they are imported."""
    from dreambooth import progress

    progress.hush_libraries()
    reporter = progress.for_console(log_format)
    try:
        yield reporter
    finally:
        reporter.close()


def print_next(run: Run) -> None:
    """Print the command that a user would run next."""
    from dreambooth import families, prompts

    program = "dreambooth" if shutil.which("dreambooth") else os.path.relpath(sys.argv[0])
    path = shlex.quote(str(run.path))
    if run.info["model"]["family"] in families.UPSCALERS:  # it draws nothing from a prompt alone
        print(f"next     {program} export {path} --format diffusers")
        return
    called = prompts.label(run.recipe.label, run.info["class"])
    print(f"next     {program} generate {path} {shlex.quote(f'{called} in the snow')} --count 4")


def print_json(value: Any) -> None:
    """Print one JSON document to standard output."""
    print(json_module.dumps(value, indent=2, ensure_ascii=False))
