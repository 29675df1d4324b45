"""A real learning result on the embedded model: the subject is learned, and with prior preservation its class survives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dreambooth import Recipe, Run, families, methods, photos, train
from dreambooth.heldout import denoising_error
from dreambooth.models import resolve
from dreambooth.toybox import SUBJECTS

SUBJECT = SUBJECTS / "spotted_dog"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """One run with prior preservation and one without, all else equal."""
    folder = tmp_path_factory.mktemp("learning")
    settings = {
        "model": "toybox",
        "steps": 150,
        "learning_rate": 2e-3,
        "rank": 16,
        "prior_count": 25,
        "prior_steps": 12,
        "inference_steps": 12,
        "samples": 4,
        "scenes": ["a [V] dog on the beach"],
        "subjects": [{"photos": SUBJECT / "photos", "class_noun": "dog"}],
    }
    recipes = {"with prior": Recipe.of(settings), "without": Recipe.of({**settings, "prior_weight": 0})}
    return {name: train(recipe, folder / name) for name, recipe in recipes.items()}


def colours(paths: list[Path]) -> np.ndarray:
    """Share of the pixels of each picture in each of 4 x 4 x 4 colours."""
    histograms = []
    for path in paths:
        pixels = np.asarray(Image.open(path).convert("RGB").resize((64, 64))) // 64
        index = pixels[..., 0] * 16 + pixels[..., 1] * 4 + pixels[..., 2]
        histograms.append(np.bincount(index.ravel(), minlength=64) / index.size)
    return np.stack(histograms)


def likeness(run: Run, pattern: str) -> float:
    """Mean overlap of the colours of a run's pictures with those of the photos, 0..1."""
    drawn, given = colours(sorted(run.samples.glob(pattern))), colours(sorted((SUBJECT / "photos").glob("*.png")))
    return float(np.minimum(drawn[:, None], given[None]).sum(-1).mean())


def movement(run: Run) -> float:
    """How far pictures of the class moved from the frozen model's, as the root mean square of pixels, 0..255."""
    pairs = zip(sorted(run.samples.glob("before-class-*")), sorted(run.samples.glob("after-class-*")), strict=True)
    distances = [
        np.sqrt(np.mean((np.asarray(Image.open(a), float) - np.asarray(Image.open(b), float)) ** 2)) for a, b in pairs
    ]
    return float(np.mean(distances))


def errors(run: Run | None, pictures: str, prompt: str) -> float:
    source = resolve("toybox")
    family = families.get(source.family)
    if run is None:
        pipe = family.load(source, torch.float32)
    else:
        pipe = methods.get("lora").load(family, source, run.recipe, run.adapter)
    return denoising_error(pipe, family, photos.usable(photos.read(SUBJECTS / pictures / "truth", 64)), prompt, 64)


def test_pictures_of_the_subject_move_towards_the_photos(runs: dict[str, Run]) -> None:
    for run in runs.values():
        assert likeness(run, "after-subject-*.png") > likeness(run, "before-subject-*.png") + 0.02


def test_the_class_moves_less_with_prior_preservation(runs: dict[str, Run]) -> None:
    assert movement(runs["with prior"]) < 0.8 * movement(runs["without"])


def test_it_learned_the_subject_and_not_only_its_photos(runs: dict[str, Run]) -> None:
    """The loss on renders of the subject in places that no photo shows falls under its name."""
    for run in runs.values():
        prompt = f"a {run.info['identifier']} dog"
        assert errors(run, "spotted_dog", prompt) < 0.98 * errors(None, "spotted_dog", prompt)


def test_the_run_tells_its_story(runs: dict[str, Run]) -> None:
    run = runs["with prior"]
    assert run.finished_steps == 150
    assert run.report.is_file()
    assert (run.adapter / "pytorch_lora_weights.safetensors").is_file()
    assert len((run.path / "steps.jsonl").read_text().splitlines()) == 150
    assert set(run.info["times"]) >= {"class images", "caching", "training", "sampling"}
