"""The class-image sets in the user's cache: what there is, and clearing it away. Imports no torch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from dreambooth.paths import cache_root


def folder() -> Path:
    """Return the folder of all sets."""
    return cache_root() / "prior"


def sets() -> list[dict[str, Any]]:
    """Describe each set: its manifest, its `folder`, the number of `images` in it and its size in `megabytes`."""
    found = []
    for manifest in sorted(folder().glob("*/manifest.json")):
        files = list(manifest.parent.glob("*.png"))
        described = json.loads(manifest.read_text(encoding="utf-8"))
        size = round(sum(file.stat().st_size for file in files) / 1e6, 3)
        found.append({**described, "folder": str(manifest.parent), "images": len(files), "megabytes": size})
    return found


def clear() -> float:
    """Remove all sets and return the megabytes freed."""
    freed = sum(float(entry["megabytes"]) for entry in sets())
    shutil.rmtree(folder(), ignore_errors=True)
    return freed
