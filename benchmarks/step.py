"""What a training step costs beside the bare arithmetic: `python benchmarks/step.py [--method lora] [--model toybox]`.

The loop of a real run with the paper's prior, on encoded photos and class images, takes turns with the least that any
trainer must do on the same adapted denoiser and one batch kept ready: forward, backward, the optimiser's step. Both
alternate in blocks, so that what else runs on the machine slows both. `--compile` measures what compiled blocks bring
instead.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from dreambooth import loop, optimization, training
from dreambooth.batches import draw
from dreambooth.planning import make_plans
from dreambooth.progress import Silent, hush_libraries
from dreambooth.recipe import Recipe
from dreambooth.toybox import SUBJECTS

SUBJECT = "spotted_dog"


def prepared(values: dict[str, Any], out: Path) -> loop.Loop:
    """The loop of a run as `dreambooth train` makes it, ready for its first step."""
    subject = {"photos": SUBJECTS / SUBJECT / "photos", "class_noun": "dog"}
    recipe = Recipe.of(
        {"samples": 0, "prior_loss": "images", "prior_count": 25, "steps": 10**6, **values, "subjects": [subject]}
    )
    job = training._begin(make_plans(recipe), out, Silent())
    training._describe(job)
    state, _ = optimization.prepare(job, training._class_images(job))
    return state


def ours(state: loop.Loop) -> Callable[[int], float]:
    """Takes so many steps of the loop; gives seconds a step."""
    steps: Iterator[loop.Pending] = loop.steps(state, 0)

    def run(count: int) -> float:
        began = time.perf_counter()
        pending = [next(steps) for _ in range(count)]
        loop.read(pending, began, state)
        return (time.perf_counter() - began) / count

    return run


def bare(state: loop.Loop) -> Callable[[int], float]:
    """The arithmetic alone, with a batch and conditioning that never change."""
    batch = draw(state.plan.slots(0), state.latents, state.plan.seed, 1.0)
    device = state.accelerator.device
    latents, noise = batch.latents_BCHW.to(device), batch.noise_BCHW.to(device)
    t_B = state.process.sample_t(batch.u_B.to(device), tuple(latents.shape[-2:]))
    noisy, target = state.process.mix(latents, noise, t_B), state.process.target(latents, noise, t_B)
    trainee = state.accelerator.unwrap_model(state.trainee)
    denoiser, rows = trainee._family.denoiser(trainee._pipe), [trainee._conditioning[text] for text in batch.prompts]
    told = {**trainee._family.collate(rows), "view_B4": batch.view_B4}
    cond = {name: value.to(device) for name, value in told.items()}

    def run(count: int) -> float:
        began = time.perf_counter()
        for _ in range(count):
            with state.accelerator.autocast():
                made = trainee._family.predict(denoiser, noisy, t_B, cond)
            F.mse_loss(made.float(), target).backward()
            state.optimizer.step()
            state.optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - began) / count

    return run


def compare(values: dict[str, Any], blocks: int, steps: int) -> dict[str, float]:
    """Median seconds of both, and the median of their ratio, block by block."""
    with tempfile.TemporaryDirectory() as home:
        state = prepared(values, Path(home) / "run")
        one, two = ours(state), bare(state)
        one(3), two(3)
        pairs = [(one(steps), two(steps)) for _ in range(blocks)]
    ratios = sorted(first / second for first, second in pairs)
    return {
        "ours_ms": 1000 * statistics.median(first for first, _ in pairs),
        "bare_ms": 1000 * statistics.median(second for _, second in pairs),
        "ratio": statistics.median(ratios),
        "ratio_low": ratios[len(ratios) // 10],
        "ratio_high": ratios[-1 - len(ratios) // 10],
    }


def compiled(values: dict[str, Any], steps: int) -> dict[str, float]:
    """What compiling the denoiser's blocks takes, and what it brings: seconds, milliseconds a step, the break-even."""
    with tempfile.TemporaryDirectory() as home:
        state = prepared(values, Path(home) / "run")
        run = ours(state)
        run(3)
        eager = run(steps)
        trainee = state.accelerator.unwrap_model(state.trainee)
        trainee._family.denoiser(trainee._pipe).compile_repeated_blocks()
        taken = 2 * run(2)
        fast = run(steps)
    saved = eager - fast
    even = {"break_even_steps": taken / saved} if saved > 0 else {}
    return {"compile_s": taken, "eager_ms": 1000 * eager, "compiled_ms": 1000 * fast, **even}


def main() -> None:
    """Measure and print, one JSON line a method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", nargs="+", default=["lora", "full"])
    parser.add_argument("--model", default="toybox")
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--steps", type=int, default=10, help="of a block")
    parser.add_argument("--compile", action="store_true", help="what compiling brings, instead")
    chosen = parser.parse_args()
    hush_libraries()
    for method in chosen.method:
        values = {"model": chosen.model, "method": method}
        found = compiled(values, chosen.steps) if chosen.compile else compare(values, chosen.blocks, chosen.steps)
        print(json.dumps({"method": method, **{name: round(value, 3) for name, value in found.items()}}), flush=True)


if __name__ == "__main__":
    main()
