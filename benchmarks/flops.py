"""Floating-point operations of a training step at real size: `python benchmarks/flops.py [sd15 sdxl sd35m flux]`.

Products, convolutions and attention of the denoiser's forward and backward pass on one photo and one class image,
counted on networks without numbers: over a measured step and what a large product reaches, the FLOPs utilisation.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from peft import LoraConfig
from real_models import FLUX, SD3, SD15, SDXL
from real_size import JOBS, LAYERS
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

IMAGES = 2


def unet_inputs(side: int, width: int) -> dict[str, torch.Tensor]:
    """What a U-Net is given."""
    shape = (IMAGES, 4, side // 8, side // 8)
    return {
        "sample": torch.empty(shape),
        "timestep": torch.empty(IMAGES),
        "encoder_hidden_states": torch.empty(IMAGES, 77, width),
    }


def network(name: str) -> tuple[nn.Module, dict[str, object]]:
    """A denoiser without numbers and its inputs."""
    side = JOBS[name].resolution
    if name == "sd15":
        return UNet2DConditionModel(**SD15), unet_inputs(side, 768)
    if name == "sdxl":
        told = {"text_embeds": torch.empty(IMAGES, 1280), "time_ids": torch.empty(IMAGES, 6)}
        return UNet2DConditionModel(**SDXL), {**unet_inputs(side, 2048), "added_cond_kwargs": told}
    if name == "sd35m":
        return SD3Transformer2DModel(**SD3), {
            "hidden_states": torch.empty(IMAGES, 16, side // 8, side // 8),
            "timestep": torch.empty(IMAGES),
            "encoder_hidden_states": torch.empty(IMAGES, 77 + 256, 4096),
            "pooled_projections": torch.empty(IMAGES, 2048),
        }
    tokens = (side // 16) ** 2
    return FluxTransformer2DModel(**FLUX), {
        "hidden_states": torch.empty(IMAGES, tokens, 64),
        "timestep": torch.empty(IMAGES),
        "guidance": torch.empty(IMAGES),
        "pooled_projections": torch.empty(IMAGES, 768),
        "encoder_hidden_states": torch.empty(IMAGES, 512, 4096),
        "txt_ids": torch.empty(512, 3),
        "img_ids": torch.empty(tokens, 3),
    }


def count(name: str) -> float:
    """Return the teraflops of a step."""
    with torch.device("meta"):
        denoiser, inputs = network(name)
        if JOBS[name].method == "lora":
            denoiser.requires_grad_(False)
            layers = LAYERS if name in ("sdxl",) else [f"attn.{layer}" for layer in LAYERS]
            denoiser.add_adapter(LoraConfig(r=4, target_modules=list(layers)))
        with FlopCounterMode(display=False) as counter:
            denoiser(**inputs).sample.sum().backward()
    return counter.get_total_flops() / 1e12


def main() -> None:
    """Print a line of JSON a model."""
    for name in sys.argv[1:] or JOBS:
        print(json.dumps({"model": name, "step_tflop": round(count(name), 2)}), flush=True)


if __name__ == "__main__":
    main()
