"""The scores against plain loops, and what they must be whatever the encoder."""

from __future__ import annotations

import re
import sys
from dataclasses import fields
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from dreambooth import cli
from dreambooth.errors import UserError
from dreambooth.evaluation import metrics
from dreambooth.evaluation.metrics import Options


def unit(count: int, seed: int, width: int = 8) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, width)) + 0.5
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return sum(float(x) * float(y) for x, y in zip(a, b, strict=True))


def test_the_mean_is_the_mean_over_all_pairs_by_plain_loops() -> None:
    generated, real = unit(7, 0), unit(4, 1)
    pairs = [cosine(g, r) for g in generated for r in real]
    rows = metrics.to_references(generated, real)
    assert rows.shape == (7,)
    assert rows.mean() == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)
    assert rows[3] == pytest.approx(sum(cosine(generated[3], r) for r in real) / 4, abs=1e-6)


def test_every_rule_of_references() -> None:
    generated, real, held_out = unit(3, 0), unit(4, 1), unit(2, 2)
    fixed = metrics.to_references(generated, real, "fixed:2")
    np.testing.assert_allclose(fixed, [cosine(g, real[2]) for g in generated], atol=1e-6)
    unseen = metrics.to_references(generated, real, "held-out", held_out)
    np.testing.assert_allclose(unseen, metrics.to_references(generated, held_out), atol=1e-12)
    mean = real.astype(float).mean(axis=0)
    centroid = metrics.to_references(generated, real, "centroid")
    np.testing.assert_allclose(centroid * np.linalg.norm(mean), metrics.to_references(generated, real), atol=1e-6)
    assert np.linalg.norm(mean) < 0.99


@pytest.mark.parametrize("rule", ["some", "fixed", "fixed:-1", "fixed:x", "fixed:4", "held-out"])
def test_a_rule_that_cannot_be_followed_is_refused(rule: str) -> None:
    with pytest.raises(UserError, match="give"):
        metrics.to_references(unit(3, 0), unit(4, 1), rule)


def test_the_order_changes_nothing() -> None:
    generated, real, prompt = unit(12, 0), unit(5, 1), np.arange(12) // 4
    order = np.random.default_rng(2).permutation(12)
    for rows, shuffled in (
        (metrics.to_references(generated, real), metrics.to_references(generated[order], real[::-1])),
        (metrics.diversity(generated, prompt), metrics.diversity(generated[order], prompt[order])),
        (metrics.copying(generated, real).percentile_G, metrics.copying(generated[order], real[::-1]).percentile_G),
        (metrics.to_text(generated, unit(12, 3)), metrics.to_text(generated[order], unit(12, 3)[order])),
    ):
        np.testing.assert_allclose(rows[order], shuffled, atol=1e-7)


def test_identical_sets_score_one() -> None:
    same = np.repeat(unit(1, 0), 4, axis=0)
    np.testing.assert_allclose(metrics.to_references(same, same), 1, atol=1e-6)
    np.testing.assert_allclose(metrics.oracle(same, self_pairs=False), 1, atol=1e-6)
    np.testing.assert_allclose(metrics.diversity(same, np.zeros(4, int)), 0, atol=1e-6)


@pytest.mark.parametrize("photos", [2, 4, 6])
def test_self_pairs_raise_the_oracle_by_the_rest_over_n(photos: int) -> None:
    real = unit(photos, 0)
    alone, with_self = metrics.oracle(real, self_pairs=False).mean(), metrics.oracle(real, self_pairs=True).mean()
    pairs = [cosine(real[i], real[j]) for i in range(photos) for j in range(photos) if i != j]
    assert alone == pytest.approx(np.mean(pairs), abs=1e-6)
    assert with_self == pytest.approx(alone + (1 - alone) / photos, abs=1e-6)


def test_a_single_photo_has_no_oracle() -> None:
    assert np.isnan(metrics.oracle(unit(1, 0), self_pairs=False)).all()
    assert metrics.oracle(unit(1, 0), self_pairs=True) == pytest.approx(1, abs=1e-6)


def test_the_text_score_pairs_each_picture_with_its_text_and_is_never_scaled_unasked() -> None:
    generated, text = unit(5, 0), unit(5, 1)
    plain = [cosine(g, t) for g, t in zip(generated, text, strict=True)]
    np.testing.assert_allclose(metrics.to_text(generated, text), plain, atol=1e-6)
    np.testing.assert_allclose(metrics.to_text(generated, text, scale=2.5), np.multiply(plain, 2.5), atol=1e-6)
    with pytest.raises(ValueError, match="5 pictures and 4 texts"):
        metrics.to_text(generated, text[:4])


def test_diversity_is_the_mean_over_unordered_pairs_of_a_prompt() -> None:
    generated, prompt = unit(9, 0), np.array([0, 1, 0, 1, 0, 1, 0, 1, 2])
    rows = metrics.diversity(generated, prompt)
    for which in (0, 1):
        members = np.flatnonzero(prompt == which)
        pairs = [1 - cosine(generated[i], generated[j]) for i in members for j in members if i < j]
        assert len(pairs) == 6
        assert rows[prompt == which].mean() == pytest.approx(np.mean(pairs), abs=1e-6)
    assert np.isnan(rows[8])


def test_a_copy_ranks_above_every_photo_and_a_stranger_below() -> None:
    real = unit(5, 0)
    stranger = -real.mean(axis=0) / np.linalg.norm(real.mean(axis=0))
    found = metrics.copying(np.stack([real[3], stranger]), real)
    assert found.photo_G[0] == 3
    np.testing.assert_allclose(found.similarity_G[0], 1, atol=1e-6)
    np.testing.assert_array_equal(found.percentile_G, [100, 0])
    assert found.excess_G[0] > 0 > found.excess_G[1]


def test_the_percentile_by_plain_loops() -> None:
    generated, real = unit(20, 0), unit(5, 1)
    own = {
        "nearest": [max(cosine(real[i], real[j]) for j in range(5) if j != i) for i in range(5)],
        "pairs": [cosine(real[i], real[j]) for i in range(5) for j in range(i)],
    }
    for spread, values in own.items():
        found = metrics.copying(generated, real, spread)  # type: ignore[arg-type]
        nearest = [max(cosine(g, r) for r in real) for g in generated]
        below = [100 * sum(value < one for value in values) / len(values) for one in nearest]
        np.testing.assert_allclose(found.percentile_G, below)
        np.testing.assert_allclose(found.excess_G, np.subtract(nearest, max(values)), atol=1e-6)


def test_pictures_like_new_photos_have_a_percentile_about_the_middle() -> None:
    rng, percentiles, above = np.random.default_rng(0), {"nearest": [], "pairs": []}, []
    for _ in range(400):
        rows = 1 + rng.normal(size=(7, 16))
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        for spread, found in percentiles.items():
            found.append(metrics.copying(rows[:1], rows[1:], spread).percentile_G[0])  # type: ignore[arg-type]
        found = metrics.copying(rows[:1], rows[1:])
        above.append(found.excess_G[0] > 0)
    assert found.chance == pytest.approx(2 / 7)
    assert np.mean(above) == pytest.approx(found.chance, abs=0.06)
    assert 45 < np.mean(percentiles["nearest"]) < 60
    assert np.mean(percentiles["pairs"]) > 75


def test_ties_count_half() -> None:
    axes = np.eye(3)
    assert metrics.copying(axes[:1], axes[1:]).percentile_G == [50]


def test_one_photo_has_no_spread() -> None:
    found = metrics.copying(unit(2, 0), unit(1, 1))
    assert np.isnan(found.percentile_G).all()
    assert np.isnan(found.excess_G).all()


def test_the_gap_is_there_for_copies_of_the_photos_and_not_for_the_subject() -> None:
    rng = np.random.default_rng(0)
    photos = 3 + rng.normal(size=(200, 1024))
    photos /= np.linalg.norm(photos, axis=1, keepdims=True)
    trained, held_out, fresh = photos[:4], photos[4:8], photos[8:]
    assert metrics.held_out_gap(trained, trained, held_out).min() > 0.01
    assert abs(metrics.held_out_gap(fresh, trained, held_out).mean()) < 0.01
    by_hand = np.mean([cosine(fresh[0], r) for r in trained]) - np.mean([cosine(fresh[0], r) for r in held_out])
    assert metrics.held_out_gap(fresh, trained, held_out)[0] == pytest.approx(by_hand, abs=1e-6)


def test_change_is_tuned_minus_frozen_row_by_row() -> None:
    tuned, frozen, real, prompt = unit(6, 0), unit(6, 1), unit(3, 2), np.arange(6) // 3
    rows = metrics.change(tuned, frozen, real)
    by_hand = np.mean([cosine(tuned[5], r) - cosine(frozen[5], r) for r in real])
    assert rows[5] == pytest.approx(by_hand, abs=1e-6)
    np.testing.assert_allclose(metrics.change(frozen, tuned, real), -rows)
    collapsed = np.repeat(unit(1, 3), 6, axis=0)
    assert (metrics.diversity_change(collapsed, frozen, prompt) < 0).all()
    with pytest.raises(ValueError, match="same prompts and seeds"):
        metrics.change(tuned[:5], frozen, real)


def test_rows_that_are_no_unit_rows_are_refused_by_number() -> None:
    for wrong in (2.0, 0.0, np.nan):
        rows = unit(4, 0)
        rows[2] *= wrong
        with pytest.raises(ValueError, match="row 2"):
            metrics.to_references(rows, unit(3, 1))
    with pytest.raises(ValueError, match="shape"):
        metrics.to_references(np.empty((0, 8)), unit(3, 1))


def test_the_defaults_are_the_papers_and_go_into_a_manifest() -> None:
    assert Options().as_json() == {
        "references": "all",
        "text": "class",
        "scale": 1.0,
        "diversity": "dino",
        "spread": "nearest",
    }
    assert Options(**Options(references="fixed:2").as_json()) == Options(references="fixed:2")


@pytest.mark.parametrize(
    "wrong", [{"references": "most"}, {"text": "caption"}, {"diversity": "ssim"}, {"spread": "x"}, {"scale": 0}]
)
def test_what_is_no_option_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError, match="give"):
        Options(**wrong)  # type: ignore[arg-type]


def test_the_documented_options_are_there_and_those_without_a_flag_are_marked() -> None:
    page = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    section = page.partition("### Options")[2].partition("\n###")[0]
    rows = re.findall(r"^\| `(\w+)`( \(\*Python\*\))? \|", section, re.MULTILINE)
    flags = {name for argument in cli.app["evaluate"].assemble_argument_collection() for name in argument.names}
    assert [name for name, _ in rows] == [field.name for field in fields(Options)]
    marked = {name for name, mark in rows if mark}
    assert marked == {name for name, _ in rows if f"--{name.replace('_', '-')}" not in flags}


def test_lpips_that_is_not_installed_is_said_with_the_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(UserError, match=r"pip install 'dreambooth\[lpips\]'"):
        metrics.load_lpips()


class MeanDifference(torch.nn.Module):
    """In the place of LPIPS: the absolute difference of the mean pixel, of one picture each."""

    def __init__(self, net: str, verbose: bool) -> None:
        super().__init__()
        assert net == "alex"
        assert not verbose

    def forward(self, one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
        assert one.shape == two.shape == (1, 3, metrics.LPIPS_SIDE, metrics.LPIPS_SIDE)
        assert one.min() >= -1
        assert one.max() <= 1
        return (one.mean() - two.mean()).abs()[None, None, None, None]


def test_lpips_is_asked_for_every_pair_of_a_prompt_in_its_range(monkeypatch: pytest.MonkeyPatch) -> None:
    stub = ModuleType("lpips")
    stub.LPIPS = MeanDifference  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lpips", stub)
    greys = [0, 51, 255, 102, 102]
    images = [Image.new("RGB", (40 + grey, 30), (grey, grey, grey)) for grey in greys]
    rows = metrics.lpips_diversity(images, np.array([0, 0, 0, 1, 1]), metrics.load_lpips())
    np.testing.assert_allclose(rows[:3], [(0.4 + 2) / 2, (0.4 + 1.6) / 2, (2 + 1.6) / 2], atol=1e-5)
    np.testing.assert_allclose(rows[3:], 0, atol=1e-6)
