"""The estimate of a step's memory against real steps, and the way that is chosen where memory is short."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import nn

from dreambooth import environment, families, fitting, frozen, loop, memory, placing, quantise, swapping
from dreambooth.errors import UserError
from dreambooth.geometry import Size
from dreambooth.models import resolve
from dreambooth.recipe import Recipe
from dreambooth.run import Run
from tests import calls
from tests.commands import make_photos
from tests.test_loop import SQUARE, make_loop, recipe_for
from tests.test_training import losses

CPU = torch.device("cpu")


def test_steps_in_the_backward_pass_keep_no_gradients(tiny_sd: Path) -> None:
    recipe = recipe_for(tiny_sd, method="full", learning_rate=1e-5, gradient_checkpointing=True)
    source = resolve(str(tiny_sd))
    family = families.get(source.family)
    pipe = family.load(source, torch.float32)
    inward = recipe.model_copy(update={"step_in_backward": True})
    plain, spared = (memory.step_bytes(pipe, family, each, 1, CPU) for each in (recipe, inward))
    weights = sum(weight.nbytes for weight in family.denoiser(pipe).parameters())
    assert plain - spared == pytest.approx(weights, rel=0.3)


def measured(recipe: Recipe, sizes: Sequence[Size] = (SQUARE,) * 3) -> int:
    """The most bytes of tensors during two real steps, the weights and what the optimiser keeps included."""
    state, _ = make_loop(recipe, sizes)
    if frozen.is_needed(recipe):
        state = replace(state, frozen=frozen.Frozen.of(state.trainee, str))
    if recipe.gradient_checkpointing:
        for part in state.trainee.components.values():
            memory.checkpoint_gradients(part)
    next(loop.steps(state, 0))  # conditioning is encoded at the first step, once
    gc.collect()
    with memory.Ledger() as ledger:
        kept = [value for slots in state.optimizer.state.values() for value in slots.values()]
        before = state.frozen.start.values() if state.frozen else ()
        for tensor in chain(state.trainee.parameters(), state.trainee.buffers(), kept, before):
            ledger.book(tensor)
        steps = loop.steps(state, 1)
        next(steps)
        next(steps)
    return ledger.most


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"batch_size": 4},
        {"batch_size": 4, "gradient_checkpointing": True},
        {"method": "full", "learning_rate": 1e-5},
        {"method": "full", "learning_rate": 1e-5, "prior_weight": 0.0},
        {"method": "full", "learning_rate": 1e-5, "prior_loss": "distilled"},
        {"method": "full", "learning_rate": 1e-5, "l2_to_base": 1.0},
        {"prior_loss": "distilled"},
        {"rank": 8, "alpha": 8.0, "targets": "wide"},
        {"train_text_encoder": True},
        {"adapter": "dora"},
        {"adapter": "lokr"},
        {"adapter": "loha", "gradient_checkpointing": True},
        {"adapter": "oft", "rank": 2, "alpha": None},
        {"adapter": "hra", "rank": 2, "alpha": None},
    ],
)
def test_the_estimate_is_what_real_steps_take(values: dict[str, Any], tiny_sd: Path) -> None:
    recipe = recipe_for(tiny_sd, **values)
    source = resolve(str(tiny_sd))
    family = families.get(source.family)
    pipe = family.load(source, torch.float32)
    before = {name: weight.clone() for name, weight in family.denoiser(pipe).named_parameters()}
    images = recipe.batch_size * (2 if recipe.prior_weight else 1)
    estimated = memory.step_bytes(pipe, family, recipe, images, CPU)
    assert estimated == pytest.approx(measured(recipe), rel=0.05)
    after = dict(family.denoiser(pipe).named_parameters())
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) and not after[name].requires_grad for name in before)


def test_a_run_that_looks_at_pictures_needs_room_for_what_draws_them(tiny_sd: Path) -> None:
    source = resolve(str(tiny_sd))
    family = families.get(source.family)
    pipe = family.load(source, torch.float32)
    plain, selecting = (
        memory.step_bytes(pipe, family, recipe_for(tiny_sd, select=select), 1, CPU) for select in (False, True)
    )
    weights, idle = (
        sum(weight.nbytes for part in parts for weight in (*part.parameters(), *part.buffers()))
        for parts in ((pipe.unet,), (pipe.vae, pipe.text_encoder))
    )
    assert idle > plain - weights  # more than what a step needs beside the weights
    assert selecting == pytest.approx(weights + idle, rel=0.1)


def test_processes_take_their_steps_as_the_one_with_the_least_room_can(
    tiny_sd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = resolve(str(tiny_sd))
    family = families.get(source.family)
    pipe = family.load(source, torch.float32)
    recipe = recipe_for(tiny_sd, batch_size=16, accumulation=None, gradient_checkpointing=False)
    whole = fitting.MARGIN * memory.step_bytes(pipe, family, recipe, 16, CPU) / fitting.GIB

    def passes(room: float) -> int | None:
        monkeypatch.setattr(placing, "free", lambda _: int(room * fitting.GIB))
        return fitting.fit(pipe, family, recipe, CPU, 2).recipe.accumulation

    monkeypatch.setattr(fitting, "gather", lambda rooms_1: rooms_1)
    alone, short = passes(1.1 * whole), passes(0.55 * whole)
    monkeypatch.setattr(fitting, "gather", lambda rooms_1: torch.cat([rooms_1, rooms_1 // 2]))
    assert passes(1.1 * whole) == short != alone == 1


def test_a_ledger_books_each_storage_from_birth_to_death() -> None:
    with memory.Ledger() as ledger:
        one = torch.zeros(100)
        half = one[:50]
        assert ledger.now == 400
        two = one + 1
        del one
        assert ledger.now == 800
        del half, two
        gc.collect()
        assert (ledger.now, ledger.most) == (0, 800)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_quantised_layer_has_the_bytes_foretold(kind: str) -> None:
    plain = nn.Linear(256, 512, bias=False).requires_grad_(False)
    foretold = quantise.nbytes(plain, kind)
    net = nn.Sequential(plain)
    quantise.quantise(net, kind, torch.float32, CPU)
    net(torch.zeros(1, 256))  # eight-bit scales are made when it is first used
    weight = net[0].weight
    scales = net[0].state.SCB if kind == "int8" else weight.quant_state.absmax
    assert foretold == weight.nbytes + scales.nbytes


@pytest.mark.parametrize("prior_weight", [0.0, 1.0])
def test_a_further_resolution_takes_what_its_photos_take(prior_weight: float, tiny_sd: Path) -> None:
    recipe = recipe_for(tiny_sd, batch_size=2, prior_weight=prior_weight, resolution=32, more_resolutions=(64,))
    source = resolve(str(tiny_sd))
    family = families.get(source.family)
    pipe = family.load(source, torch.float32)
    found = fitting.fit(pipe, family, recipe.model_copy(update={"memory": 9.0}), CPU, 1)
    assert found.bytes is not None
    assert found.bytes / fitting.MARGIN == pytest.approx(measured(recipe, [(64, 64)] * 3), rel=0.05)


@pytest.mark.parametrize("prior", [{"prior_loss": "parent"}, {"prior_loss": "distilled", "prior_others": 0.2}])
def test_photos_that_the_prior_shows_take_part_at_a_further_resolution(prior: dict[str, Any], tiny_sd: Path) -> None:
    source = resolve(str(tiny_sd))
    family = families.get(source.family)
    pipe = family.load(source, torch.float32)
    recipe = recipe_for(tiny_sd, batch_size=2, **prior, memory=9.0)
    wide = {"resolution": 32, "more_resolutions": (64,)}
    further, alone = (
        fitting.fit(pipe, family, recipe.model_copy(update=sizes), CPU, 1) for sizes in (wide, {"resolution": 64})
    )
    assert further.bytes == alone.bytes


@pytest.fixture
def costs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool]]:
    """A step takes one GiB and one for every image, half as much with checkpointing; what was asked is noted."""
    asked = []

    def step_bytes(pipe: object, family: object, recipe: Recipe, images: int, device: torch.device) -> int:
        asked.append((images, bool(recipe.gradient_checkpointing)))
        each = 0.5 if recipe.gradient_checkpointing else 1.0
        return int((1 + images * each) * fitting.GIB / fitting.MARGIN)

    monkeypatch.setattr(memory, "step_bytes", step_bytes)
    monkeypatch.setattr(swapping, "saved", lambda denoiser: int(0.5 * fitting.GIB / fitting.MARGIN))
    return asked


def fitted(processes: int = 1, **values: Any) -> fitting.Fit:
    recipe = recipe_for(Path("model"), **{"batch_size": 2, **values})
    device = torch.device("cuda") if recipe.memory else CPU  # nothing is done there
    return fitting.fit(Mock(), Mock(), recipe, device, processes)


@pytest.mark.parametrize(
    ("room", "way", "reason"),
    [
        (5.0, (1, False, False), "a step takes about 5.0 GiB; 5.0 are there"),
        (4.0, (2, False, False), "a step takes about 3.0 GiB instead of 5.0; 4.0 are there"),
        (2.0, (4, False, False), "a step takes about 2.0 GiB instead of 5.0; 2.0 are there"),
        (1.9, (4, True, False), "a step takes about 1.5 GiB instead of 5.0; 1.9 are there"),
        (1.4, (4, True, True), "a step takes about 1.0 GiB instead of 5.0; 1.4 are there"),
    ],
)
def test_the_fastest_way_that_fits_is_taken(
    room: float, way: tuple[int, bool, bool], reason: str, costs: list[tuple[int, bool]]
) -> None:
    found = fitted(memory=room)
    assert tuple(getattr(found.recipe, name) for name in fitting.OPEN) == way
    assert found.reasons == dict.fromkeys(fitting.OPEN, reason)
    assert costs[0] == (4, False)


def test_what_the_user_chose_is_kept(costs: list[tuple[int, bool]]) -> None:
    found = fitted(memory=4.0, accumulation=1)
    assert (found.recipe.accumulation, found.recipe.gradient_checkpointing) == (1, True)
    assert "accumulation" not in found.reasons
    assert costs == [(4, False), (4, True)]


def test_blocks_are_offloaded_where_the_user_says_so(costs: list[tuple[int, bool]]) -> None:
    found = fitted(memory=9.0, offload_blocks=True)
    assert tuple(getattr(found.recipe, name) for name in fitting.OPEN) == (1, True, True)
    assert "offload_blocks" not in found.reasons
    assert fitted(offload_blocks=True).recipe.gradient_checkpointing is True
    assert fitted(memory=1.9, offload_blocks=False).recipe.offload_blocks is False
    with pytest.raises(UserError, match="however it is split"):
        fitted(memory=0.9, processes=2)  # whose wrapper wants all weights on one device


def test_without_a_limit_nobody_asks(costs: list[tuple[int, bool]]) -> None:
    found = fitted()
    assert (found.recipe.accumulation, found.recipe.gradient_checkpointing, found.reasons) == (1, False, {})
    assert costs == []


@pytest.mark.parametrize(
    ("values", "mend"),
    [
        ({}, "--base nf4"),
        ({"method": "full"}, "--method lora or --step-in-backward"),
        ({"method": "full", "optimizer": "prodigy"}, "--method lora"),
        ({"base": "nf4"}, "--resolution 16"),
        ({"more_resolutions": (48,)}, "--base nf4 or no --more-resolutions 48"),
    ],
)
def test_what_fits_in_no_way_is_refused(values: dict[str, Any], mend: str, costs: list[tuple[int, bool]]) -> None:
    said = r"a step takes about 1.\d GiB however it is split, and 0.9 are there: "
    with pytest.raises(UserError, match=f"{said}give {mend}, or --allow memory"):
        fitted(memory=0.9, **values)
    tried = fitted(memory=0.9, allow=("memory",), **values)
    with pytest.raises(UserError, match=f"about {(tried.bytes or 0) / fitting.GIB:.1f} GiB however"):
        fitted(memory=0.9, **values)
    assert tried.recipe.gradient_checkpointing is True
    assert fitted(memory=4.0, allow=("memory",), **values).recipe == fitted(memory=4.0, **values).recipe.model_copy(
        update={"allow": ("memory",)}
    )


def test_a_step_is_split_into_single_images_whatever_their_number(costs: list[tuple[int, bool]]) -> None:
    found = fitted(memory=2.0, batch_size=3, prior_weight=0.0)
    assert (found.recipe.accumulation, found.recipe.gradient_checkpointing) == (3, False)


def test_steps_in_the_backward_pass_are_not_split(costs: list[tuple[int, bool]]) -> None:
    with pytest.raises(UserError, match=r"however it is split, and 0\.9 are there: give --method lora, or --allow"):
        fitted(memory=0.9, method="full", step_in_backward=True)
    assert costs == [(4, False), (4, True)]


def test_a_run_goes_on_where_nothing_can_be_foretold(monkeypatch: pytest.MonkeyPatch) -> None:
    def step_bytes(*_: object) -> int:
        raise AssertionError("NYI: aten.something")

    monkeypatch.setattr(memory, "step_bytes", step_bytes)
    found = fitted(memory=1.0)
    assert (found.recipe.accumulation, found.recipe.gradient_checkpointing, found.bytes) == (1, False, None)
    assert found.reasons == {"accumulation": "the memory of a step cannot be foretold here (NYI: aten.something)"}


def test_a_run_in_little_memory_has_the_same_result(tiny_sd: Path, tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos")
    values = {"steps": 3, "learning_rate": 1e-2, "prior_count": 4, "batch_size": 2}
    done = calls.train(photos, tiny_sd, out=tmp_path / "plain", **values)
    assert done.status == 0, done
    done = calls.train(photos, tiny_sd, out=tmp_path / "small", memory=0.003, **values)
    assert done.status == 0, done
    plain, small = (Run(tmp_path / name) for name in ("plain", "small"))
    assert "are there" in small.info["derived"]["accumulation"]
    assert "accumulation" not in plain.info["derived"]
    first, second = ([each[1] for each in losses(run)] for run in (plain, small))
    assert first == pytest.approx(second, rel=1e-4)
    refused = calls.train(photos, tiny_sd, out=tmp_path / "none", memory=1e-6, **values)
    assert refused.status == 2
    assert "however it is split" in refused.err
    assert environment.peak_mb(CPU) > 0
