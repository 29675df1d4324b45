"""The sizes of the recipe as data: the shape of every network and how it is trained. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# The order of training; the denoiser needs the autoencoder and CLIP.
NETWORKS = ("classifiers", "identity", "clip", "autoencoder", "denoiser")
TEXT_WIDTH = 128
TEXT_LENGTH = 40
LATENT = {"latent_channels": 16, "latent_side": 8}


@dataclass(frozen=True)
class Plan:
    """How long and how fast one network trains.

    The rate rises over `warmup` steps, stays at `rate`, and falls linearly to zero over the last `cooldown` (a share
    of the steps), so a run may be made longer or shorter until its cool-down begins ("trapezoid" schedule, Haegele
    et al. 2024, https://arxiv.org/abs/2405.18392).
    """

    steps: int
    batch: int
    rate: float
    warmup: int = 100
    cooldown: float = 0.3
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    ema: float = 0.999
    clip: float = 1.0
    log_every: int = 20
    evaluate_every: int = 2000


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
    held_out: int = 1024
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


# What ships; nine hours of two cores, in pieces.
CPU = Size(
    {
        "classifiers": Network({"channels": (32, 48, 72, 104)}, Plan(12_000, 64, 1.5e-3)),
        "identity": Network(_vit(128, 6, 4), Plan(1800, 64, 1e-3, betas=(0.9, 0.98))),
        "clip": Network(_clip(3, 128, 6, 4), Plan(2400, 128, 1e-3, betas=(0.9, 0.98))),
        "autoencoder": Network(
            _autoencoder((16, 32, 64, 96), 1), Plan(54_000, 16, 8e-4, betas=(0.9, 0.95), evaluate_every=8000)
        ),
        "denoiser": Network(_unet((128, 128), 1, 4), Plan(38_000, 64, 1e-3, warmup=300, ema=0.9995)),
    }
)

# What one H100 reaches in thirty minutes. What ships is bound by its bytes, so the U-Net is larger in work, not in
# parameters: it stays at 8 x 8.
GPU = Size(
    {
        "classifiers": Network({"channels": (64, 128, 256, 256)}, Plan(4000, 256, 1e-3)),
        "identity": Network(_vit(128, 6, 4), Plan(6000, 256, 1e-3, betas=(0.9, 0.98))),
        "clip": Network(_clip(3, 128, 6, 4), Plan(6000, 1024, 1e-3, betas=(0.9, 0.98))),
        "autoencoder": Network(
            _autoencoder((16, 32, 64, 96), 1), Plan(40_000, 128, 1.5e-3, betas=(0.9, 0.95), evaluate_every=8000)
        ),
        "denoiser": Network(_unet((160,), 1, 5), Plan(40_000, 512, 1e-3, warmup=500, ema=0.9998)),
    },
    prompts=1000,
)


def _debug(steps: int, batch: int, rate: float) -> Plan:
    return Plan(steps, batch, rate, warmup=5, ema=0.9, log_every=5)


# For tests.
DEBUG = Size(
    {
        "classifiers": Network({"channels": (8, 16)}, _debug(30, 16, 1e-2)),
        "identity": Network(_vit(32, 1, 2), _debug(20, 8, 1e-3)),
        "clip": Network(_clip(1, 32, 1, 2), _debug(20, 16, 1e-3)),
        "autoencoder": Network(_autoencoder((8, 8, 8, 16), 1), _debug(60, 8, 1e-2)),
        "denoiser": Network(_unet((16, 16), 1, 2), _debug(20, 16, 3e-3)),
    },
    precision="float32",
    held_out=16,
    prompts=8,
)

SIZES = {"cpu": CPU, "gpu": GPU, "debug": DEBUG}
