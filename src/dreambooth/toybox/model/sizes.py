"""The sizes of the recipe as data: the shape of every network and how it is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dreambooth.toybox.model.engine import Plan

# The order of training; the denoiser needs the autoencoder and CLIP.
NETWORKS = ("classifiers", "identity", "clip", "autoencoder", "denoiser")
TEXT_WIDTH = 128
TEXT_LENGTH = 32
LATENT = {"latent_channels": 16, "latent_side": 8}


@dataclass(frozen=True)
class Network:
    """Shape and training of one network."""

    config: dict[str, Any]
    plan: Plan


@dataclass(frozen=True)
class Size:
    """One way to make the whole model.

    Attributes:
        networks: By name, all of `NETWORKS`.
        precision: Of the training: "float32" or "bfloat16".
        held_out: Renders that are only measured on.
        prompts: Prompts of the evaluation.
    """

    networks: dict[str, Network]
    precision: str = "bfloat16"
    held_out: int = 512
    prompts: int = 500


def _vit(width: int, layers: int, heads: int) -> dict[str, int]:
    return {"width": width, "layers": layers, "heads": heads, "image": 64, "patch": 8}


def _clip(text_layers: int, width: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "text": {"width": TEXT_WIDTH, "layers": text_layers, "heads": 4},
        "vision": {"width": width, "layers": layers, "heads": heads},
        "length": TEXT_LENGTH,
        "image": 64,
        "patch": 8,
    }


def _unet(channels: tuple[int, ...], layers: int, heads: int) -> dict[str, Any]:
    return LATENT | {"channels": channels, "layers": layers, "heads": heads, "text_width": TEXT_WIDTH}


def _autoencoder(channels: tuple[int, ...], layers: int) -> dict[str, Any]:
    return {"channels": channels, "layers": layers, "latent_channels": LATENT["latent_channels"]}


# What two cores reach in about six hours, in pieces.
CPU = Size(
    {
        "classifiers": Network({"channels": (32, 64, 128, 192)}, Plan(steps=4000, batch=64, rate=1e-3)),
        "identity": Network(_vit(160, 5, 5), Plan(steps=4000, batch=96, rate=1e-3, betas=(0.9, 0.98))),
        "clip": Network(_clip(3, 160, 5, 5), Plan(steps=4000, batch=192, rate=1e-3, betas=(0.9, 0.98))),
        "autoencoder": Network(
            _autoencoder((16, 32, 64, 128), 1), Plan(steps=20000, batch=48, rate=2e-3, betas=(0.9, 0.95))
        ),
        "denoiser": Network(_unet((128, 128), 1, 4), Plan(steps=26000, batch=64, rate=1e-3, ema=0.9995)),
    }
)

# What one H100 reaches in thirty minutes.
GPU = Size(
    {
        "classifiers": Network({"channels": (64, 128, 256, 256)}, Plan(steps=4000, batch=256, rate=1e-3)),
        "identity": Network(_vit(160, 5, 5), Plan(steps=8000, batch=384, rate=1e-3, betas=(0.9, 0.98))),
        "clip": Network(_clip(3, 160, 5, 5), Plan(steps=8000, batch=1024, rate=1e-3, betas=(0.9, 0.98))),
        "autoencoder": Network(
            _autoencoder((16, 32, 64, 128), 1), Plan(steps=30000, batch=256, rate=2e-3, betas=(0.9, 0.95))
        ),
        "denoiser": Network(_unet((128, 160), 1, 4), Plan(steps=40000, batch=512, rate=1e-3, ema=0.9998)),
    },
    prompts=1000,
)

# For tests.
DEBUG = Size(
    {
        "classifiers": Network({"channels": (8, 16)}, Plan(steps=40, batch=16, rate=1e-2, warmup=5, ema=0.9)),
        "identity": Network(_vit(32, 1, 2), Plan(steps=20, batch=8, rate=1e-3, warmup=5, ema=0.9)),
        "clip": Network(_clip(1, 32, 1, 2), Plan(steps=20, batch=16, rate=1e-3, warmup=5, ema=0.9)),
        "autoencoder": Network(_autoencoder((8, 8, 8, 16), 1), Plan(steps=20, batch=8, rate=3e-3, warmup=5, ema=0.9)),
        "denoiser": Network(_unet((16, 16), 1, 2), Plan(steps=20, batch=16, rate=3e-3, warmup=5, ema=0.9)),
    },
    precision="float32",
    held_out=16,
    prompts=8,
)

SIZES = {"cpu": CPU, "gpu": GPU, "debug": DEBUG}
