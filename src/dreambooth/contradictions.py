"""Settings that contradict one another, each said in one line before any work starts."""

from __future__ import annotations

from collections.abc import Iterator

from dreambooth.errors import UserError
from dreambooth.optimizers import KINDS, InBackward
from dreambooth.recipe import Recipe

NO_LAYERS = "--targets {} names layers with a LoRA, and none is trained: leave it out, or use --method lora"


def refuse(recipe: Recipe) -> None:
    """Refuse a resolved recipe whose settings contradict one another.

    Raises:
        UserError: The first contradiction, and how to mend it.
    """
    parts = (_of_adapters, _of_losses, _of_weights, _of_moments, of_steps)
    for wrong, message in (each for part in parts for each in part(recipe)):
        if wrong:
            raise UserError(message)


def _of_adapters(recipe: Recipe) -> Iterator[tuple[bool, str]]:
    kind, adapts = recipe.adapter, recipe.has_adapter
    for name in ("rank", "alpha", "min_rank"):
        flag, given = "--" + name.replace("_", "-"), getattr(recipe, name) is not None
        yield not adapts and given, f"{flag} is a setting of a LoRA: leave it out, or use --method lora"
    yield not adapts and recipe.targets != "attention", NO_LAYERS.format(recipe.targets)  # which is filled in for all
    yield not adapts and kind != "lora", f"--adapter {kind} is a kind of --method lora: leave one of them out"
    rotates = kind in ("oft", "hra")
    mend = f"--adapter {kind} rotates: leave it out"
    yield rotates and recipe.alpha is not None, f"--alpha scales what is added to the weights, and {mend}"
    pairs = f"--rank {recipe.rank} is odd, and --adapter {kind} works in pairs: give an even one"
    yield rotates and recipe.rank is not None and recipe.rank % 2 == 1, pairs
    bits = f"--base {recipe.base} is for a LoRA, and --adapter {kind} is none: leave one of them out"
    yield recipe.base is not None and adapts and not recipe.is_lora, bits
    least, rank = recipe.min_rank or 0, recipe.rank or 0
    yield adapts and least >= max(rank, 1), f"--min-rank {least} is no less than --rank {rank}: give a smaller one"
    whole = f"--min-rank does not go with --adapter {kind}, whose ranks work as a whole: use lora or rslora"
    yield least > 0 and kind not in ("lora", "rslora"), whole
    other = f"--start is a LoRA, and --adapter {kind} is of another kind: leave one of them out"
    yield recipe.start is not None and adapts and kind not in ("lora", "rslora"), other
    yield recipe.start is not None and not adapts, "--start is a LoRA to go on from: use it with --method lora"
    vectors = "--optimizer muon trains matrices alone, and --adapter dora has vectors: use --adapter lora"
    yield recipe.optimizer == "muon" and kind == "dora", vectors


def _of_losses(recipe: Recipe) -> Iterator[tuple[bool, str]]:
    inverts, prior = recipe.method == "textual-inversion", recipe.prior_loss
    token = "--train-text-encoder does not go with pivotal tuning, which trains a token there: leave it out"
    yield recipe.method == "pivotal" and recipe.train_text_encoder, token
    for name in ("train_text_encoder", "text_encoder_learning_rate"):
        flag = "--" + name.replace("_", "-")
        alone = f"{flag} does not go with textual inversion, which trains a token alone: leave it out"
        yield inverts and bool(getattr(recipe, name)), alone
    nothing = f"--prior-loss {prior} is of no use to textual inversion, which cannot change the class: leave it out"
    yield inverts and prior != "images", nothing
    keeps = "--dco-beta keeps the class by itself: leave out --prior-weight and --prior-loss"
    yield recipe.dco_beta is not None and (recipe.prior_weight != 0 or prior != "images"), keeps
    off = f"--prior-weight 0 switches --prior-loss {prior} off: leave one of them out, or give --prior-loss images"
    yield prior != "images" and recipe.prior_weight == 0, off
    undrawn = "no class images are drawn here that could show --prior-scenes: leave it out"
    yield bool(recipe.prior_scenes) and not recipe.draws_class_images, undrawn
    for name in ("prior_dropout", "prior_others", "prior_images"):
        nowhere = f"there is no prior here for --{name.replace('_', '-')}: leave it out, or give --prior-weight"
        yield bool(getattr(recipe, name)) and recipe.prior_weight == 0, nowhere
    shares = (recipe.prior_dropout or 0) + recipe.prior_others
    yield shares >= 1, f"--prior-dropout and --prior-others are shares of the prior, {shares:g} together: lower one"
    unheld = "--prior-others asks the frozen model: use --prior-loss distilled or parent, or leave it out"
    yield bool(recipe.prior_others) and prior == "images", unheld
    folder = "--prior-loss parent learns from the photos: leave out --prior-images, or use --prior-loss distilled"
    yield prior == "parent" and recipe.prior_images is not None, folder
    nouns = list(dict.fromkeys(subject.class_noun for subject in recipe.subjects))
    shared = f"--prior-images is one folder, and the subjects are of several classes ({', '.join(nouns)}): leave it out"
    yield len(nouns) > 1 and recipe.prior_images is not None, shared
    guided, alone = recipe.consistency is not None, "--consistency leaves out a LoRA of the denoiser"
    yield guided and recipe.method != "lora", f"{alone}: use --method lora, or leave it out"
    encoder = f"{alone}, and a text encoder would stay trained: leave out --train-text-encoder"
    yield guided and not recipe.adapts_denoiser_alone, encoder
    measured = recipe.method == "full" or (recipe.has_adapter and recipe.adapter in ("lora", "rslora"))
    what = f"--adapter {recipe.adapter}" if recipe.has_adapter else f"--method {recipe.method}"
    yield recipe.l2_to_base is not None and not measured, f"--l2-to-base does not go with {what}: leave one of them out"


def _of_weights(recipe: Recipe) -> Iterator[tuple[bool, str]]:
    twice = "--ema-profiles averages what is averaged already: leave it out, or"
    yield recipe.ema_profiles and recipe.ema is not None, f"{twice} --ema"
    yield recipe.ema_profiles and recipe.optimizer == "schedule-free", f"{twice} --optimizer schedule-free"
    early = "--ema-profiles averages all steps, and --select ships an earlier one: leave one of them out"
    yield recipe.ema_profiles and recipe.select, early
    others = {"--method full": recipe.method == "full", f"--base {recipe.base}": recipe.base is not None}
    others |= {"--compile": recipe.compile, "--cuda-graphs": recipe.cuda_graphs, "--select": recipe.select}
    others |= {"--no-gradient-checkpointing": recipe.gradient_checkpointing is False, "--no-cache": not recipe.cache}
    for flag, holds in others.items():
        moves = f"--offload-blocks moves frozen weights about, which {flag} does not allow: leave one of them out"
        yield bool(recipe.offload_blocks) and holds, moves


def _of_moments(recipe: Recipe) -> Iterator[tuple[bool, str]]:
    for name in ("beta1", "beta2"):
        given = getattr(recipe, name) != Recipe.model_fields[name].default
        idle = f"--{name} does nothing with --optimizer {recipe.optimizer}, which has its own: leave it out"
        yield given and not KINDS[recipe.optimizer].betas, idle


def of_steps(recipe: Recipe) -> Iterator[tuple[bool, str]]:
    """Yield what may be wrong about how a recipe takes its steps: whether it is, and how to mend it."""
    inward = recipe.step_in_backward
    yield inward and recipe.method != "full", "--step-in-backward spares a whole model's gradients: use --method full"
    name, able = recipe.optimizer, " or ".join(InBackward.ABLE)
    yield inward and name not in InBackward.ABLE, f"--step-in-backward does not go with --optimizer {name}: use {able}"
    yield inward and recipe.precision == "fp16", "--step-in-backward does not go with fp16, whose gradients are scaled"
    passes = "--step-in-backward takes its steps in one pass: leave out"
    yield inward and (recipe.accumulation or 1) > 1, f"{passes} --accumulation"
    yield inward and bool(recipe.more_resolutions), f"{passes} --more-resolutions"
    yield inward and recipe.aspect != "square", f"{passes} --aspect"
