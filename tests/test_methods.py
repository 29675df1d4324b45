"""What a method trains, writes and reads back, against stock diffusers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from safetensors.torch import load_file

from dreambooth import families, methods
from dreambooth.models import Source, resolve
from dreambooth.recipe import Recipe
from tests.test_loop import recipe_for

CASES = [
    ("lora", {"targets": "attention"}),
    ("lora", {"targets": "wide", "alpha": 6.0}),
    ("lora", {"targets": "attention", "train_text_encoder": True, "alpha": 3.0}),
    ("full", {"rank": None, "alpha": None}),
    ("full", {"rank": None, "alpha": None, "train_text_encoder": True}),
    (
        "textual-inversion",
        {
            "rank": None,
            "alpha": None,
            "text_encoder_learning_rate": None,
            "subjects": [{"photos": ".", "class_noun": "dog", "identifier": "<dog-1>"}],
        },
    ),
]


def picture(pipe: DiffusionPipeline, prompt: str = "a ohwx dog") -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(5)
    result = pipe(prompt, num_inference_steps=3, generator=generator, output_type="np", height=32, width=32)
    return np.asarray(result.images[0])


def base(model: Path) -> tuple[DiffusionPipeline, Source]:
    source = resolve(str(model))
    return families.get("sd").load(source, torch.float32), source


def train_at_random(groups: list[methods.Group]) -> None:
    """Stand in for training: move every trained weight a little."""
    torch.manual_seed(7)
    for group in groups:
        for weight in group.parameters.values():
            weight.data.add_(torch.randn_like(weight) * 0.05)


@pytest.mark.parametrize(("method", "values"), CASES)
def test_the_adapter_gives_the_same_picture_in_stock_diffusers(
    method: str, values: dict[str, object], tiny_sd: Path, tmp_path: Path
) -> None:
    recipe = recipe_for(tiny_sd, method=method, **values)
    prompt = f"a {recipe.subjects[0].identifier} dog"
    pipe, source = base(tiny_sd)
    family = families.get("sd")
    groups = methods.get(method).attach(pipe, family, recipe)
    untouched = picture(pipe, prompt)
    train_at_random(groups)
    trained = picture(pipe, prompt)
    methods.get(method).save(pipe, family, source, recipe, tmp_path)

    stock = StableDiffusionPipeline.from_pretrained(tmp_path if method == "full" else tiny_sd, safety_checker=None)
    if method == "lora":
        stock.load_lora_weights(tmp_path)
    elif method == "textual-inversion":
        stock.load_textual_inversion(tmp_path)
    assert abs(trained - untouched).max() > 0.01
    np.testing.assert_allclose(picture(stock, prompt), trained, atol=2e-5)
    ours = picture(methods.get(method).load(family, source, recipe, tmp_path), prompt)
    np.testing.assert_array_equal(ours, picture(stock, prompt))


def test_a_fresh_lora_leaves_the_output_unchanged(tiny_sd: Path) -> None:
    pipe, _ = base(tiny_sd)
    before = picture(pipe)
    methods.get("lora").attach(pipe, families.get("sd"), recipe_for(tiny_sd, targets="wide", train_text_encoder=True))
    np.testing.assert_array_equal(picture(pipe), before)


@pytest.mark.parametrize(("method", "values"), CASES)
def test_trained_weights_are_float32_and_the_rest_is_frozen(
    method: str, values: dict[str, object], tiny_sd: Path
) -> None:
    family = families.get("sd")
    pipe = family.load(resolve(str(tiny_sd)), torch.bfloat16)
    recipe = recipe_for(tiny_sd, method=method, precision="bf16", **values)
    groups = methods.get(method).attach(pipe, family, recipe)
    trained = {id(weight) for group in groups for weight in group.parameters.values()}
    parts = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    for part in parts:
        for weight in part.parameters():
            assert weight.requires_grad is (id(weight) in trained)
            assert weight.dtype == (torch.float32 if weight.requires_grad else torch.bfloat16)
    assert trained
    assert not any(weight.requires_grad for weight in pipe.vae.parameters())
    expected = set() if method == "textual-inversion" else {"unet"}
    expected |= {"text_encoder"} if methods.trains_text_encoders(recipe) else set()
    assert {group.component for group in groups} == expected


def test_lora_starts_from_the_seed(tiny_sd: Path) -> None:
    def start(seed: int) -> dict[str, torch.Tensor]:
        pipe, _ = base(tiny_sd)
        (group,) = methods.get("lora").attach(pipe, families.get("sd"), recipe_for(tiny_sd, seed=seed))
        return {name: weight.detach().clone() for name, weight in group.parameters.items()}

    first, again, other = start(0), start(0), start(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_text_encoder_keys_are_the_ones_that_readers_expect(tiny_sd: Path, tmp_path: Path) -> None:
    recipe: Recipe = recipe_for(tiny_sd, train_text_encoder=True)
    pipe, source = base(tiny_sd)
    methods.get("lora").attach(pipe, families.get("sd"), recipe)
    methods.get("lora").save(pipe, families.get("sd"), source, recipe, tmp_path)
    keys = load_file(tmp_path / "pytorch_lora_weights.safetensors")
    text = [key for key in keys if key.startswith("text_encoder.")]
    assert text
    assert all(key.startswith("text_encoder.text_model.encoder.layers.") for key in text)
    assert all(key.startswith(("unet.", "text_encoder.")) for key in keys)
