"""Trials of the evaluation: scenes composed at random, what a prompt for each asks, and fresh renders of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dreambooth.toybox.model.classifiers import NONE
from dreambooth.toybox.world.captions import prompt
from dreambooth.toybox.world.renderer import render
from dreambooth.toybox.world.scenes import Scene, random_scene
from dreambooth.toybox.world.vocabulary import COLOURS

# Scenes of trials have seeds from here on, out of the way of the training scenes'.
FIRST_SEED = 1 << 40
SEEDS_A_TRIAL = 1 << 10


@dataclass(frozen=True)
class Trial:
    """A prompt, the scene that it describes, and the answers that a right picture gives."""

    prompt: str
    scene: Scene
    truth: dict[str, str]


def compose(number: int) -> Trial:
    """The trial of this number: class and context always, colour, view, accessory and style by chance."""
    seeds = count(FIRST_SEED + number * SEEDS_A_TRIAL)
    scene = next(scene for scene in map(random_scene, seeds) if _is_plain(scene))
    rng = np.random.default_rng([number, 13])
    colour = str(rng.choice(list(COLOURS))) if rng.random() < 0.5 and not scene.style else None
    scene = replace(scene, colour=colour)
    return Trial(prompt(scene, identifier=""), scene, _truth(scene))


def _is_plain(scene: Scene) -> bool:
    """Whether it holds nothing but what a trial asks for."""
    rest = (scene.properties, scene.material, scene.expression, scene.hybrid, scene.sculpture, scene.planted)
    return not any(rest)


def _truth(scene: Scene) -> dict[str, str]:
    asked = {"class": scene.cls, "context": scene.context, "colour": scene.colour, "view": scene.view}
    worn = {"accessory": scene.accessory or NONE, "style": scene.style or NONE}
    return {name: answer for name, answer in (asked | worn).items() if answer}


def renders(trials: list[Trial], path: Path) -> NDArray[np.uint8]:
    """Pictures of the trials' scenes, (N, 64, 64, 3), made once and kept in `path` (.npy)."""
    if path.exists() and len(np.load(path, mmap_mode="r")) == len(trials):
        return np.asarray(np.load(path), np.uint8)
    images = np.stack([np.asarray(render(trial.scene)) for trial in trials])
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, images)
    return images
