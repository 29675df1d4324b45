"""A contact sheet of photos with what the doctor finds: the subject's box drawn, the findings written above."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageOps

from dreambooth.images import grid
from dreambooth.photo_checks import Problem
from dreambooth.photo_doctor import CLEAR, Examination
from dreambooth.photo_scenes import Scene

COLUMNS = 4
SIDE = 320
GAP = 12
GOOD, BAD, UNSURE = "#1a7f37", "#cf222e", "#8c959f"


def sheet(examination: Examination) -> Image.Image:
    """Draw the photos that are used, four in a row.

    The box is green in a photo without findings and red in one with; it is grey where the subject does not stand out
    clearly, and then nothing is concluded from it.
    """
    problems = {finding.file: finding.problems for finding in examination.findings}
    cards = [_card(scene, problems[scene.name]) for scene in examination.scenes]
    rows = [_row(cards[start : start + COLUMNS]) for start in range(0, len(cards), COLUMNS)]
    width = max(row.width for row in rows)
    body = Image.new("RGB", (width, sum(row.height + GAP for row in rows) - GAP), "white")
    top = 0
    for row in rows:
        body.paste(row, (0, top))
        top += row.height + GAP
    told = "   ".join(_sentence(problem) for problem in examination.warnings)
    return grid([body], 1, [told or "nothing to say about the photos as a set"])


def _card(scene: Scene, problems: Sequence[Problem]) -> Image.Image:
    picture = ImageOps.contain(scene.image, (SIDE, SIDE))
    left, top, right, bottom = scene.subject.box
    colour = UNSURE if scene.subject.contrast < CLEAR else BAD if problems else GOOD
    box = (left * picture.width, top * picture.height, right * picture.width - 1, bottom * picture.height - 1)
    ImageDraw.Draw(picture).rectangle(box, outline=colour, width=3)
    told = "   ".join(_sentence(problem) for problem in problems) or "good"
    return grid([ImageOps.pad(picture, (SIDE, SIDE), color="#f6f8fa")], 1, [f"{scene.name}   {told}"])


def _row(cards: Sequence[Image.Image]) -> Image.Image:
    """Put cards beside one another, their photos on one line."""
    height = max(card.height for card in cards)
    row = Image.new("RGB", (len(cards) * (SIDE + GAP) - GAP, height), "white")
    for index, card in enumerate(cards):
        row.paste(card, (index * (SIDE + GAP), height - card.height))
    return row


def _sentence(problem: Problem) -> str:
    risk = f" (else {problem.risk})" if problem.risk else ""
    return f"{problem.kind}: {problem.message}{risk}."
