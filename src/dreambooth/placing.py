"""Where a pipeline's parts lie: all on the accelerator where they fit, else each only while it is used."""

from __future__ import annotations

from itertools import chain

import torch
from diffusers import DiffusionPipeline
from torch import nn

RESERVE = 2 * 2**30
"""Bytes left to what is computed."""


def place(pipe: DiffusionPipeline, device: torch.device) -> DiffusionPipeline:
    """Put a pipeline on its device, whole or, where that is too small, part by part as each is used; return it.

    Where the device does not even hold the largest part, that goes there layer by layer.
    """
    room = free(device)
    if fits(weights(pipe), room):
        return pipe.to(device)
    if fits(max(_size(part) for part in parts(pipe)), room):
        pipe.enable_model_cpu_offload(device=device)
    else:
        pipe.enable_sequential_cpu_offload(device=device)
    return pipe


def gather(pipe: DiffusionPipeline) -> None:
    """Undo the offloading of a pipeline that was placed part by part: all of it lies in host memory again."""
    if any(hasattr(module, "_hf_hook") for part in parts(pipe) for module in part.modules()):
        pipe.remove_all_hooks()
        pipe.to("cpu")


def weights(pipe: DiffusionPipeline) -> int:
    """Return the bytes of a pipeline's weights."""
    return sum(map(_size, parts(pipe)))


def parts(pipe: DiffusionPipeline) -> list[nn.Module]:
    """Return a pipeline's networks."""
    return [part for part in pipe.components.values() if isinstance(part, nn.Module)]


def _size(part: nn.Module) -> int:
    return sum(weight.nbytes for weight in chain(part.parameters(), part.buffers()))


def fits(size: int, room: int | None) -> bool:
    """Whether weights of so many bytes fit into so many; None is no limit."""
    return room is None or size + RESERVE <= room


def free(device: torch.device) -> int | None:
    """Return the free bytes of an accelerator; None for the CPU, and where nobody can tell."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
