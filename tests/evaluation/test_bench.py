"""The benchmark: from folders of photos to a table that can be computed again."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from dreambooth.cli import measuring
from dreambooth.errors import UserError
from dreambooth.evaluation import bench as bench_module
from dreambooth.evaluation.bench import ROWS, Bench, bench, classes
from dreambooth.evaluation.material import Plan
from dreambooth.evaluation.metrics import Options
from dreambooth.evaluation.statistics import Estimate
from tests.commands import make_photos


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dataset")
    for name in ("dog", "backpack_dog", "my_mug"):
        make_photos(folder / name)
    (folder / "classes.yaml").write_text("my_mug: mug\n")
    return folder


@pytest.fixture(scope="module")
def settings(tiny_sd: Path) -> dict[str, Any]:
    sizes = {"steps": 2, "samples": 0, "prior_count": 1, "prior_steps": 2, "inference_steps": 1}
    return {"model": str(tiny_sd), **sizes}


@pytest.fixture(autouse=True)
def _judges_of_the_toybox(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dreambooth.evaluation.judges.IDENTITY_ENCODER", "toybox-identity")
    monkeypatch.setattr("dreambooth.evaluation.judges.CLIP_ENCODER", "toybox-clip")


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    file = tmp_path_factory.mktemp("prompts") / "prompts.yaml"
    file.write_text("- a {} in the snow\n- a red {}\n")
    return Plan(str(file), count=2, class_count=2)


def test_classes_come_from_the_folder_or_the_papers_table(dataset: Path) -> None:
    assert classes(dataset) == {"backpack_dog": "backpack", "dog": "dog", "my_mug": "mug"}
    assert classes(dataset, limit=1) == {"backpack_dog": "backpack"}


def test_what_cannot_be_benched_is_said_before_any_work(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="there is no folder"):
        classes(tmp_path / "none")
    with pytest.raises(UserError, match="holds no folders"):
        classes(tmp_path)
    make_photos(tmp_path / "thing")
    with pytest.raises(UserError, match="class of thing is not known: write 'thing: noun'"):
        classes(tmp_path)
    with pytest.raises(UserError, match="unknown setting"):
        bench(dataset, {"stepz": 3}, tmp_path / "out")
    with pytest.raises(UserError, match="give live, object or a YAML list"):
        bench(dataset, {}, tmp_path / "out", plan=Plan(str(tmp_path / "none.yaml")))
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(UserError, match=r"pip install 'dreambooth\[lpips\]'"):
        bench(dataset, {}, tmp_path / "out", options=Options(diversity="lpips-alex"))
    for rule, said in (("held-out", "needs photos that were not trained on"), ("fixed:9", "there is no photo 9")):
        with pytest.raises(UserError, match=said):
            bench(dataset, {}, tmp_path / "out", options=Options(references=rule))
    assert not (tmp_path / "out").exists()


def test_only_like_stands_beside_like(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """DIV by another measure than the paper's, and photos that are not compared with themselves, are named as such."""
    names = [figure for row in ROWS.values() for figure in row.values()]
    figures = {name: Estimate(0.123, None, None, 4) for name in names}
    figures |= {name: Estimate(0.777, None, None, 4) for name in ("oracle_dino_self", "oracle_clip_i_self")}
    by_dino, by_lpips = (Bench(Path(), figures, {}, diversity) for diversity in ("dino", "lpips-alex"))
    paper = "paper, 15 subjects: with prior preservation"
    assert "div" not in dict(by_dino.table())[paper]
    assert dict(by_lpips.table())[paper]["div"] == 0.391
    monkeypatch.setenv("COLUMNS", "200")
    measuring._print_bench(by_dino)
    text = re.sub(r"  +", "  ", capsys.readouterr().out)
    assert "div, by dino" in text
    assert "real images  0.123  0.123" in text
    assert "real images, self-pairs  0.777  0.777" in text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("thing:\n", "the class of thing is None: write 'thing: noun'"),
        ("thing: 3\n", "the class of thing is 3: write 'thing: noun'"),
        ("thing: ''\n", "the class of thing is '': write 'thing: noun'"),
        ("thing: a dog\n", "the class of thing: the class noun 'a dog' has an article of its own: give 'dog'"),
        ("thing: '[V] dog'\n", "the class of thing: the class noun '[V] dog' holds a placeholder: give 'dog' alone"),
        ("thing: [dog\n", " is no YAML: "),
        ("- dog\n", " holds no classes: expected 'folder: noun' lines"),
    ],
)
def test_a_table_of_classes_is_read_before_any_work(text: str, said: str, tmp_path: Path) -> None:
    table = tmp_path / "classes.yaml"
    make_photos(tmp_path / "thing")
    table.write_text(text)
    with pytest.raises(UserError) as caught:
        bench(tmp_path, {}, tmp_path / "out")
    assert str(caught.value).startswith(str(table))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_no_subject_is_trained_where_a_later_one_cannot_be_drawn_or_measured(
    dataset: Path, settings: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"nosuch\.yaml"):
        bench(dataset, settings, tmp_path / "out", plan=Plan("nosuch.yaml"), limit=1)
    said: list[str] = []
    with pytest.raises(UserError, match="no sampler 'foo'"):
        bench(dataset, {**settings, "sampler": "foo"}, tmp_path / "out", reporter=Mock(say=said.append))
    assert said == []
    assert not (tmp_path / "out").exists()


def test_every_figure_can_be_computed_from_the_manifest(
    dataset: Path, settings: dict[str, Any], plan: Plan, tmp_path: Path
) -> None:
    made = bench(dataset, settings, tmp_path / "out", plan=plan, limit=2)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert len(manifest["pictures"]) == 2 * 2 * 2
    assert all((tmp_path / "out" / entry["file"]).is_file() for entry in manifest["pictures"])
    assert {entry["subject"] for entry in manifest["pictures"]} == {"backpack_dog", "dog"}
    for metric in ("dino", "clip_i", "clip_t"):
        by_subject: dict[str, dict[int, list[float]]] = {}
        for entry in manifest["pictures"]:
            by_subject.setdefault(entry["subject"], {}).setdefault(entry["prompt"], []).append(entry[metric])
        mean = np.mean([np.mean([np.mean(each) for each in of.values()]) for of in by_subject.values()])
        assert made.figures[metric].value == pytest.approx(mean, abs=1e-4)
    rows = dict(made.table())
    assert rows["this run"]["dino"] == made.figures["dino"]
    assert rows["paper: DreamBooth (Imagen)"] == {"dino": 0.696, "clip_i": 0.812, "clip_t": 0.306}


def test_interrupted_it_goes_on_and_does_nothing_twice(
    dataset: Path, settings: dict[str, Any], plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = bench(dataset, settings, tmp_path / "whole", plan=plan, limit=2)
    real, evaluated = bench_module.evaluate, []

    def stops(run: Path, *arguments: Any, **options: Any) -> Any:
        if evaluated:
            raise KeyboardInterrupt
        evaluated.append(run)
        return real(run, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(bench_module, "evaluate", stops)
        with pytest.raises(KeyboardInterrupt):
            bench(dataset, settings, tmp_path / "cut", plan=plan, limit=2)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "cut").rglob("*.safetensors")}
    assert times
    gone_on = bench(dataset, settings, tmp_path / "cut", plan=plan, limit=2)
    assert gone_on.figures == whole.figures
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
