"""The names that a layer goes by in the files of different programs.

A layer's path is its component and its module's name, as diffusers' adapter files have it:
"unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q". The original U-Net's names are those of Rombach et al.'s
`ldm.modules.diffusionmodules.openaimodel.UNetModel`, which Stability AI's SDXL code kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from diffusers import DiffusionPipeline
from torch import nn

from dreambooth import families

UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
"""Modules outside the U-Net's blocks: diffusers' name -> the original's."""

UNET_BLOCK = re.compile(r"(down|mid|up)_blocks?\.(?:(\d+)\.)?(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
"""Names of modules in the U-Net's blocks."""

RESNET_PARTS = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
"""Modules of a residual block of the U-Net: diffusers' name -> the original's."""

PREFIXES = {
    "sd": {"unet": ("lora_unet",), "text_encoder": ("lora_te", "lora_te1")},
    "sdxl": {"unet": ("lora_unet",), "text_encoder": ("lora_te1", "lora_te"), "text_encoder_2": ("lora_te2",)},
}
"""Family -> component -> how kohya's files begin its names; the first is the one that is written."""


def layers(pipe: DiffusionPipeline) -> dict[str, nn.Module]:
    """Return all linear and convolutional layers of the denoiser and the text encoders by their path.

    CLIP's text encoders always have the level `text_model`, which transformers >= 5.6 left out of its modules.
    """
    family = families.of(pipe)
    denoiser = family.denoiser(pipe)
    (name,) = [name for name, part in pipe.components.items() if part is denoiser]
    found = dict(_layers(name, denoiser))
    for name, encoder in family.text_encoders(pipe).items():
        found.update(_layers(name, encoder))
    return found


def _layers(component: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    is_flat_clip = type(module).__name__ == "CLIPTextModel" and not hasattr(module, "text_model")
    level = "text_model." if is_flat_clip else ""
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d) and ".lora_" not in name:
            yield f"{component}.{level}{name.removesuffix('.base_layer')}", layer


def written(path: str, pipe: DiffusionPipeline) -> str:
    """Return the name under which kohya's format keeps a layer.

    Stable Diffusion's U-Net goes by diffusers' names there, SDXL's by the original ones: so kohya's own trainer writes
    them, and every reader of its files knows them.

    Args:
        path: The layer's path.
        pipe: A pipeline of the family `sd` or `sdxl`.
    """
    component, name = path.split(".", 1)
    family = families.PIPELINES[type(pipe).__name__]
    if family == "sdxl" and component == "unet":
        name = original(name, pipe.unet.config)
    return _flat(PREFIXES[family][component][0], name)


def known(path: str, pipe: DiffusionPipeline) -> Iterator[str]:
    """Yield every name under which a file may keep a layer."""
    component, name = path.split(".", 1)
    yield path
    yield _old_diffusers(path)
    prefixes = PREFIXES.get(families.PIPELINES[type(pipe).__name__], {})
    yield from (_flat(prefix, name) for prefix in prefixes.get(component, ()))
    if component == "unet":
        yield name
        yield _old_diffusers(name)
        if prefixes and (name in UNET_ENDS or UNET_BLOCK.fullmatch(name)):  # a latent-diffusion U-Net's
            yield _flat("lora_unet", original(name, pipe.unet.config))
            yield f"diffusion_model.{original(name, pipe.unet.config)}"


def original(name: str, config: Mapping[str, Any]) -> str:
    """Return the original name of a module of a latent-diffusion U-Net.

    Args:
        name: The module's name in diffusers' U-Net, such as "down_blocks.0.resnets.0.conv1".
        config: The U-Net's configuration, for the number of layers in a block and the kinds of blocks.
    """
    if name in UNET_ENDS:
        return UNET_ENDS[name]
    match = UNET_BLOCK.fullmatch(name)
    assert match, f"{name} is no module of a latent-diffusion U-Net"
    way, block, kind, index, rest = match[1], int(match[2] or 0), match[3], int(match[4]), match[5]
    if kind == "resnets":
        part, *leaf = rest.split(".", 1)
        rest = ".".join([RESNET_PARTS[part], *leaf])
    if way == "mid":
        return f"middle_block.{2 * index if kind == 'resnets' else 1}.{rest}"
    return f"{_place(way, block, kind, index, config)}.{'op' if kind == 'downsamplers' else rest}"


def _place(way: str, block: int, kind: str, index: int, config: Mapping[str, Any]) -> str:
    """Return where a part of a block is: the original numbers its blocks through, with the resizing ones among them."""
    count = config["layers_per_block"] + 1
    if kind == "downsamplers":
        return f"input_blocks.{(block + 1) * count}.0"
    if kind == "upsamplers":
        has_attention = "CrossAttn" in config["up_block_types"][block]
        return f"output_blocks.{(block + 1) * count - 1}.{2 if has_attention else 1}"
    column = 0 if kind == "resnets" else 1
    return (
        f"input_blocks.{1 + block * count + index}.{column}"
        if way == "down"
        else f"output_blocks.{block * count + index}.{column}"
    )


def _old_diffusers(path: str) -> str:
    """Return how diffusers' files before peft named an attention layer; other layers keep their path."""
    path = re.sub(r"\.self_attn\.(q|k|v|out)_proj$", r".self_attn.to_\1", path)
    return re.sub(r"\.(attn\d)\.to_(q|k|v|out)(\.0)?$", r".\1.processor.to_\2", path)


def _flat(prefix: str, name: str) -> str:
    return f"{prefix}_{name.replace('.', '_')}"
