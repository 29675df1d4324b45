"""Runs the command line in processes of their own, which tests may kill, and compares what runs leave behind.

The processes are forked from one server that has imported everything: a run takes two seconds instead of ten.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.pictures import picture

PRELOADED = (
    "dreambooth.cli",
    "dreambooth.training",
    "dreambooth.families.sd",
    "dreambooth.methods.full",
    "dreambooth.methods.lora",
    "dreambooth.methods.textual_inversion",
    "dreambooth.reporting",
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
    "diffusers.loaders.lora_pipeline",
    "transformers.models.clip.modeling_clip",
)
# One thread; and no accelerator where there is one, since two processes would need two.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
STEPS = 12
SAVE_EVERY = 4


@dataclass(frozen=True)
class Command:
    """A command under way."""

    process: BaseProcess
    log: Path

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return self.log.read_text(encoding="utf-8")

    def send(self, number: int) -> None:
        """Send it a signal."""
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def wait(self, seconds: float = 120) -> int:
        """Return its exit status, or minus the signal that ended it."""
        self.process.join(seconds)
        assert self.process.exitcode is not None, f"still running after {seconds} s:\n{self.output}"
        return self.process.exitcode

    def wait_until(self, reached: Callable[[], bool]) -> None:
        """Wait until `reached()`, which must come before the command ends."""
        wait_until(reached, lambda: self.process.exitcode is None)


def wait_until(reached: Callable[[], bool], is_running: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert is_running(), "it ended before it could be stopped"
        assert time.monotonic() < deadline, f"not reached in {seconds} s"
        time.sleep(0.005)


def start(
    arguments: Sequence[str | Path],
    log: Path,
    cache: Path,
    sabotage: Callable[[], object] | None = None,
    **environment: str,
) -> Command:
    """Start `dreambooth ARGUMENTS`, after `sabotage` in its process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    values = {**ENVIRONMENT, "DREAMBOOTH_CACHE": str(cache), **environment}
    process = context.Process(target=_main, args=([str(a) for a in arguments], log, values, sabotage))
    process.start()
    return Command(process, log)


def start_ranks(
    count: int,
    arguments: Sequence[str | Path],
    logs: Path,
    cache: Path,
    sabotage: Sequence[Callable[[], object] | None] = (None, None),
) -> list[Command]:
    """Start a command in `count` processes that train together, as `torchrun` does, each after its `sabotage`."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": str(count), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    logs.mkdir(parents=True)
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
    return [
        start(arguments, logs / f"{rank['RANK']}.log", cache, harm, **rank, **world)
        for rank, harm in zip(ranks, sabotage, strict=True)
    ]


def _main(arguments: list[str], log: Path, values: dict[str, str], sabotage: Callable[[], object] | None) -> None:
    with log.open("w", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115 the process's own until its end
    os.environ.update(values)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has it ignored where the tests run behind it
    torch.set_num_threads(1)
    from dreambooth import cli

    if sabotage is not None:
        sabotage()
    cli.main(arguments)


def make_photos(folder: Path, sizes: Sequence[tuple[int, int]] = ((96, 80),) * 3) -> Path:
    """Write photos of these widths and heights."""
    folder.mkdir()
    for index, size in enumerate(sizes):
        picture(index, size).save(folder / f"{index}.png")
    return folder


def arguments(photos: Path, model: Path, out: Path, *more: str, steps: int = STEPS) -> list[str | Path]:
    """Return a small `train` command that tells every step."""
    identifier = "<dog-1>" if {"textual-inversion", "pivotal"} & set(more) else "ohwx"
    known = ["--class", "dog", "--identifier", identifier, "--allow", "identifier", "--samples", "0"]
    known += ["--allow", "learning-rate"]
    length = ["--steps", str(steps), "--save-every", str(SAVE_EVERY), "--log-every", "1", "--learning-rate", "1e-4"]
    prior = [] if "--prior-count" in more else ["--prior-count", "2"]
    return ["train", photos, "--model", model, "--out", out, *known, *length, *prior, "--prior-steps", "2", *more]


def steps_of(run: Path) -> list[dict[str, float]]:
    """Return the whole lines of steps.jsonl, without how long they took."""
    path = run / "steps.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    entries = [json.loads(line) for line in lines if line.endswith("\n")]
    timing = ("seconds", "images_per_second")
    return [{name: value for name, value in entry.items() if name not in timing} for entry in entries]


def checkpoints_of(run: Path) -> list[int]:
    """Return the steps of the states that a run has."""
    return sorted(int(path.name) for path in (run / "checkpoints").glob("[0-9]*"))


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """Return all tensors under a folder."""
    files = sorted(folder.rglob("*.safetensors"))
    assert files, folder
    return {f"{file.name}/{name}": value for file in files for name, value in load_file(file).items()}


def assert_same_run(one: Path, other: Path) -> None:
    """Check that two finished runs are the same bit for bit: losses, adapter, and state after the last step."""
    assert steps_of(one) == steps_of(other)
    assert [entry["step"] for entry in steps_of(one)] == list(range(1, STEPS + 1))
    for part in ("adapter", f"checkpoints/{STEPS:06d}"):
        ours, theirs = tensors_of(one / part), tensors_of(other / part)
        assert ours.keys() == theirs.keys()
        assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert json.loads((one / "run.json").read_text(encoding="utf-8"))["finished"]
    assert list(one.rglob(".*.tmp")) == []
