"""A pipeline lies whole on a device that holds it, and goes there part by part where it does not fit."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from dreambooth import families, placing
from dreambooth.models import resolve

CPU = torch.device("cpu")


@pytest.mark.parametrize(("room", "whole"), [(2**31 + 10, True), (2**31 + 9, False)])
def test_it_fits_with_something_in_reserve(room: int, whole: bool) -> None:
    assert placing.fits(10, room) is whole


def test_the_weights_are_counted_once_each(tiny_sd: Path) -> None:
    source = resolve(str(tiny_sd))
    family = families.get(source.family)
    full, half = (family.load(source, dtype) for dtype in (torch.float32, torch.bfloat16))
    files = sum(file.stat().st_size for file in tiny_sd.rglob("*.safetensors"))
    gpu = torch.device("cuda")
    whole, less = (sum(placing._size(part, gpu) for part in placing.parts(pipe)) for pipe in (full, half))
    assert whole == pytest.approx(files, rel=0.05)
    assert less < 0.6 * whole
    assert placing._size(full.unet, CPU) == 0  # it is there already
    assert placing._size(full.unet, None) == placing._size(full.unet, gpu)


LARGE = 4 * 4 + 4 * 4 * 4
"""Bytes of the larger part below."""


@pytest.mark.parametrize(
    ("room", "way"),
    [
        (None, "to"),
        (placing.RESERVE + LARGE, "enable_model_cpu_offload"),
        (placing.RESERVE + LARGE - 1, "enable_sequential_cpu_offload"),
    ],
)
def test_where_it_does_not_fit_it_goes_part_by_part(
    room: int | None, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placing, "free", lambda device: room)
    monkeypatch.setattr(placing, "_size", lambda part, there: 4 * sum(map(torch.numel, part.parameters())))
    pipe = Mock(components={"unet": torch.nn.Linear(4, 4), "vae": torch.nn.Linear(2, 2), "scheduler": "none"})
    pipe.to.return_value = pipe
    assert placing.place(pipe, CPU) is pipe
    ways = ("to", "enable_model_cpu_offload", "enable_sequential_cpu_offload")
    called = [name for name in ways if getattr(pipe, name).called]
    assert called == [way]


def test_only_what_was_placed_part_by_part_is_gathered() -> None:
    part = torch.nn.Linear(2, 2)
    pipe = Mock(components={"unet": part})
    assert not placing.gather(pipe)
    pipe.remove_all_hooks.assert_not_called()
    part._hf_hook = "a hook"
    assert placing.gather(pipe)
    pipe.remove_all_hooks.assert_called_once_with()
    pipe.to.assert_called_once_with("cpu")
