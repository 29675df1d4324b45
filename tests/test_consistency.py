"""Consistency guidance through the commands: what is drawn with it, what is not, and what it is refused for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dreambooth.evaluation.material import Plan, gather
from dreambooth.run import Run
from tests.calls import call, train
from tests.commands import make_photos

FAR = {"learning_rate": 0.05, "allow": "learning-rate", "steps": 4}
"""Enough for a picture to change."""


@pytest.fixture(scope="module")
def run(tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    home = tmp_path_factory.mktemp("consistency")
    done = train(make_photos(home / "photos"), tiny_sd, out=home / "run", consistency=0.4, samples=1, **FAR)
    assert done.status == 0, done
    return Run(home / "run")


def drawn(target: object, out: Path, *more: object) -> tuple[dict[str, Any], np.ndarray]:
    done = call("generate", target, "a dog", "--out", out, "--inference-steps", 4, *more)
    assert done.status == 0, done
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    return manifest, np.asarray(Image.open(out / manifest["images"][0]["file"])).astype(int)


def test_a_run_draws_as_its_recipe_says_unless_told_otherwise(run: Run, tiny_sd: Path, tmp_path: Path) -> None:
    own, pictures = drawn(run.path, tmp_path / "own")
    none, frozen = drawn(run.path, tmp_path / "none", "--consistency", 0)
    whole, trained = drawn(run.path, tmp_path / "whole", "--consistency", 1)
    plain, _ = drawn(run.path, tmp_path / "plain", "--consistency", "off")
    assert "consistency" not in plain
    assert [manifest["consistency"] for manifest in (own, none, whole)] == [0.4, 0.0, 1.0]
    base, expected = drawn(tiny_sd, tmp_path / "base", "--guidance", own["guidance"], "--sampler", own["sampler"])
    assert "consistency" not in base
    assert np.abs(frozen - expected).max() <= 1
    assert np.abs(trained - frozen).max() > np.abs(pictures - frozen).max() > 1


def test_the_runs_own_pictures_tell_it_and_frozen_ones_know_nothing_of_it(run: Run) -> None:
    assert json.loads((run.samples / "manifest.json").read_text(encoding="utf-8"))["consistency"] == 0.4
    material = gather(run, Plan(count=1, class_count=1, siblings=0))
    assert material.tuned.identity["sampling"]["consistency"] == 0.4
    assert "consistency" not in material.frozen.identity["sampling"]


def test_a_finished_run_says_that_it_draws_as_it_did(run: Run, tiny_sd: Path) -> None:
    again = train(run.path.parent / "photos", tiny_sd, out=run.path, consistency=0.7, samples=1, **FAR)
    assert again.status == 0, again
    assert "its pictures stay as they are, by another --consistency: `dreambooth generate` draws others" in again.err
    assert run.recipe.consistency == 0.4


def test_it_is_refused_where_nothing_can_be_switched_off(run: Run, tiny_sd: Path, tmp_path: Path) -> None:
    refused = call("generate", tiny_sd, "a dog", "--consistency", 0.4)
    assert refused.refusal == f"{tiny_sd} has no LoRA: give --consistency off, or leave it out"
    done = train(run.path.parent / "photos", tiny_sd, out=tmp_path / "full", method="full")
    assert done.status == 0, done
    refused = call("generate", tmp_path / "full", "a dog", "--consistency", 0.4)
    assert refused.refusal.startswith(f"{tmp_path / 'full'} is no run of a LoRA of the denoiser alone")
    assert call("generate", run.path, "a dog", "--consistency", -1).refusal == "--consistency -1.0: give at least 0"
