"""The denoising loss against torch's own."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from dreambooth.losses import denoising


def test_it_is_the_mean_squared_error_of_each_image() -> None:
    a_BCHW, b_BCHW = torch.randn(3, 4, 5, 6), torch.randn(3, 4, 5, 6)
    expected = torch.stack([F.mse_loss(a, b) for a, b in zip(a_BCHW, b_BCHW, strict=True)])
    torch.testing.assert_close(denoising(a_BCHW, b_BCHW), expected)


def test_a_mask_of_ones_changes_nothing() -> None:
    a_BCHW, b_BCHW = torch.randn(2, 4, 5, 6), torch.randn(2, 4, 5, 6)
    torch.testing.assert_close(denoising(a_BCHW, b_BCHW, torch.ones(2, 1, 5, 6)), denoising(a_BCHW, b_BCHW))


def test_a_mask_leaves_out_what_it_covers() -> None:
    a_BCHW, b_BCHW = torch.randn(1, 4, 4, 4), torch.randn(1, 4, 4, 4)
    mask_B1HW = torch.zeros(1, 1, 4, 4)
    mask_B1HW[..., :2] = 1
    torch.testing.assert_close(denoising(a_BCHW, b_BCHW, mask_B1HW), F.mse_loss(a_BCHW[..., :2], b_BCHW[..., :2])[None])


def test_where_a_mask_leaves_out_all_there_is_no_loss() -> None:
    loss_B = denoising(torch.randn(2, 4, 4, 4), torch.randn(2, 4, 4, 4), torch.zeros(2, 1, 4, 4))
    assert loss_B.tolist() == [0.0, 0.0]


def test_half_precision_is_summed_in_float32() -> None:
    a_BCHW, b_BCHW = torch.randn(2, 4, 8, 8).bfloat16(), torch.randn(2, 4, 8, 8).bfloat16()
    assert denoising(a_BCHW, b_BCHW).dtype == torch.float32
    torch.testing.assert_close(denoising(a_BCHW, b_BCHW), denoising(a_BCHW.float(), b_BCHW.float()))
