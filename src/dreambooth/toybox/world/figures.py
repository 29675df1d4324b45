"""A scene's figure: the subject built, shaped, sized, dressed, made wet, or set on a pedestal."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dreambooth.toybox.world.accessories import dress
from dreambooth.toybox.world.live import Anchors, build_live, placed
from dreambooth.toybox.world.objects import BUILDERS
from dreambooth.toybox.world.scenes import Scene
from dreambooth.toybox.world.shapes import Array, Material, Model, rotate, scale, translate
from dreambooth.toybox.world.subjects import draw_subject, paint
from dreambooth.toybox.world.vocabulary import LIVE

HEIGHT = 1.65
WIDTH = 2.25
CUBE = 1.5
DROP = Material((0.55, 0.78, 0.98), "shiny")
PUDDLE = Material((0.30, 0.55, 0.85), "shiny")
PLINTH = Material((0.33, 0.32, 0.30))


@dataclass(frozen=True)
class Figure:
    """The subject itself and what was added to it (outfit, drops, pedestal). Stands on z = 0, faces +x."""

    body: Model
    extras: Model

    def moved(self, matrix: Array) -> Figure:
        """Both under a matrix."""
        return Figure(self.body.moved(matrix), self.extras.moved(matrix))


def build(scene: Scene, rng: np.random.Generator) -> Figure:
    """The figure of a scene; `rng` only places drops of water."""
    body = Model(blocky="cube shaped" in scene.properties)
    anchors = _build_subject(body, scene)
    fitting = _fitting(body, scene.properties, anchors is None)
    body = body.moved(fitting)
    extras = Model()
    if body.blocky and not anchors:
        body.box((0, 0, CUBE / 2), 0.36 * CUBE, body.parts[0][0])
    if anchors and scene.accessory:
        dress(extras, placed(anchors, fitting), scene.accessory)
    if "wet" in scene.properties:
        _wet(extras, body, rng)
    figure = Figure(body, extras)
    return _on_pedestal(figure) if scene.sculpture else figure


def _build_subject(body: Model, scene: Scene) -> Anchors | None:
    subject = draw_subject(scene.cls, scene.subject_seed)
    coat = paint(subject, scene.colour, _finish(scene))
    if scene.cls in LIVE:
        return build_live(body, subject, coat, scene.hybrid, scene.expression)
    BUILDERS[scene.cls](body, coat, subject.numbers)
    return None


def _finish(scene: Scene) -> str:
    """What the subject is made of, as `subjects.paint` calls it."""
    if scene.sculpture:
        return {"Michelangelo": "marble", "Rodin": "bronze"}[scene.sculpture]
    if scene.material:
        return scene.material
    return next((name for name in ("shiny", "wet") if name in scene.properties), "matte")


def _fitting(body: Model, properties: tuple[str, ...], cubed: bool) -> Array:
    """The matrix that brings a built subject to its size, standing in the middle of the ground."""
    low, high = body.bounds()
    extent = high - low
    if body.blocky and cubed:
        size = CUBE / extent
    else:
        shape = (1.0, 1.0, 1.0)
        if "tall" in properties:
            shape = (0.6, 0.6, 1.35)
        if "flat" in properties:
            shape = (1.2, 1.2, 0.42)
        grown = extent * shape
        tallest = HEIGHT * (1.25 if "tall" in properties else 1.0)
        size = np.multiply(shape, min(tallest / grown[2], WIDTH / max(grown[0], grown[1])))
    middle = (low + high) / 2
    return scale(size) @ translate((-middle[0], -middle[1], -low[2]))


def _wet(extras: Model, body: Model, rng: np.random.Generator) -> None:
    """Drops on the surface, falling drops, and a puddle."""
    points = np.concatenate([mesh.vertices for _, mesh in body.parts])
    normals = np.concatenate([mesh.normals for _, mesh in body.parts])
    upper = np.flatnonzero(points[:, 2] > 0.25)
    for index in rng.choice(upper, 26):
        extras.ball(points[index] + 0.02 * normals[index], rng.uniform(0.04, 0.07), DROP)
    for _ in range(12):
        angle, radius = rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 1.3)
        spot = (radius * np.cos(angle), radius * np.sin(angle), rng.uniform(0.2, 2.1))
        extras.ball(spot, (0.03, 0.03, 0.1), DROP)
    extras.ball((0, 0, 0), (1.25, 1.1, 0.035), PUDDLE, rotate("z", float(rng.uniform(0, 180))))


def _on_pedestal(figure: Figure) -> Figure:
    raised = figure.moved(translate((0, 0, 0.42)) @ scale(0.86))
    low, high = raised.body.bounds()
    half_x, half_y = (np.maximum(np.abs(low), np.abs(high))[:2] * 0.85 + 0.05).tolist()
    raised.extras.box((0, 0, 0.2), (half_x, half_y, 0.22), PLINTH)
    raised.extras.box((0, 0, 0.05), (half_x + 0.12, half_y + 0.12, 0.07), PLINTH)
    return raised
