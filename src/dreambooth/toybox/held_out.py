"""The denoising loss on renders of a subject that nothing was trained on: what others stop a training by."""

from __future__ import annotations

import torch

from dreambooth import families, prompts, targets
from dreambooth.batches import generator
from dreambooth.cache import Memo, Row, encode_photo, encode_prompt
from dreambooth.evaluation.scoring import alone
from dreambooth.evaluation.statistics import Scores
from dreambooth.loop import Trainee
from dreambooth.losses import denoising
from dreambooth.photos import read, usable
from dreambooth.run import Run
from dreambooth.toybox import SUBJECTS

LEVELS = 16
"""Noise levels, evenly spread, at which each render is denoised."""


@torch.no_grad()
def loss(run: Run, subject: str) -> Scores:
    """Return the mean loss of each held-out render, always with the same noises at the same levels."""
    recipe = run.recipe
    assert recipe.resolution is not None, "presets.fill leaves it open for no run"
    pipe = targets.load(targets.find(run.path))
    family = families.of(pipe)
    device = next(family.denoiser(pipe).parameters()).device
    process = family.process(pipe).on(device)
    trainee = Trainee(pipe, family, {}, Memo(lambda text: encode_prompt(pipe, family, text)))
    text = prompts.fill(prompts.label(recipe.label, run.info["class"]), [recipe.subjects[0].identifier or ""])
    u_B = (torch.arange(LEVELS) + 0.5) / LEVELS
    losses = []
    for index, photo in enumerate(usable(read(SUBJECTS / subject / "truth", recipe.resolution))):
        encoded = encode_photo(pipe, family, Row(photo, (recipe.resolution, recipe.resolution)), 0)
        latents_BCHW = encoded["mean_CHW"].expand(LEVELS, -1, -1, -1).to(device)
        noise_BCHW = torch.randn(latents_BCHW.shape, generator=generator(0, "held out", index)).to(device)
        t_B = process.sample_t(u_B.to(device), (latents_BCHW.shape[-2], latents_BCHW.shape[-1]))
        noisy_BCHW = process.mix(latents_BCHW, noise_BCHW, t_B)
        predicted_BCHW = trainee(noisy_BCHW, t_B, [text] * LEVELS, encoded["view_4"].expand(LEVELS, -1))
        target_BCHW = process.target(latents_BCHW, noise_BCHW, t_B)
        losses.append(float(denoising(predicted_BCHW, target_BCHW, None).mean()))
    return alone(subject, torch.tensor(losses).double().numpy())
