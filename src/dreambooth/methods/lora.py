"""LoRA (Hu et al. 2021, https://arxiv.org/abs/2106.09685) and its kin, by peft. `adapter` in the recipe names the kind.

Shipped as the file that stock diffusers loads: "lora"; "rslora", scaled by alpha / sqrt(rank) (Kalajdzievski 2023,
https://arxiv.org/abs/2312.03732); "dora", with a magnitude of each output (Liu et al. 2024,
https://arxiv.org/abs/2402.09353).

Shipped as a folder of each component that peft loads: "lokr" and "loha", Kronecker and Hadamard products (Yeh et al.
2023, https://arxiv.org/abs/2309.14859); "oft" and "hra", which rotate a layer's inputs, by blocks (Qiu et al. 2023,
https://arxiv.org/abs/2306.07280) and by Householder reflections (Yuan et al. 2024, https://arxiv.org/abs/2405.17484).
BOFT is not here: without a CUDA extension that peft compiles, its butterfly has one factor, which is OFT.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import cast

import torch
from diffusers import DiffusionPipeline
from diffusers.loaders.peft import PeftAdapterMixin
from diffusers.training_utils import cast_training_params
from peft import HRAConfig, LoHaConfig, LoKrConfig, LoraConfig, OFTConfig, PeftConfig, PeftModel
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn

from dreambooth.families import Family
from dreambooth.methods import Group, rate, tlora, trained_components
from dreambooth.models import Source
from dreambooth.precision import storage_dtype
from dreambooth.recipe import Recipe

T_LORA = """This is a T-LoRA, whose ranks depend on the time of sampling: draw with `dreambooth generate`.
Other readers take all ranks at all times, which is not what was trained.
"""


def attach(pipe: DiffusionPipeline, family: Family, recipe: Recipe) -> list[Group]:
    """Add an adapter to the trained components, drawn from the recipe's seed so that the output is unchanged."""
    groups = []
    for name, module in trained_components(pipe, family, recipe).items():
        is_denoiser = module is family.denoiser(pipe)
        assert recipe.targets is not None, "presets.fill leaves them open for no run"
        targets = family.LORA_TARGETS[recipe.targets] if is_denoiser else family.TEXT_LORA_TARGETS
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            cast(PeftAdapterMixin, module).add_adapter(_config(recipe, module, targets))
        if recipe.min_rank and is_denoiser:
            tlora.mask_ranks(module, cast(int, recipe.rank), recipe.min_rank)
        cast_training_params(module, torch.float32)
        trained = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
        groups.append(Group(name, trained, rate(recipe, family, pipe, module)))
    return groups


def save(pipe: DiffusionPipeline, family: Family, source: Source, recipe: Recipe, folder: Path) -> None:
    """Write `pytorch_lora_weights.safetensors`, or a folder of each component and a README that says how to load it."""
    trained = trained_components(pipe, family, recipe)
    if recipe.is_lora:
        scale = recipe.lora_scale
        assert scale is not None, "presets.fill leaves no rank and no alpha open"
        parts = {name: _layers(part, scale, part is not family.denoiser(pipe)) for name, part in trained.items()}
        type(pipe).save_lora_weights(folder, **{f"{name}_lora_layers": layers for name, layers in parts.items()})
        if recipe.min_rank:
            (folder / "README.md").write_text(T_LORA, encoding="utf-8")
        return
    for name, module in trained.items():
        _save_folder(module, source, folder / name)
    calls = "\n".join(f'PeftModel.from_pretrained(pipe.{name}, "{name}")' for name in trained)
    text = f"""This is no LoRA but {recipe.adapter.upper()}, which peft reads ({version("peft")} wrote it):

```python
from peft import PeftModel

{calls}
```
"""
    (folder / "README.md").write_text(text, encoding="utf-8")


def load(family: Family, source: Source, recipe: Recipe, folder: Path) -> DiffusionPipeline:
    """Load the base model and the adapter, called "subject", on top of it."""
    pipe = family.load(source, storage_dtype(recipe))
    if recipe.is_lora:
        pipe.load_lora_weights(folder, adapter_name="subject")
        if recipe.min_rank:
            tlora.mask_ranks(family.denoiser(pipe), cast(int, recipe.rank), recipe.min_rank)
        return pipe
    for name, module in trained_components(pipe, family, recipe).items():
        PeftModel.from_pretrained(module, folder / name, adapter_name="subject")  # puts its layers into the module
    return pipe


def _config(recipe: Recipe, module: nn.Module, targets: Sequence[str]) -> PeftConfig:
    names, kind = list(targets), recipe.adapter
    if recipe.is_lora:
        kinds = {"use_rslora": kind == "rslora", "use_dora": kind == "dora", "init_lora_weights": "gaussian"}
        return LoraConfig(r=recipe.rank, lora_alpha=recipe.alpha, target_modules=names, **kinds)
    if kind == "hra":
        return HRAConfig(r=recipe.rank, target_modules=names)
    if kind == "oft":
        return _oft(recipe, module, names)
    lycoris = LoKrConfig if kind == "lokr" else LoHaConfig
    return lycoris(r=recipe.rank, alpha=recipe.alpha, target_modules=names)


def _oft(recipe: Recipe, module: nn.Module, names: list[str]) -> OFTConfig:
    """Return OFT in blocks of a side that divides the rank and the width of every layer that is named.

    Of convolutions larger than 1 x 1 peft adds up overlapping patches, so that its OFT would not begin as the identity.
    """
    endings = tuple(f".{name}" for name in names)
    named = {name: part for name, part in module.named_modules() if f".{name}".endswith(endings)}
    larger = [name for name, part in named.items() if isinstance(part, nn.Conv2d) and part.kernel_size != (1, 1)]
    sides = [part.weight.shape[1] for part in named.values() if isinstance(part, nn.Linear | nn.Conv2d)]
    block = math.gcd(cast(int, recipe.rank), *sides)
    return OFTConfig(oft_block_size=block, use_cayley_neumann=False, target_modules=names, exclude_modules=larger)


def _save_folder(module: nn.Module, source: Source, folder: Path) -> None:
    """Write a component's adapter as `PeftModel.save_pretrained` does."""
    config = copy.copy(cast(dict[str, PeftConfig], module.peft_config)["default"])
    config.base_model_name_or_path, config.inference_mode = source.name, True
    config.save_pretrained(str(folder))
    layers = {f"base_model.model.{name}": w.contiguous() for name, w in get_peft_model_state_dict(module).items()}
    save_file(layers, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def _layers(module: nn.Module, scale: float, is_text: bool) -> dict[str, Tensor]:
    """Return a component's LoRA under peft's own names, with the scale folded into B.

    Readers disagree about where alpha is kept; with the scale folded in, alpha = rank is true for all of them.
    diffusers' older names (`lora.down`) exist for attention alone, and its loader drops them where both kinds meet.
    """
    layers = {name: w * scale if ".lora_B." in name else w for name, w in get_peft_model_state_dict(module).items()}
    if not is_text:
        return layers
    # transformers >= 5.6 has no `text_model` level in its modules; every reader of the file expects one.
    # Its own reader, which stock diffusers asks, passes over DoRA's magnitudes unless they are named as in the modules.
    ends = {name: f"{name}.weight" if name.endswith("lora_magnitude_vector") else name for name in layers}
    starts = {name: "" if name.startswith("text_model.") else "text_model." for name in layers}
    return {f"{starts[name]}{ends[name]}": weight for name, weight in layers.items()}
