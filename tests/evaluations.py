"""An evaluation as `dreambooth evaluate` leaves it, with figures that are all different, and a comparison."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

PROMPTS = {
    "recontext": [
        "a [V] dog in the jungle",
        "a [V] dog in the snow",
        "a [V] dog on the beach",
        "a [V] dog on a cobblestone street",
        "a [V] dog with a city in the background",
    ],
    "accessory": ["a [V] dog wearing a red hat", "a [V] dog in a chef outfit"],
    "property": ["a red [V] dog", "a cube shaped [V] dog"],
}
SCORES = {
    "dino": (0.7013, 0.6128, 0.7541),
    "clip_i": (0.8124, 0.7812, 0.8433),
    "clip_t": (0.3012, 0.2861, 0.3117),
    "clip_t_identifier": (0.2911, 0.2764, 0.3008),
    "pres": (0.4417, 0.4021, 0.4803),
    "div": (0.3844, 0.3512, 0.4209),
    "copying": (0.0712, 0.0304, 0.1203),
    "oracle_dino": (0.8226, 0.7934, 0.8518),
    "oracle_dino_self": (0.8581, 0.8347, 0.8814),
    "oracle_clip_i": (0.9018, 0.8827, 0.9209),
    "oracle_clip_i_self": (0.9214, 0.9062, 0.9367),
    "floor_dino": (0.4126, 0.3709, 0.4531),
    "floor_clip_i": (0.6811, 0.6527, 0.7094),
    "ceiling_clip_t": (0.3204, 0.3097, 0.3311),
    "pres_drift": (0.0317, -0.0104, 0.0722),
    "diversity_drift": (-0.0213, -0.0518, 0.0097),
    "foreground_dino": (0.7318, 0.6633, 0.7777),
    "held_out_gap": (0.0153, -0.0242, 0.0551),
    "background": (0.2207, 0.1908, 0.2519),
    "own_dino": (0.7422, 0.7011, 0.7719),
    "ceiling_div": (0.4318, 0.4011, 0.4622),
    "pres_frozen": (0.4104, 0.3712, 0.4499),
    "sibling_drift": (0.0118, -0.0203, 0.0437),
}
LEVELS = {"context": "good", "prior": "good", "entanglement": "watch", "overfitting": "bad", "drift": "unknown"}
TITLES = {
    "context": ("Context not synthesised", "The surroundings asked for are there as often as before training."),
    "prior": ("Weak prior", "The untrained model draws “a dog” well, so there is a class to build on."),
    "entanglement": ("Looks change with the context", "The coat takes up the colour of its surroundings on sand."),
    "overfitting": (
        "Overfitting to the photos",
        "Three pictures are nearer to a photo than the photos are to another.",
    ),
    "drift": ("Language drift", "Too few pictures of the class were drawn to tell."),
}


def estimate(value: float, low: float | None = None, high: float | None = None, n: int = 36) -> dict[str, Any]:
    """A score with its interval, of +-0.04 unless given."""
    bounds = (value - 0.04 if low is None else low, value + 0.04 if high is None else high)
    return {"value": round(value, 4), "low": round(bounds[0], 4), "high": round(bounds[1], 4), "n": n}


def evaluation(seeds: int = 4) -> dict[str, Any]:
    """The content of evaluation.json."""
    rng = np.random.default_rng(5)

    def some(low: float, high: float) -> float:
        return round(float(rng.uniform(low, high)), 4)

    prompts = [
        {
            "text": text,
            "kind": kind,
            "scores": {
                "dino": estimate(some(0.5, 0.8), n=seeds),
                "clip_i": estimate(some(0.7, 0.9), n=seeds),
                "clip_t": estimate(some(0.26, 0.33), n=seeds),
                "div": estimate(some(0.3, 0.5), n=seeds),
            },
            "images": [
                {
                    "file": f"images/{kind}-{number}-{seed}.png",
                    "seed": seed,
                    "dino": some(0.5, 0.8),
                    "clip_i": some(0.7, 0.9),
                    "clip_t": some(0.26, 0.33),
                    "nearest": int(rng.integers(2)),
                    "nearest_similarity": some(0.6, 0.9),
                    "percentile": round(float(rng.integers(5, 99)) / 100, 2),
                }
                for seed in range(seeds)
            ],
            "frozen": [f"frozen/{kind}-{number}-{seed}.png" for seed in range(seeds)],
        }
        for kind, texts in PROMPTS.items()
        for number, text in enumerate(texts)
    ]
    return {
        "scores": {name: estimate(*score, n=100) for name, score in SCORES.items()},
        "by": {"dino": "toybox-identity", "clip": "toybox-clip", "div": "dino"},
        "options": {"reference": "all", "text": "class", "seeds": seeds, "scale": 1.0},
        "kinds": {
            kind: {
                "dino": estimate(some(0.5, 0.8)),
                "clip_i": estimate(some(0.7, 0.9)),
                "clip_t": estimate(some(0.2, 0.3)),
            }
            for kind in PROMPTS
        },
        "prompts": prompts,
        "drift": [
            {
                "class": noun,
                "sibling": noun != "dog",
                "tuned": [f"class/{noun}-{number}.png" for number in range(6)],
                "frozen": [f"class/{noun}-frozen-{number}.png" for number in range(6)],
                "pres": estimate(some(0.4, 0.6)),
                "pres_frozen": estimate(some(0.3, 0.5)),
                "diversity": estimate(some(0.4, 0.6)),
                "diversity_frozen": estimate(some(0.4, 0.6)),
            }
            for noun in ("dog", "cat")
        ],
        "copies": [
            {
                "image": prompts[number]["images"][0]["file"],
                "photo": number % 2,
                "similarity": round(0.9731 - 0.0213 * number, 4),
                "percentile": round(1.0 - 0.03 * number, 2),
                "prompt": prompts[number]["text"],
            }
            for number in range(4)
        ],
        "findings": [
            {
                "name": name,
                "title": TITLES[name][0],
                "level": level,
                "text": TITLES[name][1],
                "figures": {"change_in_clip_t": estimate(some(-0.1, 0.1))} if level != "unknown" else {},
                "images": [prompts[number]["images"][1]["file"] for number in range(4)]
                if level in ("watch", "bad")
                else [],
            }
            for name, level in LEVELS.items()
        ],
    }


def files(content: dict[str, Any]) -> list[str]:
    """Every picture that an evaluation names, each once."""
    prompts = [image["file"] for prompt in content["prompts"] for image in prompt["images"]]
    frozen = [file for prompt in content["prompts"] for file in prompt["frozen"]]
    drift = [file for item in content["drift"] for file in [*item["tuned"], *item["frozen"]]]
    return [*prompts, *frozen, *drift]


def draw(content: dict[str, Any], folder: Path, save: Callable[[int, str, Path], None]) -> None:
    """Have `save` make every picture that an evaluation in `folder` names."""
    for number, file in enumerate(files(content)):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        save(number, file, folder / file)


def comparison() -> dict[str, Any]:
    """The content of comparison.json."""
    places = {
        "lora": (0.7013, 0.3012),
        "full": (0.7433, 0.2821),
        "no prior": (0.7521, 0.2903),
        "inversion": (0.5817, 0.2544),
    }
    bounds = {"oracle_dino": estimate(0.8226), "floor_dino": estimate(0.4126), "ceiling_clip_t": estimate(0.3204)}
    runs = [
        {
            "name": label,
            "folder": f"runs/{label}",
            "label": f"{label}, {100 + number} steps",
            "scores": {
                "dino": estimate(x),
                "clip_t": estimate(y, y - 0.012, y + 0.013),
                "pres": estimate(0.4 + number / 37),
            }
            | bounds,
        }
        for number, (label, (x, y)) in enumerate(places.items())
    ]
    pairs = [
        {
            "a": "lora",
            "b": "full",
            "metric": "dino",
            "difference": estimate(-0.0421),
            "p": 0.0113,
            "p_holm": 0.0339,
            "n": 36,
        },
        {
            "a": "lora",
            "b": "full",
            "metric": "pres",
            "difference": estimate(-0.0817),
            "p": 0.0007,
            "p_holm": 0.0021,
            "n": 30,
        },
        {
            "a": "lora",
            "b": "no prior",
            "metric": "clip_t",
            "difference": estimate(0.0109),
            "p": 0.2117,
            "p_holm": 0.4234,
            "n": 35,
        },
    ]
    published = [
        {"label": "Real images", "scores": {"dino": 0.774, "clip_i": 0.885}},
        {"label": "DreamBooth (Imagen)", "scores": {"dino": 0.696, "clip_i": 0.812, "clip_t": 0.306}},
    ]
    return {"runs": runs, "pairs": pairs, "published": published}
