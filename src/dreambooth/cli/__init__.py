"""The command line. Each command is a few lines over the public function of the same name."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from traceback import extract_tb
from typing import NoReturn

from cyclopts import CycloptsError, UnknownOptionError, UnusedCliTokensError
from pydantic import ValidationError

from dreambooth.cli import applying, keeping, making, measuring, sharing
from dreambooth.cli.shared import app
from dreambooth.cli.translations import translated
from dreambooth.errors import RunError, UserError
from dreambooth.recipe import first_problem

__all__ = ["app", "applying", "keeping", "main", "making", "measuring", "sharing"]


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0 done, 2 the user's mistake, 1 anything else, 130 interrupted, 141 unread."""
    os.environ.setdefault("HF_HUB_VERBOSITY", "critical")  # what the hub's library raises is told in one line
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    try:
        app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
        if sys.stdout:
            sys.stdout.flush()
    except (UserError, CycloptsError) as error:
        _fail(_one_line(error), 2)
    except BrokenPipeError:  # who reads has read enough: `dreambooth models | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains when it exits
        sys.exit(128 + 13)  # as by SIGPIPE
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


def _one_line(error: Exception) -> str:
    cause = error.__cause__
    if isinstance(cause, ValidationError):
        return first_problem(cause)
    if isinstance(error, UnusedCliTokensError):
        return f"unexpected argument '{(error.unused_tokens or [''])[0]}': quote what has spaces, or leave it out"
    told = translated(error) if isinstance(error, UnknownOptionError) else None
    return told or " ".join(str(error).split())


def _unforeseen(error: Exception) -> str:
    """Say what went wrong, and where in our own code: that is what a report of it needs."""
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported for this
        return "the GPU's memory is full: give a smaller --size, or train with a smaller --memory (GiB of a step)"
    if isinstance(error, OSError) and error.filename:
        return f"{error.strerror}: {error.filename}"
    ours = [
        frame for frame in extract_tb(error.__traceback__) if frame.filename.startswith(str(Path(__file__).parents[1]))
    ]
    place = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}"
    return f"{type(error).__name__} at {place}: {' '.join(str(error).split())}"


def _fail(message: str, status: int) -> NoReturn:
    print(f"dreambooth: {message}", file=sys.stderr)
    sys.exit(status)
