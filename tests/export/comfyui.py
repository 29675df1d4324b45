"""How ComfyUI maps a LoRA's names to a model's weights, for the Stable Diffusion kinds: written from its rules.

Rules of `model_lora_keys_unet` and `model_lora_keys_clip` in comfy/lora.py, `unet_to_diffusers` in comfy/utils.py and
`LoRAAdapter` in comfy/weight_adapter/lora.py of Comfy-Org/ComfyUI at commit a125cd84b054a57729b5eecab930ca9408719832
(2025-10-12). comfy/lora.py has the same rules for these models at ec93dcacb96b922f7cb1417b3ba22bccb082df32.

The table is made as ComfyUI makes it: not from the names in a file, but by counting through the blocks of the
original U-Net that its own model would have. It ends at diffusers' names, so that a diffusers pipeline can be patched.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

RESNET = {
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
ATTENTION = ("proj_in", "proj_out")
BLOCK = tuple(f"attn{k}.{part}" for k in (1, 2) for part in ("to_q", "to_k", "to_v", "to_out.0"))
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2")
BASIC = {
    "input_blocks.0.0": "conv_in",
    "out.2": "conv_out",
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
}
CLIP = ("mlp.fc1", "mlp.fc2", *(f"self_attn.{part}_proj" for part in ("q", "k", "v", "out")))
ENDINGS = (
    (".lora_up.weight", ".lora_down.weight"),
    ("_lora.up.weight", "_lora.down.weight"),
    (".lora_B.weight", ".lora_A.weight"),
    (".lora.up.weight", ".lora.down.weight"),
    (".lora_linear_layer.up.weight", ".lora_linear_layer.down.weight"),
)


Table = dict[str, str]


def unet_table(config: Any) -> Table:
    """Original name of each layer that a LoRA may be on -> diffusers' name."""
    depths = config.transformer_layers_per_block
    depths = [depths] * len(config.down_block_types) if isinstance(depths, int) else list(depths)
    down = [depth if "CrossAttn" in kind else 0 for depth, kind in zip(depths, config.down_block_types, strict=True)]
    up = [depth if "CrossAttn" in kind else 0 for depth, kind in zip(depths[::-1], config.up_block_types, strict=True)]
    table = BASIC | _down(down, config.layers_per_block) | _up(up, config.layers_per_block + 1)
    table |= _attention("middle_block.1", "mid_block.attentions.0", depths[-1])
    for index in (0, 1):
        table |= _resnet(f"middle_block.{2 * index}", f"mid_block.resnets.{index}")
    return table


def _down(depths: list[int], layers: int) -> Table:
    table: Table = {}
    place = 1
    for block, depth in enumerate(depths):
        for layer in range(layers):
            table |= _resnet(f"input_blocks.{place}.0", f"down_blocks.{block}.resnets.{layer}")
            table |= _attention(f"input_blocks.{place}.1", f"down_blocks.{block}.attentions.{layer}", depth)
            place += 1
        table[f"input_blocks.{place}.0.op"] = f"down_blocks.{block}.downsamplers.0.conv"
        place += 1
    return table


def _up(depths: list[int], layers: int) -> Table:
    table: Table = {}
    place = 0
    for block, depth in enumerate(depths):
        for layer in range(layers):
            table |= _resnet(f"output_blocks.{place}.0", f"up_blocks.{block}.resnets.{layer}")
            table |= _attention(f"output_blocks.{place}.1", f"up_blocks.{block}.attentions.{layer}", depth)
            if layer == layers - 1:
                column = 2 if depth else 1
                table[f"output_blocks.{place}.{column}.conv"] = f"up_blocks.{block}.upsamplers.0.conv"
            place += 1
    return table


def _resnet(original: str, name: str) -> Table:
    return {f"{original}.{theirs}": f"{name}.{ours}" for theirs, ours in RESNET.items()}


def _attention(original: str, name: str, depth: int) -> Table:
    if not depth:
        return {}
    table = {f"{original}.{part}": f"{name}.{part}" for part in ATTENTION}
    for layer in range(depth):
        inner = f"transformer_blocks.{layer}"
        table |= {f"{original}.{inner}.{part}": f"{name}.{inner}.{part}" for part in (*BLOCK, *FEED_FORWARD)}
    return table


def key_map(pipe: DiffusionPipeline) -> dict[str, tuple[str, str]]:
    """Name in a LoRA file -> component and diffusers' name of the layer that ComfyUI patches."""
    names: dict[str, tuple[str, str]] = {}
    for original, name in unet_table(pipe.unet.config).items():
        target = ("unet", name)
        names[f"lora_unet_{original.replace('.', '_')}"] = target
        names[f"diffusion_model.{original}"] = target
        names[f"lora_unet_{name.replace('.', '_')}"] = target
        old = name.replace(".to_", ".processor.to_").removesuffix(".0" if name.endswith("to_out.0") else " ")
        names[old] = names[f"unet.{old}"] = target
    encoders = {"text_encoder": ("lora_te", "lora_te1"), "text_encoder_2": ("lora_te2",)}
    for component, prefixes in encoders.items():
        if getattr(pipe, component, None) is None:
            continue
        for layer in range(getattr(pipe, component).config.num_hidden_layers):
            for part in CLIP:
                name = f"text_model.encoder.layers.{layer}.{part}"
                for prefix in prefixes:
                    names[f"{prefix}_text_model_encoder_layers_{layer}_{part.replace('.', '_')}"] = (component, name)
                names[f"{component}.{name}"] = (component, name)
    return names


def load(pipe: DiffusionPipeline, tensors: dict[str, Tensor]) -> list[str]:
    """Patch a pipeline as ComfyUI would, and return the keys that it would report as not loaded."""
    loaded = set()
    for name, (component, layer) in key_map(pipe).items():
        alpha = tensors.get(f"{name}.alpha")
        loaded |= {f"{name}.alpha"} & tensors.keys()
        for up, down in ENDINGS:
            up_key, down_key = f"{name}{up}", f"{name}{down}"
            if up_key not in tensors:
                continue
            loaded |= {up_key, down_key}
            down_RI = tensors[down_key].flatten(1)
            scale = 1.0 if alpha is None else alpha.item() / len(down_RI)
            _weight(pipe, component, layer).add_(scale * (tensors[up_key].flatten(1) @ down_RI))
    return sorted(tensors.keys() - loaded)


def _weight(pipe: DiffusionPipeline, component: str, layer: str) -> Tensor:
    """Return a view of a layer's weight as a matrix; a name that the model lacks is an error, as in ComfyUI."""
    module = getattr(pipe, component)
    name = layer if hasattr(module, "text_model") else layer.removeprefix("text_model.")
    with torch.no_grad():
        return module.get_submodule(name).weight.data.flatten(1)
