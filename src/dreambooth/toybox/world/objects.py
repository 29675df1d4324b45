"""Builders of the object classes. They face +x, stand on z = 0 and are scaled to one size later."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dreambooth.toybox.world.shapes import Material, Model, rotate
from dreambooth.toybox.world.subjects import Paint

Numbers = tuple[float, ...]
SIDES = (-1, 1)
WINDOW = Material((0.30, 0.55, 0.72), "shiny")
HEADLIGHT = Material((0.95, 0.9, 0.55), "glossy")
LEAF = Material((0.05, 0.4, 0.07))


def _between(low: float, high: float, number: float) -> float:
    return low + (high - low) * number


def _robot(model: Model, coat: Paint, n: Numbers) -> None:
    model.box((0, 0, 0.82), (0.34, _between(0.38, 0.5, n[1]), 0.42), coat.main)
    model.rod((0, 0, 1.2), (0, 0, 1.36), 0.14, coat.dark)
    if n[0] < 0.5:
        model.box((0, 0, 1.6), (0.32, 0.38, 0.28), coat.head)
    else:
        model.ball((0, 0, 1.6), (0.36, 0.4, 0.34), coat.head)
    for side in SIDES:
        shoulder = side * (_between(0.38, 0.5, n[1]) + 0.13)
        model.limb((0, shoulder, 1.12), (0.12, shoulder * 1.1, 0.55), 0.12, coat.limbs)
        model.ball((0.14, shoulder * 1.1, 0.46), 0.16, coat.accent)
        model.box((0.05, side * 0.22, 0.2), (0.2, 0.15, 0.2), coat.limbs)
        model.ball((0.33, side * 0.17, 1.64), 0.12, coat.light)
        model.ball((0.42, side * 0.17, 1.64), 0.07, coat.dark)
    model.box((0.34, 0, 1.44), (0.03, 0.2, 0.04), coat.dark)
    model.rod((0, 0, 1.85), (0, 0, 2.1), 0.045, coat.accent)
    model.ball((0, 0, 2.14), 0.11, coat.accent)
    model.box((0.35, 0, 0.88), (0.04, 0.22, 0.18), coat.accent)


def _car(model: Model, coat: Paint, n: Numbers) -> None:
    length = _between(0.95, 1.15, n[0])
    cabin = _between(0.42, 0.6, n[2])
    middle = _between(-0.25, 0.05, n[1])
    model.box((0, 0, 0.46), (length, 0.52, 0.22), coat.main)
    model.box((middle, 0, 0.9), (cabin, 0.46, 0.24), coat.head)
    model.box((middle, 0, 0.92), (cabin * 0.82, 0.48, 0.15), WINDOW)
    model.box((middle, 0, 0.92), (cabin + 0.02, 0.38, 0.15), WINDOW)
    model.box((middle, 0, 1.16), (cabin, 0.46, 0.05), coat.limbs)
    for side in SIDES:
        for x in (-length * 0.58, length * 0.58):
            model.rod((x, side * 0.42, 0.28), (x, side * 0.62, 0.28), 0.28, coat.dark)
            model.rod((x, side * 0.60, 0.28), (x, side * 0.65, 0.28), 0.15, coat.accent)
        model.ball((length, side * 0.33, 0.52), (0.06, 0.12, 0.11), HEADLIGHT)
        model.box((-length, side * 0.38, 0.52), (0.03, 0.09, 0.07), coat.accent)
    model.box((length, 0, 0.32), (0.05, 0.5, 0.06), coat.limbs)


def _teapot(model: Model, coat: Paint, n: Numbers) -> None:
    wide = _between(0.6, 0.72, n[0])
    model.ball((0, 0, 0.62), (wide, wide, _between(0.5, 0.6, n[1])), coat.main)
    model.lathe([(0.01, 0), (0.42, 0), (0.42, 0), (0.34, 0.16)], coat.limbs)
    model.ball((0, 0, 1.12), (0.34, 0.34, 0.12), coat.limbs)
    model.ball((0, 0, 1.3), 0.12, coat.accent)
    model.limb((wide * 0.7, 0, 0.45), (wide + 0.2, 0, 0.75), 0.15, coat.limbs)
    model.limb((wide + 0.2, 0, 0.75), (wide + 0.42, 0, 1.15), 0.1, coat.limbs)
    model.ring((-wide - 0.08, 0, 0.68), 0.3, 0.085, coat.accent, "y")


def _cup(model: Model, coat: Paint, n: Numbers) -> None:
    wide = _between(0.5, 0.62, n[0])
    high = _between(0.95, 1.2, n[1])
    foot = wide * _between(0.7, 0.98, n[2])
    model.lathe([(0.01, 0), (foot, 0), (foot, 0), (wide, high)], coat.main)
    rim, floor = (wide * 0.88, high), (foot * 0.85, 0.12)
    model.lathe([(wide, high), rim, rim, floor, floor, (0.01, 0.12)], coat.limbs)
    model.ring((-wide - 0.1, 0, high * 0.52), 0.28, 0.09, coat.accent, "y")


def _vase(model: Model, coat: Paint, n: Numbers) -> None:
    belly = _between(0.42, 0.62, n[0])
    neck = _between(0.15, 0.24, n[1])
    lip = _between(0.26, 0.4, n[2])
    high = _between(1.25, 1.6, n[3])
    body = [(0.01, 0), (belly * 0.6, 0), (belly * 0.6, 0), (belly * 0.93, high * 0.2), (belly, high * 0.36)]
    body += [(belly * 0.8, high * 0.56), (neck, high * 0.76), (neck, high * 0.87)]
    model.lathe(body, coat.main)
    model.lathe([(neck, high * 0.87), (lip, high), (lip * 0.85, high), (0.01, high * 0.9)], coat.limbs)
    for index in range(3 if n[4] < 0.6 else 0):
        top = (0.22 * (index % 2) - 0.08, 0.3 * (index - 1), high + 0.42 + 0.1 * (index == 1))
        model.rod((0, 0, high * 0.85), top, 0.035, LEAF)
        model.ball(top, 0.17, coat.accent)


def _clock(model: Model, coat: Paint, n: Numbers) -> None:
    radius = _between(0.58, 0.68, n[0])
    z = radius + 0.2
    model.rod((-0.16, 0, z), (0.14, 0, z), radius, coat.main)
    model.rod((0.14, 0, z), (0.17, 0, z), radius * 0.82, coat.light)
    for hour in range(12):
        angle = hour * np.pi / 6
        spot = (0.17, np.sin(angle) * radius * 0.68, z + np.cos(angle) * radius * 0.68)
        model.ball(spot, 0.055, coat.dark)
    for number, reach, width in ((n[1], 0.52, 0.045), (n[2], 0.34, 0.06)):
        angle = 2 * np.pi * number
        tip = (0.2, np.sin(angle) * radius * reach, z + np.cos(angle) * radius * reach)
        model.limb((0.2, 0, z), tip, width, coat.dark)
    for side in SIDES:
        model.limb((0, side * 0.35, 0.32), (0, side * 0.5, 0.06), 0.09, coat.limbs)
        model.ball((0, side * 0.36, z + radius * 0.98), (0.2, 0.26, 0.2), coat.accent)
    model.rod((0, 0, z + radius), (0, 0, z + radius + 0.2), 0.04, coat.limbs)


def _candle(model: Model, coat: Paint, n: Numbers) -> None:
    radius = _between(0.28, 0.4, n[0])
    high = _between(0.95, 1.25, n[1])
    model.lathe([(0.01, 0), (0.62, 0), (0.68, 0.14), (0.5, 0.1), (0.01, 0.1)], coat.limbs)
    model.ring((-0.72, 0, 0.14), 0.13, 0.05, coat.accent, "y")
    model.rod((0, 0, 0.08), (0, 0, high), radius, coat.main)
    model.limb((radius * 0.9, 0.1, high - 0.05), (radius * 0.95, 0.1, high - 0.35), 0.07, coat.main)
    model.rod((0, 0, high), (0, 0, high + 0.14), 0.035, coat.dark)
    model.ball((0, 0, high + 0.33), (0.13, 0.13, 0.24), coat.lamp)


def _backpack(model: Model, coat: Paint, n: Numbers) -> None:
    wide = _between(0.5, 0.6, n[0])
    high = _between(0.72, 0.8, n[1])
    model.ball((0, 0, high), (0.38, wide, high), coat.main)
    model.box((0, 0, high * 0.6), (0.3, wide * 0.85, high * 0.58), coat.main)
    model.ball((0.3, 0, 0.45), (0.22, wide * 0.72, 0.34), coat.limbs)
    model.box((0.46, 0, 0.66), (0.05, wide * 0.5, 0.05), coat.accent)
    model.limb((0.33, -wide * 0.55, 1.02), (0.33, wide * 0.55, 1.02), 0.05, coat.dark)
    model.ring((0, 0, high * 2 + 0.06), 0.17, 0.06, coat.accent, "x")
    for side in SIDES:
        model.ball((0, side * wide * 1.02, 0.42), (0.2, 0.15, 0.3), coat.limbs)
        model.limb((-0.3, side * 0.27, high * 1.7), (-0.5, side * 0.3, high), 0.085, coat.accent)
        model.limb((-0.5, side * 0.3, high), (-0.32, side * 0.34, 0.25), 0.085, coat.accent)


def _boot(model: Model, coat: Paint, n: Numbers) -> None:
    shaft = _between(0.95, 1.25, n[0])
    model.rod((-0.25, 0, 0.2), (-0.25, 0, shaft), 0.36, coat.main)
    model.ball((-0.25, 0, 0.38), (0.38, 0.37, 0.3), coat.main)
    model.ball((0.3, 0, 0.32), (0.62, 0.36, 0.27), coat.head)
    model.box((0.12, 0, 0.07), (0.74, 0.35, 0.08), coat.dark)
    model.box((-0.42, 0, 0.02), (0.2, 0.32, 0.12), coat.dark)
    model.lathe([(0.37, 0), (0.43, 0), (0.43, 0.2), (0.3, 0.2), (0.3, 0.0)], coat.accent, (-0.25, 0, shaft - 0.08))
    for index in range(3):
        z = 0.55 + 0.18 * index
        model.limb((0.12, -0.15, z), (0.12, 0.15, z), 0.045, coat.limbs)


def _lamp(model: Model, coat: Paint, n: Numbers) -> None:
    high = _between(0.75, 0.95, n[0])
    top = _between(0.2, 0.38, n[1])
    wide = _between(0.56, 0.68, n[2])
    model.lathe([(0.01, 0), (0.45, 0), (0.45, 0.08), (0.08, 0.14)], coat.limbs)
    model.ball((0, 0, 0.34), (0.2, 0.2, 0.22), coat.accent)
    model.rod((0, 0, 0.1), (0, 0, high + 0.3), 0.075, coat.limbs)
    model.lathe([(wide, high), (top, high + 0.65), (top, high + 0.65), (0.01, high + 0.65)], coat.main)
    model.ball((0, 0, high + 0.12), 0.2, coat.lamp)


def _boat(model: Model, coat: Paint, n: Numbers) -> None:
    length = _between(0.85, 1.0, n[0])
    mast = _between(1.45, 1.7, n[1])
    model.ball((0, 0, 0.36), (length, 0.42, 0.36), coat.head)
    model.box((0, 0, 0.42), (length * 0.9, 0.36, 0.05), coat.limbs)
    model.rod((0.05, 0, 0.4), (0.05, 0, mast), 0.05, coat.dark)
    model.box((-0.42, 0, 0.62), (0.24, 0.24, 0.17), coat.accent)
    sail = [(0.01, 0), (0.6, 0), (0.6, 0), (0.01, mast - 0.72)]
    _flat_cone(model, sail, coat.main, (0.05, 0, 0.68))
    model.box((0.17, 0, mast + 0.02), (0.14, 0.03, 0.08), coat.accent)


def _flat_cone(model: Model, profile: list[tuple[float, float]], material: Material, at: tuple[float, ...]) -> None:
    """A triangular sail: a cone squeezed to a sheet."""
    flat = np.diag([1.15, 0.07, 1.0, 1.0])
    model.lathe(profile, material, at, flat)


def _airplane(model: Model, coat: Paint, n: Numbers) -> None:
    span = _between(0.95, 1.15, n[0])
    model.ball((0, 0, 0.62), (1.05, 0.29, 0.29), coat.main)
    model.box((0.12, 0, 0.6), (0.27, span, 0.05), coat.limbs, rotate("y", -4))
    model.box((-0.9, 0, 0.7), (0.16, 0.42, 0.04), coat.limbs)
    model.box((-0.92, 0, 0.95), (0.17, 0.045, 0.28), coat.accent, rotate("y", -18))
    model.ball((0.45, 0, 0.82), (0.27, 0.2, 0.17), WINDOW)
    model.ball((1.05, 0, 0.62), (0.12, 0.12, 0.12), coat.accent)
    model.box((1.1, 0, 0.62), (0.03, 0.06, 0.42), coat.dark, rotate("x", 90 * n[2]))
    for side in SIDES:
        model.rod((0.25, side * 0.25, 0.5), (0.25, side * 0.3, 0.15), 0.035, coat.dark)
        model.rod((0.25, side * 0.27, 0.13), (0.25, side * 0.37, 0.13), 0.14, coat.dark)
        model.rod((0.1, side * span * 0.6, 0.52), (0.5, side * span * 0.6, 0.52), 0.11, coat.accent)


BUILDERS: dict[str, Callable[[Model, Paint, Numbers], None]] = {
    "robot": _robot,
    "car": _car,
    "teapot": _teapot,
    "cup": _cup,
    "vase": _vase,
    "clock": _clock,
    "candle": _candle,
    "backpack": _backpack,
    "boot": _boot,
    "lamp": _lamp,
    "boat": _boat,
    "airplane": _airplane,
}
