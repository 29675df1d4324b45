"""The loss and its gradients against separately written references, on a debug model and stock diffusers parts."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import DDPMScheduler, DiffusionPipeline
from diffusers.training_utils import compute_snr
from torch import Tensor

from dreambooth import families, loop, methods
from dreambooth.batches import Item, Plan, by_size, draw, share
from dreambooth.cache import Memo, Row, encode_prompt
from dreambooth.families import Family
from dreambooth.geometry import Size
from dreambooth.models import resolve
from dreambooth.photos import Photo
from dreambooth.recipe import Recipe

NOUN = "dog"
SQUARE = (32, 32)
SHAPES = (SQUARE, (48, 24), (24, 40))
"""Photos of three shapes."""


def recipe_for(model: Path, **values: object) -> Recipe:
    defaults = {
        "model": str(model),
        "method": "lora",
        "steps": 4,
        "learning_rate": 1e-2,
        "text_encoder_learning_rate": 1e-3,
        "targets": "attention",
        "rank": 2,
        "alpha": 2.0,
        "precision": "fp32",
        "resolution": 32,
        "prior_weight": 1.0,
        "prior_loss": "images",
        "subjects": [{"photos": ".", "class_noun": NOUN, "identifier": "ohwx"}],
    }
    return Recipe.of({**defaults, **values})


def random_latents(row: Row, channels: int = 4) -> dict[str, Tensor]:
    source = torch.Generator().manual_seed(sum(map(ord, row.photo.id)))
    shape = (channels, row.size[1] // 4, row.size[0] // 4)
    mean_CHW, std_CHW = torch.randn(shape, generator=source), torch.rand(shape, generator=source)
    return {"mean_CHW": mean_CHW, "std_CHW": std_CHW, "view_4": torch.rand(4, generator=source) * 64}


def pool(prompt: str, sizes: Sequence[Size]) -> list[Item]:
    """An item for each size."""
    photos = [Photo(f"{prompt}{k}", Path("x.png"), size, None, None) for k, size in enumerate(sizes)]
    return [Item((Row(photo, photo.size),), prompt) for photo in photos]


def make_loop(recipe: Recipe, sizes: Sequence[Size] = (SQUARE,) * 3) -> tuple[loop.Loop, Family]:
    """A loop over random latents on the debug model, its LoRA no longer at zero so that all gradients live.

    There is a photo for each size, of latents of a quarter of it, and five square class images.
    """
    source = resolve(str(recipe.model))
    family = families.get(source.family)
    pipe = family.load(source, torch.float32)
    groups = methods.get(recipe.method).attach(pipe, family, recipe)
    if recipe.method == "lora":
        torch.manual_seed(1)
        for group in groups:
            for weight in group.parameters.values():
                weight.data.add_(torch.randn_like(weight) * 0.1)
    texts = None if methods.trains_text_encoders(recipe) else Memo(lambda text: encode_prompt(pipe, family, text))
    trainee = loop.Trainee(pipe, family, methods.trained_components(pipe, family, recipe), texts)
    settings = [{"params": list(g.parameters.values()), "lr": g.rate, "peak": g.rate} for g in groups]
    optimizer = torch.optim.AdamW(settings, weight_decay=recipe.weight_decay)
    plan = Plan(
        recipe.seed,
        pool(f"a {recipe.subjects[0].identifier} {NOUN}", sizes),
        pool(f"a {NOUN}", (SQUARE,) * 5) if recipe.prior_weight else [],
        recipe.batch_size,
        recipe.prior_weight,
    )
    latents = Memo(partial(random_latents, channels=channels_of(pipe, family)))
    state = loop.Loop(trainee, optimizer, Accelerator(cpu=True), family.process(pipe), plan, latents, recipe)
    return state, family


def channels_of(pipe: DiffusionPipeline, family: Family) -> int:
    """Channels of what the denoiser works on: 4 of every debug model's latents, or those of pixels."""
    return 4 if hasattr(pipe, "vae") else int(family.denoiser(pipe).config.in_channels)


def backward_all(state: loop.Loop, accumulation: int, step: int) -> Tensor:
    """Add the gradient of a whole step, pass by pass and size by size, and return its loss parts."""
    seed, passes = state.plan.seed, share(state.plan.slots(step), accumulation, 0, 1)
    alike = [part for each in passes for part in by_size(each, seed)]
    return torch.stack([loop.backward(state, draw(part, state.latents, seed, 0.1)) for part in alike]).sum(dim=0)


def gradients(state: loop.Loop, accumulation: int, step: int = 0) -> tuple[Tensor, Tensor]:
    """Loss parts and the gradient of all trained weights, as one vector, of a whole step."""
    state.optimizer.zero_grad()
    parts = backward_all(state, accumulation, step)
    weights = [weight for group in state.optimizer.param_groups for weight in group["params"]]
    return parts, torch.cat([weight.grad.flatten() for weight in weights])


def reference(state: loop.Loop, family: Family, step: int = 0) -> tuple[Tensor, Tensor]:
    """Equation (2) written out with diffusers' scheduler: two losses, each by itself, then their sum."""
    recipe = state.recipe
    pipe = state.trainee._pipe
    scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    sums = []
    for is_prior in (False, True):
        losses = []
        for slot in [s for s in state.plan.slots(step) if s.is_prior is is_prior]:
            batch = draw([slot], state.latents, state.plan.seed, 0.1)
            t_B = (batch.u_B * 1000).long()
            noisy = scheduler.add_noise(batch.latents_BCHW, batch.noise_BCHW, t_B)
            ids = pipe.tokenizer(batch.prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
            predicted = pipe.unet(noisy, t_B, pipe.text_encoder(ids)[0]).sample
            epsilon = scheduler.config.prediction_type == "epsilon"
            target = batch.noise_BCHW if epsilon else scheduler.get_velocity(batch.latents_BCHW, batch.noise_BCHW, t_B)
            loss = F.mse_loss(predicted, target)
            if recipe.min_snr:
                snr = compute_snr(scheduler, t_B)
                loss = loss * torch.minimum(snr, torch.tensor(recipe.min_snr)) / (snr if epsilon else snr + 1)
            losses.append(loss.reshape(()))
        sums.append(torch.stack(losses).mean() if losses else torch.zeros(()))
    weights = [weight for group in state.optimizer.param_groups for weight in group["params"]]
    total = sums[0] + recipe.prior_weight * sums[1]
    grads = torch.autograd.grad(total, weights)
    return torch.stack(sums).detach(), torch.cat([grad.flatten() for grad in grads])


@pytest.mark.parametrize("model", ["tiny_sd", "tiny_sd_v"])
@pytest.mark.parametrize("min_snr", [None, 5.0])
@pytest.mark.parametrize(("batch_size", "sizes"), [(1, (SQUARE,) * 3), (3, (SQUARE,) * 3), (3, SHAPES)])
def test_the_loss_is_the_sum_of_two_separately_computed_ones(
    model: str, min_snr: float | None, batch_size: int, sizes: tuple[Size, ...], request: pytest.FixtureRequest
) -> None:
    recipe = recipe_for(request.getfixturevalue(model), min_snr=min_snr, batch_size=batch_size, prior_weight=0.6)
    state, family = make_loop(recipe, sizes)
    parts, grad = gradients(state, accumulation=1)
    expected_parts, expected_grad = reference(state, family)
    torch.testing.assert_close(parts, expected_parts * torch.tensor([1, 0.6]), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("train_text_encoder", [False, True])
def test_accumulation_changes_nothing(tiny_sd: Path, train_text_encoder: bool) -> None:
    recipe = recipe_for(tiny_sd, batch_size=4, train_text_encoder=train_text_encoder)
    state, _ = make_loop(recipe)
    parts, grad = gradients(state, accumulation=1)
    for accumulation in (2, 4, 8):  # with 2 or more, some passes hold class images alone
        other_parts, other_grad = gradients(state, accumulation)
        torch.testing.assert_close(other_parts, parts, rtol=1e-5, atol=1e-7)
        assert (other_grad - grad).norm() <= 1e-5 * grad.norm()


def test_gradients_of_unequal_counts(tiny_sd: Path) -> None:
    """The weights 1/N and lambda/M hold whatever the passes hold: 3 slots a pass split 4 + 4 images unevenly."""
    state, family = make_loop(recipe_for(tiny_sd, batch_size=4, prior_weight=2.0))
    _, grad = gradients(state, accumulation=3)
    _, expected = reference(state, family)
    assert (grad - expected).norm() <= 1e-5 * expected.norm()


def test_without_prior_it_is_plain_fine_tuning_bit_for_bit(tiny_sd: Path) -> None:
    recipe = recipe_for(tiny_sd, prior_weight=0, method="full", rank=None, alpha=None, learning_rate=1e-3)
    state, _ = make_loop(recipe)
    for _ in loop.steps(state, 0):
        pass
    plain, family = make_loop(recipe)
    pipe = plain.trainee._pipe
    optimizer = torch.optim.AdamW(pipe.unet.parameters(), lr=1e-3, weight_decay=recipe.weight_decay)
    for step in range(4):
        batch = draw(plain.plan.slots(step), plain.latents, 0, 0.1)
        process = family.process(pipe)
        t_B = process.sample_t(batch.u_B)
        cond = encode_prompt(pipe, family, batch.prompts[0])["prompt_embeds_LD"][None]
        noisy = process.mix(batch.latents_BCHW, batch.noise_BCHW, t_B)
        error = (pipe.unet(noisy, t_B, cond).sample - batch.noise_BCHW) ** 2
        error.mean(dim=(1, 2, 3)).sum().backward()
        torch.nn.utils.clip_grad_norm_(pipe.unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    trained = state.trainee._pipe.unet.state_dict()
    assert all(torch.equal(trained[name], value) for name, value in pipe.unet.state_dict().items())


def test_the_loss_parts_are_reported_apart_and_before_lambda(tiny_sd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state, family = make_loop(recipe_for(tiny_sd, prior_weight=0.25, batch_size=2))
    expected, _ = reference(state, family)
    pending = [next(loop.steps(state, 0))]
    monkeypatch.setattr(time, "perf_counter", lambda: 8.0)
    (step,) = loop.read(pending, 7.0, state)
    assert step.subject == pytest.approx(expected[0].item(), rel=1e-5)
    assert step.prior == pytest.approx(expected[1].item(), rel=1e-5)
    assert step.loss == pytest.approx((expected[0] + 0.25 * expected[1]).item(), rel=1e-5)
    assert step.images_per_second == pytest.approx(4)


def test_one_photo_overfits(tiny_sd: Path) -> None:
    """With everything trained on one photo and no prior, its loss at fixed noise falls to a fraction."""
    recipe = recipe_for(tiny_sd, prior_weight=0, method="full", rank=None, alpha=None, learning_rate=5e-3, steps=150)
    state, _ = make_loop(recipe, (SQUARE,))
    sharp = Memo(lambda row: {**random_latents(row), "std_CHW": torch.zeros(4, 8, 8)})
    state = dataclasses.replace(state, latents=sharp)

    def loss_at_fixed_draws() -> float:
        slots = [slot for step in range(1000, 1032) for slot in state.plan.slots(step)]
        with torch.no_grad():
            batch = draw(slots, state.latents, 0, 0.1)
            t_B = state.process.sample_t(batch.u_B)
            noisy = state.process.mix(batch.latents_BCHW, batch.noise_BCHW, t_B)
            return F.mse_loss(state.trainee(noisy, t_B, batch.prompts, batch.view_B4), batch.noise_BCHW).item()

    before = loss_at_fixed_draws()
    for _ in loop.steps(state, 0):
        pass
    assert loss_at_fixed_draws() < 0.5 * before


def test_rates(tiny_sd: Path) -> None:
    cosine = recipe_for(tiny_sd, schedule="cosine", warmup=4, steps=14)
    factors = [loop.rate_factor(step, cosine) for step in range(14)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4] == 1.0
    assert factors[4:] == sorted(factors[4:], reverse=True)
    assert 0 < factors[-1] < 0.1
    constant = recipe_for(tiny_sd, steps=14)
    assert {loop.rate_factor(step, constant) for step in range(14)} == {1.0}


def test_gradients_are_clipped_to_the_norm(tiny_sd: Path) -> None:
    state, _ = make_loop(recipe_for(tiny_sd, max_grad_norm=1e-6))
    _, grad = gradients(state, 1)
    state.optimizer.zero_grad()
    entry = next(loop.steps(state, 0))
    assert entry.grad_norm.item() == pytest.approx(grad.norm().item(), rel=1e-4)
