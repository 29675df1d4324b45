"""Sets of pictures: drawn once, whatever happens in between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dreambooth.errors import UserError
from dreambooth.evaluation import pictures
from dreambooth.evaluation.pictures import PictureSet, cached, draw_missing
from dreambooth.progress import Silent
from dreambooth.sampling import Sampling

SAMPLING = Sampling("dpm++", 2, 1.0, 512)  # eight a batch


class Drawer:
    """Stands for a pipeline: a grey of its own for each text and seed; told to fail at a picture."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.drawn: list[tuple[str, int]] = []
        self.batches: list[int] = []
        self.fail_at = fail_at

    def draw(self, pipe: Any, texts: list[str], generators: list[Any], sampling: Sampling) -> Any:
        self.batches.append(len(texts))
        for text, generator in zip(texts, generators, strict=True):
            if len(self.drawn) == self.fail_at:
                raise KeyboardInterrupt
            self.drawn.append((text, generator.initial_seed()))
            yield Image.new("RGB", (8, 8), (generator.initial_seed() % 256, len(text), 0))


def make(folder: Path, **changes: Any) -> PictureSet:
    values = {"texts": ("a dog", "a cat in the snow", "a pig"), "seeds": (0, 1, 2, 3), "model": "m"} | changes
    return PictureSet(folder, sampling=SAMPLING, **values)


def fill(pictures_: PictureSet, drawer: Drawer, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(pictures, "draw", drawer.draw)
    loads = []
    draw_missing(pictures_, lambda: loads.append(1), Silent(), "pictures")  # type: ignore[arg-type,func-returns-value]
    return len(loads)


def test_every_text_with_every_seed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawer, made = Drawer(), make(tmp_path / "set")
    assert fill(made, drawer, monkeypatch) == 1
    assert [text for text, _ in drawer.drawn] == [text for text in made.texts for _ in made.seeds]
    assert len({seed for _, seed in drawer.drawn}) == 4
    assert drawer.batches == [8, 4]
    assert [[file.name for file in files] for files in made.files][1] == [f"001-{seed}.png" for seed in range(4)]


def test_a_whole_set_loads_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make(tmp_path / "set")
    fill(made, Drawer(), monkeypatch)
    again = Drawer()
    assert fill(made, again, monkeypatch) == 0
    assert not again.drawn


def test_interrupted_and_gone_on_with_it_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, cut = make(tmp_path / "whole"), make(tmp_path / "cut")
    fill(whole, Drawer(), monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        fill(cut, Drawer(fail_at=10), monkeypatch)
    rest = Drawer()
    fill(cut, rest, monkeypatch)
    assert len(rest.drawn) == 4  # the batch that was cut short, and no other
    for one, other in zip(whole.shots, cut.shots, strict=True):
        assert one.file.read_bytes() == other.file.read_bytes()


@pytest.mark.parametrize("change", [{"model": "other"}, {"texts": ("a dog", "a cat", "a pig")}, {"seeds": (1, 2)}])
def test_pictures_of_another_set_are_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    fill(make(tmp_path / "set"), Drawer(), monkeypatch)
    other, drawer = make(tmp_path / "set", **change), Drawer()
    fill(other, drawer, monkeypatch)
    assert len(drawer.drawn) == len(other.shots)
    assert sorted(path.name for path in other.folder.glob("*.png")) == sorted(shot.file.name for shot in other.shots)


def test_cached_sets_have_a_folder_for_each_identity(tmp_path: Path) -> None:
    one = cached(tmp_path, ["a dog"], [0, 1], SAMPLING, "m")
    assert one.folder == cached(tmp_path, ["a dog"], [0, 1], SAMPLING, "m").folder
    others = [
        cached(tmp_path, ["a cat"], [0, 1], SAMPLING, "m"),
        cached(tmp_path, ["a dog"], [0], SAMPLING, "m"),
        cached(tmp_path, ["a dog"], [0, 1], Sampling("ddim", 2, 1.0, 512), "m"),
        cached(tmp_path, ["a dog"], [0, 1], SAMPLING, "n"),
    ]
    assert len({one.folder, *(other.folder for other in others)}) == 5


def test_a_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.doc").write_text("mine")
    with pytest.raises(UserError, match="move them away"):
        pictures.claim(make(tmp_path))
    assert (tmp_path / "thesis.doc").read_text() == "mine"
