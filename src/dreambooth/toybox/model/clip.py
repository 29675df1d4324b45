"""CLIP of the toy world: a stock `CLIPModel` trained contrastively, whose text half becomes the frozen text encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer, CLIPVisionConfig
from transformers import CLIPVisionModelWithProjection as CLIPVision

from dreambooth.toybox.model.renders import Renders, World, flipped, shifted
from dreambooth.toybox.world.captions import retell
from dreambooth.toybox.world.scenes import from_dict

# Least and greatest token of the vocabulary: 49,408 in all.
BEGIN, END = 49406, 49407
MOST_SCALE = 4.6052
# Captions of each render, in different words.
TELLINGS = 8


@dataclass
class ClipTask:
    """Matches pictures and captions.

    The text projection is the identity and stays so: the text encoder's pooled output is CLIP's text embedding, and
    the two halves can be kept apart without a third file.

    Attributes:
        module: A `CLIPModel`.
        world: The renders.
        tokenizer: The text encoder's.
        batch: Pairs a step, each the others' negatives.
    """

    module: CLIPModel
    world: World
    tokenizer: CLIPTokenizer
    batch: int
    _tokens_VNL: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._tokens_VNL = told(self.tokenizer, self.world.train)

    def loss(self, draw: torch.Generator, progress: float) -> dict[str, Tensor]:
        """Symmetric cross-entropy over the batch (Radford et al. 2021, figure 3); equal captions are no negatives."""
        rows = torch.randint(0, len(self.world.train), (self.batch,), generator=draw)
        device = self.module.device
        pixels_BCHW = shifted(flipped(self.world.train.pixels(rows), draw), draw).to(device)
        tellings = torch.randint(0, len(self._tokens_VNL), (self.batch,), generator=draw)
        tokens_BL = self._tokens_VNL[tellings, rows].to(device)
        image_BD = embed_images(self.module, pixels_BCHW)
        text_BD = embed_texts(self.module, tokens_BL)
        scores_BB = self.module.logit_scale.clamp(max=MOST_SCALE).exp() * image_BD @ text_BD.T
        same_BB = (tokens_BL[:, None] == tokens_BL[None]).all(-1).float()
        target_BB = same_BB / same_BB.sum(1, keepdim=True)
        loss = (F.cross_entropy(scores_BB, target_BB) + F.cross_entropy(scores_BB.T, target_BB)) / 2
        return {"loss": loss, "scale": self.module.logit_scale.exp()}

    def evaluate(self) -> dict[str, float]:
        """Share of held-out renders whose own caption is the nearest of 128 (equal captions count as own)."""
        held_out = self.world.held_out
        own = sum(float(self._hits(held_out, rows).sum()) for rows in held_out.batches(128))
        return {"retrieval": own / len(held_out)}

    def save(self, folder: Path) -> None:
        """Writes the stock folder. The token table is rounded to eight bits first, as it ships."""
        quantise(self.module)
        self.module.save_pretrained(folder)

    def _hits(self, renders: Renders, rows: Tensor) -> Tensor:
        device = self.module.device
        own = captions(renders)
        tokens_BL = tokens(self.tokenizer, [own[row] for row in rows.tolist()]).to(device)
        image_BD = embed_images(self.module, renders.pixels(rows).to(device))
        nearest_B = (image_BD @ embed_texts(self.module, tokens_BL).T).argmax(1)
        return (tokens_BL[nearest_B] == tokens_BL).all(-1)


def build(config: dict[str, Any]) -> CLIPModel:
    """The network of `config`: "text" and "vision" (each "width", "layers", "heads"), "length", "image", "patch"."""
    text, vision = config["text"], config["vision"]
    clip = CLIPModel(
        CLIPConfig(
            text_config=CLIPTextConfig(
                vocab_size=END + 1,
                max_position_embeddings=config["length"],
                projection_dim=text["width"],
                bos_token_id=BEGIN,
                eos_token_id=END,
                pad_token_id=END,
                **_sizes(text),
            ).to_dict(),
            vision_config=CLIPVisionConfig(
                image_size=config["image"], patch_size=config["patch"], projection_dim=text["width"], **_sizes(vision)
            ).to_dict(),
            projection_dim=text["width"],
        )
    )
    torch.nn.init.eye_(clip.text_projection.weight)
    clip.text_projection.requires_grad_(False)
    return clip


def _sizes(config: dict[str, int]) -> dict[str, Any]:
    width = config["width"]
    return {
        "hidden_act": "gelu",
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": config["layers"],
        "num_attention_heads": config["heads"],
    }


def captions(renders: Renders) -> list[str]:
    """The captions, row by row."""
    return [record["caption"] for record in renders.records]


def told(tokenizer: CLIPTokenizer, renders: Renders) -> Tensor:
    """Token ids of `TELLINGS` captions of every render, (V, N, L)."""
    scenes = [from_dict(record["scene"]) for record in renders.records]
    return torch.stack([tokens(tokenizer, texts) for texts in retell(scenes, TELLINGS, seed=0)])


def tokens(tokenizer: CLIPTokenizer, texts: Sequence[str]) -> Tensor:
    """Token ids, (B, L), padded with the end token as Stable Diffusion pads."""
    length = tokenizer.model_max_length
    rows = tokenizer(list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    ids: Tensor = rows.input_ids
    return ids


def embed_images(clip: CLIPModel | CLIPVision, pixels_BCHW: Tensor) -> Tensor:
    """Unit image embeddings, (B, D), of pixels in [-1, 1]."""
    pooled_BE = clip.vision_model(pixel_values=pixels_BCHW).pooler_output
    return F.normalize(clip.visual_projection(pooled_BE).float(), dim=-1)


def embed_texts(clip: CLIPModel, tokens_BL: Tensor) -> Tensor:
    """Unit text embeddings, (B, D)."""
    return F.normalize(clip.text_model(input_ids=tokens_BL).pooler_output.float(), dim=-1)


@torch.no_grad()
def quantise(clip: CLIPModel) -> None:
    """Rounds the token table to float8 (e4m3), in place: 6.3 MB instead of 12.6, before anything is trained on it."""
    table = clip.text_model.embeddings.token_embedding.weight
    table.copy_(table.to(torch.float8_e4m3fn))


def text_half(clip: CLIPModel) -> CLIPTextModel:
    """The frozen text encoder of the pipeline."""
    text = CLIPTextModel(clip.config.text_config)
    text.load_state_dict(clip.text_model.state_dict())
    return text.eval().requires_grad_(False)


def vision_half(clip: CLIPModel) -> CLIPVision:
    """The image encoder alone, in its stock class."""
    vision = CLIPVision(clip.config.vision_config)
    vision.vision_model.load_state_dict(clip.vision_model.state_dict())
    vision.visual_projection.load_state_dict(clip.visual_projection.state_dict())
    return vision.eval().requires_grad_(False)
