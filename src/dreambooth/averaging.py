"""Averages of the trained weights, to be shipped in their place: one fixed before training, or chosen afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from dreambooth.files import atomic

PREFIX = "average."
WIDTHS = (0.05, 0.10)
"""Widths of the averages that are kept while training, as Karras et al. 2023 have them."""


class Average:
    """The average of weights over the steps.

    Early on the decay is (1 + step) / (10 + step), so that the first weights are soon forgotten (as TensorFlow's
    `ExponentialMovingAverage` has it).

    Args:
        weights: The trained weights by name; the average begins as a copy of them.
        decay: Share of the average that a step leaves, in (0, 1).
    """

    def __init__(self, weights: Mapping[str, Tensor], decay: float) -> None:
        self._weights = list(weights.values())
        self._decay = decay
        self.tensors = {f"{PREFIX}{name}": weight.detach().clone() for name, weight in weights.items()}
        """The average, by the weights' names behind `PREFIX`."""

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after `step` steps."""
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.tensors.values()), self._weights, 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Have the average in the weights' place."""
        own = [weight.detach().clone() for weight in self._weights]
        self.put()
        yield
        self._copy(own)

    def put(self) -> None:
        """Put the average in the weights' place for good."""
        self._copy(list(self.tensors.values()))

    @torch.no_grad()
    def _copy(self, values: list[Tensor]) -> None:
        torch._foreach_copy_(self._weights, values)


class Profiles:
    """Two averages of weights, of which snapshots make an average of any width afterwards.

    Karras et al. 2023, https://arxiv.org/abs/2312.02696 (EDM2), section 3 and appendix C. A width is the standard
    deviation of the steps that an average is made of, as a share of all steps.

    Args:
        weights: The trained weights by name.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._weights = dict(weights)
        self.tensors = {_name(width, name): w.detach().clone() for width in WIDTHS for name, w in weights.items()}
        """Both averages, as a checkpoint keeps them."""

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after `step` steps."""
        for width in WIDTHS:
            averages = [self.tensors[_name(width, name)] for name in self._weights]
            torch._foreach_lerp_(averages, list(self._weights.values()), 1 - (1 - 1 / step) ** (exponent(width) + 1))

    def save(self, folder: Path, step: int) -> None:
        """Write both as they are after `step` steps."""
        folder.mkdir(parents=True, exist_ok=True)
        with atomic(folder / f"{step:06d}.safetensors") as file:
            save_file({name: tensor.to("cpu") for name, tensor in self.tensors.items()}, file)


def combine(folder: Path, width: float, last: int) -> dict[str, Tensor]:
    """Return the average of a width over all steps to `last`, made of the snapshots in `folder` up to there."""
    snapshots = [(int(file.stem), file) for file in sorted(folder.glob("*.safetensors")) if int(file.stem) <= last]
    kept = [(step, each) for step, _ in snapshots for each in WIDTHS]
    shares = iter(mixture(kept, (last, width)))
    found: dict[str, Tensor] = {}
    for _, file in snapshots:
        with safe_open(file, "pt") as tensors:
            keys = list(tensors.keys())
            for each in WIDTHS:
                prefix, share = _name(each, ""), float(next(shares))
                for key in (key for key in keys if key.startswith(prefix)):
                    part = share * tensors.get_tensor(key)
                    name = key.removeprefix(prefix)
                    found[name] = found[name] + part if name in found else part
    return found


def mixture(kept: Sequence[tuple[int, float]], wanted: tuple[int, float]) -> np.ndarray:
    """Return the shares of averages in the one that is wanted, each given as (steps, width).

    Least squares as in appendix C, but with shares that add up to 1: a model must not shrink by what they lack.

    Args:
        kept: The averages that are there.
        wanted: The one that is not.
    """
    count = len(kept)
    equations = np.ones((count + 1, count + 1))
    equations[count, count] = 0
    equations[:count, :count] = [[_overlap(one, two) for two in kept] for one in kept]
    values = [*(_overlap(one, wanted) for one in kept), 1.0]
    solved: np.ndarray = np.linalg.lstsq(equations, np.array(values), rcond=None)[0]
    return solved[:count]


@cache
def exponent(width: float) -> float:
    """Return the power p of the steps by which an average of a width weighs them.

    The largest root of width^2 = (p + 1) / ((p + 2)^2 (p + 3)), as appendix C has it; it is 0 for a width of 0.29.
    """
    roots = np.roots([1.0, 7.0, 16.0 - width**-2, 12.0 - width**-2])
    return float(roots.real.max())


def _overlap(one: tuple[int, float], two: tuple[int, float]) -> float:
    """Inner product of two averages' weights of the steps, as integrals (appendix C.2)."""
    (first, p), (second, q) = ((step, exponent(width)) for step, width in (one, two))
    power = q if first < second else -p
    return float((p + 1) * (q + 1) * (first / second) ** power / ((p + q + 1) * max(first, second)))


def _name(width: float, name: str) -> str:
    return f"profile {width}.{name}"
