"""The diffusion processes against diffusers' schedulers, and their algebra."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import compute_snr

from dreambooth.diffusion import Ddpm, Flow
from dreambooth.errors import UserError

SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
STEPS = torch.tensor([0, 1, 250, 731, 999])


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def scheduler(request):
    return DDPMScheduler(**SCHEDULE, prediction_type=request.param)


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(len(STEPS), 3, 4, 5, generator=generator) for _ in range(2)]


def test_ddpm_mixes_as_diffusers_does(scheduler, images):
    x, noise = images
    process = Ddpm.from_scheduler_config(scheduler.config)
    torch.testing.assert_close(process.mix(x, noise, STEPS), scheduler.add_noise(x, noise, STEPS))


def test_ddpm_target_is_the_noise_or_diffusers_velocity(scheduler, images):
    x, noise = images
    target = Ddpm.from_scheduler_config(scheduler.config).target(x, noise, STEPS)
    if scheduler.config.prediction_type == "epsilon":
        assert torch.equal(target, noise)
    else:
        torch.testing.assert_close(target, scheduler.get_velocity(x, noise, STEPS))


@pytest.mark.parametrize("gamma", [1.0, 5.0, 1e9])
def test_ddpm_weight_is_the_min_snr_of_diffusers_examples(scheduler, gamma):
    snr = compute_snr(scheduler, STEPS)
    divisor = snr if scheduler.config.prediction_type == "epsilon" else snr + 1
    expected = torch.stack([snr, torch.full_like(snr, gamma)]).amin(dim=0) / divisor
    process = Ddpm.from_scheduler_config(scheduler.config)
    torch.testing.assert_close(process.weight(STEPS, gamma), expected)


def test_ddpm_weight_is_one_without_min_snr(scheduler):
    assert torch.equal(Ddpm.from_scheduler_config(scheduler.config).weight(STEPS, None), torch.ones(5))


def test_both_predictions_weigh_the_error_of_the_clean_image_alike():
    """The min-SNR paper's point: w_eps * SNR = w_v * (SNR + 1) = min(SNR, gamma)."""
    alphas = DDPMScheduler(**SCHEDULE).alphas_cumprod
    snr = (alphas / (1 - alphas))[STEPS]
    epsilon = Ddpm(alphas, "epsilon").weight(STEPS, 5.0) * snr
    velocity = Ddpm(alphas, "v").weight(STEPS, 5.0) * (snr + 1)
    torch.testing.assert_close(epsilon, velocity)
    torch.testing.assert_close(epsilon, snr.clamp(max=5.0))


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_weight_is_finite_at_zero_terminal_snr(prediction):
    alphas = DDPMScheduler(**SCHEDULE, rescale_betas_zero_snr=True).alphas_cumprod.clone()
    alphas[-1] = 0
    weight = Ddpm(alphas, prediction).weight(torch.tensor([999]), 5.0)
    assert weight.tolist() == [1.0 if prediction == "epsilon" else 0.0]


def test_ddpm_draws_every_step_equally_often():
    process = Ddpm(torch.linspace(0.9, 0.1, 1000), "epsilon")
    u = torch.arange(10_000, dtype=torch.float64) / 10_000
    t = process.sample_t(u)
    assert t.dtype == torch.int64
    assert torch.equal(t.bincount(), torch.full((1000,), 10))
    largest = torch.nextafter(torch.tensor([1.0]), torch.tensor([0.0]))
    assert process.sample_t(largest).item() == 999


def test_the_clean_image_follows_from_mixture_and_velocity(images):
    """Salimans & Ho: x = alpha z - sigma v."""
    x, noise = images
    process = Ddpm(DDPMScheduler(**SCHEDULE).alphas_cumprod, "v")
    alpha = process.alphas_cumprod_T[STEPS].view(-1, 1, 1, 1)
    back = alpha.sqrt() * process.mix(x, noise, STEPS) - (1 - alpha).sqrt() * process.target(x, noise, STEPS)
    torch.testing.assert_close(back, x)


def test_ddpm_refuses_another_prediction():
    with pytest.raises(UserError) as refusal:
        Ddpm.from_scheduler_config({"prediction_type": "sample"})
    assert str(refusal.value) == "the model has prediction_type 'sample': only epsilon and v_prediction can be trained"


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_mixes_as_diffusers_does(images, shift):
    x, noise = images
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    index = torch.tensor([0, 1, 300, 700, 999])
    expected = scheduler.scale_noise(x, scheduler.timesteps[index], noise)
    torch.testing.assert_close(Flow(shift).mix(x, noise, scheduler.sigmas[index]), expected)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_shifts_sigma_as_diffusers_does(shift):
    linear = torch.linspace(1, 1000, 1000).flip(0) / 1000
    expected = FlowMatchEulerDiscreteScheduler(shift=shift).sigmas
    torch.testing.assert_close(Flow(shift).sample_t(1 - linear), expected)


def test_flow_sigma_is_never_zero():
    u = torch.tensor([0.0, 0.5, 1 - 2**-24])
    sigma = Flow(3.0).sample_t(u)
    assert sigma[0] == 1
    assert 0 < sigma[2] < sigma[1] < 1


def test_flow_target_is_the_derivative_of_the_mixture(images):
    x, noise = (image.double() for image in images)
    sigma = torch.tensor([0.1, 0.2, 0.3, 0.6, 0.9], dtype=torch.float64)
    slope = (Flow().mix(x, noise, sigma + 1e-3) - Flow().mix(x, noise, sigma)) / 1e-3
    torch.testing.assert_close(Flow().target(x, noise, sigma), slope)


def test_flow_weighs_all_alike_and_refuses_min_snr():
    assert torch.equal(Flow().weight(torch.rand(3), None), torch.ones(3))
    with pytest.raises(UserError) as refusal:
        Flow().weight(torch.rand(3), 5.0)
    expected = "min-SNR weighting is defined for epsilon- and v-prediction, not for flow: leave it unset"
    assert str(refusal.value) == expected


@pytest.mark.parametrize("process", [Ddpm(torch.linspace(0.9, 0.1, 1000), "v"), Flow()])
def test_the_dtype_of_the_latents_is_kept(process):
    x, noise = torch.randn(2, 2, 4, 8, 8).bfloat16()
    t = process.sample_t(torch.tensor([0.25, 0.75]))
    assert process.mix(x, noise, t).dtype == process.target(x, noise, t).dtype == torch.bfloat16
