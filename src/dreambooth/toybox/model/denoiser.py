"""The denoiser: a stock `UNet2DConditionModel` that predicts noise on cached latents, under a frozen text encoder."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from dreambooth.toybox.model.autoencoder import encode
from dreambooth.toybox.model.clip import captions, tokens, told
from dreambooth.toybox.model.renders import Renders, World

EMPTY_SHARE = 0.1
MIN_SNR = 5.0


@dataclass
class DenoiserTask:
    """Epsilon prediction (Ho et al. 2020, equation 14) with min-SNR weights (Hang et al. 2023, section 3.4).

    Attributes:
        module: A `UNet2DConditionModel`.
        world: The renders; only their captions are read.
        latents_2NCHW: fp16, of the training renders and of their mirror images.
        held_out_NCHW: fp16, of the held-out renders.
        text: The frozen text encoder.
        tokenizer: Its tokenizer.
        batch: Renders a step.
    """

    module: UNet2DConditionModel
    world: World
    latents_2NCHW: Tensor
    held_out_NCHW: Tensor
    text: CLIPTextModel
    tokenizer: CLIPTokenizer
    batch: int
    _tokens_VNL: Tensor = field(init=False, repr=False)
    _empty_L: Tensor = field(init=False, repr=False)
    _schedule: DDPMScheduler = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._tokens_VNL = told(self.tokenizer, self.world.train)
        self._empty_L = tokens(self.tokenizer, [""])[0]
        self._schedule = scheduler()

    def loss(self, draw: torch.Generator, progress: float) -> dict[str, Tensor]:
        """Weighted squared error of the noise; one caption in ten is empty, for guidance."""
        tellings, renders = self._tokens_VNL.shape[:2]
        rows_B = torch.randint(0, renders, (self.batch,), generator=draw)
        telling_B = torch.randint(0, tellings, (self.batch,), generator=draw)
        mirror_B = torch.randint(0, 2, (self.batch,), generator=draw)
        empty_B = torch.rand(self.batch, generator=draw) < EMPTY_SHARE
        tokens_BL = torch.where(empty_B[:, None], self._empty_L, self._tokens_VNL[telling_B, rows_B])
        return self._error(self.latents_2NCHW[mirror_B, rows_B], tokens_BL, draw)

    def evaluate(self) -> dict[str, float]:
        """The same loss on the held-out renders, with draws that never change."""
        draw = torch.Generator().manual_seed(0)
        tokens_NL = tokens(self.tokenizer, captions(self.world.held_out))
        errors = [
            self._error(self.held_out_NCHW[rows], tokens_NL[rows], draw)["loss"] * len(rows)
            for rows in self.world.held_out.batches(128)
        ]
        return {"held_out": float(torch.stack(errors).sum()) / len(tokens_NL)}

    def save(self, folder: Path) -> None:
        """Writes the stock folder."""
        self.module.save_pretrained(folder)

    def _error(self, latents_BCHW: Tensor, tokens_BL: Tensor, draw: torch.Generator) -> dict[str, Tensor]:
        """The times of a batch are spread evenly over the schedule, which lowers the variance of the loss."""
        device = self.module.device
        count, steps = len(latents_BCHW), len(self._schedule)
        t_B = ((torch.arange(count) + torch.rand(count, generator=draw)) / count * steps).long().clamp(max=steps - 1)
        noise_BCHW = torch.randn(latents_BCHW.shape, generator=draw)
        noisy_BCHW = self._schedule.add_noise(latents_BCHW.float(), noise_BCHW, t_B)
        with torch.no_grad():
            text_BLD = self.text(input_ids=tokens_BL.to(device)).last_hidden_state
        made_BCHW = self.module(noisy_BCHW.to(device), t_B.to(device), text_BLD).sample.float()
        error_B = (made_BCHW - noise_BCHW.to(device)).square().mean((1, 2, 3))
        alpha_B = self._schedule.alphas_cumprod[t_B]
        weight_B = (MIN_SNR * (1 - alpha_B) / alpha_B).clamp(max=1).to(device)
        return {"loss": (weight_B * error_B).mean(), "square": error_B.mean()}


def build(config: dict[str, Any]) -> UNet2DConditionModel:
    """The network of `config`: "latent_channels", "latent_side", "channels" a level, "heads", "text_width", "layers".

    `heads` is what diffusers calls `attention_head_dim` here: the count of heads, not their width.
    """
    channels = config["channels"]
    return UNet2DConditionModel(
        sample_size=config["latent_side"],
        in_channels=config["latent_channels"],
        out_channels=config["latent_channels"],
        block_out_channels=channels,
        layers_per_block=config["layers"],
        down_block_types=("CrossAttnDownBlock2D",) * len(channels),
        up_block_types=("CrossAttnUpBlock2D",) * len(channels),
        cross_attention_dim=config["text_width"],
        attention_head_dim=config["heads"],
        norm_num_groups=16,
        use_linear_projection=True,
    )


def scheduler() -> DDPMScheduler:
    """Stable Diffusion's training schedule."""
    return DDPMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        steps_offset=1,
        prediction_type="epsilon",
    )


def cached_latents(vae: AutoencoderKL, world: World, path: Path) -> tuple[Tensor, Tensor]:
    """Latents of the training renders with their mirror images, (2, N, C, H, W), and of the held-out ones, fp16.

    Made anew when the autoencoder or the renders are not those of the file.
    """
    identity = _identity(vae, world)
    if path.exists():
        with safe_open(path, framework="pt") as file:
            if file.metadata()["identity"] == identity:
                return file.get_tensor("train"), file.get_tensor("held_out")
    tensors = {"train": torch.stack([_latents(vae, world.train, mirror) for mirror in (False, True)])}
    tensors["held_out"] = _latents(vae, world.held_out, False)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata={"identity": identity})
    return tensors["train"], tensors["held_out"]


def _latents(vae: AutoencoderKL, renders: Renders, mirror: bool, batch: int = 128) -> Tensor:
    groups = (renders.pixels(rows) for rows in renders.batches(batch))
    latents = [encode(vae, pixels.flip(-1) if mirror else pixels).half().cpu() for pixels in groups]
    return torch.cat(latents).contiguous()


def _identity(vae: AutoencoderKL, world: World) -> str:
    digest = hashlib.sha256()
    for tensor in vae.state_dict().values():
        digest.update(tensor.detach().cpu().numpy().tobytes())
    seeds = [record["seed"] for part in (world.train, world.held_out) for record in part.records]
    digest.update(repr(seeds).encode())
    return digest.hexdigest()
