"""Finished runs without a training: their weights are moved at random. And their pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline

from dreambooth import families, methods, presets
from dreambooth.models import resolve
from dreambooth.run import Run
from tests.test_loop import recipe_for
from tests.test_methods import train_at_random

SIZES = {"sd": 32, "sdxl": 64, "flux": 64}
TOLERANCE = 1e-3
"""Greatest difference between two pictures that are the same, of a range of 1."""


def finished(folder: Path, model: Path, **values: object) -> Run:
    """Write a finished run of `model`; `values` are settings of its recipe."""
    for name in families.MODULES:
        presets.SAMPLING.setdefault(name, presets.SAMPLING["sd"])
    recipe = recipe_for(model, **values)
    source = resolve(str(model))
    family, method = families.get(source.family), methods.get(recipe.method)
    pipe = family.load(source, torch.float32)
    train_at_random(method.attach(pipe, family, recipe))
    info = {
        "identity": "0123456789abcdef",
        "model": {"name": source.name, "family": source.family, "identity": source.identity},
        "photos": [{"id": str(index), "file": f"{index}.png", "caption": None, "subject": 0} for index in range(4)],
        "identifier": recipe.subjects[0].identifier,
        "class": recipe.subjects[0].class_noun,
        "identifiers": [subject.identifier for subject in recipe.subjects],
        "created": "2026-01-02T03:04:05+00:00",
        "derived": {},
        "times": {},
        "warnings": [],
        "finished": True,
        "steps": recipe.steps,
    }
    run = Run(folder)
    run.begin(recipe, info, {})
    run.adapter.mkdir()
    method.save(pipe, family, source, recipe, run.adapter)
    return run


def shipped(run: Run) -> DiffusionPipeline:
    """Load what a run ships, as `generate` does."""
    recipe = run.recipe
    source = resolve(str(recipe.model))
    return methods.get(recipe.method).load(families.get(source.family), source, recipe, run.adapter)


def load_base(model: str) -> DiffusionPipeline:
    """Load a base model by stock code."""
    return DiffusionPipeline.from_pretrained(resolve(model).path, dtype=torch.float32)


def picture(pipe: DiffusionPipeline, prompt: str = "a ohwx dog") -> np.ndarray:
    """Draw a picture with stock code: float32 pixels in [0, 1]."""
    pipe.set_progress_bar_config(disable=True)
    side = SIZES[families.PIPELINES[type(pipe).__name__]]
    generator = torch.Generator().manual_seed(5)
    sizes = {"height": side, "width": side, "guidance_scale": 3.0}
    result = pipe(prompt, num_inference_steps=3, generator=generator, output_type="np", **sizes)
    return np.asarray(result.images[0])


def assert_same(picture_HWC: np.ndarray, expected_HWC: np.ndarray) -> None:
    np.testing.assert_allclose(picture_HWC, expected_HWC, rtol=0, atol=TOLERANCE)
