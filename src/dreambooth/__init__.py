"""DreamBooth: teach a text-to-image diffusion model your subject from 3-5 photos, render it anywhere, measure how well.

Public names are imported when they are first used, so that `import dreambooth` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dreambooth.errors import RunError, UserError
    from dreambooth.evaluation.runs import evaluate
    from dreambooth.generation import generate
    from dreambooth.recipe import Recipe, Subject
    from dreambooth.reporting import report
    from dreambooth.run import Run
    from dreambooth.training import train

__version__ = "0.1.0"

_HOMES = {
    "Recipe": "recipe",
    "Run": "run",
    "RunError": "errors",
    "Subject": "recipe",
    "UserError": "errors",
    "evaluate": "evaluation.runs",
    "generate": "generation",
    "report": "reporting",
    "train": "training",
}

__all__ = ["Recipe", "Run", "RunError", "Subject", "UserError", "evaluate", "generate", "report", "train"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dreambooth' has no attribute '{name}'")
    return getattr(importlib.import_module(f"dreambooth.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
