"""One function a context: it furnishes the stage and says what the sky is like.

The camera looks along +y from y < 0; x is right, z up; the subject stands at the origin.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dreambooth.toybox.world import props
from dreambooth.toybox.world.props import Rng, jitter
from dreambooth.toybox.world.shapes import Array, Material, Model, sheet
from dreambooth.toybox.world.subjects import Colour
from dreambooth.toybox.world.vocabulary import COLOURS

DAY = (0.38, 0.60, 0.90)
GRASS = (0.13, 0.42, 0.06)


@dataclass(frozen=True)
class Setting:
    """Sky radiance, strength of the sun, and how deep the subject lies in the ground."""

    sky: Colour = DAY
    sun: float = 1.0
    sink: float = 0.0


def furnish(stage: Model, context: str, rng: Rng) -> Setting:
    """Build a context of `vocabulary.CONTEXTS` on an empty stage."""
    return CONTEXTS[context](stage, rng)


def _side(rng: Rng, low: float, high: float) -> float:
    """A place to the left or right of the subject."""
    return float(rng.choice([-1, 1]) * rng.uniform(low, high))


def _jungle(stage: Model, rng: Rng) -> Setting:
    props.ground(stage, Material(jitter((0.07, 0.16, 0.03), rng)))
    props.wall(stage, Material((0.015, 0.09, 0.02)), 4.5)
    greens = [Material(jitter(green, rng)) for green in ((0.04, 0.32, 0.05), (0.12, 0.5, 0.06), (0.02, 0.2, 0.06))]
    for index, x in enumerate(props.row(rng, 12, 3.0)):
        props.leaf(stage, x, rng.uniform(1.4, 2.6), rng.uniform(1.0, 2.6), rng.uniform(-35, 35), greens[index % 3])
    for index, x in enumerate((-1.5, -1.15, 1.15, 1.5)):
        props.leaf(stage, x, -0.3, rng.uniform(0.6, 1.1), np.sign(x) * rng.uniform(10, 40), greens[index % 2])
    for x in props.row(rng, 3, 2.4):
        stage.rod((x, 3.4, 0), (x, 3.4, 6), 0.16, props.BARK)
        stage.limb((x + 0.5, 2.9, 6), (x + 0.6, 2.9, rng.uniform(1.6, 2.4)), 0.05, greens[0])
    return Setting((0.30, 0.55, 0.28))


def _snow(stage: Model, rng: Rng) -> Setting:
    props.ground(stage, Material((0.90, 0.92, 0.97)))
    needles = Material(jitter((0.03, 0.16, 0.08), rng))
    for x in (-2.1, 2.1):
        props.fir(stage, x + rng.uniform(-0.5, 0.5), rng.uniform(2.5, 4.5), rng.uniform(2.2, 3.2), needles, snow=True)
    for x in props.row(rng, 3, 4.0):
        props.fir(stage, x, rng.uniform(5, 8), rng.uniform(2.2, 3.2), needles, snow=True)
    for x in props.row(rng, 4, 2.2):
        props.hill(stage, x, rng.uniform(1.2, 2.4), (0.5, 0.4, rng.uniform(0.1, 0.25)), props.SNOW)
    for _ in range(30):
        flake = (rng.uniform(-1.7, 1.7), rng.uniform(-1.5, 1.5), rng.uniform(0, 3))
        stage.ball(flake, 0.035, props.SNOW)
    return Setting((0.50, 0.60, 0.74), 0.85)


def _beach(stage: Model, rng: Rng) -> Setting:
    props.ground(stage, Material((0.78, 0.60, 0.33), texture=props.speckles(rng, (0.8, 0.62, 0.36), 0.05)), 4)
    stage.mesh(sheet(60, 1, props.flat), Material(jitter((0.02, 0.28, 0.52), rng)), _shift(0, 62.5, 0.02))
    stage.box((0, 2.55, 0.0), (60, 0.14, 0.04), props.SNOW)
    if rng.random() < 0.7:
        leaves = Material((0.05, 0.38, 0.06))
        props.palm(stage, _side(rng, 1.2, 1.6), rng.uniform(1.2, 2.2), rng.uniform(1.75, 2.1), leaves)
    else:
        x = _side(rng, 1.0, 1.4)
        stage.rod((x, 1.2, 0), (x, 1.2, 1.7), 0.05, props.SNOW)
        for index, colour in enumerate(("red", "white", "red", "white")):
            radius = 0.9 - 0.22 * index
            stage.cone((x, 1.2, 1.25 + 0.12 * index), radius, 0.12 + radius * 0.35, Material(COLOURS[colour]))
    stage.ball((_side(rng, 1.1, 1.4), -0.6, 0.08), (0.16, 0.14, 0.06), Material((0.9, 0.35, 0.25)))
    return Setting()


def _shift(x: float, y: float, z: float) -> Array:
    matrix = np.eye(4)
    matrix[:3, 3] = (x, y, z)
    return matrix


def _cobblestone(stage: Model, rng: Rng) -> Setting:
    props.ground(stage, Material(texture=props.bricks(rng, 0.06, 0.24, 0.5, (1, 0.97, 0.93))), 2.0)
    for index, x in enumerate((-3.4, -1.1, 1.2, 3.5)):
        tint = jitter(((0.62, 0.36, 0.24), (0.7, 0.6, 0.4), (0.5, 0.42, 0.38))[index % 3], rng)
        high = rng.uniform(1.2, 2.0)
        stage.box((x, 5.4, high), (1.1, 1, high), Material(tint))
        stage.box((x - 0.4, 4.38, 0.6), (0.28, 0.04, 0.6), Material((0.16, 0.08, 0.04)))
        for across in (-0.45, 0.45):
            stage.box((x + across, 4.38, 1.9), (0.22, 0.04, 0.3), Material((0.12, 0.16, 0.22)))
    return Setting((0.52, 0.62, 0.78))


def _pink_fabric(stage: Model, rng: Rng) -> Setting:
    phase = rng.uniform(0, 6, 3)

    def folds(x: Array, y: Array) -> Array:
        away = np.clip((np.hypot(x, y) - 0.7) / 1.2, 0, 1)
        wave = np.sin(3.2 * x + 1.5 * y + phase[0]) + np.sin(2.1 * y - 2.6 * x + phase[1])
        return np.asarray(away * (0.17 * wave) + 0.5 * np.clip(y - 1.6, 0, 3) ** 1.5)

    stage.mesh(sheet(4.2, 56, folds), Material(jitter((0.92, 0.24, 0.42), rng, 0.05)))
    props.ground(stage, Material((0.8, 0.2, 0.36)))
    return Setting((0.75, 0.7, 0.72))


def _wooden_floor(stage: Model, rng: Rng) -> Setting:
    props.ground(stage, Material(texture=props.planks(rng)), 2.0)
    props.wall(stage, Material(jitter((0.82, 0.74, 0.56), rng)), 2.8)
    stage.box((0, 2.66, 0.12), (60, 0.05, 0.14), Material((0.88, 0.86, 0.82)))
    return Setting((0.62, 0.62, 0.62))


def _city(stage: Model, rng: Rng) -> Setting:
    props.ground(stage, Material(jitter((0.22, 0.22, 0.24), rng)))
    for x in props.row(rng, 8, 4.2):
        front = Material(texture=props.windows(rng))
        props.tower_block(stage, x, rng.uniform(5.5, 8.5), rng.uniform(0.42, 0.6), rng.uniform(1.2, 3.0), front)
    return Setting((0.50, 0.66, 0.88))


def _mountain(stage: Model, rng: Rng) -> Setting:
    props.ground(stage, Material(jitter((0.20, 0.36, 0.10), rng)))
    rock = Material(jitter((0.22, 0.23, 0.30), rng))
    for x, away in ((-3.2, 13), (3.4, 14), (_side(rng, 0.4, 1.6), 11)):
        props.mountain(stage, x + rng.uniform(-0.6, 0.6), away, rng.uniform(2.3, 2.9), rock)
    return Setting()


def _blue_house(stage: Model, rng: Rng) -> Setting:
    props.ground(stage, Material(jitter((0.18, 0.42, 0.09), rng)))
    walls = Material(jitter((0.06, 0.20, 0.75), rng, 0.08))
    glass = Material((0.85, 0.88, 0.8))
    x = _side(rng, 0.3, 0.9)
    props.house(stage, x, 5.2, walls, Material((0.30, 0.08, 0.06)), Material((0.85, 0.82, 0.75)), glass)
    return Setting((0.62, 0.72, 0.82))


def _trees(stage: Model, rng: Rng) -> None:
    for away, count in ((2.6, 4), (4.2, 6)):
        for x in props.row(rng, count, away * 0.9):
            needles = Material(jitter((0.03, 0.24, 0.07), rng, 0.35))
            props.fir(stage, x, away + rng.uniform(-0.4, 0.4), rng.uniform(2.6, 3.6), needles)


def _forest(stage: Model, rng: Rng) -> Setting:
    props.ground(stage, Material(texture=props.speckles(rng, (0.10, 0.15, 0.05), 0.2)), 6)
    _trees(stage, rng)
    return Setting((0.55, 0.70, 0.68))


def _purple_rug(stage: Model, rng: Rng) -> Setting:
    setting = _forest(stage, rng)
    props.rug(stage, jitter((0.36, 0.04, 0.55), rng), (0.55, 0.2, 0.75), rng.uniform(1.35, 1.5))
    return setting


def _wheat(stage: Model, rng: Rng) -> Setting:
    props.ground(stage, Material(jitter((0.55, 0.36, 0.10), rng)))
    gold = [Material(jitter(colour, rng)) for colour in ((0.88, 0.58, 0.10), (0.70, 0.42, 0.06))]
    for away in (1.5, 2.2, 3.0, 4.2):
        for index, x in enumerate(props.row(rng, 15, 1.6 + away * 0.45)):
            high = rng.uniform(0.8, 1.1)
            stage.rod((x, away, 0), (x, away, high), 0.03, gold[1])
            stage.ball((x, away, high), (0.075, 0.075, 0.24), gold[index % 2])
    stage.box((0, 15, 0.35), (60, 10, 0.4), gold[0])
    return Setting()


def _autumn(stage: Model, rng: Rng) -> Setting:
    props.ground(stage, Material(jitter((0.30, 0.30, 0.10), rng)))
    x = _side(rng, 0.8, 1.5)
    stage.rod((x, 2.6, 0), (x, 2.6, 1.8), 0.17, props.BARK)
    colours = [Material(colour) for colour in ((0.85, 0.22, 0.02), (0.92, 0.48, 0.02), (0.65, 0.07, 0.03))]
    for index in range(9):
        spot = (x + rng.uniform(-1.0, 1.0), 2.6 + rng.uniform(-0.4, 0.4), rng.uniform(1.5, 2.2))
        stage.ball(spot, rng.uniform(0.36, 0.52), colours[index % 3])
    for index, (left, away) in enumerate(props.spread(rng, 40, 0.8, 2.8)):
        stage.ball((left, away, 0.02), (0.12, 0.09, 0.02), colours[index % 3])
    for index in range(8):
        falling = (rng.uniform(-1.5, 1.5), rng.uniform(0, 2), rng.uniform(0.3, 2.2))
        stage.ball(falling, (0.07, 0.05, 0.07), colours[index % 3])
    return Setting((0.60, 0.72, 0.86))


def _eiffel(stage: Model, rng: Rng) -> Setting:
    props.ground(stage, Material(jitter((0.24, 0.42, 0.12), rng)))
    stage.box((0, 20, -0.02), (1.2, 22, 0.04), Material((0.6, 0.55, 0.45)))
    for x in props.row(rng, 6, 5.5):
        stage.ball((x, 9.5, 0.2), (0.8, 0.5, 0.6), Material((0.06, 0.25, 0.05)))
    props.eiffel_tower(stage, _side(rng, 1.25, 1.8), rng.uniform(8.0, 8.8), rng.uniform(2.5, 2.8))
    return Setting((0.52, 0.70, 0.92))


def _water(stage: Model, rng: Rng) -> Setting:
    v, u = np.mgrid[0:64, 0:64] * (2 * np.pi / 64)
    crest = np.clip(np.sin(2 * v + 0.8 * np.sin(u)) * np.sin(u + 2 * np.sin(v)), 0, 1)[..., None]
    texture = (1 - crest) * np.asarray(jitter((0.02, 0.20, 0.42), rng)) + crest * np.asarray((0.25, 0.62, 0.80))
    props.ground(stage, Material(finish="water", texture=texture.astype(np.float32)), 1.8)
    for radius in (1.15, 1.5, 1.9):
        stage.ring((0, 0, 0.0), radius, 0.03, Material((0.55, 0.8, 0.92)))
    return Setting(sink=0.16)


def _milk(stage: Model, rng: Rng) -> Setting:
    phase = rng.uniform(0, 6, 2)

    def waves(x: Array, y: Array) -> Array:
        radius = np.hypot(x, y)
        ripple = 0.07 * np.sin(8 * radius - 5) * np.exp(-0.8 * np.clip(radius - 1, 0, 9))
        swell = 0.16 * np.sin(1.9 * x + phase[0]) * np.sin(2.3 * y + phase[1]) * np.clip(radius - 1.2, 0, 1)
        return np.asarray(ripple + swell + 0.05)

    milk = Material((0.93, 0.87, 0.70), "glossy")
    stage.mesh(sheet(5.0, 64, waves), milk)
    props.ground(stage, milk)
    for x, y in props.spread(rng, 7, 1.0, 1.4):
        stage.ball((x, y, rng.uniform(0.1, 0.5)), rng.uniform(0.05, 0.1), milk)
    for x in (-1.15, 1.2):
        props.cookie(stage, x, rng.uniform(-0.3, 0.9), 0.12)
    return Setting((0.42, 0.66, 0.95), 0.9, sink=0.34)


def _sunflowers(stage: Model, rng: Rng) -> Setting:
    props.ground(stage, Material(jitter((0.12, 0.46, 0.06), rng)))
    stem, petals, seeds = Material((0.05, 0.28, 0.04)), Material((0.95, 0.65, 0.01)), Material((0.12, 0.05, 0.02))
    places = [(x, 1.6) for x in props.row(rng, 5, 1.9)] + [(x, 2.8) for x in props.row(rng, 6, 2.6)]
    places += [(-1.2, -0.2), (1.2, -0.2), (-1.45, 0.7), (1.45, 0.7)]
    for x, y in places:
        high = rng.uniform(0.35, 0.6) if y < 1 else rng.uniform(1.0, 1.7)
        props.sunflower(stage, x, y, high, stem, petals, seeds)
    return Setting()


def _mirror(stage: Model, rng: Rng) -> Setting:
    props.ground(stage, Material(jitter((0.10, 0.06, 0.05), rng)))
    props.wall(stage, Material(jitter((0.66, 0.60, 0.52), rng)), 4.2)
    stage.box((0, 0, 0.0), (1.6, 1.6, 0.02), Material((0.9, 0.92, 0.95), "mirror"))
    for side in (-1, 1):
        frame = Material((0.75, 0.5, 0.12), "glossy")
        stage.box((side * 1.67, 0, 0.02), (0.09, 1.76, 0.06), frame)
        stage.box((0, side * 1.67, 0.02), (1.76, 0.09, 0.06), frame)
    return Setting((0.70, 0.78, 0.88))


def _crowded_street(stage: Model, rng: Rng) -> Setting:
    props.ground(stage, Material((0.10, 0.10, 0.11)))
    slabs = sheet(3.6, 1, props.flat).tiled(1 / 3)
    stage.mesh(slabs, Material(texture=props.bricks(rng, 0.28, 0.5, 0.6, rows=2)), _shift(0, 0, 0.02))
    for away, count, width in ((1.7, 5, 1.9), (2.9, 7, 2.5)):
        for x in props.row(rng, count, width):
            y, high = away + rng.uniform(-0.2, 0.2), rng.uniform(1.6, 1.95)
            props.person(stage, x, y, high, props.any_colour(rng), props.any_colour(rng))
    for x in props.row(rng, 3, 4.5):
        props.tower_block(stage, x, 7.5, 1.3, rng.uniform(2.2, 3.2), Material(texture=props.windows(rng)))
    return Setting((0.62, 0.68, 0.76))


def _dirt_road(stage: Model, rng: Rng) -> Setting:
    props.ground(stage, Material(jitter((0.20, 0.38, 0.09), rng)))
    stage.box((0, 20, 0), (1.35, 40, 0.02), Material((0.40, 0.23, 0.11)))
    for side in (-1, 1):
        stage.box((side * 0.62, 20, 0.01), (0.14, 40, 0.02), Material((0.25, 0.13, 0.06)))
        for away in (3.0, 5.0, 8.0):
            x = side * (1.9 + 0.2 * away + rng.uniform(-0.1, 0.4))
            stage.ball((x, away, 0.3), (0.5, 0.5, rng.uniform(0.4, 0.8)), Material(jitter((0.06, 0.26, 0.05), rng)))
    for x, y in props.spread(rng, 9, 1.0, 1.6):
        stage.ball((x, y, 0.02), (0.09, 0.08, 0.06), Material((0.3, 0.24, 0.2)))
    return Setting()


def _white_rug(stage: Model, rng: Rng) -> Setting:
    props.ground(stage, Material(jitter((0.20, 0.09, 0.04), rng)))
    props.wall(stage, Material(jitter((0.10, 0.32, 0.34), rng)), 3.0)
    props.rug(stage, (0.90, 0.89, 0.86), (0.75, 0.73, 0.68), rng.uniform(1.35, 1.5))
    return Setting((0.66, 0.66, 0.68))


def _desert(stage: Model, rng: Rng) -> Setting:
    props.ground(stage, Material(jitter((0.80, 0.42, 0.14), rng)))
    for x in props.row(rng, 4, 8):
        y, size = rng.uniform(8, 11), (4, 3, rng.uniform(0.8, 1.4))
        props.hill(stage, x, y, size, Material(jitter((0.76, 0.36, 0.11), rng)))
    x = _side(rng, 1.3, 1.8)
    green = Material((0.06, 0.34, 0.09))
    stage.limb((x, 1.6, 0), (x, 1.6, 1.9), 0.2, green)
    for side, low in ((-1, 0.7), (1, 1.0)):
        stage.limb((x, 1.6, low), (x + side * 0.45, 1.6, low), 0.12, green)
        stage.limb((x + side * 0.45, 1.6, low), (x + side * 0.45, 1.6, low + 0.5), 0.12, green)
    return Setting((0.48, 0.66, 0.86))


def _night(stage: Model, rng: Rng) -> Setting:
    props.ground(stage, Material((0.05, 0.07, 0.14)))
    _stars(stage, rng)
    stage.ball((_side(rng, 2.0, 3.8), 16, rng.uniform(2.7, 3.4)), 0.62, Material((0.95, 0.93, 0.75), "glow"))
    return Setting((0.05, 0.06, 0.17), 0.5)


def _stars(stage: Model, rng: Rng) -> None:
    star = Material((0.9, 0.9, 0.85), "glow")
    for _ in range(22):
        stage.ball((rng.uniform(-6, 6), 20, rng.uniform(0.5, 5)), 0.09, star)


def _white(stage: Model, rng: Rng) -> Setting:
    props.ground(stage, Material((0.90, 0.90, 0.90)))
    return Setting((0.95, 0.95, 0.95), 0.45)


def _moon(stage: Model, rng: Rng) -> Setting:
    props.ground(stage, Material(texture=props.speckles(rng, (0.42, 0.42, 0.44), 0.08)), 6)
    crater, rim = Material((0.16, 0.16, 0.17)), Material((0.55, 0.55, 0.57))
    for x, y in props.spread(rng, 10, 1.3, 3.6):
        radius = rng.uniform(0.2, 0.42)
        stage.ball((x, y, 0), (radius, radius, 0.02), crater)
        stage.ring((x, y, 0), radius, 0.06, rim)
    earth = (_side(rng, 2.2, 3.6), 16, rng.uniform(2.6, 3.2))
    stage.ball(earth, 0.8, Material((0.05, 0.2, 0.75)))
    stage.ball((earth[0] + 0.2, earth[1] - 0.5, earth[2] + 0.2), (0.5, 0.5, 0.4), Material((0.08, 0.5, 0.1)))
    _stars(stage, rng)
    return Setting((0.012, 0.012, 0.018), 1.5)


def _sky(stage: Model, rng: Rng) -> Setting:
    for x, y, z in ((-1.9, 2.0, 2.0), (1.9, 2.5, 0.4), (-1.7, 1.5, -0.3), (1.2, 4.0, 3.0), (0.1, 1.0, -0.55)):
        props.cloud(stage, x + rng.uniform(-0.3, 0.3), y, z + rng.uniform(-0.15, 0.15), rng.uniform(0.55, 0.8), rng)
    return Setting((0.24, 0.50, 0.92))


CONTEXTS: dict[str, Callable[[Model, Rng], Setting]] = {
    "in the jungle": _jungle,
    "in the snow": _snow,
    "on the beach": _beach,
    "on a cobblestone street": _cobblestone,
    "on top of pink fabric": _pink_fabric,
    "on top of a wooden floor": _wooden_floor,
    "with a city in the background": _city,
    "with a mountain in the background": _mountain,
    "with a blue house in the background": _blue_house,
    "on top of a purple rug in a forest": _purple_rug,
    "with a wheat field in the background": _wheat,
    "with a tree and autumn leaves in the background": _autumn,
    "with the Eiffel Tower in the background": _eiffel,
    "floating on top of water": _water,
    "floating in an ocean of milk": _milk,
    "on top of green grass with sunflowers around it": _sunflowers,
    "on top of a mirror": _mirror,
    "on top of the sidewalk in a crowded street": _crowded_street,
    "on top of a dirt road": _dirt_road,
    "on top of a white rug": _white_rug,
    "in the forest": _forest,
    "in the desert": _desert,
    "at night": _night,
    "on a white background": _white,
    "on the moon": _moon,
    "in the sky": _sky,
}
