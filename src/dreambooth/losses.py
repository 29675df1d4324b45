"""The denoising loss of each image. How images weigh against one another is the batch's affair (`weight_B`)."""

from __future__ import annotations

from torch import Tensor


def denoising(predicted_BCHW: Tensor, target_BCHW: Tensor, mask_B1HW: Tensor | None = None) -> Tensor:
    """Return the mean squared error of each image, float32 [B].

    With the process's weight this is w_t * || prediction - target ||^2 of Ruiz et al. 2023, eq. (1).

    Args:
        predicted_BCHW: The denoiser's output.
        target_BCHW: What it should have been.
        mask_B1HW: Weight of each latent pixel, 0..1; the mean is then over the weights.
    """
    error_BCHW = (predicted_BCHW.float() - target_BCHW.float()) ** 2
    if mask_B1HW is None:
        return error_BCHW.mean(dim=(1, 2, 3))
    weighted_BCHW = error_BCHW * mask_B1HW
    return weighted_BCHW.mean(dim=1).sum(dim=(1, 2)) / mask_B1HW.sum(dim=(1, 2, 3))
