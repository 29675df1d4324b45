"""What is Z-Image's own: its count of the guidance scale, its fixed shift."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from dreambooth.diffusion import Flow
from dreambooth.families import z_image
from tests.families.conftest import Model
from tests.families.stock import PROMPTS, second_call


@pytest.fixture(scope="module")
def model(models: Callable[[str], Model]) -> Model:
    return models("z_image")


@pytest.mark.parametrize("negatives", [["", ""], ["a robot", ""]])
def test_a_guidance_scale_is_that_of_classifier_free_guidance(model: Model, negatives: list[str]) -> None:
    """negative + scale * (prompt - negative), as in other families; the pipeline counts from the prompt."""
    sizes = {"height": 64, "width": 64}
    given, expected_BCHW = second_call(
        model.stock, model.stock.transformer, **sizes, **z_image.guide(model.pipe, 3.0, negatives)
    )
    noisy_BCHW, t_B = given["x"][:2].squeeze(2), 1 - given["t"][:2]
    with torch.no_grad():
        towards, away = (
            z_image.predict(
                model.pipe.transformer, noisy_BCHW, t_B, z_image.collate(z_image.encode_prompts(model.pipe, texts))
            )
            for texts in (PROMPTS, negatives)
        )
    torch.testing.assert_close(away + 3.0 * (towards - away), expected_BCHW, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_no_guidance_costs_no_second_pass(model: Model, scale: float) -> None:
    settings = z_image.guide(model.pipe, scale, ["", ""])
    given, _ = second_call(model.stock, model.stock.transformer, height=64, width=64, **settings)
    assert len(given["x"]) == 2


def test_the_shift_is_the_schedulers_whatever_the_size(model: Model) -> None:
    assert z_image.process(model.pipe) == Flow(6.0, "logit-normal")
