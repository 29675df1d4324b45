"""Two processes (gloo, on the CPU) train what one does, whatever each of them holds; and end together."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from datetime import timedelta
from functools import partial
from itertools import count
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file, save_file

from dreambooth import checkpoint, environment, optimization, prior
from dreambooth.progress import Silent
from tests import commands, debug_models
from tests.commands import (
    ENVIRONMENT,
    SAVE_EVERY,
    STEPS,
    assert_same_run,
    checkpoints_of,
    start,
    start_ranks,
    steps_of,
    tensors_of,
)

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs fork and POSIX signals")

FULL = ("--method", "full", "--train-text-encoder")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("processes")
    commands.make_photos(made / "photos")
    return made


@pytest.fixture(scope="module")
def straight(folder: Path, tiny_sd: Path) -> Path:
    """The uninterrupted run of two processes: one photo and one class image a step, class images drawn by both."""
    run = folder / "two"
    line = commands.arguments(folder / "photos", tiny_sd, run, "--prior-count", "70")
    ranks = start_ranks(2, line, folder / "two-logs", folder / "two-cache")
    assert [rank.wait() for rank in ranks] == [0, 0], [rank.output for rank in ranks]
    assert "adapter" in ranks[0].output
    assert "adapter" not in ranks[1].output
    return run


def assert_close_runs(one: Path, other: Path) -> None:
    assert len(steps_of(one)) == STEPS
    for ours, theirs in zip(steps_of(one), steps_of(other), strict=True):
        assert ours.keys() == theirs.keys()
        assert [v for v in ours.values() if v is not None] == pytest.approx(
            [v for v in theirs.values() if v is not None], rel=1e-5, abs=1e-9
        )
    ours, theirs = tensors_of(one / "adapter"), tensors_of(other / "adapter")
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=1e-5)


def test_two_processes_are_as_one(straight: Path, folder: Path, tiny_sd: Path) -> None:
    """At every step one of the two holds no photo, and the other no class image."""
    run = folder / "one"
    line = commands.arguments(folder / "photos", tiny_sd, run, "--prior-count", "70")
    alone = start(line, folder / "one.log", folder / "one-cache")
    assert alone.wait() == 0, alone.output
    assert_close_runs(straight, run)
    assert json.loads((straight / "environment.json").read_text(encoding="utf-8"))["processes"] == 2
    caches = [folder / "one-cache", folder / "two-cache"]
    images = [{path.name: path.read_bytes() for path in cache.rglob("*.png")} for cache in caches]
    assert len(images[0]) >= 70
    assert images[0] == images[1]


def test_class_images_are_shared_out_whatever_the_others_have_drawn_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []

    def draw(pipe: object, texts: list[str], generators: list[torch.Generator], *rest: object) -> list[Image.Image]:
        drawn.append(generators[0].initial_seed())
        return [Image.new("RGB", (32, 32)) for _ in texts]

    monkeypatch.setattr(prior, "draw", draw)
    identity = prior.Identity("model", "a dog", "sampler", 1, 1.0, 32, "fp32", batch=2, seed=0)
    images = prior.ClassImages(tmp_path, identity, count=17, autocast=None)
    images.path(5).touch()  # an interrupted run came so far
    for rank in (2, 0, 1):
        prior.make(Mock(device=torch.device("cpu")), Mock(), images, Silent(), rank, 3)
    assert images.missing == []
    assert len(drawn) == len(set(drawn)) == 9


@pytest.mark.parametrize(
    ("settings", "spread"),
    [
        ((*FULL, "--batch-size", "2"), ("--accumulation", "2", "--gradient-checkpointing")),
        (("--batch-size", "1"), ("--accumulation", "2")),  # two images in four passes: half of them are idle
        (("--batch-size", "3", "--prior-weight", "0", "--train-text-encoder"), ()),
        ((*FULL, "--prior-loss", "distilled"), ("--accumulation", "2", "--gradient-checkpointing")),
        (
            ("--prior-loss", "parent", "--l2-to-base", "1", "--min-rank", "2"),
            ("--accumulation", "2"),
        ),
        (("--dco-beta", "9", "--min-rank", "2", "--batch-size", "2"), ("--gradient-checkpointing",)),
        (("--method", "pivotal", "--batch-size", "2"), ("--accumulation", "2", "--gradient-checkpointing")),
        (("--method", "textual-inversion", "--batch-size", "2"), ("--accumulation", "2", "--gradient-checkpointing")),
    ],
    ids=["full", "idle passes", "uneven", "distilled", "parent", "dco", "pivotal", "textual inversion"],
)
def test_however_the_images_are_spread(
    settings: tuple[str, ...], spread: tuple[str, ...], folder: Path, tiny_sd: Path, tmp_path: Path
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    kept = [tmp_path / f"{name}.safetensors" for name in ("one", "rank 0", "rank 1")]
    keeping = [partial(keep_gradients, path) for path in kept]
    line = commands.arguments(folder / "photos", tiny_sd, one, *settings)
    alone = start(line, tmp_path / "one.log", folder / "small-cache", keeping[0])
    assert alone.wait() == 0, alone.output
    line = commands.arguments(folder / "photos", tiny_sd, two, *settings, *spread)
    ranks = start_ranks(2, line, tmp_path / "logs", folder / "small-cache", keeping[1:])
    assert [rank.wait() for rank in ranks] == [0, 0], [rank.output for rank in ranks]
    assert_close_runs(one, two)
    expected, *of_ranks = map(load_file, kept)
    norms = {name: gradient.norm() for name, gradient in expected.items()}
    whole = math.hypot(*norms.values())
    assert whole > 0
    for found in of_ranks:
        assert found.keys() == expected.keys()
        errors = {name: (found[name] - gradient).norm() for name, gradient in expected.items()}
        assert math.hypot(*errors.values()) <= 1e-5 * whole
        # in a small one next to nothing is left of large terms
        assert [name for name, norm in norms.items() if norm > 1e-2 * whole and errors[name] > 1e-4 * norm] == []


@pytest.mark.parametrize(
    ("model", "more"),
    [("qwen_image", ()), ("qwen_image", ("--l2-to-base", "1")), ("sdxl", ("--train-text-encoder",))],
)
def test_weights_that_no_prediction_reads_are_waited_for_by_nobody(
    model: str, more: tuple[str, ...], folder: Path, tmp_path: Path
) -> None:
    built = debug_models.build(model, tmp_path / "model")
    line = partial(commands.arguments, folder / "photos", built)
    alone = start(line(tmp_path / "one", *more), tmp_path / "one.log", folder / "small-cache")
    assert alone.wait() == 0, alone.output
    ranks = start_ranks(2, line(tmp_path / "two", *more), tmp_path / "logs", folder / "small-cache")
    assert [rank.wait() for rank in ranks] == [0, 0], [rank.output for rank in ranks]
    assert not any("find_unused" in rank.output for rank in ranks)
    assert_close_runs(tmp_path / "one", tmp_path / "two")


def keep_gradients(path: Path) -> None:
    """Have a command write the gradients of its second step, not yet clipped; in the first a LoRA's A has none."""
    clip, calls = Accelerator.clip_grad_norm_, count(1)

    def clip_and_keep(self: Accelerator, weights: list[torch.nn.Parameter], *rest: float) -> torch.Tensor | None:
        if next(calls) == 2:
            gradients = {str(number): weight.grad for number, weight in enumerate(weights)}
            save_file({name: gradient for name, gradient in gradients.items() if gradient is not None}, path)
        return clip(self, weights, *rest)

    Accelerator.clip_grad_norm_ = clip_and_keep


def test_two_processes_that_hold_different_numbers_of_sizes_are_as_one(
    folder: Path, tiny_sd: Path, tmp_path: Path
) -> None:
    """Of the six images of a step one process holds three photos of as many shapes, the other class images alone."""
    shapes = commands.make_photos(tmp_path / "shapes", [(96, 80), (100, 60), (50, 90)])
    more = ("--batch-size", "3", "--aspect", "keep", "--more-resolutions", "48")
    alone = start(
        commands.arguments(shapes, tiny_sd, tmp_path / "one", *more), tmp_path / "log", folder / "small-cache"
    )
    assert alone.wait() == 0, alone.output
    assert "photos at 40 x 24 pixels: 1.png (whole)" in alone.output
    line = commands.arguments(shapes, tiny_sd, tmp_path / "two", *more)
    ranks = start_ranks(2, line, tmp_path / "logs", folder / "small-cache")
    assert [rank.wait() for rank in ranks] == [0, 0], [rank.output for rank in ranks]
    assert_close_runs(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize("victim", [0, 1])
def test_when_one_is_killed_the_other_ends_and_the_run_can_go_on(
    victim: int, straight: Path, folder: Path, tiny_sd: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    line = commands.arguments(folder / "photos", tiny_sd, run, "--prior-count", "70")
    ranks = start_ranks(2, line, tmp_path / "logs", folder / "two-cache")
    ranks[victim].wait_until(lambda: len(steps_of(run)) > SAVE_EVERY)
    ranks[victim].send(signal.SIGKILL)
    assert ranks[victim].wait() == -signal.SIGKILL
    assert ranks[1 - victim].wait(60) != 0
    assert not (run / "adapter").exists()
    saved = checkpoints_of(run)[-1]
    ranks = start_ranks(2, line, tmp_path / "logs-again", folder / "two-cache")
    assert [rank.wait() for rank in ranks] == [0, 0], [rank.output for rank in ranks]
    assert f"training: {STEPS - saved} to do" in ranks[0].output
    assert_same_run(run, straight)


def test_processes_that_find_different_checkpoints_do_not_go_on(
    straight: Path, folder: Path, tiny_sd: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(straight, tmp_path / "run")
    line = commands.arguments(folder / "photos", tiny_sd, run, "--prior-count", "70", steps=STEPS + 1)
    ranks = start_ranks(2, line, tmp_path / "logs", folder / "two-cache", (None, hide_newest))
    assert [rank.wait() for rank in ranks] == [1, 1], [rank.output for rank in ranks]
    said = f"dreambooth: the processes go on from different steps ({STEPS}, {STEPS - SAVE_EVERY})"
    assert said in ranks[0].output
    assert checkpoints_of(run) == checkpoints_of(straight)


def hide_newest() -> None:
    states = checkpoint.states
    checkpoint.states = lambda folder: states(folder)[:-1]


def test_a_signal_to_one_stops_both_after_the_same_step(
    straight: Path, folder: Path, tiny_sd: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    line = commands.arguments(folder / "photos", tiny_sd, run, "--prior-count", "70")
    ranks = start_ranks(2, line, tmp_path / "logs", folder / "two-cache")
    ranks[1].wait_until(lambda: len(steps_of(run)) >= 2)
    ranks[1].send(signal.SIGTERM)
    assert [rank.wait() for rank in ranks] == [130, 130]
    reached = len(steps_of(run))
    assert checkpoints_of(run)[-1] == reached < STEPS
    assert steps_of(run) == steps_of(straight)[:reached]


def test_ctrl_c_on_torchrun_stops_both_and_saves(straight: Path, folder: Path, tiny_sd: Path, tmp_path: Path) -> None:
    """The real thing: `torchrun -m dreambooth`."""
    run = tmp_path / "run"
    line = commands.arguments(folder / "photos", tiny_sd, run, "--prior-count", "70")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    values = {**os.environ, **ENVIRONMENT, "DREAMBOOTH_CACHE": str(folder / "two-cache")}
    process = subprocess.Popen(
        [*torchrun, "-m", "dreambooth", *map(str, line)], stderr=subprocess.PIPE, text=True, env=values
    )
    commands.wait_until(lambda: len(steps_of(run)) >= 2, lambda: process.poll() is None)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode != 0
    reached = len(steps_of(run))
    assert f"dreambooth: stopped after step {reached}; go on with: the same command" in said
    assert reached < STEPS
    assert checkpoints_of(run)[-1] == reached
    ranks = start_ranks(2, line, tmp_path / "logs", folder / "two-cache")
    assert [rank.wait() for rank in ranks] == [0, 0], [rank.output for rank in ranks]
    assert_same_run(run, straight)


def test_other_processes_than_before_are_told(straight: Path, folder: Path, tiny_sd: Path, tmp_path: Path) -> None:
    run = shutil.copytree(straight, tmp_path / "run")
    line = commands.arguments(folder / "photos", tiny_sd, run, "--prior-count", "70", steps=STEPS + 1)
    alone = start(line, tmp_path / "log", folder / "two-cache")
    assert alone.wait() == 0, alone.output
    assert "warning: processes was 2 and is 1: the run goes on, but not bit for bit the same" in alone.output
    assert len(steps_of(run)) == STEPS + 1


def test_a_long_stage_of_one_process_is_waited_for(tmp_path: Path) -> None:
    """The first process draws pictures while the others wait: the default half hour would end a long run."""
    world = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    probe = start(["models"], tmp_path / "log", tmp_path, check_timeout, **world)
    assert probe.wait() == 0, probe.output


def check_timeout() -> None:
    place = environment.processes()
    assert str(place.backend) == "gloo"
    group = torch.distributed.distributed_c10d._get_default_group()
    assert group._get_backend(torch.device("cpu")).options._timeout >= timedelta(days=1)


@pytest.mark.parametrize(("seconds", "votes"), [(4.0, list(range(1, 13))), (0.05, [10])])
def test_processes_ask_one_another_soon_enough_whether_to_stop(
    seconds: float, votes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses are read every ten steps: where these take 4 s each, torchrun would have killed the run by then."""
    asked: list[int] = []
    accelerator = Mock(num_processes=2, device=torch.device("cpu"), reduce=lambda tensor, reduction: tensor)
    deciding = optimization._Votes(Mock(accelerator=accelerator))
    deciding.space(seconds)
    for step in range(1, 13):
        monkeypatch.setattr(optimization, "_any", lambda job, holds, step=step: asked.append(step) or holds)
        assert not deciding.stop(False, step, reading=step % 10 == 0)
    assert asked == votes
