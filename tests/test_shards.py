"""Tensors in several files: whole again when they are read, and never copied all at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import torch as safetensors
from torch import Tensor

from dreambooth import checkpoint, shards
from tests.test_optimizers import make

NAMES = [f"layer.{index}" for index in range(7)]
TENSORS = {name: torch.full((16, 16), index / 3) for index, name in enumerate(NAMES)}
EACH = 16 * 16 * 4


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Shards of two of `TENSORS`; return the bytes of each that is written."""
    written: list[int] = []
    save = safetensors.save_file

    def counting(tensors: dict[str, Tensor], *given: Any, **named: Any) -> None:
        written.append(sum(tensor.nbytes for tensor in tensors.values()))
        save(tensors, *given, **named)

    monkeypatch.setattr(shards, "SHARD", 2 * EACH)
    monkeypatch.setattr(shards, "save_file", counting)
    return written


def test_what_fits_is_one_file(tmp_path: Path) -> None:
    shards.write(TENSORS, tmp_path / "model.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_nothing_is_a_file_too(tmp_path: Path) -> None:
    shards.write({}, tmp_path / "model.safetensors")
    assert shards.read(tmp_path / "model.safetensors") == {}


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_shards_come_back_whole(dtype: torch.dtype | None, small: list[int], tmp_path: Path) -> None:
    split = shards.write(TENSORS, tmp_path / "model.safetensors", dtype)
    found = shards.read(tmp_path / "model.safetensors")
    assert split.is_sharded
    assert len(list(tmp_path.iterdir())) == 4
    assert max(small) <= 2 * EACH
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], TENSORS[name].to(dtype or torch.float32)) for name in NAMES)


def test_a_missing_shard_is_found_out(small: list[int], tmp_path: Path) -> None:
    shards.write(TENSORS, tmp_path / "model.safetensors")
    (tmp_path / "model-00004-of-00004.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="lacks a part"):
        shards.read(tmp_path / "model.safetensors")
    with pytest.raises(FileNotFoundError, match="lacks a part"):
        shards.read(tmp_path / "other.safetensors")


@pytest.mark.parametrize("name", ["adamw", "adamw-8bit", "prodigy"])
def test_a_state_in_shards_goes_on_bit_for_bit(name: str, small: list[int], tmp_path: Path) -> None:
    first, second = make(name), make(name)
    first.steps(3)
    checkpoint.save(tmp_path, 3, first.weights, first.optimizer, keep=1)
    assert len(small) > 2
    assert checkpoint.resume(tmp_path, second.weights, second.optimizer, pytest.fail) == 3
    assert second.steps(4) == first.steps(4)


def test_a_state_without_a_shard_is_passed_over(small: list[int], tmp_path: Path) -> None:
    fit, said = make("adamw"), []
    for step in (1, 2):
        fit.steps(1)
        newest = checkpoint.save(tmp_path, step, fit.weights, fit.optimizer, keep=2)
    next(newest.glob("optimizer-00001-*")).unlink()
    assert checkpoint.resume(tmp_path, fit.weights, fit.optimizer, said.append) == 1
    assert len(said) == 1


def test_a_state_that_memory_does_not_hold_twice_is_written_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = make("adamw")
    fit.steps(1)
    taken = checkpoint._take(1, fit.weights, fit.optimizer).bytes

    class Memory:
        available = 2 * taken - 1

    monkeypatch.setattr(checkpoint.psutil, "virtual_memory", Memory)
    monkeypatch.setattr(checkpoint._State, "copied", lambda state: pytest.fail("it was copied"))
    with checkpoint.Writer(tmp_path, 2, background=True) as writer:
        writer.save(1, fit.weights, fit.optimizer)
        assert len(checkpoint.states(tmp_path)) == 1
