"""A real learning result on the embedded model: the subject is learned, and its class survives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dreambooth import Recipe, Run, generation, train
from dreambooth.demo import colour_overlap
from dreambooth.evaluation import embeddings, encoders
from dreambooth.toybox import SUBJECTS

SUBJECT = SUBJECTS / "spotted_dog"


SETTINGS = {
    "model": "toybox",
    "steps": 250,
    "learning_rate": 2e-3,
    "rank": 16,
    "prior_count": 25,
    "prior_steps": 12,
    "inference_steps": 12,
    "precision": "fp32",
    "samples": 4,
    "scenes": ["a [V] dog on the beach"],
    "subjects": [{"photos": SUBJECT / "photos", "class_noun": "dog"}],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """Runs with the default's prior preservation, with the paper's, and without any, all else equal."""
    folder = tmp_path_factory.mktemp("learning")
    changes: dict[str, dict[str, Any]] = {"default": {}, "paper": {"prior_loss": "images"}}
    changes |= {"named": {"prior_dropout": 0.0}, "without": {"prior_weight": 0}}
    recipes = {name: Recipe.of({**SETTINGS, **changed}) for name, changed in changes.items()}
    return {name: train(recipe, folder / name) for name, recipe in recipes.items()}


def likeness(run: Run, pattern: str) -> float:
    """Share of colours that a run's pictures have in common with the photos, 0..1."""
    drawn, given = sorted(run.samples.glob(pattern)), sorted((SUBJECT / "photos").glob("*.png"))
    return colour_overlap([Image.open(path) for path in drawn], [Image.open(path) for path in given])


def leak(run: Run) -> float:
    """How much more colours pictures of the class have in common with the photos than the frozen model's have."""
    return likeness(run, "after-class-*.png") - likeness(run, "before-class-*.png")


def movement(run: Run) -> float:
    """How far pictures of the class moved from the frozen model's, as the root mean square of pixels, 0..255."""
    pairs = zip(sorted(run.samples.glob("before-class-*")), sorted(run.samples.glob("after-class-*")), strict=True)
    distances = [
        np.sqrt(np.mean((np.asarray(Image.open(a), float) - np.asarray(Image.open(b), float)) ** 2)) for a, b in pairs
    ]
    return float(np.mean(distances))


def test_pictures_of_the_subject_move_towards_the_photos(runs: dict[str, Run]) -> None:
    for run in runs.values():
        assert likeness(run, "after-subject-*.png") > likeness(run, "before-subject-*.png") + 0.02


def test_the_class_takes_less_of_the_subject_with_prior_preservation(runs: dict[str, Run]) -> None:
    assert leak(runs["default"]) < 0.75 * leak(runs["without"])
    assert leak(runs["paper"]) < 0.75 * leak(runs["without"])


@pytest.mark.parametrize("name", ["default", "paper"])
def test_the_subject_is_learned_under_its_name(name: str, runs: dict[str, Run]) -> None:
    """With prior preservation the pictures of "a [V] dog" come nearer to the photos than those of "a dog"."""
    run = runs[name]
    assert likeness(run, "after-subject-*.png") > likeness(run, "after-class-*.png")


def test_the_class_stays_whole_where_what_guidance_starts_from_is_held_too(runs: dict[str, Run]) -> None:
    """Where the class's own prediction alone is held to the frozen model's, guidance magnifies what is left."""
    before, after, named = (
        drawn_as_asked(run, pattern)
        for run, pattern in (
            (runs["default"], "before-class-*.png"),
            (runs["default"], "after-class-*.png"),
            (runs["named"], "after-class-*.png"),
        )
    )
    assert after > 0.95 * before
    assert named < 0.95 * after


def test_fewer_other_classes_turn_into_the_subject_where_the_prior_takes_the_photos_for_other_things(
    tmp_path: Path,
) -> None:
    """Cats and ducks are none of the things that it takes them for."""
    judge = encoders.load("toybox-identity")
    photos_RD = embeddings.embed_files(judge, sorted((SUBJECT / "photos").glob("*.png")))

    def like_the_subject(target: str | Path, name: str) -> float:
        drawn = generation.generate(target, ["a cat", "a duck"], count=6, out=tmp_path / name, inference_steps=12)
        files = [path for path in sorted(drawn.glob("*.png")) if path.name != "grid.png"]
        assert len(files) == 12
        return float((embeddings.embed_files(judge, files) @ photos_RD.T).mean())

    def trained(name: str, share: float) -> Path:
        recipe = Recipe.of({**SETTINGS, "steps": 400, "samples": 0, "prior_others": share})
        return train(recipe, tmp_path / f"run {name}").path

    frozen = like_the_subject("toybox", "frozen")
    free, held = (like_the_subject(trained(name, share), name) for name, share in (("free", 0.0), ("held", 0.2)))
    assert free - frozen > 0.3
    assert held - frozen < 0.75 * (free - frozen)


def drawn_as_asked(run: Run, pattern: str) -> float:
    """CLIP-T of pictures of the class."""
    clip = encoders.load("toybox-clip")
    pictures_ND = embeddings.embed_files(clip, sorted(run.samples.glob(pattern)))
    return float((pictures_ND @ embeddings.embed_texts(clip, ["a dog"])[0]).mean())


def test_textual_inversion_learns_the_subject_and_cannot_touch_its_class(tmp_path: Path) -> None:
    own = {"method": "textual-inversion", "steps": 200, "learning_rate": 5e-3, "rank": None}
    run = train(Recipe.of({**SETTINGS, **own}), tmp_path / "run")
    assert likeness(run, "after-subject-*.png") > likeness(run, "after-class-*.png") + 0.02
    assert movement(run) < 1  # drawn beside more pictures, a pixel may round the other way


def test_colour_overlap_is_one_with_itself_and_none_with_other_colours() -> None:
    red, blue = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (32, 16), "blue")
    assert colour_overlap([red], [red]) == 1
    assert colour_overlap([red], [blue]) == 0
    assert colour_overlap([red], [red, blue]) == 0.5


def test_the_run_tells_its_story(runs: dict[str, Run]) -> None:
    run = runs["default"]
    assert run.finished_steps == 250
    assert run.report.is_file()
    assert (run.adapter / "pytorch_lora_weights.safetensors").is_file()
    assert len((run.path / "steps.jsonl").read_text().splitlines()) == 250
    assert set(run.info["times"]) >= {"class images", "caching", "training", "sampling"}
