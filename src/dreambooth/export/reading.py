"""Other trainers' LoRAs: files with diffusers', kohya's or ComfyUI's names, read so that every weight has its place.

What stock readers do with a name that they do not know is to leave its weights out, with a warning at most: the LoRA
is there and does little or nothing. Here such a file is refused.
"""

from __future__ import annotations

import inspect
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file
from torch import Tensor, nn

from dreambooth.errors import UserError
from dreambooth.export import names
from dreambooth.models import safetensors_header

DOWN = (
    ".lora_down.weight",
    ".lora_A.weight",
    "_lora.down.weight",
    ".lora.down.weight",
    ".lora_linear_layer.down.weight",
)
UP = (".lora_up.weight", ".lora_B.weight", "_lora.up.weight", ".lora.up.weight", ".lora_linear_layer.up.weight")
PARTS = {**dict.fromkeys(DOWN, "down"), **dict.fromkeys(UP, "up"), ".alpha": "alpha"}
"""How the names of a layer's tensors end."""

OTHERS = {"dora_scale": "DoRA", "lora_magnitude_vector": "DoRA", "lokr_": "LoKr", "hada_": "LoHa", "oft_": "OFT"}
"""What betrays a file of another kind of adapter."""


def add(pipe: DiffusionPipeline, file: Path, name: str) -> None:
    """Load a LoRA file into a pipeline by stock code, and see that all of it is in force.

    Args:
        pipe: The pipeline.
        file: A `.safetensors` file with diffusers', kohya's or ComfyUI's names.
        name: What the adapter is called in the pipeline.

    Raises:
        UserError: The file does not fit the pipeline.
    """
    tensors = read(file, pipe)
    pipe.load_lora_weights(dict(tensors), adapter_name=name)
    inert = sorted(set(tensors) - set(_in_force(pipe, name)))
    if inert:
        raise UserError(
            f"{file}: diffusers leaves {len(inert)} of {len(tensors)} tensors out, {', '.join(inert[:3])}: "
            "install the versions that the package was tested with"
        )


def read(file: Path, pipe: DiffusionPipeline) -> dict[str, Tensor]:
    """Read a LoRA file into the names that stock `load_lora_weights` takes, its scale folded in.

    Args:
        file: A `.safetensors` file with diffusers', kohya's or ComfyUI's names.
        pipe: The pipeline that it is for.

    Returns:
        `PATH.lora_A.weight`, [rank, in] or [rank, in, height, width], and `PATH.lora_B.weight`, [out, rank] or
        [out, rank, 1, 1], for each layer; the layer's weight changes by B A.

    Raises:
        UserError: The file is damaged or holds tensors that have no place in the pipeline.
    """
    safetensors_header(file)
    tensors = load_file(file)
    if not hasattr(pipe, "unet"):
        tensors = _by_stock(file, pipe, tensors)
    layers = names.layers(pipe)
    paths = {name: path for path in layers for name in names.known(path, pipe)}
    found: dict[str, dict[str, tuple[str, Tensor]]] = {}
    strange = []
    for key, tensor in tensors.items():
        stem, part = _split(key)
        parts = found.setdefault(paths.get(stem, ""), {})
        if stem not in paths or part in parts:
            strange.append(key)
        else:
            parts[part] = (key, tensor)
    found.pop("", None)
    fitted: dict[str, Tensor] = {}
    for path, parts in found.items():
        pair = _pair(layers[path], {part: tensor for part, (_, tensor) in parts.items()})
        strange += [] if pair else [key for key, _ in parts.values()]
        fitted.update(zip((f"{path}.lora_A.weight", f"{path}.lora_B.weight"), pair or (), strict=False))
    _require_all(file, type(pipe).__name__, list(tensors), strange)
    return fitted


def _by_stock(file: Path, pipe: DiffusionPipeline, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Let diffusers translate the names of a transformer's LoRA: other programs split and join its layers.

    What it would drop on the way without a word is looked for before, and alphas that it sets apart are put back.
    """
    pipeline, translate = type(pipe).__name__, type(pipe).lora_state_dict
    dropped = [key for key in tensors if any(sign in key for sign in OTHERS)]
    if dropped:
        _require_all(file, pipeline, list(tensors), dropped)
    apart = {"return_alphas": True} if "return_alphas" in inspect.signature(translate).parameters else {}
    try:
        translated = translate(dict(tensors), **apart)
    except Exception:  # its converters raise nearly anything at names of another model
        _require_all(file, pipeline, list(tensors), list(tensors))
        raise
    state, alphas = (*translated, None)[:2] if isinstance(translated, tuple) else (translated, None)
    return {**state, **{key: torch.as_tensor(alpha) for key, alpha in (alphas or {}).items()}}


def _split(key: str) -> tuple[str, str]:
    """Return the layer's name in a tensor's, and which of its tensors it is; two empty strings for neither."""
    for ending, part in PARTS.items():
        if key.endswith(ending):
            return key.removesuffix(ending), part
    return "", ""


def _pair(layer: nn.Module, parts: dict[str, Tensor]) -> tuple[Tensor, Tensor] | None:
    """Return A and B in the layer's shapes, alpha / rank folded into B; None if they do not fit."""
    if not {"down", "up"} <= set(parts):
        return None
    weight = layer.weight
    assert isinstance(weight, Tensor), "only linear layers and convolutions are listed"
    shape = weight.shape
    rank = parts["down"].shape[0]
    down_shape, up_shape = (rank, *shape[1:]), (shape[0], rank, *[1] * (len(shape) - 2))
    sizes = (torch.Size(down_shape).numel(), torch.Size(up_shape).numel())
    if (parts["down"].numel(), parts["up"].numel()) != sizes:
        return None
    scale = parts["alpha"].item() / rank if "alpha" in parts else 1.0
    return parts["down"].reshape(down_shape), parts["up"].reshape(up_shape) * scale


def _require_all(file: Path, pipeline: str, keys: list[str], strange: list[str]) -> None:
    if keys and not strange:
        return
    kind = next((kind for sign, kind in OTHERS.items() if any(sign in key for key in strange)), None)
    why = f"it is a {kind} file, and only LoRA files are read" if kind else "give the base model that it was made for"
    shown = f", not {', '.join(strange[:3])}" if strange else ""
    raise UserError(f"{len(keys) - len(strange)} of {len(keys)} tensors of {file} fit a {pipeline}{shown}: {why}")


def _in_force(pipe: DiffusionPipeline, adapter: str) -> list[str]:
    """Return the tensors, by the names that `read` gives them, of an adapter that a pipeline adds at full scale."""
    found = []
    for path in names.layers(pipe):
        component, name = path.split(".", 1)
        module = getattr(pipe, component)
        layer = module.get_submodule(name if hasattr(module, "text_model") else name.removeprefix("text_model."))
        if getattr(layer, "scaling", {}).get(adapter) == 1:
            found += [f"{path}.lora_A.weight", f"{path}.lora_B.weight"]
    return found
