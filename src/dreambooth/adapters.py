"""Adapters: the layers of a network that have one, the network without them, and their strength once shipped."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from dreambooth.files import atomic, write_json


def tuned_layers(module: nn.Module) -> list[BaseTunerLayer]:
    """Return the layers of a module that have an adapter."""
    return [layer for layer in module.modules() if isinstance(layer, BaseTunerLayer)]


@contextmanager
def switched_off(adapters: Sequence[BaseTunerLayer]) -> Iterator[None]:
    """Leave adapters out. peft's own switch also freezes them, which would lose the step's gradients."""
    for layer in adapters:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in adapters:
            layer._disable_adapters = False


def strengthen(folder: Path, factor: float) -> None:
    """Make a shipped adapter so many times as strong, so that every reader has it so at strength 1.

    Args:
        folder: A LoRA file, whose B is multiplied, or peft's folder of each component, whose alpha is.
        factor: The strength.
    """
    for file in folder.rglob("*.safetensors"):
        weights = load_file(file)
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata()
        if any(".lora_B." in name for name in weights):
            scaled = {name: w * factor if ".lora_B." in name else w for name, w in weights.items()}
            with atomic(file) as temporary:
                save_file(scaled, temporary, metadata)
    for file in folder.rglob("adapter_config.json"):
        config = json.loads(file.read_text(encoding="utf-8"))
        write_json(file, {**config, "alpha": config["alpha"] * factor})
