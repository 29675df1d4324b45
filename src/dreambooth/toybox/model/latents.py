"""Measures which latents to choose, at equal training time: the table "Latents" of docs/toybox.md.

Run `python -m dreambooth.toybox.model.latents --seconds 240`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dreambooth.paths import cache_root
from dreambooth.toybox.model import autoencoder, denoiser
from dreambooth.toybox.model.autoencoder import AutoencoderTask
from dreambooth.toybox.model.card import table
from dreambooth.toybox.model.engine import autocast, fit, start, update
from dreambooth.toybox.model.renders import World, load_world
from dreambooth.toybox.model.sizes import TEXT_LENGTH, TEXT_WIDTH, Plan

PRECISION = "bfloat16"
BATCH = 48


@dataclass(frozen=True)
class Candidate:
    """Latents, the autoencoder that makes them, and a U-Net of about 430 MFLOP for them."""

    side: int
    channels: int
    autoencoder: tuple[int, ...]
    unet: tuple[int, ...]

    @property
    def name(self) -> str:
        """Side x side x channels."""
        return f"{self.side}x{self.side}x{self.channels}"


CANDIDATES = (
    Candidate(8, 8, (16, 32, 64, 128), (128, 128)),
    Candidate(8, 16, (16, 32, 64, 128), (128, 128)),
    Candidate(16, 4, (16, 32, 64), (64, 80, 96)),
)


def row(candidate: Candidate, world: World, seconds: float) -> list[str]:
    """PSNR after `seconds` of training at the speed of an idle machine, and the speed of the U-Net."""
    config = {"channels": candidate.autoencoder, "latent_channels": candidate.channels, "layers": 1}
    task = AutoencoderTask(autoencoder.build(config), world, BATCH)
    step_seconds = fastest(_steps(task))
    plan = Plan(steps=int(seconds / step_seconds), batch=BATCH, rate=2e-3, betas=(0.9, 0.95), evaluate_every=10**9)
    task.module = autoencoder.build(config)
    with tempfile.TemporaryDirectory() as folder:
        points = list(fit(task, Path(folder), plan, precision=PRECISION))
    count, flops, speed = unet_speed(candidate)
    return [
        candidate.name,
        "-".join(map(str, candidate.autoencoder)),
        f"{parameters(task.module):.2f} M",
        f"{1000 * step_seconds:.0f}",
        f"{plan.steps:,}",
        f"{points[-1].values['psnr']:.2f}",
        "-".join(map(str, candidate.unet)),
        f"{count:.1f} M",
        f"{flops:.0f}",
        f"{speed:.0f}",
    ]


def unet_speed(candidate: Candidate, batch: int = 64) -> tuple[float, float, float]:
    """Millions of parameters, MFLOP of a forward pass a picture, pictures a second forward and backward."""
    from torch.utils.flop_counter import FlopCounterMode

    latent = {"latent_channels": candidate.channels, "latent_side": candidate.side}
    unet = denoiser.build(latent | {"channels": candidate.unet, "layers": 1, "heads": 4, "text_width": TEXT_WIDTH})
    latents_BCHW = torch.randn(batch, candidate.channels, candidate.side, candidate.side)
    t_B, text_BLD = torch.zeros(batch), torch.randn(batch, TEXT_LENGTH, TEXT_WIDTH)

    def step() -> None:
        with autocast(torch.device("cpu"), PRECISION):
            made_BCHW = unet(latents_BCHW, t_B, text_BLD).sample
        made_BCHW.float().square().mean().backward()

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        unet(latents_BCHW, t_B, text_BLD)
    return parameters(unet), counter.get_total_flops() / batch / 1e6, batch / fastest(step)


def parameters(module: torch.nn.Module) -> float:
    """Parameters in millions."""
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


def fastest(step: Callable[[], None], count: int = 8) -> float:
    """Seconds of the fastest of a few calls, which other work on the machine disturbs least."""
    step()
    times = []
    for _ in range(count):
        began = time.perf_counter()
        step()
        times.append(time.perf_counter() - began)
    return min(times)


def _steps(task: AutoencoderTask) -> Callable[[], None]:
    state, plan = start(task.module, Plan(1000, BATCH, 1e-4)), Plan(1000, BATCH, 1e-4)

    def step() -> None:
        update(task, state, plan, 0, PRECISION)

    return step


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--world", type=Path, default=cache_root() / "toybox" / "world-1")
    chosen: Any = parser.parse_args()
    torch.set_num_threads(1)
    world = load_world(chosen.world)
    head = [
        "latents",
        "autoencoder",
        "size",
        "ms a step",
        "steps",
        "PSNR",
        "U-Net",
        "size",
        "MFLOP",
        "pictures a second",
    ]
    print(table(head, [row(candidate, world, chosen.seconds) for candidate in CANDIDATES]))


if __name__ == "__main__":
    main()
