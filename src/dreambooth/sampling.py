"""Pictures from a stock pipeline: prompts and seeds in, images out. Each image has a generator of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from dreambooth import consistency, families
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

FLOW_SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "euler": ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": False}),
    "euler-a": ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}),
}
"""The same for flows."""


@dataclass(frozen=True)
class Sampling:
    """How pictures are drawn.

    Attributes:
        sampler: A name of `SAMPLERS`.
        steps: Denoising steps.
        guidance: Classifier-free guidance scale; 1 is none.
        size: Image side in pixels.
        negative: Negative prompt.
        consistency: Share of what training changed, in consistency guidance; None is without that guidance.
    """

    sampler: str
    steps: int
    guidance: float
    size: int
    negative: str = ""
    consistency: float | None = None

    @property
    def document(self) -> dict[str, Any]:
        """All of it that is set, to be written down."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def require(name: str, known: Mapping[str, Any] = SAMPLERS) -> None:
    """Refuse a sampler that there is not.

    Args:
        name: What was asked for.
        known: The samplers of the model's family.

    Raises:
        UserError: It is none of them.
    """
    if name not in known:
        suit = "" if known is SAMPLERS else " for this model"
        raise UserError(f"no sampler '{name}'{suit}: choose from {', '.join(known)}")


def require_prompted(family: str) -> None:
    """Refuse a model that draws from a small image.

    Args:
        family: Name of its family.

    Raises:
        UserError: It does.
    """
    if family in families.UPSCALERS:
        raise UserError(
            "a super-resolution model draws nothing from a prompt alone: use it in diffusers on a picture of stage I"
        )


def scheduler(pipe: DiffusionPipeline, name: str) -> Any:
    """Return the scheduler for the name of a sampler on the pipeline's own noise schedule.

    Raises:
        UserError: The sampler is not for this kind of model.
    """
    known = families.of(pipe).SAMPLERS
    require(name, known)
    kind, changes = known[name]
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

    Raises:
        UserError: The model is one for super-resolution.
    """
    require_prompted(families.PIPELINES[type(pipe).__name__])
    family = families.of(pipe)
    size = batch_size(sampling.size)
    with _using(pipe, stochastic or scheduler(pipe, sampling.sampler)), _decoding_one_by_one(pipe):
        for start in range(0, len(texts), size):
            chunk = slice(start, start + size)
            yield from _images(pipe, family, texts[chunk], generators[chunk], sampling)


def _images(
    pipe: DiffusionPipeline,
    family: families.Family,
    texts: Sequence[str],
    generators: Sequence[torch.Generator],
    sampling: Sampling,
) -> list[Image.Image]:
    """Draw a batch; where the device has too little memory for all of it, one half after the other."""
    states = [generator.get_state() for generator in generators]
    negatives = [sampling.negative] * len(texts)
    try:
        with _seeded(pipe, generators[0]), _beside_frozen(pipe, family, negatives, sampling):
            drawn: list[Image.Image] = pipe(
                prompt=list(texts),
                generator=list(generators),
                num_inference_steps=sampling.steps,
                height=sampling.size,
                width=sampling.size,
                **family.guide(pipe, sampling.guidance, negatives),
            ).images
            return drawn
    except torch.OutOfMemoryError:
        if len(texts) == 1:
            raise
    # only here has the error let go of what the batch held
    torch.cuda.empty_cache()
    for generator, state in zip(generators, states, strict=True):
        generator.set_state(state)
    half = len(texts) // 2
    parts = (slice(half), slice(half, None))
    return [image for part in parts for image in _images(pipe, family, texts[part], generators[part], sampling)]


def _beside_frozen(
    pipe: DiffusionPipeline, family: families.Family, negatives: Sequence[str], sampling: Sampling
) -> AbstractContextManager[None]:
    share = sampling.consistency
    return nullcontext() if share is None else consistency.guided(pipe, family, negatives, share)


@contextmanager
def _seeded(pipe: DiffusionPipeline, first: torch.Generator) -> Iterator[None]:
    """Seed PyTorch's own generator: a stochastic sampler in a pipeline that hands it none (FLUX's) draws from it."""
    with torch.random.fork_rng(devices=[pipe.device] if pipe.device.type == "cuda" else []):
        torch.manual_seed(first.initial_seed() + 1)  # not the seed itself: its noise is the image's first latents
        yield


@contextmanager
def _decoding_one_by_one(pipe: DiffusionPipeline) -> Iterator[None]:
    """Have the VAE decode one picture at a time: as fast, in a part of the memory."""
    vae: Any = getattr(pipe, "vae", None)
    if not hasattr(vae, "use_slicing"):
        yield
        return
    own, vae.use_slicing = vae.use_slicing, True
    try:
        yield
    finally:
        vae.use_slicing = own


@contextmanager
def _using(pipe: DiffusionPipeline, chosen: Any) -> Iterator[None]:
    own = pipe.scheduler
    pipe.scheduler = chosen
    pipe.set_progress_bar_config(disable=True)
    try:
        yield
    finally:
        pipe.scheduler = own
