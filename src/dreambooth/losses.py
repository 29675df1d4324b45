"""The denoising loss of each image and what may be put in its place or beside it, all off by default.

How images weigh against one another is the batch's affair (`weight_B`).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor


def denoising(predicted_BCHW: Tensor, target_BCHW: Tensor, mask_B1HW: Tensor | None = None) -> Tensor:
    """Return the mean squared error of each image, float32 [B].

    With the process's weight this is w_t * || prediction - target ||^2 of Ruiz et al. 2023, eq. (1).

    Args:
        predicted_BCHW: The denoiser's output.
        target_BCHW: What it should have been.
        mask_B1HW: Weight of each latent pixel, 0..1; the mean is then over the weights, and 0 where all of them are.
    """
    error_BCHW = (predicted_BCHW.float() - target_BCHW.float()) ** 2
    if mask_B1HW is None:
        return error_BCHW.mean(dim=(1, 2, 3))
    weighted_BCHW = error_BCHW * mask_B1HW
    return weighted_BCHW.mean(dim=1).sum(dim=(1, 2)) / mask_B1HW.sum(dim=(1, 2, 3)).clamp(min=1e-6)


def dco(loss_B: Tensor, frozen_B: Tensor, beta: float) -> Tensor:
    """Return the direct consistency loss of each image, -log sigmoid(-beta (loss - frozen loss)), float32 [B].

    It pulls no further once the model does better than the frozen one. Lee et al. 2024, arXiv:2402.12004; customize.py
    of https://github.com/kyungmnlee/dco, where beta is 1000, takes the logarithm of a batch's mean, not of each image.

    Args:
        loss_B: Denoising losses.
        frozen_B: Those of the frozen model, on the same noisy images.
        beta: How soon the pull ends.
    """
    return -F.logsigmoid(-beta * (loss_B - frozen_B))


def distance(weights: Mapping[str, Tensor], start: Mapping[str, Tensor], lora_scale: float | None) -> Tensor:
    """Return the squared distance of a model's weights to those it began with.

    A penalty on it keeps the class without class images (Preserve and Personalize 2025, arXiv:2505.19519; its code
    weighs a mean over each tensor, and a LoRA's factors in place of the change that they make).

    Args:
        weights: Trained weights by name.
        start: The same as they were.
        lora_scale: What B A of a LoRA is multiplied by; None where the weights are the model's own.
    """
    if lora_scale is None:
        squares = [F.mse_loss(weight.float(), start[name], reduction="sum") for name, weight in weights.items()]
        return torch.stack(squares).sum()
    downs = {name: weight.flatten(1) for name, weight in weights.items() if ".lora_A." in name}
    pairs = [(down_RI, weights[name.replace(".lora_A.", ".lora_B.")].flatten(1)) for name, down_RI in downs.items()]
    # || B A ||^2 is the sum of B^T B times A A^T: the change itself, as large as the model, is never made
    squares = [((up_OR.T @ up_OR) * (down_RI @ down_RI.T)).sum() for down_RI, up_OR in pairs]
    return lora_scale**2 * torch.stack(squares).sum()
