from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dreambooth.pages import Score, load_picture, number, percent


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.70135, "0.701"), (0.9996, "1.000"), (-0.0213, "−0.021"), (-0.0001, "0.000"), (2, "2.000")],
)
def test_numbers(value: float, text: str):
    assert number(value) == text


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf, "0.5", True, [0.5], {}])
def test_what_is_no_finite_number_is_never_shown_as_one(value: object):
    assert number(value) == "none"
    assert percent(value) == "none"
    assert Score.read(value) == Score()
    assert Score.read({"value": value, "low": value, "high": value, "n": 3}) == Score(n=3)


def test_a_score_never_stands_without_words_on_its_interval():
    assert str(Score.read({"value": 0.7, "low": 0.6, "high": 0.75, "n": 100})) == "0.700 (0.600 to 0.750)"
    assert str(Score.read({"value": 0.7, "low": None, "high": 0.75})) == "0.700 (interval unknown)"
    assert str(Score.read(0.7)) == "0.700 (interval unknown)"
    assert str(Score.read({"value": None, "low": 0.6, "high": 0.7})) == "not measured"


def test_a_zero_is_a_score():
    assert str(Score.read({"value": 0.0, "low": 0.0, "high": 0.0})) == "0.000 (0.000 to 0.000)"


def test_pictures_larger_than_asked_are_scaled_and_smaller_ones_stay_as_they_are(tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 256, (512, 256, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    small = load_picture(tmp_path / "a.png", "alt", "", side=100)
    assert small.size == (50, 100)
    assert small.src.startswith("data:image/webp;base64,")
    assert len(small.src) < 15_000
    Image.fromarray(pixels[:64, :64]).save(tmp_path / "b.png")
    assert load_picture(tmp_path / "b.png", "alt", "", side=100) == load_picture(tmp_path / "b.png", "alt", "")


@pytest.mark.parametrize("name", ["gone.png", "no\0name.png", "x" * 5000, "."])
def test_no_name_of_a_file_breaks_the_page(tmp_path: Path, name: str):
    shown = load_picture(tmp_path / name, "alt", "", side=100)
    assert shown.missing
    assert not shown.src
