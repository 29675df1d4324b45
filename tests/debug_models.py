"""Tiny random models of stock classes, for tests on the CPU: `python -m tests.debug_models NAME DIR`.

`sd` predicts the noise, `sd-v` the velocity, at 32 px; the others draw 64 px images: `sdxl`, `sd3` (3 medium without
T5), `sd35` (3.5 medium), `flux` (dev), `flux-schnell`, `chroma`, `sana`, `z_image`, `qwen_image`, `flux2` (dev),
`flux2-klein` and `flux2-klein-base`; and 16 px ones `deepfloyd` (stage I) and
`deepfloyd_sr` (stage II).
CLIP's tokenizer is the real one; T5's knows letters and a few words, Gemma's letters.
"""

from __future__ import annotations

import string
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    ChromaPipeline,
    ChromaTransformer2DModel,
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    IFPipeline,
    IFSuperResolutionPipeline,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

import dreambooth
from dreambooth.identifiers import DEFAULT_IDENTIFIERS
from tests import debug_models_llm

TOKENIZER = Path(dreambooth.__path__[0]) / "data" / "clip_tokenizer"
WIDTH = 8
FLUX_LATENTS: dict[str, Any] = {"scaling_factor": 0.3611, "shift_factor": 0.1159, "quant": False}
UNUSED: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def build(name: str, folder: Path) -> Path:
    """Write the debug model `name` to `folder` in the diffusers layout; the same weights every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe = MODELS[name]()
    pipe.save_pretrained(folder)
    return folder


def sd(prediction_type: str = "epsilon") -> DiffusionPipeline:
    """Stable Diffusion 1.x; its U-Net has the names that SD 1.x has in its single files."""
    return StableDiffusionPipeline(
        vae=autoencoder(blocks=3, side=32),
        text_encoder=clip(CLIPTextModel),
        tokenizer=CLIPTokenizer.from_pretrained(TOKENIZER),
        unet=unet(("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")),
        scheduler=DDIMScheduler(
            **BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1, prediction_type=prediction_type
        ),
        **UNUSED,
    )


def sdxl() -> DiffusionPipeline:
    """Stable Diffusion XL: two text encoders, and six numbers on each image's size and crop."""
    return StableDiffusionXLPipeline(
        vae=autoencoder(blocks=4, side=64, force_upcast=True),
        text_encoder=clip(CLIPTextModel),
        text_encoder_2=clip(CLIPTextModelWithProjection, layers=3),
        tokenizer=CLIPTokenizer.from_pretrained(TOKENIZER),
        tokenizer_2=CLIPTokenizer.from_pretrained(TOKENIZER, pad_token="!"),
        unet=unet(
            ("DownBlock2D", "CrossAttnDownBlock2D"),
            ("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=2 * WIDTH,
            use_linear_projection=True,
            transformer_layers_per_block=(1, 2),
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=WIDTH + 6 * 4,
        ),
        scheduler=EulerDiscreteScheduler(**BETAS, steps_offset=1, timestep_spacing="leading"),
        add_watermarker=False,
    )


def sd3(has_t5: bool = True, **transformer: Any) -> DiffusionPipeline:
    """Stable Diffusion 3: CLIP's tokens are filled up to T5's width, and T5 may be absent."""
    return StableDiffusion3Pipeline(
        vae=autoencoder(4, 64, scaling_factor=1.5305, shift_factor=0.0609, quant=False),
        text_encoder=clip(CLIPTextModelWithProjection),
        tokenizer=CLIPTokenizer.from_pretrained(TOKENIZER),
        text_encoder_2=clip(CLIPTextModelWithProjection, layers=3),
        tokenizer_2=CLIPTokenizer.from_pretrained(TOKENIZER, pad_token="!"),
        text_encoder_3=t5(3 * WIDTH) if has_t5 else None,
        tokenizer_3=t5_tokenizer() if has_t5 else None,
        transformer=SD3Transformer2DModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=3 * WIDTH,
            caption_projection_dim=16,
            pooled_projection_dim=2 * WIDTH,
            pos_embed_max_size=8,
            **transformer,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def flux(guidance_embeds: bool = True, **flow: Any) -> DiffusionPipeline:
    """FLUX.1: dev, or schnell, which embeds no guidance and shifts by nothing."""
    return FluxPipeline(
        vae=autoencoder(4, 64, **FLUX_LATENTS),
        text_encoder=clip(CLIPTextModel),
        tokenizer=CLIPTokenizer.from_pretrained(TOKENIZER),
        text_encoder_2=t5(),
        tokenizer_2=t5_tokenizer(),
        transformer=FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            pooled_projection_dim=WIDTH,
            guidance_embeds=guidance_embeds,
            axes_dims_rope=(2, 2, 4),
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(**flow),
    )


def chroma() -> DiffusionPipeline:
    """Chroma: T5 alone, all modulation from one small network."""
    return ChromaPipeline(
        vae=autoencoder(4, 64, **FLUX_LATENTS),
        text_encoder=t5(),
        tokenizer=t5_tokenizer(),
        transformer=ChromaTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            axes_dims_rope=(2, 2, 4),
            approximator_num_channels=16,
            approximator_hidden_dim=16,
            approximator_layers=1,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    )


def sana() -> DiffusionPipeline:
    """Sana 1.5: Gemma 2, an autoencoder without a posterior (which reduces by 8 here, not by 32)."""
    blocks = ("ResBlock", "ResBlock", "ResBlock", "EfficientViTBlock")
    layers = {f"{half}_layers_per_block": (1, 1, 1, 1) for half in ("encoder", "decoder")}
    widths = {f"{half}_block_out_channels": (4, 4, 8, 8) for half in ("encoder", "decoder")}
    scales = {f"{half}_qkv_multiscales": ((), (), (), (5,)) for half in ("encoder", "decoder")}
    return SanaPipeline(
        tokenizer=gemma_tokenizer(),
        text_encoder=Gemma2Model(
            Gemma2Config(
                vocab_size=128,
                hidden_size=WIDTH,
                intermediate_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=4,
            )
        ),
        vae=AutoencoderDC(
            latent_channels=4,
            attention_head_dim=4,
            encoder_block_types=blocks,
            decoder_block_types=blocks,
            downsample_block_type="conv",
            upsample_block_type="interpolate",
            scaling_factor=0.41407,
            **layers,
            **widths,
            **scales,
        ),
        transformer=SanaTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=2,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=WIDTH,
            sample_size=8,
            qk_norm="rms_norm_across_heads",
        ),
        scheduler=DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    )


def deepfloyd() -> DiffusionPipeline:
    """DeepFloyd IF stage I: on pixels, under T5, predicting a variance too."""
    return IFPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5(),
        unet=pixel_unet(in_channels=3),
        scheduler=pixel_scheduler(),
        watermarker=None,
        **UNUSED,
    )


def deepfloyd_sr() -> DiffusionPipeline:
    """DeepFloyd IF stage II: beside the noisy image it sees a small one, and is told how noisy that is."""
    return IFSuperResolutionPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5(),
        unet=pixel_unet(in_channels=6, class_embed_type="timestep"),
        scheduler=pixel_scheduler(),
        image_noising_scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        watermarker=None,
        **UNUSED,
    )


MODELS: dict[str, Callable[[], DiffusionPipeline]] = {
    "sd": sd,
    "sd-v": lambda: sd("v_prediction"),
    "sdxl": sdxl,
    "sd3": lambda: sd3(has_t5=False),
    "sd35": lambda: sd3(dual_attention_layers=(0,), qk_norm="rms_norm"),
    "flux": lambda: flux(use_dynamic_shifting=True, shift=3.0),
    "flux-schnell": lambda: flux(guidance_embeds=False),
    "chroma": chroma,
    "sana": sana,
    "deepfloyd": deepfloyd,
    "deepfloyd_sr": deepfloyd_sr,
    "z_image": lambda: debug_models_llm.z_image(autoencoder(4, 64, **FLUX_LATENTS)),
    "qwen_image": debug_models_llm.qwen_image,
    "flux2": debug_models_llm.flux2,
    "flux2-klein": lambda: debug_models_llm.flux2_klein(is_distilled=True),
    "flux2-klein-base": lambda: debug_models_llm.flux2_klein(is_distilled=False),
}
"""Name of a debug model -> what makes it."""


def autoencoder(blocks: int, side: int, quant: bool = True, **values: Any) -> AutoencoderKL:
    """An autoencoder that reduces images 2 ** (blocks - 1) times."""
    return AutoencoderKL(
        block_out_channels=(4, *[8] * (blocks - 1)),
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=side,
        use_quant_conv=quant,
        use_post_quant_conv=quant,
        **values,
    )


def clip(kind: type[Any], layers: int = 2) -> Any:
    """A CLIP text encoder of class `kind`."""
    config = CLIPTextConfig(
        hidden_size=WIDTH,
        intermediate_size=16,
        num_attention_heads=2,
        num_hidden_layers=layers,
        projection_dim=WIDTH,
        vocab_size=49408,
        bos_token_id=49406,
        eos_token_id=2,  # which is wrong, and what published configs have
    )
    return kind(config)


def t5(width: int = WIDTH) -> T5EncoderModel:
    """T5's encoder."""
    sizes = {"d_model": width, "d_kv": 4, "d_ff": 16, "num_layers": 2, "num_heads": 2}
    return T5EncoderModel(T5Config(vocab_size=128, feed_forward_proj="gated-gelu", **sizes))


def t5_tokenizer() -> T5TokenizerFast:
    """T5's tokenizer over letters, a few words, and the identifiers that the package knows."""
    words = ["a", "dog", "cat", "robot", *DEFAULT_IDENTIFIERS]
    pieces = [("▁", -3.0), *[(f"▁{word}", -1.0) for word in words]]
    letters = [(letter, -4.0) for letter in string.ascii_letters + string.digits + ".,'-[]"]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *pieces, *letters]
    return T5TokenizerFast(vocab=vocabulary, extra_ids=0, model_max_length=512)


def gemma_tokenizer() -> GemmaTokenizer:
    """Gemma's tokenizer over letters."""
    marks = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "\u2581"]
    letters = [*marks, *string.ascii_letters, *string.digits, *".,'-[]"]
    return GemmaTokenizer(vocab={letter: index for index, letter in enumerate(letters)}, merges=[])


def unet(down: tuple[str, ...], up: tuple[str, ...], **values: Any) -> UNet2DConditionModel:
    """A U-Net of two blocks of two layers, for latents of a side of 8."""
    settings = {"cross_attention_dim": WIDTH, "attention_head_dim": 2, **values}
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        layers_per_block=2,
        block_out_channels=(8, 16),
        down_block_types=down,
        up_block_types=up,
        norm_num_groups=4,
        **settings,
    )


def pixel_scheduler() -> DDPMScheduler:
    """DeepFloyd IF's sampler."""
    return DDPMScheduler(
        beta_schedule="squaredcos_cap_v2",
        thresholding=True,
        dynamic_thresholding_ratio=0.95,
        sample_max_value=1.5,
        variance_type="learned_range",
    )


def pixel_unet(in_channels: int, **values: Any) -> UNet2DConditionModel:
    """A U-Net of DeepFloyd IF's blocks, for images of a side of 16."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=in_channels,
        out_channels=6,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        cross_attention_dim=32,
        encoder_hid_dim=WIDTH,
        attention_head_dim=4,
        addition_embed_type="text",
        addition_embed_type_num_heads=2,
        cross_attention_norm="group_norm",
        resnet_time_scale_shift="scale_shift",
        act_fn="gelu",
        norm_num_groups=4,
        **values,
    )


if __name__ == "__main__":
    build(sys.argv[1], Path(sys.argv[2]))
