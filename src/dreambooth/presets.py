"""Settings that depend on the model and the method, as data with their sources; and the filling in of a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dreambooth import optimizers
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
    "sdxl": Preset(
        {
            "prior_count": 100,
            "prior_steps": 50,
            "prior_guidance": 5.0,
            "inference_steps": 50,
            "guidance": 5.0,
            "sampler": "euler",
        },
        "defaults of diffusers' StableDiffusionXLPipeline and of its DreamBooth scripts (100 class images)",
    ),
    "flux": Preset(
        {
            "prior_count": 100,
            "prior_steps": 28,
            "prior_guidance": 3.5,
            "inference_steps": 28,
            "guidance": 3.5,
            "sampler": "euler",
        },
        "defaults of diffusers' FluxPipeline and of its DreamBooth scripts (100 class images)",
    ),
    "flux-schnell": Preset(
        {
            "prior_count": 100,
            "prior_steps": 4,
            "prior_guidance": 0.0,
            "inference_steps": 4,
            "guidance": 0.0,
            "sampler": "euler",
        },
        "model card of FLUX.1 schnell; diffusers' DreamBooth scripts (100 class images)",
    ),
}

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

TRAINING: dict[tuple[str, str], Preset] = {
    ("toybox", "lora"): Preset({"steps": 300, "learning_rate": 2e-3, "rank": 16}, "measured on the toybox"),
    ("toybox", "full"): Preset(
        {"steps": 300, "learning_rate": 1e-4, "text_encoder_learning_rate": 2e-5}, "measured on the toybox"
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
    ("sdxl", "textual-inversion"): Preset(
        {"steps": 3000, "learning_rate": 5e-4},
        "as for Stable Diffusion: diffusers examples/textual_inversion/README.md",
    ),
    **dict.fromkeys([("flux", "lora"), ("flux-schnell", "lora")], _FLUX_LORA),
    **dict.fromkeys([("flux", "full"), ("flux-schnell", "full")], _FLUX_FULL),
    **dict.fromkeys([("flux", "textual-inversion"), ("flux-schnell", "textual-inversion")], _FLUX_TOKEN),
}

LORA_RATE_FLOOR = {"toybox": 1e-4, "sd": 2e-5, "sdxl": 2e-5, "flux": 1e-5, "flux-schnell": 1e-5}
"""A LoRA below this rate learns nothing in a usual number of steps: full fine-tuning's rates lie there."""


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

    own_rate = optimizers.KINDS[recipe.optimizer].rate
    if own_rate is not None:
        for name in ("learning_rate", "text_encoder_learning_rate"):
            derive(name, own_rate, optimizers.KINDS[recipe.optimizer].source)
    for preset in (_training(chosen, recipe.method), SAMPLING[chosen]):
        for name, value in preset.values.items():
            derive(name, value, preset.source)
    derive("resolution", resolution, "the model's own")
    derive("precision", *_precision(accelerator))
    if recipe.method == "lora":
        derive("alpha", float(recipe.rank or values["rank"]), "the rank: a scale of 1")
    if recipe.method == "textual-inversion":
        derive("prior_weight", 0.0, "the model is frozen but for a new token: its classes cannot drift")
    else:
        derive("prior_weight", 1.0, "Ruiz et al. 2023")
        derive("text_encoder_learning_rate", recipe.learning_rate or values["learning_rate"], "the denoiser's")
    steps = recipe.steps or values["steps"]
    derive("save_every", max(1, min(500, -(-steps // 4))), "a quarter of the run, at most 500 steps")
    filled = recipe.model_copy(update=values)
    _refuse(filled, chosen, accelerator)
    return filled, reasons


def _training(chosen: str, method: str) -> Preset:
    if (chosen, method) not in TRAINING:
        known = [f"--method {name}" for model, name in TRAINING if model == chosen]
        raise UserError(f"--method {method} is not there for {chosen} models: use {' or '.join(known)}")
    return TRAINING[chosen, method]


def _precision(accelerator: str) -> tuple[str, str]:
    if accelerator == "cuda":
        return "bf16", "the device computes in bf16; trained weights stay fp32"
    return "fp32", f"exact, and as fast as the others on {accelerator}"


def _refuse(recipe: Recipe, chosen: str, accelerator: str) -> None:
    optimizers.require(recipe, accelerator)
    floor = LORA_RATE_FLOOR[chosen]
    rate = recipe.learning_rate or 0
    if recipe.method == "lora" and rate < floor and "learning-rate" not in recipe.allow:
        preset = TRAINING[chosen, "lora"].values["learning_rate"]
        raise UserError(
            f"--learning-rate {rate:g} is a rate of full fine-tuning, at which a LoRA would learn nothing: "
            f"leave it out for {preset:g}",
            allow="learning-rate",
        )
    if recipe.precision == "fp16" and accelerator == "cpu":
        raise UserError("--precision fp16 does not work on a CPU: use fp32 or bf16")
    for name in ("rank", "alpha"):
        if recipe.method != "lora" and getattr(recipe, name) is not None:
            raise UserError(f"--{name} is a setting of a LoRA: leave it out, or use --method lora")
    for name in ("train_text_encoder", "text_encoder_learning_rate"):
        if recipe.method == "textual-inversion" and getattr(recipe, name):
            flag = "--" + name.replace("_", "-")
            raise UserError(f"{flag} does not go with textual inversion, which trains a token alone: leave it out")
