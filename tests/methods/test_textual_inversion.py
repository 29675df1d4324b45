"""A new token's embedding is all that is trained, written and read back; against stock transformers and diffusers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from dreambooth import families, generate, loop, methods, train
from dreambooth.methods import textual_inversion
from dreambooth.models import resolve
from dreambooth.recipe import Recipe
from dreambooth.samples import image_generator
from dreambooth.sampling import Sampling, draw
from tests import debug_models
from tests.commands import make_photos
from tests.test_loop import gradients, make_loop, recipe_for

TOKEN = "<dog-1>"
SUBJECT = {"photos": ".", "class_noun": "dog", "identifier": TOKEN}
OTHER = {"photos": ".", "class_noun": "coffee mug", "identifier": "<mug>"}


def inversion(model: Path, **values: Any) -> Recipe:
    own = {"method": "textual-inversion", "rank": None, "alpha": None, "text_encoder_learning_rate": None}
    return recipe_for(model, **{**own, "prior_weight": 0.0, "subjects": [SUBJECT], **values})


def attached(recipe: Recipe, dtype: torch.dtype = torch.float32) -> tuple[DiffusionPipeline, nn.Parameter]:
    family = families.get("sd")
    pipe = family.load(resolve(str(recipe.model)), dtype)
    (group,) = textual_inversion.attach(pipe, family, recipe)
    (rows_KD,) = group.parameters.values()
    return pipe, rows_KD


def stock(model: Path) -> StableDiffusionPipeline:
    return StableDiffusionPipeline.from_pretrained(model, safety_checker=None)


def table_of(pipe: DiffusionPipeline) -> Tensor:
    table_VD: Tensor = pipe.text_encoder.get_input_embeddings().weight
    return table_VD


def frozen(pipe: DiffusionPipeline) -> dict[str, Tensor]:
    """All weights but the trained rows, and the table without the places of new tokens."""
    parts = {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
    named = {f"{name}.{key}": weight for name, part in parts.items() for key, weight in part.named_parameters()}
    return {
        name: weight.detach()[:49408] if name.endswith("token_embedding.weight") else weight.detach()
        for name, weight in named.items()
        if not name.endswith(textual_inversion.ROWS)
    }


def test_a_token_starts_as_the_mean_of_its_class(tiny_sd: Path) -> None:
    _, rows_KD = attached(inversion(tiny_sd, subjects=[SUBJECT, OTHER]))
    base = stock(tiny_sd)
    vocabulary = base.tokenizer.get_vocab()
    dog, coffee, mug = (table_of(base)[vocabulary[f"{word}</w>"]] for word in ("dog", "coffee", "mug"))
    torch.testing.assert_close(rows_KD.detach(), torch.stack([dog, (coffee + mug) / 2]), rtol=0, atol=1e-7)


def test_training_moves_the_new_row_and_leaves_every_other_bit(tiny_sd: Path, tmp_path: Path) -> None:
    recipe = inversion(tiny_sd)
    state, family = make_loop(recipe)
    pipe = state.trainee._pipe
    (rows_KD,) = state.optimizer.param_groups[0]["params"]
    start_KD = rows_KD.detach().clone()
    for _ in loop.steps(state, 0):
        pass
    assert (rows_KD - start_KD).abs().min() > 1e-4
    untouched = frozen(stock(tiny_sd))
    trained = frozen(pipe)
    assert trained.keys() == untouched.keys()
    assert [name for name, weight in trained.items() if not torch.equal(weight, untouched[name])] == []

    textual_inversion.save(pipe, family, resolve(str(tiny_sd)), recipe, tmp_path)
    loaded = stock(tiny_sd)
    loaded.load_textual_inversion(tmp_path)
    assert loaded.tokenizer.convert_tokens_to_ids(TOKEN) == 49408
    assert torch.equal(table_of(loaded)[49408:], rows_KD)
    assert all(torch.equal(weight, untouched[name]) for name, weight in frozen(loaded).items())


def test_the_gradient_is_that_of_the_tables_row_in_stock_code(tiny_sd: Path) -> None:
    """Autograd over the whole table, as the stock loader leaves it, is the reference."""
    ours, rows_KD = attached(inversion(tiny_sd))
    theirs = stock(tiny_sd)
    theirs.load_textual_inversion({TOKEN: rows_KD.detach().clone()})
    texts = [f"a {TOKEN} dog beside another {TOKEN}", "a dog"]
    losses = []
    for pipe in (ours, theirs):
        ids_BL = pipe.tokenizer(texts, padding="max_length", return_tensors="pt").input_ids
        losses.append(pipe.text_encoder(ids_BL)[0].pow(3).sum())
    (grad_KD,) = torch.autograd.grad(losses[0], rows_KD)
    (grad_VD,) = torch.autograd.grad(losses[1], table_of(theirs))
    assert torch.equal(losses[0], losses[1])
    assert grad_KD.abs().max() > 0
    torch.testing.assert_close(grad_KD, grad_VD[49408:])


def test_class_images_change_nothing(tiny_sd: Path) -> None:
    """Their prompt does not hold the token, so prior preservation is off by default."""
    _, alone = gradients(make_loop(inversion(tiny_sd))[0], accumulation=1)
    with_prior = make_loop(inversion(tiny_sd, prior_weight=1.0))[0]
    assert torch.equal(gradients(with_prior, accumulation=2)[1], alone)  # the second pass holds a class image alone


def test_each_subject_has_its_token_and_its_file(tiny_sd: Path, tmp_path: Path) -> None:
    recipe, family = inversion(tiny_sd, subjects=[SUBJECT, OTHER]), families.get("sd")
    pipe, rows_KD = attached(recipe)
    rows_KD.data.copy_(torch.arange(16.0).reshape(2, 8))
    source = resolve(str(tiny_sd))
    textual_inversion.save(pipe, family, source, recipe, tmp_path)
    written = {file.name: load_file(file) for file in sorted(tmp_path.iterdir())}
    assert {name: list(tensors) for name, tensors in written.items()} == {
        "learned_embeds-2.safetensors": ["<mug>"],
        "learned_embeds.safetensors": [TOKEN],
    }
    loaded = textual_inversion.load(family, source, recipe, tmp_path)
    for index, subject in enumerate(recipe.subjects):
        (place,) = loaded.tokenizer.encode(subject.identifier, add_special_tokens=False)
        assert torch.equal(table_of(loaded)[place], rows_KD[index])


def test_each_text_encoder_has_its_row_and_its_file(debug_folder: Callable[[str], Path], tmp_path: Path) -> None:
    model, family = debug_folder("sdxl"), families.get("sdxl")
    recipe, source = inversion(model), resolve(str(model))
    pipe = family.load(source, torch.float32)
    groups = textual_inversion.attach(pipe, family, recipe)
    assert [group.component for group in groups] == ["text_encoder", "text_encoder_2"]
    rows = [weight for group in groups for weight in group.parameters.values()]
    for scale, weight in enumerate(rows, 1):
        weight.data.mul_(3 * scale)
    textual_inversion.save(pipe, family, source, recipe, tmp_path)
    shipped = textual_inversion.load(family, source, recipe, tmp_path)
    texts = [f"a {TOKEN} dog"]
    for ours, theirs in zip(pipe.encode_prompt(texts), shipped.encode_prompt(texts), strict=True):
        torch.testing.assert_close(ours, theirs)
    names = ["learned_embeds.safetensors", "learned_embeds_2.safetensors"]
    assert all(torch.equal(load_file(tmp_path / name)[TOKEN], row) for name, row in zip(names, rows, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_it_trains_what_ships(dtype: torch.dtype, tiny_sd: Path, tmp_path: Path) -> None:
    precision = {torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]
    recipe, family = inversion(tiny_sd, precision=precision), families.get("sd")
    pipe, rows_KD = attached(recipe, dtype)
    rows_KD.data.add_(1 / 3)
    source = resolve(str(tiny_sd))
    textual_inversion.save(pipe, family, source, recipe, tmp_path)
    loaded = textual_inversion.load(family, source, recipe, tmp_path)
    ids_BL = pipe.tokenizer([f"a {TOKEN} dog"], return_tensors="pt").input_ids
    seen, shipped = (each.text_encoder.get_input_embeddings()(ids_BL) for each in (pipe, loaded))
    assert seen.dtype == dtype
    assert torch.equal(seen, shipped)


def test_generated_pictures_are_those_of_stock_code(tiny_sd: Path, tmp_path: Path) -> None:
    subject = {"photos": make_photos(tmp_path / "photos"), "class_noun": "dog"}
    open_recipe = {"model": str(tiny_sd), "method": "textual-inversion", "steps": 2, "samples": 0}
    run = train(Recipe.of({**open_recipe, "subjects": [subject]}), tmp_path / "run")
    folder = generate(run.path, ["a [V] dog"], seed=3, inference_steps=2)
    (made,) = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["images"]
    assert made["text"] == f"a {TOKEN} dog"
    pipe = stock(tiny_sd)
    pipe.load_textual_inversion(run.adapter)
    (expected,) = draw(pipe, [made["text"]], [image_generator(3)], Sampling("dpm++", 2, 7.5, 32))
    with Image.open(folder / made["file"]) as image:
        np.testing.assert_array_equal(np.asarray(image), np.asarray(expected))


def test_what_follows_a_new_token_counts_in_the_sum_of_a_text(tmp_path: Path) -> None:
    """Published configs name 2 as the end, with which transformers takes the highest id for it: the new token's."""
    model = debug_models.build("sdxl", tmp_path / "model")
    recipe, family, source = inversion(model, resolution=64), families.get("sdxl"), resolve(str(model))
    pipe = family.load(source, torch.float32)
    textual_inversion.attach(pipe, family, recipe)
    textual_inversion.save(pipe, family, source, recipe, tmp_path)
    for each in (pipe, textual_inversion.load(family, source, recipe, tmp_path)):
        with torch.no_grad():
            rows = family.encode_prompts(each, [f"a {TOKEN} on the beach", f"a {TOKEN} in the snow at night"])
        one, other = (row["pooled_D"] for row in rows)
        assert torch.dist(one, other) > 0.01


def test_it_trains_components_that_others_do_not(tiny_sd: Path) -> None:
    recipe, family = inversion(tiny_sd), families.get("sd")
    pipe, _ = attached(recipe)
    assert list(methods.trained_components(pipe, family, recipe)) == ["text_encoder"]
    assert methods.trains_text_encoders(recipe)
    assert not methods.trains_text_encoders(recipe_for(tiny_sd))
