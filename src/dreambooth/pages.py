"""What every page shares: its templates, how numbers and times are written on it, and pictures inside it."""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jinja2
from PIL import Image

from dreambooth.files import write_text
from dreambooth.images import data_uri

Json = dict[str, Any]


def write_page(template: str, story: Json, path: Path) -> None:
    """Fill a template of the package with a story. Whatever the story says is text on the page, never markup.

    Raises:
        RunError: The disk is full.
    """
    loader = jinja2.PackageLoader("dreambooth")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(
        show=show, duration=duration, date=date, command=shlex.join, number=number, percent=percent
    )
    write_text(path, environment.get_template(template).render(story))


@dataclass(frozen=True)
class Score:
    """A measured number with its 95 % interval and the count behind it; None for what is not known."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None

    @classmethod
    def read(cls, data: Any) -> Score:
        """Read `{value, low, high, n}`, a plain number, or nothing at all; what is no finite number is not known."""
        fields = data if isinstance(data, dict) else {"value": data}
        value, low, high = (_finite(fields.get(name)) for name in ("value", "low", "high"))
        n = fields.get("n")
        return cls(value, low, high, n if isinstance(n, int) else None)

    @property
    def interval(self) -> str:
        """The interval in words; empty where there is no value that could have one."""
        if self.value is None:
            return ""
        return (
            "interval unknown"
            if self.low is None or self.high is None
            else f"{number(self.low)} to {number(self.high)}"
        )

    def __str__(self) -> str:
        return f"{number(self.value)} ({self.interval})" if self.interval else "not measured"


def _finite(value: Any) -> float | None:
    usable = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if usable else None


@dataclass(frozen=True)
class Picture:
    """An image of the page: a data URI and its size in pixels, or the reason why there is none."""

    alt: str
    caption: str
    src: str = ""
    size: tuple[int, int] = (0, 0)
    missing: str = ""


def load_picture(path: Path, alt: str, caption: str, side: int | None = None) -> Picture:
    """Read an image for a page; one that is missing or broken leaves its name.

    Args:
        path: The image.
        alt: Words for those who cannot see it.
        caption: What stands under it.
        side: A larger image is scaled down to this many pixels a side.
    """
    try:
        src, size = data_uri(path) if side is None else _scaled(path, side)
    except FileNotFoundError:
        return Picture(alt, caption, missing=f"{path.name} is missing")
    except (OSError, SyntaxError, ValueError):  # Pillow's word for a broken PNG, Python's for a path with a NUL in it
        return Picture(alt, caption, missing=f"{path.name} cannot be read")
    return Picture(alt, caption, src, size)


def _scaled(path: Path, side: int) -> tuple[str, tuple[int, int]]:
    with Image.open(path) as image, TemporaryDirectory() as folder:
        if max(image.size) <= side:
            return data_uri(path)
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        small = Path(folder) / "small.webp"
        image.convert("RGB").save(small, quality=85)
        return data_uri(small)


def show(value: Any) -> str:
    """Write any setting in words."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return ", ".join(map(show, value)) or "none"
    return str(value)


def number(value: Any, decimals: int = 3) -> str:
    """Write a score with its decimals; what is no finite number is "none"."""
    known = _finite(value)
    if known is None:
        return "none"
    return f"{known:z.{decimals}f}".replace("-", "\N{MINUS SIGN}")


def percent(share: Any) -> str:
    """Write a share of one in whole percent."""
    known = _finite(share)
    return "none" if known is None else f"{100 * known:.0f} %"


def duration(seconds: float) -> str:
    """Write a time the way people say it: 9.9 s, 2 min 32 s, 2 h 3 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def date(created: str) -> str:
    """Write an ISO 8601 time as a date; anything else stays as it is."""
    try:
        moment = datetime.fromisoformat(created)
    except ValueError:
        return created
    return f"{moment.day} {moment:%B %Y, %H:%M}"
