"""Mistakes that other trainers pass over in silence: found before any work, told in a sentence that mends them.

A check is a function of the plan that yields what is wrong: an `Objection` stops the run, unless `--allow` overrides
it; a plain sentence is a warning.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from dreambooth import buckets, families, optimizers, prompts, sampling
from dreambooth.errors import UserError
from dreambooth.models import Source
from dreambooth.photos import Photo
from dreambooth.presets import SAMPLING, TRAINING, key
from dreambooth.recipe import Recipe, Refusal

FULL_RATE_EXCESS = 10
"""A rate of full fine-tuning may be so many times the preset's; a LoRA's rate lies farther above it."""
LORA_RATE_EXCESS = 200
FOUND_RATE_LEAST, FOUND_RATE_MOST = 0.1, 10.0
"""Of an optimiser that finds its rate and multiplies it by the one given, which is therefore about 1."""
SCALE_LEAST, SCALE_MOST = 1 / 16, 16
"""Of alpha over rank."""
SIDE_FACTOR = 2.0
"""A resolution may be so many times smaller or larger than the model's own."""
FEW_CLASS_IMAGES = 10
FEW_STEPS = 10


@dataclass(frozen=True)
class Objection:
    """What stops a run.

    Attributes:
        text: One line: what is wrong, where, and how to mend it.
        allow: Name by which `--allow` overrides it; None where nothing does.
    """

    text: str
    allow: Refusal | None = None


@dataclass(frozen=True)
class Plan:
    """What is looked at.

    Attributes:
        given: The recipe as the user gave it.
        recipe: With every setting filled in.
        source: The base model.
        native: The image side that it was trained at.
        photos: Each subject's photos.
    """

    given: Recipe
    recipe: Recipe
    source: Source
    native: int
    photos: Sequence[Sequence[Photo]]

    @property
    def is_distilled(self) -> bool:
        """Whether the model draws in few steps without guidance, as distilled ones do."""
        values = SAMPLING[key(self.source)].values
        return bool(values["guidance"] <= 1 and values["inference_steps"] <= FEW_STEPS)

    @property
    def is_flow(self) -> bool:
        """Whether the model is a rectified flow."""
        return families.get(self.source.family).SAMPLERS is sampling.FLOW_SAMPLERS


Found = Iterator[Objection | str]


def look(plan: Plan) -> list[str]:
    """Run all checks.

    Returns:
        The warnings.

    Raises:
        UserError: The first objection that is not overridden.
    """
    found = [each for check in CHECKS for each in check(plan)]
    for each in found:
        if isinstance(each, Objection) and each.allow not in plan.recipe.allow:
            raise UserError(each.text, allow=each.allow)
    return [each for each in found if isinstance(each, str)]


def rates(plan: Plan) -> Found:
    """Rates of another method, or of the wrong part."""
    recipe = plan.recipe
    values = TRAINING[key(plan.source), recipe.method].values
    preset = values["learning_rate"]
    excess = {"full": FULL_RATE_EXCESS, "lora": LORA_RATE_EXCESS}.get(recipe.method)
    rate = recipe.learning_rate or 0.0
    usual = optimizers.KINDS[recipe.optimizer].rate
    if usual is not None and not FOUND_RATE_LEAST <= rate <= FOUND_RATE_MOST:
        what = f"{recipe.optimizer} multiplies the rate that it finds by it"
        yield Objection(f"--learning-rate {rate:g}: {what}: leave it out for {usual:g}", "learning-rate")
    if usual is None and excess and rate > excess * preset:
        what = "is a LoRA's and would burn a whole model" if recipe.method == "full" else "would burn the LoRA"
        yield Objection(f"--learning-rate {rate:g} {what}: leave it out for {preset:g}", "learning-rate")
    derived = {None, values.get("text_encoder_learning_rate", recipe.learning_rate)}
    derived |= set() if usual is None else {recipe.learning_rate}  # one rate for all weights
    if plan.given.text_encoder_learning_rate not in derived and not (recipe.train_text_encoder or recipe.learns_token):
        yield Objection("--text-encoder-learning-rate does nothing without --train-text-encoder: add that or leave it")
    elif recipe.train_text_encoder and (recipe.text_encoder_learning_rate or 0) > rate:
        yield "the text encoder learns faster than the denoiser, and soon forgets words: lower its rate"


def scale(plan: Plan) -> Found:
    """An alpha that scales the adapter away, or blows it up."""
    recipe = plan.recipe
    if recipe.alpha is None or recipe.rank is None:
        return
    ratio = recipe.alpha / recipe.rank
    if not SCALE_LEAST <= ratio <= SCALE_MOST:
        what = "scales the LoRA away" if ratio < SCALE_LEAST else "blows the LoRA up"
        given = f"--alpha {recipe.alpha:g} with --rank {recipe.rank}"
        yield Objection(f"{given} {what} (by {ratio:g}): leave --alpha out for a scale of 1", "alpha")


def resolution(plan: Plan) -> Found:
    """A resolution that the model cannot draw at, or that is given twice."""
    seen: set[int] = set()
    for flag, side in buckets.flags(plan.recipe):
        if not plan.native / SIDE_FACTOR <= side <= plan.native * SIDE_FACTOR:
            text = f"{flag} {side} is far from the {plan.native} pixels that this model draws at: leave it out"
            yield Objection(text, "resolution")
        if side in seen:
            yield Objection(f"{flag} {side} is learnt at already: leave it out")
        seen.add(side)


def duration(plan: Plan) -> Found:
    """Steps that are too few for the photos or the warm-up."""
    recipe, photos = plan.recipe, sum(map(len, plan.photos))
    steps = recipe.steps or 0
    if steps * recipe.batch_size < photos * (1 + recipe.scales):
        scales = " at all scales" if recipe.scales else ""
        yield f"{steps} steps of {recipe.batch_size} do not show all {photos} photos once{scales}: give more --steps"
    if recipe.warmup >= steps > 0 and recipe.warmup:
        yield Objection(f"--warmup {recipe.warmup} lasts as long as the {steps} steps of the run: give less than half")


def words(plan: Plan) -> Found:
    """Names, captions and prompts that do not say what they should."""
    recipe = plan.recipe
    for subject, pool in zip(recipe.subjects, plan.photos, strict=True):
        prompts.require_noun(subject.class_noun)
        if subject.identifier and subject.identifier in subject.class_noun.split():
            both = f"the class noun '{subject.class_noun}' holds the identifier '{subject.identifier}'"
            alone = subject.identifier == subject.class_noun
            yield Objection(f"{both}: give {'another --identifier, or none' if alone else 'the noun alone'}")
        silent = [photo.path.name for photo in pool if photo.caption and not prompts.PLACEHOLDER.search(photo.caption)]
        if silent:
            named = ", ".join(silent[:3])
            yield f"the captions of {len(silent)} photos ({named}) do not name the subject: write [V] where it is named"
    if "{class}" not in recipe.label:
        yield f"the label '{recipe.label}' leaves out the class noun, without which the model's prior is not used"
    mute = [scene for scene in recipe.scenes or () if not prompts.PLACEHOLDER.search(scene)]
    if mute:
        yield Objection(f"the scene '{mute[0]}' does not name the subject: write [V] in it", "scenes")


def shared_photos(plan: Plan) -> Found:
    """Photos that would teach the model two names for one thing."""
    folders = [subject.photos.resolve() for subject in plan.recipe.subjects]
    if len(set(folders)) < len(folders):
        yield Objection("two subjects have the same folder of photos: give each its own")
        return
    owner: dict[str, Photo] = {}
    for photo in itertools.chain(*plan.photos):
        first = owner.setdefault(photo.id, photo)
        if first.path.parent != photo.path.parent:
            yield f"{first.path} and {photo.path} are one photo for two subjects, which will look alike: remove one"


def class_images(plan: Plan) -> Found:
    """Class images that are no prior."""
    recipe = plan.recipe
    folders = [subject.photos.resolve() for subject in recipe.subjects]
    if recipe.prior_images and recipe.prior_images.resolve() in folders:
        yield Objection("--prior-images are the subject's own photos: give pictures of others of its class")
    if not recipe.draws_class_images:
        idle = [name for name in ("prior_count", "prior_steps", "prior_guidance") if _is_set(plan, name)]
        yield from (f"no class images are drawn here, and --{name.replace('_', '-')} does nothing" for name in idle)
        return
    if (recipe.prior_count or 0) < FEW_CLASS_IMAGES:
        yield f"{recipe.prior_count} class images are soon known by heart: give --prior-count {FEW_CLASS_IMAGES}"
    if (recipe.prior_steps or 0) < FEW_STEPS and not plan.is_distilled:
        yield f"class images drawn in {recipe.prior_steps} steps are a bad prior: leave --prior-steps out"


def _is_set(plan: Plan, name: str) -> bool:
    """Whether the user gave a setting, other than the preset's, which the recipe of a run has in it."""
    return getattr(plan.given, name) not in (None, SAMPLING[key(plan.source)].values[name])


def drawing(plan: Plan) -> Found:
    """Sampling that the model was not made for."""
    recipe = plan.recipe
    samplers = families.get(plan.source.family).SAMPLERS
    if recipe.sampler and recipe.sampler not in samplers:
        yield Objection(f"no sampler '{recipe.sampler}' for this model: choose from {', '.join(samplers)}")
    if recipe.min_snr and plan.is_flow:
        yield Objection("--min-snr weighs by a noise schedule, which a flow model has not: leave it out")
    if not plan.is_distilled:
        if (recipe.inference_steps or FEW_STEPS) < FEW_STEPS and recipe.samples:
            yield f"pictures drawn in {recipe.inference_steps} steps are no good: leave --inference-steps out"
        return
    yield f"{plan.source.name} is distilled to draw in few steps, which training undoes: keep the run short"
    for name in ("guidance", "prior_guidance"):
        value = getattr(recipe, name)
        if value is not None and value > 1:
            flag = "--" + name.replace("_", "-")
            yield Objection(f"{flag} {value:g}: this model draws without guidance: leave it out", "guidance")


def masks(plan: Plan) -> Found:
    """A weight of the background that nothing uses, or masks that it switches off."""
    masked = [photo.path.name for pool in plan.photos for photo in pool if photo.mask_path]
    if masked and plan.recipe.background_weight == 1:
        yield f"--background-weight 1 makes the masks of {len(masked)} photos do nothing: give less, or remove them"
    if not masked and plan.given.background_weight != Recipe.model_fields["background_weight"].default:
        yield Objection("--background-weight does nothing without masks: put NN.mask.png beside the photos")


CHECKS: tuple[Callable[[Plan], Found], ...] = (
    rates,
    scale,
    resolution,
    duration,
    words,
    shared_photos,
    class_images,
    drawing,
    masks,
)
