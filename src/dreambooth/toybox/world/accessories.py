"""Outfits of live figures. Each is put on by the anchors of the figure: head (radius r, facing +x), face and torso."""

from __future__ import annotations

from collections.abc import Callable

from dreambooth.toybox.world.live import Anchors
from dreambooth.toybox.world.shapes import Material, Model, rotate
from dreambooth.toybox.world.vocabulary import COLOURS

SIDES = (-1, 1)
RED = Material(COLOURS["red"])
WHITE = Material((0.9, 0.9, 0.9))
BLACK = Material((0.02, 0.02, 0.02), "glossy")
PINK = Material((0.95, 0.18, 0.45), "glossy")
YELLOW = Material((0.93, 0.72, 0.02))
GOLD = Material((0.9, 0.6, 0.08), "shiny")
BLUE = Material(COLOURS["blue"])
NAVY = Material((0.02, 0.04, 0.2))
PURPLE = Material((0.3, 0.03, 0.5))
LENS = Material((0.75, 0.85, 0.95), "shiny")
RAINBOW = tuple(Material(COLOURS[name]) for name in ("red", "orange", "yellow", "green", "blue", "purple"))


def dress(model: Model, anchors: Anchors, outfit: str) -> None:
    """Put an outfit of `vocabulary.OUTFITS` on."""
    WARDROBE[outfit](model, anchors)


def _top(anchors: Anchors, lift: float = 0.0) -> tuple[float, float, float]:
    """The point of the head a hat sits on."""
    x, y, z = anchors.head
    return x - 0.05 * anchors.radius, y, z + anchors.radius * (anchors.face.crown - 0.2 + lift)


def _hat(model: Model, anchors: Anchors, profile: list[tuple[float, float]], material: Material) -> None:
    """A turned hat; the profile is in head radii."""
    model.lathe([(x * anchors.radius, z * anchors.radius) for x, z in profile], material, _top(anchors))


def _coat(model: Model, anchors: Anchors, material: Material, grow: float = 1.09) -> None:
    """Cover the torso, and collar the neck."""
    radii = [part * grow + 0.015 for part in anchors.girth]
    model.ball(anchors.torso, radii, material)
    x, y, z = anchors.head
    model.ball((x - 0.3 * anchors.radius, y, z - 0.72 * anchors.radius), 0.72 * anchors.radius, material)


def _front(anchors: Anchors, across: float, up: float, grow: float = 1.12) -> tuple[float, float, float]:
    """A point of the coat's front; `across` and `up` in torso half axes."""
    x, y, z = anchors.torso
    deep, wide, high = anchors.girth
    reach = max(1 - across**2 - up**2, 0.05) ** 0.5
    return x + deep * grow * reach, y + wide * grow * across, z + high * grow * up


def _red_hat(model: Model, anchors: Anchors) -> None:
    brim = [(0.01, 0), (1.25, 0.0), (1.25, 0.1), (0.85, 0.14), (0.8, 0.6), (0.55, 0.85), (0.01, 0.92)]
    _hat(model, anchors, brim, RED)


def _santa_hat(model: Model, anchors: Anchors) -> None:
    radius = anchors.radius
    x, y, z = _top(anchors)
    _hat(model, anchors, [(0.85, 0.1), (0.8, 0.45), (0.45, 1.0), (0.01, 1.3)], RED)
    model.ring((x, y, z + radius * 0.12), radius * 0.82, radius * 0.2, WHITE)
    model.limb((x, y, z + radius * 1.15), (x - radius * 0.2, y + radius * 0.75, z + radius * 1.0), radius * 0.18, RED)
    model.ball((x - radius * 0.2, y + radius * 0.95, z + radius * 0.85), radius * 0.27, WHITE)


def _scarf(model: Model, anchors: Anchors, materials: tuple[Material, ...]) -> None:
    radius = anchors.radius
    x, y, z = anchors.head
    tube = radius * (0.2 if len(materials) == 1 else 0.12)
    count = 2 if len(materials) == 1 else len(materials)
    for index in range(count):
        level = z - radius * (0.72 + 0.4 * index / count)
        model.ring((x - radius * 0.1, y, level), radius * 0.78, tube, materials[index % len(materials)])
    for index in range(6):
        step = z - radius * (1.0 + 0.2 * index)
        spot = (x + radius * 0.72, y + radius * 0.3, step)
        model.box(spot, (radius * 0.1, radius * 0.22, radius * 0.12), materials[index % len(materials)])


def _rainbow_scarf(model: Model, anchors: Anchors) -> None:
    _scarf(model, anchors, RAINBOW)


def _blue_scarf(model: Model, anchors: Anchors) -> None:
    _scarf(model, anchors, (BLUE,))


def _top_hat_and_monocle(model: Model, anchors: Anchors) -> None:
    hat = [(0.01, 0), (1.15, 0), (1.15, 0.1), (0.75, 0.12), (0.75, 0.12), (0.8, 1.25), (0.8, 1.25), (0.01, 1.25)]
    _hat(model, anchors, hat, BLACK)
    x, y, z = (value * anchors.radius for value in anchors.face.eye)
    size = anchors.radius * min(anchors.face.eye_size, 0.27)
    centre = (anchors.head[0] + x + size * 1.3, anchors.head[1] + y, anchors.head[2] + z)
    model.ring(centre, size * 1.45, size * 0.35, GOLD, "x")
    low = (centre[0] - size, centre[1] + size * 1.2, centre[2] - anchors.radius * 0.95)
    model.rod((centre[0], centre[1] + size * 1.4, centre[2] - size * 0.4), low, size * 0.22, GOLD)


def _glasses(model: Model, anchors: Anchors) -> None:
    x, y, z = (value * anchors.radius for value in anchors.face.eye)
    size = anchors.radius * min(max(anchors.face.eye_size, 0.24), 0.28)
    front = anchors.head[0] + x + size * 1.25
    level = anchors.head[2] + z
    for side in SIDES:
        across = anchors.head[1] + side * y
        ear = (anchors.head[0], side * anchors.radius * 1.1, level)
        model.ring((front, across, level), size * 1.5, size * 0.48, PINK, "x")
        model.rod((front, across + side * size * 1.5, level), ear, size * 0.3, PINK)
    model.rod((front, -y * 0.35, level), (front, y * 0.35, level), size * 0.4, PINK)


def _yellow_shirt(model: Model, anchors: Anchors) -> None:
    _coat(model, anchors, YELLOW)


def _chef(model: Model, anchors: Anchors) -> None:
    _coat(model, anchors, WHITE)
    for up in (0.45, 0.1, -0.25):
        for across in (-0.2, 0.2):
            model.ball(_front(anchors, across, up), 0.05, BLACK)
    toque = [(0.8, 0), (0.8, 0.65), (0.8, 0.65), (1.1, 0.85), (1.15, 1.15), (0.8, 1.4), (0.01, 1.45)]
    _hat(model, anchors, toque, WHITE)


def _firefighter(model: Model, anchors: Anchors) -> None:
    _coat(model, anchors, Material((0.12, 0.1, 0.07)))
    x, y, z = anchors.torso
    for level in (0.35, -0.3):
        widths = [part * 1.14 + 0.02 for part in anchors.girth]
        widths[2] *= 0.16
        model.ball((x, y, z + level * anchors.girth[2]), widths, YELLOW)
    _hat(model, anchors, [(0.01, 0), (1.4, -0.05), (1.4, 0.1), (0.9, 0.2), (0.85, 0.6), (0.5, 0.95), (0.01, 1.02)], RED)
    top = _top(anchors)
    radius = anchors.radius
    model.box((top[0] + radius * 0.9, top[1], top[2] + radius * 0.5), (0.05, radius * 0.3, radius * 0.3), YELLOW)
    model.box((top[0], top[1], top[2] + radius * 0.9), (radius * 0.7, 0.04, radius * 0.2), YELLOW)


def _police(model: Model, anchors: Anchors) -> None:
    _coat(model, anchors, NAVY)
    model.ball(_front(anchors, 0.4, 0.45), 0.11, GOLD)
    for up in (0.3, -0.1):
        model.ball(_front(anchors, 0.0, up), 0.05, GOLD)
    _hat(model, anchors, [(0.85, 0.05), (0.85, 0.4), (1.2, 0.6), (1.15, 0.8), (0.01, 0.88)], NAVY)
    top = _top(anchors)
    radius = anchors.radius
    model.ball((top[0] + radius * 0.75, top[1], top[2] + radius * 0.16), (radius * 0.6, radius * 0.75, 0.05), BLACK)
    model.ball((top[0] + radius * 0.98, top[1], top[2] + radius * 0.5), radius * 0.22, GOLD)


def _wizard(model: Model, anchors: Anchors) -> None:
    _coat(model, anchors, PURPLE, 1.12)
    hat = [(0.01, 0), (1.35, 0), (1.35, 0.08), (0.82, 0.14), (0.5, 0.95), (0.01, 1.9)]
    _hat(model, anchors, hat, PURPLE)
    x, y, z = _top(anchors)
    radius = anchors.radius
    for across, up in ((0.3, 0.45), (-0.25, 0.75), (0.05, 1.2)):
        reach = 0.8 * (1 - up / 2)
        model.ball((x + radius * reach, y + radius * across, z + radius * up), radius * 0.14, YELLOW)
    for across, up in ((0.45, 0.3), (-0.4, 0.1), (0.1, -0.25)):
        model.ball(_front(anchors, across, up, 1.15), 0.07, YELLOW)


def _crown(model: Model, anchors: Anchors) -> None:
    x, y, z = _top(anchors)
    radius = anchors.radius
    _hat(model, anchors, [(0.75, 0), (0.82, 0.05), (0.85, 0.45), (0.75, 0.45), (0.7, 0.1)], GOLD)
    for index in range(6):
        turn = rotate("z", 60 * index)
        point = turn[:3, :3] @ (radius * 0.8, 0, 0)
        base = (x + point[0], y + point[1], z + radius * 0.4)
        model.cone(base, radius * 0.22, radius * 0.45, GOLD)
        model.ball((base[0] + point[0] * 0.1, base[1] + point[1] * 0.1, base[2] - radius * 0.15), radius * 0.1, RED)


def _party_hat(model: Model, anchors: Anchors) -> None:
    x, y, z = _top(anchors)
    radius = anchors.radius
    _hat(model, anchors, [(0.6, 0.05), (0.4, 0.55)], YELLOW)
    _hat(model, anchors, [(0.4, 0.55), (0.2, 1.05)], PINK)
    _hat(model, anchors, [(0.2, 1.05), (0.01, 1.5)], YELLOW)
    model.ball((x, y, z + radius * 1.5), radius * 0.22, PINK)


WARDROBE: dict[str, Callable[[Model, Anchors], None]] = {
    "wearing a red hat": _red_hat,
    "wearing a santa hat": _santa_hat,
    "wearing a rainbow scarf": _rainbow_scarf,
    "wearing a black top hat and a monocle": _top_hat_and_monocle,
    "in a chef outfit": _chef,
    "in a firefighter outfit": _firefighter,
    "in a police outfit": _police,
    "wearing pink glasses": _glasses,
    "wearing a yellow shirt": _yellow_shirt,
    "in a purple wizard outfit": _wizard,
    "wearing a crown": _crown,
    "wearing a party hat": _party_hat,
    "wearing a blue scarf": _blue_scarf,
}
