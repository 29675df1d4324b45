"""The inverse of diffusers' reading of LDM checkpoints, for tests: a pipeline to the tensors of a single file.

For the debug model only: two blocks of two layers in the U-Net, three blocks in the autoencoder.
"""

from __future__ import annotations

import re

import torch

UNET_RENAMES = [
    (r"(resnets\.\d)\.norm1", r"\1.in_layers.0"),
    (r"(resnets\.\d)\.conv1", r"\1.in_layers.2"),
    (r"(resnets\.\d)\.time_emb_proj", r"\1.emb_layers.1"),
    (r"(resnets\.\d)\.norm2", r"\1.out_layers.0"),
    (r"(resnets\.\d)\.conv2", r"\1.out_layers.3"),
    (r"(resnets\.\d)\.conv_shortcut", r"\1.skip_connection"),
    (r"^time_embedding\.linear_1", "time_embed.0"),
    (r"^time_embedding\.linear_2", "time_embed.2"),
    (r"^conv_in", "input_blocks.0.0"),
    (r"^conv_norm_out", "out.0"),
    (r"^conv_out", "out.2"),
    (r"^mid_block\.resnets\.(\d)", lambda m: f"middle_block.{2 * int(m[1])}"),
    (r"^mid_block\.attentions\.0", "middle_block.1"),
    (r"^down_blocks\.(\d)\.resnets\.(\d)", lambda m: f"input_blocks.{3 * int(m[1]) + int(m[2]) + 1}.0"),
    (r"^down_blocks\.(\d)\.attentions\.(\d)", lambda m: f"input_blocks.{3 * int(m[1]) + int(m[2]) + 1}.1"),
    (r"^down_blocks\.(\d)\.downsamplers\.0\.conv", lambda m: f"input_blocks.{3 * int(m[1]) + 3}.0.op"),
    (r"^up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"output_blocks.{3 * int(m[1]) + int(m[2])}.0"),
    (r"^up_blocks\.(\d)\.attentions\.(\d)", lambda m: f"output_blocks.{3 * int(m[1]) + int(m[2])}.1"),
    # The debug model's only upsampler is in a block without attention, so it comes second.
    (r"^up_blocks\.0\.upsamplers\.0\.conv", "output_blocks.2.1.conv"),
]

VAE_RENAMES = [
    (r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2"),
    (r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample"),
    (r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{2 - int(m[1])}.block.{m[2]}"),
    (r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{2 - int(m[1])}.upsample"),
    (r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}"),
    (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
    (r"mid_block\.attentions\.0\.to_([qkv])", r"mid.attn_1.\1"),
    (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
    (r"conv_norm_out", "norm_out"),
    (r"conv_shortcut", "nin_shortcut"),
]


TEXT_RENAMES = [
    (r"^embeddings\.token_embedding", "token_embedding"),
    (r"^embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"^final_layer_norm", "ln_final"),
    (r"^encoder\.layers\.", "transformer.resblocks."),
    (r"layer_norm(\d)", r"ln_\1"),
    (r"fc1", "c_fc"),
    (r"fc2", "c_proj"),
    (r"self_attn", "attn"),
]


def to_ldm(pipe, openclip=False):
    """Return a pipeline's tensors under the names of an SD 1.x file, or of an SD 2.x one with `openclip`."""
    tensors = {}
    for name, tensor in pipe.unet.state_dict().items():
        tensors["model.diffusion_model." + rename(name, UNET_RENAMES)] = tensor
    for name, tensor in pipe.vae.state_dict().items():
        convolution = "attentions" in name and tensor.dim() == 2
        tensors["first_stage_model." + rename(name, VAE_RENAMES)] = tensor[:, :, None, None] if convolution else tensor
    text = {name.removeprefix("text_model."): tensor for name, tensor in pipe.text_encoder.state_dict().items()}
    prefix = "cond_stage_model.model." if openclip else "cond_stage_model.transformer.text_model."
    tensors |= {prefix + name: tensor for name, tensor in (to_openclip(text) if openclip else text).items()}
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def to_openclip(text):
    """Return a CLIP text encoder's tensors as OpenCLIP keeps them: queries, keys and values in one."""
    tensors = {}
    for name, tensor in text.items():
        if ".q_proj." in name:
            joined = torch.cat([text[name.replace(".q_proj.", f".{part}_proj.")] for part in "qkv"])
            tensors[rename(name, TEXT_RENAMES).replace("q_proj.", "in_proj_")] = joined
        elif ".k_proj." not in name and ".v_proj." not in name:
            tensors[rename(name, TEXT_RENAMES)] = tensor
    return tensors


def rename(name, renames):
    for pattern, replacement in renames:
        name = re.sub(pattern, replacement, name)
    return name
