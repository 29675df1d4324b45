"""Models of real size with random weights: `python benchmarks/real_models.py NAME DIR`. Speed and memory do not mind.

`sd15`, `sdxl`, `sd35m` and `flux` have the shapes of Stable Diffusion 1.5, SDXL, Stable Diffusion 3.5 medium and
FLUX.1 dev, each with its own text encoders; T5's tokenizer knows few words. Weights are one block of noise over and
over, which takes seconds and no GPU.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
)

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.debug_models import BETAS, TOKENIZER, UNUSED, t5_tokenizer  # noqa: E402

SD15: dict[str, Any] = {"sample_size": 64, "cross_attention_dim": 768}
SDXL: dict[str, Any] = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SD3: dict[str, Any] = {
    "sample_size": 128,
    "num_layers": 24,
    "num_attention_heads": 24,
    "attention_head_dim": 64,
    "caption_projection_dim": 1536,
    "pos_embed_max_size": 384,
    "dual_attention_layers": tuple(range(13)),
    "qk_norm": "rms_norm",
}
FLUX: dict[str, Any] = {"guidance_embeds": True}
"""Shapes of the denoisers; what is not said is the class's default."""

NOISE = 0.02 * torch.randn(1 << 22, generator=torch.Generator().manual_seed(0))


def real(kind: Callable[..., Any], *config: Any, dtype: torch.dtype = torch.bfloat16, **values: Any) -> Any:
    """A network with weights of noise, its scales of one and its offsets of zero."""
    with init_empty_weights(include_buffers=False):
        network = kind(*config, **values)
    for module in network.modules():
        for name, weight in module.named_parameters(recurse=False):
            module.register_parameter(name, nn.Parameter(_filled(name, weight, dtype), requires_grad=False))
    if hasattr(network, "tie_weights"):
        network.tie_weights()
    return network


def _filled(name: str, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if weight.dim() < 2:
        return torch.full(weight.shape, float(name == "weight"), dtype=dtype)
    full = torch.empty(weight.numel(), dtype=dtype)
    noise = NOISE.to(dtype)
    for begin in range(0, len(full), len(noise)):
        part = full[begin : begin + len(noise)]
        part.copy_(noise[: len(part)])
    return full.view(weight.shape)


def vae(dtype: torch.dtype = torch.bfloat16, **values: Any) -> AutoencoderKL:
    """Stable Diffusion's autoencoder."""
    settings = {
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
        "latent_channels": 4,
        **values,
    }
    return real(AutoencoderKL, dtype=dtype, **settings)


def clip_l(kind: type[Any] = CLIPTextModel, dtype: torch.dtype = torch.bfloat16) -> Any:
    """CLIP ViT-L/14's text encoder."""
    config = CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, projection_dim=768
    )
    return real(kind, config, dtype=dtype)


def clip_g() -> Any:
    """OpenCLIP ViT-bigG/14's text encoder."""
    sizes = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
    return real(CLIPTextModelWithProjection, CLIPTextConfig(hidden_act="gelu", projection_dim=1280, **sizes))


def t5_xxl() -> Any:
    """T5 v1.1 XXL's encoder."""
    sizes = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64}
    return real(T5EncoderModel, T5Config(vocab_size=32128, feed_forward_proj="gated-gelu", **sizes))


def clip_tokenizer(**values: Any) -> CLIPTokenizer:
    """CLIP's."""
    return CLIPTokenizer.from_pretrained(TOKENIZER, **values)


def sd15() -> DiffusionPipeline:
    """Stable Diffusion 1.5, in float32 as full fine-tuning wants it."""
    return StableDiffusionPipeline(
        vae=vae(torch.float32, sample_size=512),
        text_encoder=clip_l(dtype=torch.float32),
        tokenizer=clip_tokenizer(),
        unet=real(UNet2DConditionModel, dtype=torch.float32, **SD15),
        scheduler=DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        **UNUSED,
    )


def sdxl() -> DiffusionPipeline:
    """SDXL base."""
    return StableDiffusionXLPipeline(
        vae=vae(sample_size=1024, scaling_factor=0.13025, force_upcast=True),
        text_encoder=clip_l(),
        text_encoder_2=clip_g(),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(pad_token="!"),
        unet=real(UNet2DConditionModel, **SDXL),
        scheduler=EulerDiscreteScheduler(**BETAS, steps_offset=1, timestep_spacing="leading"),
        add_watermarker=False,
    )


def sd35m() -> DiffusionPipeline:
    """Stable Diffusion 3.5 medium."""
    return StableDiffusion3Pipeline(
        vae=flow_vae(scaling_factor=1.5305, shift_factor=0.0609),
        text_encoder=clip_l(CLIPTextModelWithProjection),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip_g(),
        tokenizer_2=clip_tokenizer(pad_token="!"),
        text_encoder_3=t5_xxl(),
        tokenizer_3=t5_tokenizer(),
        transformer=real(SD3Transformer2DModel, **SD3),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def flux() -> DiffusionPipeline:
    """FLUX.1 dev."""
    return FluxPipeline(
        vae=flow_vae(scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=clip_l(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5_xxl(),
        tokenizer_2=t5_tokenizer(),
        transformer=real(FluxTransformer2DModel, **FLUX),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
    )


def flow_vae(**values: Any) -> AutoencoderKL:
    """The autoencoder of 16 channels that Stable Diffusion 3 and FLUX.1 have."""
    return vae(latent_channels=16, sample_size=1024, use_quant_conv=False, use_post_quant_conv=False, **values)


MODELS: dict[str, Callable[[], DiffusionPipeline]] = {"sd15": sd15, "sdxl": sdxl, "sd35m": sd35m, "flux": flux}


if __name__ == "__main__":
    MODELS[sys.argv[1]]().save_pretrained(sys.argv[2], max_shard_size="50GB")
