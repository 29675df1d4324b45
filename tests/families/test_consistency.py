"""Consistency guidance, against the formula on what the stock pipeline's sampler is given without it."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from dreambooth import consistency, methods
from dreambooth.errors import UserError
from dreambooth.families import common
from tests.families.conftest import Model
from tests.families.stock import draw_two, spied_steps
from tests.families.test_families import LED_AWAY, recipe

TOLD = ("flux", "flux-schnell", "flux2")
"""Families that predict once: told the guidance, or without any."""
SHARE = 0.4


@pytest.fixture
def tuned(request: pytest.FixtureRequest, models: Callable[[str], Model]) -> tuple[Model, DiffusionPipeline]:
    """A model with a LoRA that changes something."""
    model = models(request.param)
    pipe = model.fresh()
    attach(model, pipe)
    return model, pipe


def attach(model: Model, pipe: DiffusionPipeline, **values: Any) -> None:
    for group in methods.get("lora").attach(pipe, model.family, recipe(model, **values)):
        for name, weight in group.parameters.items():
            if ".lora_B." in name:
                weight.data.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))


def first_prediction(model: Model, pipe: DiffusionPipeline, guidance: float, negatives: list[str]) -> Tensor:
    """What the sampler is given at the first step, where all draw from the same noise."""
    side = model.side
    with spied_steps(pipe) as steps:
        draw_two(pipe, height=side, width=side, **model.family.guide(model.pipe, guidance, negatives))
    prediction: Tensor = steps[0][0]
    return prediction[:, :3] if model.name == "deepfloyd" else prediction  # the rest is a variance, not guided


@pytest.mark.parametrize("negative", ["", "a blurry cat"])
@pytest.mark.parametrize("tuned", [name for name in LED_AWAY if name != "qwen_image"], indirect=True)
def test_it_is_the_papers_formula(tuned: tuple[Model, DiffusionPipeline], negative: str) -> None:
    """u + g (c - u) + w (l - c), of which the stock pipeline gives the first two terms and, unguided, l and c."""
    model, pipe = tuned
    frozen, negatives, scale = model.stock, [negative] * 2, 3.0
    guided = first_prediction(model, frozen, scale, negatives)
    towards = first_prediction(model, frozen, 1.0, negatives)
    changed = first_prediction(model, pipe, 1.0, negatives) - towards
    with consistency.guided(pipe, model.family, negatives, SHARE):
        found = first_prediction(model, pipe, scale, negatives)
    assert changed.abs().max() > 1e-2
    torch.testing.assert_close(found, guided + scale * SHARE * changed, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("negative", ["", "a blurry cat"])
@pytest.mark.parametrize("tuned", ["qwen_image"], indirect=True)
def test_qwen_image_rescales_it_like_its_own(tuned: tuple[Model, DiffusionPipeline], negative: str) -> None:
    """Its pipeline gives a guided prediction the length that the prompted one has at each token."""
    model, pipe = tuned
    negatives, scale = [negative] * 2, 3.0
    prompted, unprompted = predictions(model, model.stock, scale, negatives)
    changed = predictions(model, pipe, scale, negatives)[0] - prompted
    towards = prompted + SHARE * changed
    led = unprompted + scale * (towards - unprompted)
    with consistency.guided(pipe, model.family, negatives, SHARE):
        found = first_prediction(model, pipe, scale, negatives)
    assert changed.abs().max() > 1e-2
    expected = led * towards.norm(dim=-1, keepdim=True) / led.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def predictions(model: Model, pipe: DiffusionPipeline, guidance: float, negatives: list[str]) -> list[Tensor]:
    """What the denoiser says at the first step: with the prompts, without them."""
    said: list[Tensor] = []
    with model.family.denoiser(pipe).register_forward_hook(lambda module, args, output: said.append(output[0])):
        first_prediction(model, pipe, guidance, negatives)
    return said[:2]


@pytest.mark.parametrize("tuned", TOLD, indirect=True)
def test_where_the_model_predicts_once_it_is_a_share_of_what_has_changed(
    tuned: tuple[Model, DiffusionPipeline],
) -> None:
    model, pipe = tuned
    none = ["", ""]
    frozen = first_prediction(model, model.stock, 3.0, none)
    changed = first_prediction(model, pipe, 3.0, none) - frozen
    with consistency.guided(pipe, model.family, none, SHARE):
        found = first_prediction(model, pipe, 3.0, none)
    assert changed.abs().max() > 1e-2
    torch.testing.assert_close(found, frozen + SHARE * changed, rtol=1e-4, atol=1e-4)


def test_prompts_are_read_where_the_text_encoder_is_or_is_brought_layer_by_layer() -> None:
    """As in a pipeline that its device does not hold, whose weights are nowhere between two calls."""
    cuda, cpu, meta = (torch.device(name) for name in ("cuda", "cpu", "meta"))
    for lies, reads in ((cpu, cpu), (cuda, cuda), (meta, cuda)):
        pipe: Any = SimpleNamespace(text_encoder=SimpleNamespace(device=lies), _execution_device=cuda)
        assert common.reads_on(pipe) == reads


@pytest.mark.parametrize("tuned", ["sd"], indirect=True)
def test_afterwards_the_pipeline_is_as_it_was(tuned: tuple[Model, DiffusionPipeline]) -> None:
    model, pipe = tuned
    before = first_prediction(model, pipe, 3.0, ["", ""])
    with pytest.raises(KeyboardInterrupt), consistency.guided(pipe, model.family, ["", ""], SHARE):
        raise KeyboardInterrupt
    assert torch.equal(first_prediction(model, pipe, 3.0, ["", ""]), before)


def test_a_trained_text_encoder_is_refused(models: Callable[[str], Model]) -> None:
    model = models("sd")
    pipe = model.fresh()
    attach(model, pipe, train_text_encoder=True)
    with (
        pytest.raises(UserError, match="a text encoder has an adapter too"),
        consistency.guided(pipe, model.family, [""], 1.0),
    ):
        pytest.fail("entered")
