"""The cheapest way to take a run's steps in the memory there is: same result, less memory, a little more time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from accelerate.utils import gather
from diffusers import DiffusionPipeline

from dreambooth import buckets, memory, placing, swapping
from dreambooth.contradictions import of_steps
from dreambooth.errors import UserError
from dreambooth.families import Family
from dreambooth.recipe import Recipe

GIB = 2**30
OPEN = ("accumulation", "gradient_checkpointing", "offload_blocks")
"""What is chosen here where the user left it open."""
MARGIN = 1.1
"""What kernels and the allocator take beside the tensors, as a factor of these (docs/memory.md)."""


@dataclass(frozen=True)
class Fit:
    """How the steps are taken.

    Attributes:
        recipe: The recipe, with nothing left open.
        reasons: Why what was filled in is as it is.
        bytes: What the tensors of a step take at most; None where nobody had to know.
    """

    recipe: Recipe
    reasons: dict[str, str]
    bytes: int | None = None


def fit(pipe: DiffusionPipeline, family: Family, recipe: Recipe, device: torch.device, processes: int) -> Fit:
    """Choose what is `OPEN` where the user left it so.

    Args:
        pipe: The pipeline, loaded; nothing is computed with it.
        family: Its family.
        recipe: A recipe that is resolved but for this.
        device: Where it is trained.
        processes: Over how many a step is spread.

    Raises:
        UserError: A step takes too much in every way.
    """
    room = _room(recipe, device, processes)
    images = -(-recipe.batch_size * (2 if recipe.prior_weight else 1) // processes)
    if room is None:
        offloads = bool(recipe.offload_blocks)
        recomputes = offloads or bool(recipe.gradient_checkpointing)
        return Fit(_with(recipe, recipe.accumulation or 1, recomputes, offloads), {})
    tried: list[tuple[int, Recipe]] = []
    for way in _ways(recipe, images, may_offload=processes == 1 and device.type != "cpu"):
        assert way.accumulation is not None
        try:
            needed = int(MARGIN * _step_bytes(pipe, family, way, -(-images // way.accumulation), device))
        except Exception as error:  # whatever it is: the run can do without an estimate
            return Fit(way, {"accumulation": f"the memory of a step cannot be foretold here ({error})"})
        tried.append((needed, way))
        if needed <= room:
            break
    else:
        needed, way = min(tried, key=lambda each: each[0])
        if "memory" not in recipe.allow:
            raise UserError(_too_much(recipe, needed, room, processes))
    return Fit(way, _reasons(recipe, tried[0][0], needed, room), needed)


def _step_bytes(pipe: DiffusionPipeline, family: Family, way: Recipe, images: int, device: torch.device) -> int:
    """Return what the largest pass takes, of so many images at most. Class images are at the first resolution alone."""
    needed = memory.step_bytes(pipe, family, way, images, device)
    largest = max(buckets.resolutions(way))
    if largest != way.resolution:
        alone = way.model_copy(update={"resolution": largest})
        prior_has_photos = way.prior_loss == "parent" or way.prior_others > 0
        most = images if prior_has_photos else min(images, way.batch_size)
        needed = max(needed, memory.step_bytes(pipe, family, alone, most, device))
    offloads = way.offload_blocks and device.type != "cpu"
    return needed - (swapping.saved(family.denoiser(pipe)) if offloads else 0)


def _room(recipe: Recipe, device: torch.device, processes: int) -> int | None:
    """Return the bytes that a step may take; None is no limit.

    It is what the process with the least has: all must take their steps in the same way.
    """
    if recipe.memory is not None:
        return int(recipe.memory * GIB)
    free = placing.free(device)
    if free is None or processes == 1:
        return free
    free_P: torch.Tensor = gather(torch.tensor([free], device=device))
    return int(free_P.min())


def _ways(recipe: Recipe, images: int, may_offload: bool) -> Iterator[Recipe]:
    """Go through what the user left open, from the fastest to the smallest."""
    most = 1 if recipe.step_in_backward else images  # its gradients are those of one pass
    splits = sorted({*(1 << power for power in range(most.bit_length())), most})
    for checkpointing in [False, True] if recipe.gradient_checkpointing is None else [recipe.gradient_checkpointing]:
        for accumulation in splits if recipe.accumulation is None else [recipe.accumulation]:
            if not recipe.offload_blocks:
                yield _with(recipe, accumulation, checkpointing, False)
    settled = (recipe.base, recipe.compile, recipe.cuda_graphs, recipe.select, not recipe.cache)
    may = may_offload and recipe.has_adapter and not any(settled) and recipe.gradient_checkpointing is not False
    if recipe.offload_blocks or (may and recipe.offload_blocks is None):
        for accumulation in splits if recipe.accumulation is None else [recipe.accumulation]:
            yield _with(recipe, accumulation, True, True)


def _with(recipe: Recipe, accumulation: int, checkpointing: bool, offloads: bool) -> Recipe:
    how = {"accumulation": accumulation, "gradient_checkpointing": checkpointing, "offload_blocks": offloads}
    return recipe.model_copy(update=how)


def _reasons(recipe: Recipe, first: int, needed: int, room: int) -> dict[str, str]:
    saved = "" if needed == first else f" instead of {first / GIB:.1f}"
    reason = f"a step takes about {needed / GIB:.1f} GiB{saved}; {room / GIB:.1f} are there"
    return {name: reason for name in OPEN if getattr(recipe, name) is None}


def _too_much(recipe: Recipe, needed: int, room: int, processes: int) -> str:
    largest = max(buckets.resolutions(recipe))
    smaller = ["--base nf4"] if recipe.has_adapter and not recipe.base else []
    smaller += ["--method lora"] if recipe.method == "full" else []
    inward = recipe.model_copy(update={"step_in_backward": True})
    may_step = processes == 1 and not (recipe.step_in_backward or any(wrong for wrong, _ in of_steps(inward)))
    smaller += ["--step-in-backward"] if may_step else []
    smaller += [f"--resolution {recipe.resolution // 2}"] if recipe.resolution and not smaller else []
    smaller += [f"no --more-resolutions {largest}"] if largest > (recipe.resolution or 0) else []
    return (
        f"a step takes about {needed / GIB:.1f} GiB however it is split, and {room / GIB:.1f} are there: "
        f"give {' or '.join(smaller)}, or --allow memory to try it all the same"
    )
