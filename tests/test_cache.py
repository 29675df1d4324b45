"""Encoded pictures are found by what they are, made once, and lie on disk where memory is short."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dreambooth import cache
from dreambooth.cache import Memo, Shelf
from tests import calls
from tests.commands import make_photos


def value(key: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(key)
    return {"mean": torch.randn(3, 4, generator=draw).T, "half": torch.randn(5, generator=draw).bfloat16()}


@pytest.mark.parametrize("limit", [0, 100, 10_000])
def test_a_shelf_gives_back_what_was_put_there(limit: int) -> None:
    shelf: Shelf[int] = Shelf(limit)
    for key in range(6):
        shelf[key] = value(key)
    assert sorted(shelf) == list(range(6))
    assert len(shelf) == 6
    for key in (3, 0, 5, 3):
        for name, tensor in value(key).items():
            assert torch.equal(shelf[key][name], tensor)
            assert shelf[key][name].dtype == tensor.dtype
    del shelf[3]
    assert 3 not in shelf


def test_memory_is_used_up_to_the_limit_and_files_go_with_the_shelf() -> None:
    size = sum(tensor.nbytes for tensor in value(0).values())
    shelf: Shelf[int] = Shelf(2 * size)
    for key in range(5):
        shelf[key] = value(key)
    folder = Path(shelf._folder.name)
    assert len(list(folder.iterdir())) == 3
    del shelf
    assert not folder.exists()


def test_a_value_is_made_once_unless_nothing_is_kept() -> None:
    made: list[int] = []
    for keep, times in ((True, 1), (False, 3)):
        made.clear()
        memo: Memo[int, dict[str, Tensor]] = Memo(lambda key: made.append(key) or value(key), keep, Shelf(0))
        for _ in range(3):
            assert torch.equal(memo[7]["half"], value(7)["half"])
        assert len(made) == times


def test_a_run_is_the_same_whether_its_cache_fits_into_memory(
    tiny_sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = make_photos(tmp_path / "photos")
    for name, limit in (("near", None), ("far", 0)):
        monkeypatch.setattr(cache.Shelf.__init__, "__defaults__", (limit,))
        done = calls.train(photos, tiny_sd, out=tmp_path / name)
        assert done.status == 0, done
    near, far = (
        load_file(tmp_path / name / "adapter" / "pytorch_lora_weights.safetensors") for name in ("near", "far")
    )
    assert all(torch.equal(near[name], far[name]) for name in near)
