"""Textual inversion (Gal et al. 2022, https://arxiv.org/abs/2208.01618): a new token's embedding, and nothing else.

Each subject's identifier is a token that the model does not have yet. The rows of the new tokens are kept apart from
the embedding table, which stays as it is: an optimiser never sees it, and no copy of it is made at every step (as
peft's trainable tokens do). Shipped as the `learned_embeds.safetensors` that stock diffusers loads.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor, nn

from dreambooth.families import Family
from dreambooth.methods import Group, trained_components
from dreambooth.models import Source
from dreambooth.precision import storage_dtype
from dreambooth.recipe import Recipe, Subject

ROWS = "learned_KD"
"""Name of the trained parameter in the embedding: one row a subject."""
EMBEDS = "learned_embeds"
"""How the names of its files begin."""


def attach(pipe: DiffusionPipeline, family: Family, recipe: Recipe) -> list[Group]:
    """Add each subject's token, its embedding the mean of those of the class noun's tokens (Gal et al. section 4)."""
    assert recipe.learning_rate is not None, "presets.fill leaves no rate open"
    encoders: dict[str, Any] = trained_components(pipe, family, recipe)
    groups = []
    for name, encoder in encoders.items():
        tokenizer = _tokenizer(pipe, name)
        start_KD = torch.stack([_class_embedding(encoder, tokenizer, each) for each in recipe.subjects])
        tokenizer.add_tokens([each.identifier for each in recipe.subjects])
        encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        _pool_at_end(encoder, tokenizer)
        embedding = encoder.get_input_embeddings()
        embedding.register_parameter(ROWS, nn.Parameter(start_KD))
        embedding.register_forward_hook(_put_learned_rows)
        trained = {name: weight for name, weight in encoder.named_parameters() if weight.requires_grad}
        groups.append(Group(name, trained, recipe.learning_rate))
    return groups


def save(pipe: DiffusionPipeline, family: Family, source: Source, recipe: Recipe, folder: Path) -> None:
    """Write one file a subject: its token -> its embedding [1, D], float32."""
    encoders: dict[str, Any] = trained_components(pipe, family, recipe)
    for name, encoder in encoders.items():
        rows_KD = getattr(encoder.get_input_embeddings(), ROWS).detach()
        for subject, file, row_D in zip(recipe.subjects, _files(folder, name, recipe), rows_KD, strict=True):
            save_file({str(subject.identifier): row_D[None].clone()}, file)


def load(family: Family, source: Source, recipe: Recipe, folder: Path) -> DiffusionPipeline:
    """Load the base model and the embeddings into it."""
    pipe = family.load(source, storage_dtype(recipe))
    put(pipe, family, recipe, folder)
    return pipe


def put(pipe: DiffusionPipeline, family: Family, recipe: Recipe, folder: Path) -> None:
    """Put the embeddings that `save` wrote into a stock pipeline."""
    for name, encoder in family.text_encoders(pipe).items():
        files = [str(file) for file in _files(folder, name, recipe)]
        pipe.load_textual_inversion(files, tokenizer=_tokenizer(pipe, name), text_encoder=encoder)
        _pool_at_end(encoder, _tokenizer(pipe, name))


def _pool_at_end(encoder: nn.Module, tokenizer: Any) -> None:
    """Have CLIP sum a text up at its end.

    Published configs name another id as the end, with which transformers takes the place of the highest id: a new
    token's, so that nothing after it would count (its own warning in `modeling_clip.py`).
    """
    for module in encoder.modules():
        if hasattr(module, "eos_token_id"):
            module.eos_token_id = tokenizer.eos_token_id


def _put_learned_rows(embedding: nn.Embedding, inputs: tuple[Tensor, ...], embeds_BLD: Tensor) -> Tensor:
    """Put the trained rows in place of the last ones of the table."""
    rows_KD = getattr(embedding, ROWS)
    place_BL = inputs[0] - (embedding.num_embeddings - len(rows_KD))
    learned_BLD = rows_KD[place_BL.clamp(min=0)].to(embeds_BLD.dtype)
    return torch.where((place_BL >= 0)[..., None], learned_BLD, embeds_BLD)


def _class_embedding(encoder: Any, tokenizer: Any, subject: Subject) -> Tensor:
    table_VD = encoder.get_input_embeddings().weight
    ids = tokenizer.encode(subject.class_noun, add_special_tokens=False)
    start_D: Tensor = table_VD[ids].detach().float().mean(dim=0)
    return start_D


def _tokenizer(pipe: DiffusionPipeline, encoder: str) -> Any:
    """Return the tokenizer of a text encoder: diffusers numbers both alike."""
    return getattr(pipe, encoder.replace("text_encoder", "tokenizer"))


def _files(folder: Path, encoder: str, recipe: Recipe) -> Sequence[Path]:
    """Return each subject's file; the first of the first encoder has the name that stock diffusers looks for."""
    stem = encoder.replace("text_encoder", EMBEDS)
    return [folder / f"{stem}{f'-{k}' if k > 1 else ''}.safetensors" for k in range(1, len(recipe.subjects) + 1)]
