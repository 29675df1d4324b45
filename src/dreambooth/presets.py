"""Settings that depend on the model and the method, as data with their sources; and the filling in of a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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
}

TRAINING: dict[tuple[str, str], Preset] = {
    ("toybox", "lora"): Preset({"steps": 300, "learning_rate": 2e-3, "rank": 16}, "measured on the toybox"),
    ("toybox", "full"): Preset(
        {"steps": 300, "learning_rate": 1e-4, "text_encoder_learning_rate": 2e-5}, "measured on the toybox"
    ),
    ("sd", "lora"): Preset(
        {"steps": 500, "learning_rate": 1e-4, "rank": 4, "text_encoder_learning_rate": 1e-5},
        "diffusers examples/dreambooth/README.md, LoRA; text-encoder rate from kohya docs/sdxl_train_network.md",
    ),
    ("sd", "full"): Preset(
        {"steps": 1000, "learning_rate": 5e-6, "text_encoder_learning_rate": 2e-6},
        "Ruiz et al. 2023 for Stable Diffusion; text-encoder rate from diffusers examples/dreambooth/README.md",
    ),
}

LORA_RATE_FLOOR = {"toybox": 1e-4, "sd": 2e-5}
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
        UserError: A learning rate of full fine-tuning on a LoRA, or fp16 on a CPU.
    """
    chosen = key(source)
    values: dict[str, Any] = {}
    reasons: dict[str, str] = {}

    def derive(name: str, value: Any, reason: str) -> None:
        if getattr(recipe, name) is None:
            values[name] = value
            reasons[name] = reason

    for preset in (TRAINING[chosen, recipe.method], SAMPLING[chosen]):
        for name, value in preset.values.items():
            derive(name, value, preset.source)
    derive("resolution", resolution, "the model's own")
    derive("precision", *_precision(accelerator))
    if recipe.method == "lora":
        derive("alpha", float(recipe.rank or values["rank"]), "the rank: a scale of 1")
    derive("text_encoder_learning_rate", recipe.learning_rate or values["learning_rate"], "the denoiser's")
    steps = recipe.steps or values["steps"]
    derive("save_every", max(1, min(500, -(-steps // 4))), "a quarter of the run, at most 500 steps")
    filled = recipe.model_copy(update=values)
    _refuse(filled, chosen, accelerator)
    return filled, reasons


def _precision(accelerator: str) -> tuple[str, str]:
    if accelerator == "cuda":
        return "bf16", "the device computes in bf16; trained weights stay fp32"
    return "fp32", f"exact, and as fast as the others on {accelerator}"


def _refuse(recipe: Recipe, chosen: str, accelerator: str) -> None:
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
        if recipe.method == "full" and getattr(recipe, name) is not None:
            raise UserError(f"--{name} is a setting of a LoRA: leave it out, or use --method lora")
