"""The rule that chooses a step, on looks made up for it; and a run that is chosen by it."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from dreambooth import adapters, generation, looks, optimization, select, targets
from dreambooth.evaluation import encoders, metrics
from dreambooth.job import Job
from dreambooth.methods.pivotal import PIVOT
from dreambooth.run import Run
from dreambooth.select import Look, choose, is_over
from tests import calls
from tests.commands import make_photos
from tests.test_loop import recipe_for

CHANCE = 1 / 3
SPREAD = np.array([0.1, -0.1, 0.05, 0.2, -0.2, 0.0, 0.15, -0.05])
NOISE = np.array([0.01, -0.012, 0.008, -0.005, 0.003, -0.009, 0.012, -0.004])


def look(step: int, identity: float, fidelity: float = 0.4, copies: int = 0, noise: float = 1.0) -> Look:
    """Pictures that differ much more from one another than looks do."""
    jitter = noise * np.roll(NOISE, step)
    return Look(
        step,
        tuple((identity + SPREAD + jitter).tolist()),
        tuple((fidelity + SPREAD + jitter).tolist()),
        tuple(index < copies for index in range(len(SPREAD))),
        (0.1, 0.2),
    )


FROZEN = look(0, 0.1)


def test_the_most_like_the_photos_is_chosen() -> None:
    made = [look(step, likeness) for step, likeness in ((10, 0.2), (20, 0.5), (30, 0.4))]
    assert choose(made, FROZEN, CHANCE).look.step == 20


def test_those_that_cannot_be_told_from_it_are_named() -> None:
    made = [look(10, 0.2), look(20, 0.499), look(30, 0.5), look(40, 0.4)]
    choice = choose(made, FROZEN, CHANCE)
    assert choice.look.step == 30
    assert choice.tied == (20,)
    assert choice.reason.endswith("cannot tell it from 20")


def test_a_look_that_forgets_its_prompts_is_not_chosen() -> None:
    made = [look(10, 0.3), look(20, 0.6, fidelity=0.2)]
    choice = choose(made, FROZEN, CHANCE)
    assert choice.look.step == 10
    assert choice.admissible == (10,)


@pytest.mark.parametrize(("fidelity", "step"), [(0.42, 20), (0.399, 20), (0.395, 20), (0.37, 10)])
def test_fidelity_within_the_noise_forbids_nothing(fidelity: float, step: int) -> None:
    assert choose([look(10, 0.3), look(20, 0.6, fidelity=fidelity)], FROZEN, CHANCE).look.step == step


@pytest.mark.parametrize(("copies", "step"), [(6, 20), (7, 10)])
def test_copies_beyond_chance_are_not_chosen(copies: int, step: int) -> None:
    """Of 8 pictures, 6 copies or more happen with a chance of 2 %, 7 or more with one of 0.3 %; looks are seven."""
    assert choose([look(10, 0.3), look(20, 0.6, copies=copies)], FROZEN, CHANCE).look.step == step


def test_the_least_number_of_copies_is_that_of_the_binomial_tail() -> None:
    assert select.least_copies(8, 1 / 3) == 7  # 17 of 6561 have 7 or more, 129 have 6 or more
    assert select.least_copies(8, 2 / 3) == 9  # with two photos even 8 of 8 may be chance
    assert select.least_copies(8, 0.0) == 1


@pytest.mark.parametrize(("photos", "share"), [(3, 0.12), (4, 0.05), (5, 0.07)])
def test_pictures_that_are_as_like_the_photos_as_these_themselves_seldom_count_as_copies(
    photos: int, share: float
) -> None:
    """More often than by the binomial, as all are held against the same photos."""
    numbers, least, found = np.random.default_rng(0), select.least_copies(8, 2 / (photos + 1)), []
    for _ in range(5000):
        rows = numbers.standard_normal((photos + 8, 32))
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        found.append((metrics.copying(rows[photos:], rows[:photos]).excess_G > 0).sum() >= least)
    assert np.mean(found) == pytest.approx(share, abs=0.015)


def test_where_nothing_follows_prompts_the_one_that_does_it_best() -> None:
    made = [look(10, 0.3, fidelity=0.2), look(20, 0.6, fidelity=0.1)]
    choice = choose(made, FROZEN, CHANCE)
    assert choice.look.step == 10
    assert choice.admissible == ()


@pytest.mark.parametrize(
    ("likeness", "over"),
    [
        ([], False),
        ([0.2, 0.3], False),
        ([0.2, 0.3, 0.4, 0.5], False),
        ([0.2, 0.5, 0.3, 0.4], False),
        ([0.2, 0.5, 0.3, 0.4, 0.49], True),
        ([0.2, 0.5, 0.3, 0.4, 0.6], False),
        ([0.5, 0.2, 0.3, 0.4], True),
    ],
)
def test_it_is_over_when_three_looks_bring_nothing_better(likeness: Sequence[float], over: bool) -> None:
    made = [look(10 * (index + 1), value) for index, value in enumerate(likeness)]
    assert is_over(made, FROZEN, CHANCE) is over


def test_looks_that_are_better_but_forget_prompts_are_nothing_to_wait_for() -> None:
    made = [look(10, 0.3), *(look(step, 0.6, fidelity=0.1) for step in (20, 30, 40))]
    assert not is_over(made[:3], FROZEN, CHANCE)
    assert is_over(made, FROZEN, CHANCE)


@pytest.mark.parametrize(
    ("seen", "chosen"),
    [
        ({0.6: look(1, 0.2), 1.0: look(2, 0.5), 1.2: look(3, 0.502)}, 1.0),
        ({0.6: look(1, 0.2), 1.0: look(2, 0.5), 1.2: look(3, 0.6)}, 1.2),
        ({0.6: look(1, 0.4), 1.0: look(2, 0.5, fidelity=0.1), 1.2: look(3, 0.6, fidelity=0.1)}, 0.6),
        ({0.6: look(1, 0.4, fidelity=0.1), 1.0: look(2, 0.5, fidelity=0.1)}, 1.0),
    ],
)
def test_the_strength_is_1_unless_another_is_better_beyond_noise(seen: dict[float, Look], chosen: float) -> None:
    assert select.setting(seen, 1.0, "strength", FROZEN, CHANCE)[0] == chosen


def test_looks_come_back_from_json() -> None:
    assert Look.of(json.loads(json.dumps(FROZEN.as_json()))) == FROZEN


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> None:
    load = encoders.load
    names = {looks.IDENTITY_ENCODER: "toybox-identity", looks.CLIP_ENCODER: "toybox-clip"}
    monkeypatch.setattr(encoders, "load", lambda name, device: load(names.get(name, name), device))


def run_with(model: Path, out: Path, photos: Path, *flags: str) -> Run:
    done = calls.train(photos, model, *flags, out=out, steps=14, inference_steps=2, learning_rate=1e-3, samples=1)
    assert done.status == 0, done
    return Run.open(out)


def weights(run: Run) -> dict[str, Tensor]:
    return load_file(run.adapter / "pytorch_lora_weights.safetensors")


@pytest.mark.usefixtures("judged")
def test_what_ships_is_what_training_so_far_would_have_shipped(
    tiny_sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looking changes nothing of the training, and the chosen step's weights are those of a run that ended there."""
    photos = make_photos(tmp_path / "photos")
    monkeypatch.setattr(select, "is_over", lambda *given: False)
    monkeypatch.setattr(select, "choose", first_of(select.choose))
    monkeypatch.setattr(select, "setting", lambda seen, *given: (sorted(seen)[-3], "a test"))
    selected = run_with(tiny_sd, tmp_path / "selected", photos, "--select")
    told = selected.info["selection"]
    assert told["strength"] == 0.8
    assert (
        told["guidance"]
        == targets.find(selected.path).defaults.guidance
        == round(0.7 * (selected.recipe.guidance or 0), 2)
    )
    assert [each["value"] for each in told["strength_looks"]] == [0.6, 0.8, 1.0, 1.2]
    assert len(told["guidance_looks"]) == 3
    assert told["pictures"] == (1 + 7 + 3 + 2) * (looks.SCENES + looks.CLASS_PICTURES)
    usual = json.loads((selected.path / "samples" / "manifest.json").read_text())
    assert usual["guidance"] == selected.recipe.guidance  # before and after training alike
    assert [each["step"] for each in told["looks"]] == [2, 3, 4, 5, 7, 10, 14]
    assert len(told["looks"][0]["identity"]) == looks.SCENES
    assert told["step"] == 4
    shorter = run_with(tiny_sd, tmp_path / "shorter", photos)
    averaged = {"inference_steps": 2, "learning_rate": 1e-3, "ema": selected.recipe.ema}
    assert calls.train(photos, tiny_sd, out=tmp_path / "early", steps=4, **averaged).status == 0
    expected = weights(Run.open(tmp_path / "early"))
    for name, weight in weights(selected).items():
        assert torch.equal(weight, expected[name] * (0.8 if "lora_B" in name else 1.0))
    lines = [(run.path / "steps.jsonl").read_text().splitlines() for run in (selected, shorter)]
    assert [json.loads(line)["loss"] for line in lines[0]] == [json.loads(line)["loss"] for line in lines[1]]


def first_of(choose: Callable[..., select.Choice]) -> Callable[..., select.Choice]:
    def chosen(there: Sequence[Look], frozen: Look, chance: float) -> select.Choice:
        kept = min(there, key=lambda each: abs(each.step - 4))
        found = choose(there, frozen, chance)
        return select.Choice(kept, found.admissible, tuple(each.step for each in there), found.reason)

    return chosen


@pytest.mark.usefixtures("judged")
def test_it_stops_when_nothing_gets_better_and_goes_on_the_same_when_asked_again(
    tiny_sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = make_photos(tmp_path / "photos")
    monkeypatch.setattr(select, "is_over", lambda made, *given: len(made) >= 2)
    run = run_with(tiny_sd, tmp_path / "one", photos, "--select")
    assert run.info["selection"]["trained"] == 3
    assert run.shipped_steps == run.info["selection"]["step"] < run.info["steps"]
    before = weights(run)
    run.update(finished=False)
    again = run_with(tiny_sd, tmp_path / "one", photos, "--select")
    assert again.info["selection"]["trained"] == 3
    assert all(torch.equal(weight, before[name]) for name, weight in weights(again).items())


@pytest.mark.usefixtures("judged")
@pytest.mark.parametrize("stop", [4, 14])
def test_an_interruption_at_a_look_loses_nothing(
    stop: int, tiny_sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, steps = make_photos(tmp_path / "photos"), count(1)
    monkeypatch.setattr(select, "is_over", lambda *given: False)
    whole = run_with(tiny_sd, tmp_path / "whole", photos, "--select")
    values = {"steps": 14, "inference_steps": 2, "learning_rate": 1e-3, "samples": 1}
    with monkeypatch.context() as patch:
        patch.setattr(optimization._Votes, "stop", lambda *given: next(steps) == stop)
        assert calls.train(photos, tiny_sd, "--select", out=tmp_path / "two", **values).status == 130
    if stop == 14:  # the earlier looks are there
        other = calls.train(photos, tiny_sd, "--select", out=tmp_path / "two", **{**values, "guidance": 2.0})
        assert f"{tmp_path / 'two'} was looked at with guidance " in other.err.splitlines()[-1]
        assert other.err.splitlines()[-1].endswith(", not 2.0: give that again, and draw with another later")
        assert other.status == 2
    resumed = run_with(tiny_sd, tmp_path / "two", photos, "--select")
    assert resumed.info["selection"]["looks"] == whole.info["selection"]["looks"]
    assert all(torch.equal(weight, weights(whole)[name]) for name, weight in weights(resumed).items())


@pytest.mark.usefixtures("judged")
def test_ctrl_c_in_the_last_look_stops_the_run(tiny_sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos, look = make_photos(tmp_path / "photos"), optimization._look
    values = {"steps": 2, "inference_steps": 2, "samples": 1, "out": tmp_path / "run"}

    def interrupted(job: Job, trained: Any, step: int) -> bool:
        if step == 2:
            signal.raise_signal(signal.SIGINT)
        return look(job, trained, step)

    with monkeypatch.context() as patch:
        patch.setattr(optimization, "_look", interrupted)
        stopped = calls.train(photos, tiny_sd, "--select", **values)
    assert stopped.status == 130
    assert "stopped after the last step; go on with: " in stopped.err
    assert not Run(tmp_path / "run").info["finished"]
    assert calls.train(photos, tiny_sd, "--select", **values).status == 0
    assert Run(tmp_path / "run").finished_steps == 2


def test_a_pivotal_run_is_looked_at_from_where_its_adapter_begins() -> None:
    recipe = recipe_for(Path("model"), method="pivotal", steps=4000)
    due = [step for step in range(4001) if looks.is_due(recipe, step)]
    assert (len(due), due[-1]) == (select.LOOKS, 4000)
    assert due[0] > PIVOT * 4000


@pytest.mark.usefixtures("judged")
def test_every_subject_of_a_run_is_looked_at(tiny_sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Sequence[str]] = []
    draw = looks.draw

    def noted(pipe: DiffusionPipeline, texts: Sequence[str], *given: Any) -> Iterator[Image.Image]:
        asked.append(texts)
        return draw(pipe, texts, *given)

    monkeypatch.setattr(looks, "draw", noted)
    make_photos(tmp_path / "one")
    make_photos(tmp_path / "two", ((80, 96),) * 3)
    named = (f"phol={tmp_path / 'one'}:dog", f"ohwx={tmp_path / 'two'}:mug")
    flags = calls.flags(steps=2, inference_steps=2)
    assert calls.call("train", *named, "--model", tiny_sd, "--out", tmp_path / "run", "--select", *flags).status == 0
    frozen, tuned = asked[0], asked[1]
    assert [text.count("phol dog") + 2 * text.count("ohwx mug") for text in tuned] == [1, 2] * 4 + [0, 0]
    assert frozen == [text.replace("phol ", "").replace("ohwx ", "") for text in tuned]
    assert tuned[-2:] == ["a dog", "a mug"]


@pytest.mark.usefixtures("judged")
def test_a_whole_model_has_no_strength_to_choose(tiny_sd: Path, tmp_path: Path) -> None:
    photos, flags = make_photos(tmp_path / "photos"), ("--select", "--method", "full")
    assert calls.train(photos, tiny_sd, *flags, out=tmp_path / "run", steps=2, inference_steps=2).status == 0
    run = Run.open(tmp_path / "run")
    told = run.info["selection"]
    assert "strength" not in told
    assert told["guidance"] == targets.find(run.path).defaults.guidance


@pytest.mark.parametrize("adapter", ["lora", "dora", "lokr"])
def test_an_adapter_that_was_made_weaker_is_the_adapter_at_that_strength(
    adapter: str, tiny_sd: Path, tmp_path: Path
) -> None:
    photos, run, weaker = make_photos(tmp_path / "photos"), tmp_path / "run", tmp_path / "weaker"
    given = {"inference_steps": 2, "learning_rate": 1e-2, "targets": "attention", "steps": 6}
    assert calls.train(photos, tiny_sd, "--adapter", adapter, out=run, **given).status == 0
    shutil.copytree(run, weaker)
    adapters.strengthen(weaker / "adapter", 0.5)
    pictures = [
        generation.generate(target, ["a [V] dog"], out=tmp_path / name, adapters=strength)
        for name, target, strength in (("a", run, [f"{run}=0.5"]), ("b", weaker, []), ("c", run, []))
    ]
    half, weak, whole = (np.asarray(Image.open(next(folder.glob("00-*.png")))).astype(int) for folder in pictures)
    assert np.abs(weak - half).max() <= 1
    assert np.abs(whole - half).max() > 1
