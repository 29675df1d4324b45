"""LoRA's kin: what they start from, what they keep, and that their stock readers give the picture that was trained."""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from safetensors.torch import load_file
from torch import Tensor, nn

from dreambooth import families, generate, methods, train
from dreambooth.errors import UserError
from dreambooth.methods import lora
from dreambooth.models import resolve
from dreambooth.recipe import Recipe
from tests.commands import make_photos
from tests.test_loop import recipe_for
from tests.test_methods import base, picture, train_at_random

KIN = ["lokr", "loha", "oft", "hra"]
LORAS = ["rslora", "dora"]
FAMILY = families.get("sd")


def adapted(model: Path, adapter: str, **values: Any) -> Recipe:
    alpha = None if adapter in ("oft", "hra") else 3.0
    return recipe_for(model, **{"adapter": adapter, "alpha": alpha, "train_text_encoder": True, **values})


def as_its_readme_says(folder: Path, model: Path) -> DiffusionPipeline:
    """The stock pipeline with the adapter that the README in `folder` tells to load."""
    pipe = StableDiffusionPipeline.from_pretrained(model, safety_checker=None)
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    with contextlib.chdir(folder):
        exec(code, {"pipe": pipe})
    return pipe


@pytest.mark.parametrize("targets", ["attention", "wide"])
@pytest.mark.parametrize("adapter", [*LORAS, *KIN])
def test_the_shipped_adapter_gives_the_trained_picture(
    adapter: str, targets: str, tiny_sd: Path, tmp_path: Path
) -> None:
    recipe = adapted(tiny_sd, adapter, targets=targets)
    pipe, source = base(tiny_sd)
    untouched = picture(pipe)
    groups = lora.attach(pipe, FAMILY, recipe)
    np.testing.assert_allclose(picture(pipe), untouched, atol=1e-5)
    assert {group.component for group in groups} == {"unet", "text_encoder"}
    train_at_random(groups)
    trained = picture(pipe)
    assert abs(trained - untouched).max() > 0.01
    lora.save(pipe, FAMILY, source, recipe, tmp_path)
    if adapter in LORAS:
        stock = StableDiffusionPipeline.from_pretrained(tiny_sd, safety_checker=None)
        stock.load_lora_weights(tmp_path)
    else:
        stock = as_its_readme_says(tmp_path, tiny_sd)
    np.testing.assert_allclose(picture(stock), trained, atol=2e-5)
    np.testing.assert_array_equal(picture(lora.load(FAMILY, source, recipe, tmp_path)), picture(stock))


@pytest.mark.parametrize("adapter", KIN)
def test_a_folder_says_what_it_is_and_names_no_place(adapter: str, tiny_sd: Path, tmp_path: Path) -> None:
    recipe = adapted(tiny_sd, adapter)
    pipe, source = base(tiny_sd)
    lora.attach(pipe, FAMILY, recipe)
    lora.save(pipe, FAMILY, source, recipe, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"unet", "text_encoder", "README.md"}
    for part in ("unet", "text_encoder"):
        config = json.loads((tmp_path / part / "adapter_config.json").read_text(encoding="utf-8"))
        assert (config["peft_type"], config["base_model_name_or_path"]) == (adapter.upper(), source.name)


def weights_of(part: nn.Module) -> dict[str, Tensor]:
    """Weights of the layers that have adapters, as the network uses them: the answers to unit inputs."""
    return {
        name: (layer(torch.eye(layer.in_features)) - layer(torch.zeros(1, layer.in_features))).T.detach()
        for name, layer in part.named_modules()
        if name.endswith(("to_q", "to_k", "to_v", "to_out.0"))
    }


@pytest.mark.parametrize("adapter", ["oft", "hra"])
def test_rotations_keep_the_angles_between_neurons(adapter: str, tiny_sd: Path) -> None:
    """The defining property: with W' = W R, W' W'^T = W W^T."""
    pipe, _ = base(tiny_sd)
    before = weights_of(pipe.unet)
    train_at_random(lora.attach(pipe, FAMILY, adapted(tiny_sd, adapter, rank=4)))
    after = weights_of(pipe.unet)
    for name, weight_OI in before.items():
        torch.testing.assert_close(after[name] @ after[name].T, weight_OI @ weight_OI.T, rtol=1e-4, atol=1e-5)
        assert (after[name] - weight_OI).abs().max() > 1e-3


def test_rslora_is_scaled_by_the_root_of_its_rank(tiny_sd: Path, tmp_path: Path) -> None:
    recipe = adapted(tiny_sd, "rslora", rank=4, train_text_encoder=False)
    pipe, source = base(tiny_sd)
    before = weights_of(pipe.unet)
    (group,) = lora.attach(pipe, FAMILY, recipe)
    train_at_random([group])
    changed = weights_of(pipe.unet)
    lora.save(pipe, FAMILY, source, recipe, tmp_path)
    shipped = load_file(tmp_path / "pytorch_lora_weights.safetensors")
    for name, weight_OI in before.items():
        down_RI, up_OR = (group.parameters[f"{name}.lora_{part}.default.weight"].detach() for part in "AB")
        torch.testing.assert_close(changed[name] - weight_OI, 3 / math.sqrt(4) * up_OR @ down_RI, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(shipped[f"unet.{name}.lora_B.weight"], 1.5 * up_OR)


@pytest.mark.parametrize("adapter", [*LORAS, *KIN])
def test_in_half_precision_the_adapter_is_float32_and_nothing_else_is_trained(adapter: str, tiny_sd: Path) -> None:
    pipe = FAMILY.load(resolve(str(tiny_sd)), torch.bfloat16)
    groups = lora.attach(pipe, FAMILY, adapted(tiny_sd, adapter, precision="bf16"))
    trained = {id(weight) for group in groups for weight in group.parameters.values()}
    for part in (pipe.unet, pipe.text_encoder):
        for weight in part.parameters():
            assert weight.requires_grad is (id(weight) in trained)
            assert weight.dtype == (torch.float32 if weight.requires_grad else torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        pipe.unet(
            torch.randn(1, 4, 8, 8).bfloat16(), 5, torch.randn(1, 77, 8).bfloat16()
        ).sample.float().sum().backward()
    assert all(weight.grad is not None for weight in groups[0].parameters.values())


def test_b_lora_attaches_to_two_blocks_alone(debug_folder: Callable[[str], Path], tmp_path: Path) -> None:
    model, family = debug_folder("sdxl"), families.get("sdxl")
    source = resolve(str(model))
    pipe = family.load(source, torch.float32)
    recipe = recipe_for(model, targets="b-lora")
    (group,) = lora.attach(pipe, family, recipe)
    blocks = {name.split(".transformer_blocks")[0] for name in group.parameters}
    assert blocks == {"up_blocks.0.attentions.0", "up_blocks.0.attentions.1"}
    assert {name.split(".attn")[1].split(".lora")[0][2:] for name in group.parameters} == {
        *("to_q", "to_k", "to_v", "to_out.0")
    }
    lora.save(pipe, family, source, recipe, tmp_path)
    loaded = lora.load(family, source, recipe, tmp_path)
    assert {name for name, _ in loaded.unet.named_parameters() if "lora_" in name} == {
        name.replace(".default.", ".subject.") for name in group.parameters
    }


def test_a_run_of_kin_is_generated_from_and_goes_with_no_other(tiny_sd: Path, tmp_path: Path) -> None:
    subject = {"photos": make_photos(tmp_path / "photos"), "class_noun": "dog"}
    quick = {"model": str(tiny_sd), "steps": 2, "samples": 0, "prior_weight": 0.0, "subjects": [subject]}
    kinds = ("lokr", "oft", "dora")
    runs = {kind: train(Recipe.of({**quick, "adapter": kind}), tmp_path / kind) for kind in kinds}
    assert runs["oft"].recipe.alpha is None
    settings = {"seed": 3, "inference_steps": 2}
    made = [generate(runs[kind].path, ["a [V] dog"], **settings) for kind in ("lokr", "oft")]
    made.append(generate(runs["lokr"].path, ["a [V] dog"], adapters=[f"{runs['lokr'].path}=0.5"], **settings))
    strengths = [json.loads((each / "manifest.json").read_text(encoding="utf-8"))["adapters"] for each in made]
    assert [entry["strength"] for (entry,) in strengths] == [1.0, 1.0, 0.5]
    for name, extra in (("dora", "lokr"), ("lokr", "dora")):
        with pytest.raises(UserError, match="is a run of LoKr"):
            generate(runs[name].path, ["a [V] dog"], adapters=[str(runs[extra].path)])
    with pytest.raises(UserError, match="is a run of OFT: only a LoRA run can be an --adapter"):
        generate(runs["dora"].path, ["a [V] dog"], adapters=[str(runs["oft"].path)])
    assert methods.get("lora") is lora
