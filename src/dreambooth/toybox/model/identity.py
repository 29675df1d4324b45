"""The identity encoder: a stock `ViTModel` whose class token tells subjects apart, for the DINO metrics."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import ViTConfig, ViTModel

from dreambooth.toybox.model.renders import Renders, World, flipped, shifted

TEMPERATURE = 0.1


@dataclass
class IdentityTask:
    """Two pictures of one subject are drawn together; the other subjects of its class in the batch are pushed away.

    Attributes:
        module: A `ViTModel`.
        world: Renders of which many share a subject.
        batch: Subjects a step, two pictures each.
        classes: Classes a step; few of them make hard negatives.
    """

    module: ViTModel
    world: World
    batch: int
    classes: int = 4
    _groups: dict[str, list[list[int]]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._groups = groups(self.world.train)

    def loss(self, draw: torch.Generator, progress: float) -> dict[str, Tensor]:
        """Symmetric cross-entropy between the two pictures of each subject (InfoNCE, van den Oord et al. 2018)."""
        pairs_B2 = self._pairs(draw)
        train, device = self.world.train, self.module.device
        views = [shifted(flipped(train.pixels(rows_B), draw), draw).to(device) for rows_B in pairs_B2.T]
        one_BD, two_BD = (embed(self.module, pixels_BCHW) for pixels_BCHW in views)
        scores_BB = one_BD @ two_BD.T / TEMPERATURE
        own_B = torch.arange(len(scores_BB), device=device)
        loss = (F.cross_entropy(scores_BB, own_B) + F.cross_entropy(scores_BB.T, own_B)) / 2
        return {"loss": loss, "found": (scores_BB.argmax(1) == own_B).float().mean()}

    def evaluate(self) -> dict[str, float]:
        """AUC on held-out subjects."""
        return {"auc": auc(*similarities(self.module, self.world.held_out))}

    def save(self, folder: Path) -> None:
        """Writes the stock folder."""
        self.module.save_pretrained(folder)

    def _pairs(self, draw: torch.Generator) -> Tensor:
        """Rows of two different pictures of each of the step's subjects, (B, 2)."""
        names = list(self._groups)
        chosen = [names[index] for index in torch.randperm(len(names), generator=draw)[: self.classes].tolist()]
        pairs = []
        for name in chosen:
            subjects = self._groups[name]
            order = torch.randperm(len(subjects), generator=draw)[: self.batch // len(chosen)]
            for rows in (subjects[index] for index in order.tolist()):
                pairs.append([rows[at] for at in torch.randperm(len(rows), generator=draw)[:2].tolist()])
        return torch.tensor(pairs)


def build(config: dict[str, Any]) -> ViTModel:
    """The network of `config`: "width", "layers", "heads", "image", "patch"."""
    return ViTModel(
        ViTConfig(
            hidden_size=config["width"],
            intermediate_size=4 * config["width"],
            num_hidden_layers=config["layers"],
            num_attention_heads=config["heads"],
            image_size=config["image"],
            patch_size=config["patch"],
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        ),
        add_pooling_layer=False,
    )


def groups(renders: Renders) -> dict[str, list[list[int]]]:
    """For each class, the rows of each subject that has at least two pictures in which it looks like itself."""
    rows: dict[tuple[str, int], list[int]] = defaultdict(list)
    for index, record in enumerate(renders.records):
        if looks_itself(record["scene"]):
            rows[record["scene"]["class"], record["scene"]["subject_seed"]].append(index)
    found: dict[str, list[list[int]]] = defaultdict(list)
    for (name, _), subject in rows.items():
        if len(subject) > 1:
            found[name].append(subject)
    return dict(found)


def looks_itself(scene: dict[str, Any]) -> bool:
    """Whether nothing in the scene replaces what the subject is made of, its colour or its shape."""
    changes = ("colour", "material", "style", "hybrid", "sculpture", "planted")
    return not (scene["properties"] or any(scene[name] for name in changes))


def embed(vit: ViTModel, pixels_BCHW: Tensor) -> Tensor:
    """Unit class tokens, (B, D), of pixels in [-1, 1]."""
    return F.normalize(vit(pixel_values=pixels_BCHW).last_hidden_state[:, 0].float(), dim=-1)


@torch.no_grad()
def similarities(vit: ViTModel, renders: Renders) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Cosines of "same subject, other scene" and of "same class, other subject"."""
    same, other = [], []
    for subjects in groups(renders).values():
        chosen = renders.rows([row for subject in subjects for row in subject])
        label_N = torch.tensor([index for index, subject in enumerate(subjects) for _ in subject])
        unit_ND = torch.cat([embed(vit, chosen.pixels(rows).to(vit.device)) for rows in chosen.batches(128)])
        scores_NN = (unit_ND @ unit_ND.T).cpu()
        upper_NN = torch.ones_like(scores_NN, dtype=torch.bool).triu(1)
        equal_NN = label_N[:, None] == label_N[None]
        same.append(scores_NN[upper_NN & equal_NN])
        other.append(scores_NN[upper_NN & ~equal_NN])
    return torch.cat(same).numpy(), torch.cat(other).numpy()


def auc(positive: np.ndarray[Any, Any], negative: np.ndarray[Any, Any]) -> float:
    """Probability that a positive score exceeds a negative one, ties counting half (Mann-Whitney U)."""
    ordered = np.sort(negative)
    below = np.searchsorted(ordered, positive, side="left") + np.searchsorted(ordered, positive, side="right")
    return float(below.mean() / (2 * len(ordered)))
