from __future__ import annotations

import base64
import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from dreambooth.charts import Frame, _running_mean, ticks
from dreambooth.errors import UserError
from dreambooth.pages import duration
from dreambooth.reporting import _read, report
from tests.pages import SCENES, Page, about, finished_run, recipe, samples, step, write_json, write_steps


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return finished_run(tmp_path / "my runs" / "dog")


def test_the_page_lies_in_the_run_folder_and_needs_nothing_else(run: Path):
    path = report(run)
    assert path == run / "report.html"
    page = Page(path)
    links = [attrs[name] for _, attrs in page.tags for name in ("src", "href", "srcset") if name in attrs]
    assert links
    assert all(link.startswith("data:") for link in links)
    assert not page.all("script")
    assert "http://" not in page.source
    assert "https://" not in page.source
    assert "url(" not in page.source
    assert "@import" not in page.source


def test_every_picture_is_on_the_page_unchanged_and_has_words_for_those_who_cannot_see_it(run: Path):
    page = Page(report(run))
    shown = [base64.b64decode(image["src"].split(",")[1]) for image in page.all("img")]
    stored = [path.read_bytes() for path in [*run.glob("photos/*.jpg"), *run.glob("samples/*.png")]]
    assert sorted(shown) == sorted(stored)
    assert all(image["alt"] for image in page.all("img"))
    assert len({image["alt"] for image in page.all("img")}) == len(stored)


def test_before_and_after_of_a_seed_are_neighbours(run: Path):
    alts = [image["alt"] for image in Page(report(run)).all("img")]
    assert alts[2:6] == [
        "a [V] dog, before training, seed 3",
        "a [V] dog, after training, seed 3",
        "a [V] dog, before training, seed 8",
        "a [V] dog, after training, seed 8",
    ]
    assert alts[6:11] == [f"a [V] dog {scene}, after training, seed 3" for scene in SCENES]
    assert alts[11:13] == ["a dog, before training, seed 3", "a dog, after training, seed 3"]


def test_the_story(run: Path):
    text = Page(report(run)).text
    assert "Learned from 2 photos on toybox (sd), in 1 min 1 s." in text
    assert "the model knows it as “ohwx”" in text
    assert "one.heic" in text
    assert "two.jpg: by the sea" in text
    for scene in SCENES:
        assert f"“a [V] dog {scene}”" in text
    assert "How to read this: the prompt does not name yours" in text
    assert "steps a second 2 peak memory 1,930 MB" in text
    assert "two.jpg is blurred" in text
    assert "class images 41 s training 20 s together 1 min 1 s" in text
    assert "drawn with DPM++ 2M, 25 steps, guidance 7.5" in text
    assert "torch 2.13.0+cpu threads 2 git none" in text
    assert "23 November 2026, 17:50" in text
    assert "not finished" not in text


def test_a_finished_run_is_to_be_measured(run: Path):
    assert f"Not measured yet: dreambooth evaluate {shlex.quote(str(run))} scores this run" in Page(report(run)).text


def test_photos_are_counted_that_have_no_preview(run: Path):
    photos = [{"id": str(number), "file": f"{number}.jpg", "caption": None} for number in range(40)]
    write_json(run / "run.json", about(photos=photos))
    text = Page(report(run)).text
    assert "Learned from 40 photos on toybox" in text
    assert "and 16 more photos" in text


def test_the_command_survives_a_shell(run: Path):
    page = Page(report(run))
    (command,) = [text for text in page.texts if text.startswith("dreambooth generate")]
    assert shlex.split(command) == ["dreambooth", "generate", str(run), "a [V] dog on the beach"]


def test_each_setting_stands_with_its_value_and_its_reason(run: Path):
    text = Page(report(run)).text
    assert "steps 40 20 a photo" in text
    assert "subjects[0].identifier ohwx the rarest word" in text


def test_a_derived_value_that_the_recipe_does_not_hold_is_still_explained(run: Path):
    write_json(run / "run.json", about(derived={"gradient_checkpointing": "memory is short"}))
    assert "gradient_checkpointing memory is short" in Page(report(run)).text


def test_what_people_wrote_is_text_and_never_markup(run: Path):
    evil = "<script>alert('x')</script><img src=x> & \"dog\" {{ 7*7 }}"
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe(noun=evil, model=evil, note=[evil, 1])))
    photo = {"id": "a", "file": evil, "caption": evil}
    model = {"name": evil, "family": evil}
    write_json(
        run / "run.json",
        about(evil, photos=[photo], model=model, identifier=evil, warnings=[evil], derived={evil: evil}, created=evil),
    )
    write_json(run / "environment.json", {evil: evil})
    write_json(run / "scores.json", {evil: {"value": 0.5, "low": 0.4, "high": 0.6, "n": 3}})
    manifest = {"images": samples(run, evil), "sampler": evil, "steps": 5, "guidance": 1}
    write_json(run / "samples" / "manifest.json", manifest)
    page = Page(report(run))
    assert not page.all("script")
    assert all(image["src"].startswith("data:image/") for image in page.all("img"))
    assert evil in page.all("img")[0]["alt"]
    assert page.text.count("<script>alert('x')</script><img src=x>") >= 20


def test_only_small_pictures_get_hard_pixels(run: Path):
    assert len(Page(report(run)).all("img", "crisp")) == 13, "the samples, not the photos"
    write_json(run / "samples" / "manifest.json", {"images": samples(run, side=128)})
    assert not Page(report(run)).all("img", "crisp")


# Curves


def curves(page: Page, cls: str) -> list[np.ndarray]:
    lines = page.all("polyline", cls)
    return [np.array([point.split(",") for point in line["points"].split()], dtype=float) for line in lines]


def test_a_curve_runs_through_its_steps(run: Path):
    losses = np.linspace(1.0, 0.5, 40)
    write_steps(run, [step(number + 1, float(loss), None) for number, loss in enumerate(losses)])
    (points,) = curves(Page(report(run)), "raw")
    frame = Frame(end=40, top=1.05 * float(np.percentile(losses, 98)))
    assert points[:, 0] == pytest.approx(44 + (430 - 44) * np.arange(1, 41) / 40, abs=0.051)
    assert points[:, 1] == pytest.approx(200 - (200 - 12) * losses / frame.top, abs=0.051)


def test_both_curves_share_their_axes(run: Path):
    write_steps(run, [step(number, 0.1, 0.2) for number in range(1, 41)])
    subject, prior = curves(Page(report(run)), "smooth")
    assert prior[:, 0] == pytest.approx(subject[:, 0])
    assert 200 - prior[:, 1] == pytest.approx(2 * (200 - subject[:, 1]), abs=0.2)


def test_a_spike_is_cut_at_the_frame_and_does_not_flatten_the_rest(run: Path):
    write_steps(run, [step(number, 1000.0 if number == 50 else 0.1, None) for number in range(1, 101)])
    page = Page(report(run))
    (points,) = curves(page, "raw")
    assert points[:, 1].min() == 12
    assert np.median(points[:, 1]) < 100
    assert "Where the light line meets the upper edge, it is cut off." in page.text


def test_a_hundred_thousand_steps_stay_small(run: Path):
    rng = np.random.default_rng(0)
    losses = rng.gamma(2.0, 0.05, (100_000, 2)).round(5).tolist()
    write_steps(run, [step(number, *pair) for number, pair in enumerate(losses, 1)])
    page = Page(report(run))
    pictures = sum(len(image["src"]) for image in page.all("img"))
    assert len(page.source) - pictures < 100_000
    for points in curves(page, "raw"):
        assert len(points) == 600
        assert points[-1, 0] == 430, "the last step is kept"
    assert [len(points) for points in curves(page, "smooth")] == [150, 150]


def test_the_running_mean_equals_the_convolution():
    losses = np.random.default_rng(1).random(200)
    window = 9
    expected = np.convolve(losses, np.ones(window) / window, mode="valid")
    mean = _running_mean(losses, np.arange(200), window)
    assert mean[4:-4] == pytest.approx(expected)
    assert mean[:4] == pytest.approx(expected[0])
    assert mean[-4:] == pytest.approx(expected[-1])


@pytest.mark.parametrize("end", [0.0007, 0.03, 0.1, 0.29, 1.0, 1.05, 3, 40, 400, 999, 1005, 2499, 100_000])
def test_ticks_are_few_and_round(end: float):
    places = ticks(end)
    assert places[0] == 0
    assert 3 <= len(places) <= 6
    assert end * (1 + 1e-6) >= places[-1] > end / 2
    mantissa = float(f"{places[1]:e}".split("e")[0])
    assert mantissa in (1, 2, 5)
    assert np.diff(places) == pytest.approx(places[1])


def test_a_half_written_last_line_is_no_news(run: Path):
    write_json(run / "run.json", about(warnings=[]))
    write_steps(run, [step(number) for number in range(1, 31)], tail='{"step": 31, "lo')
    page = Page(report(run))
    assert len(curves(page, "raw")[0]) == 30
    assert "Warnings" not in page.text


def test_a_broken_line_in_the_middle_is_said(run: Path):
    (run / "steps.jsonl").write_text("\n".join([json.dumps(step(1)), '{"step": 2, "l', json.dumps(step(3)), ""]))
    page = Page(report(run))
    assert "1 of 3 lines of steps.jsonl could not be read and are left out." in page.text
    assert len(curves(page, "raw")[0]) == 2


def test_steps_repeated_by_a_resumed_run_count_once_and_the_later_line_holds(run: Path):
    write_steps(run, [step(n, 9.0) for n in range(1, 31)] + [step(n, 0.5) for n in range(21, 41)])
    read = _read(run).steps
    assert [line["step"] for line in read] == list(range(1, 41))
    assert [line["subject"] for line in read] == [9.0] * 20 + [0.5] * 20


def test_losses_that_are_no_numbers_are_not_drawn(run: Path):
    write_steps(run, [step(1), step(2, float("nan")), step(3), step(4, float("inf"))])
    page = Page(report(run))
    assert [len(points) for points in curves(page, "raw")] == [2, 4]
    assert "nan" not in page.text


def test_losses_of_zero_have_a_frame(run: Path):
    write_steps(run, [step(1, 0.0, None), step(2, 0.0, None)])
    (points,) = curves(Page(report(run)), "raw")
    assert points[:, 1].tolist() == [200, 200]


# Missing parts


def test_a_run_that_has_only_begun(tmp_path: Path):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe(steps=300)))
    page = Page(report(tmp_path))
    for absence in (
        "This run is not finished: 0 of 300 steps are recorded.",
        "The run folder holds no photos yet.",
        "No pictures of the subject have been drawn.",
        "No scenes have been drawn.",
        "No pictures of the class have been drawn,",
        "No curve yet: steps.jsonl holds fewer than two losses.",
        f"Go on with the training: dreambooth train --recipe {tmp_path}/recipe.yaml --out {tmp_path}",
        "Not measured: a run can be scored when it is finished.",
        "No times are recorded yet.",
        "No environment is recorded.",
        "No warnings.",
    ):
        assert absence in page.text
    assert not page.all("img")
    assert "dreambooth generate" not in page.text, "there is nothing to generate with"
    assert "dreambooth evaluate" not in page.text, "there is nothing to score"


def test_a_run_without_a_recipe(tmp_path: Path):
    write_json(tmp_path / "run.json", about())
    page = Page(report(tmp_path))
    assert "Learned from 2 photos on toybox (sd)" in page.text
    assert len(page.all("p", "missing")) == 2
    assert "no preview was saved" in page.text
    assert "one.heic" in page.text


def test_no_prior(run: Path):
    write_steps(run, [step(number, prior=None) for number in range(1, 41)])
    page = Page(report(run))
    assert len(page.all("polyline", "raw")) == 1
    assert "There is no prior loss: no class images were trained on." in page.text


def test_pictures_that_are_missing_or_broken_are_named(run: Path):
    images = samples(run)
    (run / "samples" / images[0]["file"]).unlink()
    broken = run / "samples" / images[1]["file"]
    broken.write_bytes(broken.read_bytes()[:2000])
    (run / "samples" / images[2]["file"]).write_text("no image")
    write_json(run / "samples" / "manifest.json", {"images": [image for image in images if image is not images[3]]})
    page = Page(report(run))
    assert f"{images[0]['file']} is missing" in page.text
    assert f"{images[1]['file']} cannot be read" in page.text
    assert f"{images[2]['file']} cannot be read" in page.text
    assert "no picture from after training" in page.text
    assert len(page.all("img")) == 2 + 9


def test_scenes_drawn_before_training_too_are_paired_and_seeds_are_told_apart(run: Path):
    scene = [{**image, "kind": "scene"} for image in samples(run) if image["kind"] == "subject"]
    write_json(run / "samples" / "manifest.json", {"images": scene})
    page = Page(report(run))
    assert [image["alt"].split(", ")[1] for image in page.all("img")[2:]] == ["before training", "after training"] * 2
    assert "“a [V] dog”, seed 3" in page.text
    assert "“a [V] dog”, seed 8" in page.text


def test_scores_without_an_evaluation_are_shown_even_those_of_unknown_names(run: Path):
    assert "Not measured yet" in Page(report(run)).text
    scores = {"odd_one": {"value": 0.61234, "low": 0.58, "high": 0.644, "n": 100}, "pres": {"value": None, "n": 0}}
    write_json(run / "scores.json", scores)
    text = Page(report(run)).text
    assert "odd one 0.612 0.580 to 0.644 100" in text
    assert "class pictures resembling your subject none 0" in text
    assert "Not measured yet" not in text


@pytest.mark.parametrize(
    ("name", "content"), [("run.json", '{"class": "do'), ("recipe.yaml", "a: [1"), ("scores.json", "3")]
)
def test_a_file_that_cannot_be_read_is_said(run: Path, name: str, content: str):
    (run / name).write_text(content)
    assert f"{name} could not be read, so this page does without it." in Page(report(run)).text


def test_a_folder_without_a_run_is_refused(tmp_path: Path):
    with pytest.raises(UserError) as error:
        report(tmp_path)
    message = f"{tmp_path} holds no run (no recipe.yaml, no run.json): name the folder of a training run"
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (10, "10 s"), (59.6, "1 min 0 s"), (152, "2 min 32 s"), (7384, "2 h 3 min")],
)
def test_durations(seconds: float, text: str):
    assert duration(seconds) == text


def test_the_report_imports_no_torch():
    code = "import sys, dreambooth.reporting; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}).returncode == 0
