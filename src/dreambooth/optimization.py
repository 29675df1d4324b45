"""The training stage of a run: encode once, attach, optimise, save as it goes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import psutil
import torch
from accelerate.utils import gather
from torch import Tensor

from dreambooth import (
    buckets,
    checkpoint,
    frozen,
    graphs,
    interruption,
    looks,
    loop,
    memory,
    methods,
    nouns,
    optimizers,
    placing,
    prompts,
    scaling,
    starting,
    swapping,
)
from dreambooth.averaging import Average, Profiles
from dreambooth.batches import Item, Plan
from dreambooth.cache import Memo, Row, Shelf, encode_photo, encode_photos, encode_prompt
from dreambooth.errors import RunError, UserError
from dreambooth.job import Job
from dreambooth.looks import Watch
from dreambooth.photos import Photo
from dreambooth.planning import caption, class_caption
from dreambooth.precision import as_they_are
from dreambooth.progress import Step
from dreambooth.recipe import Recipe

VOTE_SECONDS = 5.0
"""Several processes ask one another so often at least whether to stop: torchrun kills them 30 s after its signal."""


def optimise(job: Job, class_images: Sequence[Sequence[Photo]], watch: Watch | None = None) -> None:
    """Train, from the last checkpoint where there is one.

    Args:
        job: The run.
        class_images: Each subject's.
        watch: Looks at the run while it trains, in the main process; None where the recipe does not select.
    """
    state, weights = prepare(job, class_images)
    average = Average(weights, job.recipe.ema) if job.recipe.ema else None
    profiles = Profiles(weights) if job.recipe.ema_profiles else None
    with job.timed("training"):
        _run_loop(job, state, _Trained(weights, state.optimizer, average, profiles, watch))


def prepare(job: Job, class_images: Sequence[Sequence[Photo]]) -> tuple[loop.Loop, dict[str, Tensor]]:
    """Make everything ready for the first step: what is trained, its optimiser, all that can be encoded encoded.

    Returns:
        The loop, and the trained weights by name.
    """
    placing.gather(job.pipe)
    subject_items, prior_items = _items(job, class_images)
    groups = job.method.attach(job.pipe, job.family, job.recipe)
    starting.put(job.pipe, job.start, job.recipe.lora_scale)
    latents, texts = _caches(job, [*subject_items, *prior_items])
    recipe = job.recipe
    components = methods.trained_components(job.pipe, job.family, recipe)
    for module in components.values():
        module.train()
    if recipe.gradient_checkpointing:
        for module in (job.family.denoiser(job.pipe), *components.values()):
            memory.checkpoint_gradients(module)
    if recipe.compile:
        # block by block: blocks of one kind share their code, so that it takes a part of the whole network's time
        denoiser: Any = job.family.denoiser(job.pipe)
        denoiser.compile_repeated_blocks()
    predict = graphs.Graphs(job.family.predict) if recipe.cuda_graphs else job.family.predict
    trainee = loop.Trainee(job.pipe, job.family, components, texts, predict, as_they_are(recipe))
    optimizer = optimizers.build(groups, recipe)
    weights: dict[str, Tensor] = {f"{g.component}.{name}": w for g in groups for name, w in g.parameters.items()}
    if recipe.offload_blocks:
        swapping.Swap(job.family.denoiser(job.pipe), job.accelerator.device)
    placed = [not recipe.offload_blocks, True]  # its blocks lie where they should
    prepared, prepared_optimizer = job.accelerator.prepare(trainee, optimizer, device_placement=placed)
    _bring(job, texts is None)
    assert recipe.prior_weight is not None, "presets.fill leaves no weight open"
    kept = (recipe.prior_weight, recipe.prior_dropout or 0.0, recipe.prior_others, _others(recipe))
    plan = Plan(recipe.seed, subject_items, prior_items, recipe.batch_size, *kept)
    process = job.family.process(job.pipe).on(job.accelerator.device)
    bare, as_class = job.accelerator.unwrap_model(prepared), partial(class_caption, recipe)
    before = frozen.Frozen.of(bare, as_class) if frozen.is_needed(recipe) else None
    inward = optimizers.InBackward(optimizer, recipe.max_grad_norm) if recipe.step_in_backward else None
    given = (prepared, prepared_optimizer, job.accelerator, process, plan, latents, recipe, before, inward)
    return loop.Loop(*given), weights


def _bring(job: Job, encodes: bool) -> None:
    """Bring to the device what every step uses, whether it is trained or not."""
    device = job.accelerator.device
    if not job.recipe.offload_blocks:
        job.family.denoiser(job.pipe).to(device)
    if encodes:
        for name in placing.text_encoders(job.pipe):
            job.pipe.components[name].to(device)


def _items(job: Job, class_images: Sequence[Sequence[Photo]]) -> tuple[list[Item], list[Item]]:
    """Pair photos with their captions, and what keeps the class with its own: class images, or the photos as class.

    A photo whose caption does not name the subject is no picture of the class to compare with.
    """
    recipe = job.recipe
    assert recipe.resolution is not None
    square = (recipe.resolution, recipe.resolution)
    subject_items, prior_items = [], []
    for index, (subject, pool) in enumerate(zip(recipe.subjects, job.photos, strict=True)):
        for photo in pool:
            for item in _views(recipe, photo, caption(recipe, index, photo), job.family.STRIDE):
                plain = class_caption(recipe, item.prompt)
                subject_items.append(item)
                if recipe.prior_loss == "parent" and recipe.prior_weight and plain != item.prompt:
                    prior_items.append(Item(item.rows, plain))
        text = prompts.class_prompt(subject.class_noun)
        prior_items += [Item((Row(photo, square),), photo.caption or text) for photo in class_images[index]]
    return subject_items, prior_items


def _views(recipe: Recipe, photo: Photo, named: str, stride: int) -> Iterator[Item]:
    """Yield a photo under its caption, then at other scales, each under one that says so.

    These are of its first size, as the photo may lack the pixels for a closer view at others.
    """
    sizes, mirrors = buckets.learnt(photo.size, recipe, stride), (False, True) if recipe.flip else (False,)
    views = [(variant, mirrored) for variant in range(recipe.crops + 1) for mirrored in mirrors]
    yield Item(tuple(Row(photo, size, *view) for size in sizes for view in views), named)
    for number in range(recipe.scales):
        scaled = scaling.draw(photo, sizes[0], number, recipe.seed, stride)
        rows = tuple(Row(photo, sizes[0], 0, mirrored, scaled) for mirrored in mirrors)
        yield Item(rows, scaling.worded(named, scaled.words))


def _caches(
    job: Job, items: Sequence[Item]
) -> tuple[Memo[Row, dict[str, Tensor]], Memo[str, dict[str, Tensor]] | None]:
    """Encode images and captions once, unless the recipe encodes at every step; a trained text encoder always does."""
    recipe = job.recipe
    latents: Memo[Row, dict[str, Tensor]] = Memo(
        lambda row: encode_photo(job.pipe, job.family, row, recipe.seed), recipe.cache, Shelf(_shelf(job))
    )
    texts: Memo[str, dict[str, Tensor]] | None = None
    if not methods.trains_text_encoders(recipe):
        texts = Memo(lambda prompt: encode_prompt(job.pipe, job.family, prompt), recipe.cache, Shelf(_shelf(job)))
    encoders = placing.text_encoders(job.pipe)
    autoencoder = [name for name in job.pipe.components if name == "vae"]  # a model on pixels has none
    if not recipe.cache:
        job.pipe.to(job.accelerator.device)
        return latents, texts
    with job.timed("caching"):
        rows = list(dict.fromkeys(row for item in items for row in item.rows))
        job.reporter.stage("caching", len(rows))
        with _on_device(job, autoencoder):
            for row, encoded in encode_photos(job.pipe, job.family, rows, recipe.seed):
                latents[row] = encoded
                job.reporter.advance()
        if texts is not None:
            captions = {*(item.prompt for item in items), *([""] if recipe.prior_dropout else []), *_others(recipe)}
            if frozen.is_needed(recipe):
                captions |= {class_caption(recipe, each) for each in captions}
            with _on_device(job, encoders):
                texts.fill(sorted(captions), lambda: None)
    return latents, texts


def _others(recipe: Recipe) -> list[str]:
    """Return what the prior says of photos that it takes for other things."""
    own = {name for subject in recipe.subjects for name in (subject.class_noun, subject.identifier or "")}
    return [prompts.class_prompt(noun) for noun in nouns.others(own)] if recipe.prior_others else []


def _shelf(job: Job) -> int:
    """Return the bytes that a cache may keep in memory: the two of every process together a quarter of what is free."""
    return int(psutil.virtual_memory().available // (4 * 2 * job.accelerator.num_processes))


@contextmanager
def _on_device(job: Job, names: Sequence[str]) -> Iterator[None]:
    """Have parts on the accelerator while all is encoded with them; then drop them, unless pictures need them."""
    for name in names:
        job.pipe.components[name].to(job.accelerator.device)
    yield
    for name in names:
        if job.recipe.select:
            job.pipe.components[name].to("cpu")
        else:
            setattr(job.pipe, name, None)


@dataclass
class _Trained:
    """What the steps change, and what watches it.

    Attributes:
        weights: By name.
        optimizer: Theirs.
        average: Of the weights, where the recipe asks for one.
        profiles: What other averages are made of, where the recipe keeps it.
        watch: Looks at the run, in the main process of one that selects.
    """

    weights: dict[str, Tensor]
    optimizer: torch.optim.Optimizer
    average: Average | None
    profiles: Profiles | None
    watch: Watch | None

    @property
    def kept(self) -> dict[str, Tensor]:
        """What a checkpoint holds."""
        averages = [each.tensors for each in (self.average, self.profiles) if each]
        return {**self.weights, **{name: tensor for tensors in averages for name, tensor in tensors.items()}}

    @contextmanager
    def as_shipped(self) -> Iterator[None]:
        """Have the weights as they would be shipped: averaged, where the recipe or its optimiser averages them."""
        optimizers.mode(self.optimizer, training=False)
        with self.average.in_place() if self.average else nullcontext():
            yield
        optimizers.mode(self.optimizer, training=True)

    def put(self) -> None:
        """Have them so for good."""
        optimizers.mode(self.optimizer, training=False)
        if self.average:
            self.average.put()


def _run_loop(job: Job, state: loop.Loop, trained: _Trained) -> None:
    """Consume the loop: read the losses every few steps, look and save every few more, stop at an interruption."""
    run, recipe = job.run, job.recipe
    start, is_over = _resume(job, trained)
    job.reporter.stage("training", recipe.steps or 0, start)
    pending: list[loop.Pending] = []
    began = time.perf_counter()
    behind = job.accelerator.device.type != "cpu"
    votes = _Votes(job)
    with checkpoint.Writer(run.checkpoints, recipe.keep, behind) as writer, interruption.noted() as asked:
        for entry in [] if is_over else loop.steps(state, start):
            pending.append(entry)
            _take_in(job, trained, entry.step)
            looking, due, reading = _duties(recipe, entry.step)
            stop = votes.stop(bool(asked), entry.step, reading)
            if stop or reading:
                _record(job, loop.read(pending, began, state))
            is_over = looking and not stop and _look(job, trained, entry.step)
            if job.is_main and (stop or due or is_over):
                writer.save(entry.step, trained.kept, trained.optimizer)
            if stop:
                raise KeyboardInterrupt(f"stopped after step {entry.step}")
            if reading:
                votes.space((time.perf_counter() - began) / len(pending))
                pending, began = [], time.perf_counter()
            if is_over:
                break
        if _any(job, bool(asked)):  # in the last look, or while the last state was written
            raise KeyboardInterrupt("stopped after the last step")
    if recipe.select:
        _settle(job, trained)
    else:
        trained.put()


def _duties(recipe: Recipe, step: int) -> tuple[bool, bool, bool]:
    """Whether to look at pictures, to save a checkpoint, and to read the losses after a step."""
    assert recipe.save_every is not None
    looking = recipe.select and looks.is_due(recipe, step)
    due = step == recipe.steps or step % recipe.save_every == 0
    return looking, due, looking or due or step % recipe.log_every == 0


def _take_in(job: Job, trained: _Trained, step: int) -> None:
    """Take the weights after a step into the averages; eight times in a run write down what others are made of."""
    if trained.average:
        trained.average.update(step)
    if trained.profiles:
        trained.profiles.update(step)
        last = job.recipe.steps
        assert last is not None
        if job.is_main and (step == last or step % max(1, last // 8) == 0):
            trained.profiles.save(job.run.profiles, step)


def _resume(job: Job, trained: _Trained) -> tuple[int, bool]:
    """Go back to the last checkpoint; return the steps done, and whether it had been seen there that it is over."""
    run, recipe, watch = job.run, job.recipe, trained.watch
    steps = recipe.steps
    assert steps is not None
    start = checkpoint.resume(run.checkpoints, trained.kept, trained.optimizer, job.warn)
    starts_P = gather(torch.tensor([start], device=job.accelerator.device)).tolist()
    if len(set(starts_P)) > 1:
        mend = "see that all can read the run's folder, and start again"
        raise RunError(f"the processes go on from different steps ({', '.join(map(str, starts_P))}): {mend}")
    if start > steps:
        raise UserError(f"{run.path} has been trained for {start} steps already: give --steps {start} or more")
    if job.is_main:
        run.cut_steps(start)
    if watch:
        watch.resume(start)
    if recipe.select and looks.is_due(recipe, start):
        return start, _look(job, trained, start)  # an interruption may have come before it
    return start, _any(job, bool(watch and watch.is_over))


def _look(job: Job, trained: _Trained, step: int) -> bool:
    """Look at the pictures of the main process, once; return whether nothing better can be expected."""
    watch = trained.watch
    if watch and step not in [look.step for look in watch.looks]:
        with trained.as_shipped():
            looks.look(job, watch, step, trained.weights)
    return _any(job, bool(watch and watch.is_over))


def _settle(job: Job, trained: _Trained) -> None:
    """Take the chosen weights, and write down why. The main process ships: the others need not."""
    watch = trained.watch
    if watch is None:
        return
    choice = watch.put(trained.weights)
    last = watch.looks[-1].step
    job.reporter.say(f"step {choice.look.step} of {last} chosen: {choice.reason}")
    job.run.update(
        selection={
            "step": choice.look.step,
            "trained": last,
            "reason": choice.reason,
            "admissible": choice.admissible,
            "tied": choice.tied,
            "seconds": round(watch.seconds, 1),
            "chance": watch.chance,
            "frozen": watch.frozen.as_json(),
            "looks": [look.as_json() for look in watch.looks],
        }
    )


def _record(job: Job, read: Sequence[Step]) -> None:
    if job.is_main:
        job.run.append_steps(read)
    for step in read:
        job.reporter.step(step)


@dataclass
class _Votes:
    """When to stop: of several processes all after the same step, soon enough for what launched them.

    Attributes:
        job: The job.
        every: Steps between votes. They are also taken where the processes meet anyway: when losses are read.
    """

    job: Job
    every: int = 1

    def stop(self, asked: bool, step: int, reading: bool) -> bool:
        """Whether to stop after this step."""
        if self.job.accelerator.num_processes == 1:
            return asked
        return (reading or step % self.every == 0) and _any(self.job, asked)

    def space(self, seconds: float) -> None:
        """Space votes by how long a step takes, in the mean of the processes, which all know the same one."""
        if self.job.accelerator.num_processes > 1:
            own = torch.tensor(seconds, device=self.job.accelerator.device)
            self.every = max(1, int(VOTE_SECONDS / self.job.accelerator.reduce(own, reduction="mean").item()))


def _any(job: Job, holds: bool) -> bool:
    """Whether it holds in any process. All must ask."""
    if job.accelerator.num_processes == 1:
        return holds
    votes = job.accelerator.reduce(torch.tensor(float(holds), device=job.accelerator.device), reduction="sum")
    return bool(votes.item())
