"""Optimisers by name. Each comes from a package that keeps it well; what it needs is said before any work starts."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from dreambooth.errors import UserError
from dreambooth.recipe import Recipe

if TYPE_CHECKING:
    from dreambooth.methods import Group


@dataclass(frozen=True)
class Kind:
    """An optimiser.

    Attributes:
        module: Where its class lives.
        cls: Name of the class.
        extra: The package's extra that installs it; None where nothing beside torch is needed.
        rate: Its own peak rate; None where AdamW's suits it.
        betas: Whether it takes both of the recipe's moments' decays.
        options: What else it is called with.
        state: Bytes that it keeps for each trained weight.
        source: Where the settings come from.
    """

    module: str
    cls: str
    extra: str | None = None
    rate: float | None = None
    betas: bool = True
    options: dict[str, Any] = field(default_factory=dict)
    state: int = 8
    source: str = ""


KINDS = {
    "adamw": Kind("torch.optim", "AdamW", options={"fused": True}),
    "adamw-8bit": Kind(
        "bitsandbytes.optim", "AdamW8bit", "8bit", state=2, source="Dettmers et al. 2021, arXiv:2110.02861"
    ),
    "adafactor": Kind(
        "transformers.optimization",
        "Adafactor",
        betas=False,
        options={"scale_parameter": False, "relative_step": False},
        state=0,
        source="Shazeer and Stern 2018, arXiv:1804.04235, with AdamW's rate in place of its own",
    ),
    "muon": Kind(
        "torch.optim",
        "Muon",
        betas=False,
        options={"adjust_lr_fn": "match_rms_adamw"},
        state=4,
        source="Jordan 2024; Liu et al. 2025, arXiv:2502.16982: steps as large as AdamW's, so that its rate suits",
    ),
    "prodigy": Kind(
        "prodigyopt",
        "Prodigy",
        "optimizers",
        rate=1.0,
        options={"use_bias_correction": True, "safeguard_warmup": True},
        state=16,
        source="Mishchenko and Defazio 2023, arXiv:2306.06101: it finds the rate, 1 is its scale",
    ),
    "schedule-free": Kind(
        "schedulefree", "AdamWScheduleFree", "optimizers", source="Defazio et al. 2024, arXiv:2405.15682"
    ),
}
"""Name in a recipe -> the optimiser."""


def require(recipe: Recipe) -> None:
    """Refuse a resolved recipe's optimiser if it cannot work.

    Raises:
        UserError: It is not installed, or does not go with other settings.
    """
    name = recipe.optimizer
    _class(name)
    if name == "muon" and not (recipe.method == "lora" and recipe.targets == "attention"):
        raise UserError("--optimizer muon trains matrices alone: use it with --method lora --targets attention")
    rates = (recipe.learning_rate, recipe.text_encoder_learning_rate)
    if name == "prodigy" and recipe.train_text_encoder and len(set(rates)) > 1:
        raise UserError("--optimizer prodigy has one rate for all weights: leave out --text-encoder-learning-rate")
    if recipe.method == "pivotal" and name in ("prodigy", "schedule-free"):
        raise UserError(f"--optimizer {name} adapts to the course of one training, and pivotal does two: use another")
    if name == "schedule-free" and (recipe.schedule != "constant" or recipe.warmup):
        raise UserError("--optimizer schedule-free takes the place of a schedule: leave out --schedule and --warmup")
    if name == "schedule-free" and not recipe.beta1:
        raise UserError("--optimizer schedule-free averages by --beta1, which is then more than 0: leave it out")


def build(groups: Sequence[Group], recipe: Recipe) -> torch.optim.Optimizer:
    """Return the recipe's optimiser of groups of weights, each with its peak rate as `peak`."""
    kind = KINDS[recipe.optimizer]
    settings = [{"params": list(g.parameters.values()), "lr": g.rate, "peak": g.rate, "span": g.span} for g in groups]
    options = dict(kind.options)
    if kind.betas:
        options["betas"] = (recipe.beta1, recipe.beta2)
    made: torch.optim.Optimizer = _class(recipe.optimizer)(settings, weight_decay=recipe.weight_decay, **options)
    mode(made, training=True)
    return made


class InBackward:
    """Takes the step of each weight as soon as its gradient is there, and drops it: they never are there together.

    Each gradient is clipped by itself, since their common norm is known when all steps have been taken. For optimisers
    that look at one weight at a time. After torch's tutorial on optimiser steps in the backward pass, but with one
    optimiser for all weights, so that its state is saved as ever.

    Args:
        optimizer: The optimiser; its groups' rates are read when steps are taken.
        max_grad_norm: Largest norm of a weight's gradient.
    """

    ABLE = ("adamw", "adamw-8bit", "adafactor")

    def __init__(self, optimizer: torch.optim.Optimizer, max_grad_norm: float) -> None:
        self._optimizer, self._max_grad_norm = optimizer, max_grad_norm
        self._norms: list[Tensor] = []
        for index, group in enumerate(optimizer.param_groups):
            for weight in group["params"]:
                weight.register_post_accumulate_grad_hook(partial(self._step, index))

    def _step(self, index: int, weight: Tensor) -> None:
        self._norms.append(clip_grad_norm_([weight], self._max_grad_norm))
        groups = self._optimizer.param_groups
        self._optimizer.param_groups = [{**groups[index], "params": [weight]}]
        self._optimizer.step()
        self._optimizer.param_groups = groups
        weight.grad = None

    def take_norm(self) -> Tensor:
        """Return the norm of all gradients since the last call."""
        norms, self._norms = self._norms, []
        total: Tensor = torch.linalg.vector_norm(torch.stack(norms))
        return total


def mode(optimizer: torch.optim.Optimizer, training: bool) -> None:
    """Bring the weights to where they are trained, or to where they are used: a schedule-free optimiser has both."""
    switch = getattr(optimizer, "train" if training else "eval", None)
    if switch is not None:
        switch()


def _class(name: str) -> Any:
    kind = KINDS[name]
    try:
        return getattr(importlib.import_module(kind.module), kind.cls)
    except ImportError:
        mend = f"pip install 'dreambooth[{kind.extra}]', or use adamw"
        raise UserError(f"--optimizer {name} needs {kind.module.partition('.')[0]}: {mend}") from None
    except AttributeError:
        raise UserError(f"--optimizer {name} needs a newer {kind.module.partition('.')[0]}: use adamw") from None
