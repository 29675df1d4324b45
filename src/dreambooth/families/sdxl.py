"""Stable Diffusion XL's base model: a U-Net under two CLIP text encoders and the size and crop of each image.

Podell et al. 2023, https://arxiv.org/abs/2307.01952; conventions as in diffusers' `StableDiffusionXLPipeline`. The
refiner, a second model for the last steps, is neither trained nor used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline, StableDiffusionXLPipeline
from torch import Tensor, nn

from dreambooth import sampling
from dreambooth.diffusion import Ddpm
from dreambooth.errors import UserError
from dreambooth.families import common
from dreambooth.families.common import class_sampler as class_sampler
from dreambooth.families.common import collate as collate
from dreambooth.families.common import encode_images as encode_images
from dreambooth.models import Source
from dreambooth.prompts import require_fits

PIPELINES = ("StableDiffusionXLPipeline",)
STRIDE = 8
SAMPLERS = sampling.SAMPLERS

# B-LoRA's blocks: the content's and the style's (Frenkel et al. 2024, https://arxiv.org/abs/2403.14572)
B_LORA = [f"up_blocks.0.attentions.{n}.transformer_blocks.{k}" for n in (0, 1) for k in range(10)]
B_LORA_ATTENTION = tuple(f"{b}.attn{n}.{layer}" for b in B_LORA for n in (1, 2) for layer in common.UNET_ATTENTION)
LORA_TARGETS = {**common.UNET_TARGETS, "b-lora": B_LORA_ATTENTION}
TEXT_LORA_TARGETS = common.CLIP_ATTENTION
READERS = WORD_TOKENIZERS = ("tokenizer", "tokenizer_2")


def load(source: Source, dtype: torch.dtype) -> DiffusionPipeline:
    """Load the stock pipeline on the CPU: every part frozen, in eval mode, its weights cast to `dtype`.

    Raises:
        UserError: A model of the same shape that was trained with another process (Playground 2.5).
    """
    pipe = common.load_folder(StableDiffusionXLPipeline, source.path, dtype, add_watermarker=False)
    if "sigma_data" in pipe.scheduler.config:
        raise UserError(f"{source.name} is of SDXL's shape, but of EDM's process, which is not supported: choose sdxl")
    return common.frozen(pipe)


def denoiser(pipe: DiffusionPipeline) -> nn.Module:
    """Return the U-Net."""
    unet: nn.Module = pipe.unet
    return unet


def text_encoders(pipe: DiffusionPipeline) -> dict[str, nn.Module]:
    """Return the two CLIP text encoders."""
    return {"text_encoder": pipe.text_encoder, "text_encoder_2": pipe.text_encoder_2}


def process(pipe: DiffusionPipeline) -> Ddpm:
    """Return the noise schedule and the kind of prediction that the pipeline's scheduler is configured for."""
    return Ddpm.from_scheduler_config(pipe.scheduler.config)


def encode_prompts(pipe: DiffusionPipeline, prompts: Sequence[str]) -> list[dict[str, Tensor]]:
    """Encode each prompt to `prompt_embeds_LD`, of both encoders side by side, and `pooled_D`, of the second.

    An empty one is zeros where the stock pipeline's guidance leads away from them; other programs encode it.

    Raises:
        UserError: A prompt is longer than the text encoders can read.
    """
    for prompt in prompts:
        require_fits("the prompt", prompt, [pipe.tokenizer, pipe.tokenizer_2])
    device = common.reads_on(pipe)
    embeds_BLD, _, pooled_BD, _ = pipe.encode_prompt(list(prompts), None, device, 1, False)
    pairs = zip(embeds_BLD, pooled_BD, strict=True)
    rows = [{"prompt_embeds_LD": embeds_LD, "pooled_D": pooled_D} for embeds_LD, pooled_D in pairs]
    for row, prompt in zip(rows, prompts, strict=True):
        if not prompt and pipe.config.force_zeros_for_empty_prompt:
            row |= {name: 0 * value for name, value in row.items()}  # trained encoders stay part of the step
    return rows


def predict(denoiser: nn.Module, noisy_BCHW: Tensor, t_B: Tensor, cond: dict[str, Tensor]) -> Tensor:
    """Run the U-Net, wrapped or bare, told the size of the original, where it was cropped, and its size now.

    `cond["view_B4"]` is the original's height and width and the crop's top and left edge (section 2.2 of the paper).
    """
    # filled in on the device: nothing travels there in a step
    size_B2 = torch.stack([noisy_BCHW.new_full((len(t_B),), side * STRIDE) for side in noisy_BCHW.shape[-2:]], dim=1)
    prediction_BCHW: Tensor = denoiser(
        noisy_BCHW,
        t_B,
        encoder_hidden_states=cond["prompt_embeds_BLD"],
        added_cond_kwargs={"text_embeds": cond["pooled_BD"], "time_ids": torch.cat([cond["view_B4"], size_B2], dim=1)},
    ).sample
    return prediction_BCHW


def guide(pipe: DiffusionPipeline, scale: float, negatives: Sequence[str]) -> dict[str, Any]:
    """Return how the pipeline is told to guide: away from the negative prompts, or else from zeros, not from ""."""
    return {"guidance_scale": scale, "negative_prompt": list(negatives) if any(negatives) else None}
