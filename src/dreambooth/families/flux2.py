"""FLUX.2 dev and klein: a transformer over packed latents and three layers of a language model, a rectified flow.

Black Forest Labs 2025, https://github.com/black-forest-labs/flux2; conventions as in diffusers' `Flux2Pipeline` (dev,
which reads with Mistral 3 and embeds its guidance) and `Flux2KleinPipeline` (klein, which reads with Qwen3).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline, Flux2KleinPipeline, Flux2Pipeline
from diffusers.pipelines.flux2.pipeline_flux2 import format_input
from torch import Tensor, nn
from transformers import AutoTokenizer

from dreambooth import sampling
from dreambooth.diffusion import Flow
from dreambooth.errors import UserError
from dreambooth.families import common, language
from dreambooth.families.common import class_sampler as class_sampler
from dreambooth.families.common import collate as collate
from dreambooth.families.language import TEXT_LORA_TARGETS as TEXT_LORA_TARGETS
from dreambooth.families.language import WORD_TOKENIZERS as WORD_TOKENIZERS
from dreambooth.models import Source
from dreambooth.prompts import require_fits

PIPELINES = ("Flux2Pipeline", "Flux2KleinPipeline")
STRIDE = 16
SAMPLERS = sampling.FLOW_SAMPLERS

# dev has the most single blocks, 48. In them `attn.to_out` is a layer, in the double ones a list of layers, so the name
# must be whole.
SINGLE_OUT = tuple(f"single_transformer_blocks.{index}.attn.to_out" for index in range(48))
ATTENTION = (
    *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
    *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
    *("attn.to_qkv_mlp_proj", *SINGLE_OUT),
)
FEED_FORWARD = ("ff.linear_in", "ff.linear_out", "ff_context.linear_in", "ff_context.linear_out")
LORA_TARGETS = {"attention": ATTENTION, "wide": ATTENTION + FEED_FORWARD}
READERS = ("tokenizer",)

TRAINING_GUIDANCE = 1.0
"""Scale that dev is told while it is trained: that of no guidance, as in diffusers' README_flux2.md."""


def load(source: Source, dtype: torch.dtype) -> DiffusionPipeline:
    """Load the stock pipeline on the CPU: every part frozen, in eval mode, its weights cast to `dtype`.

    With dev's tokenizer alone: the processor around it reads images, which are never given, and wants torchvision.
    """
    pipe = common.frozen(common.load_folder(DiffusionPipeline, source.path, dtype, tokenizer=None))
    pipe.register_modules(tokenizer=AutoTokenizer.from_pretrained(source.path / "tokenizer", local_files_only=True))
    if isinstance(pipe, Flux2KleinPipeline):
        settings = {"add_generation_prompt": True, "enable_thinking": False}
        wrapped = language.chat_tokens(pipe.tokenizer, [{"role": "user", "content": ""}], **settings)
    else:
        (empty,) = format_input([""])
        wrapped = language.chat_tokens(pipe.tokenizer, empty)
    language.limit_prompts(pipe.tokenizer, wrapped)
    return pipe


def denoiser(pipe: DiffusionPipeline) -> nn.Module:
    """Return the transformer."""
    transformer: nn.Module = pipe.transformer
    return transformer


def text_encoders(pipe: DiffusionPipeline) -> dict[str, nn.Module]:
    """Return none: the language model stays frozen."""
    return {}


def process(pipe: DiffusionPipeline) -> Flow:
    """Return the flow with logit-normal times, shifted the more, the larger the image.

    Shifted as in FLUX.1, whose line the scheduler's config has: that of FLUX.2's own sampling in 200 steps, which with
    fewer steps shifts more (`compute_empirical_mu`). How its makers drew times is not published; logit-normal as for
    FLUX.1 and in OneTrainer's presets.
    """
    return Flow.from_scheduler_config(pipe.scheduler.config, "logit-normal")


def encode_images(pipe: DiffusionPipeline, pixels_BCHW: Tensor) -> dict[str, Tensor]:
    """Encode float pixels in [-1, 1] to latents, normalised at each place of a token of 2 x 2 by the batch norm."""
    encoded, vae = language.posterior(pipe, pixels_BCHW), pipe.vae
    mean_1K11 = vae.bn.running_mean.view(1, -1, 1, 1)
    std_1K11 = (vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps).sqrt()
    mean_BKHW = (Flux2Pipeline._patchify_latents(encoded.mean) - mean_1K11) / std_1K11
    std_BKHW = Flux2Pipeline._patchify_latents(encoded.std) / std_1K11
    unpatchify = Flux2Pipeline._unpatchify_latents
    return {"mean_BCHW": unpatchify(mean_BKHW), "std_BCHW": unpatchify(std_BKHW)}


def encode_prompts(pipe: DiffusionPipeline, prompts: Sequence[str]) -> list[dict[str, Tensor]]:
    """Encode each prompt, in the model's chat template, to `prompt_embeds_LD` and, for dev, `guidance`.

    All are filled up to 512 tokens, which the transformer reads: it has no mask.

    Raises:
        UserError: A prompt is longer than the model was made to read.
    """
    for prompt in prompts:
        require_fits("the prompt", prompt, [pipe.tokenizer])
    device = common.reads_on(pipe)
    embeds_BLD, _ = pipe.encode_prompt(list(prompts), device, max_sequence_length=language.TOKENS)
    guided = isinstance(pipe, Flux2Pipeline)
    guidance = {"guidance": torch.tensor(TRAINING_GUIDANCE, device=device)} if guided else {}
    return [{"prompt_embeds_LD": embeds_LD, **guidance} for embeds_LD in embeds_BLD]


def predict(denoiser: nn.Module, noisy_BCHW: Tensor, t_B: Tensor, cond: dict[str, Tensor]) -> Tensor:
    """Run the transformer, wrapped or bare, on latents packed 2 x 2 into tokens, each token told its place."""
    embeds_BLD, patches_BKHW = cond["prompt_embeds_BLD"], Flux2Pipeline._patchify_latents(noisy_BCHW)
    with noisy_BCHW.device:  # counted out there: nothing travels to it in a step
        text_BL4 = Flux2Pipeline._prepare_text_ids(embeds_BLD)
        places_BL4 = Flux2Pipeline._prepare_latent_ids(patches_BKHW)
    predicted_BLK = denoiser(
        hidden_states=Flux2Pipeline._pack_latents(patches_BKHW),
        timestep=t_B,
        guidance=cond.get("guidance_B"),
        encoder_hidden_states=embeds_BLD,
        txt_ids=text_BL4,
        img_ids=places_BL4,
    ).sample
    predicted_BKHW = predicted_BLK.transpose(1, 2).reshape(patches_BKHW.shape)
    prediction_BCHW: Tensor = Flux2Pipeline._unpatchify_latents(predicted_BKHW)
    return prediction_BCHW


def guide(pipe: DiffusionPipeline, scale: float, negatives: Sequence[str]) -> dict[str, Any]:
    """Return how the pipeline is told to guide.

    Dev by its embedded scale, klein base away from the negative prompts, klein, which is distilled, not at all.

    Raises:
        UserError: There is a negative prompt, and the model is distilled.
    """
    is_klein = isinstance(pipe, Flux2KleinPipeline)
    unguided = is_klein and pipe.config.is_distilled
    settings = {"guidance_scale": 1.0 if unguided else scale, "max_sequence_length": language.TOKENS}
    if not any(negatives):
        return settings
    if unguided or not is_klein:
        raise UserError("this FLUX.2 model takes no negative prompt: leave it out")
    with torch.no_grad():
        away_BLD, _ = pipe.encode_prompt(list(negatives), max_sequence_length=language.TOKENS)
    return {**settings, "negative_prompt_embeds": away_BLD}
