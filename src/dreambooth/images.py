"""Contact sheets, PNG files that carry how they were made, and images inside a page."""

from __future__ import annotations

import base64
import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

CELL = 128
"""The shorter side, in pixels, that small images are enlarged to, or just beyond."""
FONT_SIZE = 14
LINE_HEIGHT = 18
MARGIN = 6
"""Space in pixels left and right of a label."""
INLINE_BYTES = 150_000
PREVIEW_SIDE = 768
PREVIEWS = 24
"""Photos of which a run keeps a small copy."""

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def grid(images: Sequence[Image.Image], columns: int, labels: Sequence[str] | None = None, gap: int = 4) -> Image.Image:
    """Lay images out row by row on a white sheet.

    Images with a side under 128 px are enlarged by the smallest whole factor that lifts them to it, without smoothing,
    so that every pixel the model drew stays visible. Others keep their size.

    Args:
        images: At least one, all of one size.
        columns: Images in a row, at least one; the last row may be short.
        labels: One for each row, set above it and wrapped to the width of the sheet.
        gap: White space between images, in pixels.

    Raises:
        ValueError: There is nothing to lay out, the sizes differ, or the labels do not match the rows.
    """
    _check(images, columns, labels)
    cells = [_enlarged(image.convert("RGB")) for image in images]
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    width, height = cells[0].size
    sheet_width = columns * (width + gap) - gap
    font = ImageFont.load_default(FONT_SIZE)
    captions = [_wrap(label, font, sheet_width - 2 * MARGIN) for label in labels or [""] * len(rows)]
    heads = [gap + len(lines) * LINE_HEIGHT if lines else 0 for lines in captions]
    sheet = Image.new("RGB", (sheet_width, sum(heads) + len(rows) * (height + gap) - gap), "white")
    top = 0
    for row, lines, head in zip(rows, captions, heads, strict=True):
        _write(sheet, lines, font, top)
        for column, cell in enumerate(row):
            sheet.paste(cell, (column * (width + gap), top + head))
        top += head + height + gap
    return sheet


def save_png(image: Image.Image, path: Path, metadata: Mapping[str, str]) -> None:
    """Write a PNG with one text chunk for each entry of `metadata` (any Unicode)."""
    chunks = PngImagePlugin.PngInfo()
    for key, value in metadata.items():
        chunks.add_text(key, value)
    image.save(path, format="PNG", pnginfo=chunks)


def data_uri(path: Path) -> tuple[str, tuple[int, int]]:
    """Turn an image file into a data URI for a page; return it with the width and height of the image in it.

    A file of up to 150 kB goes in as it is, a larger one as a JPEG of at most 768 pixels a side.

    Raises:
        OSError: The file is missing or is no whole image.
    """
    with Image.open(path) as image:
        try:
            image.load()
        except SyntaxError as error:  # what Pillow raises for a PNG with a broken chunk
            raise OSError(f"{path} is no whole image: {error}") from error
        data, kind = path.read_bytes(), image.get_format_mimetype()
        if len(data) > INLINE_BYTES:
            image.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE), Image.Resampling.LANCZOS)
            stream = io.BytesIO()
            image.convert("RGB").save(stream, "JPEG", quality=90)
            data, kind = stream.getvalue(), "image/jpeg"
        return f"data:{kind};base64,{base64.b64encode(data).decode()}", image.size


def _check(images: Sequence[Image.Image], columns: int, labels: Sequence[str] | None) -> None:
    if not images or columns < 1:
        raise ValueError(f"a grid needs images and columns, got {len(images)} images in {columns} columns")
    sizes = sorted({image.size for image in images})
    if len(sizes) > 1:
        raise ValueError(f"a grid needs images of one size, got {sizes}")
    rows = -(-len(images) // columns)
    if labels is not None and len(labels) != rows:
        raise ValueError(f"{len(labels)} labels for {rows} rows")


def _enlarged(image: Image.Image) -> Image.Image:
    factor = -(-CELL // min(image.size))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def _wrap(text: str, font: Font, width: int) -> list[str]:
    """Break text into the fewest lines that fit `width` pixels; a word that is too long is cut."""
    for characters in range(len(text), 0, -1):
        lines = textwrap.wrap(text, characters)
        if all(font.getlength(line) <= width for line in lines):
            return lines
    return []


def _write(sheet: Image.Image, lines: Sequence[str], font: Font, top: int) -> None:
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(lines):
        draw.text((MARGIN, top + number * LINE_HEIGHT), line, fill="black", font=font)
