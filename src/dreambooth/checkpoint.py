"""Resumable states: trained weights and optimiser state as safetensors and JSON, written crash-safe."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import psutil
import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from dreambooth import shards
from dreambooth.errors import RunError
from dreambooth.files import atomic_folder, remove_folder, write_json


def save(folder: Path, step: int, weights: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, keep: int) -> Path:
    """Write the state after `step` steps to `folder/NNNNNN` and remove all others but the newest `keep` up to it.

    Raises:
        RunError: The disk is full. Earlier states are untouched.
    """
    return _write(folder, _take(step, weights, optimizer), keep)


class Writer:
    """Saves states while the training goes on, from copies in host memory; one is written before the next is taken.

    A state that half of the free memory does not hold is written at once, a shard at a time. On the CPU there is
    nothing to gain: the copy and the writing take the cores that train.

    Args:
        folder: The states.
        keep: How many to keep.
        background: Whether to write in a thread of its own.
    """

    def __init__(self, folder: Path, keep: int, background: bool) -> None:
        self._folder = folder
        self._keep = keep
        self._pool = ThreadPoolExecutor(1) if background else None
        self._pending: Future[Path] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        if self._pool:
            self._pool.shutdown(wait=True)
        self._wait()

    def save(self, step: int, weights: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
        """Take the state after `step` steps as it is now, and write it.

        Raises:
            RunError: The disk is full: now, or when the state before was written.
        """
        self._wait()
        state = _take(step, weights, optimizer)
        if self._pool and 2 * state.bytes <= psutil.virtual_memory().available:
            self._pending = self._pool.submit(_write, self._folder, state.copied(), self._keep)
        else:
            save(self._folder, step, weights, optimizer, self._keep)

    def _wait(self) -> None:
        pending, self._pending = self._pending, None
        if pending:
            pending.result()


def states(folder: Path) -> list[Path]:
    """Return the states in `folder`, the oldest first. A folder without state.json is none."""
    found = [path for path in folder.glob("*") if path.name.isdigit() and (path / "state.json").is_file()]
    return sorted(found, key=_step)


def resume(
    folder: Path, weights: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, warn: Callable[[str], None]
) -> int:
    """Load the newest state in `folder` that can be read into `weights` (in place) and `optimizer`.

    Args:
        folder: The states.
        weights: Trained weights by name.
        optimizer: Their optimiser.
        warn: Is told of each damaged state that is passed over.

    Returns:
        Steps done in that state; 0 where there is none.

    Raises:
        RunError: There are states, and all of them are damaged.
    """
    found = states(folder)
    for path in reversed(found):
        try:
            state = _read(path, weights)
        except (OSError, ValueError, SafetensorError) as error:
            warn(f"checkpoint {path} is damaged ({error}): passed over")
            continue
        _apply(state, weights, optimizer)
        return state.step
    if found:
        raise RunError(f"every checkpoint in {folder} is damaged: remove the folder to train anew")
    return 0


@dataclass(frozen=True)
class _State:
    step: int
    weights: dict[str, Tensor]
    optimizer: dict[int, dict[str, Any]]
    groups: list[dict[str, Any]]
    scaler: dict[str, Any] | None

    @property
    def bytes(self) -> int:
        """Return what the tensors take."""
        leaves = tree_leaves([self.weights, self.optimizer])
        return sum(leaf.nbytes for leaf in leaves if isinstance(leaf, Tensor))

    def copied(self) -> _State:
        """Return the same state in host memory of its own."""
        optimizer = tree_map_only(Tensor, _copied, self.optimizer)  # 8-bit optimisers nest theirs
        weights = {name: _copied(weight) for name, weight in self.weights.items()}
        return replace(self, weights=weights, optimizer=optimizer)


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)


def _take(step: int, weights: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> _State:
    scaler = _scaler(optimizer)
    return _State(
        step,
        {name: weight.detach().contiguous() for name, weight in weights.items()},
        optimizer.state_dict()["state"],
        [_settings(group) for group in optimizer.param_groups],
        scaler.state_dict() if scaler else None,
    )


def _write(folder: Path, state: _State, keep: int) -> Path:
    path = folder / f"{state.step:06d}"
    tensors, rest = _flatten(state.optimizer)
    described = {"step": state.step, "optimizer": rest, "groups": state.groups, "scaler": state.scaler}
    with atomic_folder(path) as temporary:
        shards.write(state.weights, temporary / "weights.safetensors")
        shards.write(tensors, temporary / "optimizer.safetensors")
        write_json(temporary / "state.json", described)
    # A state of a later step is a damaged one, which this run went back behind.
    kept = [there for there in states(folder) if _step(there) <= state.step][-keep:]
    for there in states(folder):
        if there not in kept:
            remove_folder(there)
    return path


def _read(path: Path, wanted: Mapping[str, Tensor]) -> _State:
    described = json.loads((path / "state.json").read_text(encoding="utf-8"))
    if missing := {"step", "optimizer", "scaler"} - described.keys():
        raise ValueError(f"state.json lacks {', '.join(sorted(missing))}")
    tensors = shards.read(path / "optimizer.safetensors")
    optimizer = _unflatten(tensors, described["optimizer"])
    weights = shards.read(path / "weights.safetensors")
    if lacking := wanted.keys() - weights.keys():
        raise ValueError(f"it lacks {len(lacking)} weights, such as {min(lacking)}")
    return _State(described["step"], weights, optimizer, described.get("groups", []), described["scaler"])


def _apply(state: _State, weights: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(state.weights[name])
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state.optimizer})
    for group, settings in zip(optimizer.param_groups, state.groups, strict=False):
        group.update(settings)
    scaler = _scaler(optimizer)
    if scaler and state.scaler:
        scaler.load_state_dict(state.scaler)


def _scaler(optimizer: torch.optim.Optimizer) -> torch.amp.GradScaler | None:
    """Return the loss scaler that accelerate's optimiser holds in fp16."""
    return getattr(optimizer, "scaler", None)


def _settings(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return what some optimisers count in their groups beside the weights: Prodigy's rate, a schedule-free step."""
    return {name: value for name, value in group.items() if isinstance(value, int | float | str)}


def _step(path: Path) -> int:
    return int(path.name)


def _flatten(state: Mapping[int, Mapping[str, Any]]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Take tensors and plain values apart, each by its path: "3.exp_avg", "3.quantised.absmax1"."""
    tensors, rest = {}, {}
    places: set[int] = set()
    for path, value in _leaves(state):
        if isinstance(value, Tensor):
            # safetensors wants each tensor in memory of its own: 8-bit optimisers share their tables
            shared = value.data_ptr() in places
            tensors[path] = value.detach().clone() if shared else value.detach().contiguous()
            places.add(value.data_ptr())
        else:
            rest[path] = value
    return tensors, rest


def _leaves(tree: Mapping[Any, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def _unflatten(tensors: Mapping[str, Tensor], rest: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    state: dict[int, dict[str, Any]] = {}
    for path, value in {**tensors, **rest}.items():
        index, *between, name = path.split(".")
        place = state.setdefault(int(index), {})
        for step in between:
            place = place.setdefault(step, {})
        place[name] = value
    return state
