"""Resumable states: trained weights and optimiser state as safetensors and JSON, written crash-safe."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dreambooth.errors import RunError
from dreambooth.files import atomic_folder, remove_folder, write_json


def save(folder: Path, step: int, weights: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, keep: int) -> Path:
    """Write the state after `step` steps to `folder/NNNNNN` and remove all others but the newest `keep` up to it.

    Raises:
        RunError: The disk is full. Earlier states are untouched.
    """
    path = folder / f"{step:06d}"
    tensors, rest = _flatten(optimizer.state_dict()["state"])
    scaler = _scaler(optimizer)
    arrays = {name: weight.detach().contiguous() for name, weight in weights.items()}
    described = {
        "step": step,
        "optimizer": rest,
        "groups": [_settings(group) for group in optimizer.param_groups],
        "scaler": scaler.state_dict() if scaler else None,
    }
    with atomic_folder(path) as temporary:
        save_file(arrays, temporary / "weights.safetensors")
        save_file(tensors, temporary / "optimizer.safetensors")
        write_json(temporary / "state.json", described)
    # A state of a later step is a damaged one, which this run went back behind.
    kept = [state for state in states(folder) if _step(state) <= step][-keep:]
    for state in states(folder):
        if state not in kept:
            remove_folder(state)
    return path


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
            state = _read(path)
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


def _read(path: Path) -> _State:
    described = json.loads((path / "state.json").read_text(encoding="utf-8"))
    tensors = load_file(path / "optimizer.safetensors")
    optimizer = _unflatten(tensors, described["optimizer"])
    weights = load_file(path / "weights.safetensors")
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
    tensors, rest = {}, {}
    for index, entries in state.items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{name}"] = value.detach().contiguous()
            else:
                rest[f"{index}.{name}"] = value
    return tensors, rest


def _unflatten(tensors: Mapping[str, Tensor], rest: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **rest}.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    return state
