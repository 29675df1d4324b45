"""A pipeline lies whole on a device that holds it, and goes there part by part where it does not fit."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from dreambooth import families, placing
from dreambooth.models import resolve

CPU = torch.device("cpu")


@pytest.mark.parametrize(("room", "whole"), [(None, True), (2**31 + 10, True), (2**31 + 9, False)])
def test_it_fits_with_something_in_reserve(room: int | None, whole: bool) -> None:
    assert placing.fits(10, room) is whole


def test_the_weights_are_counted_once_each(tiny_sd: Path) -> None:
    source = resolve(str(tiny_sd))
    family = families.get(source.family)
    full, half = (family.load(source, dtype) for dtype in (torch.float32, torch.bfloat16))
    files = sum(file.stat().st_size for file in tiny_sd.rglob("*.safetensors"))
    assert placing.weights(full) == pytest.approx(files, rel=0.05)
    assert placing.weights(half) < 0.6 * placing.weights(full)


@pytest.mark.parametrize("room", [None, 0])
def test_where_it_does_not_fit_it_goes_part_by_part(room: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placing, "free", lambda device: room)
    pipe = Mock(components={"unet": torch.nn.Linear(2, 2)})
    pipe.to.return_value = pipe
    assert placing.place(pipe, CPU) is pipe
    if room is None:
        pipe.to.assert_called_once_with(CPU)
        pipe.enable_model_cpu_offload.assert_not_called()
    else:
        pipe.enable_model_cpu_offload.assert_called_once_with(device=CPU)
        pipe.to.assert_not_called()


def test_only_what_was_placed_part_by_part_is_gathered() -> None:
    part = torch.nn.Linear(2, 2)
    pipe = Mock(components={"unet": part})
    placing.gather(pipe)
    pipe.remove_all_hooks.assert_not_called()
    part._hf_hook = "a hook"
    placing.gather(pipe)
    pipe.remove_all_hooks.assert_called_once_with()
    pipe.to.assert_called_once_with("cpu")
