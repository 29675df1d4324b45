"""Calls the command line inside the test's own process."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

from dreambooth import cli

QUICK = {"steps": 2, "samples": 0, "prior-count": 1, "prior-steps": 2}


@dataclass(frozen=True)
class Call:
    """What a command has left: exit status, standard output, standard error."""

    status: int
    out: str
    err: str

    @property
    def refusal(self) -> str:
        """The one line of a command that has refused to work."""
        assert (self.status, self.out) == (2, ""), self
        (line,) = self.err.splitlines()
        assert line.startswith("dreambooth: ")
        return line.removeprefix("dreambooth: ")

    @property
    def failure(self) -> str:
        """The last line of a command that has failed."""
        assert (self.status, self.out) == (1, ""), self
        assert "Traceback" not in self.err
        line = self.err.splitlines()[-1]
        assert line.startswith("dreambooth: ")
        return line.removeprefix("dreambooth: ")


def call(*arguments: object) -> Call:
    """Run `dreambooth ARGUMENTS`."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
        cli.main([str(argument) for argument in arguments])
    assert isinstance(ended.value.code, int)
    return Call(ended.value.code, out.getvalue(), err.getvalue())


def train(photos: Path | None, model: Path, *more: object, **settings: object) -> Call:
    """Run a very short `dreambooth train PHOTOS --class dog`; None as a setting leaves it out."""
    given = flags(**{"class": "dog", **settings})
    return call("train", *([photos] if photos else []), "--model", model, *given, *more)


def flags(**settings: object) -> list[object]:
    """Return the flags of a very short training; None as a setting leaves it out."""
    named = {**QUICK, **{name.replace("_", "-"): value for name, value in settings.items()}}
    return [word for name, value in named.items() if value is not None for word in (f"--{name}", value)]
