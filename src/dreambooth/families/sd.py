"""Stable Diffusion 1.x and 2.x, and the toybox: a U-Net with CLIP text cross-attention, noise- or v-predicting.

Rombach et al. 2022, https://arxiv.org/abs/2112.10752; conventions as in diffusers' `StableDiffusionPipeline`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from torch import Tensor, nn
from transformers import CLIPTokenizer

from dreambooth import sampling
from dreambooth.diffusion import Ddpm
from dreambooth.errors import UserError
from dreambooth.families import common
from dreambooth.families.common import class_sampler as class_sampler
from dreambooth.families.common import collate as collate
from dreambooth.families.common import encode_images as encode_images
from dreambooth.models import SD_CROSS_ATTENTION, Source, safetensors_header
from dreambooth.prompts import require_fits

logger = logging.getLogger(__name__)

PIPELINES = ("StableDiffusionPipeline",)
STRIDE = 8
SAMPLERS = sampling.SAMPLERS
LORA_TARGETS = common.UNET_TARGETS
TEXT_LORA_TARGETS = common.CLIP_ATTENTION
READERS = WORD_TOKENIZERS = ("tokenizer",)

# A single file carries no configuration: these are the shipped ones, by cross-attention width and prediction.
CONFIGS = {(768, "epsilon"): "sd1", (1024, "epsilon"): "sd2", (1024, "v"): "sd2-v"}
CONFIG_FOLDER = Path(__file__).parent / "configs"
TOKENIZER = Path(__file__).parents[1] / "data" / "clip_tokenizer"
# What a file without metadata is taken to predict: as diffusers does.
DEFAULT_PREDICTIONS = {768: "epsilon", 1024: "v"}
# SD 2.x pads prompts with "!", token 0, as OpenCLIP does; SD 1.x with the end token.
PAD_TOKENS = {768: "<|endoftext|>", 1024: "!"}


def load(source: Source, dtype: torch.dtype) -> DiffusionPipeline:
    """Load the stock pipeline on the CPU: every part frozen, in eval mode, its weights cast to `dtype`.

    Raises:
        UserError: A single file whose architecture is not that of SD 1.x or 2.x.
    """
    return common.frozen((_load_file if source.path.is_file() else _load_folder)(source.path, dtype))


def denoiser(pipe: DiffusionPipeline) -> nn.Module:
    """Return the U-Net."""
    unet: nn.Module = pipe.unet
    return unet


def text_encoders(pipe: DiffusionPipeline) -> dict[str, nn.Module]:
    """Return the one text encoder."""
    return {"text_encoder": pipe.text_encoder}


def process(pipe: DiffusionPipeline) -> Ddpm:
    """Return the noise schedule and the kind of prediction that the pipeline's scheduler is configured for."""
    return Ddpm.from_scheduler_config(pipe.scheduler.config)


def encode_prompts(pipe: DiffusionPipeline, prompts: Sequence[str]) -> list[dict[str, Tensor]]:
    """Encode each prompt to `prompt_embeds_LD`, padded to the tokenizer's length as in generation.

    Raises:
        UserError: A prompt is longer than the text encoder can read.
    """
    for prompt in prompts:
        require_fits("the prompt", prompt, [pipe.tokenizer])
    embeds_BLD, _ = pipe.encode_prompt(list(prompts), common.reads_on(pipe), 1, False)
    return [{"prompt_embeds_LD": embeds_LD} for embeds_LD in embeds_BLD]


def predict(denoiser: nn.Module, noisy_BCHW: Tensor, t_B: Tensor, cond: dict[str, Tensor]) -> Tensor:
    """Run the U-Net, wrapped or bare; latents and conditioning come in the dtype that it computes in."""
    prediction_BCHW: Tensor = denoiser(noisy_BCHW, t_B, encoder_hidden_states=cond["prompt_embeds_BLD"]).sample
    return prediction_BCHW


def guide(pipe: DiffusionPipeline, scale: float, negatives: Sequence[str]) -> dict[str, Any]:
    """Return how the pipeline is told to guide: away from the negative prompts."""
    return {"guidance_scale": scale, "negative_prompt": list(negatives)}


def _load_folder(folder: Path, dtype: torch.dtype) -> DiffusionPipeline:
    left_out = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return common.load_folder(StableDiffusionPipeline, folder, dtype, **left_out)


def _load_file(file: Path, dtype: torch.dtype) -> DiffusionPipeline:
    config, pad_token = _config_of_file(file)
    return StableDiffusionPipeline.from_single_file(
        str(file),
        config=str(config),
        tokenizer=CLIPTokenizer.from_pretrained(TOKENIZER, pad_token=pad_token),
        dtype=dtype,
        local_files_only=True,
    )


def _config_of_file(file: Path) -> tuple[Path, str]:
    """Return the shipped configuration and the padding token that fit the tensors of a single file.

    Noise and v-prediction have the same tensors: what the metadata says counts (the ModelSpec standard), else a
    default, and where that is v-prediction it is said.
    """
    width, prediction, is_said = _kind_of_file(file)
    if not is_said and prediction == "v":
        logger.warning(
            "%s does not say what it predicts: taken as v-prediction (SD 2.x, 768 px); "
            "for a noise-predicting one (512 px base) give its diffusers folder or the model sd21-base",
            file.name,
        )
    return CONFIG_FOLDER / CONFIGS[width, prediction], PAD_TOKENS[width]


def resolution_of_file(file: Path) -> int:
    """Return the image side in pixels that the model in a single file was trained at."""
    width, prediction, _ = _kind_of_file(file)
    unet = json.loads((CONFIG_FOLDER / CONFIGS[width, prediction] / "unet" / "config.json").read_text(encoding="utf-8"))
    return int(unet["sample_size"]) * STRIDE


def _kind_of_file(file: Path) -> tuple[int, str, bool]:
    """Return the width of the text that a single file takes, what it predicts, and whether it says so itself."""
    shapes, metadata = safetensors_header(file)
    width = shapes[SD_CROSS_ATTENTION][-1]
    if width not in PAD_TOKENS:
        raise UserError(f"{file} has cross-attention of width {width}: SD 1.x has 768 and SD 2.x 1024")
    prediction = metadata.get("modelspec.prediction_type", DEFAULT_PREDICTIONS[width])
    if (width, prediction) not in CONFIGS:
        raise UserError(f"{file} predicts {prediction!r}, unusual for its kind: convert it to a diffusers folder first")
    return width, prediction, "modelspec.prediction_type" in metadata
