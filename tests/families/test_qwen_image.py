"""What is Qwen-Image's own: its template, its guidance, a shift up to 8192 tokens."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.qwenimage.pipeline_qwenimage import calculate_shift

from dreambooth.diffusion import Flow
from dreambooth.families import qwen_image
from tests.families.conftest import Model
from tests.families.stock import PROMPTS, second_call, unpacked


@pytest.fixture(scope="module")
def model(models: Callable[[str], Model]) -> Model:
    return models("qwen_image")


def test_the_system_prompt_is_not_part_of_a_row(model: Model) -> None:
    """34 tokens before the prompt are read and left out, the five behind it are kept."""
    tokens = len(model.pipe.tokenizer("a dog").input_ids)
    (row,) = qwen_image.encode_prompts(model.pipe, ["a dog"])
    assert len(row["prompt_embeds_LD"]) == tokens + 5


def test_guidance_goes_away_from_a_blank_and_keeps_each_tokens_length(model: Model) -> None:
    settings = qwen_image.guide(model.pipe, 4.0, ["", "a robot"])
    assert settings["negative_prompt"] == [" ", "a robot"]
    calls = []
    hook = model.stock.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(kwargs), with_kwargs=True
    )
    with hook:
        _, expected_BLD = second_call(model.stock, model.stock.transformer, height=64, width=64, **settings)
    noisy_BCHW, t_B = unpacked(calls[2]["hidden_states"], 8, 8), calls[2]["timestep"]
    with torch.no_grad():
        towards, away = (
            qwen_image.QwenImagePipeline._pack_latents(
                qwen_image.predict(
                    model.pipe.transformer,
                    noisy_BCHW,
                    t_B,
                    qwen_image.collate(qwen_image.encode_prompts(model.pipe, texts)),
                ),
                *(2, 4, 8, 8),
            )
            for texts in (PROMPTS, [" ", "a robot"])
        )
    guided = away + 4.0 * (towards - away)
    scaled = guided * towards.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(scaled, expected_BLD, rtol=1e-4, atol=1e-5)


def test_without_guidance_there_is_nothing_to_go_away_from(model: Model) -> None:
    assert qwen_image.guide(model.pipe, 1.0, ["ugly"])["negative_prompt"] is None


@pytest.mark.parametrize("side", [512, 1024, 1328])
def test_the_shift_grows_with_the_image_as_in_sampling(model: Model, side: int) -> None:
    """Up to the stretch of sampling's last steps, which training has no use for."""
    config = dict(model.stock.scheduler.config)
    scheduler = FlowMatchEulerDiscreteScheduler.from_config({**config, "shift_terminal": None})
    ladder = torch.linspace(1, 0.05, 20, dtype=torch.float64)
    mu = calculate_shift((side // 16) ** 2, 256, config["max_image_seq_len"], 0.5, config["max_shift"])
    scheduler.set_timesteps(20, sigmas=ladder.tolist(), mu=mu)
    ours = Flow(qwen_image.process(model.pipe).shift, "uniform").sample_t(1 - ladder, (side // 8, side // 8))
    torch.testing.assert_close(ours.float(), scheduler.sigmas[:-1], rtol=1e-5, atol=1e-6)
