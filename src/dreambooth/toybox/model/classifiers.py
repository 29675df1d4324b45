"""Attribute classifiers: one small CNN with a head an attribute, trained on renders only, never on generations."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from dreambooth.errors import UserError
from dreambooth.toybox.model.renders import Renders, World, flipped, shifted
from dreambooth.toybox.world.scenes import Scene, from_dict
from dreambooth.toybox.world.vocabulary import LIVE

NONE = "none"
UNKNOWN = -1


FACELESS = ("top", "bottom", "back")
"""Views in which no face is seen."""


def _said_or_none(name: str) -> Callable[[Scene], str]:
    return lambda scene: getattr(scene, name) or NONE


def _expression(scene: Scene) -> str | None:
    return None if scene.cls not in LIVE or scene.view in FACELESS else scene.expression or NONE


# What a head learns to tell from a scene; None where a picture does not answer the question.
ATTRIBUTES: dict[str, Callable[[Scene], str | None]] = {
    "class": lambda scene: scene.cls,
    "context": lambda scene: scene.context,
    "colour": lambda scene: scene.visible_colour,
    "view": lambda scene: scene.view,
    "accessory": _said_or_none("accessory"),
    "style": _said_or_none("style"),
    "property": lambda scene: "".join(scene.properties) or NONE,
    "material": _said_or_none("material"),
    "sculpture": _said_or_none("sculpture"),
    "expression": _expression,
}

Labels = dict[str, list[str]]


class Classifier(nn.Module):
    """Residual convolutions, halved in size at each stage, and a linear head an attribute.

    Attributes:
        labels: Names of the classes of each head, in the order of its logits.
    """

    def __init__(self, channels: tuple[int, ...], labels: Labels) -> None:
        super().__init__()
        self.channels, self.labels = channels, labels
        self.stem = nn.Conv2d(3, channels[0], 3, padding=1)
        pairs = zip((channels[0], *channels), channels, strict=False)
        self.stages = nn.ModuleList(_Stage(before, after) for before, after in pairs)
        self.heads = nn.ModuleDict({f"to_{name}": nn.Linear(channels[-1], len(of)) for name, of in labels.items()})

    def features(self, pixels_BCHW: Tensor) -> Tensor:
        """The pooled last stage, (B, D), of pixels in [-1, 1]."""
        hidden_BCHW: Tensor = self.stem(pixels_BCHW)
        for stage in self.stages:
            hidden_BCHW = stage(hidden_BCHW)
        return hidden_BCHW.mean((2, 3))

    def forward(self, pixels_BCHW: Tensor) -> dict[str, Tensor]:
        """The logits of each attribute, (B, classes)."""
        features_BD = self.features(pixels_BCHW)
        return {name: self.heads[f"to_{name}"](features_BD) for name in self.labels}


class _Stage(nn.Module):
    """Pooling by two, then two pre-activated residual convolutions (He et al. 2016)."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.widen = nn.Conv2d(before, after, 1)
        self.norms = nn.ModuleList(nn.GroupNorm(8, after) for _ in range(2))
        self.convolutions = nn.ModuleList(nn.Conv2d(after, after, 3, padding=1) for _ in range(2))

    def forward(self, hidden_BCHW: Tensor) -> Tensor:
        """Halve the sides and widen the channels."""
        hidden_BCHW = self.widen(F.avg_pool2d(hidden_BCHW, 2))
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            hidden_BCHW = hidden_BCHW + convolution(F.silu(norm(hidden_BCHW)))
        return hidden_BCHW


@dataclass
class ClassifierTask:
    """Cross-entropy of every attribute that a picture answers.

    Attributes:
        module: The classifier.
        world: The renders.
        batch: Renders a step.
    """

    module: Classifier
    world: World
    batch: int
    _targets: dict[str, Tensor] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._targets = targets(self.world.train, self.module.labels)

    def loss(self, draw: torch.Generator, progress: float) -> dict[str, Tensor]:
        """The sum over the attributes."""
        rows_B = torch.randint(0, len(self.world.train), (self.batch,), generator=draw)
        pixels_BCHW = shifted(flipped(self.world.train.pixels(rows_B), draw), draw)
        device = next(self.module.parameters()).device
        logits = self.module(pixels_BCHW.to(device))
        parts = {name: _cross_entropy(logits[name], self._targets[name][rows_B].to(device)) for name in logits}
        return {"loss": torch.stack(list(parts.values())).sum(), **parts}

    def evaluate(self) -> dict[str, float]:
        """Accuracy of each attribute on the held-out renders that answer it.

        Where most have none of it, also `style_shown` and so on: on those that have, each answer counting alike.
        """
        held_out = self.world.held_out
        parts = [predict(self.module, held_out.pixels(rows)) for rows in held_out.batches(128)]
        measured = {}
        for name, true_N in targets(held_out, self.module.labels).items():
            predicted_N, answers = torch.cat([part[name] for part in parts]), self.module.labels[name]
            if (true_N != UNKNOWN).any():
                measured[name] = _accuracy(predicted_N, true_N)
            if NONE in answers:
                shown = [at for at in sorted(set(true_N.tolist()) - {UNKNOWN}) if answers[at] != NONE]
                recalls = [float((predicted_N == at)[true_N == at].float().mean()) for at in shown]
                measured |= {f"{name}_shown": sum(recalls) / len(recalls)} if recalls else {}
        return measured

    def save(self, folder: Path) -> None:
        """Writes the weights, and the shape and the labels beside them."""
        folder.mkdir(parents=True, exist_ok=True)
        config = {"channels": list(self.module.channels), "labels": self.module.labels}
        (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        save_file(self.module.state_dict(), folder / "model.safetensors")


def build(config: dict[str, Any], renders: Renders) -> Classifier:
    """The network of `config`: "channels" a stage; its labels are those that occur in the renders."""
    return Classifier(config["channels"], labels(renders))


def load(folder: Path) -> Classifier:
    """What `ClassifierTask.save` or `package.write_classifiers` wrote, in float32.

    Raises:
        UserError: There are no classifiers in the folder.
    """
    if not (folder / "model.safetensors").is_file():
        mend = "`python -m dreambooth.toybox train classifiers` makes them"
        raise UserError(f"there are no classifiers in {folder}: {mend}")
    config = json.loads((folder / "config.json").read_text())
    module = Classifier(tuple(config["channels"]), config["labels"])
    module.load_state_dict(load_file(folder / "model.safetensors"))
    return module.eval().requires_grad_(False)


def labels(renders: Renders) -> Labels:
    """The names that occur, sorted, attribute by attribute; attributes without any are left out."""
    scenes = [from_dict(record["scene"]) for record in renders.records]
    named = {attribute: {read(scene) for scene in scenes} for attribute, read in ATTRIBUTES.items()}
    return {attribute: sorted(filter(None, names)) for attribute, names in named.items() if names != {None}}


def targets(renders: Renders, named: Labels) -> dict[str, Tensor]:
    """Class indices of each attribute, (N,); `UNKNOWN` where the picture does not answer."""
    scenes = [from_dict(record["scene"]) for record in renders.records]
    index = {attribute: {name: at for at, name in enumerate(names)} for attribute, names in named.items()}
    return {
        attribute: torch.tensor([index[attribute].get(ATTRIBUTES[attribute](scene) or "", UNKNOWN) for scene in scenes])
        for attribute in named
    }


@torch.no_grad()
def predict(module: Classifier, pixels_BCHW: Tensor) -> dict[str, Tensor]:
    """The most likely class of each attribute, (B,)."""
    logits = module(pixels_BCHW.to(next(module.parameters()).device))
    return {name: logits_BK.argmax(1).cpu() for name, logits_BK in logits.items()}


def _cross_entropy(logits_BK: Tensor, target_B: Tensor) -> Tensor:
    """Zero when no picture of the batch answers."""
    known = int((target_B != UNKNOWN).sum())
    return F.cross_entropy(logits_BK.float(), target_B, ignore_index=UNKNOWN, reduction="sum") / max(1, known)


def _accuracy(predicted_N: Tensor, true_N: Tensor) -> float:
    known_N = true_N != UNKNOWN
    return float((predicted_N == true_N)[known_N].float().mean())
