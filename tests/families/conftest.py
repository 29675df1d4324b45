"""Debug models loaded once a session, by our own loading and by diffusers alone."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline

from dreambooth import families
from dreambooth.families import Family
from dreambooth.models import Source, native_resolution, resolve


@dataclass(frozen=True)
class Model:
    """A debug model.

    Attributes:
        name: Its name in `debug_models.MODELS`.
        source: Where it is.
        family: Its family.
        pipe: As the family loads it, float32. Read it, never change it.
        stock: As diffusers loads it. Read it, never change it.
        side: Its image side in pixels.
    """

    name: str
    source: Source
    family: Family
    pipe: DiffusionPipeline
    stock: DiffusionPipeline
    side: int

    @property
    def scale_factor(self) -> int:
        """Side in pixels of what the denoiser works on."""
        return getattr(self.stock, "vae_scale_factor", 1)

    def fresh(self) -> DiffusionPipeline:
        """Return a copy of `pipe` to change."""
        return copy.deepcopy(self.pipe)


@pytest.fixture(scope="session")
def models(debug_folder: Callable[[str], Path]) -> Callable[[str], Model]:
    @functools.cache
    def load(name: str) -> Model:
        source = resolve(str(debug_folder(name)))
        family = families.get(source.family)
        pipe = family.load(source, torch.float32)
        stock = DiffusionPipeline.from_pretrained(source.path)
        stock.set_progress_bar_config(disable=True)
        pipe.set_progress_bar_config(disable=True)
        return Model(name, source, family, pipe, stock, native_resolution(source))

    return load
