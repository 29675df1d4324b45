"""The autoencoder: a stock `AutoencoderKL` whose latents come out with zero mean and unit variance in every channel."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor

from dreambooth.toybox.model.renders import Renders, World, flipped

# Weights of the parts of the loss next to L1 (chosen by held-out PSNR).
SQUARE = 0.5
EDGE = 0.5
KL = 1e-6
LOG_VARIANCE = -6.0


@dataclass
class AutoencoderTask:
    """Reconstructs crops, and whole renders at the end.

    Attributes:
        module: An `AutoencoderKL`.
        world: The renders.
        batch: Crops a step; whole renders are (64 / crop)^2 times fewer.
        crop: Side of the crops in pixels.
        whole: Share of the training, at its end, that sees whole renders.
    """

    module: AutoencoderKL
    world: World
    batch: int
    crop: int = 32
    whole: float = 0.25

    def loss(self, draw: torch.Generator, progress: float) -> dict[str, Tensor]:
        """L1, squared error, edges, and a faint KL term."""
        pixels_BCHW = self._pixels(draw, progress).to(self.module.device)
        posterior = self.module.encode(pixels_BCHW).latent_dist
        noise_BCHW = torch.randn(posterior.mean.shape, generator=draw).to(posterior.mean.device)
        made_BCHW = self.module.decode(posterior.mean + posterior.std * noise_BCHW).sample.float()
        parts = reconstruction(made_BCHW, pixels_BCHW)
        parts["kl"] = posterior.kl().mean()
        parts["loss"] = parts["l1"] + SQUARE * parts["square"] + EDGE * parts["edge"] + KL * parts["kl"]
        return parts

    def evaluate(self) -> dict[str, float]:
        """Mean PSNR in dB of held-out renders, and of the photographs among them."""
        held_out = self.world.held_out
        psnr_N = psnr(squares(self.module, held_out))
        photo_N = torch.tensor([record["scene"]["style"] is None for record in held_out.records])
        return {"psnr": float(psnr_N.mean()), "psnr_photos": float(psnr_N[photo_N].mean())}

    def save(self, folder: Path) -> None:
        """Writes the stock folder, latents normalised on the training renders."""
        normalise(self.module, self.world.train)
        self.module.save_pretrained(folder)

    def _pixels(self, draw: torch.Generator, progress: float) -> Tensor:
        train, side = self.world.train, self.world.train.images_NHWC.shape[1]
        crop = side if progress >= 1 - self.whole else self.crop
        count = max(1, self.batch * self.crop**2 // crop**2)
        rows = torch.randint(0, len(train), (count,), generator=draw)
        top, left = torch.randint(0, side - crop + 1, (2,), generator=draw).tolist()
        return flipped(train.pixels(rows)[..., top : top + crop, left : left + crop], draw)


def build(config: dict[str, Any]) -> AutoencoderKL:
    """The network of `config`: "channels" a level, "latent_channels", "layers"."""
    channels = config["channels"]
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=config["latent_channels"],
        block_out_channels=channels,
        layers_per_block=config["layers"],
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=64,
        scaling_factor=1.0,
    )
    start_simply(vae)
    return vae


@torch.no_grad()
def start_simply(vae: AutoencoderKL) -> None:
    """Residual blocks begin as the identity and latents almost without noise: 2.5 dB more after 900 steps."""
    for module in vae.modules():
        if isinstance(module, ResnetBlock2D):
            torch.nn.init.zeros_(module.conv2.weight)
    latent_channels = vae.config["latent_channels"]
    vae.quant_conv.weight[latent_channels:] = 0
    vae.quant_conv.bias[latent_channels:] = LOG_VARIANCE


def reconstruction(made_BCHW: Tensor, true_BCHW: Tensor) -> dict[str, Tensor]:
    """Absolute and squared error, and the absolute error of the differences between neighbouring pixels."""
    error = made_BCHW - true_BCHW
    edge = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return {"l1": error.abs().mean(), "square": error.square().mean(), "edge": edge}


@torch.no_grad()
def encode(vae: AutoencoderKL, pixels_BCHW: Tensor) -> Tensor:
    """Means of the latents, scaled for the denoiser."""
    mean: Tensor = vae.encode(pixels_BCHW.to(vae.device)).latent_dist.mean
    return mean * float(vae.config["scaling_factor"])


@torch.no_grad()
def decode(vae: AutoencoderKL, latents_BCHW: Tensor) -> Tensor:
    """The inverse of `encode`, clipped to [-1, 1]."""
    pixels: Tensor = vae.decode(latents_BCHW / vae.config["scaling_factor"]).sample
    return pixels.clamp(-1, 1)


def squares(vae: AutoencoderKL, renders: Renders, batch: int = 64) -> Tensor:
    """Mean squared error of each picture's reconstruction, (N,); pixels span [-1, 1]."""
    errors = []
    for rows in renders.batches(batch):
        pixels_BCHW = renders.pixels(rows).to(vae.device)
        errors.append((decode(vae, encode(vae, pixels_BCHW)) - pixels_BCHW).square().mean((1, 2, 3)))
    return torch.cat(errors).cpu()


def psnr(square_N: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB; the peak of pixels in [-1, 1] is 2."""
    return 10 * torch.log10(4 / square_N)


@torch.no_grad()
def normalise(vae: AutoencoderKL, renders: Renders, count: int = 2048) -> None:
    """Folds the latents' mean and deviation, channel by channel, into the 1x1 convolutions around them.

    Then `scaling_factor` is 1 and the noise schedule treats every channel alike. Reconstructions do not change. Doing
    it again changes nothing.
    """
    some = renders.part(slice(None, count))
    latents_BCHW = torch.cat([encode(vae, some.pixels(rows)) for rows in some.batches(64)])
    shift_C, scale_C = latents_BCHW.mean((0, 2, 3)), latents_BCHW.std((0, 2, 3))
    before, after = vae.quant_conv, vae.post_quant_conv
    after.bias += (after.weight.flatten(1) * shift_C).sum(1)
    after.weight *= scale_C[None, :, None, None]
    shift, scale = torch.cat([shift_C, 2 * scale_C.log()]), torch.cat([scale_C, torch.ones_like(scale_C)])
    before.weight /= scale[:, None, None, None]
    before.bias.sub_(shift).div_(scale)
