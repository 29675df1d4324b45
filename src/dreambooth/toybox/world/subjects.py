"""A subject is a fixed identity: a class, shape numbers, colours and a pattern, all drawn from one seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dreambooth.toybox.world.shapes import Array, Material
from dreambooth.toybox.world.vocabulary import CLASSES, COLOURS

Colour = tuple[float, float, float]
PATTERNS = ("solid", "stripes", "bands", "spots", "checks", "halves", "patches")
TEXELS = 64


@dataclass(frozen=True)
class Subject:
    """What is the same in every photo: shape numbers in [0, 1), three colours, a pattern of the main part.

    `colour` names the one colour a person would call it, or is None for a subject of several colours.
    """

    cls: str
    seed: int
    numbers: tuple[float, ...]
    palette: tuple[Colour, Colour, Colour]
    pattern: str
    colour: str | None


def draw_subject(cls: str, seed: int) -> Subject:
    """The subject of this class and seed: two in five have one colour, the others three and perhaps a pattern."""
    rng = np.random.default_rng([CLASSES.index(cls), seed])
    numbers = tuple(float(number) for number in rng.random(8))
    names = list(COLOURS)
    chosen = [names[index] for index in rng.permutation(len(names))[:3]]
    jitter = rng.normal(0, 0.03, (3, 3))
    if rng.random() < 0.4:
        return Subject(cls, seed, numbers, _shades(COLOURS[chosen[0]], jitter[0]), "solid", chosen[0])
    palette = tuple(_clip(np.add(COLOURS[name], shift)) for name, shift in zip(chosen, jitter, strict=True))
    pattern = PATTERNS[rng.integers(len(PATTERNS))]
    return Subject(cls, seed, numbers, (palette[0], palette[1], palette[2]), pattern, None)


def recolour(subject: Subject, name: str) -> tuple[Colour, Colour, Colour]:
    """The palette in one named colour; the lighter parts stay the lighter ones, so the pattern stays visible."""
    order = np.argsort(np.argsort([sum(colour) for colour in subject.palette]))
    target = np.asarray(COLOURS[name])
    shades = [target * 0.45, target, target * 1.15 + 0.08]
    first, second, third = (_clip(shades[rank]) for rank in order)
    return first, second, third


def _shades(colour: Colour, jitter: Array) -> tuple[Colour, Colour, Colour]:
    base = np.add(colour, jitter * 0.5)
    return _clip(base), _clip(base * 0.7), _clip(base * 1.1 + 0.05)


def _clip(colour: Array) -> Colour:
    red, green, blue = np.clip(colour, 0.015, 0.93).tolist()
    return red, green, blue


def pattern_texture(pattern: str, one: Colour, two: Colour, numbers: tuple[float, ...]) -> Array:
    """Texture (TEXELS, TEXELS, 3) of a pattern in two colours; it repeats in u."""
    v, u = np.mgrid[0:TEXELS, 0:TEXELS] / TEXELS
    count = 3 + int(numbers[6] * 2.99)
    masks = {
        "stripes": (u * 2 * count) % 1 < 0.5,
        "bands": (v * count) % 1 < 0.5,
        "spots": _spots(u, v, count),
        "checks": ((u * 2 * count).astype(int) + (v * count).astype(int)) % 2 == 0,
        "halves": u < 0.5,
        "patches": np.sin(6.28 * u * 2 + numbers[7] * 6) + np.sin(9 * v + 3 * np.sin(6.28 * u) + numbers[6] * 6) > 0.5,
    }
    return np.where(masks[pattern][..., None], np.asarray(two), np.asarray(one)).astype(np.float32)


def _spots(u: Array, v: Array, count: int) -> Array:
    """Round spots, every second row shifted by half a step."""
    row = np.floor(v * count)
    across = (u * 2 * count + 0.5 * (row % 2)) % 1 - 0.5
    return np.asarray(across**2 + ((v * count) % 1 - 0.5) ** 2 < 0.1)


@dataclass(frozen=True, eq=False)
class Paint:
    """Materials of a subject's parts."""

    main: Material
    head: Material
    limbs: Material
    accent: Material
    dark: Material
    light: Material
    lamp: Material


DARK = Material((0.02, 0.02, 0.02), "glossy")
LIGHT = Material((0.88, 0.88, 0.88), "glossy")
LAMP = Material((1.0, 0.75, 0.25), "glow")
STEEL = (0.62, 0.64, 0.67)
ICE = (0.70, 0.88, 0.95)
MARBLE = (0.82, 0.80, 0.75)
BRONZE = (0.36, 0.20, 0.08)


def paint(subject: Subject, colour: str | None, finish: str) -> Paint:
    """Materials of a subject.

    Args:
        subject: Who.
        colour: Asked colour that replaces its own, or None.
        finish: "matte", "shiny", "wet", "metal", "glass", "stone", "marble" or "bronze".
    """
    palette = recolour(subject, colour) if colour else subject.palette
    one, two, three = (_tinted(part, finish) for part in palette)
    if finish in ("marble", "bronze"):
        shades = [Material(_scaled(one, factor), finish) for factor in (1.0, 0.93, 0.86, 0.55)]
        return Paint(shades[0], shades[0], shades[1], shades[2], shades[3], shades[2], shades[1])
    texture = None if subject.pattern == "solid" else pattern_texture(subject.pattern, one, two, subject.numbers)
    if finish == "stone":
        texture = _speckled(one if texture is None else texture, subject.seed)
    main = Material(one, finish, texture)
    head = Material(one, finish, _speckled(one, subject.seed) if finish == "stone" else None)
    return Paint(main, head, Material(two, finish), Material(three, finish), DARK, LIGHT, LAMP)


def _scaled(colour: Colour, factor: float) -> Colour:
    return _clip(np.multiply(colour, factor))


def _tinted(colour: Colour, finish: str) -> Colour:
    """How a material changes a colour: stone and metal keep a hint of it."""
    if finish == "marble":
        return MARBLE
    if finish == "bronze":
        return BRONZE
    if finish == "metal":
        return _clip(0.75 * np.asarray(STEEL) + 0.25 * np.asarray(colour))
    if finish == "stone":
        gray = 0.20 + 0.35 * float(np.mean(colour))
        return _clip(np.asarray([gray, gray, gray * 0.97]) + 0.06 * np.asarray(colour))
    if finish == "glass":
        return _clip(0.55 * np.asarray(colour) + 0.45 * np.asarray(ICE))
    if finish == "wet":
        return _clip(np.multiply(colour, 0.55))
    return colour


def _speckled(base: Array | Colour, seed: int) -> Array:
    grains = np.random.default_rng(seed).normal(1, 0.28, (TEXELS // 2, TEXELS // 2, 1)).repeat(2, 0).repeat(2, 1)
    return np.clip(np.broadcast_to(np.asarray(base), (TEXELS, TEXELS, 3)) * grains, 0.02, 0.9).astype(np.float32)
