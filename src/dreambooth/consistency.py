"""Consistency guidance: drawing with the frozen model beside the trained one, and with a part of their difference.

Lee et al. 2024, https://arxiv.org/abs/2402.12004: u + g (c - u) + w (l - c), where u and c are the frozen model's
predictions without and with the prompt, l the trained one's, and g the guidance scale. Here w is g times a share, as
guidance of the pipeline itself makes it of c + share (l - c) in place of each prediction with a prompt and of u in
place of each without; where a model is told its guidance and predicts once, w is the share.

The authors name the class where the frozen model is given the prompt (reward_guidance.py of
https://github.com/kyungmnlee/dco). Here it is given the same prompt, whose identifier it knows next to nothing of.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from dreambooth.adapters import switched_off, tuned_layers
from dreambooth.errors import UserError
from dreambooth.families import Family


@contextmanager
def guided(pipe: DiffusionPipeline, family: Family, negatives: Sequence[str], share: float) -> Iterator[None]:
    """Have a pipeline's denoiser predict as the frozen model, moved by a share of what its adapters change.

    A prediction without a prompt is the frozen model's. A pipeline without an adapter is left as it is.

    Args:
        pipe: A stock pipeline, perhaps with adapters.
        family: Its family.
        negatives: The negative prompts of a call, all of them alike: what guidance leads away from.
        share: 0 is the frozen model; 1 the trained one, led away from the frozen one's prediction without a prompt.

    Raises:
        UserError: A text encoder has an adapter too.
    """
    denoiser = family.denoiser(pipe)
    adapters = tuned_layers(denoiser)
    if not adapters:
        yield
        return
    if any(tuned_layers(encoder) for encoder in family.text_encoders(pipe).values()):
        raise UserError(
            "a text encoder has an adapter too, which consistency guidance cannot leave out: give --consistency off"
        )
    with torch.no_grad():
        unprompted_LD = family.encode_prompts(pipe, negatives)[0]["prompt_embeds_LD"]

    def mix(module: nn.Module, args: tuple[Any, ...], given: dict[str, Any], output: tuple[Any]) -> tuple[Any]:
        with switched_off(adapters):
            (frozen,) = module.forward(*args, **given)
        prompts = given["encoder_hidden_states"] if "encoder_hidden_states" in given else args[2]
        shares = [0.0 if _is(prompt_LD, unprompted_LD) else share for prompt_LD in prompts]
        mixed = [was + part * (now - was) for was, now, part in zip(frozen, output[0], shares, strict=True)]
        return (torch.stack(mixed) if isinstance(frozen, Tensor) else mixed,)

    handle = denoiser.register_forward_hook(mix, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _is(prompt_LD: Tensor, other_LD: Tensor) -> bool:
    """Whether a prompt, perhaps filled up to a longer one beside it, is another, to a thousandth."""
    if len(prompt_LD) < len(other_LD):
        return False
    other_LD = other_LD.to(prompt_LD.device, torch.float32)  # encoded on the CPU where a pipeline is offloaded
    apart = torch.dist(prompt_LD[: len(other_LD)].float(), other_LD)
    return bool(apart <= 1e-3 * other_LD.norm())
