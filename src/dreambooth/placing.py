"""Where a pipeline's parts lie: all on the accelerator where they fit, else each only while it is used."""

from __future__ import annotations

from itertools import chain

import torch
from diffusers import DiffusionPipeline
from torch import nn

RESERVE = 2 * 2**30
"""Bytes left to what is computed."""


def place(pipe: DiffusionPipeline, device: torch.device) -> DiffusionPipeline:
    """Put a pipeline on its device, whole or, where that is too small, part by part as each is used; return it."""
    if fits(weights(pipe), free(device)):
        return pipe.to(device)
    pipe.enable_model_cpu_offload(device=device)
    return pipe


def gather(pipe: DiffusionPipeline) -> None:
    """Undo the offloading of a pipeline that was placed part by part: all of it lies in host memory again."""
    if any(hasattr(part, "_hf_hook") for part in pipe.components.values()):
        pipe.remove_all_hooks()
        pipe.to("cpu")


def weights(pipe: DiffusionPipeline) -> int:
    """Return the bytes of a pipeline's weights."""
    parts = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    return sum(weight.nbytes for part in parts for weight in chain(part.parameters(), part.buffers()))


def fits(size: int, room: int | None) -> bool:
    """Whether weights of so many bytes fit into so many; None is no limit."""
    return room is None or size + RESERVE <= room


def free(device: torch.device) -> int | None:
    """Return the free bytes of an accelerator; None for the CPU, and where nobody can tell."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
