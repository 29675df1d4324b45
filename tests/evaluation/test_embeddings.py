from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dreambooth import photos
from dreambooth.errors import UserError
from dreambooth.evaluation import embeddings
from dreambooth.evaluation.embeddings import Cache, Key, Part, embed_files, embed_texts
from dreambooth.evaluation.encoders import Encoder
from dreambooth.evaluation.preprocessing import HALF, Preprocess
from dreambooth.paths import cache_root
from tests.pictures import picture


class Counted:
    """Sums of pixels under fixed random weights, and how many pictures it was given."""

    def __init__(self) -> None:
        self.weights_DF = torch.randn(6, 3 * 16 * 16, generator=torch.Generator().manual_seed(0))
        self.count = 0

    def __call__(self, pixels_BCHW: Tensor) -> Tensor:
        self.count += len(pixels_BCHW)
        return pixels_BCHW.flatten(1) @ self.weights_DF.T


class Letters:
    """Counts letters."""

    def __call__(self, texts: Sequence[str]) -> Tensor:
        return torch.tensor([[float(text.count(letter)) + 1 for letter in "abcdef"] for text in texts])


@pytest.fixture
def network() -> Counted:
    return Counted()


@pytest.fixture
def encoder(network: Counted) -> Encoder:
    return Encoder("counted", "counted 1", Preprocess(16, 16, HALF), "cpu", network, Letters())


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DREAMBOOTH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """More than two batches of different pictures."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    paths = [folder / f"{index:02d}.png" for index in range(2 * embeddings.BATCH + 5)]
    for index, path in enumerate(paths):
        picture(index, (40, 30)).save(path)
    return paths


def expected(encoder: Encoder, files: Sequence[Path]) -> np.ndarray:
    prepared = [encoder.prepare(photos.open_upright(file)) for file in files]
    return np.concatenate([encoder.embed_images(pixels[None]).numpy() for pixels in prepared])


def cache_file() -> Path:
    (file,) = cache_root().glob("embeddings*")
    return file


def test_rows_are_in_the_order_of_the_files(encoder: Encoder, files: list[Path]):
    wanted = files[::-1]
    rows = embed_files(encoder, wanted)
    assert rows.dtype == np.float32
    assert rows.shape == (len(files), 6)
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    assert np.allclose(rows, expected(encoder, wanted), atol=1e-6)


def test_an_accelerator_which_is_decoded_ahead_for_gets_the_same(encoder: Encoder, files: list[Path]):
    ahead = replace(encoder, device=torch.device("cpu"))  # not the name "cpu": four batches are on their way
    assert np.allclose(embed_files(ahead, files), expected(encoder, files), atol=1e-6)


def test_equal_files_are_embedded_once(encoder: Encoder, network: Counted, files: list[Path], tmp_path: Path):
    copy = tmp_path / "copy.png"
    shutil.copy(files[0], copy)
    calls = []
    rows = embed_files(encoder, [files[0], files[1], copy, files[0]], advance=lambda: calls.append(1))
    assert network.count == 2
    assert len(calls) == 4
    assert np.array_equal(rows[0], rows[2])
    assert np.array_equal(rows[0], rows[3])
    assert not np.allclose(rows[0], rows[1])


def test_what_was_embedded_is_found_by_content(encoder: Encoder, network: Counted, files: list[Path], tmp_path: Path):
    first = embed_files(encoder, files)
    moved = [shutil.copy(file, tmp_path / file.name) for file in files]
    calls = []
    again = embed_files(encoder, [Path(file) for file in moved], advance=lambda: calls.append(1))
    assert np.array_equal(first, again)
    assert network.count == len(files) == len(calls)
    picture(99).save(files[0])  # other content under the old name
    assert not np.allclose(embed_files(encoder, files[:1])[0], first[0])
    embed_files(replace(encoder, identity="counted 2"), files[:1])
    assert network.count == len(files) + 2


def test_an_interrupted_run_keeps_its_batches(encoder: Encoder, network: Counted, files: list[Path]):
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed_files(encoder, files, advance=stop)
    assert network.count == embeddings.BATCH
    embed_files(encoder, files)
    assert network.count == len(files)


@pytest.mark.parametrize("damage", ["text", "empty", "header", "middle"])
def test_a_damaged_cache_is_replaced(encoder: Encoder, network: Counted, files: list[Path], damage: str):
    first = embed_files(encoder, files)
    content = cache_file().read_bytes()
    broken = {
        "text": b"this is no database" * 100,
        "empty": b"",
        "header": b"\0" * 100 + content[100:],
        "middle": content[:4096] + b"\xff" * (len(content) - 4096),
    }
    cache_file().write_bytes(broken[damage])
    assert np.allclose(embed_files(encoder, files), first, atol=1e-6)
    assert network.count == 2 * len(files)
    embed_files(encoder, files)
    assert network.count == 2 * len(files), "it works again"


@pytest.mark.parametrize("row", [b"", b"abc", b"\0" * 24, np.full(6, np.nan, "<f4").tobytes(), b"\0\0\x80?" * 3])
def test_a_damaged_row_is_made_again(encoder: Encoder, network: Counted, files: list[Path], row: bytes):
    first = embed_files(encoder, files[:3])
    with closing(sqlite3.connect(cache_file())) as database, database:
        database.execute("UPDATE rows SET row = ?", (row,))
    assert np.allclose(embed_files(encoder, files[:3]), first, atol=1e-6)
    assert network.count == 6


def test_a_cache_that_cannot_be_written_is_done_without(
    encoder: Encoder, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DREAMBOOTH_CACHE", str(tmp_path / "file"))
    assert embed_files(encoder, files[:2]).shape == (2, 6)
    (tmp_path / "other" / f"embeddings-{embeddings.VERSION}.sqlite").mkdir(parents=True)
    monkeypatch.setenv("DREAMBOOTH_CACHE", str(tmp_path / "other"))
    assert embed_files(encoder, files[:2]).shape == (2, 6)


def test_many_writers_share_the_cache(tmp_path: Path):
    """Each writer has a connection of its own, as processes have; sqlite locks the file between them."""
    cache = Cache(tmp_path / "shared.sqlite", "encoder")
    unit_6 = np.eye(6, dtype=np.float32)[0]

    def write(writer: int) -> None:
        for index in range(20):
            cache.write({Key(f"{writer}-{index}", ""): unit_6, Key("common", ""): unit_6})

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(write, range(6)))
    keys = [Key(f"{writer}-{index}", "") for writer in range(6) for index in range(20)]
    assert cache.read([*keys, Key("common", "")]).keys() == {*keys, Key("common", "")}
    assert not Cache(cache.file, "other").read(keys)


def test_a_picture_that_cannot_be_read_is_named(encoder: Encoder, files: list[Path], tmp_path: Path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(files[0].read_bytes()[:-700])
    text = tmp_path / "text.png"
    text.write_text("no picture")
    for bad in (broken, text, tmp_path / "absent.png", tmp_path):
        with pytest.raises(UserError, match=str(bad)) as error:
            embed_files(encoder, [*files, bad, *files])
        assert "\n" not in str(error.value)


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    """White on the left 25 of 40 columns, with a soft edge."""
    values_HW = np.zeros((30, 40), np.uint8)
    values_HW[:, :25] = 255
    values_HW[:, 25] = 102
    Image.fromarray(values_HW).save(tmp_path / "mask.png")
    return tmp_path / "mask.png"


@pytest.mark.parametrize("name", ["foreground", "background"])
def test_the_other_side_of_the_mask_is_grey(encoder: Encoder, files: list[Path], mask: Path, name: str, tmp_path: Path):
    rows = embed_files(encoder, files[:2], parts=[Part(name, mask), None])
    kept_HW = np.asarray(Image.open(mask), np.float64) / 255
    kept_HW = kept_HW if name == "foreground" else 1 - kept_HW
    pixels_HWC = np.asarray(Image.open(files[0]), np.float64)
    filled_HWC = pixels_HWC * kept_HW[..., None] + 127 * (1 - kept_HW[..., None])
    Image.fromarray(filled_HWC.round().astype(np.uint8)).save(tmp_path / "filled.png")
    assert np.allclose(rows, expected(encoder, [tmp_path / "filled.png", files[1]]), atol=2e-3)
    assert not np.allclose(rows[0], expected(encoder, files[:1])[0], atol=1e-2)


def test_the_part_and_the_masks_content_are_in_the_key(encoder: Encoder, files: list[Path], mask: Path):
    def row(part: Part | None) -> np.ndarray:
        return embed_files(encoder, files[:1], parts=[part])[0]

    whole, front, back = row(None), row(Part("foreground", mask)), row(Part("background", mask))
    Image.open(mask).point(lambda value: 255 - value).save(mask)
    assert np.allclose(row(Part("foreground", mask)), back, atol=1e-6)
    assert np.allclose(row(Part("background", mask)), front, atol=1e-6)
    assert np.array_equal(row(None), whole)
    assert not np.allclose(front, back, atol=1e-2)


def test_a_mask_that_does_not_fit_is_named(encoder: Encoder, files: list[Path], tmp_path: Path):
    small, black, white = tmp_path / "small.png", tmp_path / "black.png", tmp_path / "white.png"
    Image.new("L", (20, 30), 255).save(small)
    Image.new("L", (40, 30), 0).save(black)
    Image.new("L", (40, 30), 255).save(white)
    cases = [("foreground", small, "20 x 30 pixels"), ("foreground", black, "leaves no foreground")]
    cases += [("background", white, "leaves no background"), ("foreground", tmp_path / "no.png", "no.png")]
    for name, mask, message in cases:
        with pytest.raises(UserError, match=message):
            embed_files(encoder, files[:1], parts=[Part(name, mask)])


def test_no_files_or_parts_of_another_length_are_a_mistake_in_code(encoder: Encoder, files: list[Path]):
    with pytest.raises(ValueError, match="0 files"):
        embed_files(encoder, [])
    with pytest.raises(ValueError, match="2 files and 1 parts"):
        embed_files(encoder, files[:2], parts=[None])


def test_texts_are_in_order_whatever_their_number(encoder: Encoder):
    texts = ["a" * (index % 7) + "b" * (index % 5) for index in range(embeddings.BATCH + 3)]
    rows = embed_texts(encoder, texts)
    assert rows.dtype == np.float32
    assert np.allclose(rows, np.concatenate([encoder.embed_texts([text]).numpy() for text in texts]), atol=1e-6)
