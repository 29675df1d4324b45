"""An exponential moving average of the trained weights, to be shipped in their place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

PREFIX = "average."


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
