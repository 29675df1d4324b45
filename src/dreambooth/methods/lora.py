"""LoRA (Hu et al. 2021, https://arxiv.org/abs/2106.09685), by peft; shipped as the file that stock diffusers loads."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from diffusers import DiffusionPipeline
from diffusers.loaders.peft import PeftAdapterMixin
from diffusers.training_utils import cast_training_params
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn

from dreambooth.families import Family
from dreambooth.methods import Group, rate, trained_components
from dreambooth.models import Source
from dreambooth.precision import storage_dtype
from dreambooth.recipe import Recipe


def attach(pipe: DiffusionPipeline, family: Family, recipe: Recipe) -> list[Group]:
    """Add a LoRA to the trained components: A drawn from the recipe's seed, B zero, so the output is unchanged."""
    groups = []
    for name, module in trained_components(pipe, family, recipe).items():
        is_denoiser = module is family.denoiser(pipe)
        targets = family.LORA_TARGETS[recipe.targets] if is_denoiser else family.TEXT_LORA_TARGETS
        config = LoraConfig(
            r=recipe.rank, lora_alpha=recipe.alpha, target_modules=list(targets), init_lora_weights="gaussian"
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            cast(PeftAdapterMixin, module).add_adapter(config)
        cast_training_params(module, torch.float32)
        trained = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
        groups.append(Group(name, trained, rate(recipe, family, pipe, module)))
    return groups


def save(pipe: DiffusionPipeline, family: Family, source: Source, recipe: Recipe, folder: Path) -> None:
    """Write `pytorch_lora_weights.safetensors`, with the scale alpha / rank folded into B.

    Readers disagree about where alpha is kept; with the scale folded in, alpha = rank is true for all of them.
    """
    assert recipe.rank is not None, "presets.fill leaves it open for full fine-tuning alone"
    assert recipe.alpha is not None, "presets.fill leaves it open for full fine-tuning alone"
    scale = recipe.alpha / recipe.rank
    layers = {
        f"{name}_lora_layers": _layers(module, scale, is_text=module is not family.denoiser(pipe))
        for name, module in trained_components(pipe, family, recipe).items()
    }
    type(pipe).save_lora_weights(folder, **layers)


def load(family: Family, source: Source, recipe: Recipe, folder: Path) -> DiffusionPipeline:
    """Load the base model and the LoRA on top of it."""
    pipe = family.load(source, storage_dtype(recipe))
    pipe.load_lora_weights(folder, adapter_name="subject")
    return pipe


def _layers(module: nn.Module, scale: float, is_text: bool) -> dict[str, Tensor]:
    """Return a component's LoRA under peft's own names.

    diffusers' older names (`lora.down`) exist for attention alone, and its loader drops them where both kinds meet.
    """
    layers = {name: w * scale if ".lora_B." in name else w for name, w in get_peft_model_state_dict(module).items()}
    if not is_text:
        return layers
    # transformers >= 5.6 has no `text_model` level in its modules; every reader of the file expects one.
    return {name if name.startswith("text_model.") else f"text_model.{name}": w for name, w in layers.items()}
