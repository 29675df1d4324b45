"""What holds for every family, on its debug model, against what stock diffusers does.

A new family joins by its debug model's name in `MODELS`.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from dreambooth import checkpoint, families, loop, methods, presets, sampling
from dreambooth.batches import draw
from dreambooth.diffusion import Flow
from dreambooth.errors import UserError
from dreambooth.geometry import Size
from dreambooth.models import CARDS, Card, Source
from dreambooth.recipe import Recipe
from dreambooth.samples import image_generator
from tests.families.conftest import Model
from tests.families.stock import (
    PROMPTS,
    calls_of,
    draw_two,
    places,
    posterior,
    second_call,
    small_images,
    spied_steps,
    spread,
    unpacked,
)
from tests.test_loop import SHAPES, SQUARE, backward_all, channels_of, make_loop, recipe_for

MODELS = [
    *("sd", "sdxl", "sd35", "flux", "flux-schnell", "chroma", "sana"),
    *("z_image", "qwen_image", "flux2", "flux2-klein"),
    *("deepfloyd", "deepfloyd_sr"),
]
METHODS: list[tuple[str, dict[str, Any]]] = [
    ("lora", {"targets": "wide", "alpha": 3.0}),
    ("full", {"rank": None, "alpha": None}),
]
NO_WARNING: Callable[[str], None] = pytest.fail


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest, models: Callable[[str], Model]) -> Model:
    return models(request.param)


@pytest.fixture
def training(model: Model, monkeypatch: pytest.MonkeyPatch) -> Callable[..., loop.Loop]:
    """What makes a loop over random latents on a fresh copy of the model."""
    monkeypatch.setattr(model.family, "load", lambda source, dtype: model.fresh())

    def make(sizes: Sequence[Size] = (SQUARE,) * 3, **values: object) -> loop.Loop:
        return make_loop(recipe(model, **values), sizes)[0]

    return make


def recipe(model: Model, **values: object) -> Recipe:
    return recipe_for(model.source.path, resolution=model.side, **values)


def whole(noisy_BCHW: Tensor, stride: int) -> Tensor:
    """The view of images that were never cropped: height, width, top, left."""
    height, width = (side * stride for side in noisy_BCHW.shape[-2:])
    return torch.tensor([[height, width, 0.0, 0.0]]).repeat(len(noisy_BCHW), 1)


def cond_of(model: Model, rows: list[dict[str, Tensor]], noisy_BCHW: Tensor) -> dict[str, Tensor]:
    return {**model.family.collate(rows), "view_B4": whole(noisy_BCHW, model.scale_factor)}


def random_noisy(model: Model, images: int) -> Tensor:
    channels = channels_of(model.pipe, model.family)
    return torch.randn(images, channels, 8, 8, generator=torch.Generator().manual_seed(0))


# The registry


def test_the_registry_and_the_families_agree() -> None:
    for name in families.MODULES:
        owned = [pipeline for pipeline, owner in families.PIPELINES.items() if owner == name]
        assert owned == list(families.get(name).PIPELINES)


def test_every_family_is_tested(models: Callable[[str], Model]) -> None:
    assert {models(name).source.family for name in MODELS} == set(families.MODULES)


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_every_card_has_presets_that_its_family_understands(card: Card) -> None:
    family, chosen = families.get(card.family), presets.key(Source(card.name, card.family, Path(), "", card))
    assert presets.SAMPLING[chosen].values["sampler"] in family.SAMPLERS
    assert {(chosen, method) in presets.TRAINING for method in ("lora", "full")} == {True}
    assert chosen in presets.LORA_RATE_FLOOR
    assert card.resolution % family.STRIDE == 0


def test_a_module_has_everything_that_the_protocol_names(model: Model) -> None:
    for name, wanted in inspect.getmembers(families.Family, inspect.isfunction):
        if not name.startswith("_"):
            given = inspect.signature(getattr(model.family, name))
            assert list(given.parameters) == list(inspect.signature(wanted).parameters)[1:], name
    for name, value in inspect.getmembers(families.Family, lambda member: isinstance(member, property)):
        assert hasattr(model.family, name), value.__doc__


def test_the_parts_by_their_names(model: Model) -> None:
    encoders = model.family.text_encoders(model.pipe)
    assert all(getattr(model.pipe, name) is encoder for name, encoder in encoders.items())
    assert bool(encoders) == bool(model.family.TEXT_LORA_TARGETS)
    assert model.family.denoiser(model.pipe) in model.pipe.components.values()
    for name in (*model.family.READERS, *model.family.WORD_TOKENIZERS):
        assert getattr(model.pipe, name)("a dog").input_ids
    assert families.of(model.pipe) is model.family


def test_every_lora_target_names_layers(model: Model) -> None:
    """Where a target has a number, any number in its place will do: real models have more blocks."""
    pairs = [(model.family.denoiser(model.pipe), target) for target in model.family.LORA_TARGETS["wide"]]
    texts = model.family.text_encoders(model.pipe).values()
    pairs += [(encoder, target) for encoder in texts for target in model.family.TEXT_LORA_TARGETS]
    for module, target in pairs:
        layers = [name for name, part in module.named_modules() if isinstance(part, (nn.Linear, nn.Conv2d))]
        assert any(f".{unnumbered(name)}".endswith(f".{unnumbered(target)}") for name in layers), target
    assert set(model.family.LORA_TARGETS["attention"]) < set(model.family.LORA_TARGETS["wide"])


def unnumbered(name: str) -> str:
    return re.sub(r"\d+", "N", name)


# What the networks are given


@pytest.mark.parametrize("is_wide", [True, False])
def test_the_denoiser_is_called_as_the_stock_pipeline_calls_it(model: Model, is_wide: bool) -> None:
    """Two prompts, no square, in the middle of sampling: every tensor that goes in, and what comes out."""
    family, stock = model.family, model.stock
    short, long = model.side, model.side + 2 * family.STRIDE
    height, width = (short, long) if is_wide else (long, short)
    settings = {"height": height, "width": width, **family.guide(model.pipe, 1.0, ["", ""])}
    given, expected = second_call(stock, family.denoiser(stock), **settings)
    factor = model.scale_factor
    first = next(iter(given.values()))
    noisy_BCHW = unpacked(first, height // factor, width // factor)
    is_flow = isinstance(family.process(model.pipe), Flow)
    t = stock.scheduler.timesteps[1] / (1000 if is_flow else 1)
    denoiser = family.denoiser(model.pipe)
    with calls_of(denoiser) as calls, torch.no_grad():
        cond = cond_of(model, family.encode_prompts(model.pipe, PROMPTS), noisy_BCHW)
        predicted_BCHW = family.predict(denoiser, noisy_BCHW, t.expand(2), cond)
    assert calls[0].keys() == given.keys()
    for name, value in given.items():
        same_kind = name != "timestep"  # some samplers count in whole steps
        ours, theirs = calls[0][name], value.expand_as(calls[0][name])
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5, check_dtype=same_kind, msg=name)
    expected_BCHW = unpacked(expected, height // factor, width // factor)[:, : predicted_BCHW.shape[1]]
    torch.testing.assert_close(predicted_BCHW, expected_BCHW, rtol=1e-5, atol=1e-5)


LED_AWAY = ("sd", "sdxl", "sd35", "chroma", "sana", "z_image", "qwen_image", "flux2-klein-base", "deepfloyd")


@pytest.mark.parametrize("name", LED_AWAY)
def test_no_prompt_is_what_the_stock_pipeline_leads_away_from(name: str, models: Callable[[str], Model]) -> None:
    """Some encode an empty text, some a blank, and some give zeros: the prior learns what guidance starts from."""
    model = models(name)
    family, stock = model.family, model.stock
    side = model.side + 2 * family.STRIDE
    settings = {"height": side, "width": side, **family.guide(stock, 4.0, ["", ""])}
    with calls_of(family.denoiser(stock)) as seen:
        draw_two(stock, **settings)
    noisy_BCHW = random_noisy(model, 1)
    t_B = family.process(model.pipe).sample_t(torch.full((1,), 0.5))
    denoiser = family.denoiser(model.pipe)
    told = {}
    for prompt in ("", PROMPTS[0]):
        with calls_of(denoiser) as calls, torch.no_grad():
            family.predict(
                denoiser, noisy_BCHW, t_B, cond_of(model, family.encode_prompts(model.pipe, [prompt]), noisy_BCHW)
            )
        told[prompt] = calls[0]
    read = [key for key, value in told[""].items() if not alike(value, told[PROMPTS[0]][key])]
    assert read
    for key in read:
        rows = [row for call in seen for row in call[key]]
        for prompt in told:
            (wanted,) = told[prompt][key]
            assert any(alike(row[: len(wanted)], wanted) for row in rows), (key, prompt)


def alike(one: Tensor, two: Tensor) -> bool:
    return one.shape == two.shape and torch.allclose(one.float(), two.float(), atol=1e-5)


def test_prompts_of_different_length_are_encoded_as_each_alone(model: Model) -> None:
    family = model.family
    noisy_BCHW = random_noisy(model, 2)
    t_B = torch.tensor([0.3, 0.8]) if isinstance(family.process(model.pipe), Flow) else torch.tensor([300, 800])
    with torch.no_grad():
        together = cond_of(model, family.encode_prompts(model.pipe, PROMPTS), noisy_BCHW)
        alone = [cond_of(model, family.encode_prompts(model.pipe, [prompt]), noisy_BCHW[:1]) for prompt in PROMPTS]
        predicted_BCHW = family.predict(family.denoiser(model.pipe), noisy_BCHW, t_B, together)
        singles = [
            family.predict(family.denoiser(model.pipe), noisy_BCHW[k : k + 1], t_B[k : k + 1], alone[k]) for k in (0, 1)
        ]
    torch.testing.assert_close(predicted_BCHW, torch.cat(singles), rtol=1e-5, atol=1e-5)
    assert (predicted_BCHW[0] - predicted_BCHW[1]).abs().max() > 1e-3


def test_a_prompt_changes_the_prediction(model: Model) -> None:
    noisy_BCHW = random_noisy(model, 1).expand(2, -1, -1, -1)
    with torch.no_grad():
        cond = cond_of(model, model.family.encode_prompts(model.pipe, PROMPTS), noisy_BCHW)
        t_B = model.family.process(model.pipe).sample_t(torch.full((2,), 0.5))
        predicted_BCHW = model.family.predict(model.family.denoiser(model.pipe), noisy_BCHW, t_B, cond)
    assert (predicted_BCHW[0] - predicted_BCHW[1]).abs().max() > 1e-6


def test_a_prompt_that_is_too_long_is_refused(model: Model) -> None:
    limit = min(getattr(model.pipe, name).model_max_length for name in model.family.READERS)
    with pytest.raises(UserError, match=f"{limit} fit: shorten it"):
        model.family.encode_prompts(model.pipe, ["dog " * limit])


def require_autoencoder(model: Model) -> None:
    if not hasattr(model.pipe, "vae"):
        pytest.skip("it works on pixels")


def test_images_are_encoded_to_what_the_stock_pipeline_decodes(model: Model) -> None:
    """The pipeline maps its latents to the decoder's by a line, which maps ours to the encoder's posterior too.

    Each channel and place in a token of 2 x 2 may have a line of its own.
    """
    require_autoencoder(model)
    stock, side, factor = model.stock, model.side, model.scale_factor
    decode, seen = stock.vae.decode, []

    def spy(latents_BCHW: Tensor, **more: Any) -> Any:
        seen.append(latents_BCHW)
        return decode(latents_BCHW, **more)

    stock.vae.decode = spy
    with spied_steps(stock) as steps:
        settings = {"num_inference_steps": 2, "generator": torch.Generator().manual_seed(0), "output_type": "np"}
        stock(prompt=PROMPTS[:1], height=side, width=side, **settings, **model.family.guide(model.pipe, 3.0, [""]))
    del stock.vae.decode
    drawn_1KHW = places(unpacked(steps[-1][1], side // factor, side // factor))
    decoded_1KHW = places(unpacked(seen[-1], side // factor, side // factor))
    slope_1K11 = spread(decoded_1KHW) / spread(drawn_1KHW)
    offset_1K11 = decoded_1KHW.amin((2, 3), keepdim=True) - slope_1K11 * drawn_1KHW.amin((2, 3), keepdim=True)

    pixels_BCHW = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        encoded = {name: places(value) for name, value in model.family.encode_images(model.pipe, pixels_BCHW).items()}
        found = stock.vae.encode(pixels_BCHW[:, :, None] if seen[-1].dim() == 5 else pixels_BCHW)
    mean_BKHW, std_BKHW = (places(unpacked(each, 0, 0)) for each in posterior(found))
    torch.testing.assert_close(encoded["mean_BCHW"] * slope_1K11 + offset_1K11, mean_BKHW, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(encoded["std_BCHW"] * slope_1K11, std_BKHW, rtol=1e-4, atol=1e-6)


def test_half_precision_leaves_the_autoencoder_in_float32(model: Model) -> None:
    require_autoencoder(model)
    pipe = model.fresh()
    pipe.vae.to(torch.float16)
    encoded = model.family.encode_images(pipe, torch.zeros(1, 3, model.side, model.side))
    assert {value.dtype for value in encoded.values()} == {torch.float32}
    assert pipe.vae.dtype == torch.float32


def test_the_class_sampler_is_stochastic_and_repeatable(model: Model) -> None:
    if model.source.family in families.UPSCALERS:
        pytest.skip("it draws nothing from a prompt alone")

    def images(*seeds: int) -> np.ndarray:
        settings = sampling.Sampling("", 3, 1.0, model.side)
        generators = [image_generator(seed) for seed in seeds]
        chosen = model.family.class_sampler(model.pipe)
        return np.stack([np.asarray(i) for i in sampling.draw(model.pipe, ["a dog"] * 2, generators, settings, chosen)])

    state = torch.random.get_rng_state()
    first = images(0, 1)
    assert torch.equal(torch.random.get_rng_state(), state), "the caller's random numbers are left alone"
    torch.rand(3)
    np.testing.assert_array_equal(images(0, 1), first)
    scheduler = model.family.class_sampler(model.pipe)
    latents = [one_step(scheduler, seed) for seed in (0, 0, 1)]
    assert torch.equal(latents[0], latents[1])
    assert not torch.equal(latents[0], latents[2])


def one_step(scheduler: Any, seed: int) -> Tensor:
    """The first sampling step from the same latents and prediction, with the noise of `seed`."""
    dynamic = {"mu": 0.5} if scheduler.config.get("use_dynamic_shifting") else {}
    scheduler.set_timesteps(10, **dynamic)
    t, ones = scheduler.timesteps[0], torch.ones(1, 4, 8, 8)
    latents = getattr(scheduler, "scale_model_input", lambda latents, t: latents)(ones, t)
    prediction = ones.repeat(1, 2, 1, 1) if scheduler.config.get("variance_type") == "learned_range" else ones
    stepped: Tensor = scheduler.step(prediction, t, latents, generator=torch.Generator().manual_seed(seed)).prev_sample
    return stepped


def test_samplers_of_another_process_are_refused(model: Model) -> None:
    other = "ddim" if isinstance(model.family.process(model.pipe), Flow) else "flow"
    with pytest.raises(UserError, match=f"no sampler '{other}'.*: choose from .*{next(iter(model.family.SAMPLERS))}"):
        sampling.scheduler(model.pipe, other)
    for name in model.family.SAMPLERS:
        assert sampling.scheduler(model.pipe, name).config.num_train_timesteps == 1000


# Training


def weights_of(state: loop.Loop) -> list[Tensor]:
    return [weight for group in state.optimizer.param_groups for weight in group["params"]]


def gradients(state: loop.Loop, accumulation: int, step: int = 0) -> tuple[Tensor, Tensor]:
    """Loss parts of a whole step and the gradient of all trained weights as one vector, zero for those not used.

    SDXL reads its first text encoder before the last layer.
    """
    for weight in weights_of(state):
        weight.grad = torch.zeros_like(weight)
    return backward_all(state, accumulation, step), torch.cat([weight.grad.flatten() for weight in weights_of(state)])


@pytest.mark.parametrize(("text", "sizes"), [(False, (SQUARE,) * 3), (True, (SQUARE,) * 3), (False, SHAPES)])
def test_the_loss_is_the_sum_of_those_of_each_image_alone(
    model: Model, training: Callable[..., loop.Loop], text: bool, sizes: Sequence[Size]
) -> None:
    """With prior preservation: 1/N of each photo's and lambda/M of each class image's, their prompts cached or live.

    Whatever their sizes: the denoiser is called once for those of each.
    """
    if text and not model.family.text_encoders(model.pipe):
        pytest.skip("its text encoder is never trained")
    state = training(sizes, batch_size=3, prior_weight=0.6, train_text_encoder=text)
    called: list[object] = []
    with state.trainee.register_forward_hook(lambda *call: called.append(call)):
        parts_2, gradient = gradients(state, accumulation=1)
    assert len(called) == len(set(sizes))
    expected_2, total = torch.zeros(2), torch.zeros(())
    for slot in state.plan.slots(0):
        batch = draw([slot], state.latents, state.plan.seed, 0.1)
        height, width = batch.latents_BCHW.shape[-2:]
        t_B = state.process.sample_t(batch.u_B, (height, width))
        noisy_BCHW = state.process.mix(batch.latents_BCHW, batch.noise_BCHW, t_B)
        predicted_BCHW = state.trainee(noisy_BCHW, t_B, batch.prompts, batch.view_B4)
        error = (predicted_BCHW - state.process.target(batch.latents_BCHW, batch.noise_BCHW, t_B)).square().mean()
        weighted = error * (0.6 if slot.is_prior else 1.0) / 3
        expected_2[int(slot.is_prior)] += weighted.detach()
        total = total + weighted
    torch.testing.assert_close(parts_2, expected_2, rtol=1e-5, atol=1e-7)
    expected = torch.autograd.grad(total, weights_of(state), allow_unused=True, materialize_grads=True)
    torch.testing.assert_close(gradient, torch.cat([part.flatten() for part in expected]), rtol=1e-4, atol=1e-6)


def test_cached_prompts_are_live_ones(training: Callable[..., loop.Loop]) -> None:
    state = training(batch_size=2)
    cached_2, gradient = gradients(state, accumulation=1)
    state.trainee._conditioning = None
    live_2, live_gradient = gradients(state, accumulation=2)
    torch.testing.assert_close(live_2, cached_2, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(live_gradient, gradient, rtol=1e-4, atol=1e-6)


def test_recomputed_activations_change_nothing(model: Model, training: Callable[..., loop.Loop]) -> None:
    """Gradient checkpointing of diffusers, which some of its models do not hand all of a block's arguments."""
    state = training(batch_size=2)
    kept_2, gradient = gradients(state, accumulation=1)
    (denoiser,) = (part for name, part in state.trainee.components.items() if name in ("unet", "transformer"))
    denoiser.train()
    denoiser.enable_gradient_checkpointing()
    assert denoiser.is_gradient_checkpointing
    recomputed_2, recomputed_gradient = gradients(state, accumulation=1)
    torch.testing.assert_close(recomputed_2, kept_2, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(recomputed_gradient, gradient, rtol=1e-4, atol=1e-6)


def test_one_photo_overfits(training: Callable[..., loop.Loop]) -> None:
    state = training((SQUARE,), steps=40, prior_weight=0.0, targets="wide", rank=8, alpha=8.0, learning_rate=2e-2)

    def loss() -> float:
        """The loss on draws that training does not see."""
        return sum(float(gradients(state, 1, step)[0][0]) for step in range(1000, 1012))

    before = loss()
    state.optimizer.zero_grad()
    for _ in loop.steps(state, 0):
        pass
    assert loss() < 0.9 * before


def test_a_resumed_run_is_the_uninterrupted_one(
    model: Model, training: Callable[..., loop.Loop], tmp_path: Path
) -> None:
    def trained(state: loop.Loop) -> dict[str, Tensor]:
        return {name: weight for name, weight in state.trainee.named_parameters() if weight.requires_grad}

    text = bool(model.family.text_encoders(model.pipe))
    straight, first, second = (training(steps=4, train_text_encoder=text) for _ in range(3))
    for _ in loop.steps(straight, 0):
        pass
    for entry in loop.steps(first, 0):
        if entry.step == 2:
            checkpoint.save(tmp_path, 2, trained(first), first.optimizer, keep=1)
            break
    assert checkpoint.resume(tmp_path, trained(second), second.optimizer, NO_WARNING) == 2
    for _ in loop.steps(second, 2):
        pass
    assert all(torch.equal(weight, trained(second)[name]) for name, weight in trained(straight).items())


# What is shipped


def picture(pipe: DiffusionPipeline, model: Model) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    size = {"height": model.side, "width": model.side, **small_images(pipe, 1)}
    settings = {"num_inference_steps": 2, "output_type": "latent", **model.family.guide(model.pipe, 3.0, [""])}
    result = pipe(prompt=PROMPTS[:1], generator=torch.Generator().manual_seed(5), **size, **settings)
    return np.asarray(result.images)


@pytest.mark.parametrize(("method", "values"), METHODS)
def test_the_adapter_gives_the_same_picture_in_stock_diffusers(
    model: Model, method: str, values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {**values, "train_text_encoder": bool(model.family.text_encoders(model.pipe))}
    given = recipe(model, method=method, **values)
    pipe = model.fresh()
    untouched = picture(pipe, model)
    groups = methods.get(method).attach(pipe, model.family, given)
    torch.manual_seed(7)
    for group in groups:
        for weight in group.parameters.values():
            weight.data.add_(torch.randn_like(weight) * 0.05)
    trained = picture(pipe, model)
    assert {group.component for group in groups} > set(model.family.text_encoders(pipe))
    with monkeypatch.context() as patched:
        patched.setattr(model.family, "load", lambda source, dtype: model.fresh())
        methods.get(method).save(pipe, model.family, model.source, given, tmp_path)
    if method == "lora":
        stock = copy.deepcopy(model.stock)
        stock.load_lora_weights(tmp_path)
    else:
        stock = DiffusionPipeline.from_pretrained(tmp_path)
    assert abs(trained - untouched).max() > 0.01
    np.testing.assert_allclose(picture(stock, model), trained, atol=5e-5)
