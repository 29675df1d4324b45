"""The layers of a network that have an adapter, and the network without them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn


def tuned_layers(module: nn.Module) -> list[BaseTunerLayer]:
    """Return the layers of a module that have an adapter."""
    return [layer for layer in module.modules() if isinstance(layer, BaseTunerLayer)]


@contextmanager
def switched_off(adapters: Sequence[BaseTunerLayer]) -> Iterator[None]:
    """Leave adapters out. peft's own switch also freezes them, which would lose the step's gradients."""
    for layer in adapters:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in adapters:
            layer._disable_adapters = False
