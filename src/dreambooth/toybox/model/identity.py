"""The identity encoder: a stock `ViTModel` whose class token tells subjects apart, for the DINO metrics."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import ViTConfig, ViTModel

from dreambooth.toybox.model.renders import Renders, World, flipped, shifted
from dreambooth.toybox.world.subjects import PATTERNS, draw_subject

TEMPERATURE = 0.1
FINISHES = frozenset({"shiny", "wet"})
LOOKS = 9 + 8
LOOKS_WEIGHT = 10.0
PATTERN_WEIGHT = 0.5


class Learner(nn.Module):
    """The encoder, and a head that reads a subject's traits from its class token and is thrown away afterwards."""

    def __init__(self, vit: ViTModel) -> None:
        super().__init__()
        self.vit = vit
        width = vit.config.hidden_size
        self.traits = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, LOOKS + len(PATTERNS)))

    def forward(self, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Unit class tokens (B, D) and predicted traits (B, T)."""
        token_BD = self.vit(pixel_values=pixels_BCHW).last_hidden_state[:, 0]
        return F.normalize(token_BD.float(), dim=-1), self.traits(token_BD).float()


@dataclass(frozen=True)
class Traits:
    """What makes subjects themselves: palette and shape numbers (N, 17) in [0, 1], index of the pattern (N,)."""

    looks: Tensor
    pattern: Tensor


@dataclass
class IdentityTask:
    """Two pictures of one subject are drawn together; the other subjects of its class in the batch are pushed away.

    Few subjects have two pictures, but every picture that shows a subject as it is tells its traits: palette, shape
    numbers and pattern, known from its seed. They are learned from as many single pictures besides.

    Attributes:
        module: The encoder and its head.
        world: Renders of which some share a subject.
        batch: Subjects a step, two pictures each, and half as many pictures of others.
        classes: Classes a step; few of them make hard negatives.
    """

    module: Learner
    world: World
    batch: int
    classes: int = 4
    _groups: dict[str, list[list[int]]] = field(init=False, repr=False)
    _singles_N: Tensor = field(init=False, repr=False)
    _traits: Traits = field(init=False, repr=False)

    def __post_init__(self) -> None:
        records = self.world.train.records
        self._groups = groups(self.world.train)
        self._singles_N = torch.tensor([row for row, record in enumerate(records) if looks_itself(record["scene"])])
        self._traits = traits(self.world.train)

    def loss(self, draw: torch.Generator, progress: float) -> dict[str, Tensor]:
        """Symmetric cross-entropy between the pictures of each subject (InfoNCE, van den Oord et al. 2018) + traits."""
        one_B, two_B = self.pairs(draw).T
        others = self._singles_N[torch.randint(0, len(self._singles_N), (self.batch // 2,), generator=draw)]
        rows_N = torch.cat([one_B, two_B, others])
        pixels_BCHW = shifted(flipped(self.world.train.pixels(rows_N), draw), draw)
        unit_ND, traits_NT = self.module(pixels_BCHW.to(self.module.vit.device))
        count = len(one_B)
        scores_BB = unit_ND[:count] @ unit_ND[count : 2 * count].T / TEMPERATURE
        own_B = torch.arange(count, device=scores_BB.device)
        contrast = (F.cross_entropy(scores_BB, own_B) + F.cross_entropy(scores_BB.T, own_B)) / 2
        looks, pattern = self._trait_losses(traits_NT, rows_N)
        found = (scores_BB.argmax(1) == own_B).float().mean()
        return {"loss": contrast + looks + pattern, "contrast": contrast, "looks": looks, "found": found}

    def evaluate(self) -> dict[str, float]:
        """AUC on held-out subjects."""
        return {"auc": auc(*similarities(self.module.vit, self.world.held_out))}

    def save(self, folder: Path) -> None:
        """Writes the stock folder of the encoder."""
        self.module.vit.save_pretrained(folder)

    def pairs(self, draw: torch.Generator) -> Tensor:
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

    def _trait_losses(self, traits_NT: Tensor, rows_N: Tensor) -> tuple[Tensor, Tensor]:
        looks_NL, pattern_N = (part[rows_N].to(traits_NT.device) for part in (self._traits.looks, self._traits.pattern))
        error = F.mse_loss(traits_NT[:, :LOOKS], looks_NL)
        return LOOKS_WEIGHT * error, PATTERN_WEIGHT * F.cross_entropy(traits_NT[:, LOOKS:], pattern_N)


def build(config: dict[str, Any]) -> Learner:
    """The network of `config`: "width", "layers", "heads", "image", "patch"."""
    vit = ViTModel(
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
    return Learner(vit)


def traits(renders: Renders) -> Traits:
    """The traits of every row's subject. Palettes are in linear light; their roots are nearer to how they look."""
    scenes = [record["scene"] for record in renders.records]
    subjects = [draw_subject(scene["class"], scene["subject_seed"]) for scene in scenes]
    palettes = [[math.sqrt(value) for colour in subject.palette for value in colour] for subject in subjects]
    looks = torch.tensor([[*palette, *subject.numbers] for palette, subject in zip(palettes, subjects, strict=True)])
    return Traits(looks, torch.tensor([PATTERNS.index(subject.pattern) for subject in subjects]))


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
    return FINISHES.issuperset(scene["properties"]) and not any(scene[name] for name in changes)


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
