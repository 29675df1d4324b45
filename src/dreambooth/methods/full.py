"""Full fine-tuning: every weight of the denoiser, as in the paper, and of the text encoder on request."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn

from dreambooth import shards
from dreambooth.families import Family
from dreambooth.files import write_json
from dreambooth.methods import Group, rate, trained_components
from dreambooth.models import Source
from dreambooth.precision import storage_dtype
from dreambooth.recipe import Recipe

WEIGHTS = "diffusion_pytorch_model.safetensors"
UNUSED = (".bin", ".ckpt", ".msgpack", ".onnx", ".pt")
"""Endings of weights that nothing here reads."""


def attach(pipe: DiffusionPipeline, family: Family, recipe: Recipe) -> list[Group]:
    """Thaw the trained components, in float32."""
    groups = []
    for name, module in trained_components(pipe, family, recipe).items():
        module.to(torch.float32).requires_grad_(True)
        groups.append(Group(name, dict(module.named_parameters()), rate(recipe, family, pipe, module)))
    return groups


def save(pipe: DiffusionPipeline, family: Family, source: Source, recipe: Recipe, folder: Path) -> None:
    """Write a stock pipeline folder: the base model with the trained components in place of its own.

    The other parts of a model folder are copied as they are, and the denoiser is written shard by shard: no second
    model is held in memory.
    """
    dtype = storage_dtype(recipe)
    trained = trained_components(pipe, family, recipe)
    if source.path.is_dir():
        shutil.copytree(source.path, folder, dirs_exist_ok=True, ignore=lambda at, names: _ignored(at, source, trained))
    else:
        rest = family.load(source, dtype)
        rest.save_pretrained(folder)
        for name in trained:
            shutil.rmtree(folder / name)
    _name_what_is_there(folder, trained)
    for name, module in trained.items():
        if module is family.denoiser(pipe):
            _stream(module, folder / name, dtype)
        else:
            encoder: Any = copy.deepcopy(module).to(dtype)
            encoder.save_pretrained(folder / name)


def _name_what_is_there(folder: Path, trained: Mapping[str, nn.Module]) -> None:
    """Strike parts from the index that were never downloaded, such as a safety checker: stock code would want them."""
    file = folder / "model_index.json"
    index = json.loads(file.read_text(encoding="utf-8"))
    for name, value in index.items():
        if isinstance(value, list) and name not in trained and not (folder / name).is_dir():
            index[name] = [None, None] if all(isinstance(each, str | None) for each in value) else value
    write_json(file, index)


def _ignored(at: str, source: Source, trained: Mapping[str, nn.Module]) -> set[str]:
    """Leave out what is written anew, and whatever else lies in a hub folder beside the parts of the pipeline."""
    path = Path(at)
    if path != source.path:
        return {file.name for file in path.iterdir() if file.suffix in UNUSED}
    parts = {"model_index.json", *json.loads((path / "model_index.json").read_text(encoding="utf-8"))}
    return {entry.name for entry in path.iterdir()} - (parts - {*trained})


def _stream(module: Any, folder: Path, dtype: torch.dtype) -> None:
    """Write a diffusers model as `save_pretrained` does, bringing one shard at a time to `dtype`."""
    module.save_config(folder)
    split = shards.write(module.state_dict(), folder / WEIGHTS, dtype)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_json(folder / f"{WEIGHTS}.index.json", index)


def load(family: Family, source: Source, recipe: Recipe, folder: Path) -> DiffusionPipeline:
    """Load the pipeline folder."""
    return family.load(Source(source.name, source.family, folder, source.identity, source.card), storage_dtype(recipe))
