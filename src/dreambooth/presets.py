"""Settings that depend on the model and the method, as data with their sources; and the filling in of a recipe."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dreambooth import class_keeping, contradictions, families, optimizers, quantise, upscaling
from dreambooth.errors import UserError
from dreambooth.models import Source
from dreambooth.recipe import Recipe


@dataclass(frozen=True)
class Preset:
    """Starting values for one family (or one model) and one method.

    Attributes:
        values: Settings by name.
        source: Where they come from.
    """

    values: dict[str, Any]
    source: str


def _alike(steps: int, guidance: float, source: str) -> Preset:
    """Return presets of a model whose 100 class images are drawn like its other pictures, by Euler's sampler."""
    class_images = {"prior_count": 100, "prior_steps": steps, "prior_guidance": guidance}
    return Preset({**class_images, "inference_steps": steps, "guidance": guidance, "sampler": "euler"}, source)


SAMPLING: dict[str, Preset] = {
    "toybox": Preset(
        {
            "prior_count": 100,
            "prior_steps": 25,
            "prior_guidance": 3.0,
            "inference_steps": 20,
            "guidance": 4.0,
            "sampler": "dpm++",
        },
        "measured on the toybox",
    ),
    "sd": Preset(
        {
            "prior_count": 200,
            "prior_steps": 50,
            "prior_guidance": 7.5,
            "inference_steps": 25,
            "guidance": 7.5,
            "sampler": "dpm++",
        },
        "diffusers' DreamBooth README (200 class images, guidance 7.5); OFT's evaluation (DPM-Solver++, 25 steps)",
    ),
    "sdxl": _alike(
        50,
        5.0,
        "defaults of diffusers' StableDiffusionXLPipeline and of its DreamBooth scripts (100 class images)",
    ),
    "sd3": _alike(
        28,
        7.0,
        "defaults of diffusers' StableDiffusion3Pipeline and of its DreamBooth scripts (100 class images)",
    ),
    "sd35-medium": _alike(
        40,
        4.5,
        "model card of Stable Diffusion 3.5 medium; diffusers' DreamBooth scripts (100 class images)",
    ),
    "sd35-large": _alike(
        28,
        3.5,
        "model card of Stable Diffusion 3.5 large; diffusers' DreamBooth scripts (100 class images)",
    ),
    "flux": _alike(28, 3.5, "defaults of diffusers' FluxPipeline and of its DreamBooth scripts (100 class images)"),
    "flux-schnell": _alike(4, 0.0, "model card of FLUX.1 schnell; diffusers' DreamBooth scripts (100 class images)"),
    "chroma": _alike(40, 3.0, "diffusers docs/source/en/api/pipelines/chroma.md; class images as for FLUX.1"),
    "sana": Preset(
        {
            "prior_count": 100,
            "prior_steps": 28,
            "prior_guidance": 4.5,
            "inference_steps": 20,
            "guidance": 4.5,
            "sampler": "dpm++",
        },
        "defaults of diffusers' SanaPipeline and of its DreamBooth script (100 class images); 28 steps for Euler's "
        "sampler from NVlabs/Sana scripts/inference.py",
    ),
    "z_image": _alike(
        50,
        5.0,
        "model card of Z-Image, whose scale of 4 is 5 where 1 is none; diffusers' DreamBooth script (100 class images)",
    ),
    "z-image-turbo": _alike(9, 1.0, "model card of Z-Image Turbo; diffusers' DreamBooth script (100 class images)"),
    "qwen_image": _alike(50, 4.0, "model card of Qwen-Image; diffusers' DreamBooth script (100 class images)"),
    "flux2": _alike(
        50,
        4.0,
        "defaults of diffusers' Flux2Pipeline and Flux2KleinPipeline; diffusers' DreamBooth script (100 class images)",
    ),
    "flux2-klein-4b": _alike(4, 1.0, "model card of FLUX.2 klein 4B; diffusers' DreamBooth script (100 class images)"),
    "deepfloyd": Preset(
        {
            "prior_count": 100,
            "prior_steps": 100,
            "prior_guidance": 7.0,
            "inference_steps": 100,
            "guidance": 7.0,
            "sampler": "ddpm",
        },
        "defaults of diffusers' IFPipeline and of its DreamBooth scripts (100 class images), whose README finds that "
        "DDPM's sampler suits it best",
    ),
    "deepfloyd_sr": Preset(
        {
            "prior_count": 100,
            "prior_steps": 50,
            "prior_guidance": 4.0,
            "inference_steps": 50,
            "guidance": 4.0,
            "sampler": "ddpm",
        },
        "defaults of diffusers' IFSuperResolutionPipeline and of its DreamBooth scripts (100 class images)",
    ),
}

_SD3_LORA = Preset(
    {"steps": 1000, "learning_rate": 1e-4, "rank": 16, "text_encoder_learning_rate": 5e-6},
    "rate and rank of kohya's docs/sd3_train_network.md, steps as for FLUX.1; text-encoder rate from diffusers' "
    "train_dreambooth_lora_sd3.py",
)
_SD3_FULL = Preset(
    {"steps": 1000, "learning_rate": 1e-5, "text_encoder_learning_rate": 5e-6},
    "the rate of the DreamBooth paper for its largest model (Ruiz et al. 2023); text-encoder rate from diffusers' "
    "train_dreambooth_sd3.py; not measured on Stable Diffusion 3",
)
_FLUX_LORA = Preset(
    {"steps": 1000, "learning_rate": 1e-4, "rank": 16, "text_encoder_learning_rate": 5e-6},
    "rate and rank of ai-toolkit's train_lora_flux_24gb.yaml, steps within its 500 to 4000; text-encoder rate from "
    "diffusers' train_dreambooth_lora_flux.py",
)
_FLUX_FULL = Preset(
    {"steps": 1000, "learning_rate": 1e-5, "text_encoder_learning_rate": 5e-6},
    "the rate of the DreamBooth paper for its largest model (Ruiz et al. 2023); not measured on FLUX.1",
)
_FLUX_TOKEN = Preset(
    {"steps": 3000, "learning_rate": 5e-4},
    "as for Stable Diffusion; CLIP alone learns the token, T5 reads it in pieces",
)
_FLOW_FULL = Preset(
    {"steps": 1000, "learning_rate": 1e-5},
    "the rate of the DreamBooth paper for its largest model (Ruiz et al. 2023); not measured on this one",
)
_Z_IMAGE_LORA = Preset(
    {"steps": 500, "learning_rate": 1e-4, "rank": 4},
    "diffusers examples/dreambooth/README_z_image.md; rank from its script's default",
)
_FLUX2_LORA = Preset(
    {"steps": 500, "learning_rate": 1e-4, "rank": 4},
    "diffusers examples/dreambooth/README_flux2.md; rank from its scripts' default",
)

_PIVOTAL = Preset(
    {"steps": 2000, "learning_rate": 1e-4, "rank": 4, "text_encoder_learning_rate": 5e-4},
    "README of github.com/cloneofsimo/lora: 1000 steps of the token, 1000 of the LoRA; rank as for a LoRA alone",
)

TRAINING: dict[tuple[str, str], Preset] = {
    ("toybox", "lora"): Preset(
        {"steps": 400, "learning_rate": 2e-3, "rank": 16, "targets": "wide"}, "measured on the toybox"
    ),
    ("toybox", "full"): Preset(
        {"steps": 600, "learning_rate": 3e-4, "text_encoder_learning_rate": 2e-5}, "measured on the toybox"
    ),
    ("toybox", "pivotal"): Preset(
        {"steps": 600, "learning_rate": 2e-3, "rank": 16, "targets": "wide", "text_encoder_learning_rate": 5e-3},
        "the toybox's own LoRA after its own textual inversion",
    ),
    ("toybox", "textual-inversion"): Preset({"steps": 400, "learning_rate": 5e-3}, "measured on the toybox"),
    ("sd", "lora"): Preset(
        {"steps": 500, "learning_rate": 1e-4, "rank": 4, "text_encoder_learning_rate": 1e-5},
        "diffusers examples/dreambooth/README.md, LoRA; text-encoder rate from kohya docs/sdxl_train_network.md",
    ),
    ("sd", "full"): Preset(
        {"steps": 1000, "learning_rate": 5e-6, "text_encoder_learning_rate": 2e-6},
        "Ruiz et al. 2023 for Stable Diffusion; text-encoder rate from diffusers examples/dreambooth/README.md",
    ),
    ("sd", "textual-inversion"): Preset(
        {"steps": 3000, "learning_rate": 5e-4},
        "diffusers examples/textual_inversion/README.md, whose rate is for one image a step",
    ),
    ("sdxl", "lora"): Preset(
        {"steps": 500, "learning_rate": 1e-4, "rank": 4, "text_encoder_learning_rate": 5e-6},
        "diffusers examples/dreambooth/README_sdxl.md; text-encoder rate from its script's default",
    ),
    ("sdxl", "full"): Preset(
        {"steps": 1000, "learning_rate": 4e-7, "text_encoder_learning_rate": 4e-7},
        "the rate SDXL was trained with, by kohya's sd-scripts README; steps as for Stable Diffusion",
    ),
    **dict.fromkeys([("sd", "pivotal"), ("sdxl", "pivotal")], _PIVOTAL),
    ("sdxl", "textual-inversion"): Preset(
        {"steps": 3000, "learning_rate": 5e-4},
        "as for Stable Diffusion: diffusers examples/textual_inversion/README.md",
    ),
    **dict.fromkeys([("sd3", "lora"), ("sd35-medium", "lora"), ("sd35-large", "lora")], _SD3_LORA),
    **dict.fromkeys([("sd3", "full"), ("sd35-medium", "full"), ("sd35-large", "full")], _SD3_FULL),
    **dict.fromkeys([("flux", "lora"), ("flux-schnell", "lora")], _FLUX_LORA),
    **dict.fromkeys([("flux", "full"), ("flux-schnell", "full")], _FLUX_FULL),
    **dict.fromkeys([("flux", "textual-inversion"), ("flux-schnell", "textual-inversion")], _FLUX_TOKEN),
    ("chroma", "lora"): Preset(
        {"steps": 1000, "learning_rate": 1e-4, "rank": 16},
        "rate and rank of ai-toolkit's train_lora_chroma_24gb.yaml, steps within its 500 to 4000",
    ),
    ("chroma", "full"): _FLOW_FULL,
    ("sana", "lora"): Preset(
        {"steps": 500, "learning_rate": 1e-4, "rank": 4},
        "diffusers examples/dreambooth/README_sana.md; rank from its script's default",
    ),
    ("sana", "full"): _FLOW_FULL,
    **dict.fromkeys([("z_image", "lora"), ("z-image-turbo", "lora")], _Z_IMAGE_LORA),
    ("qwen_image", "lora"): Preset(
        {"steps": 500, "learning_rate": 2e-4, "rank": 4},
        "diffusers examples/dreambooth/README_qwen.md; rank from its script's default",
    ),
    **dict.fromkeys([("flux2", "lora"), ("flux2-klein-4b", "lora")], _FLUX2_LORA),
    ("deepfloyd", "lora"): Preset(
        {"steps": 1200, "learning_rate": 2e-5, "rank": 4},
        "diffusers examples/dreambooth/README.md, IF stage I, whose rate of 5e-6 is taken 4 times for its batch of 4; "
        "rank from its script's default",
    ),
    ("deepfloyd", "full"): Preset(
        {"steps": 150, "learning_rate": 1e-7},
        "diffusers examples/dreambooth/README.md, IF stage I, whose rate is for a batch of 4",
    ),
    ("deepfloyd_sr", "lora"): Preset(
        {"steps": 2000, "learning_rate": 1e-6, "rank": 4},
        "diffusers examples/dreambooth/README.md, IF stage II, whose batch is 4; rank from its script's default",
    ),
    ("deepfloyd_sr", "full"): Preset(
        {"steps": 2000, "learning_rate": 5e-6},
        "diffusers examples/dreambooth/README.md, IF stage II, for 12 photos a step: with 4 it needed 1e-8",
    ),
    **dict.fromkeys([("z_image", "full"), ("z-image-turbo", "full"), ("qwen_image", "full")], _FLOW_FULL),
    **dict.fromkeys([("flux2", "full"), ("flux2-klein-4b", "full")], _FLOW_FULL),
}

LORA_RATE_FLOOR = {
    **{"toybox": 1e-4, "sd": 2e-5, "sdxl": 2e-5},
    **dict.fromkeys(["sd3", "sd35-medium", "sd35-large"], 1e-5),
    **dict.fromkeys(["flux", "flux-schnell", "chroma", "sana"], 1e-5),
    **dict.fromkeys(["z_image", "z-image-turbo", "qwen_image", "flux2", "flux2-klein-4b"], 1e-5),
    **{"deepfloyd": 2e-6, "deepfloyd_sr": 1e-7},
}
"""A LoRA below this rate learns nothing in a usual number of steps: full fine-tuning's rates lie there."""

SELECTED = 2
"""A run that selects has so many times the steps of one that does not: docs/selection.md."""
AVERAGE = 0.999
"""Decay of the average that a selecting run ships; up to 9,000 steps it reaches back a tenth of those that are done."""


def key(source: Source) -> str:
    """Return the key of a model's presets: its own name where it has some, else its family's."""
    return source.name if source.name in SAMPLING else source.family


def fill(recipe: Recipe, source: Source, resolution: int, accelerator: str) -> tuple[Recipe, dict[str, str]]:
    """Fill in what the user left open.

    Args:
        recipe: The recipe as given.
        source: The base model.
        resolution: The model's own image side in pixels.
        accelerator: Device type, such as "cpu" or "cuda".

    Returns:
        The recipe without open settings, and the reason of each value filled in.

    Raises:
        UserError: A method that the family has not, a setting that the method has not, a learning rate of full
            fine-tuning on a LoRA, or fp16 on a CPU.
    """
    chosen = key(source)
    values: dict[str, Any] = {}
    reasons: dict[str, str] = {}

    def derive(name: str, value: Any, reason: str) -> None:
        if getattr(recipe, name) is None and name not in values:
            values[name] = value
            reasons[name] = reason

    for settled in (*_of_optimizer(recipe), *_of_steps(chosen, recipe)):
        derive(*settled)
    for preset in (_training(chosen, recipe.method), SAMPLING[chosen]):
        for name, value in preset.values.items():
            derive(name, value, preset.source)
    derive("targets", "attention", "diffusers' DreamBooth scripts")
    derive("resolution", resolution, "the model's own")
    derive("precision", *_precision(accelerator))
    if recipe.adapter == "rslora":
        usual = TRAINING[chosen, "lora"].values["rank"]
        derive("alpha", math.sqrt(usual), f"the root of {usual}, the rank that the rate is for: there a scale of 1")
    elif recipe.has_strength:
        derive("alpha", float(recipe.rank or values["rank"]), "the rank: a scale of 1")
    derive("prior_weight", *class_keeping.weight(recipe, source))
    derive("prior_loss", *class_keeping.loss(recipe.model_copy(update=values)))
    usual_guidance = SAMPLING[chosen].values["guidance"]
    derive("prior_dropout", *class_keeping.dropout(recipe.model_copy(update=values), source, usual_guidance))
    further, why = upscaling.fill(recipe, source)
    values |= further
    reasons |= why
    if recipe.method != "textual-inversion":
        derive("text_encoder_learning_rate", recipe.learning_rate or values["learning_rate"], "the denoiser's")
    steps = recipe.steps or values["steps"]
    derive("save_every", max(1, min(500, -(-steps // 4))), "a quarter of the run, at most 500 steps")
    filled = recipe.model_copy(update=values)
    drawn_in, why_in = class_keeping.precision(recipe, filled, accelerator)
    if drawn_in != recipe.prior_precision:
        filled = filled.model_copy(update={"prior_precision": drawn_in})
        reasons["prior_precision"] = why_in
    _refuse(filled, chosen, accelerator)
    _refuse_text_training(recipe, source)
    upscaling.refuse(filled, source)
    return filled, reasons


def _of_optimizer(recipe: Recipe) -> Iterator[tuple[str, Any, str]]:
    """Yield what the optimiser settles: name, value and reason."""
    kind = optimizers.KINDS[recipe.optimizer]
    if kind.rate is not None:
        yield "learning_rate", kind.rate, kind.source
        if recipe.method != "textual-inversion":
            yield "text_encoder_learning_rate", recipe.learning_rate or kind.rate, kind.source
    if recipe.optimizer == "muon":
        yield "targets", "attention", "muon trains matrices alone"


def _of_steps(chosen: str, recipe: Recipe) -> Iterator[tuple[str, Any, str]]:
    """Yield the number of steps, and the average that a selecting run ships: name, value and reason.

    Subjects share the photos of a step, so that several want the steps of each.
    """
    preset, subjects = _training(chosen, recipe.method), len(recipe.subjects)
    steps: int = preset.values["steps"] * subjects
    reason = preset.source + (f": {preset.values['steps']} for each of {subjects} subjects" if subjects > 1 else "")
    if recipe.select:
        steps *= SELECTED
        reason += f"; {SELECTED} times as many, as it stops when nothing better can be expected"
    yield "steps", steps, reason
    if recipe.select and recipe.optimizer != "schedule-free" and not recipe.ema_profiles:
        yield "ema", AVERAGE, "an average is as like the subject, and follows prompts better: docs/methods.md"


def _training(chosen: str, method: str) -> Preset:
    if (chosen, method) not in TRAINING:
        known = [f"--method {name}" for model, name in TRAINING if model == chosen]
        raise UserError(f"--method {method} is not there for {chosen} models: use {' or '.join(known)}")
    return TRAINING[chosen, method]


def _precision(accelerator: str) -> tuple[str, str]:
    if accelerator == "cuda":
        return "bf16", "the device computes in bf16; trained weights stay fp32"
    return "fp32", f"exact, and as fast as the others on {accelerator}"


def _refuse_text_training(recipe: Recipe, source: Source) -> None:
    if recipe.train_text_encoder and not families.get(source.family).TEXT_LORA_TARGETS:
        chosen = key(source)
        raise UserError(f"--train-text-encoder: the text encoder of {chosen} models is never trained: leave it out")


def _refuse(recipe: Recipe, chosen: str, accelerator: str) -> None:
    optimizers.require(recipe)
    contradictions.refuse(recipe)
    floor = LORA_RATE_FLOOR[chosen]
    rate = recipe.learning_rate or 0
    finds_rate = optimizers.KINDS[recipe.optimizer].rate is not None
    if recipe.has_adapter and not finds_rate and rate < floor and "learning-rate" not in recipe.allow:
        preset = TRAINING[chosen, "lora"].values["learning_rate"]
        raise UserError(
            f"--learning-rate {rate:g} is a rate of full fine-tuning, at which a LoRA would learn nothing: "
            f"leave it out for {preset:g}",
            allow="learning-rate",
        )
    if recipe.precision == "fp16" and accelerator == "cpu":
        raise UserError("--precision fp16 does not work on a CPU: use fp32 or bf16")
    if recipe.base:
        if not recipe.has_adapter:
            raise UserError(f"--base {recipe.base} freezes the denoiser in few bits: use it with --method lora")
        quantise.require()
