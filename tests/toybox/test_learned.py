"""What was learned of the bundled subjects: measured once, held against the truth, told by the bars."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dreambooth.progress import Silent
from dreambooth.toybox import SUBJECTS, learned
from dreambooth.toybox.learned import Learned, measure, sheet, write_up
from dreambooth.toybox.model.classifiers import Classifier
from dreambooth.toybox.study import DEFAULT, Arm, Study
from dreambooth.toybox.world.vocabulary import CONTEXTS

GOOD = Learned("DreamBooth", "some_dog", 50, 0.1, 0.5, 0.6, 0.4, 0.2, 0.9, 0.95)


def test_the_way_is_from_the_class_to_the_photos() -> None:
    assert pytest.approx(0.8) == GOOD.way


def test_the_page_counts_who_passes_the_bars() -> None:
    bad = Learned("DreamBooth", "some_cat", 70, 0.1, 0.05, 0.6, 0.1, 0.2, 0.5, 0.95)
    (summary,) = [line for line in write_up([GOOD, bad]).splitlines() if line.startswith("| DreamBooth")]
    cells = [cell.strip() for cell in summary.strip("|").split("|")]
    assert cells == ["DreamBooth", "1 of 2", "1 of 2", "0.35", "1 of 2", "70%, 95%, below the bar", "70 s"]


def test_a_subject_is_measured_once_against_its_truth_and_a_stranger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stranger = tmp_path / "others" / "dog-1"
    shutil.copytree(SUBJECTS / "striped_cat", stranger)
    monkeypatch.setattr(learned, "COUNT", 1)
    study = Study(tmp_path, scenes=1, count=1)
    arm = Arm(DEFAULT, {"steps": 1, "prior_weight": 0.0, "inference_steps": 2, "rank": 2})
    monkeypatch.setattr(learned, "ARMS", (arm,))
    classifier = Classifier((8,), {"context": list(CONTEXTS)}).eval()
    found = measure(study, arm, "spotted_dog", classifier, Silent())
    assert found.own != found.other
    assert found.oracle > 0.5 > max(found.floor, found.likeness, found.own)
    assert 0 <= found.context <= 1
    monkeypatch.setattr(learned, "draw_all", lambda *given: pytest.fail("measured again"))
    assert measure(study, arm, "spotted_dog", classifier, Silent()) == found
    assert sheet(study, ["spotted_dog"]).size == (64 * (3 + 4 + 4 + 8), 64)


def test_no_classifiers_is_told_before_anything_is_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert learned.main(["--classifiers", str(tmp_path)]) == 2
    assert "train classifiers" in capsys.readouterr().err
