"""Sana and Sana 1.5: a transformer of linear attention over latents of a 32-fold autoencoder, Gemma 2, a flow.

Xie et al. 2024, https://arxiv.org/abs/2410.10629; conventions as in diffusers' `SanaPipeline`. The instruction that the
pipeline can put before a prompt, to have Gemma enrich it, is off, as in diffusers' `train_dreambooth_lora_sana.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, SanaPipeline
from torch import Tensor, nn

from dreambooth.diffusion import Flow
from dreambooth.errors import UserError
from dreambooth.families import common
from dreambooth.families.common import collate as collate
from dreambooth.families.language import TEXT_LORA_TARGETS as TEXT_LORA_TARGETS
from dreambooth.families.language import WORD_TOKENIZERS as WORD_TOKENIZERS
from dreambooth.models import Source
from dreambooth.prompts import require_fits

PIPELINES = ("SanaPipeline",)
STRIDE = 32
SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "dpm++": ("DPMSolverMultistepScheduler", {}),
    "dpm++-sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "euler": ("DPMSolverMultistepScheduler", {"solver_order": 1}),  # for a flow its first order is Euler's step
}

# The queries, keys and values as in diffusers' train_dreambooth_lora_sana.py, and what comes out.
ATTENTION = (
    *("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0"),
    *("attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0"),
)
FEED_FORWARD = ("ff.conv_inverted", "ff.conv_point")
LORA_TARGETS = {"attention": ATTENTION, "wide": ATTENTION + FEED_FORWARD}
READERS = ("tokenizer",)

TOKENS = 300
"""Tokens that are read of a prompt: the default of the stock pipeline and of diffusers' training."""


def load(source: Source, dtype: torch.dtype) -> DiffusionPipeline:
    """Load the stock pipeline on the CPU: every part frozen, in eval mode, its weights cast to `dtype`.

    Gemma and the autoencoder overflow in half precision and are cast to bfloat16 instead (diffusers' docs of Sana).

    Raises:
        UserError: The model's own sampler is not the one that Sana's makers publish it with.
    """
    halves = {"text_encoder": torch.bfloat16, "vae": torch.bfloat16, "default": dtype}
    dtypes: Any = halves if dtype == torch.float16 else dtype
    pipe = common.frozen(common.load_folder(SanaPipeline, source.path, dtypes))
    if "flow_shift" not in pipe.scheduler.config:
        kind = type(pipe.scheduler).__name__
        raise UserError(f"{source.name} has a {kind}, not Sana's DPMSolverMultistepScheduler: choose sana")
    pipe.tokenizer.model_max_length = TOKENS
    return pipe


def denoiser(pipe: DiffusionPipeline) -> nn.Module:
    """Return the transformer."""
    transformer: nn.Module = pipe.transformer
    return transformer


def text_encoders(pipe: DiffusionPipeline) -> dict[str, nn.Module]:
    """Return none: Gemma stays frozen."""
    return {}


def process(pipe: DiffusionPipeline) -> Flow:
    """Return the flow with logit-normal times, shifted as in sampling.

    So its makers trained it: https://github.com/NVlabs/Sana, configs/sana_config/1024ms/Sana_1600M_img1024.yaml.
    """
    return Flow(pipe.scheduler.config.flow_shift, "logit-normal")


def encode_images(pipe: DiffusionPipeline, pixels_BCHW: Tensor) -> dict[str, Tensor]:
    """Encode float pixels in [-1, 1] to latents, in float32; `std_BCHW` is 0, the autoencoder draws nothing.

    Args:
        pipe: The pipeline. Its autoencoder is left in float32, as in `common.encode_images`.
        pixels_BCHW: float32 pixels.
    """
    vae = pipe.vae
    if vae.dtype != torch.float32:
        vae.to(torch.float32)
    latents_BCHW = vae.encode(pixels_BCHW.to(vae.device)).latent * vae.config.scaling_factor
    return {"mean_BCHW": latents_BCHW, "std_BCHW": torch.zeros_like(latents_BCHW)}


def encode_prompts(pipe: DiffusionPipeline, prompts: Sequence[str]) -> list[dict[str, Tensor]]:
    """Encode each prompt, in small letters, to `prompt_embeds_LD` and `mask_L`, 1 for its tokens and 0 for the filling.

    Raises:
        UserError: A prompt is longer than the model was made to read.
    """
    for prompt in prompts:
        require_fits("the prompt", prompt, [pipe.tokenizer])
    embeds_BLD, mask_BL, *_ = pipe.encode_prompt(list(prompts), False, device=common.reads_on(pipe))
    pairs = zip(embeds_BLD, mask_BL, strict=True)
    return [{"prompt_embeds_LD": embeds_LD, "mask_L": mask_L} for embeds_LD, mask_L in pairs]


def predict(denoiser: nn.Module, noisy_BCHW: Tensor, t_B: Tensor, cond: dict[str, Tensor]) -> Tensor:
    """Run the transformer, wrapped or bare; it is told the time in thousandths."""
    prediction_BCHW: Tensor = denoiser(
        noisy_BCHW,
        encoder_hidden_states=cond["prompt_embeds_BLD"],
        encoder_attention_mask=cond["mask_BL"],
        timestep=t_B * 1000,
    ).sample
    return prediction_BCHW


def class_sampler(pipe: DiffusionPipeline) -> FlowMatchEulerDiscreteScheduler:
    """Return a sampler on the model's own schedule that puts fresh noise in at every step (`common.class_sampler`)."""
    return FlowMatchEulerDiscreteScheduler(shift=pipe.scheduler.config.flow_shift, stochastic_sampling=True)


def guide(pipe: DiffusionPipeline, scale: float, negatives: Sequence[str]) -> dict[str, Any]:
    """Return how the pipeline is told to guide: away from the negative prompts; prompts and sizes as they are given."""
    as_given = {"complex_human_instruction": None, "use_resolution_binning": False}
    return {"guidance_scale": scale, "negative_prompt": list(negatives), **as_given}
