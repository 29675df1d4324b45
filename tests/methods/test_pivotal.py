"""Pivotal tuning: first the token alone, then the adapter alone; stock diffusers loads both."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from torch import Tensor

from dreambooth import families, loop, train
from dreambooth.methods import pivotal, textual_inversion
from dreambooth.models import resolve
from dreambooth.recipe import Recipe
from tests.commands import make_photos
from tests.test_loop import make_loop, recipe_for
from tests.test_methods import picture, train_at_random

TOKEN = "<dog-1>"
SUBJECT = {"photos": ".", "class_noun": "dog", "identifier": TOKEN}


def tuning(model: Path, **values: Any) -> Recipe:
    return recipe_for(model, **{"method": "pivotal", "subjects": [SUBJECT], **values})


def weights_of(state: loop.Loop) -> dict[str, dict[str, Tensor]]:
    """The token's weights and the adapter's, as they are."""
    trained = {name: w.detach().clone() for name, w in state.trainee.named_parameters() if w.requires_grad}
    rows = {name: weight for name, weight in trained.items() if name.endswith(textual_inversion.ROWS)}
    return {"token": rows, "adapter": {name: weight for name, weight in trained.items() if name not in rows}}


def spanned(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> loop.Loop:
    """A loop whose optimiser knows the spans, as `optimizers.build` gives them."""
    spans: list[tuple[float, float]] = []
    attach = pivotal.attach
    monkeypatch.setattr(pivotal, "attach", lambda *given: [g for g in attach(*given) if spans.append(g.span) is None])
    state, _ = make_loop(recipe)
    for group, span in zip(state.optimizer.param_groups, spans, strict=True):
        group["span"] = span
    return state


def test_first_the_token_then_the_adapter(tiny_sd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = spanned(tuning(tiny_sd, steps=6), monkeypatch)
    seen = [weights_of(state)]
    for entry in loop.steps(state, 0):
        assert entry.step == len(seen)
        seen.append(weights_of(state))
    for step, (before, after) in enumerate(itertools.pairwise(seen)):
        moving = "token" if step < 3 else "adapter"
        resting = "adapter" if step < 3 else "token"
        assert all(torch.equal(before[resting][name], weight) for name, weight in after[resting].items())
        assert not any(torch.equal(before[moving][name], weight) for name, weight in after[moving].items())


def test_the_adapter_has_no_momentum_of_the_tokens_steps(tiny_sd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = spanned(tuning(tiny_sd, steps=4), monkeypatch)
    adapter = state.optimizer.param_groups[0]["params"]
    for entry in loop.steps(state, 0):
        assert all(bool(state.optimizer.state[weight]) is (entry.step > 2) for weight in adapter)


def test_the_tokens_rate_is_the_text_encoders(tiny_sd: Path) -> None:
    recipe, family = tuning(tiny_sd), families.get("sd")
    pipe = family.load(resolve(str(tiny_sd)), torch.float32)
    groups = pivotal.attach(pipe, family, recipe)
    assert {group.component: (group.rate, group.span) for group in groups} == {
        "unet": (1e-2, (0.5, 1.0)),
        "text_encoder": (1e-3, (0.0, 0.5)),
    }
    assert recipe.model_copy(update={"steps": 5}) != recipe


def test_stock_diffusers_loads_both(tiny_sd: Path, tmp_path: Path) -> None:
    recipe, family, source = tuning(tiny_sd, alpha=3.0), families.get("sd"), resolve(str(tiny_sd))
    pipe = family.load(source, torch.float32)
    groups = pivotal.attach(pipe, family, recipe)
    untouched = picture(pipe, f"a {TOKEN} dog")
    train_at_random(groups)
    trained = picture(pipe, f"a {TOKEN} dog")
    assert abs(trained - untouched).max() > 0.01
    pivotal.save(pipe, family, source, recipe, tmp_path)
    stock = StableDiffusionPipeline.from_pretrained(tiny_sd, safety_checker=None)
    stock.load_lora_weights(tmp_path)
    stock.load_textual_inversion(tmp_path)
    np.testing.assert_allclose(picture(stock, f"a {TOKEN} dog"), trained, atol=2e-5)
    ours = pivotal.load(family, source, recipe, tmp_path)
    np.testing.assert_array_equal(picture(ours, f"a {TOKEN} dog"), picture(stock, f"a {TOKEN} dog"))


def test_every_text_encoder_learns_the_token(debug_folder: Callable[[str], Path]) -> None:
    model, family = debug_folder("sdxl"), families.get("sdxl")
    pipe = family.load(resolve(str(model)), torch.float32)
    groups = pivotal.attach(pipe, family, tuning(model))
    assert [group.component for group in groups] == ["unet", "text_encoder", "text_encoder_2"]


def test_a_run_from_photos_to_pictures(tiny_sd: Path, tmp_path: Path) -> None:
    subject = {"photos": make_photos(tmp_path / "photos"), "class_noun": "dog"}
    quick = {"model": str(tiny_sd), "steps": 4, "samples": 1, "inference_steps": 2, "prior_loss": "parent"}
    run = train(Recipe.of({**quick, "method": "pivotal", "subjects": [subject]}), tmp_path / "run")
    assert run.recipe.subjects[0].identifier == TOKEN
    assert run.recipe.text_encoder_learning_rate == 5e-4
    assert {path.name for path in run.adapter.iterdir()} == {
        *("pytorch_lora_weights.safetensors", "learned_embeds.safetensors")
    }
    stock: DiffusionPipeline = StableDiffusionPipeline.from_pretrained(tiny_sd, safety_checker=None)
    start_D = stock.text_encoder.get_input_embeddings().weight[stock.tokenizer.get_vocab()["dog</w>"]].detach()
    stock.load_textual_inversion(run.adapter)
    learned_D = stock.text_encoder.get_input_embeddings().weight[-1].detach()
    assert 0 < (learned_D - start_D).abs().max() < 0.1
