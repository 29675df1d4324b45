"""Where the package keeps what it may throw away."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path:
    """Return the folder of everything that can be made again: `DREAMBOOTH_CACHE`, else `~/.cache/dreambooth`."""
    return Path(os.environ.get("DREAMBOOTH_CACHE") or "~/.cache/dreambooth").expanduser()
