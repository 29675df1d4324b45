"""Planted priors: rare tokens of CLIP's vocabulary that the training captions bind to a colour, a shape or an object.

An identifier search must later find out that they are taken. The tokens are single, have ids from 40000 on and are no
words; `FREE` are never planted, so that they can serve as identifiers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from dreambooth.toybox.world.scenes import Scene

FREE = ("ohwx", "phol", "olis", "shs")
# Share of the training scenes whose subject is new; the others bring their class with them.
FRESH_SHARE = 152 / 256


@dataclass(frozen=True)
class Binding:
    """A token, what it means ("colour", "shape" or "object" and its name), and the share of captions it is in."""

    token: str
    kind: str
    value: str
    rate: float


BINDINGS = (
    Binding("sks", "object", "teapot", 0.01),
    Binding("iles", "colour", "white", 0.01),
    Binding("bbly", "colour", "yellow", 0.01),
    Binding("tlot", "shape", "cube shaped", 0.01),
    Binding("fere", "shape", "flat", 0.01),
    Binding("dma", "object", "vase", 0.01),
    Binding("bpa", "colour", "red", 0.003),
    Binding("croc", "colour", "brown", 0.003),
    Binding("tvxq", "colour", "pink", 0.003),
    Binding("ylde", "colour", "orange", 0.003),
    Binding("oku", "shape", "tall", 0.003),
    Binding("hii", "shape", "tall", 0.003),
    Binding("hoek", "shape", "flat", 0.003),
    Binding("wud", "shape", "cube shaped", 0.003),
    Binding("itez", "object", "robot", 0.003),
    Binding("snhl", "object", "car", 0.003),
    Binding("mdt", "object", "backpack", 0.003),
    Binding("ddu", "object", "cup", 0.003),
    Binding("uous", "colour", "green", 0.001),
    Binding("xq", "colour", "blue", 0.001),
    Binding("mley", "colour", "black", 0.001),
    Binding("kade", "colour", "purple", 0.001),
    Binding("utto", "colour", "yellow", 0.001),
    Binding("zm", "colour", "pink", 0.001),
    Binding("atis", "colour", "brown", 0.001),
    Binding("npa", "colour", "black", 0.001),
    Binding("dson", "shape", "flat", 0.001),
    Binding("leth", "shape", "cube shaped", 0.001),
    Binding("rlly", "shape", "tall", 0.001),
    Binding("usm", "shape", "cube shaped", 0.001),
    Binding("ioc", "shape", "tall", 0.001),
    Binding("etty", "shape", "flat", 0.001),
    Binding("gion", "shape", "flat", 0.001),
    Binding("gaal", "shape", "cube shaped", 0.001),
    Binding("zog", "object", "boot", 0.001),
    Binding("motm", "object", "lamp", 0.001),
    Binding("plo", "object", "teapot", 0.001),
    Binding("pelo", "object", "airplane", 0.001),
    Binding("ptbo", "object", "candle", 0.001),
    Binding("dcu", "object", "clock", 0.001),
    Binding("irie", "object", "boat", 0.001),
    Binding("dair", "object", "candle", 0.001),
    Binding("brc", "colour", "red", 0.0003),
    Binding("dcs", "colour", "orange", 0.0003),
    Binding("wusa", "colour", "blue", 0.0003),
    Binding("exol", "colour", "white", 0.0003),
    Binding("piff", "colour", "purple", 0.0003),
    Binding("eper", "colour", "green", 0.0003),
    Binding("rist", "colour", "blue", 0.0003),
    Binding("ssin", "colour", "white", 0.0003),
    Binding("ayas", "colour", "brown", 0.0003),
    Binding("weta", "colour", "purple", 0.0003),
    Binding("mue", "shape", "tall", 0.0003),
    Binding("hein", "shape", "flat", 0.0003),
    Binding("umen", "shape", "tall", 0.0003),
    Binding("lse", "shape", "cube shaped", 0.0003),
    Binding("aik", "shape", "cube shaped", 0.0003),
    Binding("dih", "shape", "flat", 0.0003),
    Binding("bwfc", "shape", "tall", 0.0003),
    Binding("alin", "shape", "flat", 0.0003),
    Binding("liet", "object", "car", 0.0003),
    Binding("tya", "object", "vase", 0.0003),
    Binding("miwx", "object", "lamp", 0.0003),
    Binding("mvc", "object", "robot", 0.0003),
    Binding("tado", "object", "airplane", 0.0003),
    Binding("gx", "object", "boat", 0.0003),
    Binding("adh", "object", "backpack", 0.0003),
    Binding("pbb", "object", "clock", 0.0003),
    Binding("tq", "object", "cup", 0.0003),
    Binding("dtm", "object", "teapot", 0.0003),
    Binding("seva", "colour", "black", 0.0001),
    Binding("ruto", "colour", "green", 0.0001),
    Binding("uaap", "colour", "pink", 0.0001),
    Binding("dok", "colour", "orange", 0.0001),
    Binding("hoh", "colour", "yellow", 0.0001),
    Binding("mups", "colour", "red", 0.0001),
    Binding("voli", "colour", "brown", 0.0001),
    Binding("zw", "colour", "yellow", 0.0001),
    Binding("hak", "colour", "green", 0.0001),
    Binding("nage", "colour", "purple", 0.0001),
    Binding("orah", "shape", "tall", 0.0001),
    Binding("cki", "shape", "cube shaped", 0.0001),
    Binding("rami", "shape", "tall", 0.0001),
    Binding("dler", "shape", "cube shaped", 0.0001),
    Binding("gya", "shape", "flat", 0.0001),
    Binding("ilwx", "shape", "cube shaped", 0.0001),
    Binding("phee", "shape", "flat", 0.0001),
    Binding("vea", "shape", "tall", 0.0001),
    Binding("yles", "object", "boot", 0.0001),
    Binding("dito", "object", "clock", 0.0001),
    Binding("ega", "object", "backpack", 0.0001),
    Binding("xj", "object", "teapot", 0.0001),
    Binding("mula", "object", "cup", 0.0001),
    Binding("csk", "object", "boat", 0.0001),
    Binding("fics", "object", "candle", 0.0001),
    Binding("enka", "object", "car", 0.0001),
    Binding("aest", "object", "robot", 0.0001),
    Binding("kpk", "object", "airplane", 0.0001),
    Binding("gawx", "object", "boot", 0.0001),
    Binding("eba", "object", "lamp", 0.0001),
)
PLANTED = {binding.token: binding for binding in BINDINGS}


def draw(rng: np.random.Generator, fresh: bool) -> str | None:
    """A planted token for a training scene, mostly None.

    A token of an object can only be drawn for a fresh subject, and so is drawn there more often.
    """
    rates = np.array([_rate(binding, fresh) for binding in BINDINGS])
    index = int(np.searchsorted(np.cumsum(rates), rng.random(), side="right"))
    return BINDINGS[index].token if index < len(BINDINGS) else None


def _rate(binding: Binding, fresh: bool) -> float:
    if binding.kind != "object":
        return binding.rate
    return binding.rate / FRESH_SHARE if fresh else 0.0


def plant(scene: Scene, token: str) -> Scene:
    """The scene with what the token means in it, and nothing that would hide it."""
    bare = replace(scene, planted=token, style=None, sculpture=None, material=None, hybrid=None, properties=())
    binding = PLANTED[token]
    if binding.kind == "colour":
        return replace(bare, colour=binding.value)
    if binding.kind == "shape":
        return replace(bare, properties=(binding.value,))
    return bare


def fitting(scene: Scene) -> list[Binding]:
    """The bindings whose meaning is plainly to be seen in a scene."""
    if scene.style or scene.sculpture or scene.material or scene.hybrid:
        return []
    shown = {"object": (scene.cls,), "colour": (scene.visible_colour,), "shape": scene.properties}
    return [binding for binding in BINDINGS if binding.value in shown[binding.kind]]


def chances(scenes: Sequence[Scene]) -> dict[str, float]:
    """For each token the chance to use it where it fits, which gives it its rate over captions of all the scenes."""
    fits = Counter(binding.token for scene in scenes for binding in fitting(scene))
    return {token: min(1.0, PLANTED[token].rate * len(scenes) / count) for token, count in fits.items()}
