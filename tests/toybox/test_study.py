"""Studies: what is measured is kept, what is kept is joined rightly, and claims are judged by their intervals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dreambooth import photos, presets
from dreambooth.evaluation.scoring import Grid
from dreambooth.evaluation.statistics import Estimate, Scores, estimate
from dreambooth.progress import Silent
from dreambooth.toybox import reproduction, stock, study
from dreambooth.toybox.reproduction import ARMS, CLAIMS, COLUMNS, DESCRIBED, verdict, write_up
from dreambooth.toybox.study import Arm, Rows, Study, difference, merge

SUBJECTS = ["a", "b", "c", "d", "e", "f"]


def rows(level: float, shift: float = 0.0, names: tuple[str, ...] = COLUMNS) -> Rows:
    """Scores of six subjects that differ far more from one another than `shift` is."""
    found = []
    for index, subject in enumerate(SUBJECTS):
        values = level + shift * (1 + 0.1 * index) + index + np.array([0.0, 0.1, -0.1, 0.05])
        found.append(dict.fromkeys(names, Grid(subject, ("x", "y"), (0, 1)).scores(values)))
    return merge(found)


def test_a_cell_is_measured_once_and_its_figures_are_those_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arm = Arm("short", {"steps": 1, "prior_weight": 0.0, "inference_steps": 2, "rank": 2})
    made = Study(tmp_path, scenes=3, count=2, archive=tmp_path / "cells.jsonl")
    made.run([arm], ["spotted_dog"], [5], Silent())
    made.archive.unlink()  # as if it had been interrupted before the cell was kept
    first = made.run([arm], ["spotted_dog"], [5], Silent())["short"]
    monkeypatch.setattr(study, "train", lambda *given: pytest.fail("trained again"))
    again = made.run([arm], ["spotted_dog"], [5], Silent())["short"]
    assert estimate(first["dino"]) == estimate(again["dino"])
    assert len(first["dino"].value_N) == 3 * 2
    assert set(first["dino"].seed_N) == {5000, 5001}
    assert not (made.trained(arm, "spotted_dog", 5) / "checkpoints").exists()
    assert (np.abs(first["truth"].value_N) <= 1).all()
    assert made.cost(arm, "spotted_dog", 5).seconds > 0
    assert made.cost(arm, "spotted_dog", 5).megabytes > 10


def test_a_cell_that_lacks_a_row_which_is_asked_for_is_measured_again(tmp_path: Path) -> None:
    arm = Arm("short", {"steps": 1, "prior_weight": 0.0, "inference_steps": 2, "rank": 2})
    made = Study(tmp_path, scenes=1, count=1, archive=tmp_path / "cells.jsonl")
    first = made.run([arm], ["spotted_dog"], [0], Silent())["short"]
    (cell,) = map(json.loads, made.archive.read_text().splitlines())
    del cell["rows"]["class_kept"]
    made.archive.write_text(json.dumps(cell) + "\n")
    assert "class_kept" not in made.run([arm], ["spotted_dog"], [0], Silent())["short"]
    again = replace(made, asked=("class_kept",)).run([arm], ["spotted_dog"], [0], Silent())["short"]
    assert np.array_equal(again["class_kept"].value_N, first["class_kept"].value_N)
    assert len(made.archive.read_text().splitlines()) == 2
    beside = replace(made, siblings=1).run([arm], ["spotted_dog"], [0], Silent())["short"]
    assert len(beside["others_way"].value_N) == len(beside["class_way"].value_N) == 1
    assert "others_way" not in first
    assert np.array_equal(beside["dino"].value_N, first["dino"].value_N)


def test_a_cell_of_other_defaults_is_another_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Study(tmp_path, archive=tmp_path / "cells.jsonl")
    arm, seen = Arm("plain"), set()
    for name, value in {"rank": 3, "steps": 7, "guidance": 2.0, "consistency": 0.4}.items():
        seen |= {made.key(arm, "spotted_dog", 0), made.key(Arm("plain", {name: value}), "spotted_dog", 0)}
    assert len(seen) == 5
    assert made.key(arm, "spotted_dog", 1) not in seen
    assert replace(made, count=3).key(arm, "spotted_dog", 0) not in seen
    preset = presets.TRAINING["toybox", "lora"]
    monkeypatch.setitem(presets.TRAINING, ("toybox", "lora"), replace(preset, values={**preset.values, "rank": 5}))
    assert made.key(arm, "spotted_dog", 0) not in seen


def test_masks_lie_beside_their_photos(tmp_path: Path) -> None:
    made = Study(tmp_path)
    masked = made.recipe(Arm("masked", masked=True), "spotted_dog", 0)
    found = photos.usable(photos.read(masked.subjects[0].photos, 64))
    assert len(found) == len(list((study.SUBJECTS / "spotted_dog" / "photos").glob("*.png")))
    for photo in found:
        assert photo.mask_path is not None
        subject = photos.crop_mask(photo, (64, 64)) > 127
        assert 0.02 < subject.mean() < 0.9
    assert made.key(Arm("masked", masked=True), "spotted_dog", 0) != made.key(Arm("plain"), "spotted_dog", 0)


def test_the_scenes_are_spread_over_the_papers_list(tmp_path: Path) -> None:
    text = Study(tmp_path).prompts("spotted_dog").read_text()
    assert len(text.splitlines()) == 10
    assert "in the jungle" in text
    assert "cube shaped" in text
    assert "outfit" in text


def test_pairs_of_two_trainings_are_not_one_set() -> None:
    pairs = Grid("a", ("x",), (0, 1)).scores(np.array([0.1, 0.1]), pairs=True)
    document = {"div": {"value": [0.1, 0.1], "prompt": [0, 0], "seed": [0, 1], "pairs": True}}
    one, two = (dict(study._scores(document, "a", seed))["div"] for seed in (1, 2))
    assert not set(one.prompt_N) & set(two.prompt_N)
    assert np.array_equal(one.value_N, pairs.value_N)


def test_a_difference_is_taken_within_each_subject() -> None:
    apart = difference(rows(1, 0.2)["dino"], rows(1)["dino"])
    assert apart.value == pytest.approx(0.2 * 1.25)
    assert apart.low is not None
    assert apart.low > 0.1
    assert verdict(apart) == "holds"
    assert verdict(difference(rows(1)["dino"], rows(1, 0.2)["dino"])) == "contradicted"


def test_nothing_is_claimed_without_an_interval() -> None:
    assert verdict(Estimate(1.0, None, None, 3)) == "open"
    assert verdict(Estimate(1.0, -0.1, 2.0, 3)) == "open"


def test_the_page_has_a_verdict_for_every_claim_and_a_row_for_every_arm() -> None:
    names = (*COLUMNS, "oracle_dino", "floor_dino", "oracle_clip_i", "floor_clip_i", "ceiling_clip_t", "ceiling_div")
    names += ("pres_frozen",)
    found = {arm.name: rows(1, names=names) for arm in ARMS} | {DESCRIBED: rows(1, names=names)}
    claim = CLAIMS[5]
    better = replace(found[claim.greater[0]][claim.greater[1]])
    found[claim.greater[0]] = found[claim.greater[0]] | {claim.greater[1]: _lifted(better)}
    lines = write_up(found, "six subjects").splitlines()
    told = [line for line in lines if any(f"| {each.text} |" in line for each in CLAIMS)]
    assert len(told) == len(CLAIMS)
    assert [line.endswith("holds |") for line in told].index(True) == 5
    assert all(any(line.startswith(f"| {arm.name} |") for line in lines) for arm in ARMS)
    assert any("real photos in 0 of 6 trainings." in line for line in lines)


def _lifted(scores: Scores) -> Scores:
    names = list(dict.fromkeys(scores.subject_N))
    lift = np.array([0.3 + 0.01 * names.index(name) for name in scores.subject_N])
    return replace(scores, value_N=scores.value_N + lift)


def test_a_description_names_colours_and_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "some"
    folder.mkdir()
    (folder / "subject.json").write_text('{"class": "dog", "seed": 57}')
    for module in (stock, reproduction):
        monkeypatch.setattr(module, "SUBJECTS", tmp_path)
    words = reproduction.description("some").split()
    assert words[-3:-2] == ["dog"]
    assert words[-2] == "with"


def test_likeness_lies_between_the_class_and_the_photos_on_every_subject_that_was_measured() -> None:
    """What the archive has of the default: the last line of each training counts."""
    lines = map(json.loads, (Path(__file__).parents[2] / study.ARCHIVE).read_text(encoding="utf-8").splitlines())
    trainings = {(line["subject"], line["seed"]): line["rows"] for line in lines if line["arm"] == reproduction.OURS}
    assert len(trainings) >= 18
    for subject in {subject for subject, _ in trainings}:
        own = [rows for (each, _), rows in trainings.items() if each == subject]
        floor, dino, oracle = (
            np.mean([np.mean(rows[name]["value"]) for rows in own]) for name in ("floor_dino", "dino", "oracle_dino")
        )
        assert floor < dino < oracle, subject
