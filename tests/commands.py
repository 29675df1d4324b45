"""Runs the command line in processes of their own, which tests may kill.

They are forked from one server that has imported everything: a run takes a second instead of ten.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

PRELOADED = (
    "dreambooth.cli",
    "dreambooth.training",
    "dreambooth.families.sd",
    "dreambooth.methods.full",
    "dreambooth.methods.lora",
    "dreambooth.reporting",
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
    "diffusers.loaders.lora_pipeline",
    "transformers.models.clip.modeling_clip",
    "spellchecker",
)
# One thread, and no accelerator where there is one: two processes would need two.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@dataclass(frozen=True)
class Command:
    """A command under way."""

    process: BaseProcess
    log: Path

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return self.log.read_text(encoding="utf-8")

    def send(self, signal_: int) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, signal_)

    def wait(self, seconds: float = 120) -> int:
        """Return its exit status, or minus the signal that ended it."""
        self.process.join(seconds)
        assert self.process.exitcode is not None, f"still running after {seconds} s:\n{self.output}"
        return self.process.exitcode

    def wait_until(self, reached: Callable[[], bool], seconds: float = 120) -> None:
        """Wait until `reached()`, which must be before the command ends."""
        deadline = time.monotonic() + seconds
        while not reached():
            assert self.process.exitcode is None, f"ended before it could be stopped:\n{self.output}"
            assert time.monotonic() < deadline, f"not reached in {seconds} s:\n{self.output}"
            time.sleep(0.001)


def start(
    arguments: Sequence[str | Path],
    log: Path,
    cache: Path,
    sabotage: Callable[[], object] | None = None,
    **environment: str,
) -> Command:
    """Start `dreambooth ARGUMENTS`, after `sabotage` in that process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    values = {**ENVIRONMENT, "DREAMBOOTH_CACHE": str(cache), **environment}
    process = context.Process(target=_run, args=([str(a) for a in arguments], log, values, sabotage))
    process.start()
    return Command(process, log)


def start_ranks(count: int, arguments: Sequence[str | Path], folder: Path, cache: Path) -> list[Command]:
    """Start a command in `count` processes that train together, as `torchrun` does."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": str(count), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    folder.mkdir(exist_ok=True)
    return [
        start(arguments, folder / f"{rank}.log", cache, None, RANK=str(rank), LOCAL_RANK=str(rank), **world)
        for rank in range(count)
    ]


def _run(arguments: Sequence[str], log: Path, environment: dict[str, str], sabotage: Callable[[], object] | None) -> None:
    with log.open("w", encoding="utf-8") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    os.environ.update(environment)
    import torch

    from dreambooth import cli

    torch.set_num_threads(1)
    if sabotage is not None:
        sabotage()
    cli.main(arguments)
