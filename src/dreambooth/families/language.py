"""What the families that read prompts with a language model do alike. Not a family."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

WORD_TOKENIZERS: tuple[str, ...] = ()
"""A language model reads any rare word in pieces."""

TEXT_LORA_TARGETS: tuple[str, ...] = ()
"""The language model stays frozen: stock diffusers loads no adapter of it."""

TOKENS = 512
"""Tokens that are read of a prompt in its template: the default of the stock pipelines and of diffusers' training."""


def limit_prompts(tokenizer: Any, wrapped: int) -> None:
    """Let a tokenizer's own limit be what is left for a prompt.

    Args:
        tokenizer: The tokenizer.
        wrapped: Tokens that the template adds to a prompt and that count.
    """
    tokenizer.model_max_length = TOKENS - wrapped


def chat_tokens(tokenizer: Any, chat: list[dict[str, Any]], **settings: Any) -> int:
    """Return the number of tokens of a chat in the model's template."""
    return len(tokenizer.apply_chat_template(chat, tokenize=True, return_dict=False, **settings))


def collate(rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Join rows to `prompt_embeds_BLD`, the shorter ones filled up with zeros, and where there are some, `mask_BL`."""
    embeds = [row["prompt_embeds_LD"] for row in rows]
    cond = {"prompt_embeds_BLD": pad_sequence(embeds, batch_first=True)}
    lengths = [len(embeds_LD) for embeds_LD in embeds]
    if min(lengths) < max(lengths):
        real_BL = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        cond["mask_BL"] = real_BL.to(embeds[0].device, torch.long)
    return cond


def posterior(pipe: DiffusionPipeline, pixels: Tensor) -> DiagonalGaussianDistribution:
    """Return the autoencoder's distribution of the latents, not normalised, in float32.

    Args:
        pipe: The pipeline. Its autoencoder is left in float32, as in `common.encode_images`.
        pixels: float32 pixels in [-1, 1], of the shape that the autoencoder takes.
    """
    vae = pipe.vae
    if vae.dtype != torch.float32:
        vae.to(torch.float32)
    encoded: DiagonalGaussianDistribution = vae.encode(pixels.to(vae.device)).latent_dist
    return encoded


def separate(embeds_BLD: Tensor, mask_BL: Tensor | None) -> list[Tensor]:
    """Undo `collate`: return the embeddings of each prompt in its own length."""
    if mask_BL is None:
        return list(embeds_BLD)
    return [embeds_LD[mask_L.bool()] for embeds_LD, mask_L in zip(embeds_BLD, mask_BL, strict=True)]
