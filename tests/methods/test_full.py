"""What full fine-tuning ships is the base model with the trained parts in place of its own, however it is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from torch import Tensor

from dreambooth import families, shards
from dreambooth.methods import full
from dreambooth.models import Source, resolve
from tests.test_loop import recipe_for


@pytest.fixture
def shipped(tiny_sd: Path, tmp_path: Path) -> Callable[..., tuple[DiffusionPipeline, Path]]:
    def ship(source: Source | None = None, **values: object) -> tuple[DiffusionPipeline, Path]:
        source = source or resolve(str(tiny_sd))
        family = families.get(source.family)
        recipe = recipe_for(tiny_sd, method="full", rank=None, alpha=None, **values)
        pipe = family.load(source, torch.float32)
        draw = torch.Generator().manual_seed(0)
        for group in full.attach(pipe, family, recipe):
            for weight in group.parameters.values():
                weight.data += 0.01 * torch.randn(weight.shape, generator=draw)
        full.save(pipe, family, source, recipe, tmp_path / "out")
        return pipe, tmp_path / "out"

    return ship


def weights(pipe: DiffusionPipeline) -> dict[str, Tensor]:
    parts = ("unet", "vae", "text_encoder")
    return {f"{part}.{name}": value for part in parts for name, value in getattr(pipe, part).state_dict().items()}


@pytest.mark.parametrize("values", [{}, {"train_text_encoder": True}])
def test_stock_diffusers_loads_exactly_what_was_trained(
    shipped: Callable[..., object], values: dict[str, bool]
) -> None:
    pipe, folder = shipped(**values)
    found, expected = weights(StableDiffusionPipeline.from_pretrained(folder)), weights(pipe)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_it_is_written_shard_by_shard(shipped: Callable[..., object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD", "20KB")
    pipe, folder = shipped(precision="bf16")
    files = sorted((folder / "unet").glob("*.safetensors"))
    assert len(files) > 3
    assert (folder / "unet" / f"{full.WEIGHTS}.index.json").is_file()
    largest = max(weight.nbytes for weight in pipe.unet.state_dict().values())
    assert all(file.stat().st_size < 20_000 + largest for file in files)
    found = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.bfloat16).unet.state_dict()
    assert all(torch.equal(found[name], weight.bfloat16()) for name, weight in pipe.unet.state_dict().items())


def test_nothing_of_a_hub_folder_comes_along_that_is_not_read(
    shipped: Callable[..., object], tiny_sd: Path, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(tiny_sd, tmp_path / "base"))
    (base / "v1-5.ckpt").write_bytes(b"x")
    (base / "vae" / "diffusion_pytorch_model.bin").write_bytes(b"x")
    (base / "feature_extractor_old").mkdir()
    _, folder = shipped(resolve(str(base)))
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    assert not names & {"v1-5.ckpt", "vae/diffusion_pytorch_model.bin", "feature_extractor_old"}
    assert {"model_index.json", "vae/config.json", "tokenizer"} <= names


def test_parts_that_were_never_downloaded_are_not_asked_for(
    shipped: Callable[..., tuple[DiffusionPipeline, Path]], tiny_sd: Path, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(tiny_sd, tmp_path / "base"))
    index = json.loads((base / "model_index.json").read_text())
    index |= {
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "requires_safety_checker": True,
    }
    (base / "model_index.json").write_text(json.dumps(index))
    pipe, folder = shipped(resolve(str(base)))
    found = StableDiffusionPipeline.from_pretrained(folder)
    assert found.safety_checker is None
    assert all(torch.equal(a, b) for a, b in zip(found.unet.parameters(), pipe.unet.parameters(), strict=True))
