"""Where the package keeps what it may throw away, and how paths are told apart."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path


def cache_root() -> Path:
    """Return the folder of everything that can be made again: `DREAMBOOTH_CACHE`, else `~/.cache/dreambooth`."""
    return Path(os.environ.get("DREAMBOOTH_CACHE") or "~/.cache/dreambooth").expanduser()


def endings(paths: Sequence[Path]) -> list[str]:
    """Return the shortest end of each path by which all of them differ: "dog", or "a/dog" and "b/dog"."""
    parts = [path.resolve().parts for path in paths]
    for length in range(1, max(map(len, parts), default=1) + 1):
        found = ["/".join(each[-length:]) for each in parts]
        if len(set(found)) == len(set(parts)):
            break
    return found
