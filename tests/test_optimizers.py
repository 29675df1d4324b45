"""Every optimiser trains, goes on from a checkpoint bit for bit, and is refused where it cannot work."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dreambooth import checkpoint, optimizers, presets
from dreambooth.averaging import PREFIX, Average
from dreambooth.errors import RunError, UserError
from dreambooth.methods import Group
from dreambooth.models import Source
from dreambooth.recipe import Recipe
from dreambooth.run import Run
from tests import calls
from tests.commands import make_photos
from tests.test_loop import recipe_for
from tests.test_training import losses

SIDE = 80
"""Large enough for states of 8 bits."""
NAMES = list(optimizers.KINDS)


class Fit:
    """Two matrices to fit to a product, by the recipe's optimiser."""

    def __init__(self, name: str, rate: float) -> None:
        recipe = recipe_for(Path("model"), optimizer=name, weight_decay=0.0)
        draw = torch.Generator().manual_seed(0)
        self.weights = {name: nn.Parameter(torch.randn(SIDE, 64, generator=draw) / 8) for name in ("one", "two")}
        self.target = torch.randn(SIDE, SIDE, generator=draw)
        self.optimizer = optimizers.build([Group("unet", dict(self.weights), rate)], recipe)

    def steps(self, count: int) -> list[float]:
        return [self.step() for _ in range(count)]

    def step(self) -> float:
        loss = (self.weights["one"] @ self.weights["two"].T - self.target).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()


def make(name: str) -> Fit:
    return Fit(name, optimizers.KINDS[name].rate or 3e-2)


@pytest.mark.parametrize("name", NAMES)
def test_it_minimises(name: str) -> None:
    fit = make(name)
    losses = fit.steps(150)
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_goes_on_bit_for_bit(name: str, tmp_path: Path) -> None:
    straight, first, second = make(name), make(name), make(name)
    expected = straight.steps(12)
    assert first.steps(5) == expected[:5]
    checkpoint.save(tmp_path, 5, first.weights, first.optimizer, keep=1)
    assert checkpoint.resume(tmp_path, second.weights, second.optimizer, pytest.fail) == 5
    assert second.steps(7) == expected[5:]


@pytest.mark.parametrize("name", ["adamw", "adamw-8bit"])
def test_a_state_is_written_as_it_was_when_it_was_taken(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the disk takes: the training has gone on meanwhile."""
    fit, write, may_write = make(name), checkpoint._write, threading.Event()

    def slow(*given: Any) -> Path:
        assert may_write.wait(10)
        return write(*given)

    monkeypatch.setattr(checkpoint, "_write", slow)
    with checkpoint.Writer(tmp_path, 2, background=True) as writer:
        fit.steps(3)
        writer.save(3, fit.weights, fit.optimizer)
        expected = fit.steps(4)
        assert not checkpoint.states(tmp_path)
        may_write.set()
    again = make(name)
    assert checkpoint.resume(tmp_path, again.weights, again.optimizer, pytest.fail) == 3
    assert again.steps(4) == expected


def test_what_went_wrong_while_writing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: Any) -> Path:
        raise RunError("the disk is full")

    fit = make("adamw")
    monkeypatch.setattr(checkpoint, "_write", full)
    writer = checkpoint.Writer(tmp_path, 2, background=True)
    writer.save(1, fit.weights, fit.optimizer)
    with pytest.raises(RunError, match="full"):
        writer.save(2, fit.weights, fit.optimizer)
    writer.save(3, fit.weights, fit.optimizer)
    with pytest.raises(RunError, match="full"):
        writer.__exit__(None, None, None)


@pytest.mark.parametrize("name", optimizers.InBackward.ABLE)
def test_steps_in_the_backward_pass_are_the_same_steps(name: str) -> None:
    plain, inward = make(name), make(name)
    taken = optimizers.InBackward(inward.optimizer, 1e9)
    expected, norms = [], []
    for _ in range(6):
        expected.append(plain.step())
        norms.append(torch.stack([weight.grad.norm() for weight in plain.weights.values()]).norm())
    found = []
    for norm in norms:
        loss = (inward.weights["one"] @ inward.weights["two"].T - inward.target).square().mean()
        loss.backward()
        assert all(weight.grad is None for weight in inward.weights.values())
        assert taken.take_norm() == pytest.approx(float(norm), rel=1e-6)
        found.append(loss.item())
    assert found == pytest.approx(expected, rel=1e-6)
    assert [group["params"] for group in inward.optimizer.param_groups] == [list(inward.weights.values())]


def test_steps_in_the_backward_pass_keep_to_the_schedule_when_they_go_on(tmp_path: Path) -> None:
    fit = make("adamw")
    optimizers.InBackward(fit.optimizer, 1e9)
    checkpoint.save(tmp_path, 1, fit.weights, fit.optimizer, keep=1)
    checkpoint.resume(tmp_path, fit.weights, fit.optimizer, pytest.fail)
    fit.optimizer.param_groups[0]["lr"] = 0.0
    before = fit.weights["one"].detach().clone()
    (fit.weights["one"] @ fit.weights["two"].T - fit.target).square().mean().backward()
    assert torch.equal(fit.weights["one"], before)


def test_a_step_in_the_backward_pass_clips_each_gradient_alone() -> None:
    fit = make("adamw")
    fit.optimizer = torch.optim.SGD(fit.weights.values(), lr=1.0)
    optimizers.InBackward(fit.optimizer, 1e-3)
    before = {name: weight.detach().clone() for name, weight in fit.weights.items()}
    (fit.weights["one"] @ fit.weights["two"].T - fit.target).square().mean().backward()
    moved = [float(_norm(before[name] - weight)) for name, weight in fit.weights.items()]
    assert moved == pytest.approx([1e-3] * 2, rel=1e-3)


def test_a_run_that_steps_in_the_backward_pass_resumes_and_learns_the_same(tiny_sd: Path, tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos")
    values = {"method": "full", "prior_count": 2, "save_every": 2, "max_grad_norm": 1e9, "log_every": 1}
    more = ("--allow", "learning-rate")

    def run(name: str, steps: int, *flags: str) -> list[float]:
        done = calls.train(photos, tiny_sd, *more, *flags, out=tmp_path / name, steps=steps, **values)
        assert done.status == 0, done
        return [figures[1] for figures in losses(Run(tmp_path / name))]

    plain, inward = run("plain", 4), run("inward", 4, "--step-in-backward")
    assert inward == pytest.approx(plain, rel=1e-5)
    run("resumed", 2, "--step-in-backward")
    assert run("resumed", 4, "--step-in-backward") == inward


def test_fused_adamw_is_adamw() -> None:
    fit, plain = make("adamw"), make("adamw")
    plain.optimizer = torch.optim.AdamW(plain.weights.values(), lr=3e-2, weight_decay=0.0, fused=False)
    assert fit.steps(30) == pytest.approx(plain.steps(30), rel=1e-5)


def test_a_schedule_free_optimiser_ships_its_average() -> None:
    fit = make("schedule-free")
    fit.steps(40)
    trained = {name: weight.detach().clone() for name, weight in fit.weights.items()}
    optimizers.mode(fit.optimizer, training=False)
    assert not torch.equal(trained["one"], fit.weights["one"])
    optimizers.mode(fit.optimizer, training=True)
    assert torch.allclose(trained["one"], fit.weights["one"], atol=1e-5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optimizer": "muon", "targets": "wide"}, "trains matrices alone"),
        ({"optimizer": "muon", "method": "full"}, "trains matrices alone"),
        ({"optimizer": "schedule-free", "schedule": "cosine"}, "takes the place of a schedule"),
        ({"optimizer": "schedule-free", "warmup": 10}, "takes the place of a schedule"),
        ({"optimizer": "schedule-free", "method": "pivotal"}, "pivotal does two: use another"),
        ({"optimizer": "schedule-free", "beta1": 0.0}, "averages by --beta1, which is then more than 0"),
        ({"optimizer": "prodigy", "method": "pivotal"}, "pivotal does two: use another"),
    ],
)
def test_refusals(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        optimizers.require(recipe_for(Path("model"), **values))


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(optimizers.importlib, "import_module", missing)
    with pytest.raises(UserError, match=r"needs prodigyopt: pip install 'dreambooth\[optimizers\]', or use adamw"):
        optimizers.require(recipe_for(Path("model"), optimizer="prodigy"))


def test_prodigy_has_one_rate() -> None:
    given = {"optimizer": "prodigy", "train_text_encoder": True, "learning_rate": 0.5}
    given |= {"subjects": [{"photos": "dog", "class_noun": "dog"}]}
    source = Source("sd", "sd", Path("model"), "id", None)
    filled, _ = presets.fill(Recipe.of(given), source, 64, "cpu")
    assert filled.text_encoder_learning_rate == filled.learning_rate == 0.5
    with pytest.raises(UserError, match="prodigy has one rate"):
        presets.fill(Recipe.of({**given, "text_encoder_learning_rate": 1.0}), source, 64, "cpu")


def test_the_average_is_the_recursion_written_out() -> None:
    weight = torch.zeros(3)
    average, expected = Average({"w": weight}, 0.5), torch.zeros(3)
    for step in range(1, 30):
        weight += torch.tensor([1.0, -2.0, 0.5]) * step
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weight
    assert torch.allclose(average.tensors[f"{PREFIX}w"], expected)
    own = weight.clone()
    with average.in_place():
        assert torch.allclose(weight, expected)
    assert torch.equal(weight, own)


def test_a_run_ships_the_average_and_trains_on_without_it(tiny_sd: Path, tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos")
    done = calls.train(photos, tiny_sd, out=tmp_path / "run", ema=0.5, save_every=1)
    assert done.status == 0, done
    run = Run.open(tmp_path / "run")
    kept = load_file(checkpoint.states(run.checkpoints)[-1] / "weights.safetensors")
    shipped = load_file(run.adapter / "pytorch_lora_weights.safetensors")

    def norms(prefix: str) -> list[float]:
        return sorted(round(float(_norm(kept[name])), 5) for name in kept if name.startswith(prefix))

    told = sorted(round(float(_norm(weight)), 5) for weight in shipped.values())
    assert told == norms(PREFIX)
    assert told != norms("unet")


def _norm(weight: Tensor) -> Tensor:
    return weight.float().norm()
