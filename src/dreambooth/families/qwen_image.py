"""Qwen-Image: a transformer over packed latents of a film's autoencoder, Qwen2.5-VL's token embeddings, a flow.

Qwen Team 2025, https://arxiv.org/abs/2508.02324; conventions as in diffusers' `QwenImagePipeline`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline, QwenImagePipeline
from torch import Tensor, nn

from dreambooth import sampling
from dreambooth.diffusion import Flow
from dreambooth.families import common, language
from dreambooth.families.common import class_sampler as class_sampler
from dreambooth.families.language import TEXT_LORA_TARGETS as TEXT_LORA_TARGETS
from dreambooth.families.language import WORD_TOKENIZERS as WORD_TOKENIZERS
from dreambooth.families.language import collate as collate
from dreambooth.models import Source
from dreambooth.prompts import require_fits

PIPELINES = ("QwenImagePipeline",)
STRIDE = 16
SAMPLERS = sampling.FLOW_SAMPLERS

ATTENTION = (
    *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
    *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
)
FEED_FORWARD = ("img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2")
LORA_TARGETS = {"attention": ATTENTION, "wide": ATTENTION + FEED_FORWARD}
READERS = ("tokenizer",)


def load(source: Source, dtype: torch.dtype) -> DiffusionPipeline:
    """Load the stock pipeline on the CPU: every part frozen, in eval mode, its weights cast to `dtype`."""
    pipe = common.frozen(common.load_folder(QwenImagePipeline, source.path, dtype))
    template = pipe.tokenizer(pipe.prompt_template_encode.format("")).input_ids
    language.limit_prompts(pipe.tokenizer, len(template) - pipe.prompt_template_encode_start_idx)
    return pipe


def denoiser(pipe: DiffusionPipeline) -> nn.Module:
    """Return the transformer."""
    transformer: nn.Module = pipe.transformer
    return transformer


def text_encoders(pipe: DiffusionPipeline) -> dict[str, nn.Module]:
    """Return none: Qwen2.5-VL stays frozen."""
    return {}


def process(pipe: DiffusionPipeline) -> Flow:
    """Return the flow with logit-normal times, shifted as in sampling: the more, the larger the image.

    Logit-normal as its makers trained it (the paper's training objective).
    """
    return Flow.from_scheduler_config(pipe.scheduler.config, "logit-normal")


def encode_images(pipe: DiffusionPipeline, pixels_BCHW: Tensor) -> dict[str, Tensor]:
    """Encode float pixels in [-1, 1], as films of one frame, to latents of mean 0 and deviation 1 in each channel."""
    encoded, config = language.posterior(pipe, pixels_BCHW[:, :, None]), pipe.vae.config
    mean_C11, std_C11 = (encoded.mean.new_tensor(of).view(-1, 1, 1) for of in (config.latents_mean, config.latents_std))
    return {"mean_BCHW": (encoded.mean.squeeze(2) - mean_C11) / std_C11, "std_BCHW": encoded.std.squeeze(2) / std_C11}


def encode_prompts(pipe: DiffusionPipeline, prompts: Sequence[str]) -> list[dict[str, Tensor]]:
    """Encode each prompt, in the pipeline's template, to `prompt_embeds_LD` of its own length; for none, a blank.

    Raises:
        UserError: A prompt is longer than the model was made to read.
    """
    for prompt in prompts:
        require_fits("the prompt", prompt, [pipe.tokenizer])
    device = common.reads_on(pipe)
    texts = [prompt or " " for prompt in prompts]
    embeds_BLD, mask_BL = pipe.encode_prompt(texts, device, max_sequence_length=language.TOKENS)
    return [{"prompt_embeds_LD": embeds_LD} for embeds_LD in language.separate(embeds_BLD, mask_BL)]


def predict(denoiser: nn.Module, noisy_BCHW: Tensor, t_B: Tensor, cond: dict[str, Tensor]) -> Tensor:
    """Run the transformer, wrapped or bare, on latents packed 2 x 2 into tokens; filled-up prompts with their mask."""
    batch, channels, height, width = noisy_BCHW.shape
    predicted_BLD = denoiser(
        hidden_states=QwenImagePipeline._pack_latents(noisy_BCHW, batch, channels, height, width),
        timestep=t_B,
        encoder_hidden_states=cond["prompt_embeds_BLD"],
        encoder_hidden_states_mask=cond.get("mask_BL"),
        img_shapes=[[(1, height // 2, width // 2)]] * batch,
    ).sample
    prediction_BCTHW: Tensor = QwenImagePipeline._unpack_latents(predicted_BLD, height, width, vae_scale_factor=1)
    return prediction_BCTHW.squeeze(2)


def guide(pipe: DiffusionPipeline, scale: float, negatives: Sequence[str]) -> dict[str, Any]:
    """Return how the pipeline is told to guide: away from the negative prompts, and from a blank where there is none.

    A blank, as in the model card.
    """
    away = [negative or " " for negative in negatives] if scale > 1 else None
    return {"true_cfg_scale": scale, "negative_prompt": away, "max_sequence_length": language.TOKENS}
