"""The run folder: extended, finished, refused, locked, and whole after a full disk or a loss that is not finite."""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file

from dreambooth import checkpoint, loop
from dreambooth.errors import RunError
from dreambooth.files import write_json
from dreambooth.progress import Step
from dreambooth.run import Run
from tests.calls import Call, call, train
from tests.commands import checkpoints_of, make_photos, steps_of, tensors_of


class Lab:
    """Photos, a model, and a run of four steps without a break."""

    def __init__(self, home: Path, model: Path) -> None:
        self.model = model
        self.photos = make_photos(home / "photos")
        self.straight = home / "straight"
        assert self.train(self.straight, steps=4).status == 0

    def train(self, out: Path, *more: object, **settings: object) -> Call:
        return train(self.photos, self.model, *more, out=out, **{"save-every": 1, **settings})


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, tiny_sd: Path) -> Lab:
    return Lab(tmp_path_factory.mktemp("lab"), tiny_sd)


def assert_same(run: Path, other: Path) -> None:
    assert steps_of(run) == steps_of(other) != []
    ours, theirs = tensors_of(run / "adapter"), tensors_of(other / "adapter")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_finished_run_says_so_and_is_left_alone(lab: Lab) -> None:
    before = files(lab.straight)
    for steps in (4, 3):
        again = lab.train(lab.straight, steps=steps)
        assert again.status == 0
        assert again.err.splitlines()[-1] == f"{lab.straight} is finished: 4 steps done"
    assert files(lab.straight) == before


def test_a_larger_number_of_steps_goes_on_as_if_it_had_been_given_at_once(lab: Lab, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert lab.train(run, steps=2).status == 0
    weights = tensors_of(run / "adapter")
    created = Run(run).info["created"]
    extended = lab.train(run, steps=4)
    assert extended.status == 0
    assert "training: 2 to do, 2 there" in extended.err
    assert_same(run, lab.straight)
    assert any(not torch.equal(weights[name], now) for name, now in tensors_of(run / "adapter").items())
    assert (Run(run).recipe.steps, Run(run).finished_steps, Run(run).info["created"]) == (4, 4, created)


def test_a_cosine_schedule_cannot_be_extended(lab: Lab, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert lab.train(run, schedule="cosine").status == 0
    said = lab.train(run, schedule="cosine", steps=4).refusal
    assert said == f"{run} holds another run (steps: 2 there, 4 here): choose another --out or remove it"


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"seed": 1}, "seed: 0 there, 1 here"),
        ({"class": "cat"}, "class_noun: dog there, cat here"),
        ({"rank": 2}, "rank: 4 there, 2 here; alpha: 4.0 there, 2.0 here"),
        ({"identifier": "phol"}, "identifier: ohwx there, phol here"),
        ({"prior-loss": "images"}, "prior_loss: distilled there, images here; prior_dropout: 0.1 there, 0.0 here"),
    ],
)
def test_another_recipe_is_told_by_what_differs(settings: dict[str, object], what: str, lab: Lab) -> None:
    said = lab.train(lab.straight, **{"steps": 4, "keep": 7, "accumulation": 2, **settings}).refusal
    assert said == f"{lab.straight} holds another run ({what}): choose another --out or remove it"


def test_other_photos_are_told_too(lab: Lab, tmp_path: Path) -> None:
    photos = Path(shutil.copytree(lab.photos, tmp_path / "photos"))
    (photos / "0.txt").write_text("a [V] dog on a sofa", encoding="utf-8")
    said = train(photos, lab.model, out=lab.straight, steps=4).refusal
    what = "other photos or another base model"
    assert said == f"{lab.straight} holds another run ({what}): choose another --out or remove it"


def test_fewer_steps_than_an_unfinished_run_has_done_are_refused(lab: Lab, tmp_path: Path) -> None:
    run = unfinished(lab.straight, tmp_path / "run")
    before = files(run)
    assert lab.train(run, steps=2).refusal == f"{run} has been trained for 4 steps already: give --steps 4 or more"
    assert files(run) == before


def unfinished(run: Path, copy: Path) -> Path:
    shutil.copytree(run, copy)
    info = json.loads((copy / "run.json").read_text(encoding="utf-8"))
    (copy / "run.json").write_text(json.dumps({**info, "finished": False}), encoding="utf-8")
    return copy


def without_weights(run: Path, copy: Path) -> Path:
    shutil.copytree(run, copy)
    for file in (copy / "adapter").iterdir():
        file.unlink()
    return copy


@pytest.mark.parametrize("command", [["generate", "a [V] dog"], ["export"], ["evaluate"]], ids=" ".join)
@pytest.mark.parametrize(
    ("spoil", "what"), [(unfinished, "{} is not finished"), (without_weights, "{}/adapter holds no weights")]
)
def test_an_unfinished_run_is_of_no_use_and_says_how_to_go_on(
    spoil: Callable[[Path, Path], Path], what: str, command: list[str], lab: Lab, tmp_path: Path
) -> None:
    run = spoil(lab.straight, tmp_path / "a run")
    said = call(command[0], run, *command[1:]).refusal
    assert said.startswith(f"{what.format(run)}: go on with: ")
    words = shlex.split(said.partition("go on with: ")[2])
    assert words[0] == "dreambooth"
    assert call(*words[1:]).status == 0
    assert Run(run).finished_steps == 4
    assert_same(run, lab.straight)


@pytest.mark.parametrize("content", ["{", "3", '"a"', "{}"])
def test_a_damaged_description_is_named(content: str, lab: Lab, tmp_path: Path) -> None:
    run = Path(shutil.copytree(lab.straight, tmp_path / "run"))
    (run / "run.json").write_text(content, encoding="utf-8")
    for command in (["generate", run, "a dog"], ["export", run], ["evaluate", run], ["average", run]):
        assert call(*command).refusal.startswith(f"{run}/run.json is damaged (")
    assert lab.train(run, steps=4).err.splitlines()[-1].startswith(f"dreambooth: {run}/run.json is damaged (")


# One writer at a time

HOLDER = """
import sys, time
from dreambooth.run import Run
with Run(sys.argv[1]).lock():
    print("held", flush=True)
    time.sleep(600)
"""


@contextmanager
def holder(run: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen([sys.executable, "-c", HOLDER, run], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_run_has_one_writer_and_a_dead_one_does_not_block(lab: Lab, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with holder(run) as process:
        busy = lab.train(run)
        assert busy.status == 2
        line = busy.err.splitlines()[-1]
        owner = f"process {process.pid} on {socket.gethostname()} since 2"
        assert line.startswith(f"dreambooth: {run} is being written by {owner}"), line
        assert line.endswith(": wait for it, or choose another --out")
        assert set(files(run)) == {"run.lock", "run.lock.json"}
        process.kill()
        process.wait()
    assert (run / "run.lock.json").is_file()
    assert lab.train(run).status == 0
    assert Run(run).finished_steps == 2


# A full disk

LIMIT = 20_000
"""Bytes of the largest file that may be written; the optimiser's state of the debug model has more."""


@contextmanager
def full_disk() -> Iterator[None]:
    """Make the system refuse to write large files: what a full disk does, by another number."""
    import resource  # not on Windows

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def on_a_full_disk(function: Callable[..., Any], step: int) -> Callable[..., Any]:
    def save(folder: Path, done: int, *rest: object) -> Any:
        if done < step:
            return function(folder, done, *rest)
        with full_disk():
            return function(folder, done, *rest)

    return save


@pytest.mark.skipif(os.name == "nt", reason="needs limits on resources")
def test_a_full_disk_leaves_the_last_checkpoint_and_the_command_goes_on_later(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", on_a_full_disk(checkpoint.save, step=3))
        said = lab.train(run, steps=4).failure
    path = run / "checkpoints" / "000003"
    assert said == f"the disk is full: could not write {path}; the last checkpoint is untouched"
    assert checkpoints_of(run) == [1, 2]
    assert list(run.rglob(".*.tmp")) == []
    assert max(file.stat().st_size for file in (run / "checkpoints" / "000002").iterdir()) > LIMIT
    again = lab.train(run, steps=4)
    assert again.status == 0
    assert "training: 2 to do, 2 there" in again.err
    assert_same(run, lab.straight)


# Losses that are not finite


@pytest.mark.parametrize("every", [1, 4])
def test_the_step_whose_loss_is_not_finite_is_named(every: int, lab: Lab, tmp_path: Path) -> None:
    """At such a rate the first update ruins the weights, so that the second loss is the first bad one."""
    run = tmp_path / "run"
    said = lab.train(run, steps=4, **{"learning-rate": 1e30, "save-every": every, "allow": "learning-rate"}).failure
    assert said.startswith("the loss is not finite at step 2: ")
    assert checkpoints_of(run) == ([1] if every == 1 else [])
    for path in (run / "checkpoints").rglob("*.safetensors"):
        assert all(tensor.isfinite().all() for tensor in load_file(path).values())
    assert all(math.isfinite(entry["loss"]) for entry in steps_of(run))
    assert Run(run).finished_steps is None


def figures(loss: float, norm: float, scaler: object) -> list[Step]:
    accelerator = SimpleNamespace(scaler=scaler, reduce=lambda tensor, reduction: tensor)
    state = SimpleNamespace(accelerator=accelerator, plan=SimpleNamespace(prior=[], prior_weight=1.0))
    good = loop.Pending(6, torch.tensor([1.0, 0.0]), torch.tensor(1.0), 1e-4, 2)
    bad = loop.Pending(7, torch.tensor([loss, 0.0]), torch.tensor(norm), 1e-4, 2)
    return loop.read([good, bad], 0.0, cast("loop.Loop", state))


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan), (1.0, math.inf)])
def test_neither_a_bad_loss_nor_a_bad_gradient_reaches_a_checkpoint(loss: float, norm: float) -> None:
    with pytest.raises(RunError, match="not finite at step 7: "):
        figures(loss, norm, scaler=None)


def test_fp16_skips_steps_with_a_bad_gradient_by_itself() -> None:
    read = figures(2.0, math.inf, scaler=SimpleNamespace(get_scale=lambda: 32768.0))
    assert [(step.loss, step.grad_norm) for step in read] == [(1.0, 1.0), (2.0, None)]  # as JSON has no infinity


def test_fp16_that_takes_no_step_any_more_is_told() -> None:
    with pytest.raises(RunError, match="fp16 overflows at step 7 however it is scaled: use --precision bf16 or fp32"):
        figures(2.0, math.inf, scaler=SimpleNamespace(get_scale=lambda: 2.0**-11))


def test_what_was_used_before_an_interruption_stays_told(lab: Lab, tmp_path: Path) -> None:
    run = Run(Path(shutil.copytree(lab.straight, tmp_path / "run")))
    info = {**run.info, "times": {"training": 3.0}, "peaks": {"training": 900.0}}
    write_json(run.path / "run.json", info)
    with run.lock():
        run.begin(run.recipe, {**info, "times": {}, "peaks": {}}, {})
    assert (run.info["times"], run.info["peaks"]) == ({"training": 3.0}, {"training": 900.0})


def test_a_run_opens_and_tells_what_it_is(lab: Lab) -> None:
    run = Run.open(lab.straight)
    info = run.info
    assert [entry["file"] for entry in info["photos"]] == ["0.png", "1.png", "2.png"]
    assert (info["class"], info["identifier"], info["finished"], info["steps"]) == ("dog", "ohwx", True, 4)
    assert {"class images", "caching", "training", "saving"} <= set(info["times"])
    assert info["peak_mb"] > 0
    assert run.environment["device"] == "cpu"
    assert run.environment["threads"] == torch.get_num_threads()
    assert [entry["step"] for entry in steps_of(run.path)] == [1, 2, 3, 4]
    assert run.report.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert os.listdir(run.adapter) == ["pytorch_lora_weights.safetensors"]


def test_pictures_of_before_are_drawn_as_those_of_after(lab: Lab, tmp_path: Path) -> None:
    """Also where a run that was interrupted goes on with another guidance, which is no part of its identity."""
    run = tmp_path / "run"
    assert train(lab.photos, lab.model, out=run, samples=1, steps=2).status == 0
    (before,) = (run / "samples").glob("before-subject-*.png")
    was = before.read_bytes()
    assert train(lab.photos, lab.model, out=run, samples=1, steps=4).status == 0
    assert before.read_bytes() == was
    assert train(lab.photos, lab.model, out=run, samples=1, steps=6, guidance=2.5).status == 0
    assert before.read_bytes() != was
    assert json.loads((run / "samples" / "manifest.json").read_text(encoding="utf-8"))["guidance"] == 2.5
