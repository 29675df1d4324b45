"""The denoising loss on pictures that were not trained on: does the model know the subject, or only its photos?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import DiffusionPipeline

from dreambooth.batches import generator
from dreambooth.cache import Row, encode_photo, encode_prompt
from dreambooth.families import Family
from dreambooth.losses import denoising
from dreambooth.photos import Photo

LEVELS = 16


@torch.no_grad()
def denoising_error(
    pipe: DiffusionPipeline, family: Family, pictures: Sequence[Photo], prompt: str, resolution: int
) -> float:
    """Return the mean loss of Ruiz et al. 2023, eq. (1), on `pictures` under `prompt`.

    The times (evenly spaced over the training distribution) and the noise are fixed by picture, so that two models,
    or two prompts, are compared on the very same draws.

    Args:
        pipe: A whole pipeline.
        family: Its family.
        pictures: Pictures the model was not trained on.
        prompt: What they are denoised under.
        resolution: Side of the pictures in pixels.
    """
    process = family.process(pipe)
    device = next(family.denoiser(pipe).parameters()).device
    row = {name: value.to(device) for name, value in encode_prompt(pipe, family, prompt).items()}
    cond = family.collate([row] * LEVELS)
    t_B = process.sample_t((torch.arange(LEVELS) + 0.5) / LEVELS).to(device)
    errors = []
    for photo in pictures:
        mean_CHW = encode_photo(pipe, family, Row(photo), resolution, 0)["mean_CHW"]
        latents_BCHW = mean_CHW.expand(LEVELS, -1, -1, -1).to(device)
        noise_BCHW = torch.randn(latents_BCHW.shape, generator=generator(0, "held out", photo.id)).to(device)
        predicted_BCHW = family.predict(family.denoiser(pipe), process.mix(latents_BCHW, noise_BCHW, t_B), t_B, cond)
        errors.append(denoising(predicted_BCHW, process.target(latents_BCHW, noise_BCHW, t_B)).mean())
    return float(torch.stack(errors).mean())
