"""A LoRA on a base of few bits: near the full one, smaller, trainable, and shipped for the full one."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from dreambooth import families, quantise, targets
from dreambooth.errors import UserError
from dreambooth.models import resolve
from dreambooth.run import Run
from tests import calls
from tests.commands import make_photos

CPU = torch.device("cpu")


@pytest.mark.parametrize(("kind", "error", "share"), [("nf4", 0.15, 0.2), ("int8", 0.02, 0.35)])
def test_layers_give_nearly_the_same_from_far_fewer_bytes(kind: str, error: float, share: float) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(128, 256), nn.SiLU(), nn.Linear(256, 128, bias=False), nn.Linear(128, 4))
    plain.requires_grad_(False)
    made = copy.deepcopy(plain)
    quantise.quantise(made, kind, torch.float32, CPU)
    given_BD = torch.randn(16, 128)
    expected_BD = plain[:3](given_BD)
    found_BD = made[:3](given_BD).float()
    assert (found_BD - expected_BD).norm() < error * expected_BD.norm()
    assert made[0].weight.nbytes < share * plain[0].weight.nbytes
    assert made[3].weight.dtype == torch.float32
    assert not any(weight.requires_grad for weight in made.parameters())


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_lora_learns_on_it_and_ships_for_the_full_model(
    kind: str, tiny_sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantise, "LEAST", 256)
    photos = make_photos(tmp_path / "photos")
    values = {"learning_rate": 1e-2, "steps": 6, "precision": "fp32"}
    for name, base in (("few", kind), ("full", None)):
        done = calls.train(photos, tiny_sd, out=tmp_path / name, base=base, **values)
        assert done.status == 0, done
    few, full = (
        load_file(tmp_path / name / "adapter" / "pytorch_lora_weights.safetensors") for name in ("few", "full")
    )
    assert few.keys() == full.keys()
    for name, weight in few.items():
        if "lora_B" in name:
            assert weight.abs().max() > 0, name
    assert any(not torch.equal(few[name], full[name]) for name in few)
    pipe = targets.load(targets.find(tmp_path / "few"))
    source = resolve(str(tiny_sd))
    own = families.get(source.family).load(source, torch.float32).unet.state_dict()
    shipped = {name.replace(".base_layer", ""): weight for name, weight in pipe.unet.state_dict().items()}
    assert all(torch.equal(shipped[name], weight) for name, weight in own.items())
    assert Run.open(tmp_path / "few").info["identity"] != Run.open(tmp_path / "full").info["identity"]


def test_it_is_refused_for_what_is_not_frozen(tiny_sd: Path, tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos")
    assert "use it with --method lora" in calls.train(photos, tiny_sd, method="full", base="nf4").refusal


def test_it_needs_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantise.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs bitsandbytes"):
        quantise.require()
