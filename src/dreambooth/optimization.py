"""The training stage of a run: encode once, attach, optimise, save as it goes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from dreambooth import checkpoint, interruption, loop, methods, optimizers, prompts
from dreambooth.averaging import Average
from dreambooth.batches import Item, Plan
from dreambooth.cache import Memo, Row, Shelf, encode_photo, encode_prompt
from dreambooth.errors import UserError
from dreambooth.job import Job
from dreambooth.photos import Photo
from dreambooth.planning import caption
from dreambooth.progress import Step


def optimise(job: Job, class_images: Sequence[Sequence[Photo]]) -> None:
    """Train, from the last checkpoint where there is one."""
    state, weights = prepare(job, class_images)
    with job.timed("training"):
        _run_loop(job, state, weights)


def prepare(job: Job, class_images: Sequence[Sequence[Photo]]) -> tuple[loop.Loop, dict[str, Tensor]]:
    """Make everything ready for the first step: what is trained, its optimiser, all that can be encoded encoded.

    Returns:
        The loop, and the trained weights by name.
    """
    subject_items, prior_items = _items(job, class_images)
    groups = job.method.attach(job.pipe, job.family, job.recipe)
    latents, texts = _caches(job, [*subject_items, *prior_items])
    recipe = job.recipe
    components = methods.trained_components(job.pipe, job.family, recipe)
    for module in components.values():
        module.train()
    if recipe.gradient_checkpointing:
        for module in (job.family.denoiser(job.pipe), *components.values()):
            _checkpoint_gradients(module)
    trainee = loop.Trainee(job.pipe, job.family, components, texts)
    optimizer = optimizers.build(groups, recipe)
    weights: dict[str, Tensor] = {f"{g.component}.{name}": w for g in groups for name, w in g.parameters.items()}
    prepared, prepared_optimizer = job.accelerator.prepare(trainee, optimizer)
    assert recipe.prior_weight is not None, "presets.fill leaves no weight open"
    plan = Plan(recipe.seed, subject_items, prior_items, recipe.batch_size, recipe.prior_weight)
    process = job.family.process(job.pipe)
    return loop.Loop(prepared, prepared_optimizer, job.accelerator, process, plan, latents, recipe), weights


def _items(job: Job, class_images: Sequence[Sequence[Photo]]) -> tuple[list[Item], list[Item]]:
    """Pair every photo with its caption and every class image with the class prompt."""
    recipe = job.recipe
    views = [(k, m) for k in range(recipe.crops + 1) for m in ((False, True) if recipe.flip else (False,))]
    subject_items, prior_items = [], []
    for index, (subject, pool) in enumerate(zip(recipe.subjects, job.photos, strict=True)):
        for photo in pool:
            rows = tuple(Row(photo, variant, mirrored) for variant, mirrored in views)
            subject_items.append(Item(rows, caption(recipe, index, photo)))
        text = prompts.class_prompt(subject.class_noun)
        prior_items += [Item((Row(photo),), text) for photo in class_images[index]]
    return subject_items, prior_items


def _caches(
    job: Job, items: Sequence[Item]
) -> tuple[Memo[Row, dict[str, Tensor]], Memo[str, dict[str, Tensor]] | None]:
    """Encode images and captions once, unless the recipe encodes at every step; a trained text encoder always does."""
    recipe = job.recipe
    assert recipe.resolution is not None
    side = recipe.resolution
    latents: Memo[Row, dict[str, Tensor]] = Memo(
        lambda row: encode_photo(job.pipe, job.family, row, side, recipe.seed), recipe.cache, Shelf()
    )
    texts: Memo[str, dict[str, Tensor]] | None = None
    if not methods.trains_text_encoders(recipe):
        texts = Memo(lambda prompt: encode_prompt(job.pipe, job.family, prompt), recipe.cache, Shelf())
    if recipe.cache:
        rows = [row for item in items for row in item.rows]
        with job.timed("caching"):
            job.reporter.stage("caching", len(rows))
            latents.fill(rows, job.reporter.advance)
            if texts is not None:
                texts.fill(sorted({item.prompt for item in items}), lambda: None)
        _free(job)
    return latents, texts


def _free(job: Job) -> None:
    """Drop the parts that everything has been encoded with."""
    job.pipe.vae = None
    if not methods.trains_text_encoders(job.recipe):
        for name in [name for name in job.pipe.components if name.startswith("text_encoder")]:
            setattr(job.pipe, name, None)


def _checkpoint_gradients(module: nn.Module) -> None:
    name = "enable_gradient_checkpointing"  # as diffusers calls it
    getattr(module, name if hasattr(module, name) else "gradient_checkpointing_enable")()


def _run_loop(job: Job, state: loop.Loop, weights: Mapping[str, Tensor]) -> None:
    """Consume the loop: read the losses every few steps, save every few more, stop at an interruption."""
    run, recipe, optimizer = job.run, job.recipe, state.optimizer
    assert recipe.steps is not None
    assert recipe.save_every is not None
    average = Average(weights, recipe.ema) if recipe.ema else None
    kept = {**weights, **(average.tensors if average else {})}
    start = checkpoint.resume(run.checkpoints, kept, optimizer, job.warn)
    if start > recipe.steps:
        raise UserError(f"{run.path} has been trained for {start} steps already: give --steps {start} or more")
    if job.is_main:
        run.cut_steps(start)
    job.reporter.stage("training", recipe.steps, start)
    pending: list[loop.Pending] = []
    began = time.perf_counter()
    behind = job.accelerator.device.type != "cpu"
    with checkpoint.Writer(run.checkpoints, recipe.keep, behind) as writer, interruption.noted() as asked:
        for entry in loop.steps(state, start):
            pending.append(entry)
            if average:
                average.update(entry.step)
            due = entry.step == recipe.steps or entry.step % recipe.save_every == 0
            reading = due or entry.step % recipe.log_every == 0
            stop = _stop(job, asked, reading)
            if stop or reading:
                _record(job, loop.read(pending, began, state))
                pending, began = [], time.perf_counter()
            if job.is_main and (stop or due):
                writer.save(entry.step, kept, optimizer)
            if stop:
                raise KeyboardInterrupt(f"stopped after step {entry.step}")
    optimizers.mode(optimizer, training=False)
    if average:
        average.put()


def _record(job: Job, read: Sequence[Step]) -> None:
    if job.is_main:
        job.run.append_steps(read)
    for step in read:
        job.reporter.step(step)


def _stop(job: Job, asked: list[bool], reading: bool) -> bool:
    """Whether to stop now. Several processes agree on it where they meet anyway: when losses are read."""
    if job.accelerator.num_processes == 1:
        return bool(asked)
    if not reading:
        return False
    votes = job.accelerator.reduce(torch.tensor(float(bool(asked)), device=job.accelerator.device), reduction="sum")
    return bool(votes.item())
