"""A run that is interrupted, in whatever way, and given again, is the uninterrupted one bit for bit."""

from __future__ import annotations

import itertools
import os
import random
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dreambooth import checkpoint, families, loop, prior
from dreambooth.batches import Batch
from dreambooth.cache import Row, encode_photo
from dreambooth.errors import RunError
from dreambooth.files import sweep
from dreambooth.models import resolve
from dreambooth.photos import read, usable
from dreambooth.progress import Silent
from dreambooth.recipe import Recipe
from dreambooth.run import Run
from tests import commands
from tests.commands import ENVIRONMENT, SAVE_EVERY, STEPS, Command, assert_same_run, checkpoints_of, start, steps_of

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs fork and POSIX signals")

IDENTITY = prior.Identity("model", "a dog", "sampler", 1, 1.0, 32, "fp32", batch=1, seed=0)
SET = partial(prior.ClassImages, identity=IDENTITY, count=1, autocast=None)
KINDS = {
    "lora": (),
    "full": ("--method", "full"),
    "text encoder": ("--train-text-encoder", "--prior-loss", "parent"),
    "textual inversion": ("--method", "textual-inversion"),
    "buckets": (
        "--aspect",
        "keep",
        "--batch-size",
        "2",
        "--crops",
        "1",
        "--more-resolutions",
        "48",
        "--prior-loss",
        "parent",
    ),
}


class Listener(Silent):
    """Hears what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, message: str) -> None:
        self.said.append(message)


class Lab:
    """Photos, a model and a cache of class images; commands on them, and what the uninterrupted ones give."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder = folder
        self.model = model
        self.photos = commands.make_photos(folder / "photos", [(96, 80), (100, 60), (50, 90)])
        self.cache = folder / "cache"
        self._straight: dict[str, Path] = {}

    def arguments(self, run: Path, kind: str) -> list[str | Path]:
        return commands.arguments(self.photos, self.model, run, *KINDS[kind])

    def start(self, run: Path, kind: str = "lora", sabotage: Callable[[], object] | None = None) -> Command:
        return start(self.arguments(run, kind), run.with_name("log"), self.cache, sabotage)

    def finish(self, run: Path, kind: str = "lora") -> str:
        """Give the command again, check that its result is the uninterrupted one's, and return what it said."""
        command = self.start(run, kind)
        assert command.wait() == 0, command.output
        assert_same_run(run, self.straight(kind))
        return command.output

    def straight(self, kind: str) -> Path:
        if kind not in self._straight:
            run = self.folder / f"straight-{kind}" / "run"
            run.parent.mkdir()
            command = self.start(run, kind)
            assert command.wait() == 0, command.output
            self._straight[kind] = run
        return self._straight[kind]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, tiny_sd: Path) -> Lab:
    return Lab(tmp_path_factory.mktemp("lab"), tiny_sd)


@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_a_random_step(lab: Lab, kind: str, tmp_path: Path) -> None:
    run, step = tmp_path / "run", random.choice([1, 2, 3, 5, 6, 7])
    command = lab.start(run, kind, partial(crawl_after, step))
    command.wait_until(lambda: len(steps_of(run)) >= step)
    command.send(signal.SIGKILL)
    assert command.wait() == -signal.SIGKILL
    done, saved = len(steps_of(run)), max(checkpoints_of(run), default=0)
    said = lab.finish(run, kind)
    assert f"training: {STEPS - saved} to do" in said, f"killed at {step}, done {done}"


def test_steps_after_the_checkpoint_are_cut_back(lab: Lab, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert lab.start(run, sabotage=partial(die_at_step, SAVE_EVERY + 2)).wait() == 9
    with (run / "steps.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 7, "lo')  # killed while it wrote
    assert checkpoints_of(run) == [SAVE_EVERY]
    lab.finish(run)


def test_killed_among_the_class_images(lab: Lab, tmp_path: Path) -> None:
    more = ("--prior-count", "70")
    runs = [tmp_path / name / "run" for name in ("straight", "killed")]
    caches = [run.parent / "cache" for run in runs]
    lines = [commands.arguments(lab.photos, lab.model, run, *more) for run in runs]
    straight = start(lines[0], tmp_path / "0.log", caches[0])
    assert straight.wait() == 0, straight.output
    killed = start(lines[1], tmp_path / "1.log", caches[1])
    killed.wait_until(lambda: len(list(caches[1].rglob("*.png"))) > 3)
    killed.send(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert 3 < len(list(caches[1].rglob("*.png"))) < 70
    (home,) = caches[1].glob("prior/*")
    (home / ".00050.png.abc.tmp").write_bytes(b"half an ima")
    again = start(lines[1], tmp_path / "2.log", caches[1])
    assert again.wait() == 0, again.output
    images = [{path.name: path.read_bytes() for path in cache.rglob("*.png")} for cache in caches]
    assert images[0] == images[1]
    assert list(home.glob(".*.tmp")) == []
    assert_same_run(*runs)


def test_a_run_waits_while_another_draws_the_same_class_images(tmp_path: Path) -> None:
    first, second = Listener(), Listener()
    ended = threading.Event()

    def take_turn() -> None:
        with prior.turn(SET(tmp_path), second):
            ended.set()

    with prior.turn(SET(tmp_path), first):
        waiting = threading.Thread(target=take_turn)
        waiting.start()
        commands.wait_until(lambda: bool(second.said), waiting.is_alive)
        assert not ended.wait(0.2)
    waiting.join(10)
    assert ended.is_set()
    assert first.said == []
    assert second.said == [f"waiting for another run that draws the same class images, in {tmp_path}"]


def test_a_whole_set_of_class_images_is_used_without_a_turn(tmp_path: Path) -> None:
    SET(tmp_path).path(0).touch()
    with prior.turn(SET(tmp_path), Silent()):
        assert [path.name for path in tmp_path.iterdir()] == ["00000.png"]


def test_a_set_of_class_images_whose_manifest_was_never_finished_is_begun_anew(tmp_path: Path) -> None:
    (tmp_path / ".manifest.json.abc.tmp").write_text("{")
    prior.check_manifest(tmp_path, IDENTITY)
    assert (tmp_path / "manifest.json").is_file()


def test_died_while_it_put_a_checkpoint_in_place(lab: Lab, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert lab.start(run, sabotage=partial(die_replacing, f"{2 * SAVE_EVERY:06d}")).wait() == 9
    assert checkpoints_of(run) == [SAVE_EVERY]
    assert list(run.rglob(".*.tmp")) != []
    lab.finish(run)


def test_died_while_it_put_the_adapter_in_place(lab: Lab, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert lab.start(run, sabotage=partial(die_replacing, "adapter")).wait() == 9
    assert not (run / "adapter").exists()
    assert "training: 0 to do" in lab.finish(run)


def test_ctrl_c_saves_and_says_how_to_go_on(lab: Lab, tmp_path: Path) -> None:
    """The real thing: `python -m dreambooth` in an interpreter of its own."""
    run = tmp_path / "run"
    line = [sys.executable, "-m", "dreambooth", *map(str, lab.arguments(run, "lora"))]
    environment = {**os.environ, **ENVIRONMENT, "DREAMBOOTH_CACHE": str(lab.cache)}
    process = subprocess.Popen(line, stderr=subprocess.PIPE, text=True, env=environment)
    commands.wait_until(lambda: len(steps_of(run)) >= 2, lambda: process.poll() is None)
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    *_, said = process.stderr.read().splitlines()
    assert process.wait() == 130
    reached = len(steps_of(run))
    assert reached < STEPS
    assert checkpoints_of(run)[-1] == reached
    assert not (run / "run.lock.json").exists()
    told, _, again = said.partition("; go on with: ")
    assert told == f"dreambooth: stopped after step {reached}"
    program, *rest = shlex.split(again)
    assert program == "dreambooth"
    assert rest == line[3:]
    lab.finish(run)


def test_termination_saves_too(lab: Lab, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = lab.start(run, sabotage=partial(crawl_after, 1))
    command.wait_until(lambda: len(steps_of(run)) >= 1)
    command.send(signal.SIGTERM)
    assert command.wait() == 130
    assert checkpoints_of(run)[-1] == len(steps_of(run)) < STEPS
    lab.finish(run)


def test_ctrl_c_while_saving_waits_for_the_save(lab: Lab, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert lab.start(run, sabotage=partial(interrupt_replacing, f"{SAVE_EVERY:06d}")).wait() == 130
    assert checkpoints_of(run)[0] == SAVE_EVERY
    lab.finish(run)


def test_a_second_ctrl_c_kills_at_once(lab: Lab, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = lab.start(run, sabotage=partial(sleep_at_step, 2))
    command.wait_until(lambda: len(steps_of(run)) == 1)
    command.wait_until(lambda: "asleep" in command.output)
    time.sleep(0.2)
    command.send(signal.SIGINT)
    time.sleep(0.5)
    assert command.process.is_alive()
    began = time.monotonic()
    command.send(signal.SIGINT)
    assert command.wait() == 130
    assert time.monotonic() - began < 10  # the step would sleep for a minute
    assert checkpoints_of(run) == []
    lab.finish(run)


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(lab: Lab, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert lab.start(run, sabotage=partial(die_at_step, 2 * SAVE_EVERY + 1)).wait() == 9
    assert checkpoints_of(run) == [SAVE_EVERY, 2 * SAVE_EVERY]
    damaged = run / "checkpoints" / f"{2 * SAVE_EVERY:06d}"
    truncate(damaged / "weights.safetensors")
    said = lab.finish(run)
    assert f"warning: checkpoint {damaged} is damaged" in said
    assert f"training: {STEPS - SAVE_EVERY} to do" in said
    assert any(str(damaged) in text for text in Run(run).info["warnings"])


@pytest.mark.parametrize("harm", ["weights", "state"])
def test_a_checkpoint_that_lacks_something_counts_as_damaged(harm: str, lab: Lab, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert lab.start(run, sabotage=partial(die_at_step, 2 * SAVE_EVERY + 1)).wait() == 9
    damaged = run / "checkpoints" / f"{2 * SAVE_EVERY:06d}"
    if harm == "weights":
        first, *rest = sorted(tensors := load_file(damaged / "weights.safetensors"))
        save_file({name: tensors[name] for name in rest}, damaged / "weights.safetensors")
        told = f"it lacks 1 weights, such as {first}"
    else:
        (damaged / "state.json").write_text("{}")
        told = "state.json lacks optimizer, scaler, step"
    said = lab.finish(run)
    assert f"warning: checkpoint {damaged} is damaged ({told}): passed over" in said
    assert f"training: {STEPS - SAVE_EVERY} to do" in said


def test_when_every_checkpoint_is_damaged_the_command_says_so(lab: Lab, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert lab.start(run, sabotage=partial(die_at_step, SAVE_EVERY + 1)).wait() == 9
    truncate(run / "checkpoints" / f"{SAVE_EVERY:06d}" / "optimizer.safetensors")
    command = lab.start(run)
    assert command.wait() == 1
    said = f"dreambooth: every checkpoint in {run / 'checkpoints'} is damaged: remove the folder to train anew"
    assert command.output.splitlines()[-1] == said


def test_another_recipe_leaves_the_run_alone(lab: Lab, tmp_path: Path) -> None:
    run = lab.straight("lora")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    line = commands.arguments(lab.photos, lab.model, run, "--seed", "1")
    command = start(line, tmp_path / "log", lab.cache)
    assert command.wait() == 2
    assert command.output.splitlines()[-1].startswith(f"dreambooth: {run} holds another run (seed: 0 there, 1 here)")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_refused_folder_gets_no_file(lab: Lab) -> None:
    command = start(commands.arguments(lab.photos, lab.model, lab.photos), lab.folder / "log", lab.cache)
    assert command.wait() == 2
    assert f"{lab.photos} holds other files and no run" in command.output
    assert sorted(path.name for path in lab.photos.iterdir()) == ["0.png", "1.png", "2.png"]


def test_a_photo_is_encoded_the_same_whatever_came_before(lab: Lab) -> None:
    source = resolve(str(lab.model))
    family = families.get(source.family)
    rows = [Row(photo, (32, 32)) for photo in usable(read(lab.photos, 32))]

    def encoded(order: list[Row]) -> dict[Row, dict[str, Tensor]]:
        pipe = family.load(source, torch.float32)
        return {row: encode_photo(pipe, family, row, 0) for row in order}

    forward, last_alone = encoded(rows), encoded(rows[-1:])
    backward = encoded(rows[::-1])
    for row in rows:
        assert all(torch.equal(value, backward[row][name]) for name, value in forward[row].items())
    assert all(torch.equal(value, forward[rows[-1]][name]) for name, value in last_alone[rows[-1]].items())


# The state by itself


def trained(steps: int) -> tuple[dict[str, Tensor], torch.optim.Optimizer]:
    """A small model after some steps of AdamW."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for step in range(steps):
        optimizer.zero_grad()
        model(torch.full((1, 3), float(step + 1))).square().sum().backward()
        optimizer.step()
    return dict(model.named_parameters()), optimizer


def everything(weights: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> list[Tensor]:
    state = optimizer.state_dict()["state"]
    return [*weights.values(), *(state[index][name] for index in sorted(state) for name in sorted(state[index]))]


def resumed(folder: Path, said: list[str]) -> tuple[int, list[Tensor]]:
    weights, optimizer = trained(0)
    step = checkpoint.resume(folder, weights, optimizer, said.append)
    return step, everything(weights, optimizer)


def is_state_after(tensors: list[Tensor], step: int) -> bool:
    expected = everything(*trained(step))
    return len(tensors) == len(expected) and all(map(torch.equal, tensors, expected))


def test_a_state_comes_back_bit_for_bit(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 3, *trained(3), keep=2)
    step, tensors = resumed(tmp_path, [])
    assert step == 3
    assert is_state_after(tensors, 3)


def test_the_loss_scale_of_fp16_comes_back(tmp_path: Path) -> None:
    accelerator = Accelerator(cpu=True)
    first, second = (accelerator.prepare(trained(1)[1]) for _ in range(2))
    for optimizer in (first, second):
        optimizer.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        optimizer.scaler.scale(torch.ones(1))
    first.scaler.update(256.0)
    weights, _ = trained(1)
    checkpoint.save(tmp_path, 1, weights, first, keep=1)
    checkpoint.resume(tmp_path, weights, second, pytest.fail)
    assert second.scaler.get_scale() == 256.0


def test_wherever_a_save_dies_a_whole_state_is_there(tmp_path: Path) -> None:
    """Die at the first call that touches the disk, then at the second, and so on, until a save comes to its end."""
    seen = set()
    for call in range(1, 100):
        folder = tmp_path / str(call)
        checkpoint.save(folder, 1, *trained(1), keep=1)
        status = status_of_dying(call, lambda folder=folder: checkpoint.save(folder, 2, *trained(2), keep=1))
        said: list[str] = []
        step, tensors = resumed(folder, said)
        assert is_state_after(tensors, step)
        assert said == []
        for state in checkpoint.states(folder):
            assert len(list(state.iterdir())) == 3, "a part of an old state"
        sweep(folder)
        assert {path.name for path in folder.iterdir()} <= {"000001", "000002"}
        seen.add(step)
        if status == 0:
            break
    assert status == 0
    assert call > 10
    assert seen == {1, 2}


def test_wherever_the_first_description_of_a_run_dies_it_can_be_given_again(tmp_path: Path) -> None:
    recipe = Recipe.of({"subjects": [{"photos": "photos", "class_noun": "dog"}]})
    info = {"identity": "1", "created": "now", "times": {}, "warnings": [], "finished": False, "steps": 4}

    def begin(run: Run) -> None:
        with run.lock():
            run.begin(recipe, info, {})

    for call in range(1, 100):
        run = Run(tmp_path / str(call))
        status = status_of_dying(call, lambda run=run: begin(run))
        begin(run)
        assert run.recipe == recipe
        assert list(run.path.glob(".*.tmp")) == []
        if status == 0:
            break
    assert status == 0
    assert call > 8


@pytest.mark.parametrize("file", ["weights.safetensors", "optimizer.safetensors", "state.json"])
def test_a_truncated_file_is_found_out(file: str, tmp_path: Path) -> None:
    for step in (1, 2):
        checkpoint.save(tmp_path, step, *trained(step), keep=2)
    truncate(tmp_path / "000002" / file)
    said: list[str] = []
    step, tensors = resumed(tmp_path, said)
    assert step == 1
    assert is_state_after(tensors, 1)
    assert len(said) == 1
    assert str(tmp_path / "000002") in said[0]


def test_a_folder_without_its_description_is_no_state(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, *trained(1), keep=2)
    torn = checkpoint.save(tmp_path, 2, *trained(2), keep=2)
    (torn / "state.json").unlink()
    said: list[str] = []
    assert resumed(tmp_path, said)[0] == 1
    assert said == []
    checkpoint.save(tmp_path, 2, *trained(2), keep=2)
    assert is_state_after(resumed(tmp_path, said)[1], 2)


def test_nothing_readable_is_an_error_and_nothing_at_all_a_beginning(tmp_path: Path) -> None:
    assert resumed(tmp_path, [])[0] == 0
    checkpoint.save(tmp_path, 1, *trained(1), keep=2)
    truncate(tmp_path / "000001" / "weights.safetensors")
    with pytest.raises(RunError, match="every checkpoint in "):
        resumed(tmp_path, [])


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_states_are_kept(keep: int, tmp_path: Path) -> None:
    for step in (999_998, 999_999, 1_000_000, 1_000_001):
        checkpoint.save(tmp_path, step, *trained(1), keep=keep)
    assert [int(path.name) for path in checkpoint.states(tmp_path)] == [999_998, 999_999, 1_000_000, 1_000_001][-keep:]
    assert resumed(tmp_path, [])[0] == 1_000_001


def test_going_back_behind_a_damaged_state_removes_it_and_not_the_new_one(tmp_path: Path) -> None:
    for step in (4, 8):
        checkpoint.save(tmp_path, step, *trained(step), keep=2)
    truncate(tmp_path / "000008" / "weights.safetensors")
    checkpoint.save(tmp_path, 6, *trained(6), keep=1)
    assert [path.name for path in checkpoint.states(tmp_path)] == ["000006"]


# What goes wrong


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def status_of_dying(call: int, work: Callable[[], object]) -> int:
    """Do `work` in a process that dies at its `call`-th call of a function that changes the disk; return its status."""
    child = os.fork()
    if child == 0:
        counts = [0]
        for name in ("fsync", "replace", "unlink", "rmdir", "mkdir", "chmod"):
            setattr(os, name, partial(_count_and_die, getattr(os, name), counts, call))
        work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _count_and_die(function: Callable[..., object], counts: list[int], call: int, *args: Any, **named: Any) -> object:
    counts[0] += 1
    if counts[0] == call:
        os._exit(9)
    return function(*args, **named)


def die_replacing(name: str) -> None:
    """Die at the moment when a file or folder called `name` would come into its place."""
    replace = os.replace
    os.replace = lambda source, target: os._exit(9) if Path(target).name == name else replace(source, target)


def interrupt_replacing(name: str) -> None:
    """Be interrupted at that moment."""
    replace = os.replace

    def interrupted(source: Path, target: Path) -> None:
        if Path(target).name == name:
            signal.raise_signal(signal.SIGINT)
        replace(source, target)

    os.replace = interrupted


def die_at_step(step: int) -> None:
    """Die in the forward pass of a step (from 1), after the earlier ones have been written."""
    _in_passes(lambda current: os._exit(9) if current == step else None)


def sleep_at_step(step: int) -> None:
    """Take a minute for a step, and say so."""

    def sleep(current: int) -> None:
        if current == step:
            print("asleep", flush=True)
            time.sleep(60)

    _in_passes(sleep)


def crawl_after(step: int) -> None:
    """Leave time to be stopped after a step."""
    _in_passes(lambda current: time.sleep(0.2 * (current > step)))


def _in_passes(act: Callable[[int], object]) -> None:
    backward, passes = loop.backward, itertools.count(1)

    def acting(state: loop.Loop, batch: Batch) -> Tensor:
        act(next(passes))
        return backward(state, batch)

    loop.backward = acting
