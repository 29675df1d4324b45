"""Z-Image and Z-Image Turbo: a transformer over image and prompt in one stream, Qwen3's token embeddings, a flow.

Z-Image Team 2025, https://arxiv.org/abs/2511.22699; conventions as in diffusers' `ZImagePipeline`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline, ZImagePipeline
from torch import Tensor, nn

from dreambooth import sampling
from dreambooth.diffusion import Flow
from dreambooth.families import common, language
from dreambooth.families.common import class_sampler as class_sampler
from dreambooth.families.common import encode_images as encode_images
from dreambooth.families.language import TEXT_LORA_TARGETS as TEXT_LORA_TARGETS
from dreambooth.families.language import WORD_TOKENIZERS as WORD_TOKENIZERS
from dreambooth.families.language import collate as collate
from dreambooth.models import Source
from dreambooth.prompts import require_fits

PIPELINES = ("ZImagePipeline",)
STRIDE = 16
SAMPLERS = sampling.FLOW_SAMPLERS

ATTENTION = ("attention.to_q", "attention.to_k", "attention.to_v", "attention.to_out.0")
FEED_FORWARD = ("feed_forward.w1", "feed_forward.w2", "feed_forward.w3")
LORA_TARGETS = {"attention": ATTENTION, "wide": ATTENTION + FEED_FORWARD}
READERS = ("tokenizer",)


def load(source: Source, dtype: torch.dtype) -> DiffusionPipeline:
    """Load the stock pipeline on the CPU: every part frozen, in eval mode, its weights cast to `dtype`."""
    pipe = common.frozen(common.load_folder(ZImagePipeline, source.path, dtype))
    empty = [{"role": "user", "content": ""}]
    wrapped = language.chat_tokens(pipe.tokenizer, empty, add_generation_prompt=True, enable_thinking=True)
    language.limit_prompts(pipe.tokenizer, wrapped)
    return pipe


def denoiser(pipe: DiffusionPipeline) -> nn.Module:
    """Return the transformer."""
    transformer: nn.Module = pipe.transformer
    return transformer


def text_encoders(pipe: DiffusionPipeline) -> dict[str, nn.Module]:
    """Return none: Qwen3 stays frozen."""
    return {}


def process(pipe: DiffusionPipeline) -> Flow:
    """Return the flow with logit-normal times, shifted as in sampling.

    Logit-normal as its makers trained it (section 4.3 of the paper); the shift is the scheduler's, as in diffusers'
    `train_dreambooth_lora_z_image.py`.
    """
    return Flow.from_scheduler_config(pipe.scheduler.config, "logit-normal")


def encode_prompts(pipe: DiffusionPipeline, prompts: Sequence[str]) -> list[dict[str, Tensor]]:
    """Encode each prompt, in Qwen3's chat template, to `prompt_embeds_LD` of its own length.

    Raises:
        UserError: A prompt is longer than the model was made to read.
    """
    for prompt in prompts:
        require_fits("the prompt", prompt, [pipe.tokenizer])
    device = common.reads_on(pipe)
    embeds, _ = pipe.encode_prompt(list(prompts), device, False, max_sequence_length=language.TOKENS)
    return [{"prompt_embeds_LD": embeds_LD} for embeds_LD in embeds]


def predict(denoiser: nn.Module, noisy_BCHW: Tensor, t_B: Tensor, cond: dict[str, Tensor]) -> Tensor:
    """Run the transformer, wrapped or bare, on images of one frame.

    Its time is 1 where ours is 0, at the clean image, and it predicts the way there, so the prediction is negated.
    """
    embeds = language.separate(cond["prompt_embeds_BLD"], cond.get("mask_BL"))
    towards_image = denoiser(list(noisy_BCHW[:, :, None]), 1 - t_B, embeds).sample
    return -torch.stack(towards_image).squeeze(2)


def guide(pipe: DiffusionPipeline, scale: float, negatives: Sequence[str]) -> dict[str, Any]:
    """Return how the pipeline is told to guide: its scale is added to the 1 of no guidance, so it is one less."""
    scale = max(scale - 1, 0.0)
    return {"guidance_scale": scale, "negative_prompt": list(negatives), "max_sequence_length": language.TOKENS}
