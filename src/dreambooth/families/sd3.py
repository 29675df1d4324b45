"""Stable Diffusion 3 and 3.5: a transformer over image and text, two CLIP encoders and T5, a rectified flow.

Esser et al. 2024, https://arxiv.org/abs/2403.03206; conventions as in diffusers' `StableDiffusion3Pipeline`. T5 is
large and may be absent (`text_encoder_3` and `tokenizer_3` null in `model_index.json`): its tokens are then zeros, as
the model saw them in a part of its training (appendix B.3 of the paper).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline, StableDiffusion3Pipeline
from torch import Tensor, nn

from dreambooth import sampling
from dreambooth.diffusion import Flow
from dreambooth.families import common
from dreambooth.families.common import class_sampler as class_sampler
from dreambooth.families.common import collate as collate
from dreambooth.families.common import encode_images as encode_images
from dreambooth.models import Source
from dreambooth.prompts import require_fits

PIPELINES = ("StableDiffusion3Pipeline",)
STRIDE = 16
SAMPLERS = sampling.FLOW_SAMPLERS

# As in diffusers' train_dreambooth_lora_sd3.py, and `attn2`, the attention among image tokens alone of 3.5 medium.
ATTENTION = (
    *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
    *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
    *("attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0"),
)
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2")
LORA_TARGETS = {"attention": ATTENTION, "wide": ATTENTION + FEED_FORWARD}
TEXT_LORA_TARGETS = common.CLIP_ATTENTION
READERS = WORD_TOKENIZERS = ("tokenizer", "tokenizer_2")  # T5 may be absent; its 256 tokens hold CLIP's 77


def load(source: Source, dtype: torch.dtype) -> DiffusionPipeline:
    """Load the stock pipeline on the CPU: every part frozen, in eval mode, its weights cast to `dtype`."""
    parts = StableDiffusion3Pipeline.load_config(source.path)
    # diffusers leaves out a part that is null only where it is told to
    absent = {name: None for name in ("text_encoder_3", "tokenizer_3") if parts.get(name, (None,))[0] is None}
    return common.frozen(common.load_folder(StableDiffusion3Pipeline, source.path, dtype, **absent))


def denoiser(pipe: DiffusionPipeline) -> nn.Module:
    """Return the transformer."""
    transformer: nn.Module = pipe.transformer
    return transformer


def text_encoders(pipe: DiffusionPipeline) -> dict[str, nn.Module]:
    """Return the two CLIP text encoders; T5 stays frozen."""
    return {"text_encoder": pipe.text_encoder, "text_encoder_2": pipe.text_encoder_2}


def process(pipe: DiffusionPipeline) -> Flow:
    """Return the flow with logit-normal times, shifted as in sampling.

    So its makers trained it: rf/lognorm(0.00, 1.00) and the shift of 3 at 1024 px (sections 3.1 and 5.3.2).
    """
    return Flow.from_scheduler_config(pipe.scheduler.config, "logit-normal")


def encode_prompts(pipe: DiffusionPipeline, prompts: Sequence[str]) -> list[dict[str, Tensor]]:
    """Encode each prompt to `prompt_embeds_LD` and `pooled_D`.

    The tokens are CLIP's 77, of both encoders side by side and filled up with zeros to T5's width, then T5's 256 (as
    many as the stock pipeline reads). The summary is the first CLIP's beside the second's. There is no mask.

    Raises:
        UserError: A prompt is longer than the CLIP encoders can read.
    """
    for prompt in prompts:
        require_fits("the prompt", prompt, [pipe.tokenizer, pipe.tokenizer_2])
    device = common.reads_on(pipe)
    embeds_BLD, _, pooled_BD, _ = pipe.encode_prompt(list(prompts), None, None, device, 1, False)
    pairs = zip(embeds_BLD, pooled_BD, strict=True)
    return [{"prompt_embeds_LD": embeds_LD, "pooled_D": pooled_D} for embeds_LD, pooled_D in pairs]


def predict(denoiser: nn.Module, noisy_BCHW: Tensor, t_B: Tensor, cond: dict[str, Tensor]) -> Tensor:
    """Run the transformer, wrapped or bare; it is told the time in thousandths."""
    prediction_BCHW: Tensor = denoiser(
        hidden_states=noisy_BCHW,
        timestep=t_B * 1000,
        encoder_hidden_states=cond["prompt_embeds_BLD"],
        pooled_projections=cond["pooled_BD"],
    ).sample
    return prediction_BCHW


def guide(pipe: DiffusionPipeline, scale: float, negatives: Sequence[str]) -> dict[str, Any]:
    """Return how the pipeline is told to guide: away from the negative prompts."""
    return {"guidance_scale": scale, "negative_prompt": list(negatives)}
