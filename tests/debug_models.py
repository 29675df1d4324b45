"""Tiny random models of stock classes, for tests on the CPU: `python -m tests.debug_models NAME DIR`.

`sd` predicts the noise, `sd-v` the velocity; both draw 32 px images with the real CLIP vocabulary.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import dreambooth

TOKENIZER = Path(dreambooth.__path__[0]) / "data" / "clip_tokenizer"
PREDICTIONS = {"sd": "epsilon", "sd-v": "v_prediction"}


def build(name: str, folder: Path) -> Path:
    """Write the debug model `name` to `folder` in the diffusers layout; the same weights every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe = StableDiffusionPipeline(
            vae=_vae(),
            text_encoder=_text_encoder(),
            tokenizer=CLIPTokenizer.from_pretrained(TOKENIZER),
            unet=_unet(),
            scheduler=_scheduler(PREDICTIONS[name]),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipe.save_pretrained(folder)
    return folder


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(4, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
    )


def _text_encoder() -> CLIPTextModel:
    config = CLIPTextConfig(
        hidden_size=8,
        intermediate_size=16,
        num_attention_heads=2,
        num_hidden_layers=2,
        projection_dim=8,
        vocab_size=49408,
        bos_token_id=49406,
        eos_token_id=49407,
    )
    return CLIPTextModel(config)


def _unet() -> UNet2DConditionModel:
    # Two layers a block, the first with cross-attention: the names that SD 1.x has in its single files.
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        layers_per_block=2,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=2,
        norm_num_groups=4,
    )


def _scheduler(prediction_type: str) -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )


if __name__ == "__main__":
    build(sys.argv[1], Path(sys.argv[2]))
