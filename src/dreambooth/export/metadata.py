"""What an exported file says of itself, and writing it with that.

Keys by Stability AI's ModelSpec 1.0.1 (https://github.com/Stability-AI/ModelSpec) and, for LoRAs, the least of what
kohya's sd-scripts writes (`library/train_util.py`, `library/sai_model_spec.py`), which programs show and sort by.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor

from dreambooth import __version__, families
from dreambooth.prompts import fill, label
from dreambooth.run import Run

HASH = "modelspec.hash_sha256"
UNKNOWN_HASH = "0x" + "0" * 64

STABILITY = "https://github.com/Stability-AI/generative-models"
PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v"}
"""diffusers' name of what a model predicts -> ModelSpec's."""


def trigger(run: Run) -> str:
    """Return the words that call a run's subject up, "a ohwx dog"; of several subjects "a ohwx dog, a phol mug"."""
    recipe = run.recipe
    names = [str(each.identifier) for each in recipe.subjects]
    labels = [label(recipe.label, each.class_noun, index) for index, each in enumerate(recipe.subjects)]
    return ", ".join(fill(each, names) for each in labels)


def model_spec(run: Run, pipe: DiffusionPipeline, licence: str | None, adapter: str | None) -> dict[str, str]:
    """Return the ModelSpec keys, and the run's and the base model's identity.

    Args:
        run: The run.
        pipe: A pipeline of its base model.
        licence: Licence of the base model, where it is known.
        adapter: "lora" or "textual-inversion"; None for a whole model.
    """
    recipe, info = run.recipe, run.info
    prediction = PREDICTIONS.get(pipe.scheduler.config.get("prediction_type", ""))
    words = trigger(run)
    found = {
        "sai_model_spec": "1.0.1",
        "architecture": "/".join(filter(None, (_architecture(pipe), adapter))),
        "implementation": STABILITY if adapter is None else "diffusers",
        "title": run.path.resolve().name,
        "description": f"DreamBooth of '{words}', {run.shipped_steps} steps on {info['model']['name']}",
        "date": info["created"],
        "resolution": f"{recipe.resolution}x{recipe.resolution}",
        "license": licence,
        "usage_hint": f"Write '{words}' in the prompt",
        "trigger_phrase": words,
        "prediction_type": prediction,
        "merged_from": None if adapter else info["model"]["identity"],
        "hash_sha256": UNKNOWN_HASH,
    }
    spec = {f"modelspec.{name}": value for name, value in found.items() if value is not None}
    own = {"version": __version__, "recipe_hash": info["identity"], "base_model": info["model"]["identity"]}
    return spec | {f"dreambooth.{name}": value for name, value in own.items()}


def kohya(run: Run, pipe: DiffusionPipeline, has_convolutions: bool) -> dict[str, str]:
    """Return kohya's keys for a LoRA: its rank, and alpha equal to it, since the scale is in the weights."""
    rank = str(run.recipe.rank)
    family = families.PIPELINES[type(pipe).__name__]
    is_second, is_v = _is_sd2(pipe), pipe.scheduler.config.get("prediction_type") == "v_prediction"
    versions = {"sd": ("sd_v2" if is_second else "sd_v1") + ("_v" if is_v else ""), "sdxl": "sdxl_base_v1-0"}
    found = {
        "base_model_version": versions[family],
        "v2": str(is_second),
        "network_module": "networks.lora",
        "network_dim": rank,
        "network_alpha": rank,
        "network_args": json.dumps({"conv_dim": rank, "conv_alpha": rank} if has_convolutions else {}),
        "output_name": run.path.resolve().name,
        "sd_model_name": run.info["model"]["name"],
    }
    return {f"ss_{name}": value for name, value in found.items()}


def save(tensors: dict[str, Tensor], path: Path, described: dict[str, str]) -> None:
    """Write a safetensors file that describes itself, the hash of its tensors among the rest.

    The hash is that of all bytes behind the header, so it is put in where a place was kept for it.

    Args:
        tensors: Name -> tensor.
        path: The file.
        described: The metadata, `HASH` among it.
    """
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, path, {"format": "pt", **described})
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"][HASH] = f"0x{hashlib.file_digest(file, 'sha256').hexdigest()}"
        file.seek(8)
        file.write(_header(header).ljust(length))


def _header(entries: dict[str, Any]) -> bytes:
    """Return a header whose metadata are in order: safetensors writes them in another one each time."""
    ordered = {**entries, "__metadata__": dict(sorted(entries["__metadata__"].items()))}
    return json.dumps(ordered, separators=(",", ":"), ensure_ascii=False).encode()


def _architecture(pipe: DiffusionPipeline) -> str:
    family = families.PIPELINES[type(pipe).__name__]
    if family == "sdxl":
        return "stable-diffusion-xl-v1-base"
    if family == "flux":
        return "flux-1-dev" if pipe.transformer.config.guidance_embeds else "flux-1-schnell"
    if family != "sd":
        return family
    if not _is_sd2(pipe):
        return "stable-diffusion-v1"
    is_v = pipe.scheduler.config.prediction_type == "v_prediction"
    return "stable-diffusion-v2-768-v" if is_v else "stable-diffusion-v2-512"


def _is_sd2(pipe: DiffusionPipeline) -> bool:
    return hasattr(pipe, "unet") and pipe.unet.config.cross_attention_dim == 1024
