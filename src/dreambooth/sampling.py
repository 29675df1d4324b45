"""Pictures from a stock pipeline: prompts and seeds in, images out. Each image has a generator of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from dreambooth.errors import UserError

SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "dpm++": ("DPMSolverMultistepScheduler", {}),
    "dpm++-sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "ddpm": ("DDPMScheduler", {"clip_sample": False}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
}
"""Name of a sampler -> the diffusers scheduler that does it, and what it changes in the model's own schedule."""


@dataclass(frozen=True)
class Sampling:
    """How pictures are drawn.

    Attributes:
        sampler: A name of `SAMPLERS`.
        steps: Denoising steps.
        guidance: Classifier-free guidance scale; 1 is none.
        size: Image side in pixels.
        negative: Negative prompt.
    """

    sampler: str
    steps: int
    guidance: float
    size: int
    negative: str = ""


def require(name: str) -> None:
    """Refuse a sampler that there is not.

    Raises:
        UserError: It is no name of `SAMPLERS`.
    """
    if name not in SAMPLERS:
        raise UserError(f"no sampler '{name}': choose from {', '.join(SAMPLERS)}")


def scheduler(pipe: DiffusionPipeline, name: str) -> Any:
    """Return the scheduler for the name of a sampler on the pipeline's own noise schedule."""
    kind, changes = SAMPLERS[name]
    return getattr(diffusers, kind).from_config(pipe.scheduler.config, **changes)


def batch_size(size: int) -> int:
    """Return how many images of a side of `size` pixels are drawn at once: 25 small ones, 8 of 512, 2 of 1024."""
    return max(1, min(25, 2**21 // size**2))


def draw(
    pipe: DiffusionPipeline,
    texts: Sequence[str],
    generators: Sequence[torch.Generator],
    sampling: Sampling,
    stochastic: Any = None,
) -> Iterator[Image.Image]:
    """Draw one image for each text with its generator, in batches whose bounds depend on the image size alone.

    Args:
        pipe: A stock pipeline.
        texts: Prompts.
        generators: CPU generators, one for each text.
        sampling: How.
        stochastic: A scheduler to use instead of the named sampler.
    """
    with _using(pipe, stochastic or scheduler(pipe, sampling.sampler)):
        size = batch_size(sampling.size)
        for start in range(0, len(texts), size):
            chunk = slice(start, start + size)
            result = pipe(
                list(texts[chunk]),
                negative_prompt=[sampling.negative] * len(texts[chunk]),
                generator=list(generators[chunk]),
                num_inference_steps=sampling.steps,
                guidance_scale=sampling.guidance,
                height=sampling.size,
                width=sampling.size,
            )
            yield from result.images


@contextmanager
def _using(pipe: DiffusionPipeline, chosen: Any) -> Iterator[None]:
    own = pipe.scheduler
    pipe.scheduler = chosen
    pipe.set_progress_bar_config(disable=True)
    try:
        yield
    finally:
        pipe.scheduler = own
