"""The two statistics of the evaluation: an interval for a share, and the Frechet distance."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

NINETY_FIVE = 1.959964


@dataclass(frozen=True)
class Share:
    """So many of so many, with its 95 % interval (Wilson 1927)."""

    hits: int
    count: int

    @property
    def value(self) -> float:
        """The share itself; not a number when nothing was counted."""
        return self.hits / self.count if self.count else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Lower and upper bound; everything is possible when nothing was counted."""
        if not self.count:
            return 0.0, 1.0
        square = NINETY_FIVE**2
        centre = (self.hits + square / 2) / (self.count + square)
        spread = self.hits * (self.count - self.hits) / self.count + square / 4
        reach = NINETY_FIVE * math.sqrt(spread) / (self.count + square)
        return centre - reach, centre + reach


def frechet(one_ND: Tensor, two_MD: Tensor) -> float:
    """Squared Frechet distance between the Gaussians fitted to two sets of features (Heusel et al. 2017, equation 6).

    Args:
        one_ND: Features of one set, a row a picture.
        two_MD: Features of the other.
    """
    one_ND, two_MD = one_ND.double(), two_MD.double()
    one_DD, two_DD = one_ND.T.cov(), two_MD.T.cov()
    root_DD = _root(one_DD)
    shared = torch.linalg.eigvalsh(root_DD @ two_DD @ root_DD).clamp(min=0).sqrt().sum()
    shift = (one_ND.mean(0) - two_MD.mean(0)).square().sum()
    return float(shift + one_DD.trace() + two_DD.trace() - 2 * shared)


def _root(matrix_DD: Tensor) -> Tensor:
    """Square root of a covariance."""
    values_D, vectors_DD = torch.linalg.eigh(matrix_DD)
    root_DD: Tensor = vectors_DD * values_D.clamp(min=0).sqrt() @ vectors_DD.T
    return root_DD
