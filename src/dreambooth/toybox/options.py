"""The options that studies share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from dreambooth.paths import cache_root
from dreambooth.toybox import SUBJECTS
from dreambooth.toybox.study import ARCHIVE


def options(
    room: str,
    about: str | None,
    page: str,
    *,
    subjects: Sequence[str] = (),
    seeds: int | None = None,
    kept: bool = True,
) -> argparse.ArgumentParser:
    """Return the options that studies share.

    Args:
        room: The module that is run.
        about: What it does.
        page: What it writes.
        subjects: Names of the subjects by default; none for all of the bundle.
        seeds: Trainings of each subject by default; None where they are no option.
        kept: Whether it measures cells, which an archive keeps and several processes share.
    """
    everyone = sorted(path.parent.name for path in SUBJECTS.glob("*/photos"))
    parser = argparse.ArgumentParser(prog=f"python -m dreambooth.toybox.{room}", description=about)
    parser.add_argument("--out", type=Path, default=Path(page), help="the page")
    parser.add_argument("--home", type=Path, default=cache_root() / "toybox" / "reproduction", help="keeps the runs")
    parser.add_argument("--model", default="toybox")
    parser.add_argument("--subjects", nargs="+", default=subjects or everyone)
    if seeds is not None:
        parser.add_argument("--seeds", type=int, default=seeds, help=f"trainings of each subject (default {seeds})")
    if kept:
        parser.add_argument("--archive", type=Path, default=ARCHIVE, help="keeps what was measured")
        parser.add_argument("--workers", type=int, default=1, help="trainings at a time, of one thread each")
    return parser
