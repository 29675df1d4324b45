"""FLUX.1 dev and schnell: a transformer over packed latents, CLIP's pooled and T5's token embeddings, a rectified flow.

Black Forest Labs 2024, https://github.com/black-forest-labs/flux; conventions as in diffusers' `FluxPipeline`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline, FluxPipeline
from torch import Tensor, nn

from dreambooth import sampling
from dreambooth.diffusion import Flow
from dreambooth.errors import UserError
from dreambooth.families import common
from dreambooth.families.common import class_sampler as class_sampler
from dreambooth.families.common import collate as collate
from dreambooth.families.common import encode_images as encode_images
from dreambooth.models import Source
from dreambooth.prompts import require_fits

PIPELINES = ("FluxPipeline",)
STRIDE = 16
SAMPLERS = sampling.FLOW_SAMPLERS

ATTENTION = (
    *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
    *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
)
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2", "proj_mlp", "proj_out")
LORA_TARGETS = {"attention": ATTENTION, "wide": ATTENTION + FEED_FORWARD}
TEXT_LORA_TARGETS = common.CLIP_ATTENTION
READERS = ("tokenizer_2",)  # T5's; CLIP adds a summary of the first 77 tokens
WORD_TOKENIZERS = ("tokenizer",)

T5_TOKENS = {True: 512, False: 256}
"""Tokens that T5 reads: dev (which embeds its guidance) and schnell, as Black Forest Labs' own sampling has them."""

TRAINING_GUIDANCE = 1.0
"""Scale that dev is told while it is trained: that of no guidance, as in diffusers' and kohya's FLUX.1 training."""


def load(source: Source, dtype: torch.dtype) -> DiffusionPipeline:
    """Load the stock pipeline on the CPU: every part frozen, in eval mode, its weights cast to `dtype`."""
    pipe = common.frozen(common.load_folder(FluxPipeline, source.path, dtype))
    pipe.tokenizer_2.model_max_length = T5_TOKENS[pipe.transformer.config.guidance_embeds]
    return pipe


def denoiser(pipe: DiffusionPipeline) -> nn.Module:
    """Return the transformer."""
    transformer: nn.Module = pipe.transformer
    return transformer


def text_encoders(pipe: DiffusionPipeline) -> dict[str, nn.Module]:
    """Return CLIP's text encoder; T5 stays frozen."""
    return {"text_encoder": pipe.text_encoder}


def process(pipe: DiffusionPipeline) -> Flow:
    """Return the flow with logit-normal times, shifted as in sampling: for dev the more, the larger the image.

    So its makers trained it on (Labs et al. 2025, https://arxiv.org/abs/2506.15742, section 3 and appendix A.2).
    """
    return Flow.from_scheduler_config(pipe.scheduler.config, "logit-normal")


def encode_prompts(pipe: DiffusionPipeline, prompts: Sequence[str]) -> list[dict[str, Tensor]]:
    """Encode each prompt to `prompt_embeds_LD` (T5), `pooled_D` (CLIP) and, for dev, `guidance`.

    Raises:
        UserError: A prompt is longer than T5 can read. CLIP, which only adds a summary, reads the first 77 tokens.
    """
    for prompt in prompts:
        require_fits("the prompt", prompt, [pipe.tokenizer_2])
    tokens = pipe.tokenizer_2.model_max_length
    device = common.reads_on(pipe)
    embeds_BLD, pooled_BD, _ = pipe.encode_prompt(list(prompts), device=device, max_sequence_length=tokens)
    guided = pipe.transformer.config.guidance_embeds
    guidance = {"guidance": torch.tensor(TRAINING_GUIDANCE, device=device)} if guided else {}
    pairs = zip(embeds_BLD, pooled_BD, strict=True)
    return [{"prompt_embeds_LD": embeds_LD, "pooled_D": pooled_D, **guidance} for embeds_LD, pooled_D in pairs]


def predict(denoiser: nn.Module, noisy_BCHW: Tensor, t_B: Tensor, cond: dict[str, Tensor]) -> Tensor:
    """Run the transformer, wrapped or bare, on latents packed 2 x 2 into tokens, each told its place."""
    batch, channels, height, width = noisy_BCHW.shape
    embeds_BLD = cond["prompt_embeds_BLD"]
    device, dtype = noisy_BCHW.device, embeds_BLD.dtype
    with device:  # counted out there: nothing travels to it in a step
        places_L3 = FluxPipeline._prepare_latent_image_ids(batch, height // 2, width // 2, device, dtype)
    predicted_BLD = denoiser(
        hidden_states=FluxPipeline._pack_latents(noisy_BCHW, batch, channels, height, width),
        timestep=t_B,
        guidance=cond.get("guidance_B"),
        pooled_projections=cond["pooled_BD"],
        encoder_hidden_states=embeds_BLD,
        txt_ids=torch.zeros(embeds_BLD.shape[1], 3, device=device, dtype=dtype),
        img_ids=places_L3,
    ).sample
    prediction_BCHW: Tensor = FluxPipeline._unpack_latents(predicted_BLD, height, width, vae_scale_factor=1)
    return prediction_BCHW


def guide(pipe: DiffusionPipeline, scale: float, negatives: Sequence[str]) -> dict[str, Any]:
    """Return how the pipeline is told to guide: dev by its embedded scale, schnell not at all.

    Raises:
        UserError: There is a negative prompt.
    """
    if any(negatives):
        raise UserError("FLUX.1 takes no negative prompt: leave it out")
    return {"guidance_scale": scale, "max_sequence_length": pipe.tokenizer_2.model_max_length}
