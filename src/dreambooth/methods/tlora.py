"""T-LoRA: the noisier the image, the fewer of a LoRA's ranks take part.

High noise is where a few photos are overfitted first. Soboleva et al. 2025, https://arxiv.org/abs/2507.05964, without
its orthogonal start; the ranks as in https://github.com/ControlGenAI/T-LoRA. Drawing needs it as training does: stock
diffusers, which reads the file, draws with all ranks at all times, which is not what was trained.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

STEPS = 1000
"""Of the noise schedules of all models that have one."""


def mask_ranks(denoiser: nn.Module, rank: int, min_rank: int) -> None:
    """Let a denoiser's LoRA take part with floor((rank - min_rank) (T - t) / T) + min_rank of its ranks at time t of T.

    Args:
        denoiser: Takes its steps, in [0, T), as `timestep`, one for each image or one for all.
        rank: Of the LoRA.
        min_rank: Ranks that always take part.
    """
    signature = inspect.signature(denoiser.forward)
    kept_BR: list[Tensor] = []

    def at_time(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        t_B = torch.as_tensor(signature.bind(*args, **kwargs).arguments["timestep"]).reshape(-1, 1)
        ranks_B1 = torch.floor((rank - min_rank) * (STEPS - t_B) / STEPS) + min_rank
        kept_BR[:] = [torch.arange(rank, device=t_B.device) < ranks_B1]

    def mask(down: nn.Module, args: tuple[Any, ...], hidden: Tensor) -> Tensor:
        # the ranks are the channels of a convolution and the last dimension of anything else
        shape = (-1, rank, 1, 1) if isinstance(down, nn.Conv2d) else (-1, *[1] * (hidden.dim() - 2), rank)
        return hidden * kept_BR[0].to(hidden).view(shape)

    denoiser.register_forward_pre_hook(at_time, with_kwargs=True)
    for layer in denoiser.modules():
        if isinstance(layer, LoraLayer):
            for down in layer.lora_A.values():
                down.register_forward_hook(mask)
