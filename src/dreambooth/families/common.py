"""What several families do alike. Not a family: their modules take from here what fits them, under its own name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, EulerAncestralDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

CLIP_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
"""The attention layers of CLIP's text encoders, by the endings of their names."""

UNET_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
UNET_FEED_FORWARD = ("ff.net.0.proj", "ff.net.2")
UNET_CONVOLUTIONS = (
    *("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv"),
    *("proj_in", "proj_out"),
)
UNET_TARGETS = {"attention": UNET_ATTENTION, "wide": UNET_ATTENTION + UNET_FEED_FORWARD + UNET_CONVOLUTIONS}
"""Layers of a latent-diffusion U-Net that a LoRA may attach to."""


def frozen(pipe: DiffusionPipeline) -> DiffusionPipeline:
    """Freeze every part of a pipeline, put it into eval mode, and return the pipeline."""
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.requires_grad_(False).eval()
    return pipe


def reads_on(pipe: DiffusionPipeline) -> torch.device:
    """Return where prompts are encoded: where the text encoder lies, or where its layers are brought one by one."""
    device: torch.device = pipe.text_encoder.device
    return pipe._execution_device if device.type == "meta" else device


def load_folder(kind: type[DiffusionPipeline], folder: Path, dtype: torch.dtype, **values: Any) -> DiffusionPipeline:
    """Load a diffusers folder as a pipeline of class `kind`: safetensors alone, nothing from the network."""
    return kind.from_pretrained(folder, dtype=dtype, use_safetensors=True, local_files_only=True, **values)


def encode_images(pipe: DiffusionPipeline, pixels_BCHW: Tensor) -> dict[str, Tensor]:
    """Encode float pixels in [-1, 1] to `mean_BCHW` and `std_BCHW` of the normalised latents, in float32.

    Normalised as every stock pipeline undoes it before decoding: (latents - shift) * scale.

    Args:
        pipe: The pipeline. Its autoencoder is left in float32: half precision costs it accuracy, and SDXL's overflows.
        pixels_BCHW: float32 pixels.
    """
    vae = pipe.vae
    weight = next(vae.parameters())  # diffusers' own properties search all modules for it
    if weight.dtype != torch.float32:
        vae.to(torch.float32)
    posterior = vae.encode(pixels_BCHW.to(weight.device)).latent_dist
    scale, shift = vae.config.scaling_factor, vae.config.shift_factor or 0.0
    return {"mean_BCHW": (posterior.mean - shift) * scale, "std_BCHW": posterior.std * scale}


def collate(rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Stack rows of equal shapes, each tensor under its name with the batch's B: `pooled_D` gives `pooled_BD`."""
    return {_batched(name): torch.stack([row[name] for row in rows]) for name in rows[0]}


def class_sampler(pipe: DiffusionPipeline) -> EulerAncestralDiscreteScheduler | FlowMatchEulerDiscreteScheduler:
    """Return a sampler on the model's own schedule that puts fresh noise in at every step.

    Ancestral sampling, by which the paper drew its class images (Ruiz et al. 3.3); for a flow, what is to it the same.
    """
    config = pipe.scheduler.config
    if isinstance(pipe.scheduler, FlowMatchEulerDiscreteScheduler):
        return FlowMatchEulerDiscreteScheduler.from_config(config, stochastic_sampling=True)
    return EulerAncestralDiscreteScheduler.from_config(config)


def _batched(name: str) -> str:
    stem, dimensions = re.fullmatch(r"(.*?)(?:_([A-Z0-9]+))?", name).groups(default="")  # type: ignore[union-attr]
    return f"{stem}_B{dimensions}"
