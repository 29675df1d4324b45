"""A whole run: photos in; an adapter, pictures and an account out. Each stage is a function; `train` is their order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs
from diffusers import DiffusionPipeline
from torch import nn

from dreambooth import (
    adapters,
    environment,
    families,
    fitting,
    graphs,
    looks,
    methods,
    photos,
    presets,
    prior,
    quantise,
    samples,
    starting,
    swapping,
)
from dreambooth.errors import UserError
from dreambooth.evaluation import class_noun
from dreambooth.files import atomic_folder, require_writable
from dreambooth.job import Job
from dreambooth.looks import Watch
from dreambooth.models import choose_for_device, native_resolution, resolve
from dreambooth.optimization import optimise
from dreambooth.photos import Photo
from dreambooth.placing import is_scattered, place
from dreambooth.planning import Plans, identify, make_plans
from dreambooth.precision import storage_dtype
from dreambooth.progress import Reporter, Silent
from dreambooth.recipe import Recipe
from dreambooth.reporting import report
from dreambooth.run import RUNS, Run, now


def train(recipe: Recipe, out: str | Path | None = None, reporter: Reporter | None = None) -> Run:
    """Teach a model the recipe's subjects. The same call goes on with an interrupted run; a finished one is returned.

    Args:
        recipe: What to learn and how; what it leaves open is derived.
        out: The run folder. Default: `runs/<photos>-<method>-<identity>`.
        reporter: Listens to the progress.

    Returns:
        The finished run.

    Raises:
        UserError: Something the user can mend, found before any work starts.
        RunError: The disk is full or the loss not finite; the last good checkpoint is intact.
        KeyboardInterrupt: Interrupted; the state is saved and the same call goes on from it.
    """
    reporter = reporter or Silent()
    require_writable(Path(out or RUNS))
    plans = make_plans(recipe)
    job = _begin(plans, Path(out) if out else None, reporter)
    run = job.run
    if _is_finished(job):
        job.reporter.say(f"{run.path} is finished: {run.finished_steps} steps done{_as_drawn(job)}")
        return run
    with _main_holds(job, run.lock()):
        _describe(job)
        _check_classes(job)
        class_images = _class_images(job)
        _before(job)
        watch = _watch(job)
        optimise(job, class_images, watch)
        _ship(job)
        _finish(job, watch)
    return run


def make_class_images(
    class_noun: str,
    model: str | None,
    count: int | None,
    precision: str | None,
    folder: Path | None,
    reporter: Reporter,
) -> prior.ClassImages:
    """Make or top up the class images that a run on `class_noun` uses.

    Args:
        class_noun: The class.
        model: Base model; None for the one that suits the device.
        count: Images wanted; None for the model's preset.
        precision: As in the recipe of the runs that they are for.
        folder: Where to keep them; None for the user's cache.
        reporter: Listens to the progress.

    Raises:
        UserError: There is no such model, or the folder holds something else.
    """
    if folder:
        require_writable(folder)
    device = environment.processes().device
    name = model or choose_for_device()[0]
    source = resolve(name)
    subject = {"photos": ".", "class_noun": class_noun}
    wanted = {"prior_count": count, "precision": precision}
    open_recipe = Recipe.of({"model": name, **wanted, "subjects": [subject]})
    recipe, _ = presets.fill(open_recipe, source, native_resolution(source), device.type)
    family = families.get(source.family)
    pipe = place(family.load(source, storage_dtype(recipe)), device)
    images = prior.plan(pipe, family, source, recipe, class_noun, folder)
    with prior.turn(images, reporter):
        prior.make(pipe, family, images, reporter)
    return images


def _begin(plans: Plans, out: Path | None, reporter: Reporter) -> Job:
    """Load the model and settle what depends on its tokenizers."""
    recipe = plans.recipe
    AcceleratorState._reset_state()  # the precision of an earlier run in this process would stick
    # Some models leave out what their last text layers make, whose weights then have no gradient to average, unless
    # the distance to their start gives them one, which is no part of the forward pass.
    spread = DistributedDataParallelKwargs(find_unused_parameters=recipe.l2_to_base is None)
    precision = "no" if recipe.precision == "fp32" else recipe.precision
    accelerator = Accelerator(mixed_precision=precision, kwargs_handlers=[spread])
    family = families.get(plans.source.family)
    pipe = family.load(plans.source, storage_dtype(recipe))
    if recipe.low_resolution_noise is not None:
        pipe.low_resolution_noise = recipe.low_resolution_noise  # where its family looks for it
    if recipe.compile and not family.denoiser(pipe)._repeated_blocks:
        raise UserError("--compile works on repeated blocks, and diffusers names none for this model: leave it out")
    pictures = [photos.usable(found) for found in plans.findings]
    recipe = identify(recipe, pipe, pictures)
    job = Job(
        recipe,
        plans,
        family,
        methods.get(recipe.method),
        pipe,
        accelerator,
        reporter if accelerator.is_main_process else Silent(),
        Run(out or RUNS),
        pictures,
        starting.read(pipe, family, recipe),
    )
    identity = plans.identity(recipe)
    if out is None:
        job.run = Run(RUNS / f"{recipe.subjects[0].photos.resolve().name}-{recipe.method}-{identity[:8]}")
    job.run.require_own(recipe, identity)
    _announce(job)
    fitted = fitting.fit(pipe, family, recipe, accelerator.device, accelerator.num_processes)
    job.recipe, job.step_mb = fitted.recipe, fitted.bytes and round(fitted.bytes / 1e6)
    if accelerator.num_processes > 1 and (recipe.step_in_backward or recipe.offload_blocks):
        flag = "--step-in-backward" if recipe.step_in_backward else "--offload-blocks"
        raise UserError(f"{flag} works in one process: leave it out, or start one")
    if recipe.offload_blocks and not swapping.blocks(family.denoiser(pipe)):
        raise UserError("--offload-blocks needs a model of transformer blocks, and this one has none: leave it out")
    if job.recipe.cuda_graphs:
        graphs.require(job.recipe, pipe, accelerator.device, accelerator.num_processes)
    job.plans.reasons.update(fitted.reasons)
    for reason in {*fitted.reasons.values()}:
        job.reporter.say(f"memory: {reason}")
    if recipe.base:
        denoiser = family.denoiser(pipe)
        quantise.quantise(denoiser, recipe.base, storage_dtype(recipe), accelerator.device)
    place(pipe, accelerator.device)
    if recipe.select and is_scattered(pipe):
        raise UserError("--select draws while it trains, and the device does not hold the whole model: leave it out")
    return job


def _announce(job: Job) -> None:
    """Tell what was settled for the user, and what will become of the photos."""
    plans, recipe = job.plans, job.recipe
    for (_, reason), subject in zip(_named(job), recipe.subjects, strict=True):
        if reason:
            job.reporter.say(f"identifier {subject.identifier}: {reason}")
    for bucket in plans.buckets:
        job.reporter.say(f"photos at {bucket}")
    for warning in plans.warnings + _idle(recipe, job.accelerator.num_processes):
        job.reporter.say(f"warning: {warning}")
    for name, reason in plans.reasons.items():
        if name in ("model", "precision"):
            job.reporter.say(f"{name} {getattr(recipe, name)}: {reason}")


def _idle(recipe: Recipe, processes: int) -> list[str]:
    """Say how many processes have no image of a step."""
    photos, images = recipe.batch_size, recipe.batch_size * (2 if recipe.prior_weight else 1)
    if processes <= images:
        return []
    told = f"a step has {images} image{'s' if images > 1 else ''} for {processes} processes"
    return [f"{told}: give --batch-size {-(-photos * processes // images)}, or start {images}"]


def _named(job: Job) -> Iterator[tuple[str, str]]:
    """Yield the setting that names each subject, and why its identifier was chosen; empty where it was given."""
    known = "of the rare words at hand the model knows it least"
    split = "a rare word, and not measured: this model reads such words in pieces"
    reason = known if job.family.WORD_TOKENIZERS else split
    for index, given in enumerate(job.plans.recipe.subjects):
        is_chosen = given.identifier is None and not job.recipe.learns_token
        yield f"subjects[{index}].identifier", reason if is_chosen else ""


def _is_finished(job: Job) -> bool:
    """Whether the run folder holds this very run, done to at least as many steps."""
    if not job.run.exists or job.run.info["identity"] != job.plans.identity(job.recipe):
        return False
    return (job.run.finished_steps or 0) >= (job.recipe.steps or 0)


def _as_drawn(job: Job) -> str:
    """Say that a finished run was drawn by other settings than are now given; nothing where they are the same."""
    names = ("samples", "scenes", "sampler", "inference_steps", "guidance", "consistency")
    others = [f"--{n.replace('_', '-')}" for n in names if getattr(job.recipe, n) != getattr(job.run.recipe, n)]
    told = f"; its pictures stay as they are, by another {', '.join(others)}: `dreambooth generate` draws others"
    return told if others else ""


@contextmanager
def _main_holds(job: Job, lock: AbstractContextManager[None]) -> Iterator[None]:
    """Hold a lock in the main process until all are done with what it guards; the others begin after it."""
    with lock if job.is_main else nullcontext():
        job.accelerator.wait_for_everyone()
        yield
        job.accelerator.wait_for_everyone()


def _describe(job: Job) -> None:
    """Write what is known so far into the run folder."""
    if not job.is_main:
        return
    subject, source = job.recipe.subjects[0], job.plans.source
    described = environment.describe(job.accelerator.device, job.accelerator.num_processes)
    info = {
        "identity": job.plans.identity(job.recipe),
        "model": {"name": source.name, "family": source.family, "identity": source.identity},
        "photos": [
            {"id": photo.id, "file": photo.path.name, "caption": photo.caption, "subject": index}
            for index, pool in enumerate(job.photos)
            for photo in pool
        ],
        "identifier": subject.identifier,
        "class": subject.class_noun,
        "identifiers": [each.identifier for each in job.recipe.subjects],
        "created": now(),
        "derived": {**job.plans.reasons, **{name: reason for name, reason in _named(job) if reason}},
        "times": {},
        "peaks": {},
        "step_mb": job.step_mb,
        "warnings": job.plans.warnings,
        "foreseen": job.plans.warnings,
        "finished": False,
        "steps": job.recipe.steps,
    }
    earlier = job.run.environment
    job.run.begin(job.recipe, info, described)
    _compare_threads(job, earlier, described)
    job.times, job.peaks = job.run.info["times"], job.run.info["peaks"]
    samples.save_previews(job.run, [photo for pool in job.photos for photo in pool])


def _compare_threads(job: Job, earlier: dict[str, Any], described: dict[str, Any]) -> None:
    for name in ("threads", "torch", "device_name", "processes"):
        was, is_ = earlier.get(name, described[name]), described[name]
        if was != is_:
            job.warn(f"{name} was {was} and is {is_}: the run goes on, but not bit for bit the same")


def _class_images(job: Job) -> list[list[Photo]]:
    """Make or find each subject's class images. Without prior preservation, or with one on photos, there are none."""
    recipe = job.recipe
    if recipe.prior_weight == 0 or recipe.prior_loss == "parent":
        return [[] for _ in recipe.subjects]
    if job.plans.class_images:
        return job.plans.class_images
    found = []
    with job.timed("class images"):
        for subject in recipe.subjects:
            wanted = prior.plan(job.pipe, job.family, job.plans.source, recipe, subject.class_noun)
            with _main_holds(job, prior.turn(wanted, job.reporter)):
                rank, world = job.accelerator.process_index, job.accelerator.num_processes
                prior.make(job.pipe, job.family, wanted, job.reporter, rank, world)
            found.append(wanted.photos())
    return found


def _check_classes(job: Job) -> None:
    """Warn of photos and of real class images that look like another class."""
    if not job.is_main:
        return
    given = job.plans.class_images or [[] for _ in job.photos]
    for subject, *pools in zip(job.recipe.subjects, job.photos, given, strict=True):
        photos, class_images = ([image.path for image in pool] for pool in pools)
        for problem in class_noun.mistaken(job.plans.source, subject.class_noun, photos, class_images):
            job.warn(problem.message)


def _before(job: Job) -> None:
    """Draw the frozen model's pictures, to compare with."""
    if job.is_main and job.recipe.samples:
        with job.timed("sampling"):
            samples.draw_before(job.run, job.pipe, job.recipe, job.reporter)
    job.accelerator.wait_for_everyone()


def _watch(job: Job) -> Watch | None:
    """Begin to look at the run, where the recipe selects; the main process alone does."""
    watch = None
    if job.is_main and job.recipe.select:
        with job.timed("looking"):
            watch = looks.begin(job)
    job.accelerator.wait_for_everyone()
    return watch


def _tune(job: Job, watch: Watch, pipe: DiffusionPipeline) -> None:
    """Choose how strong the shipped adapter is, and the guidance that it is drawn with."""
    selection = job.run.info["selection"]
    look = next(look for look in watch.looks if look.step == selection["step"])
    ways = [watch.strength] if job.recipe.has_strength else []
    if watch.sampling.guidance > 1:
        ways.append(watch.guidance)
    drawn = 1 + len(watch.looks)
    for way in ways:
        found = way(pipe, look)
        drawn += len(found.looks) - 1
        look = found.looks[found.value]
        if found.name == "strength" and found.value != 1:
            adapters.strengthen(job.run.adapter, found.value)
        job.reporter.say(f"{found.name} {found.value:g} chosen: {found.reason}")
        selection |= found.as_json()
    job.run.update(selection={**selection, "seconds": round(watch.seconds, 1), "pictures": drawn * len(watch.texts)})


def _ship(job: Job) -> None:
    """Write the adapter: what stock diffusers loads."""
    if job.is_main:
        for module in methods.trained_components(job.pipe, job.family, job.recipe).values():
            module.eval()
        with job.timed("saving"), atomic_folder(job.run.adapter) as folder:
            job.method.save(job.pipe, job.family, job.plans.source, job.recipe, folder)
        if job.run.forget_scores():
            job.reporter.say(f"what was measured of {job.run.path} before is removed: `dreambooth evaluate` it again")
    job.accelerator.wait_for_everyone()


def _let_go(job: Job) -> None:
    """Drop the trained model and its optimiser, so that the device has room for what was shipped."""
    job.accelerator.free_memory()
    for name, part in job.pipe.components.items():
        if isinstance(part, nn.Module):
            setattr(job.pipe, name, None)


def _finish(job: Job, watch: Watch | None) -> None:
    """Choose how it is drawn, draw the pictures from what was shipped, and write the report."""
    if not job.is_main:
        return
    if job.recipe.samples or watch:
        _let_go(job)
        shipped = job.method.load(job.family, job.plans.source, job.recipe, job.run.adapter)
        pipe = place(shipped, job.accelerator.device)
        if watch:
            with job.timed("looking"):
                _tune(job, watch, pipe)
        if job.recipe.samples:
            with job.timed("sampling"):
                samples.draw_after(job.run, pipe, job.recipe, job.reporter)
    job.run.update(finished=True, steps=job.recipe.steps, peak_mb=max(job.peaks.values()))
    report(job.run.path)
