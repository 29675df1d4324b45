"""Blocks that wait in host memory: never more than two at work, and what is learnt is the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dreambooth import families, swapping
from dreambooth.models import resolve
from dreambooth.run import Run
from tests import calls
from tests.commands import make_photos
from tests.test_training import losses

CPU = torch.device("cpu")
BLOCKS = {"sd": 2, "sdxl": 3, "sd35": 2, "flux": 2, "chroma": 2, "sana": 2, "z_image": 2, "qwen_image": 2, "flux2": 2}
"""Fewest blocks of each debug model."""


def denoiser_of(folder: Path) -> nn.Module:
    source = resolve(str(folder))
    family = families.get(source.family)
    return family.denoiser(family.load(source, torch.float32))


@pytest.mark.parametrize("name", BLOCKS)
def test_every_family_has_blocks(name: str, debug_folder: Callable[[str], Path]) -> None:
    assert len(swapping.blocks(denoiser_of(debug_folder(name)))) >= BLOCKS[name]


def test_all_but_two_blocks_are_spared(debug_folder: Callable[[str], Path]) -> None:
    denoiser = denoiser_of(debug_folder("sdxl"))
    sizes = [sum(weight.nbytes for weight in block.parameters()) for block in swapping.blocks(denoiser)]
    assert swapping.saved(denoiser) == sum(sizes) - sum(sorted(sizes)[-2:]) > 0


@pytest.mark.parametrize("name", ["sdxl", "flux", "sd35"])
def test_what_is_learnt_is_the_same(
    name: str, debug_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Waiting weights are not numbers: a block that is used without having been fetched spoils the loss."""
    photos, model = make_photos(tmp_path / "photos"), debug_folder(name)
    values = {"steps": 3, "prior_loss": "parent", "prior_dropout": 0.6, "learning_rate": 1e-3}
    more = ("--allow", "learning-rate", "--gradient-checkpointing")
    done = calls.train(photos, model, *more, out=tmp_path / "plain", **values)
    assert done.status == 0, done

    truth: dict[int, Tensor] = {}
    made: list[swapping.Swap] = []
    most: list[int] = []
    keep, fetch = swapping._frozen, swapping.Swap._fetch

    def poisoned(block: nn.Module, device: torch.device) -> list[tuple[Tensor, Tensor]]:
        found = keep(block, device)
        for weight, home in found:
            truth[home.data_ptr()] = home.clone()
            home.fill_(torch.nan)
            weight.data = home
        return found

    def counted(self: swapping.Swap, block: nn.Module, given: object) -> None:
        fetch(self, block, given)
        made.append(self)
        most.append(len(self.there))
        assert block in self.there

    monkeypatch.setattr(swapping, "_frozen", poisoned)
    monkeypatch.setattr(swapping, "send", lambda home, device: truth[home.data_ptr()].clone())
    monkeypatch.setattr(swapping.Swap, "_fetch", counted)
    done = calls.train(photos, model, *more, "--offload-blocks", out=tmp_path / "swapped", **values)
    assert done.status == 0, done
    assert max(most) == min(swapping.MOST, len(made[0]._home))
    assert len(most) >= 3 * 2 * len(made[0]._home)  # forward, and again before the backward pass
    plain, swapped = ([figures[1] for figures in losses(Run(tmp_path / each))] for each in ("plain", "swapped"))
    assert swapped == pytest.approx(plain, rel=1e-6)
