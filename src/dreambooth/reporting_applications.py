"""The applications on a run's page: every cell with its pictures and figures, the weak ones marked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dreambooth.pages import Json, Picture, load_picture
from dreambooth.reporting_evaluation import SMALL, Finding, read_finding


@dataclass(frozen=True)
class Cell:
    """A prompt of an application: what it asks for, its pictures, and what they came to.

    Attributes:
        label: What is asked for.
        prompt: The whole prompt.
        pictures: The run's.
        kept: How much of the prompt is kept, as a share of the frozen model's; None where that knows nothing of it.
        identity: Likeness to the photos.
        floor: The frozen model's.
        weak: In what it is weak.
    """

    label: str
    prompt: str
    pictures: list[Picture]
    kept: float | None
    identity: float | None
    floor: float | None
    weak: list[str]


@dataclass(frozen=True)
class Story:
    """An application: of which subject, its cells, and what the detectors said of all of it."""

    title: str
    subject: str
    cells: list[Cell]
    findings: list[Finding]

    @property
    def weak(self) -> int:
        """How many cells are weak."""
        return sum(bool(cell.weak) for cell in self.cells)


def application_story(document: Json, folder: Path) -> Story:
    """Return what the page tells about an application.

    Args:
        document: The content of application.json.
        folder: Where it lies; its pictures are named from there.
    """
    return Story(
        str(document.get("title") or document.get("application") or "An application without a name"),
        f"{document.get('class') or 'subject'} “{document.get('identifier') or ''}”",
        [_cell(cell, folder) for cell in document.get("cells") or []],
        [read_finding(finding, folder) for finding in document.get("findings") or []],
    )


def _cell(data: Json, folder: Path) -> Cell:
    label = ", ".join(filter(None, (data.get("row"), data.get("column"))))
    return Cell(
        label,
        str(data.get("prompt") or ""),
        [
            load_picture(folder / str(image.get("file")), f"{label}, seed {image.get('seed')}", "", SMALL)
            for image in data.get("images") or []
        ],
        data.get("kept"),
        data.get("identity"),
        data.get("floor"),
        data.get("weak") or [],
    )
