"""Resumable states: trained weights and optimiser state as safetensors and JSON, written crash-safe."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dreambooth.files import atomic_folder, write_json


def save(folder: Path, step: int, weights: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, keep: int) -> Path:
    """Write the state after `step` steps to `folder/NNNNNN` and remove all but the newest `keep` states.

    Raises:
        RunError: The disk is full. Earlier states are untouched.
    """
    path = folder / f"{step:06d}"
    tensors, rest = _flatten(optimizer.state_dict()["state"])
    with atomic_folder(path) as temporary:
        save_file({name: weight.detach().contiguous() for name, weight in weights.items()}, temporary / "weights.safetensors")
        save_file(tensors, temporary / "optimizer.safetensors")
        write_json(temporary / "state.json", {"step": step, "optimizer": rest})
    for old in _states(folder)[:-keep]:
        shutil.rmtree(old)
    return path


def latest(folder: Path) -> Path | None:
    """Return the newest state in `folder`, or None."""
    states = _states(folder)
    return states[-1] if states else None


def load(path: Path, weights: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> int:
    """Load a state into `weights` (in place) and `optimizer`, and return its step."""
    state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    saved = load_file(path / "weights.safetensors")
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(saved[name])
    tensors = load_file(path / "optimizer.safetensors")
    whole = optimizer.state_dict()
    optimizer.load_state_dict({**whole, "state": _unflatten(tensors, state["optimizer"])})
    return int(state["step"])


def _states(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("[0-9]*") if (path / "state.json").is_file())


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
