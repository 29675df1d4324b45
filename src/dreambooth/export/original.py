"""Stable Diffusion 1.x and 2.x in one file: the original layout, which most programs load as a "checkpoint".

The layout is that of Rombach et al.'s code (https://github.com/CompVis/stable-diffusion) and, for the text encoder of
2.x, of OpenCLIP (https://github.com/mlfoundations/open_clip).
"""

from __future__ import annotations

import re

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from dreambooth.export import names

OPEN_CLIP_WIDTH = 1024
"""Width of the cross-attention of SD 2.x, whose text encoder is kept in OpenCLIP's layout."""

CLIP_ENDS = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
CLIP_PARTS = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
"""CLIP's text encoder outside and inside its layers: transformers' names -> OpenCLIP's."""

ATTENTION_PARTS = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
"""Modules of the autoencoder's attention: diffusers' names -> the original's."""


def state_dict(pipe: DiffusionPipeline) -> dict[str, Tensor]:
    """Return all weights of a Stable Diffusion 1.x or 2.x pipeline under their original names."""
    texts = {name.removeprefix("text_model."): weight for name, weight in pipe.text_encoder.state_dict().items()}
    texts.pop("embeddings.position_ids", None)
    if pipe.unet.config.cross_attention_dim == OPEN_CLIP_WIDTH:
        encoder = {f"cond_stage_model.model.{name}": weight for name, weight in open_clip(texts).items()}
    else:
        encoder = {f"cond_stage_model.transformer.text_model.{name}": weight for name, weight in texts.items()}
    return {**unet(pipe), **autoencoder(pipe), **encoder}


def unet(pipe: DiffusionPipeline) -> dict[str, Tensor]:
    """Return the U-Net's weights."""
    found = {}
    for name, weight in pipe.unet.state_dict().items():
        module, leaf = name.rsplit(".", 1)
        found[f"model.diffusion_model.{names.original(module, pipe.unet.config)}.{leaf}"] = weight
    return found


def autoencoder(pipe: DiffusionPipeline) -> dict[str, Tensor]:
    """Return the autoencoder's weights; its attention is made of 1 x 1 convolutions there."""
    blocks = len(pipe.vae.config.block_out_channels)
    found = {}
    for name, weight in pipe.vae.state_dict().items():
        old = _autoencoder_name(name, blocks)
        is_matrix = ".mid.attn_1." in old and weight.dim() == 2
        found[f"first_stage_model.{old}"] = weight[:, :, None, None] if is_matrix else weight
    return found


def open_clip(texts: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a CLIP text encoder's weights in OpenCLIP's layout: query, key and value are one matrix there.

    Args:
        texts: The weights under transformers' names, without `text_model`.
    """
    found = {}
    for name, weight in texts.items():
        layer = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
        if layer is None:
            found[CLIP_ENDS[name]] = weight
            continue
        stem = f"transformer.resblocks.{layer[1]}"
        if layer[2] in CLIP_PARTS:
            found[f"{stem}.{CLIP_PARTS[layer[2]]}.{layer[3]}"] = weight
        elif layer[2] == "self_attn.q_proj":
            parts = [texts[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            found[f"{stem}.attn.in_proj_{layer[3]}"] = torch.cat(parts)
    return found


def _autoencoder_name(name: str, blocks: int) -> str:
    """Return the original name of a weight of the autoencoder; the decoder's blocks are numbered backwards there."""
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda match: f"mid.block_{int(match[1]) + 1}", name)
    if found := re.fullmatch(r"(\w+)\.mid_block\.attentions\.0\.(.+)\.(weight|bias)", name):
        return f"{found[1]}.mid.attn_1.{ATTENTION_PARTS[found[2]]}.{found[3]}"
    name = re.sub(r"down_blocks\.(\d+)\.", r"down.\1.", name)
    name = re.sub(r"up_blocks\.(\d+)\.", lambda match: f"up.{blocks - 1 - int(match[1])}.", name)
    return re.sub(r"(down|up)samplers\.0\.", r"\1sample.", name.replace(".resnets.", ".block."))
