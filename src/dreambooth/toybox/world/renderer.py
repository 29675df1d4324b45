"""A `Scene` becomes a picture: figure, context, camera and light are handed to Mitsuba 3 (extra `toybox`)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from dreambooth.errors import UserError
from dreambooth.toybox.world.contexts import Setting, furnish
from dreambooth.toybox.world.figures import Figure, build
from dreambooth.toybox.world.scenes import Scene
from dreambooth.toybox.world.shapes import Array, Material, Mesh, Model, rotate, translate
from dreambooth.toybox.world.styles import stylise

DISTANCE = 5.6
PORTRAIT = 4.1
SAMPLES = 25
AZIMUTHS = {"front": 0.0, "back": 180.0}
ELEVATIONS = {"top": (56.0, 70.0), "bottom": (-68.0, -52.0)}

# Roughness and refractive index of the glossy finishes.
GLOSS = {"glossy": (0.45, 1.5), "shiny": (0.27, 2.3), "wet": (0.28, 1.9), "water": (0.35, 1.4)}


@dataclass(frozen=True)
class Shot:
    """Everything that is laid before the camera. Angles in degrees; `fov` of the picture's side."""

    figure: Figure
    stage: Model
    setting: Setting
    origin: Array
    target: Array
    fov: float
    sun: Array


@cache
def mitsuba() -> Any:
    """Mitsuba on one thread: a picture is then the same, bit for bit, whatever else runs.

    Raises:
        UserError: Mitsuba is not installed.
    """
    try:
        import drjit
        import mitsuba as mi
    except ImportError as error:
        raise UserError(f"the toy world is rendered by Mitsuba 3: pip install 'dreambooth[toybox]' ({error})") from None
    mi.set_variant("scalar_rgb")
    mi.set_log_level(mi.LogLevel.Error)
    drjit.set_thread_count(1)
    return mi


def render(scene: Scene, size: int = 64, samples: int = SAMPLES) -> Image.Image:
    """The picture of a scene, `size` pixels square."""
    mi = mitsuba()
    rng = np.random.default_rng([scene.seed, 11])
    shot = compose(scene, rng)
    film = mi.render(mi.load_dict(_description(shot, scene, size, samples)), seed=scene.seed % (1 << 31))
    bitmap = mi.Bitmap(film).convert(mi.Bitmap.PixelFormat.RGB, mi.Struct.Type.UInt8, True)
    return stylise(Image.fromarray(np.array(bitmap)), scene.style, rng)


def render_mask(scene: Scene, size: int) -> Image.Image:
    """Where the subject itself is seen (not its outfit): 255 there, else 0; mode L."""
    mi = mitsuba()
    shot = compose(scene, np.random.default_rng([scene.seed, 11]))
    description = _description(shot, scene, 2 * size, 1)
    description["integrator"] = {"type": "aov", "aovs": "shape:shape_index"}
    description["sensor"]["film"]["rfilter"] = {"type": "box"}
    loaded = mi.load_dict(description)
    # The AOV counts shapes from 1; 0 is the sky.
    subject = [index for index, shape in enumerate(loaded.shapes(), 1) if shape.id().startswith("subject")]
    seen = np.isin(np.array(mi.render(loaded, seed=0))[..., -1].round().astype(int), subject)
    return Image.fromarray(np.uint8(seen) * 255).resize((size, size), Image.Resampling.BOX).point(_threshold)


def _threshold(value: int) -> int:
    return 255 * (value > 127)


def compose(scene: Scene, rng: np.random.Generator) -> Shot:
    """Place figure, context, camera and sun."""
    figure = build(scene, rng)
    stage = Model()
    setting = furnish(stage, scene.context, rng)
    azimuth = _azimuth(scene, rng)
    elevation = float(rng.uniform(*ELEVATIONS.get(scene.view or "", (3.0, 10.0))))
    if scene.view == "bottom":
        stage = Model()
    placed = figure.moved(translate((0, 0, -setting.sink)) @ rotate("z", azimuth - 90))
    target, distance = _aim(placed, scene, rng)
    radians = np.radians(elevation)
    origin = target + distance * np.array([0, -np.cos(radians), np.sin(radians)])
    return Shot(placed, stage, setting, origin, target, float(rng.uniform(25, 28)), _sun(scene, rng))


def _azimuth(scene: Scene, rng: np.random.Generator) -> float:
    """Where the subject looks, 0 being into the camera."""
    wander = float(rng.uniform(-12, 12))
    if scene.view == "side":
        return float(rng.choice([-90, 90])) + wander
    if scene.view in AZIMUTHS:
        return AZIMUTHS[scene.view] + wander
    if scene.expression:
        return float(rng.uniform(-28, 28))
    return float(rng.uniform(-62, 62))


def _aim(figure: Figure, scene: Scene, rng: np.random.Generator) -> tuple[Array, float]:
    """The point looked at and the distance: the whole figure is in the picture, a face is looked at closer."""
    heights = [model.bounds() for model in (figure.body, figure.extras) if model.parts]
    top = max(float(high[2]) for _, high in heights)
    wander = rng.uniform(-1, 1, 2) * (0.14, 0.08)
    distance = DISTANCE * float(rng.uniform(0.95, 1.08)) * max(1.0, top / 1.95)
    middle = 0.5 * top
    if scene.expression:
        middle, distance = 0.62 * top, distance * PORTRAIT / DISTANCE
    return np.array([wander[0], 0, middle + wander[1]]), distance


def _sun(scene: Scene, rng: np.random.Generator) -> Array:
    """Direction of travel of the sun's light: from behind the camera, left or right."""
    angle, height = rng.uniform(-1.0, 1.0), rng.uniform(0.8, 1.4)
    if scene.view == "bottom":
        height = -0.6
    return -np.array([np.sin(angle), -np.cos(angle), height])


def _description(shot: Shot, scene: Scene, size: int, samples: int) -> dict[str, Any]:
    """The scene in Mitsuba's words."""
    deep = scene.material == "glass"
    description: dict[str, Any] = {
        "type": "scene",
        "integrator": {"type": "path", "max_depth": 12 if deep else 4, "rr_depth": 20},
        "sensor": _sensor(shot, size, samples),
        "sky": {"type": "constant", "radiance": _rgb(np.multiply(shot.setting.sky, 0.9))},
        "sun": {
            "type": "directional",
            "direction": shot.sun.tolist(),
            "irradiance": _rgb(np.multiply((1.7, 1.62, 1.5), shot.setting.sun)),
        },
    }
    groups = {"subject": shot.figure.body, "extra": shot.figure.extras, "stage": shot.stage}
    for name, model in groups.items():
        for index, (material, mesh) in enumerate(model.by_material()):
            description[f"{name}{index}"] = _shape(f"{name}{index}", mesh, material)
    return description


def _sensor(shot: Shot, size: int, samples: int) -> dict[str, Any]:
    mi = mitsuba()
    up = [0, 0, 1]
    return {
        "type": "perspective",
        "fov": shot.fov,
        "to_world": mi.ScalarTransform4f().look_at(shot.origin.tolist(), shot.target.tolist(), up),
        "film": {
            "type": "hdrfilm",
            "width": size,
            "height": size,
            "rfilter": {"type": "gaussian"},
            "pixel_format": "rgb",
        },
        "sampler": {"type": "multijitter", "sample_count": samples},
    }


def _shape(name: str, mesh: Mesh, material: Material) -> Any:
    """A Mitsuba mesh with its BSDF or its light."""
    mi = mitsuba()
    values = mi.Properties()
    if material.finish == "glow":
        values["emitter"] = mi.load_dict({"type": "area", "radiance": _rgb(np.multiply(material.colour, 2.2))})
    values["bsdf"] = mi.load_dict(_bsdf(material))
    shape = mi.Mesh(name, len(mesh.vertices), len(mesh.faces), values, True, True)
    parameters = mi.traverse(shape)
    parameters["vertex_positions"] = mesh.vertices.astype(np.float32).ravel()
    parameters["vertex_normals"] = mesh.normals.astype(np.float32).ravel()
    parameters["vertex_texcoords"] = mesh.uv.astype(np.float32).ravel()
    parameters["faces"] = mesh.faces.astype(np.uint32).ravel()
    parameters.update()
    shape.set_id(name)
    return shape


def _bsdf(material: Material) -> dict[str, Any]:
    """A finish as a two-sided Mitsuba BSDF."""
    colour = _rgb(material.colour) if material.texture is None else _bitmap(material)
    finish = material.finish
    if finish == "glass":
        return _glass(colour)
    inner: dict[str, Any]
    if finish == "mirror":
        inner = {"type": "conductor", "specular_reflectance": colour}
    elif finish in ("metal", "bronze"):
        inner = {"type": "roughconductor", "alpha": 0.22, "specular_reflectance": colour}
    elif finish in GLOSS:
        inner = _gloss(colour, *GLOSS[finish])
    else:
        inner = {"type": "diffuse", "reflectance": colour}
    return {"type": "twosided", "bsdf": inner}


def _gloss(colour: dict[str, Any], roughness: float, index: float) -> dict[str, Any]:
    """Principled rather than rough plastic, whose tables take 50 ms to set up for each material."""
    return {"type": "principled", "base_color": colour, "roughness": roughness, "eta": index}


def _glass(colour: dict[str, Any]) -> dict[str, Any]:
    return {"type": "mask", "opacity": 0.32, "bsdf": {"type": "twosided", "bsdf": _gloss(colour, 0.25, 2.2)}}


def _bitmap(material: Material) -> dict[str, Any]:
    mi = mitsuba()
    bitmap = mi.Bitmap(np.asarray(material.texture, np.float32))
    return {"type": "bitmap", "bitmap": bitmap, "raw": True, "filter_type": "bilinear"}


def _rgb(colour: Any) -> dict[str, Any]:
    return {"type": "rgb", "value": [float(part) for part in colour]}
