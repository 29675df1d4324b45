"""What is Sana's own: its instruction, its mask, its samplers, an autoencoder that draws nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from dreambooth import sampling
from dreambooth.diffusion import Flow
from dreambooth.errors import UserError
from dreambooth.families import sana
from dreambooth.models import resolve
from tests.families.conftest import Model
from tests.families.stock import PROMPTS, second_call


@pytest.fixture(scope="module")
def model(models: Callable[[str], Model]) -> Model:
    return models("sana")


# Prompts


def test_the_instruction_is_off(model: Model) -> None:
    """The stock pipeline puts it before prompts where it is not told otherwise."""
    settings = {"height": 64, "width": 64, **sana.guide(model.stock, 1.0, ["", ""])}
    given, _ = second_call(model.stock, model.stock.transformer, **settings)
    instruction = settings.pop("complex_human_instruction", "missing")
    instructed, _ = second_call(model.stock, model.stock.transformer, **settings)
    assert instruction is None
    ours = sana.collate(sana.encode_prompts(model.pipe, PROMPTS))
    torch.testing.assert_close(ours["prompt_embeds_BLD"], given["encoder_hidden_states"])
    assert not torch.allclose(instructed["encoder_hidden_states"], given["encoder_hidden_states"])


def test_prompts_are_read_in_small_letters(model: Model) -> None:
    one, other = sana.encode_prompts(model.pipe, ["A Dog", "a dog"])
    assert torch.equal(one["prompt_embeds_LD"], other["prompt_embeds_LD"])


def test_what_the_mask_leaves_out_is_not_read(model: Model) -> None:
    noisy_BCHW = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    t_B = torch.tensor([0.3, 0.8])
    cond = sana.collate(sana.encode_prompts(model.pipe, PROMPTS))
    assert cond["mask_BL"].sum(dim=1).tolist() == [len(model.pipe.tokenizer(each).input_ids) for each in PROMPTS]
    embeds_BLD = cond["prompt_embeds_BLD"]
    other = {**cond, "prompt_embeds_BLD": torch.where(cond["mask_BL"][..., None].bool(), embeds_BLD, 7.0)}
    with torch.no_grad():
        first_BCHW = sana.predict(model.pipe.transformer, noisy_BCHW, t_B, cond)
        second_BCHW = sana.predict(model.pipe.transformer, noisy_BCHW, t_B, other)
    torch.testing.assert_close(first_BCHW, second_BCHW)


# Images


def test_the_autoencoder_draws_nothing(model: Model) -> None:
    pixels_BCHW = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    encoded = sana.encode_images(model.pipe, pixels_BCHW)
    torch.testing.assert_close(encoded["mean_BCHW"], model.stock.vae.encode(pixels_BCHW).latent * 0.41407)
    assert torch.equal(encoded["std_BCHW"], torch.zeros(1, 4, 8, 8))


def test_in_half_precision_gemma_and_the_autoencoder_are_bfloat16(model: Model) -> None:
    pipe = sana.load(model.source, torch.float16)
    kinds = (pipe.transformer.dtype, pipe.text_encoder.dtype, pipe.vae.dtype)
    assert kinds == (torch.float16, torch.bfloat16, torch.bfloat16)


# Times and samplers


def test_times_are_logit_normal_and_shifted_by_3(model: Model) -> None:
    assert sana.process(model.pipe) == Flow(3.0, "logit-normal")


def test_euler_is_eulers_step(model: Model) -> None:
    chosen = sampling.scheduler(model.pipe, "euler")
    chosen.set_timesteps(5)
    latents, predicted = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for step, t in enumerate(chosen.timesteps[:3]):
        expected = latents + (chosen.sigmas[step + 1] - chosen.sigmas[step]) * predicted
        latents = chosen.step(predicted, t, latents).prev_sample
        torch.testing.assert_close(latents, expected, rtol=1e-4, atol=1e-5)


def test_class_images_are_drawn_on_the_models_own_schedule(model: Model) -> None:
    """A ladder of times without a shift, shifted as those of training."""
    chosen = sana.class_sampler(model.pipe)
    ladder = torch.linspace(1, 0.05, 20, dtype=torch.float64)
    chosen.set_timesteps(20, sigmas=ladder.tolist())
    ours = Flow(sana.process(model.pipe).shift, "uniform").sample_t(1 - ladder)
    torch.testing.assert_close(chosen.sigmas[:-1], ours.float())


def test_a_model_with_another_sampler_is_refused(model: Model, tmp_path: Path) -> None:
    pipe = model.fresh()
    pipe.scheduler = FlowMatchEulerDiscreteScheduler()
    pipe.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"has a FlowMatchEulerDiscreteScheduler, not Sana's.*: choose sana$"):
        sana.load(resolve(str(tmp_path)), torch.float32)
