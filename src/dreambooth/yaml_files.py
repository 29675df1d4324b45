"""YAML as people write it, and what is wrong with it in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from dreambooth.errors import UserError


def read_yaml(path: Path, what: str = "recipe", line: str = "setting: value") -> dict[Any, Any]:
    """Read a YAML mapping.

    Args:
        path: The file.
        what: What it is to hold, as errors call it.
        line: What a line of it looks like.

    Raises:
        UserError: The file is missing or holds no mapping.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no {what} at {path}: give the path of a YAML file") from None
    except OSError as error:
        raise UserError(f"cannot read the {what} {path} ({error.strerror}): give the path of a YAML file") from None
    except (yaml.YAMLError, ValueError) as error:  # no text, or a date that there is not
        raise UserError(f"{path} is no YAML: {reason(error)}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no {what}: expected '{line}' lines")
    return values


def reason(error: Exception) -> str:
    """Say in one line why a text is no YAML; to YAML, what begins with `[V]` is a list."""
    told = " ".join(str(error).split())
    mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
    lines = mark.buffer.split("\n") if mark and mark.buffer else []
    begun = mark is not None and any("[V" in line for line in lines[mark.line : mark.line + 1])
    return f"{told}: what begins with [V] is to be in quotes: '[V] dog'" if begun else told
