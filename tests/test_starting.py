"""Training on from another LoRA: it begins as exactly that one, and what has no place for it is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dreambooth import families
from dreambooth.export import names
from dreambooth.models import resolve
from dreambooth.run import Run
from tests import calls
from tests.commands import make_photos

STILL = {"learning_rate": 1e-12, "allow": "learning-rate", "prior_weight": 0}


def products(run: Path) -> dict[str, Tensor]:
    """What the LoRA of a run adds to each weight."""
    tensors = load_file(run / "adapter" / "pytorch_lora_weights.safetensors")
    downs = {name.removesuffix(".lora_A.weight"): tensor for name, tensor in tensors.items() if ".lora_A." in name}
    return {name: tensors[f"{name}.lora_B.weight"] @ down for name, down in downs.items()}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_photos(tmp_path_factory.mktemp("start") / "photos")


@pytest.fixture(scope="module")
def first(photos: Path, tiny_sd: Path) -> Path:
    """A run of rank 2 with a scale of 3."""
    home = photos.parent / "first"
    done = calls.train(photos, tiny_sd, out=home, rank=2, alpha=6, learning_rate=1e-2, steps=5, prior_weight=0)
    assert done.status == 0, done
    return home


@pytest.mark.parametrize(("rank", "alpha"), [(2, 2), (5, 10)])
def test_it_begins_as_the_other(
    rank: int, alpha: int, first: Path, photos: Path, tiny_sd: Path, tmp_path: Path
) -> None:
    for name, start in (("run", first), ("file", first / "adapter" / "pytorch_lora_weights.safetensors")):
        out = tmp_path / name
        done = calls.train(photos, tiny_sd, out=out, start=start, rank=rank, alpha=alpha, steps=1, **STILL)
        assert done.status == 0, done
        found, expected = products(out), products(first)
        assert found.keys() == expected.keys()
        assert max(float(each.abs().max()) for each in expected.values()) > 1e-4
        for path in expected:
            torch.testing.assert_close(found[path], expected[path], rtol=1e-4, atol=1e-7)


def test_it_learns_on_and_is_another_run_than_without(first: Path, photos: Path, tiny_sd: Path, tmp_path: Path) -> None:
    values = {"rank": 2, "learning_rate": 1e-2, "steps": 3, "prior_weight": 0}
    for name, start in (("on", first), ("anew", None)):
        assert calls.train(photos, tiny_sd, out=tmp_path / name, start=start, **values).status == 0
    on, before, anew = products(tmp_path / "on"), products(first), products(tmp_path / "anew")
    assert any(not torch.allclose(on[name], before[name], rtol=1e-2) for name in on)
    assert any(not torch.allclose(on[name], anew[name], rtol=1e-2) for name in on)
    assert Run(tmp_path / "on").info["identity"] != Run(tmp_path / "anew").info["identity"]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"rank": 1}, "has rank 2: give --rank 2"),
        ({"method": "full"}, "--start is a LoRA to go on from: use it with --method lora"),
        ({"adapter": "dora"}, "--start is a LoRA, and --adapter dora is of another kind: leave one of them out"),
        (
            {"start": "nowhere"},
            "--start nowhere: there is no LoRA: give a .safetensors file or the folder of a LoRA run",
        ),
    ],
)
def test_what_cannot_go_on_is_refused(
    values: dict[str, object], said: str, first: Path, photos: Path, tiny_sd: Path, tmp_path: Path
) -> None:
    refused = calls.train(photos, tiny_sd, out=tmp_path / "run", **{"start": first, **STILL, **values})
    assert said in refused.refusal
    assert not (tmp_path / "run" / "samples").exists()


@pytest.mark.parametrize(
    ("component", "layer", "said"),
    [
        (
            "unet",
            "mid_block.resnets.0.conv1",
            "changes unet.mid_block.resnets.0.conv1, which is not trained: give --tar",
        ),
        ("text_encoder", "text_model.encoder.layers.0.self_attn.q_proj", "changes the text_encoder: give --train-text"),
    ],
)
def test_layers_that_are_not_trained_are_refused(
    component: str, layer: str, said: str, photos: Path, tiny_sd: Path, tmp_path: Path
) -> None:
    pipe = families.get("sd").load(resolve(str(tiny_sd)), torch.float32)
    weight = names.layers(pipe)[f"{component}.{layer}"].weight
    lora = {
        f"{component}.{layer}.lora_A.weight": torch.ones(1, *weight.shape[1:]),
        f"{component}.{layer}.lora_B.weight": torch.ones(len(weight), 1, *[1] * (weight.dim() - 2)),
    }
    save_file(lora, tmp_path / "other.safetensors")
    refused = calls.train(photos, tiny_sd, out=tmp_path / "run", start=tmp_path / "other.safetensors", **STILL)
    assert said in refused.refusal


def test_a_text_encoder_begins_as_the_other_too(photos: Path, tiny_sd: Path, tmp_path: Path) -> None:
    values = {"rank": 2, "prior_weight": 0, "learning_rate": 1e-2, "text_encoder_learning_rate": 1e-2}
    done = calls.train(photos, tiny_sd, "--train-text-encoder", out=tmp_path / "first", **values)
    assert done.status == 0, done
    still = {**STILL, "text_encoder_learning_rate": 1e-12, "rank": 2, "start": tmp_path / "first", "steps": 1}
    done = calls.train(photos, tiny_sd, "--train-text-encoder", out=tmp_path / "on", **still)
    assert done.status == 0, done
    found, expected = products(tmp_path / "on"), products(tmp_path / "first")
    assert any(name.startswith("text_encoder") for name in expected)
    for path in expected:
        torch.testing.assert_close(found[path], expected[path], rtol=1e-4, atol=1e-7)
