"""The one training loop of the toybox: AdamW, warm-up and cool-down, EMA, and a state that survives being killed.

Every random draw of a step is a function of (seed, step), so no RNG state is kept: to resume is to run the same command
again, and the result is the uninterrupted one's, bit for bit on one machine with one thread count.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from diffusers.training_utils import EMAModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from dreambooth.errors import RunError, UserError
from dreambooth.toybox.model.sizes import Plan

STATE = "state.safetensors"
CURVE = "curve.jsonl"


class Task(Protocol):
    """What a network adds to the loop. Not a place for shared code."""

    @property
    def module(self) -> nn.Module:
        """Everything that learns."""
        ...

    def loss(self, draw: torch.Generator, progress: float) -> dict[str, Tensor]:
        """The parts to log of one step's loss; the one to minimise is called "loss". Draws only from `draw`."""
        ...

    def evaluate(self) -> dict[str, float]:
        """Measurements on held-out renders, with the averaged weights in `module`."""
        ...

    def save(self, folder: Path) -> None:
        """Writes `module` in its stock format."""
        ...


@dataclass(frozen=True)
class Point:
    """One line of `curve.jsonl`: the means since the line before, or an evaluation."""

    step: int
    seconds: float
    values: dict[str, float]


@dataclass
class State:
    """Everything that a step changes."""

    module: nn.Module
    optimiser: torch.optim.AdamW
    ema: EMAModel
    step: int = 0
    seconds: float = 0.0


def fit(
    task: Task,
    folder: Path,
    plan: Plan,
    *,
    seed: int = 0,
    precision: str = "float32",
    seconds: float | None = None,
    save_every: float = 120.0,
) -> Iterator[Point]:
    """Trains until the plan's last step, or until `seconds` of this call are over; yields the lines of the curve.

    Args:
        task: The network, its loss and its measurements.
        folder: Where the state is kept; a state found there is continued.
        plan: How long and how fast.
        seed: Of every draw.
        precision: "float32" or "bfloat16" (autocast; the weights stay float32).
        seconds: Wall-clock limit of this call, after which the state is saved.
        save_every: Seconds between saves; little more than this is lost by a kill.

    Raises:
        UserError: The state in `folder` is another network's.
        RunError: The loss is not finite.
    """
    state = start(task.module, plan)
    if (folder / STATE).exists():
        _load(state, folder)
    began = saved = time.monotonic()
    while state.step < plan.steps:
        before, means = state.step, _block(task, state, plan, seed, precision)
        yield _write(folder, Point(state.step, state.seconds, means))
        now = time.monotonic()
        ending = state.step == plan.steps or (seconds is not None and now - began > seconds)
        if ending or now - saved > save_every:
            _save(state, folder)
            saved = now
        if state.step // plan.evaluate_every > before // plan.evaluate_every or state.step == plan.steps:
            yield _write(folder, Point(state.step, state.seconds, evaluate(task, state)))
        if ending:
            return


def start(module: nn.Module, plan: Plan) -> State:
    """The state before the first step. Norms, biases and embeddings are not decayed."""
    decayed: list[Tensor] = []
    free: list[Tensor] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            (free if parameter.ndim < 2 or "embedding" in name else decayed).append(parameter)
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": free, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=plan.rate, betas=plan.betas, weight_decay=plan.weight_decay, fused=True)
    ema = EMAModel(module.parameters(), decay=plan.ema, foreach=True)
    return State(module, optimiser, ema)


def rate(plan: Plan, step: int) -> float:
    """Learning rate of the step counted from 0."""
    left = (plan.steps - step) / max(1.0, plan.cooldown * plan.steps)
    return plan.rate * min(1.0, (step + 1) / plan.warmup, left)


def generator(seed: int, step: int) -> torch.Generator:
    """The source of every draw of one step."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence((seed, step)).generate_state(1)[0]))


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Mixed precision.

    On a CPU attention is then spelled out in matrix products: the fused backward in bfloat16 is four times slower.
    """
    stack = ExitStack()
    if precision != "float32":
        stack.enter_context(torch.autocast(device.type, getattr(torch, precision)))
        if device.type == "cpu":
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
    return stack


def evaluate(task: Task, state: State) -> dict[str, float]:
    """The task's measurements with the averaged weights, in float32."""
    state.ema.store(state.module.parameters())
    state.ema.copy_to(state.module.parameters())
    state.module.eval()
    with torch.no_grad():
        values = task.evaluate()
    state.module.train()
    state.ema.restore(state.module.parameters())
    return values


def restore_average(task: Task, folder: Path, plan: Plan) -> State:
    """Puts the averaged weights of the state in `folder` into the task's module."""
    state = start(task.module, plan)
    _load(state, folder)
    state.ema.copy_to(task.module.parameters())
    task.module.eval()
    return state


def _block(task: Task, state: State, plan: Plan, seed: int, precision: str) -> dict[str, float]:
    """The steps up to the next line of the curve; returns the means of what they logged.

    States are saved between blocks only, so a resumed run writes the same lines.
    """
    began = time.monotonic()
    count = min(plan.log_every - state.step % plan.log_every, plan.steps - state.step)
    rows = [update(task, state, plan, seed, precision) for _ in range(count)]
    means = {name: float(torch.stack([row[name] for row in rows]).mean()) for name in rows[0]}
    if not np.isfinite(means["loss"]):
        raise RunError(f"the loss before step {state.step} is {means['loss']}: lower the learning rate")
    state.seconds += time.monotonic() - began
    return means | {"rate": rate(plan, state.step - 1)}


def update(task: Task, state: State, plan: Plan, seed: int, precision: str) -> dict[str, Tensor]:
    """Takes one step; returns the parts of its loss."""
    for group in state.optimiser.param_groups:
        group["lr"] = rate(plan, state.step)
    device = next(state.module.parameters()).device
    with autocast(device, precision):
        parts = task.loss(generator(seed, state.step), state.step / plan.steps)
    state.optimiser.zero_grad(set_to_none=True)
    parts["loss"].backward()  # type: ignore[no-untyped-call]
    norm = nn.utils.clip_grad_norm_(state.module.parameters(), plan.clip)
    state.optimiser.step()
    state.ema.step(state.module.parameters())
    state.step += 1
    return {name: part.detach().float() for name, part in parts.items()} | {"grad_norm": norm}


def _write(folder: Path, point: Point) -> Point:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / CURVE).open("a") as lines:
        lines.write(json.dumps(asdict(point)) + "\n")
    return point


def _save(state: State, folder: Path) -> None:
    """One file, replaced atomically: the weights, their average, the optimiser's moments, step and time."""
    tensors = {f"module.{name}": tensor for name, tensor in state.module.state_dict().items()}
    tensors |= {f"ema.{index}": tensor for index, tensor in enumerate(state.ema.shadow_params)}
    for index, slots in state.optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{name}": tensor for name, tensor in slots.items()}
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{STATE}.partial"
    save_file(tensors, partial, metadata={"step": str(state.step), "seconds": repr(state.seconds)})
    os.replace(partial, folder / STATE)


def _load(state: State, folder: Path) -> None:
    """The inverse of `_save`; forgets the lines of the curve that are later than the state."""
    device = next(state.module.parameters()).device
    with safe_open(folder / STATE, framework="pt", device=str(device)) as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    try:
        state.module.load_state_dict(_under(tensors, "module."))
    except RuntimeError as error:
        raise UserError(f"{folder / STATE} is the state of another network: move it away to begin anew") from error
    state.step, state.seconds = int(metadata["step"]), float(metadata["seconds"])
    average = _under(tensors, "ema.")
    state.ema.load_state_dict(
        state.ema.state_dict()
        | {"optimization_step": state.step, "shadow_params": [average[str(index)] for index in range(len(average))]}
    )
    _load_moments(state.optimiser, _under(tensors, "optimiser."))
    _forget_later(folder / CURVE, state.step)


def _load_moments(optimiser: torch.optim.AdamW, tensors: dict[str, Tensor]) -> None:
    slots: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, slot = name.split(".")
        slots.setdefault(int(index), {})[slot] = tensor
    optimiser.load_state_dict(optimiser.state_dict() | {"state": slots})


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _forget_later(curve: Path, step: int) -> None:
    if curve.exists():
        lines = curve.read_text().splitlines(keepends=True)
        curve.write_text("".join(line for line in lines if json.loads(line)["step"] <= step))
