"""T-LoRA takes part with fewer ranks at more noise, in training and in drawing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dreambooth import families
from dreambooth.methods import lora
from tests.test_loop import recipe_for
from tests.test_methods import base, picture, train_at_random

FAMILY = families.get("sd")


def kept(t: int) -> int:
    """The ranks of the paper's eq. 5 for 4 of 8, written out."""
    return 4 + int(4 * (1000 - t) / 1000)


@pytest.mark.parametrize("targets", ["attention", "wide"])
def test_the_ranks_left_out_do_not_count_at_their_time(targets: str, tiny_sd: Path) -> None:
    """Each image of a batch by its own time: the same as a LoRA whose other ranks are zero."""
    recipe = recipe_for(tiny_sd, rank=8, alpha=8.0, min_rank=4, targets=targets)
    masked, plain = base(tiny_sd)[0], base(tiny_sd)[0]
    groups = lora.attach(masked, FAMILY, recipe)
    (group,) = lora.attach(plain, FAMILY, recipe.model_copy(update={"min_rank": None}))
    train_at_random(groups)
    times = [0, 1, 249, 251, 999]
    source = torch.Generator().manual_seed(0)
    noisy_BCHW = torch.randn(5, 4, 8, 8, generator=source)
    embeds_BLD = torch.randn(5, 77, 8, generator=source)
    with torch.no_grad():
        found_BCHW = masked.unet(noisy_BCHW, torch.tensor(times), embeds_BLD).sample
        for index, t in enumerate(times):
            for name, weight in groups[0].parameters.items():
                group.parameters[name].copy_(weight)
                if ".lora_A." in name:
                    group.parameters[name][kept(t) :] = 0
            one = slice(index, index + 1)
            expected_BCHW = plain.unet(noisy_BCHW[one], torch.tensor([t]), embeds_BLD[one]).sample
            torch.testing.assert_close(found_BCHW[one], expected_BCHW, rtol=1e-4, atol=1e-5)
            # as samplers call it: one time for all, a number or a scalar
            for given in (t, torch.tensor(t), torch.tensor(float(t))):
                alone_BCHW = masked.unet(noisy_BCHW[one], given, embeds_BLD[one]).sample
                torch.testing.assert_close(alone_BCHW, expected_BCHW, rtol=1e-4, atol=1e-5)


def test_only_ranks_that_take_part_are_trained(tiny_sd: Path) -> None:
    pipe, _ = base(tiny_sd)
    groups = lora.attach(pipe, FAMILY, recipe_for(tiny_sd, rank=8, alpha=8.0, min_rank=4))
    train_at_random(groups)
    pipe.unet(torch.randn(1, 4, 8, 8), torch.tensor([999]), torch.randn(1, 77, 8)).sample.sum().backward()
    grads = {name: weight.grad for name, weight in groups[0].parameters.items()}
    for name, grad in grads.items():
        assert isinstance(grad, Tensor)
        ranks_R = grad.abs().amax(dim=1) if ".lora_A." in name else grad.abs().amax(dim=0)
        assert ranks_R[4:].max() == 0
        assert ranks_R[:4].max() > 0


def test_what_is_generated_from_is_what_was_trained(tiny_sd: Path, tmp_path: Path) -> None:
    recipe = recipe_for(tiny_sd, rank=8, alpha=4.0, min_rank=2)
    pipe, source = base(tiny_sd)
    train_at_random(lora.attach(pipe, FAMILY, recipe))
    trained = picture(pipe)
    lora.save(pipe, FAMILY, source, recipe, tmp_path)
    np.testing.assert_allclose(picture(lora.load(FAMILY, source, recipe, tmp_path)), trained, atol=2e-5)
    unmasked = lora.load(FAMILY, source, recipe.model_copy(update={"min_rank": None}), tmp_path)
    assert abs(picture(unmasked) - trained).max() > 1e-3
    assert "T-LoRA" in (tmp_path / "README.md").read_text(encoding="utf-8")
