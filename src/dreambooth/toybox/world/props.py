"""Things that stand about in contexts: trees, houses, people, the Eiffel Tower. x is right, y away, z up."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from dreambooth.toybox.world.shapes import (
    Array,
    Material,
    Model,
    cube,
    cylinder,
    rotate,
    scale,
    sheet,
    sphere,
    translate,
)
from dreambooth.toybox.world.subjects import Colour
from dreambooth.toybox.world.vocabulary import COLOURS

Rng = np.random.Generator
BARK = Material((0.22, 0.11, 0.05))
SNOW = Material((0.93, 0.94, 0.97))
IRON = Material((0.20, 0.14, 0.10))
SKIN = Material((0.75, 0.48, 0.33))
COCONUT = Material((0.12, 0.06, 0.02))
COOKIE = Material((0.55, 0.27, 0.08))


def flat(x: Array, y: Array) -> Array:
    """Height of level ground."""
    return np.zeros_like(x)


def ground(model: Model, material: Material, tile: float = 1.0) -> None:
    """Level ground to the horizon; a texture repeats every `tile`."""
    model.mesh(sheet(60.0, 1, flat).tiled(1 / tile), material)


def wall(model: Model, material: Material, y: float = 3.2) -> None:
    """A wall behind the subject."""
    model.box((0, y, 10), (60, 0.1, 10.5), material)


def jitter(colour: Colour, rng: Rng, amount: float = 0.12) -> Colour:
    """The colour a little lighter or darker."""
    red, green, blue = np.clip(np.multiply(colour, rng.uniform(1 - amount, 1 + amount)), 0.01, 0.95).tolist()
    return red, green, blue


def fir(model: Model, x: float, y: float, high: float, needles: Material, snow: bool = False) -> None:
    """A fir of three cones; with snow the tips are white."""
    model.rod((x, y, 0), (x, y, high * 0.3), 0.13, BARK)
    for index in range(3):
        base = high * (0.16 + 0.25 * index)
        radius = high * (0.32 - 0.075 * index)
        model.cone((x, y, base), radius, high * 0.38, needles)
        if snow:
            model.cone((x, y, base + high * 0.14), radius * 0.68, high * 0.27, SNOW)


def palm(model: Model, x: float, y: float, high: float, leaves: Material) -> None:
    """A palm with a bent trunk."""
    top = (x + 0.25, y, high)
    model.limb((x, y, 0), (x + 0.05, y, high * 0.5), 0.13, BARK)
    model.limb((x + 0.05, y, high * 0.5), top, 0.1, BARK)
    for index in range(7):
        turn = rotate("z", index * 360 / 7) @ rotate("y", 22)
        reach = turn[:3, :3] @ (0.6, 0, 0)
        model.ball(np.add(top, reach), (0.72, 0.19, 0.05), leaves, turn)
    model.ball((top[0] - 0.1, y - 0.14, high - 0.12), 0.13, COCONUT)


def leaf(model: Model, x: float, y: float, high: float, lean: float, leaves: Material) -> None:
    """A large upright jungle leaf, leaning by degrees."""
    turn = rotate("y", lean)
    middle = turn[:3, :3] @ (0, 0, high / 2)
    model.ball((x + middle[0], y, middle[2]), (0.26 * high**0.5, 0.05, high / 2), leaves, turn)


def sunflower(model: Model, x: float, y: float, high: float, stem: Material, petals: Material, seeds: Material) -> None:
    """A sunflower that looks at the camera."""
    model.rod((x, y, 0), (x, y, high), 0.045, stem)
    model.ball((x + 0.14, y, high * 0.45), (0.17, 0.04, 0.07), stem, rotate("y", -25))
    model.ball((x, y, high), (0.27, 0.06, 0.27), petals)
    model.ball((x, y - 0.06, high), (0.14, 0.05, 0.14), seeds)


def tower_block(model: Model, x: float, y: float, half: float, high: float, front: Material) -> None:
    """A building; its front texture repeats with height."""
    facade = cube().tiled((2, max(round(high), 1)))
    model.mesh(facade, front, translate((x, y, high / 2)) @ scale((half, half, high / 2)))


def eiffel_tower(model: Model, x: float, y: float, high: float) -> None:
    """Four bent legs, two platforms and a spire."""
    levels = [(0.0, 0.24), (0.18, 0.155), (0.36, 0.09), (0.62, 0.045), (0.9, 0.015)]
    for (low, wide), (top, narrow) in pairwise(levels):
        for across in (-1, 1):
            for deep in (-1, 1):
                start = (x + across * wide * high, y + deep * wide * high, low * high)
                end = (x + across * narrow * high, y + deep * narrow * high, top * high)
                model.limb(start, end, high * (0.05 - 0.03 * low), IRON)
    for level, wide in ((0.18, 0.19), (0.36, 0.12), (0.62, 0.06)):
        model.box((x, y, level * high), (wide * high, wide * high, 0.018 * high), IRON)
    model.rod((x, y, 0.6 * high), (x, y, 1.04 * high), 0.018 * high, IRON)


def house(model: Model, x: float, y: float, walls: Material, roof: Material, door: Material, glass: Material) -> None:
    """A house with a pitched roof, seen from its front."""
    model.box((x, y, 0.8), (1.5, 1.0, 0.8), walls)
    for side in (-1, 1):
        model.box((x + side * 0.85, y, 2.0), (1.1, 1.25, 0.09), roof, rotate("y", side * 30))
        model.box((x + side * 0.9, y - 1.02, 1.0), (0.34, 0.04, 0.32), glass)
    model.box((x, y, 1.8), (0.95, 0.95, 0.25), walls)
    model.box((x, y, 2.15), (0.4, 0.95, 0.15), walls)
    model.box((x, y - 1.02, 0.6), (0.28, 0.04, 0.6), door)
    model.box((x + 0.9, y, 2.3), (0.16, 0.16, 0.4), roof)


def person(model: Model, x: float, y: float, high: float, coat: Material, trousers: Material) -> None:
    """A person of a crowd."""
    for side in (-1, 1):
        model.rod((x + side * 0.1 * high, y, 0), (x + side * 0.08 * high, y, high * 0.48), high * 0.065, trousers)
        model.limb((x + side * 0.2 * high, y, high * 0.76), (x + side * 0.24 * high, y, high * 0.48), high * 0.05, coat)
    model.ball((x, y, high * 0.64), (high * 0.18, high * 0.12, high * 0.22), coat)
    model.ball((x, y, high * 0.92), high * 0.105, SKIN)
    model.ball((x, y + 0.03, high * 0.97), high * 0.1, BARK)


def cookie(model: Model, x: float, y: float, z: float) -> None:
    """A biscuit with dark chips, tilted towards the camera."""
    turn = translate((x, y, z)) @ rotate("x", 40)
    model.mesh(cylinder(), COOKIE, turn @ scale((0.3, 0.3, 0.08)))
    for across, deep in ((0.1, 0.1), (-0.12, 0.08), (0.02, -0.14)):
        model.mesh(sphere(), COCONUT, turn @ translate((across, deep, 0.09)) @ scale(0.055))


def cloud(model: Model, x: float, y: float, z: float, size: float, rng: Rng) -> None:
    """A heap of white balls."""
    for offset in (-0.8, -0.1, 0.6):
        radius = size * rng.uniform(0.5, 0.8)
        model.ball((x + offset * size, y, z + rng.uniform(0, 0.3) * size), (radius * 1.2, radius, radius * 0.8), SNOW)


def mountain(model: Model, x: float, y: float, high: float, rock: Material) -> None:
    """A cone with a white top."""
    model.cone((x, y, 0), high * 0.95, high, rock)
    model.cone((x, y, high * 0.6), high * 0.43, high * 0.43, SNOW)


def bricks(rng: Rng, joint: float, low: float, high: float, tint: Colour = (1, 1, 1), rows: int = 4) -> Array:
    """Texture (64, 64, 3) of staggered stones of varied lightness."""
    texture = np.full((64, 64, 3), joint)
    size = 64 // rows
    for row in range(rows):
        for column in range(rows):
            start = column * size + (size // 2) * (row % 2)
            columns = np.arange(start + 2, start + size) % 64
            texture[row * size + 2 : (row + 1) * size, columns] = rng.uniform(low, high)
    return np.asarray(texture * tint, np.float32)


def planks(rng: Rng) -> Array:
    """Texture (64, 64, 3) of four boards along y."""
    texture = np.zeros((64, 64, 3))
    for index in range(4):
        board = np.multiply((0.46, 0.24, 0.09), rng.uniform(0.75, 1.25))
        texture[:, index * 16 : (index + 1) * 16] = board
        texture[:, index * 16] = (0.10, 0.05, 0.02)
        texture[rng.integers(64), index * 16 : (index + 1) * 16] = (0.10, 0.05, 0.02)
    return texture.astype(np.float32)


def windows(rng: Rng) -> Array:
    """Texture (32, 32, 3) of a facade with four windows, some of them lit."""
    texture: Array = np.ones((32, 32, 3)) * np.asarray(jitter((0.28, 0.28, 0.32), rng, 0.4))
    for row in (4, 20):
        for column in (4, 20):
            lit = rng.random() < 0.5
            texture[row : row + 9, column : column + 9] = (0.9, 0.8, 0.35) if lit else (0.06, 0.08, 0.14)
    return texture.astype(np.float32)


def speckles(rng: Rng, colour: Colour, spread: float, size: int = 64) -> Array:
    """Texture (size, size, 3) of one colour with grains."""
    grains = 1 + spread * rng.standard_normal((size, size, 1))
    return np.asarray(np.clip(np.asarray(colour) * grains, 0.01, 0.95), np.float32)


def rug(model: Model, colour: Colour, rim: Colour, radius: float) -> None:
    """A round rug with a rim."""
    model.lathe([(1e-3, 0.05), (radius, 0.05)], Material(colour))
    model.ring((0, 0, 0.03), radius, 0.07, Material(rim))


def any_colour(rng: Rng) -> Material:
    """One of the named colours, for people's coats and the like."""
    return Material(COLOURS[str(rng.choice(list(COLOURS)))])


def hill(model: Model, x: float, y: float, size: tuple[float, float, float], material: Material) -> None:
    """Half an ellipsoid out of the ground."""
    model.ball((x, y, 0), size, material)


def spread(rng: Rng, count: int, inner: float, outer: float) -> list[tuple[float, float]]:
    """Places on the ground all around the subject, between two distances."""
    angles = (np.arange(count) + rng.uniform(0.1, 0.9, count)) * 2 * np.pi / count
    radii = np.sqrt(rng.uniform(inner**2, outer**2, count))
    return [(float(r * np.cos(a)), float(r * np.sin(a))) for r, a in zip(radii, angles, strict=True)]


def row(rng: Rng, count: int, width: float) -> list[float]:
    """Places along x from -width to width, with a little disorder."""
    step = 2 * width / count
    return [float(-width + step * (index + rng.uniform(0.25, 0.75))) for index in range(count)]
