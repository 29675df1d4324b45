"""Several subjects: how far one went towards another is measured as planted, and told."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dreambooth.evaluation.leakage import Drawn, finding, leaks
from dreambooth.planning import make_plans
from dreambooth.recipe import Recipe
from dreambooth.run import Run
from tests import calls
from tests.commands import make_photos

TEXTS = ["a x dog", "a y mug", "a dog", "a mug"]


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def planted(leak: float) -> list[np.ndarray]:
    """Directions: the dog, the mug, and what classes look like; "a y mug" went so far towards the dog."""
    draw = np.random.default_rng(0)
    dog, mug, plain = np.eye(16)[:3]

    def pictures(direction: np.ndarray) -> np.ndarray:
        return unit(direction + 0.02 * draw.normal(size=(8, 16)))

    return [pictures(dog), pictures(unit(mug + leak * dog)), pictures(plain), pictures(plain)]


def photos() -> list[np.ndarray]:
    return [np.eye(16)[[index] * 4] for index in range(2)]


def frozen() -> list[np.ndarray]:
    return [np.eye(16)[[2] * 8] for _ in range(2)]


def test_a_planted_leak_is_found_where_it_is() -> None:
    found = {(leak.text, leak.towards): leak.share for leak in leaks(Drawn(TEXTS, planted(0.5), frozen(), photos()))}
    assert set(found) == {(text, towards) for text in TEXTS for towards in (0, 1)} - {(TEXTS[0], 0), (TEXTS[1], 1)}
    expected = 0.5 / np.sqrt(1.25)
    assert found["a y mug", 0].value == pytest.approx(expected, abs=0.03)
    assert found["a y mug", 0].low is not None
    for key, share in found.items():
        if key != ("a y mug", 0):
            assert abs(share.value) < 0.05


@pytest.mark.parametrize(("leak", "level"), [(0.0, "good"), (0.2, "watch"), (0.8, "bad")])
def test_the_worst_is_told(leak: float, level: str) -> None:
    told = finding(leaks(Drawn(TEXTS, planted(leak), frozen(), photos())), ["dog", "mug"])
    assert told.level == level
    if level != "good":
        assert '"a y mug"' in told.text
        assert "towards the dog" in told.text


def test_of_what_was_not_learned_nothing_can_be_told() -> None:
    told = finding(leaks(Drawn(TEXTS, [*frozen(), *frozen()], frozen(), photos())), ["dog", "mug"])
    assert told.level == "unknown"


def test_two_subjects_from_the_command_line(tiny_sd: Path, tmp_path: Path) -> None:
    for index, name in enumerate(("one", "two")):
        torch.manual_seed(index)
        make_photos(tmp_path / name)
    named = (f"phol={tmp_path / 'one'}:dog", f"{tmp_path / 'two'}:mug")
    done = calls.call(
        "train", *named, "--model", tiny_sd, "--out", tmp_path / "run", *calls.flags(inference_steps=2, samples=1)
    )
    assert done.status == 0, done
    recipe = Run.open(tmp_path / "run").recipe
    assert [subject.class_noun for subject in recipe.subjects] == ["dog", "mug"]
    assert recipe.subjects[0].identifier == "phol"
    assert recipe.subjects[1].identifier not in (None, "phol")
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "<h1>a <span>[V]</span> dog, a <span>[V2]</span> mug</h1>" in page
    assert "“a dog” and “a mug”, before and after" in page
    drawn = json.loads((tmp_path / "run" / "samples" / "manifest.json").read_text())["images"]
    assert {each["prompt"] for each in drawn if each["kind"] == "subject"} == {"a [V] dog", "a [V2] mug"}
    assert sum(each["prompt"].startswith("a [V2] mug ") for each in drawn) == 4  # of five scenes, one is a painting
    (tmp_path / "p.yaml").write_text("- a [V] dog in the snow\n")
    encoders = ("--identity-encoder", "toybox-identity", "--clip-encoder", "toybox-clip")
    plan = ("--prompts", tmp_path / "p.yaml", "--count", 2, "--class-count", 3)
    assert calls.call("evaluate", tmp_path / "run", *plan, *encoders).status == 0
    document = json.loads((tmp_path / "run" / "evaluation" / "evaluation.json").read_text())
    assert len(document["leakage"]) == 2 * 4 - 2
    assert document["findings"][-1]["name"] == "leakage"


def test_each_of_several_subjects_has_the_steps_of_one(tiny_sd: Path, tmp_path: Path) -> None:
    subjects = [{"photos": make_photos(tmp_path / name), "class_noun": "dog"} for name in ("one", "two")]
    single, both = (
        make_plans(Recipe.of({"model": str(tiny_sd), "subjects": some})) for some in (subjects[:1], subjects)
    )
    assert single.recipe.steps
    assert both.recipe.steps == 2 * single.recipe.steps
    assert both.reasons["steps"].endswith(f": {single.recipe.steps} for each of 2 subjects")


def test_one_class_for_two_subjects_is_refused(tmp_path: Path) -> None:
    folders = [make_photos(tmp_path / name) for name in ("one", "two")]
    assert "write NAME=FOLDER:NOUN" in calls.call("train", *folders, "--class", "dog").refusal
