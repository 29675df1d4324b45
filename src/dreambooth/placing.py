"""Where a pipeline's parts lie: all on the accelerator where they fit, else each only while it is used."""

from __future__ import annotations

import gc
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
    waiting, whole = ([_size(part, there) for part in parts(pipe)] for there in (device, None))
    if room is None or fits(sum(waiting), room):
        return pipe.to(device)
    emptied = room + sum(whole) - sum(waiting)
    if fits(max(whole), emptied) or _is_quantised(pipe):  # whose weights are more than their layers' parameters
        pipe.enable_model_cpu_offload(device=device)
    else:
        pipe.enable_sequential_cpu_offload(device=device)
    return pipe


def gather(pipe: DiffusionPipeline) -> bool:
    """Undo the offloading of a pipeline that was placed part by part: all of it lies in host memory again.

    Returns:
        Whether it had been placed so.
    """
    scattered = is_scattered(pipe)
    if scattered:
        pipe.remove_all_hooks()
        pipe.to("cpu")
    return scattered


def is_scattered(pipe: DiffusionPipeline) -> bool:
    """Whether a pipeline was placed part by part."""
    return any(hasattr(module, "_hf_hook") for part in parts(pipe) for module in part.modules())


def parts(pipe: DiffusionPipeline) -> list[nn.Module]:
    """Return a pipeline's networks."""
    return [part for part in pipe.components.values() if isinstance(part, nn.Module)]


def text_encoders(pipe: DiffusionPipeline) -> list[str]:
    """Return the names of all text encoders that are there, those that are never trained too."""
    return [name for name, part in pipe.components.items() if name.startswith("text_encoder") and part is not None]


def _size(part: nn.Module, there: torch.device | None) -> int:
    """Return the bytes of a part's weights, but for those on a device."""
    held = chain(part.parameters(), part.buffers())
    return sum(weight.nbytes for weight in held if there is None or weight.device.type != there.type)


def _is_quantised(pipe: DiffusionPipeline) -> bool:
    return any(hasattr(weight, "quant_state") for part in parts(pipe) for weight in part.parameters())


def fits(size: int, room: int) -> bool:
    """Whether weights of so many bytes fit into so many."""
    return size + RESERVE <= room


def free(device: torch.device) -> int | None:
    """Return the free bytes of an accelerator; None for the CPU, and where nobody can tell."""
    if device.type != "cuda":
        return None
    gc.collect()
    torch.cuda.empty_cache()  # else what was freed counts as used
    return torch.cuda.mem_get_info(device)[0]
