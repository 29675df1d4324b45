"""A LoRA that begins as another one, of whatever trainer, and is trained on from there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from dreambooth import methods
from dreambooth.errors import UserError
from dreambooth.export import reading
from dreambooth.families import Family
from dreambooth.recipe import Recipe

DOWN, UP = ".lora_A.weight", ".lora_B.weight"


def file(path: Path) -> Path:
    """Return the LoRA file of a path: itself, or a run's.

    Raises:
        UserError: There is none.
    """
    found = path / "adapter" / "pytorch_lora_weights.safetensors" if path.is_dir() else path
    if not found.is_file():
        raise UserError(f"--start {path}: there is no LoRA: give a .safetensors file or the folder of a LoRA run")
    return found


def read(pipe: DiffusionPipeline, family: Family, recipe: Recipe) -> dict[str, Tensor]:
    """Read the LoRA that a recipe starts with.

    Args:
        pipe: The pipeline, before an adapter is attached.
        family: Its family.
        recipe: A resolved recipe.

    Returns:
        As `export.reading.read`.

    Raises:
        UserError: It does not fit the model, or the recipe's adapter has no place for all of it.
    """
    if recipe.start is None:
        return {}
    tensors = reading.read(file(recipe.start), pipe)
    rank = max(len(tensor) for name, tensor in tensors.items() if name.endswith(DOWN))
    assert recipe.rank is not None, "presets.fill leaves no rank open"
    assert recipe.targets is not None, "presets.fill leaves no targets open"
    if rank > recipe.rank:
        raise UserError(f"--start {recipe.start} has rank {rank}: give --rank {rank}")
    trained = methods.trained_components(pipe, family, recipe)
    for name in tensors:
        component, _, layer = name.removesuffix(DOWN).removesuffix(UP).partition(".")
        if component not in trained:
            raise UserError(f"--start {recipe.start} changes the {component}: give --train-text-encoder")
        is_denoiser = trained[component] is family.denoiser(pipe)
        targets = family.LORA_TARGETS[recipe.targets] if is_denoiser else family.TEXT_LORA_TARGETS
        if not f".{layer}".endswith(tuple(f".{target}" for target in targets)):
            mend = " or ".join(f"--targets {each}" for each in family.LORA_TARGETS if each != recipe.targets)
            raise UserError(f"--start {recipe.start} changes {component}.{layer}, which is not trained: give {mend}")
    return tensors


@torch.no_grad()
def put(pipe: DiffusionPipeline, tensors: dict[str, Tensor], scale: float | None) -> None:
    """Make the adapter, just attached and so without effect, the one that was read.

    Its rank may be larger: what the other one has not is left as it is drawn, with nothing coming of it.

    Args:
        pipe: The pipeline with the adapter.
        tensors: What `read` returned.
        scale: By which the adapter's B A is multiplied.
    """
    for name, tensor in tensors.items():
        component, _, path = name.removesuffix(DOWN).removesuffix(UP).partition(".")
        module = pipe.components[component]
        # the level that transformers >= 5.6 left out of CLIP's modules, and not of the names
        layer: Any = module.get_submodule(path if hasattr(module, "text_model") else path.removeprefix("text_model."))
        if name.endswith(DOWN):
            layer.lora_A["default"].weight[: len(tensor)] = tensor
        else:
            layer.lora_B["default"].weight[:, : tensor.shape[1]] = tensor / (scale or 1.0)
