"""Losses that compare with the model as it was, against stock diffusers, which was never trained."""

from __future__ import annotations

import dataclasses
import json
import math
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from torch import Tensor

from dreambooth import families, loop, methods, optimization, train
from dreambooth.batches import Item, Plan, Slot, draw, share
from dreambooth.frozen import Frozen, is_needed
from dreambooth.job import Job
from dreambooth.photos import read, usable
from dreambooth.planning import class_caption
from dreambooth.prompts import as_class, class_prompt
from dreambooth.recipe import Recipe
from tests.commands import make_photos
from tests.test_loop import make_loop, recipe_for

FULL = {"method": "full", "rank": None, "alpha": None}
TOKEN = {"photos": ".", "class_noun": "dog", "identifier": "<dog-1>"}
METHODS: list[dict[str, Any]] = [
    {},
    {"train_text_encoder": True, "targets": "wide", "alpha": 3.0},
    {"adapter": "lokr"},
    {**FULL, "train_text_encoder": True},
]


def untrained(recipe: Recipe, **more: Any) -> loop.Loop:
    """A loop whose LoRA, if it has one, is at its start again."""
    state, _ = make_loop(recipe, **more)
    with torch.no_grad():
        for name, weight in state.trainee.named_parameters():
            if ".lora_B." in name or ".lokr_w1" in name:
                weight.zero_()
    frozen = Frozen.of(state.trainee, partial(class_caption, recipe))
    return dataclasses.replace(state, frozen=frozen, plan=plan_of(state, recipe))


def plan_of(state: loop.Loop, recipe: Recipe) -> Any:
    if recipe.prior_loss != "parent":
        return state.plan
    return dataclasses.replace(state.plan, prior=[Item(item.rows, "a dog") for item in state.plan.photos])


def disturb(state: loop.Loop) -> None:
    """Stand in for training."""
    torch.manual_seed(3)
    for group in state.optimizer.param_groups:
        for weight in group["params"]:
            weight.data.add_(torch.randn_like(weight) * 0.1)


def stock_prediction(slot: Slot, prompt: str, model: Path, state: loop.Loop) -> tuple[Tensor, Tensor, Tensor]:
    """What the untouched model predicts for a slot under a prompt; the noisy latents and times it was given."""
    stock = StableDiffusionPipeline.from_pretrained(model, safety_checker=None)
    batch = draw([slot], state.latents, state.plan.seed, 0.1)
    t_B = (batch.u_B * 1000).long()
    scheduler = DDPMScheduler.from_config(stock.scheduler.config)
    noisy_BCHW = scheduler.add_noise(batch.latents_BCHW, batch.noise_BCHW, t_B)
    ids = stock.tokenizer([prompt], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        return stock.unet(noisy_BCHW, t_B, stock.text_encoder(ids)[0]).sample, noisy_BCHW, t_B


def losses(state: loop.Loop, accumulation: int = 1) -> tuple[Tensor, Tensor]:
    """Loss parts and gradient of a step."""
    state.optimizer.zero_grad()
    passes = share(state.plan.slots(0), accumulation, 0, 1)
    parts = sum(loop.backward(state, draw(part, state.latents, state.plan.seed, 0.1)) for part in passes)
    weights = [weight for group in state.optimizer.param_groups for weight in group["params"]]
    found = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
    return torch.as_tensor(parts), torch.cat([grad.flatten() for grad in found])


@pytest.mark.parametrize("prior_loss", ["distilled", "parent"])
@pytest.mark.parametrize("values", METHODS)
def test_an_untrained_model_pays_no_prior(prior_loss: str, values: dict[str, Any], tiny_sd: Path) -> None:
    state = untrained(recipe_for(tiny_sd, batch_size=2, prior_loss=prior_loss, **values))
    parts_2, _ = losses(state)
    assert parts_2[1].item() < 1e-12  # kernels may round a larger batch otherwise
    assert parts_2[0].item() > 0


@pytest.mark.parametrize("prior_loss", ["distilled", "parent"])
@pytest.mark.parametrize("values", METHODS)
def test_a_trained_model_pays_its_distance_from_the_untouched_one(
    prior_loss: str, values: dict[str, Any], tiny_sd: Path
) -> None:
    state = untrained(recipe_for(tiny_sd, batch_size=2, prior_weight=0.6, prior_loss=prior_loss, **values))
    disturb(state)
    parts_2, gradient = losses(state)
    expected = torch.zeros(())
    for slot in [slot for slot in state.plan.slots(0) if slot.is_prior]:
        assert (slot.item.rows[0] in [row for item in state.plan.photos for row in item.rows]) is (
            prior_loss == "parent"
        )
        target_BCHW, noisy_BCHW, t_B = stock_prediction(slot, "a dog", tiny_sd, state)
        predicted_BCHW = state.trainee(noisy_BCHW, t_B, ["a dog"], torch.zeros(1, 4))
        expected = expected + 0.6 / 2 * (predicted_BCHW - target_BCHW).square().mean()
    torch.testing.assert_close(parts_2[1], expected.detach(), rtol=1e-4, atol=1e-7)
    plain, _ = make_loop(state.recipe.model_copy(update={"prior_loss": "images", "prior_weight": 0.0}))
    alone = dataclasses.replace(plain, trainee=state.trainee, optimizer=state.optimizer)
    parts_of_photos, gradient_of_photos = losses(alone)
    torch.testing.assert_close(parts_2[0], parts_of_photos[0])
    weights = [weight for group in state.optimizer.param_groups for weight in group["params"]]
    of_prior = torch.autograd.grad(expected, weights, allow_unused=True, materialize_grads=True)
    of_prior_flat = torch.cat([grad.flatten() for grad in of_prior])
    torch.testing.assert_close(gradient, gradient_of_photos + of_prior_flat, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("min_snr", [None, 5.0])
def test_the_gradient_of_dco_is_the_formulas(min_snr: float | None, tiny_sd: Path) -> None:
    """d/dw -log sigmoid(-b (l - r)) = b sigmoid(b (l - r)) dl/dw, r that of the untouched model under the class."""
    recipe = recipe_for(tiny_sd, prior_weight=0.0, dco_beta=40.0, min_snr=min_snr)
    state = untrained(recipe)
    disturb(state)
    parts_2, gradient = losses(state)
    denoise = dataclasses.replace(state, recipe=recipe.model_copy(update={"dco_beta": None}))
    plain_2, plain_gradient = losses(denoise)
    (slot,) = state.plan.slots(0)
    predicted_BCHW, _, t_B = stock_prediction(slot, "a dog", tiny_sd, state)
    batch = draw([slot], state.latents, state.plan.seed, 0.1)
    weight_B = state.process.weight(t_B, min_snr)
    frozen = (weight_B * (predicted_BCHW - batch.noise_BCHW).square().mean()).item()
    above = torch.tensor(40.0 * (plain_2[0].item() - frozen))
    assert abs(above) > 0.01
    torch.testing.assert_close(parts_2[0], torch.log1p(above.exp()), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(gradient, 40 * above.sigmoid() * plain_gradient, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("accumulation", [1, 2, 4])
@pytest.mark.parametrize("values", [{"adapter": "rslora", "alpha": 3.0, "targets": "wide"}, FULL])
def test_the_distance_to_the_base_is_paid_once_a_step(values: dict[str, Any], accumulation: int, tiny_sd: Path) -> None:
    """Against the gradient of the layers' own change; the loss parts that are shown stay those of the images."""
    recipe = recipe_for(tiny_sd, batch_size=2, prior_weight=0.5, l2_to_base=0.03, **values)
    state = untrained(recipe)
    without = dataclasses.replace(state, recipe=recipe.model_copy(update={"l2_to_base": None}))
    torch.testing.assert_close(losses(state, accumulation)[1], losses(without, accumulation)[1])
    disturb(state)
    parts_2, gradient = losses(state, accumulation)
    plain_2, plain_gradient = losses(without, accumulation)
    assert torch.equal(parts_2, plain_2)
    unet = state.trainee.components["unet"]
    if recipe.method == "lora":
        layers = [part for part in unet.modules() if hasattr(part, "get_delta_weight")]
        change = sum(layer.get_delta_weight("default").square().sum() for layer in layers)
    else:
        stock = dict(StableDiffusionPipeline.from_pretrained(tiny_sd, safety_checker=None).unet.named_parameters())
        change = sum((weight - stock[name].detach()).square().sum() for name, weight in unet.named_parameters())
    weights = [weight for group in state.optimizer.param_groups for weight in group["params"]]
    grads = torch.autograd.grad(torch.as_tensor(change), weights)
    expected = plain_gradient + 0.03 * torch.cat([grad.flatten() for grad in grads])
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)
    assert (gradient - plain_gradient).norm() > 1e-2 * plain_gradient.norm()


@pytest.mark.parametrize("values", [{}, {"train_text_encoder": True}, {"adapter": "lokr"}, {"min_rank": 1}])
def test_without_adapters_it_predicts_what_it_did_with_those_it_began_with(
    values: dict[str, Any], tiny_sd: Path
) -> None:
    state = untrained(recipe_for(tiny_sd, prior_loss="parent", **values))
    assert state.frozen
    assert state.frozen.adapters
    batch = draw(state.plan.slots(0), state.latents, state.plan.seed, 0.1)
    given = (batch.latents_BCHW, torch.full((len(batch.prompts),), 300), batch.prompts, batch.view_B4)
    plain = dataclasses.replace(state.frozen, adapters=[])
    expected_BCHW = plain.predict(*given)
    disturb(state)
    torch.testing.assert_close(state.frozen.predict(*given), expected_BCHW)
    with torch.no_grad():
        trained_BCHW = state.trainee(*given[:2], [state.frozen.as_class(text) for text in given[2]], given[3])
    assert not torch.allclose(trained_BCHW, expected_BCHW), "and they are on again"
    assert all(weight.requires_grad for weight in state.frozen.trained.values())


def test_the_frozen_model_is_left_where_it_was(tiny_sd: Path) -> None:
    """Training moves neither its weights nor, through it, the trained ones."""
    state = untrained(recipe_for(tiny_sd, prior_loss="distilled", **FULL))
    assert state.frozen
    start = {name: weight.clone() for name, weight in state.frozen.start.items()}
    for _ in loop.steps(state, 0):
        pass
    assert all(torch.equal(state.frozen.start[name], weight) for name, weight in start.items())
    assert not any(
        torch.equal(state.frozen.trained[name], weight) for name, weight in start.items() if weight.dim() > 1
    )
    assert not any(weight.requires_grad for weight in state.frozen.start.values())


def test_a_new_token_is_compared_with_its_class(tiny_sd: Path) -> None:
    own = {"method": "textual-inversion", "rank": None, "alpha": None, "text_encoder_learning_rate": None}
    state = untrained(recipe_for(tiny_sd, prior_weight=0.0, dco_beta=1.0, subjects=[TOKEN], **own))
    assert methods.trains_text_encoders(state.recipe)
    (slot,) = state.plan.slots(0)
    expected_BCHW, noisy_BCHW, t_B = stock_prediction(slot, "a dog", tiny_sd, state)
    assert state.frozen
    found_BCHW = state.frozen.predict(noisy_BCHW, t_B, [slot.item.prompt], torch.zeros(1, 4))
    torch.testing.assert_close(found_BCHW, expected_BCHW, rtol=1e-5, atol=1e-6)


def test_the_papers_loss_compares_with_nothing(tiny_sd: Path) -> None:
    assert not is_needed(recipe_for(tiny_sd))
    for values in ({"prior_loss": "parent"}, {"dco_beta": 1000.0}, {"l2_to_base": 1.0}):
        assert is_needed(recipe_for(tiny_sd, **values))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a ohwx dog", "a dog"),
        ("a photo of ohwx dog, in the snow", "a photo of dog, in the snow"),
        ("an ohwx dog and a <owl-1> owl", "a dog and an owl"),
        ("ohwx sleeping", "dog sleeping"),
        ("a ohwxes dog", "a ohwxes dog"),
        ("a dog", "a dog"),
    ],
)
def test_prompts_name_the_class_in_place_of_the_subject(text: str, expected: str) -> None:
    assert as_class(text, [("ohwx", "dog"), ("<owl-1>", "owl")]) == expected


@pytest.mark.parametrize("noun", ["dog", "owl", "coffee mug", "c++ book"])
def test_the_default_caption_becomes_the_class_prompt(noun: str) -> None:
    assert as_class(f"a ohwx {noun}", [("ohwx", noun)]) == class_prompt(noun)


@pytest.mark.parametrize(
    "values",
    [
        {"prior_loss": "distilled", "prior_dropout": 0.6},
        {"prior_loss": "distilled", "prior_dropout": 0.6, "train_text_encoder": True},
        {"prior_loss": "distilled", "prior_others": 0.8, "aspect": "keep"},
        {"prior_loss": "parent", "crops": 1, "accumulation": 2},
        {"prior_loss": "parent", "method": "full", "cache": False},
        {"dco_beta": 1.0, "train_text_encoder": True},
        {"dco_beta": 1.0},
        {"l2_to_base": 1.0, "adapter": "rslora"},
    ],
)
def test_a_run_from_photos_to_adapter(values: dict[str, Any], tiny_sd: Path, tmp_path: Path) -> None:
    """The encoders are gone when the frozen model is asked; without class images none are drawn."""
    subject = {"photos": make_photos(tmp_path / "photos"), "class_noun": "dog", "identifier": "ohwx"}
    quick = {"model": str(tiny_sd), "steps": 3, "samples": 0, "prior_count": 1, "prior_steps": 1, "log_every": 1}
    run = train(Recipe.of({**quick, **values, "subjects": [subject]}), tmp_path / "run")
    lines = [json.loads(line) for line in (run.path / "steps.jsonl").read_text(encoding="utf-8").splitlines()]
    shown = [line["prior"] for line in lines]
    if "prior_loss" in values:
        assert (
            shown[0] < 1e-10
        )  # by itself it is exact; here it is predicted beside the photo, and the frozen one alone
        assert min(shown[1:]) > 0
    else:
        assert shown == [None] * 3
    if (
        "dco_beta" in values
    ):  # the text encoder reads another prompt than the frozen one, so it is near log 2, not at it
        assert lines[0]["loss"] == pytest.approx(math.log(2), abs=0.2)
    assert ("class images" in run.info["times"]) is (values.get("prior_loss") == "distilled")


def test_a_photo_that_names_no_subject_is_no_picture_of_the_class(tiny_sd: Path, tmp_path: Path) -> None:
    """Its two captions would be the same, and the frozen model's prediction would undo what it teaches."""
    photos = make_photos(tmp_path / "photos")
    (photos / "1.txt").write_text("a garden in the morning", encoding="utf-8")
    recipe = recipe_for(tiny_sd, prior_loss="parent")
    pictures = usable(read(photos, 32))
    job = SimpleNamespace(recipe=recipe, photos=[pictures], family=families.get("sd"))
    learnt, kept = optimization._items(cast(Job, job), [[]])
    assert [item.rows[0].photo for item in kept] == [pictures[0], pictures[2]]
    assert [item.prompt for item in learnt] == ["a ohwx dog", "a garden in the morning", "a ohwx dog"]
    assert {item.prompt for item in kept} == {"a dog"}


def test_the_prior_takes_photos_for_nothing_that_a_subject_is_called(
    tiny_sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans: list[Plan] = []
    monkeypatch.setattr(optimization, "Plan", lambda *given: plans.append(Plan(*given)) or plans[-1])
    called = {"pig": "ohwx", "cup": "key"}
    subjects = [
        {"photos": make_photos(tmp_path / noun), "class_noun": noun, "identifier": identifier}
        for noun, identifier in called.items()
    ]
    quick = {"model": str(tiny_sd), "steps": 1, "samples": 0, "allow": ["identifier"], "subjects": subjects}
    train(Recipe.of({**quick, "prior_loss": "parent", "prior_others": 0.7}), tmp_path / "run")
    (plan,) = plans
    assert plan.prior_others == 0.7
    assert "a hat" in plan.others
    assert not {"a pig", "a cup", "a key"} & {*plan.others}
