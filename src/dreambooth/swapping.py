"""A frozen denoiser whose blocks wait in host memory and are on the device only while they are at work.

It goes with recomputed activations: then a block runs once forward and once, with its backward pass, on the way back.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dreambooth.precision import send

MOST = 2
"""Blocks on the device at a time: one at work, and one whose last kernels may still be queued."""


class Swap:
    """Brings each block to the device when it is called, and lets go of the one that was called longest ago.

    What is trained stays on the device, and so does all that is no block. Nothing is ever copied back: frozen weights
    do not change.

    Args:
        denoiser: The network, in host memory, its adapter attached.
        device: Where it computes.
    """

    def __init__(self, denoiser: nn.Module, device: torch.device) -> None:
        self._device = device
        self._there: list[nn.Module] = []
        self._home = {block: _frozen(block, device) for block in blocks(denoiser)}
        waiting = {id(weight) for weights in self._home.values() for weight, _ in weights}
        for module in denoiser.modules():
            for tensor in [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
                if id(tensor) not in waiting:
                    tensor.data = tensor.data.to(device)
        for block in self._home:
            block.register_forward_pre_hook(self._fetch)

    def _fetch(self, block: nn.Module, _: Any) -> None:
        if block in self._there:
            return
        if len(self._there) == MOST:
            for weight, home in self._home[self._there.pop(0)]:
                weight.data = home
        for weight, home in self._home[block]:
            weight.data = send(home, self._device)
        self._there.append(block)

    @property
    def there(self) -> tuple[nn.Module, ...]:
        """The blocks that are on the device."""
        return tuple(self._there)


def blocks(denoiser: nn.Module) -> list[nn.Module]:
    """Return the transformer blocks that a denoiser of diffusers repeats: those that it recomputes one by one."""
    named: list[str] = getattr(denoiser, "_repeated_blocks", None) or getattr(denoiser, "_no_split_modules", None) or []
    kinds = {name for name in named if name.endswith("Block")}
    return [module for module in denoiser.modules() if type(module).__name__ in kinds]


def saved(denoiser: nn.Module) -> int:
    """Return the bytes of weights that are never on the device together with the others."""
    sizes = sorted(sum(weight.nbytes for weight in block.parameters()) for block in blocks(denoiser))
    return sum(sizes[:-MOST])


def _frozen(block: nn.Module, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """A block's frozen weights and where they wait: in memory that a GPU can read while the host goes on."""
    found: list[tuple[Tensor, Tensor]] = []
    for weight in block.parameters():
        if not weight.requires_grad:
            home = weight.data.to("cpu")
            weight.data = home.pin_memory() if device.type == "cuda" else home
            found.append((weight, weight.data))
    return found
