"""A frozen denoiser in fewer bits, for a LoRA on top of it to be trained in less memory (QLoRA).

Dettmers et al. 2023, https://arxiv.org/abs/2305.14314: 4-bit normal floats; 2022, https://arxiv.org/abs/2208.07339:
8-bit integers. By bitsandbytes, layer by layer, so that the device never holds the whole in full precision.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import torch
from torch import nn

from dreambooth.errors import UserError

LEAST = 4096
"""Smaller layers stay as they are: they cost nothing."""


def require() -> None:
    """Refuse where bitsandbytes is not installed.

    Raises:
        UserError: It is not.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError("--base needs bitsandbytes: pip install 'dreambooth[8bit]', or leave it out")


def quantise(module: nn.Module, kind: str, dtype: torch.dtype, device: torch.device) -> None:
    """Replace the linear layers of a frozen network, in place, and move it to the device.

    Args:
        module: The network, on the CPU.
        kind: "nf4" or "int8".
        dtype: What the layers compute in.
        device: Where they go.
    """
    made = {name: _layer(layer, kind, dtype).to(device) for name, layer in layers(module).items()}
    for name, layer in made.items():
        module.set_submodule(name, layer)
    module.to(device)
    # what peft asks in order to choose the layer that it wraps
    setattr(module, {"nf4": "is_loaded_in_4bit", "int8": "is_loaded_in_8bit"}[kind], True)


def layers(module: nn.Module) -> dict[str, nn.Linear]:
    """Return the layers that are quantised, by name."""
    linear = {name: layer for name, layer in module.named_modules() if isinstance(layer, nn.Linear)}
    return {name: layer for name, layer in linear.items() if layer.weight.numel() >= LEAST}


def nbytes(layer: nn.Linear, kind: str) -> int:
    """Return the bytes of a layer's weight once it is quantised, with its scales.

    One scale for 64 weights, itself of eight bits (QLoRA section 3, double quantisation); or one for a row.
    """
    count, rows = layer.weight.numel(), layer.weight.shape[0]
    return count // 2 + count // 64 if kind == "nf4" else count + 4 * rows


def _layer(layer: nn.Linear, kind: str, dtype: torch.dtype) -> nn.Module:
    bitsandbytes: Any = importlib.import_module("bitsandbytes")
    weight = layer.weight.data
    shape: dict[str, Any] = {"bias": layer.bias is not None}
    made: Any
    if kind == "nf4":
        made = bitsandbytes.nn.Linear4bit(*layer.weight.shape[::-1], quant_type="nf4", compute_dtype=dtype, **shape)
        made.weight = bitsandbytes.nn.Params4bit(weight, requires_grad=False, quant_type="nf4", module=made)
    else:
        made = bitsandbytes.nn.Linear8bitLt(*layer.weight.shape[::-1], has_fp16_weights=False, threshold=6.0, **shape)
        made.weight = bitsandbytes.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    made.bias = layer.bias
    quantised: nn.Module = made.requires_grad_(False)
    return quantised
