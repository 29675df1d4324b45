"""Batches that are too large for the device are drawn in parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from dreambooth import families
from dreambooth.models import resolve
from dreambooth.samples import image_generator
from dreambooth.sampling import Sampling, draw

TEXTS = ["a dog", "a dog in the snow", "a red dog"]


def pictures(pipe: DiffusionPipeline) -> list[np.ndarray]:
    drawn = draw(pipe, TEXTS, [image_generator(seed) for seed in range(3)], Sampling("euler", 2, 2.0, 32))
    return [np.asarray(image, float) for image in drawn]


@pytest.fixture
def pipe(tiny_sd: Path) -> DiffusionPipeline:
    source = resolve(str(tiny_sd))
    return families.get(source.family).load(source, torch.float32)


def test_a_batch_that_does_not_fit_is_halved_until_it_does(
    pipe: DiffusionPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, call, sizes = pictures(pipe), type(pipe).__call__, []

    def small(self: DiffusionPipeline, *, prompt: list[str], generator: list[torch.Generator], **given: Any) -> Any:
        sizes.append(len(prompt))
        if len(prompt) > 1:
            torch.randn(1, generator=generator[0])  # the latents were drawn before the memory ran out
            raise torch.OutOfMemoryError
        return call(self, prompt=prompt, generator=generator, **given)

    monkeypatch.setattr(type(pipe), "__call__", small)
    for one, other in zip(whole, pictures(pipe), strict=True):
        assert np.abs(one - other).max() <= 1
    assert sizes == [3, 1, 2, 1, 1]


def test_one_picture_that_does_not_fit_is_told(pipe: DiffusionPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(type(pipe), "__call__", none)
    with pytest.raises(torch.OutOfMemoryError):
        pictures(pipe)
