"""Every setting of a run, declared once. YAML, the command line's flags and a run's identity are derived from it."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from dreambooth import other_trainers
from dreambooth.errors import UserError
from dreambooth.geometry import Aspect
from dreambooth.prompts import LABEL, require_label
from dreambooth.yaml_files import read_yaml

Refusal = Literal["identifier", "learning-rate", "alpha", "resolution", "scenes", "guidance", "memory"]
"""Names of the refusals that `--allow` overrides."""


LATER: dict[str, Any] = {
    "label": LABEL,
    "adapter": "lora",
    "min_rank": None,
    "prior_loss": "images",
    "dco_beta": None,
    "l2_to_base": None,
    "optimizer": "adamw",
    "ema": None,
    "select": False,
    "base": None,
    "low_resolution_noise": None,
    "aspect": "square",
    "more_resolutions": (),
    "step_in_backward": False,
    "ema_profiles": False,
    "prior_precision": None,
    "prior_dropout": 0.0,
    "prior_scenes": None,
    "prior_others": 0.0,
    "scales": 0,
}
"""Settings that came after the first runs were made, and what they were until then."""

ADAPTERS = {
    "lora": "LoRA",
    "rslora": "rsLoRA",
    "dora": "DoRA",
    "lokr": "LoKr",
    "loha": "LoHa",
    "oft": "OFT",
    "hra": "HRA",
}
"""Kind of adapter -> its name."""

SHAPES = {
    "tuple_type": "give a list",
    "too_short": "give at least one",
    "model_type": "give 'photos: FOLDER' and 'class_noun: NOUN'",
}
"""What to say of a value in YAML that is no list, an empty one, or no mapping."""

UNKNOWN = ("extra_forbidden", "invalid_key")
"""What pydantic calls a name that there is not, and one that is no word."""


def _aside(description: str, **limits: Any) -> Any:
    """A setting that does not change the trained weights, and so is no part of a run's identity."""
    return Field(description=description, json_schema_extra={"identity": False}, **limits)


class Subject(BaseModel):
    """What is learned: photos of one subject and the noun of its class."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    photos: Path = Field(description="Folder of photos; captions (NN.txt) and masks (NN.mask.png) may lie beside them.")
    class_noun: str = Field(description="Coarse noun of the subject's class: dog, mug, robot.")
    identifier: str | None = Field(None, description="Rare token that will name the subject. Default: one that fits.")

    @field_validator("class_noun")
    @classmethod
    def _one_line(cls, noun: str) -> str:
        if not noun.strip():
            raise ValueError("the class noun is empty: give a noun such as dog, mug or robot")
        if len(noun.splitlines()) > 1:
            raise ValueError("the class noun has two lines: give one noun such as dog, mug or robot")
        return noun.strip()


class Settings(BaseModel):
    """The settings of a run. None means: derived from the model, the method and the device, with the reason told."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Annotated[
        str | None, _aside("Base model: a name from `dreambooth models`, hub id, folder or .safetensors.")
    ] = None
    revision: Annotated[str | None, _aside("Commit, tag or branch of a hub model.")] = None
    method: Literal["lora", "full", "textual-inversion", "pivotal"] = Field(
        "lora", description="Train a LoRA, the whole denoiser, a new token's embedding, or that first and then a LoRA."
    )
    label: str = Field(LABEL, description="Caption of the photos: [V] is the identifier, {class} the class noun.")
    steps: int | None = Field(None, ge=1, description="Optimiser steps.")
    learning_rate: float | None = Field(None, gt=0, description="Peak learning rate of the denoiser or the new token.")
    schedule: Literal["constant", "cosine"] = Field("constant", description="Learning rate after the warm-up.")
    warmup: int = Field(0, ge=0, description="Steps of linear warm-up.")
    batch_size: int = Field(1, ge=1, description="Photos an optimiser step; as many images for the prior join them.")
    accumulation: Annotated[
        int | None, _aside("Forward passes a step is split over: less memory, same result. Default: what fits.", ge=1)
    ] = None
    adapter: Literal["lora", "rslora", "dora", "lokr", "loha", "oft", "hra"] = Field(
        "lora", description="Kind of adapter of --method lora; from lokr on, peft's own reader is needed for it."
    )
    rank: int | None = Field(None, ge=1, description="Rank of the LoRA; of OFT the side of its blocks.")
    alpha: float | None = Field(None, gt=0, description="The LoRA is scaled by alpha / rank. Default: the rank.")
    min_rank: int | None = Field(
        None, ge=1, description="T-LoRA: rank at the most noise, --rank at none. Default: off."
    )
    start: Path | None = Field(None, description="LoRA to go on from: a .safetensors file or the folder of a run.")
    targets: Literal["attention", "wide", "b-lora"] | None = Field(
        None, description="Layers with a LoRA: attention; other layers too; attention in two blocks of SDXL."
    )
    train_text_encoder: bool = Field(False, description="Train the text encoder too, by the same method.")
    text_encoder_learning_rate: float | None = Field(None, gt=0, description="Peak learning rate of the text encoder.")
    prior_weight: float | None = Field(
        None, ge=0, description="Lambda of the prior-preservation loss; 0: no prior. Textual inversion: 0."
    )
    prior_loss: Literal["images", "distilled", "parent"] | None = Field(
        None,
        description="Keep the class by class images; by the frozen model on them (default of a LoRA); or by it on the "
        "photos as class.",
    )
    prior_dropout: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Share of the prior under an empty prompt. Default: 0.1 with a frozen model's where guidance leads "
        "away from one, else 0.",
    )
    prior_others: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of a frozen model's prior that takes the photos for other things: these stay.",
    )
    prior_count: int | None = Field(None, ge=1, description="Class images.")
    prior_images: Path | None = Field(None, description="Folder of real class images to use instead of generated ones.")
    prior_scenes: tuple[str, ...] | None = Field(
        None, min_length=1, description="What class images show besides, such as 'on a street': each in turn."
    )
    prior_steps: int | None = Field(None, ge=1, description="Sampling steps of a class image.")
    prior_guidance: float | None = Field(None, ge=0, description="Guidance scale of a class image.")
    prior_precision: Literal["bf16"] | None = Field(
        None, description="Draw an fp32 run's class images in bf16. Default: on a CPU that has it, without --precision."
    )
    dco_beta: float | None = Field(
        None, gt=0, description="Beta of DCO, such as 1000: beat the frozen model, no more; off by default."
    )
    l2_to_base: float | None = Field(
        None, gt=0, description="Weight of the squared distance to the base model's weights; off by default."
    )
    min_snr: float | None = Field(None, gt=0, description="Gamma of min-SNR loss weighting; off by default.")
    resolution: int | None = Field(None, ge=16, description="Side of the square training images in pixels.")
    aspect: Aspect = Field(
        "square", description="Photos are cut square, or keep their shape as far as the model can take it."
    )
    more_resolutions: tuple[Annotated[int, Field(ge=16)], ...] = Field(
        (), description="Further resolutions at which photos are learnt that have the pixels for them."
    )
    low_resolution_noise: int | None = Field(
        None, ge=0, description="Super-resolution: level of the small image's noise, a step of its schedule."
    )
    crops: int = Field(0, ge=0, description="Random crops of each photo beside the centre crop.")
    scales: int = Field(
        0, ge=0, description="Views of each photo smaller in an empty frame, or closer, as its caption then says."
    )
    flip: bool = Field(False, description="Also learn each photo mirrored.")
    background_weight: float = Field(0.1, ge=0, le=1, description="Weight of the background in photos with a mask.")
    optimizer: Literal["adamw", "adamw-8bit", "adafactor", "muon", "prodigy", "schedule-free"] = Field(
        "adamw", description="Optimiser; prodigy finds the rate itself."
    )
    weight_decay: float = Field(0.01, ge=0, description="Weight decay.")
    beta1: float = Field(0.9, ge=0, lt=1, description="Decay of the first moment.")
    beta2: float = Field(0.999, ge=0, lt=1, description="Decay of the second moment.")
    ema: float | None = Field(None, gt=0, lt=1, description="Ship an average of the weights with this decay a step.")
    ema_profiles: bool = Field(
        False, description="Keep what an average of any width can be made of afterwards, by `dreambooth average`."
    )
    select: bool = Field(
        False, description="Choose step, strength and guidance by pictures; stop when nothing better can be expected."
    )
    max_grad_norm: float = Field(1.0, gt=0, description="Gradients are clipped to this norm.")
    step_in_backward: bool = Field(
        False,
        description="Full: step each weight in the backward pass; no gradient is kept, each is clipped alone.",
    )
    precision: Literal["fp32", "bf16", "fp16"] | None = Field(
        None, description="Arithmetic of the forward pass; trained weights stay fp32."
    )
    base: Literal["nf4", "int8"] | None = Field(
        None, description="Bits of the frozen denoiser under a LoRA; all of them by default."
    )
    seed: int = Field(0, ge=0, description="Seed of every random draw.")
    gradient_checkpointing: Annotated[
        bool | None, _aside("Recompute activations in the backward pass: less memory. Default: where it must be.")
    ] = None
    offload_blocks: Annotated[
        bool | None,
        _aside("Keep a LoRA's frozen blocks in host memory until they are used. Default: where it must be."),
    ] = None
    compile: Annotated[
        bool,
        _aside(
            "Compile the denoiser's blocks, a minute at the start. It may pay on a GPU (not measured), not on a CPU."
        ),
    ] = False
    cuda_graphs: Annotated[
        bool, _aside("Launch the denoiser's passes as CUDA graphs: short steps are several times as fast on a GPU.")
    ] = False
    memory: Annotated[float | None, _aside("GiB that a step may take. Default: what the GPU has free.", gt=0)] = None
    cache: Annotated[bool, _aside("Encode photos and prompts once instead of at every step.")] = True
    save_every: Annotated[
        int | None, _aside("Steps between checkpoints. Default: a quarter of all, at most 500.", ge=1)
    ] = None
    keep: Annotated[int, _aside("Checkpoints kept.", ge=1)] = 2
    log_every: Annotated[int, _aside("Steps between two readings of the losses.", ge=1)] = 10
    scenes: Annotated[tuple[str, ...] | None, _aside("Prompts of the run's own pictures. Default: five scenes.")] = None
    samples: Annotated[int, _aside("Pictures of '[V] class' and of 'class', before and after; 0: none.", ge=0)] = 4
    sampler: Annotated[str | None, _aside("Sampler of the run's pictures.")] = None
    inference_steps: Annotated[int | None, _aside("Sampling steps of the run's pictures.", ge=1)] = None
    guidance: Annotated[float | None, _aside("Guidance scale of the run's pictures.", ge=0)] = None
    consistency: Annotated[
        float | None,
        _aside("DCO's guidance by the frozen model: share of what a LoRA changed, such as 0.4; off by default.", ge=0),
    ] = None
    allow: Annotated[tuple[Refusal, ...], _aside("Refusals to override, by the name that the refusal gives.")] = ()

    @classmethod
    def of(cls, values: Mapping[Any, Any], path: Path | None = None) -> Self:
        """Build one from plain values.

        Args:
            values: The settings by their names.
            path: The file that they come from, for what is wrong with them to be told with its name.

        Raises:
            UserError: An unknown key (with the nearest name) or a value out of range.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            where = f"{path}: " if path else ""
            raise UserError(where + first_problem(error)) from None

    @property
    def learns_token(self) -> bool:
        """Whether identifiers are new tokens, which the model does not have yet."""
        return self.method in ("textual-inversion", "pivotal")

    @property
    def draws_class_images(self) -> bool:
        """Whether class images are needed, and none are given."""
        return bool(self.prior_weight) and self.prior_loss != "parent" and self.prior_images is None

    @property
    def has_adapter(self) -> bool:
        """Whether it trains an adapter, of whatever kind."""
        return self.method in ("lora", "pivotal")

    @property
    def adapts_denoiser_alone(self) -> bool:
        """Whether the model as it was is the trained one without the denoiser's adapter."""
        return self.method == "lora" and not self.train_text_encoder

    @property
    def is_lora(self) -> bool:
        """Whether it trains a LoRA, which every reader of LoRA files takes, alone or with others."""
        return self.has_adapter and self.adapter in ("lora", "rslora", "dora")

    @property
    def adapter_name(self) -> str:
        """Name of the kind of adapter, as its authors write it."""
        return "T-LoRA" if self.min_rank else ADAPTERS[self.adapter]

    @property
    def kind(self) -> str:
        """Name of the method, or of the adapter where that is all of it."""
        return self.adapter_name if self.method == "lora" else self.method

    @property
    def is_plain_lora(self) -> bool:
        """Whether a LoRA is all that it trains, the same at all times of sampling, so that it can be added for good."""
        return self.method == "lora" and self.is_lora and not self.min_rank

    @property
    def has_strength(self) -> bool:
        """Whether what it trains is added to the model, and so can be added more or less strongly."""
        return self.has_adapter and self.adapter not in ("oft", "hra")

    @property
    def lora_scale(self) -> float | None:
        """What the B A of a LoRA is multiplied by; None where no LoRA is trained."""
        if not self.is_lora or self.alpha is None or self.rank is None:
            return None
        return self.alpha / (math.sqrt(self.rank) if self.adapter == "rslora" else self.rank)

    @field_validator("label")
    @classmethod
    def _names_the_subject(cls, label: str) -> str:
        return require_label(label)

    @field_validator("*", mode="before")
    @classmethod
    def _is_no_switch(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse `steps: yes` of a YAML file, which would count as 1."""
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation not in (bool, bool | None):
            raise ValueError(f"--{str(info.field_name).replace('_', '-')} is no switch: give a value, not yes or no")
        return value


class Recipe(Settings):
    """Settings and the subjects they are for."""

    subjects: tuple[Subject, ...] = Field(min_length=1, description="What is learned.")

    @classmethod
    def read(cls, path: Path) -> Recipe:
        """Read a recipe from YAML.

        Raises:
            UserError: The file is missing, no YAML, or not a recipe.
        """
        return cls.of(read_yaml(path), path)

    def to_yaml(self) -> str:
        """Return the recipe as YAML that `read` takes."""
        return yaml.safe_dump(self.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True)


def first_problem(error: ValidationError) -> str:
    """Say the first problem of a failed validation in one line: of all, an unknown name, with the nearest known one."""
    problems = error.errors()
    problem = next((each for each in problems if each["type"] in UNKNOWN), problems[0])
    *parents, last = problem["loc"]
    if problem["type"] in UNKNOWN:
        known = (Subject if parents else Recipe).model_fields
        theirs = other_trainers.setting(str(last))
        near = [theirs] if theirs in known else difflib.get_close_matches(str(last), known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else "`dreambooth train --help` lists them"
        return f"unknown setting '{last}': {hint}"
    if problem["type"] == "missing":
        what = "class" if last == "class_noun" else "photos"
        return f"no {what} given: dreambooth train PHOTOS --class dog"
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])
    setting = str(problem["loc"][0])
    name = ".".join(map(str, problem["loc"])) if setting == "subjects" else "--" + setting.replace("_", "-")
    mend = SHAPES.get(problem["type"]) or problem["msg"][:1].lower() + problem["msg"][1:]
    return f"{name} {problem['input']}: {mend}"


def counted(recipe: Recipe) -> dict[str, Any]:
    """Return the settings that a run's identity counts: no paths, no logging, no steps where more only go on.

    Settings of `LATER` count where they are not what they were: runs from before they were there keep their identity.
    """
    aside = {name for name, field in Recipe.model_fields.items() if _is_aside(field.json_schema_extra)}
    is_phased = recipe.schedule != "constant" or recipe.method == "pivotal"
    aside |= {"subjects", "prior_images", "start"} | (set() if is_phased else {"steps"})
    aside |= {name for name, was in LATER.items() if getattr(recipe, name) == was}
    subjects = [subject.model_dump(mode="json", exclude={"photos"}) for subject in recipe.subjects]
    return {"subjects": subjects, **recipe.model_dump(mode="json", exclude=aside)}


def identity(recipe: Recipe, model_identity: str, pictures: Sequence[Sequence[Sequence[str]]]) -> str:
    """Return the identity of a run: a hash of what changes its result, and of nothing else.

    Args:
        recipe: The resolved recipe.
        model_identity: Identity of the base model's weights.
        pictures: What each photo of each subject is, and each real class image.
    """
    text = json.dumps([counted(recipe), model_identity, pictures], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _is_aside(extra: Any) -> bool:
    return isinstance(extra, dict) and extra.get("identity") is False
