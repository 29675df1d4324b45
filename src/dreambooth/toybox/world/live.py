"""Builders of the live classes: a body and a head each, so that a hybrid is one's body under another's head.

They face +x, stand on z = 0 and are about 1.6 high. A head is built about the origin with radius 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from dreambooth.toybox.world.shapes import Array, Material, Model, rotate, scale, translate
from dreambooth.toybox.world.subjects import Paint, Subject

Point = tuple[float, float, float]
SIDES = (-1, 1)
TONGUE = Material((0.75, 0.06, 0.08))
TEAR = Material((0.15, 0.45, 0.95), "shiny")
BROW = Material((0.015, 0.015, 0.015))


@dataclass(frozen=True)
class Face:
    """Where a head of radius 1 carries its eyes (one side; y is mirrored), mouth and hats."""

    eye: Point
    mouth: Point
    eye_size: float = 0.24
    crown: float = 0.85


@dataclass(frozen=True)
class Anchors:
    """What outfits hold on to, in the figure's frame: the head, its face and the torso's ellipsoid."""

    head: Point
    radius: float
    face: Face
    torso: Point
    girth: Point


@dataclass(frozen=True)
class Body:
    """Where the head goes, how large it is, and the torso's ellipsoid."""

    head: Point
    radius: float
    torso: Point
    girth: Point


def build_live(model: Model, subject: Subject, coat: Paint, hybrid: str | None, expression: str | None) -> Anchors:
    """A live figure; a hybrid has the head of the other class."""
    body = _cube_body(model, coat) if model.blocky else BODIES[subject.cls](model, coat, subject.numbers)
    head = Model(blocky=model.blocky)
    head_cls = hybrid or subject.cls
    face = HEADS[head_cls](head, coat, subject.numbers)
    EXPRESSIONS[expression](head, face, coat)
    model.extend(head, translate(body.head) @ scale(body.radius))
    return Anchors(body.head, body.radius, face, body.torso, body.girth)


# Bodies ---------------------------------------------------------------------------------------------------------------


def _quadruped(model: Model, coat: Paint, length: float, leg: float, girth: float, thick: float) -> Body:
    height = leg + girth * 0.75
    model.ball((0, 0, height), (length, girth, girth), coat.main)
    for x in (-length * 0.55, length * 0.6):
        for side in SIDES:
            model.limb((x, side * girth * 0.55, height), (x, side * girth * 0.6, thick), thick, coat.limbs)
    return Body((length * 0.95, 0, height + girth * 1.05), 0.42, (0, 0, height), (length, girth, girth))


def _sitting(model: Model, coat: Paint, width: float, height: float) -> Body:
    model.ball((0, 0, height), (width * 0.9, width, height), coat.main)
    for side in SIDES:
        shoulder, paw = (0.15, side * width * 0.8, height * 1.35), (0.5, side * width * 0.75, height * 0.9)
        model.limb(shoulder, paw, 0.13, coat.limbs)
        model.ball((0.42, side * width * 0.65, 0.15), (0.32, 0.2, 0.17), coat.limbs)
    return Body((0.12, 0, height * 2 + 0.22), 0.44, (0, 0, height), (width * 0.9, width, height))


def _cube_body(model: Model, coat: Paint) -> Body:
    """What every live class has when it is cube shaped: a cube on short feet, its face on the front."""
    model.box((0, 0, 0.72), 0.62, coat.main)
    for side in SIDES:
        for x in (-0.4, 0.4):
            model.box((x, side * 0.4, 0.06), (0.16, 0.16, 0.08), coat.limbs)
    return Body((0.26, 0, 0.8), 0.6, (0, 0, 0.72), (0.62, 0.62, 0.62))


def _dog_body(model: Model, coat: Paint, numbers: tuple[float, ...]) -> Body:
    body = _quadruped(model, coat, 0.55 + 0.15 * numbers[0], 0.36 + 0.14 * numbers[1], 0.33, 0.12)
    back = -body.girth[0]
    model.limb((back + 0.05, 0, body.torso[2] + 0.1), (back - 0.22, 0, body.torso[2] + 0.5), 0.085, coat.limbs)
    return body


def _cat_body(model: Model, coat: Paint, numbers: tuple[float, ...]) -> Body:
    width = 0.34 + 0.06 * numbers[0]
    model.ball((-0.08, 0, 0.42), (0.42, width, 0.46), coat.main, rotate("y", -20))
    for side in SIDES:
        model.limb((0.28, side * 0.16, 0.55), (0.34, side * 0.17, 0.1), 0.11, coat.limbs)
        model.ball((0.02, side * width, 0.17), (0.32, 0.14, 0.18), coat.limbs)
    points = [(-0.4, 0, 0.12), (-0.72, 0, 0.22), (-0.82, 0, 0.6), (-0.66, 0, 0.95 + 0.2 * numbers[1])]
    for start, end in pairwise(points):
        model.limb(start, end, 0.085, coat.limbs)
    return Body((0.26, 0, 1.08), 0.44, (-0.05, 0, 0.45), (0.42, width * 1.02, 0.48))


def _duck_body(model: Model, coat: Paint, numbers: tuple[float, ...]) -> Body:
    length = 0.58 + 0.12 * numbers[0]
    model.ball((0, 0, 0.46), (length, 0.46, 0.44), coat.main)
    model.ball((-length, 0, 0.66), (0.28, 0.2, 0.11), coat.limbs, rotate("y", 35))
    for side in SIDES:
        model.ball((-0.08, side * 0.43, 0.52), (0.36, 0.1, 0.22), coat.limbs)
        model.ball((0.12, side * 0.2, 0.04), (0.22, 0.13, 0.05), coat.accent)
    return Body((0.38, 0, 1.05), 0.42, (0, 0, 0.46), (length, 0.46, 0.44))


def _bear_body(model: Model, coat: Paint, numbers: tuple[float, ...]) -> Body:
    body = _sitting(model, coat, 0.46 + 0.1 * numbers[0], 0.48)
    model.ball((body.girth[0] * 0.62, 0, 0.45), (0.2, 0.28, 0.32), coat.accent)
    return body


def _rabbit_body(model: Model, coat: Paint, numbers: tuple[float, ...]) -> Body:
    body = _sitting(model, coat, 0.36 + 0.06 * numbers[0], 0.38)
    model.ball((-0.38, 0, 0.2), 0.16, coat.accent)
    return body


def _elephant_body(model: Model, coat: Paint, numbers: tuple[float, ...]) -> Body:
    body = _quadruped(model, coat, 0.66 + 0.1 * numbers[0], 0.32, 0.5, 0.19)
    model.limb((-body.girth[0], 0, body.torso[2] + 0.1), (-body.girth[0] - 0.1, 0, 0.45), 0.05, coat.limbs)
    x, y, z = body.head
    return Body((x - 0.02, y, z - 0.16), 0.46, body.torso, body.girth)


def _pig_body(model: Model, coat: Paint, numbers: tuple[float, ...]) -> Body:
    body = _quadruped(model, coat, 0.62 + 0.08 * numbers[0], 0.18, 0.46, 0.13)
    model.ring((-body.girth[0] - 0.08, 0, body.torso[2] + 0.15), 0.11, 0.045, coat.limbs, "y")
    x, y, z = body.head
    return Body((x - 0.08, y, z - 0.2), 0.42, body.torso, body.girth)


def _frog_body(model: Model, coat: Paint, numbers: tuple[float, ...]) -> Body:
    width = 0.5 + 0.08 * numbers[0]
    model.ball((-0.1, 0, 0.36), (0.56, width, 0.36), coat.main)
    model.ball((0.2, 0, 0.32), (0.3, width * 0.7, 0.27), coat.accent)
    for side in SIDES:
        model.ball((-0.2, side * width, 0.25), (0.4, 0.17, 0.26), coat.limbs, rotate("y", 20))
        model.ball((0.12, side * (width + 0.1), 0.05), (0.3, 0.18, 0.06), coat.limbs)
        model.limb((0.32, side * 0.34, 0.35), (0.42, side * 0.4, 0.07), 0.08, coat.limbs)
    return Body((0.22, 0, 0.86), 0.46, (-0.1, 0, 0.36), (0.56, width, 0.38))


# Heads, radius 1 ------------------------------------------------------------------------------------------------------


def _dog_head(model: Model, coat: Paint, numbers: tuple[float, ...]) -> Face:
    muzzle = 0.5 + 0.25 * numbers[2]
    model.ball((0, 0, 0), 1, coat.head)
    model.ball((0.9, 0, -0.3), (muzzle, 0.46, 0.4), coat.accent)
    model.ball((0.9 + muzzle, 0, -0.16), (0.2, 0.24, 0.18), coat.dark)
    for side in SIDES:
        model.ball((-0.1, side * 1.02, -0.15), (0.34, 0.2, 0.6 + 0.3 * numbers[3]), coat.limbs, rotate("x", side * 12))
    return Face((0.82, 0.4, 0.3), (0.98 + muzzle * 0.6, 0, -0.55))


def _cat_head(model: Model, coat: Paint, numbers: tuple[float, ...]) -> Face:
    model.ball((0, 0, 0), (0.95, 1.08, 0.92), coat.head)
    for side in SIDES:
        model.ball((0.85, side * 0.18, -0.32), (0.22, 0.25, 0.2), coat.accent)
        model.cone((0, side * 0.62, 0.55), 0.4, 0.75 + 0.35 * numbers[3], coat.limbs, rotate("x", -side * 12))
        for lift in (-0.12, 0.08):
            model.rod((0.95, side * 0.3, -0.3), (0.8, side * 1.35, -0.3 + lift * 3), 0.035, coat.dark)
    model.ball((1.05, 0, -0.16), (0.1, 0.14, 0.1), coat.dark)
    return Face((0.78, 0.42, 0.2), (1.02, 0, -0.62))


def _duck_head(model: Model, coat: Paint, numbers: tuple[float, ...]) -> Face:
    model.ball((0, 0, 0), 1, coat.head)
    model.ball((1.15, 0, -0.2), (0.62 + 0.2 * numbers[2], 0.52, 0.17), coat.accent, rotate("y", 8))
    model.ball((1.0, 0, -0.38), (0.5, 0.42, 0.12), coat.accent, rotate("y", 14))
    return Face((0.78, 0.5, 0.32), (0.95, 0, -0.62))


def _bear_head(model: Model, coat: Paint, numbers: tuple[float, ...]) -> Face:
    model.ball((0, 0, 0), (0.98, 1.1, 0.95), coat.head)
    ear = 0.36 + 0.1 * numbers[3]
    for side in SIDES:
        model.ball((-0.05, side * 0.82, 0.78), (0.22, ear, ear), coat.limbs)
        model.ball((0.12, side * 0.82, 0.78), (0.12, ear * 0.6, ear * 0.6), coat.accent)
    model.ball((0.82, 0, -0.3), (0.38, 0.45, 0.36), coat.accent)
    model.ball((1.18, 0, -0.16), (0.14, 0.2, 0.14), coat.dark)
    return Face((0.83, 0.4, 0.25), (1.14, 0, -0.55), 0.2)


def _rabbit_head(model: Model, coat: Paint, numbers: tuple[float, ...]) -> Face:
    model.ball((0, 0, 0), (0.95, 0.98, 0.92), coat.head)
    length = 0.85 + 0.3 * numbers[3]
    for side in SIDES:
        turn = rotate("x", -side * (8 + 14 * numbers[2]))
        model.ball((-0.1, side * 0.5, 0.75 + length * 0.8), (0.17, 0.27, length), coat.limbs, turn)
        model.ball((0.04, side * 0.5, 0.75 + length * 0.8), (0.1, 0.15, length * 0.75), coat.accent, turn)
        model.ball((0.85, side * 0.2, -0.3), (0.22, 0.26, 0.22), coat.accent)
        model.box((1.05, side * 0.09, -0.62), (0.04, 0.075, 0.13), coat.light)
    model.ball((1.06, 0, -0.13), (0.1, 0.13, 0.09), coat.dark)
    return Face((0.78, 0.42, 0.25), (0.98, 0, -0.7))


def _elephant_head(model: Model, coat: Paint, numbers: tuple[float, ...]) -> Face:
    model.ball((0, 0, 0), (0.92, 0.95, 0.98), coat.head)
    for side in SIDES:
        ear = (0.12, 0.72 + 0.15 * numbers[3], 0.85)
        model.ball((-0.15, side * 1.3, 0.1), ear, coat.limbs, rotate("z", -side * 18))
        model.limb((0.8, side * 0.38, -0.45), (1.25, side * 0.46, -0.62), 0.085, coat.light)
    points = [(0.8, 0, -0.1), (1.25, 0, -0.35), (1.4, 0, -0.95), (1.5, 0, -1.4), (1.78 + 0.2 * numbers[2], 0, -1.62)]
    for index, (start, end) in enumerate(pairwise(points)):
        model.limb(start, end, 0.3 - 0.045 * index, coat.head)
    return Face((0.78, 0.44, 0.3), (1.62, 0, -0.72), 0.2)


def _pig_head(model: Model, coat: Paint, numbers: tuple[float, ...]) -> Face:
    model.ball((0, 0, 0), (0.98, 1.08, 1), coat.head)
    model.rod((0.75, 0, -0.15), (1.25 + 0.15 * numbers[2], 0, -0.15), 0.42, coat.accent)
    for side in SIDES:
        model.ball((1.26 + 0.15 * numbers[2], side * 0.17, -0.15), (0.05, 0.09, 0.15), coat.dark)
        model.cone((0.25, side * 0.65, 0.6), 0.38, 0.75, coat.limbs, rotate("y", 35) @ rotate("x", -side * 25))
    return Face((0.84, 0.45, 0.38), (1.06, 0, -0.7), 0.2)


def _frog_head(model: Model, coat: Paint, numbers: tuple[float, ...]) -> Face:
    model.ball((0, 0, 0), (0.92, 1.2, 0.72), coat.head)
    for side in SIDES:
        model.ball((0.25, side * 0.62, 0.62), 0.42, coat.head)
    _arc(model, coat.dark, (0.86, 0, -0.12), 0.72, -0.22, 0.055, 0.45)
    return Face((0.5, 0.62, 0.7), (0.98, 0, -0.32), 0.34 + 0.04 * numbers[3], 0.62)


# Expressions: drawn over the face, larger than life -------------------------------------------------------------------


def _arc(
    model: Model, material: Material, middle: Point, half: float, sag: float, radius: float, bend: float = 0.0
) -> None:
    """A bent line across the face; `sag` < 0 curves up at the ends (a smile), `bend` takes the ends back."""
    steps = np.linspace(-1, 1, 7)
    points = [(middle[0] - bend * s * s, middle[1] + half * s, middle[2] + sag * (1 - s * s)) for s in steps]
    for start, end in pairwise(points):
        model.limb(start, end, radius, material)


def _eyes(model: Model, face: Face, coat: Paint, size: float = 1.0, pupil: float = 0.62) -> None:
    x, y, z = face.eye
    radius = face.eye_size * size
    for side in SIDES:
        model.ball((x, side * y, z), radius, coat.light)
        gaze = radius * (1.02 - 0.45 * pupil)
        model.ball((x + gaze, side * y * 0.97, z), radius * pupil, coat.dark)


def _brows(model: Model, face: Face, slant: float) -> None:
    """`slant` > 0: the inner ends are low (anger)."""
    x, y, z = face.eye
    front = x + face.eye_size * 0.9
    for side in SIDES:
        inner = (front + 0.1, side * (y - 0.26), z + face.eye_size * 1.25 - slant)
        outer = (front - 0.12, side * (y + 0.3), z + face.eye_size * 1.25 + slant)
        model.limb(inner, outer, 0.085, BROW)


def _plain(model: Model, face: Face, coat: Paint) -> None:
    _eyes(model, face, coat)


def _sad(model: Model, face: Face, coat: Paint) -> None:
    _eyes(model, face, coat)
    _brows(model, face, -0.17)
    x, y, z = face.mouth
    _arc(model, BROW, (x + 0.06, y, z - 0.1), 0.34, 0.24, 0.075)
    for side in SIDES:
        spot = (face.eye[0] + face.eye_size + 0.04, side * (face.eye[1] + 0.12), face.eye[2] - 0.45)
        model.ball(spot, (0.13, 0.14, 0.24), TEAR)


def _angry(model: Model, face: Face, coat: Paint) -> None:
    _eyes(model, face, coat)
    _brows(model, face, 0.2)
    x, y, z = face.mouth
    model.box((x, y, z), (0.1, 0.36, 0.14), BROW)
    model.box((x + 0.06, y, z), (0.08, 0.3, 0.075), coat.light)


def _joyous(model: Model, face: Face, coat: Paint) -> None:
    x, y, z = face.eye
    for side in SIDES:
        _arc(model, BROW, (x + face.eye_size * 0.9, side * y, z - 0.06), 0.22, 0.22, 0.07)
        cheek = (x - 0.02, side * (y + 0.28), z - 0.45)
        model.ball(cheek, (0.16, 0.17, 0.15), TONGUE)
    x, y, z = face.mouth
    _arc(model, BROW, (x + 0.02, y, z + 0.22), 0.48, -0.3, 0.08, 0.12)
    model.ball((x + 0.02, y, z + 0.04), (0.12, 0.28, 0.14), TONGUE)


def _sleeping(model: Model, face: Face, coat: Paint) -> None:
    x, y, z = face.eye
    for side in SIDES:
        model.ball((x, side * y, z), face.eye_size, coat.limbs)
        _arc(model, BROW, (x + face.eye_size * 0.95, side * y, z + 0.04), 0.25, -0.14, 0.07)


def _screaming(model: Model, face: Face, coat: Paint) -> None:
    _eyes(model, face, coat, 1.25, 0.4)
    x, y, z = face.mouth
    model.ball((x - 0.06, y, z - 0.1), (0.2, 0.4, 0.5), BROW)
    model.ball((x + 0.1, y, z - 0.28), (0.12, 0.24, 0.22), TONGUE)


Numbers = tuple[float, ...]
BODIES: dict[str, Callable[[Model, Paint, Numbers], Body]] = {
    "dog": _dog_body,
    "cat": _cat_body,
    "duck": _duck_body,
    "bear": _bear_body,
    "rabbit": _rabbit_body,
    "elephant": _elephant_body,
    "pig": _pig_body,
    "frog": _frog_body,
}
HEADS: dict[str, Callable[[Model, Paint, Numbers], Face]] = {
    "dog": _dog_head,
    "cat": _cat_head,
    "duck": _duck_head,
    "bear": _bear_head,
    "rabbit": _rabbit_head,
    "elephant": _elephant_head,
    "pig": _pig_head,
    "frog": _frog_head,
}
EXPRESSIONS: dict[str | None, Callable[[Model, Face, Paint], None]] = {
    None: _plain,
    "sad": _sad,
    "angry": _angry,
    "joyous": _joyous,
    "sleeping": _sleeping,
    "screaming": _screaming,
}


def placed(anchors: Anchors, matrix: Array) -> Anchors:
    """The anchors under a shift and a scaling along the axes (no turn)."""
    factors = np.diag(matrix)[:3]

    def move(point: Point) -> Point:
        x, y, z = (matrix @ np.array([*point, 1.0]))[:3].tolist()
        return x, y, z

    deep, wide, high = (factors * anchors.girth).tolist()
    radius = anchors.radius * float(np.prod(factors)) ** (1 / 3)
    return Anchors(move(anchors.head), radius, anchors.face, move(anchors.torso), (deep, wide, high))
