"""The run folder: the only thing that the commands, a web page and a cluster share."""

from __future__ import annotations

import difflib
import json
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import filelock

from dreambooth.errors import UserError
from dreambooth.files import disk_errors, require_writable, sweep, write_json, write_text
from dreambooth.progress import Step
from dreambooth.recipe import LATER, Recipe, counted

RUNS = Path("runs")
"""Where runs are that have no folder given."""


class Run:
    """A run folder.

    Attributes:
        path: The folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"Run('{self.path}')"

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Open an existing run.

        Raises:
            UserError: There is no run at `path`.
        """
        run = cls(path)
        if not run.exists:
            raise missing(run.path)
        return run

    @property
    def exists(self) -> bool:
        """Whether the folder holds a run."""
        return (self.path / "run.json").is_file()

    @property
    def adapter(self) -> Path:
        """What the run ships: a LoRA folder or a pipeline folder."""
        return self.path / "adapter"

    @property
    def checkpoints(self) -> Path:
        """Folder of resumable states."""
        return self.path / "checkpoints"

    @property
    def profiles(self) -> Path:
        """Folder of what averages of the weights are made of."""
        return self.path / "profiles"

    @property
    def samples(self) -> Path:
        """Folder of the run's own pictures."""
        return self.path / "samples"

    @property
    def report(self) -> Path:
        """The page that tells the run."""
        return self.path / "report.html"

    @property
    def recipe(self) -> Recipe:
        """The resolved recipe."""
        return Recipe.read(self.path / "recipe.yaml")

    @property
    def info(self) -> dict[str, Any]:
        """What was found out and done: identity, model, photos, identifier, reasons, times, warnings, finished.

        Raises:
            UserError: It cannot be read.
        """
        path = self.path / "run.json"
        try:
            info = dict(json.loads(path.read_text(encoding="utf-8")))
            if lacking := [name for name in ("identity", "steps", "finished", "times", "warnings") if name not in info]:
                raise ValueError(f"it says nothing of {lacking[0]}")
            return info
        except (ValueError, TypeError) as error:
            mend = "put it back, or train into another --out"
            raise UserError(f"{path} is damaged ({' '.join(str(error).split())}): {mend}") from None

    @property
    def environment(self) -> dict[str, Any]:
        """What the run ran on last; empty before it has run."""
        path = self.path / "environment.json"
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}

    @property
    def finished_steps(self) -> int | None:
        """Steps of the finished run; None while it is not finished, or when its weights have gone."""
        info = self.info
        return int(info["steps"]) if info["finished"] and self.has_weights else None

    @property
    def has_weights(self) -> bool:
        """Whether there is anything that the run ships."""
        return any(self.adapter.rglob("*.safetensors"))

    @property
    def shipped_steps(self) -> int:
        """Steps that what the run ships has seen: fewer than it was given, where it has chosen an earlier look."""
        info = self.info
        return int(info.get("selection", {}).get("step", info["steps"]))

    def require_writable(self) -> None:
        """Refuse to work on a run in whose folder nothing can be written.

        Raises:
            UserError: Nothing can.
        """
        require_writable(self.path, "copy the run to where you may write")

    def require_own(self, recipe: Recipe, identity: str) -> None:
        """Refuse a folder that this run cannot be written to.

        Raises:
            UserError: It holds other files, another recipe's run, or more steps of this one than the recipe has.
        """
        self._require_folder()
        if not self.exists:
            return
        if self.info["identity"] != identity:
            what = self._difference(recipe)
            raise UserError(f"{self.path} holds another run ({what}): choose another --out or remove it")
        states = [int(state.name) for state in self.checkpoints.glob("*") if state.name.isdigit()]
        done = max(states, default=0)
        if self.finished_steps is None and done > (recipe.steps or 0):
            raise UserError(f"{self.path} has been trained for {done} steps already: give --steps {done} or more")

    def begin(self, recipe: Recipe, info: dict[str, Any], environment: dict[str, Any]) -> None:
        """Write the run's description. Given again for the same run, it keeps what was recorded before.

        Raises:
            UserError: The folder holds another recipe's run.
        """
        self.require_own(recipe, info["identity"])
        if self.exists:
            before = self.info
            since = [text for text in before["warnings"] if text not in before.get("foreseen", [])]
            info |= {"created": before["created"], "times": before["times"], "peaks": before.get("peaks", {})}
            info["warnings"] = [*info["warnings"], *(text for text in since if text not in info["warnings"])]
        self.path.mkdir(parents=True, exist_ok=True)
        sweep(self.path)
        write_json(self.path / "run.json", info)  # the first, since it makes the folder a run
        write_text(self.path / "recipe.yaml", recipe.to_yaml())
        write_json(self.path / "environment.json", environment)

    def update(self, **values: Any) -> None:
        """Change entries of `info`; `times` and `warnings` are added to."""
        info = self.info
        info["times"].update(values.pop("times", {}))
        info["warnings"] += [text for text in values.pop("warnings", []) if text not in info["warnings"]]
        write_json(self.path / "run.json", {**info, **values})

    def forget_scores(self) -> bool:
        """Remove what was measured of weights that the run no longer ships; return whether there was any.

        The pictures stay until they are drawn anew.
        """
        measured = [self.path / "scores.json", self.path / "evaluation" / "evaluation.json"]
        stale = [file for file in (*measured, *self.path.glob("applications/**/application.json")) if file.is_file()]
        for file in stale:
            file.unlink()
        return bool(stale)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from writing this run. The lock dies with its process, so none is ever stale.

        Raises:
            UserError: Another process writes it, or the folder holds other files than a run's.
        """
        self._require_folder()
        self.path.mkdir(parents=True, exist_ok=True)
        owner = self.path / "run.lock.json"
        lock = filelock.FileLock(self.path / "run.lock", timeout=0)
        try:
            lock.acquire()
        except filelock.Timeout:
            text = f"{self.path} is being written by {_owner(owner)}: wait for it, or choose another --out"
            raise UserError(text) from None
        try:
            write_json(owner, {"pid": os.getpid(), "host": socket.gethostname(), "since": now()})
            yield
        finally:
            owner.unlink(missing_ok=True)
            lock.release()

    def append_steps(self, steps: Sequence[Step]) -> None:
        """Append one JSON line a step to steps.jsonl; on the disk before a checkpoint that comes after."""
        path = self.path / "steps.jsonl"
        with disk_errors(path), path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(step)) + "\n" for step in steps)
            file.flush()
            os.fsync(file.fileno())

    def cut_steps(self, step: int) -> None:
        """Cut steps.jsonl back to the first `step` steps: the later ones are done again."""
        path = self.path / "steps.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
        write_text(path, "".join(lines[:step]))

    def _require_folder(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file: choose another --out")
        if not self.exists and self.path.is_dir() and any(map(_is_foreign, self.path.iterdir())):
            raise UserError(f"{self.path} holds other files and no run: choose another --out")

    def _difference(self, recipe: Recipe) -> str:
        old, new = _flat(self.recipe), _flat(recipe)
        unsaid = {name: was for name, was in LATER.items() if was is not None and old.get(name) is None}
        old |= unsaid  # by a run from before there was such a setting
        pairs = {name: (old.get(name, LATER.get(name)), new.get(name, LATER.get(name))) for name in {**new, **old}}
        shown = [f"{name}: {there} there, {here} here" for name, (there, here) in pairs.items() if there != here]
        return "; ".join(shown[:3]) or "other photos or another base model"


def missing(path: Path) -> UserError:
    """Say that a path is no run's, and which one beside it may have been meant."""
    if path.exists():
        return UserError(f"{path} holds no run: expected a folder that `dreambooth train` made")
    near = nearest(path)
    mend = f"did you mean {near}?" if near else "give a folder that `dreambooth train` made"
    return UserError(f"there is no run at {path}: {mend}")


def nearest(path: Path) -> Path | None:
    """Return the run beside a path whose name is most like its own, where one is."""
    near = difflib.get_close_matches(path.name, beside(path), n=1)
    return path.with_name(near[0]) if near else None


def beside(path: Path) -> list[str]:
    """Return the names of the runs in a path's parent folder."""
    return sorted(file.parent.name for file in path.parent.glob("*/run.json"))


def now() -> str:
    """Return the time as ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _flat(recipe: Recipe) -> dict[str, Any]:
    """Return what the identity counts, with the first subject's settings beside the others."""
    settings = counted(recipe)
    first, *others = settings.pop("subjects")
    return {**first, "further subjects": others, **settings}


def _is_foreign(file: Path) -> bool:
    return not file.name.startswith(("run.lock", "."))


def _owner(path: Path) -> str:
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return "another process"
    return f"process {owner['pid']} on {owner['host']} since {owner['since']}"
