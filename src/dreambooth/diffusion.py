"""Diffusion processes as objects on pure tensors: draw a time, mix in noise, the target, the weight of the loss.

DreamBooth minimises w_t * || prediction - target ||^2 (Ruiz et al. 2023, https://arxiv.org/abs/2208.12242, eq. 1);
what the target is, is the process's affair and never a branch of the training loop.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, Self

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from dreambooth.errors import UserError


class Process(Protocol):
    """A diffusion process. Times `t_B` are in the process's own unit: steps for `Ddpm`, sigma for `Flow`."""

    def on(self, device: torch.device) -> Self:
        """Return the process with what it holds on a device."""

    def sample_t(self, u_B: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Map uniform draws in [0, 1) to times of the training distribution.

        Args:
            u_B: The draws.
            size: Height and width of the latents; None for a model's largest.
        """

    def mix(self, x_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor) -> Tensor:
        """Return the clean latents with the noise of time `t_B`, in the dtype of `x_BCHW`."""

    def target(self, x_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor) -> Tensor:
        """Return what the denoiser should predict, in the dtype of `x_BCHW`."""

    def weight(self, t_B: Tensor, min_snr: float | None) -> Tensor:
        """Return the weight of each image's squared error, float32 [B].

        Raises:
            UserError: `min_snr` is set and the process has no such weighting.
        """


@dataclass(frozen=True, eq=False)
class Ddpm:
    """Discrete-time variance-preserving diffusion, the denoiser predicting the noise or the velocity.

    Attributes:
        alphas_cumprod_T: float32, the products alpha-bar_t of Ho et al. 2020 (https://arxiv.org/abs/2006.11239).
        prediction: "epsilon" (the noise) or "v" (Salimans & Ho 2022, https://arxiv.org/abs/2202.00512, appendix D).
    """

    alphas_cumprod_T: Tensor
    prediction: Literal["epsilon", "v"]

    @classmethod
    def from_scheduler_config(cls, config: Mapping[str, Any]) -> Ddpm:
        """Read the noise schedule and the kind of prediction from any diffusers scheduler's config.

        Raises:
            UserError: The model predicts neither noise nor velocity.
        """
        kinds: dict[str, Literal["epsilon", "v"]] = {"epsilon": "epsilon", "v_prediction": "v"}
        kind = config.get("prediction_type", "epsilon")
        if kind not in kinds:
            raise UserError(f"the model has prediction_type {kind!r}: only {' and '.join(kinds)} can be trained")
        return cls(DDPMScheduler.from_config(config).alphas_cumprod, kinds[kind])

    def on(self, device: torch.device) -> Self:
        """Return the process with its schedule on a device."""
        return replace(self, alphas_cumprod_T=self.alphas_cumprod_T.to(device))

    def sample_t(self, u_B: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Map uniform draws in [0, 1) to int64 steps in [0, T), uniformly, whatever the size."""
        return (u_B * len(self.alphas_cumprod_T)).long()

    def mix(self, x_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor) -> Tensor:
        """Return sqrt(a_t) x + sqrt(1 - a_t) noise."""
        signal_B111, spread_B111 = self._scales(t_B, x_BCHW.dtype)
        return signal_B111 * x_BCHW + spread_B111 * noise_BCHW

    def target(self, x_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor) -> Tensor:
        """Return the noise, or the velocity sqrt(a_t) noise - sqrt(1 - a_t) x."""
        if self.prediction == "epsilon":
            return noise_BCHW
        signal_B111, spread_B111 = self._scales(t_B, x_BCHW.dtype)
        return signal_B111 * noise_BCHW - spread_B111 * x_BCHW

    def weight(self, t_B: Tensor, min_snr: float | None) -> Tensor:
        """Return min(SNR, g) / SNR for epsilon, min(SNR, g) / (SNR + 1) for v, and ones without `min_snr`.

        Both weigh the error of the clean image by min(SNR, g): Hang et al. 2023, https://arxiv.org/abs/2303.09556.
        """
        if min_snr is None:
            return torch.ones(t_B.shape, device=t_B.device)
        alphas_B = self.alphas_cumprod_T.to(t_B.device)[t_B]
        snr_B = alphas_B / (1 - alphas_B)
        if self.prediction == "epsilon":
            # Not min(SNR, g) / SNR: a schedule of zero terminal SNR would give 0 / 0.
            return (min_snr / snr_B).clamp(max=1)
        return snr_B.clamp(max=min_snr) / (snr_B + 1)

    def _scales(self, t_B: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        alphas_B111 = self.alphas_cumprod_T.to(t_B.device)[t_B].view(-1, 1, 1, 1)
        return alphas_B111.sqrt().to(dtype), (1 - alphas_B111).sqrt().to(dtype)


@dataclass(frozen=True)
class SizedShift:
    """A flow's shift that grows with the image, so that a larger one is drowned in as much noise.

    Its logarithm is linear in the number of tokens: `get_lin_function` of Black Forest Labs' sampling,
    https://github.com/black-forest-labs/flux/blob/main/src/flux/sampling.py; the reason is in Esser et al. 2024,
    https://arxiv.org/abs/2403.03206, section 5.3.2.

    Attributes:
        tokens: Two numbers of tokens, the fewer first.
        logarithms: The logarithm of the shift at each.
        patch: Side in latent pixels of a token.
    """

    tokens: tuple[int, int]
    logarithms: tuple[float, float]
    patch: int = 2

    def at(self, size: tuple[int, int] | None) -> float:
        """Return the shift for latents of a height and width; without a size, that of the larger number of tokens."""
        (few, many), (low, high) = self.tokens, self.logarithms
        tokens = many if size is None else size[0] * size[1] / self.patch**2
        return math.exp(low + (tokens - few) / (many - few) * (high - low))


@dataclass(frozen=True)
class Flow:
    """Rectified flow: a straight line from the image to the noise, the denoiser predicting its direction.

    Lipman et al. 2023, https://arxiv.org/abs/2210.02747; Liu et al. 2023, https://arxiv.org/abs/2209.03003.

    Attributes:
        shift: Above 1, more draws fall on high noise (Esser et al. 2024, https://arxiv.org/abs/2403.03206, eq. 23).
        draws: Distribution of sigma before the shift: "uniform", or "logit-normal" with mean 0 and deviation 1, which
            prefers the middle (ibid., section 3.1).
    """

    shift: float | SizedShift = 1.0
    draws: Literal["uniform", "logit-normal"] = "uniform"

    @classmethod
    def from_scheduler_config(
        cls, config: Mapping[str, Any], draws: Literal["uniform", "logit-normal"], patch: int = 2
    ) -> Flow:
        """Read the shift from the config of diffusers' flow-matching scheduler.

        Args:
            config: The config.
            draws: Distribution of sigma before the shift, which no config tells.
            patch: Side in latent pixels of the denoiser's tokens.
        """
        if not config.get("use_dynamic_shifting"):
            return cls(config["shift"], draws)
        tokens = (config["base_image_seq_len"], config["max_image_seq_len"])
        return cls(SizedShift(tokens, (config["base_shift"], config["max_shift"]), patch), draws)

    def on(self, device: torch.device) -> Self:
        """Return the process itself, which holds no tensors."""
        return self

    def sample_t(self, u_B: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Map uniform draws in [0, 1) to shifted sigmas in (0, 1]."""
        sigma_B = 1 - u_B
        if self.draws == "logit-normal":
            sigma_B = torch.special.ndtri(sigma_B).sigmoid()
        shift = self.shift.at(size) if isinstance(self.shift, SizedShift) else self.shift
        return shift * sigma_B / (1 + (shift - 1) * sigma_B)

    def mix(self, x_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor) -> Tensor:
        """Return (1 - sigma) x + sigma noise."""
        sigma_B111 = t_B.view(-1, 1, 1, 1)
        return ((1 - sigma_B111) * x_BCHW + sigma_B111 * noise_BCHW).to(x_BCHW.dtype)

    def target(self, x_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor) -> Tensor:
        """Return noise - x, the derivative of `mix` by sigma."""
        return noise_BCHW - x_BCHW

    def weight(self, t_B: Tensor, min_snr: float | None) -> Tensor:
        """Return ones.

        Raises:
            UserError: `min_snr` is set; it is defined for epsilon- and v-prediction only.
        """
        if min_snr is not None:
            raise UserError("min-SNR weighting is defined for epsilon- and v-prediction, not for flow: leave it unset")
        return torch.ones(t_B.shape, device=t_B.device)
