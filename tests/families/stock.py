"""What stock pipelines do inside, seen from outside: the calls of their denoiser, their steps, their latents."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline, FluxPipeline, IFSuperResolutionPipeline
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

PROMPTS = ["a ohwx dog", "a cat, in the snow, at dawn"]


def second_call(stock: DiffusionPipeline, denoiser: nn.Module, **settings: Any) -> tuple[dict[str, Any], Tensor]:
    """Draw two images with the stock pipeline: arguments by name of its denoiser's second call, and the prediction.

    The prediction is what the scheduler is given: some pipelines negate what their denoiser says.
    """
    with calls_of(denoiser) as calls, spied_steps(stock) as steps:
        draw_two(stock, **settings)
    return calls[1], steps[1][0]


def draw_two(stock: DiffusionPipeline, **settings: Any) -> None:
    """Draw an image of each of `PROMPTS` in three steps."""
    generators = [torch.Generator().manual_seed(k) for k in range(2)]
    settings |= small_images(stock, len(PROMPTS))
    stock(prompt=list(PROMPTS), num_inference_steps=3, generator=generators, output_type="latent", **settings)


@contextmanager
def calls_of(denoiser: nn.Module) -> Iterator[list[dict[str, Tensor]]]:
    """What a denoiser is given at each call, by name."""
    calls: list[dict[str, Tensor]] = []
    hook = denoiser.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(arguments(module, args, kwargs)), with_kwargs=True
    )
    with hook:
        yield calls


def small_images(stock: DiffusionPipeline, count: int) -> dict[str, Any]:
    """What a pipeline for super-resolution is called with besides; nothing for another one."""
    if not isinstance(stock, IFSuperResolutionPipeline):
        return {}
    return {"image": torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1}


@contextmanager
def spied_steps(stock: DiffusionPipeline) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """What goes into each step of the scheduler, and the latents that come out of it."""
    step, seen = stock.scheduler.step, []

    def spy(prediction: Tensor, *args: Any, **more: Any) -> Any:
        result = step(prediction, *args, **more)
        seen.append((prediction, result[0]))
        return result

    stock.scheduler.step = spy
    try:
        yield seen
    finally:
        del stock.scheduler.step


def arguments(module: nn.Module, args: Any, kwargs: Any) -> dict[str, Any]:
    """Tensors that a module is called with, by the names of its parameters; lists of them joined, filled with zeros."""
    bound = inspect.signature(module.forward).bind(*args, **kwargs).arguments
    found = {**bound, **(bound.get("added_cond_kwargs") or {})}
    lists = {name: value for name, value in found.items() if isinstance(value, list) and isinstance(value[0], Tensor)}
    joined = {**found, **{name: pad_sequence(value, batch_first=True) for name, value in lists.items()}}
    return {name: value for name, value in joined.items() if isinstance(value, Tensor)}


def unpacked(given: Tensor, height: int, width: int) -> Tensor:
    """Latents as images, whether a denoiser takes them so, as films of one frame or as tokens of 2 x 2."""
    if given.dim() == 5:
        return given.squeeze(2)
    return given if given.dim() == 4 else FluxPipeline._unpack_latents(given, height, width, vae_scale_factor=1)


def places(latents_BCHW: Tensor) -> Tensor:
    """Latents with the four places of each token of 2 x 2 as channels, in double precision."""
    return F.pixel_unshuffle(latents_BCHW.double(), 2)


def spread(latents_BKHW: Tensor) -> Tensor:
    return latents_BKHW.amax((2, 3), keepdim=True) - latents_BKHW.amin((2, 3), keepdim=True)


def posterior(encoded: Any) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the latents that an autoencoder gives; of those that are not drawn it is 0."""
    if "latent_dist" in encoded:
        return encoded.latent_dist.mean, encoded.latent_dist.std
    return encoded.latent, torch.zeros_like(encoded.latent)
