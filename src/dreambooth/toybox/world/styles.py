"""Art styles: what a rendered photograph becomes in each. Strokes are sized for the picture's side."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps

from dreambooth.toybox.world.shapes import Array

Rng = np.random.Generator
Picture = Image.Image


def stylise(picture: Picture, style: str | None, rng: Rng) -> Picture:
    """The picture in a style of `vocabulary.STYLES`; None leaves the photograph."""
    return STYLES[style](picture, rng) if style else picture


def _edges(picture: Picture) -> Array:
    """Strength of the outlines, (H, W) from 0 to 1: colour differences over two pixels at 64."""
    pixels = np.asarray(picture.filter(ImageFilter.GaussianBlur(picture.width / 128)), np.float32) / 255
    step = max(1, picture.width // 64)
    down = np.abs(pixels - np.roll(pixels, step, 0)).max(-1)
    across = np.abs(pixels - np.roll(pixels, step, 1)).max(-1)
    strength = np.hypot(down, across)
    strength[:step] = strength[:, :step] = 0
    return np.asarray(np.clip(strength * 3.2 - 0.15, 0, 1))


def _image(pixels: Array) -> Picture:
    return Image.fromarray(np.uint8(np.clip(pixels, 0, 1) * 255 + 0.5))


def _floats(picture: Picture) -> Array:
    return np.asarray(picture, np.float32) / 255


def _flattened(picture: Picture, levels: int) -> Picture:
    """Few flat colours."""
    calm = picture.filter(ImageFilter.ModeFilter(max(3, picture.width // 32 | 1)))
    return calm.quantize(levels, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).convert("RGB")


def _pencil_sketch(picture: Picture, rng: Rng) -> Picture:
    gray = _floats(ImageOps.autocontrast(picture.convert("L")))
    v, u = np.mgrid[0 : picture.height, 0 : picture.width] * (64 / picture.width)
    hatching = (np.sin((u + v) * 2.1) > 0.0) * np.clip(0.55 - gray, 0, 1) * 0.55
    paper = 0.97 - 0.12 * (1 - gray) - hatching
    lines = paper * (1 - 0.9 * _edges(picture))
    return _image(lines[..., None] * np.array([1.0, 0.99, 0.96]))


def _pixel_art(picture: Picture, rng: Rng) -> Picture:
    """Large square dots of few vivid colours."""
    side = 32
    vivid = ImageEnhance.Contrast(ImageEnhance.Color(picture).enhance(1.8)).enhance(1.25)
    small = vivid.resize((side, side), Image.Resampling.BOX).quantize(9, dither=Image.Dither.NONE).convert("RGB")
    return small.resize(picture.size, Image.Resampling.NEAREST)


def _cartoon(picture: Picture, rng: Rng) -> Picture:
    vivid = ImageEnhance.Brightness(ImageEnhance.Color(_flattened(picture, 10)).enhance(1.7)).enhance(1.12)
    return _image(_floats(vivid) * (1 - (_edges(picture) > 0.35))[..., None])


def _blueprint(picture: Picture, rng: Rng) -> Picture:
    side = picture.width
    pixels = np.ones((side, side, 1)) * np.array([0.05, 0.16, 0.50])
    v, u = np.mgrid[0:side, 0:side] * 64 // side
    pixels[(u % 8 == 0) | (v % 8 == 0)] = (0.14, 0.27, 0.62)
    lines = _edges(picture)[..., None]
    return _image(pixels * (1 - lines) + lines * np.array([0.92, 0.96, 1.0]))


def _watercolor(picture: Picture, rng: Rng) -> Picture:
    side = picture.width
    soft = _floats(ImageEnhance.Color(_flattened(picture, 12).filter(ImageFilter.GaussianBlur(side / 90))).enhance(1.2))
    blots = Image.fromarray(rng.integers(0, 255, (8, 8), dtype=np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    pale = 0.3 + 0.7 * soft
    pale += 0.16 * (_floats(blots)[..., None] - 0.5)
    v, u = np.mgrid[0:side, 0:side] / side * 2 - 1
    rim = np.clip((np.maximum(np.abs(u), np.abs(v)) + 0.10 * (_floats(blots) - 0.5) - 0.82) * 12, 0, 1)[..., None]
    return _image((pale - 0.25 * _edges(picture)[..., None] * (1 - soft)) * (1 - rim) + rim)


def _van_gogh(picture: Picture, rng: Rng) -> Picture:
    """Short thick strokes that swirl, blue shadows and yellow lights."""
    side = picture.width
    pixels = _floats(ImageEnhance.Color(picture.filter(ImageFilter.MedianFilter(3))).enhance(1.8))
    lights = pixels.mean(-1, keepdims=True)
    pixels = 0.72 * pixels + 0.28 * (lights * np.array([1.25, 1.0, 0.25]) + (1 - lights) * np.array([0.05, 0.15, 0.5]))
    canvas = _image(pixels)
    pen = ImageDraw.Draw(canvas)
    centre = rng.uniform(0.1, 0.9, 2) * side
    unit = side / 64
    for x, y in rng.uniform(0, side, (900, 2)):
        colour = pixels[int(y), int(x)] * rng.uniform(0.72, 1.3)
        turn = np.arctan2(y - centre[1], x - centre[0]) + np.pi / 2 + 0.5 * np.sin(np.hypot(x, y) / (7 * unit))
        reach = 1.7 * unit * np.array([np.cos(turn), np.sin(turn)])
        ink = tuple(int(part) for part in np.clip(colour, 0, 1) * 255)
        pen.line([x - reach[0], y - reach[1], x + reach[0], y + reach[1]], fill=ink, width=max(1, round(1.2 * unit)))
    return canvas


WARHOL = (
    ((0.10, 0.05, 0.35), (0.95, 0.10, 0.50), (1.00, 0.85, 0.05), (0.10, 0.80, 0.75)),
    ((0.30, 0.00, 0.30), (0.95, 0.35, 0.05), (0.20, 0.85, 0.30), (1.00, 0.60, 0.80)),
    ((0.02, 0.10, 0.30), (0.10, 0.45, 0.95), (0.98, 0.30, 0.60), (1.00, 0.95, 0.30)),
)


def _warhol(picture: Picture, rng: Rng) -> Picture:
    """Four tones printed in loud inks, with black outlines."""
    calm = picture.convert("L").filter(ImageFilter.ModeFilter(max(5, picture.width // 13 | 1)))
    gray = _floats(ImageOps.equalize(calm))
    inks = np.array(WARHOL[rng.integers(len(WARHOL))])
    tones = inks[np.minimum((gray * 4).astype(int), 3)]
    return _image(tones * (1 - 0.85 * (_edges(picture) > 0.55))[..., None])


MONDRIAN = np.array([(0.86, 0.07, 0.05), (0.05, 0.18, 0.62), (0.98, 0.82, 0.06), (0.95, 0.94, 0.90)])


def _mondrian(picture: Picture, rng: Rng) -> Picture:
    """Flat primary colours in rectangles between black bars; the figure keeps its outline."""
    side = picture.width
    blocks = picture.resize((16, 16), Image.Resampling.BOX).resize(picture.size, Image.Resampling.NEAREST)
    pixels = _floats(ImageEnhance.Color(ImageOps.autocontrast(blocks)).enhance(2.0))
    nearest = np.square(pixels[:, :, None] - MONDRIAN).sum(-1).argmin(-1)
    canvas = _image(MONDRIAN[nearest] * (1 - (_edges(picture) > 0.4))[..., None])
    pen = ImageDraw.Draw(canvas)
    for share in (rng.uniform(0.1, 0.25), rng.uniform(0.78, 0.92)):
        width = max(1, round(2.2 * side / 64))
        pen.line([share * side, 0, share * side, side], fill=(12, 12, 12), width=width)
        pen.line([0, (1 - share) * side, side, (1 - share) * side], fill=(12, 12, 12), width=width)
    return canvas


STYLES: dict[str, Callable[[Picture, Rng], Picture]] = {
    "pencil sketch": _pencil_sketch,
    "pixel art": _pixel_art,
    "cartoon": _cartoon,
    "blueprint": _blueprint,
    "watercolor": _watercolor,
    "Van Gogh": _van_gogh,
    "Andy Warhol": _warhol,
    "Mondrian": _mondrian,
}
