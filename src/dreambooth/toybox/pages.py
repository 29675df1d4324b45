"""Pages of which a command writes one part: what lies between two marks."""

from __future__ import annotations

from pathlib import Path

from dreambooth.errors import UserError
from dreambooth.files import write_text


def require(page: Path, begin: str, end: str) -> None:
    """Refuse a page without a place for the part.

    Raises:
        UserError: The page is not there, or has no such marks, or the first one more than once.
    """
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    if text.count(begin) != 1 or end not in text.partition(begin)[2]:
        raise UserError(f"{page} has no place for the table: write '{begin}' and '{end}' into it")


def fill(page: Path, begin: str, end: str, part: str) -> None:
    """Put the part between the marks, in place of what is there."""
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    write_text(page, "\n".join([before + begin, "", part.strip("\n"), "", end + rest.partition(end)[2]]))
