"""Chroma: FLUX.1 schnell made smaller and undistilled, T5's token embeddings under a mask, a rectified flow.

Lodestone Rock 2025, https://huggingface.co/lodestones/Chroma; conventions as in diffusers' `ChromaPipeline`, its mask
too: as it is floating point, attention adds it to its logits (1 for what is read, 0 for the rest) where Chroma's own
code leaves the rest out (https://github.com/huggingface/diffusers/issues/13619). Training sees what sampling does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import ChromaPipeline, DiffusionPipeline
from torch import Tensor, nn

from dreambooth import sampling
from dreambooth.diffusion import Flow
from dreambooth.families import common
from dreambooth.families.common import class_sampler as class_sampler
from dreambooth.families.common import collate as collate
from dreambooth.families.common import encode_images as encode_images
from dreambooth.families.flux import LORA_TARGETS as LORA_TARGETS
from dreambooth.families.language import TEXT_LORA_TARGETS as TEXT_LORA_TARGETS
from dreambooth.families.language import WORD_TOKENIZERS as WORD_TOKENIZERS
from dreambooth.models import Source
from dreambooth.prompts import require_fits

PIPELINES = ("ChromaPipeline",)
STRIDE = 16
SAMPLERS = sampling.FLOW_SAMPLERS
READERS = ("tokenizer",)

TOKENS = 512
"""Tokens that T5 reads: the default of the stock pipeline."""


def load(source: Source, dtype: torch.dtype) -> DiffusionPipeline:
    """Load the stock pipeline on the CPU: every part frozen, in eval mode, its weights cast to `dtype`."""
    pipe = common.frozen(common.load_folder(ChromaPipeline, source.path, dtype))
    pipe.tokenizer.model_max_length = TOKENS
    pipe.transformer.register_forward_pre_hook(_remember_mask, with_kwargs=True)
    for block in pipe.transformer.single_transformer_blocks:
        block.register_forward_pre_hook(_hand_mask, with_kwargs=True)
    return pipe


def denoiser(pipe: DiffusionPipeline) -> nn.Module:
    """Return the transformer."""
    transformer: nn.Module = pipe.transformer
    return transformer


def text_encoders(pipe: DiffusionPipeline) -> dict[str, nn.Module]:
    """Return none: T5 stays frozen."""
    return {}


def process(pipe: DiffusionPipeline) -> Flow:
    """Return the flow with logit-normal times, shifted as in sampling.

    Logit-normal as kohya's docs/flux_train_network.md has it for Chroma ("sigmoid"), and near to what its maker drew
    from, a density of 2 - 7.7 (t - 1/2)^2 (train_chroma.py in https://github.com/lodestone-rock/flow).
    """
    return Flow.from_scheduler_config(pipe.scheduler.config, "logit-normal")


def encode_prompts(pipe: DiffusionPipeline, prompts: Sequence[str]) -> list[dict[str, Tensor]]:
    """Encode each prompt to `prompt_embeds_LD` and `mask_L`, 1 for its tokens and one token of filling, else 0.

    Raises:
        UserError: A prompt is longer than T5 can read.
    """
    for prompt in prompts:
        require_fits("the prompt", prompt, [pipe.tokenizer])
    device = common.reads_on(pipe)
    embeds_BLD, _, mask_BL, *_ = pipe.encode_prompt(list(prompts), device=device, do_classifier_free_guidance=False)
    pairs = zip(embeds_BLD, mask_BL, strict=True)
    return [{"prompt_embeds_LD": embeds_LD, "mask_L": mask_L} for embeds_LD, mask_L in pairs]


def predict(denoiser: nn.Module, noisy_BCHW: Tensor, t_B: Tensor, cond: dict[str, Tensor]) -> Tensor:
    """Run the transformer, wrapped or bare, on latents packed 2 x 2 into tokens, each told its place; all are read."""
    batch, channels, height, width = noisy_BCHW.shape
    embeds_BLD, mask_BL = cond["prompt_embeds_BLD"], cond["mask_BL"]
    device, dtype = noisy_BCHW.device, embeds_BLD.dtype
    tokens_BLD = ChromaPipeline._pack_latents(noisy_BCHW, batch, channels, height, width)
    with device:  # counted out there: nothing travels to it in a step
        places_L3 = ChromaPipeline._prepare_latent_image_ids(batch, height // 2, width // 2, device, dtype)
    predicted_BLD = denoiser(
        hidden_states=tokens_BLD,
        timestep=t_B,
        encoder_hidden_states=embeds_BLD,
        txt_ids=torch.zeros(embeds_BLD.shape[1], 3, device=device, dtype=dtype),
        img_ids=places_L3,
        attention_mask=torch.cat([mask_BL, mask_BL.new_ones(tokens_BLD.shape[:2])], dim=1),
    ).sample
    prediction_BCHW: Tensor = ChromaPipeline._unpack_latents(predicted_BLD, height, width, vae_scale_factor=1)
    return prediction_BCHW


def guide(pipe: DiffusionPipeline, scale: float, negatives: Sequence[str]) -> dict[str, Any]:
    """Return how the pipeline is told to guide: away from the negative prompts."""
    return {"guidance_scale": scale, "negative_prompt": list(negatives)}


def _remember_mask(transformer: Any, args: tuple[Any, ...], given: dict[str, Any]) -> None:
    """Keep the mask of a call for the single blocks: where it checkpoints gradients, diffusers does not hand it on."""
    for block in transformer.single_transformer_blocks:
        block.mask_BL = given["attention_mask"]


def _hand_mask(block: Any, args: tuple[Any, ...], given: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Hand a single block the mask of the call that it is in, also while its activations are recomputed."""
    return args, {"attention_mask": block.mask_BL, **given}
