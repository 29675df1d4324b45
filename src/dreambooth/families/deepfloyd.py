"""DeepFloyd IF, stage I: a U-Net on pixels of 64 x 64 under T5's token embeddings, noise- and variance-predicting.

DeepFloyd 2023, https://github.com/deep-floyd/IF, after Saharia et al. 2022 (Imagen, https://arxiv.org/abs/2205.11487),
the kind of model that the DreamBooth paper trains; conventions as in diffusers' `IFPipeline`. The variance is not
trained: a fine-tuned model is drawn from with a fixed one, as diffusers' DreamBooth documentation has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DDPMScheduler, DiffusionPipeline, IFPipeline
from torch import Tensor, nn

from dreambooth.diffusion import Ddpm
from dreambooth.families import common
from dreambooth.families.common import collate as collate
from dreambooth.families.language import TEXT_LORA_TARGETS as TEXT_LORA_TARGETS
from dreambooth.families.language import WORD_TOKENIZERS as WORD_TOKENIZERS
from dreambooth.models import Source
from dreambooth.prompts import require_fits

PIPELINES = ("IFPipeline",)
STRIDE = 8
FIXED = {"variance_type": "fixed_small"}
SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddpm": ("DDPMScheduler", FIXED),
    "dpm++": ("DPMSolverMultistepScheduler", FIXED),
}

# As in diffusers' train_dreambooth_lora.py.
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_k_proj", "add_v_proj")
LORA_TARGETS = {"attention": ATTENTION, "wide": (*ATTENTION, "conv1", "conv2", "conv_shortcut")}
READERS = ("tokenizer",)

LEFT_OUT = {"safety_checker": None, "feature_extractor": None, "watermarker": None, "requires_safety_checker": False}
TOKENS = 77
"""Tokens that T5 reads, as the model was trained."""


def load(source: Source, dtype: torch.dtype) -> DiffusionPipeline:
    """Load the stock pipeline on the CPU: every part frozen, in eval mode, its weights cast to `dtype`."""
    pipe = common.frozen(common.load_folder(IFPipeline, source.path, dtype, **LEFT_OUT))
    pipe.tokenizer.model_max_length = TOKENS
    return pipe


def denoiser(pipe: DiffusionPipeline) -> nn.Module:
    """Return the U-Net."""
    unet: nn.Module = pipe.unet
    return unet


def text_encoders(pipe: DiffusionPipeline) -> dict[str, nn.Module]:
    """Return none: T5 stays frozen."""
    return {}


def process(pipe: DiffusionPipeline) -> Ddpm:
    """Return the noise schedule that the pipeline's scheduler is configured for."""
    return Ddpm.from_scheduler_config(pipe.scheduler.config)


def encode_images(pipe: DiffusionPipeline, pixels_BCHW: Tensor) -> dict[str, Tensor]:
    """Return the pixels themselves: the model has no autoencoder, so `std_BCHW` is 0."""
    return {"mean_BCHW": pixels_BCHW, "std_BCHW": torch.zeros_like(pixels_BCHW)}


def encode_prompts(pipe: DiffusionPipeline, prompts: Sequence[str]) -> list[dict[str, Tensor]]:
    """Encode each prompt, in small letters, to `prompt_embeds_LD`, filled up to 77 tokens.

    Raises:
        UserError: A prompt is longer than the model was trained to read.
    """
    for prompt in prompts:
        require_fits("the prompt", prompt, [pipe.tokenizer])
    embeds_BLD, _ = pipe.encode_prompt(list(prompts), False, device=common.reads_on(pipe))
    return [{"prompt_embeds_LD": embeds_LD} for embeds_LD in embeds_BLD]


def predict(denoiser: nn.Module, noisy_BCHW: Tensor, t_B: Tensor, cond: dict[str, Tensor]) -> Tensor:
    """Run the U-Net, wrapped or bare, and leave out its second half, the variance."""
    predicted_BKHW: Tensor = denoiser(noisy_BCHW, t_B, encoder_hidden_states=cond["prompt_embeds_BLD"]).sample
    return predicted_BKHW.chunk(2, dim=1)[0]


def class_sampler(pipe: DiffusionPipeline) -> DDPMScheduler:
    """Return the model's own ancestral sampler, with the variances that it predicts."""
    return DDPMScheduler.from_config(pipe.scheduler.config)


def guide(pipe: DiffusionPipeline, scale: float, negatives: Sequence[str]) -> dict[str, Any]:
    """Return how the pipeline is told to guide: away from the negative prompts; prompts as they are given."""
    return {"guidance_scale": scale, "negative_prompt": list(negatives), "clean_caption": False}
