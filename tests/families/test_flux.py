"""What is FLUX.1's own: its times, its guidance, its two readers of a prompt; and flows in general."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from diffusers.training_utils import compute_density_for_timestep_sampling

from dreambooth import loop, prior, sampling
from dreambooth.batches import draw
from dreambooth.diffusion import Flow, SizedShift
from dreambooth.errors import UserError
from dreambooth.families import flux
from dreambooth.samples import image_generator
from tests.families.conftest import Model
from tests.families.test_families import PROMPTS, recipe, second_call, unpacked
from tests.test_loop import make_loop

U = torch.linspace(0, 1 - 2**-24, 4001, dtype=torch.float64)


@pytest.fixture(scope="module")
def dev(models: Callable[[str], Model]) -> Model:
    return models("flux")


@pytest.fixture(scope="module")
def schnell(models: Callable[[str], Model]) -> Model:
    return models("flux-schnell")


# Times


@pytest.mark.parametrize("side", [256, 512, 768, 1024, 1440])
def test_the_shift_grows_with_the_image_as_in_sampling(dev: Model, side: int) -> None:
    """Sampling's own shift of a uniform ladder equals ours of uniform draws."""
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(dev.stock.scheduler.config)
    ladder = torch.linspace(1, 0.05, 20, dtype=torch.float64)
    scheduler.set_timesteps(20, sigmas=ladder.tolist(), mu=calculate_shift((side // 16) ** 2))
    ours = Flow.from_scheduler_config(scheduler.config, "uniform").sample_t(1 - ladder, (side // 8, side // 8))
    torch.testing.assert_close(ours.float(), scheduler.sigmas[:-1], rtol=1e-5, atol=1e-6)


def test_without_a_size_the_shift_is_that_of_the_largest_size(dev: Model, schnell: Model) -> None:
    process = flux.process(dev.pipe)
    assert isinstance(process.shift, SizedShift)
    assert process.shift.at(None) == pytest.approx(process.shift.at((128, 128))) == pytest.approx(math.exp(1.15))
    assert process.shift.at((128, 64)) == pytest.approx(process.shift.at((64, 128)))
    assert flux.process(schnell.pipe).shift == 1.0


def test_logit_normal_times_have_the_distribution_of_diffusers() -> None:
    torch.manual_seed(0)
    expected = compute_density_for_timestep_sampling("logit_normal", 200_000, logit_mean=0.0, logit_std=1.0).double()
    ours = Flow(draws="logit-normal").sample_t(U)
    shares = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    torch.testing.assert_close(ours.quantile(shares), expected.quantile(shares), rtol=0, atol=5e-3)


def test_a_shift_moves_the_mean_of_the_logits_alone() -> None:
    """Esser et al. 2024, eq. 23: logit-normal times of mean 0, shifted, are those of mean log(shift)."""
    plain, shifted = (Flow(shift, "logit-normal").sample_t(U[1:]).logit() for shift in (1.0, 3.0))
    torch.testing.assert_close(shifted - plain, torch.full_like(plain, math.log(3)), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("draws", ["uniform", "logit-normal"])
def test_no_time_is_without_noise(draws: str) -> None:
    ends = Flow(3.0, draws).sample_t(torch.tensor([0.0, 0.5, 1 - 2**-24]))  # type: ignore[arg-type]
    assert ends[0] == 1
    assert 0 < ends[2] < ends[1] < 1


def test_training_draws_its_times_for_the_size_of_its_latents(dev: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flux, "load", lambda source, dtype: dev.fresh())
    state, _ = make_loop(recipe(dev))
    batch, seen = draw(state.plan.slots(0), state.latents, 0, 0.1), []
    hook = state.trainee.register_forward_pre_hook(lambda module, args: seen.append(args[1]))
    with hook:
        loop.backward(state, batch)
    torch.testing.assert_close(seen[0], flux.process(dev.pipe).sample_t(batch.u_B, (8, 8)))
    assert not torch.equal(seen[0], flux.process(dev.pipe).sample_t(batch.u_B))


# Prompts and guidance


def test_dev_is_trained_at_guidance_1_and_schnell_at_none(dev: Model, schnell: Model) -> None:
    (row,) = flux.encode_prompts(dev.pipe, ["a dog"])
    assert row["guidance"] == 1
    assert row["prompt_embeds_LD"].shape == (512, 8)
    (row,) = flux.encode_prompts(schnell.pipe, ["a dog"])
    assert "guidance" not in row
    assert row["prompt_embeds_LD"].shape == (256, 8)


def test_the_guidance_of_dev_is_the_embedded_one(dev: Model) -> None:
    given, expected = second_call(dev.stock, dev.stock.transformer, height=64, width=64, guidance_scale=3.5)
    cond = flux.collate(flux.encode_prompts(dev.pipe, PROMPTS))
    noisy_BCHW, sigma = unpacked(given["hidden_states"], 8, 8), dev.stock.scheduler.sigmas[1].expand(2)
    with torch.no_grad():
        at_1 = flux.predict(dev.pipe.transformer, noisy_BCHW, sigma, cond)
        predicted = flux.predict(
            dev.pipe.transformer, noisy_BCHW, sigma, {**cond, "guidance_B": torch.tensor([3.5, 3.5])}
        )
    torch.testing.assert_close(predicted, unpacked(expected, 8, 8), rtol=1e-5, atol=1e-5)
    assert (at_1 - predicted).abs().max() > 1e-4


def test_t5_reads_what_clip_cannot(dev: Model) -> None:
    prompts = ["a dog " * 60 + ending for ending in ("cat", "robot")]
    one, other = flux.encode_prompts(dev.pipe, prompts)
    assert torch.equal(one["pooled_D"], other["pooled_D"])
    assert not torch.equal(one["prompt_embeds_LD"], other["prompt_embeds_LD"])


def test_a_negative_prompt_is_refused(dev: Model) -> None:
    settings = sampling.Sampling("euler", 1, 3.5, 64, "ugly")
    with pytest.raises(UserError, match=r"^FLUX.1 takes no negative prompt: leave it out$"):
        list(sampling.draw(dev.pipe, ["a dog"], [image_generator(0)], settings))


def test_t5_is_never_trained(dev: Model) -> None:
    assert list(flux.text_encoders(dev.pipe)) == ["text_encoder"]


# Class images


def test_the_manifest_of_class_images_names_the_stochastic_sampler(schnell: Model, tmp_path: Path) -> None:
    given = recipe(schnell, prior_count=1, prior_steps=2, prior_guidance=0.0)
    prior.plan(schnell.pipe, schnell.family, schnell.source, given, "dog", tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["sampler"] == "FlowMatchEulerDiscreteScheduler (stochastic)"
