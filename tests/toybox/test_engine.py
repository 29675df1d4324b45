"""The toybox's training engine: what is killed and run again ends where the uninterrupted run ends, bit for bit."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dreambooth.errors import RunError, UserError
from dreambooth.toybox.model import engine
from dreambooth.toybox.model.sizes import Plan

PLAN = Plan(steps=30, batch=8, rate=0.05, warmup=5, cooldown=0.4, ema=0.9, log_every=2, evaluate_every=10)


class Line:
    """Fits y = 3 x - 1 with a little network."""

    def __init__(self, width: int = 4, scale: float = 1.0) -> None:
        torch.manual_seed(0)
        self.module = nn.Sequential(nn.Linear(1, width), nn.Tanh(), nn.Linear(width, 1))
        self.scale = scale

    def loss(self, draw: torch.Generator, progress: float) -> dict[str, Tensor]:
        x_B1 = torch.rand(8, 1, generator=draw)
        square = (self.module(x_B1) - (3 * x_B1 - 1)).square().mean() * self.scale
        return {"loss": square, "progress": torch.tensor(progress)}

    def evaluate(self) -> dict[str, float]:
        assert not self.module.training
        x_B1 = torch.linspace(0, 1, 32)[:, None]
        return {"error": float((self.module(x_B1) - (3 * x_B1 - 1)).abs().mean())}

    def save(self, folder: Path) -> None:
        raise NotImplementedError


def run(folder: Path, stop_after: int | None = None, **settings: float) -> list[engine.Point]:
    """Drops the generator after `stop_after` lines, which is what a kill does to the process."""
    points = []
    for point in engine.fit(Line(), folder, PLAN, seed=7, **settings):  # type: ignore[arg-type]
        points.append(point)
        if len(points) == stop_after:
            break
    return points


def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    run(tmp_path / "whole")
    for stop_after in (4, 3, 6):
        run(tmp_path / "pieces", stop_after, save_every=0.0)
    run(tmp_path / "pieces", save_every=0.0)
    weights = [(tmp_path / name / engine.STATE) for name in ("whole", "pieces")]
    tensors = [load_file(path) for path in weights]
    assert tensors[0].keys() == tensors[1].keys()
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])
    assert {name.split(".")[0] for name in tensors[0]} == {"module", "ema", "optimiser"}


def test_the_curve_of_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    run(tmp_path / "whole")
    run(tmp_path / "pieces", 5, save_every=0.0)
    with (tmp_path / "pieces" / engine.CURVE).open("a") as lines:
        lines.write(json.dumps({"step": 28, "seconds": 0.0, "values": {"loss": -1.0}}) + "\n")
    run(tmp_path / "pieces")
    curves = [(tmp_path / name / engine.CURVE).read_text().splitlines() for name in ("whole", "pieces")]
    whole, pieces = ([(row["step"], row["values"]) for row in map(json.loads, lines)] for lines in curves)
    assert whole == pieces
    assert [step for step, values in whole if "error" in values] == [10, 20, 30]


def test_time_limit_saves_and_stops(tmp_path: Path) -> None:
    assert [point.step for point in run(tmp_path, seconds=0.0)] == [2]
    assert [point.step for point in run(tmp_path, seconds=0.0)] == [4]


def test_a_finished_run_does_nothing(tmp_path: Path) -> None:
    run(tmp_path)
    assert run(tmp_path) == []


def test_it_learns_and_the_average_is_evaluated(tmp_path: Path) -> None:
    points = run(tmp_path)
    errors = [point.values["error"] for point in points if "error" in point.values]
    assert errors[-1] < 0.5 * errors[0]
    task = Line()
    state = engine.restore_average(task, tmp_path, PLAN)
    with torch.no_grad():
        again = task.evaluate()
    assert again["error"] == pytest.approx(errors[-1], rel=1e-6)
    assert all(
        torch.equal(one, two) for one, two in zip(task.module.parameters(), state.ema.shadow_params, strict=True)
    )


def test_a_changed_seed_changes_the_draws() -> None:
    draws = [torch.rand(4, generator=engine.generator(seed, step)) for seed, step in ((0, 0), (1, 0), (0, 1), (0, 0))]
    assert torch.equal(draws[0], draws[3])
    assert not torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_rate_rises_stays_and_falls() -> None:
    rates = [engine.rate(PLAN, step) for step in range(30)]
    assert rates[0] == pytest.approx(0.01)
    assert rates[4:18] == pytest.approx([0.05] * 14)
    assert rates[18:] == pytest.approx([0.05 * (30 - step) / 12 for step in range(18, 30)])


def test_norms_biases_and_embeddings_are_not_decayed() -> None:
    module = nn.ModuleDict({"token_embedding": nn.Embedding(3, 2), "linear": nn.Linear(2, 2), "norm": nn.LayerNorm(2)})
    optimiser = engine.start(module, PLAN).optimiser
    decayed = [parameter for group in optimiser.param_groups if group["weight_decay"] for parameter in group["params"]]
    assert len(decayed) == 1
    assert decayed[0] is module["linear"].weight


def test_anothers_state_is_refused(tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(UserError, match="is the state of another network: move it away to begin anew"):
        next(engine.fit(Line(width=5), tmp_path, dataclasses.replace(PLAN, steps=40)))


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="the loss before step 2 is nan: lower the learning rate"):
        next(engine.fit(Line(scale=float("nan")), tmp_path, PLAN))
