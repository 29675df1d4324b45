"""What is FLUX.2's own: two pipelines, embedded guidance in dev, none in klein, true guidance in klein base."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu
from transformers import AutoTokenizer

from dreambooth.diffusion import SizedShift
from dreambooth.errors import UserError
from dreambooth.families import flux2
from tests.families.conftest import Model
from tests.families.stock import PROMPTS, second_call, unpacked

SIZES = {"height": 64, "width": 64}


@pytest.fixture(scope="module")
def dev(models: Callable[[str], Model]) -> Model:
    return models("flux2")


@pytest.fixture(scope="module")
def klein(models: Callable[[str], Model]) -> Model:
    return models("flux2-klein")


@pytest.fixture(scope="module")
def base(models: Callable[[str], Model]) -> Model:
    return models("flux2-klein-base")


@pytest.mark.parametrize("side", [512, 768, 1024])
def test_the_shift_is_that_of_sampling_in_many_steps(dev: Model, side: int) -> None:
    shift = flux2.process(dev.pipe).shift
    assert isinstance(shift, SizedShift)
    expected = math.exp(compute_empirical_mu((side // 16) ** 2, 200))
    assert shift.at((side // 8, side // 8)) == pytest.approx(expected, rel=1e-4)


def test_dev_alone_is_told_its_guidance(dev: Model, klein: Model) -> None:
    (row,) = flux2.encode_prompts(dev.pipe, ["a dog"])
    assert row["guidance"] == 1
    assert row["prompt_embeds_LD"].shape == (512, 24)
    (row,) = flux2.encode_prompts(klein.pipe, ["a dog"])
    assert row.keys() == {"prompt_embeds_LD"}


def test_the_guidance_of_dev_is_the_embedded_one(dev: Model) -> None:
    settings = flux2.guide(dev.pipe, 4.0, ["", ""])
    given, expected = second_call(dev.stock, dev.stock.transformer, **SIZES, **settings)
    cond = flux2.collate(flux2.encode_prompts(dev.pipe, PROMPTS))
    noisy_BCHW, t_B = unpacked(given["hidden_states"], 8, 8), given["timestep"]
    with torch.no_grad():
        at_1 = flux2.predict(dev.pipe.transformer, noisy_BCHW, t_B, cond)
        at_4 = flux2.predict(dev.pipe.transformer, noisy_BCHW, t_B, {**cond, "guidance_B": torch.tensor([4.0, 4.0])})
    torch.testing.assert_close(at_4, unpacked(expected, 8, 8), rtol=1e-5, atol=1e-5)
    assert (at_1 - at_4).abs().max() > 1e-4


@pytest.mark.parametrize("negatives", [["", ""], ["ugly", "a robot"]])
def test_klein_base_is_guided_away_from_the_negative_prompts(base: Model, negatives: list[str]) -> None:
    settings = flux2.guide(base.pipe, 4.0, negatives)
    calls = []
    hook = base.stock.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(kwargs), with_kwargs=True
    )
    with hook:
        _, expected = second_call(base.stock, base.stock.transformer, **SIZES, **settings)
    noisy_BCHW, t_B = unpacked(calls[2]["hidden_states"], 8, 8), calls[2]["timestep"]
    with torch.no_grad():
        towards, away = (
            flux2.predict(base.pipe.transformer, noisy_BCHW, t_B, flux2.collate(flux2.encode_prompts(base.pipe, texts)))
            for texts in (PROMPTS, negatives)
        )
    torch.testing.assert_close(away + 4.0 * (towards - away), unpacked(expected, 8, 8), rtol=1e-4, atol=1e-5)


def test_a_distilled_model_refuses_a_negative_prompt(dev: Model, klein: Model) -> None:
    for model in (dev, klein):
        with pytest.raises(UserError, match=r"^this FLUX.2 model takes no negative prompt: leave it out$"):
            flux2.guide(model.pipe, 1.0, ["ugly"])


def test_klein_ignores_the_scale_in_silence(klein: Model, caplog: pytest.LogCaptureFixture) -> None:
    plain, scaled = (
        second_call(klein.stock, klein.stock.transformer, **{**flux2.guide(klein.pipe, scale, ["", ""]), **SIZES})
        for scale in (1.0, 4.0)
    )
    assert torch.equal(plain[1], scaled[1])
    assert not caplog.records


def test_the_output_layer_of_each_single_block_is_among_the_targets(dev: Model) -> None:
    """Named one by one, and for the largest model: dev has 48 of them."""
    assert len(flux2.SINGLE_OUT) == 48
    targets = flux2.LORA_TARGETS["attention"]
    names = [name for name, _ in dev.pipe.transformer.named_modules() if name.endswith("attn.to_out")]
    assert [name for name in names if name in targets] == ["single_transformer_blocks.0.attn.to_out"]


def test_devs_tokenizer_is_loaded_without_the_processor_of_images(dev: Model, tmp_path: Path) -> None:
    """Which wants torchvision. With the chat template that lies beside it."""
    dev.stock.tokenizer.save_pretrained(tmp_path)
    alone = AutoTokenizer.from_pretrained(tmp_path)
    text = "a ohwx dog"
    assert alone(text).input_ids == dev.pipe.tokenizer(text).input_ids
    assert dev.pipe.tokenizer.chat_template == alone.chat_template
