"""Pages as a browser finds them, and a finished run to draw one from."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

VOID = {"meta", "link", "img", "line", "polyline", "br", "hr"}
SCENES = ["on the beach", "in the snow", "wearing a top hat", "as a pencil sketch", "on a purple rug"]


class Page(HTMLParser):
    """What a browser would find: tags with attributes, the visible text, and whether the tags nest."""

    def __init__(self, path: Path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, Any]]] = []
        self.texts: list[str] = []
        self.stack: list[str] = []
        self.feed(self.source)
        self.close()
        assert not self.stack

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str):
        assert self.stack.pop() == tag

    def handle_data(self, data: str):
        if "style" not in self.stack:
            self.texts.append(data)

    def all(self, tag: str, cls: str = "") -> list[dict[str, Any]]:
        return [attrs for name, attrs in self.tags if name == tag and cls in (attrs.get("class") or "")]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def picture(seed: int, side: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def write_steps(run: Path, steps: list[dict[str, Any]], tail: str = "") -> None:
    (run / "steps.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps) + tail)


def step(number: int, subject: float = 0.1, prior: float | None = 0.2) -> dict[str, Any]:
    loss = subject + (prior or 0.0)
    return {
        "step": number,
        "loss": loss,
        "subject": subject,
        "prior": prior,
        "lr": 1e-4,
        "grad_norm": 1.0,
        "seconds": 0.5,
    }


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def samples(run: Path, noun: str = "dog", side: int = 64) -> list[dict[str, Any]]:
    """Two seeds of subject and class, before and after; five scenes, after."""
    wanted = [(f"a [V] {noun}", "subject", role, seed) for role in ("before", "after") for seed in (3, 8)]
    wanted += [(f"a [V] {noun} {scene}", "scene", "after", 3) for scene in SCENES]
    wanted += [(f"a {noun}", "class", role, seed) for role in ("before", "after") for seed in (3, 8)]
    images = []
    for number, (prompt, kind, role, seed) in enumerate(wanted):
        file = f"{number:02d}_{role}_{seed}.png"
        (run / "samples").mkdir(exist_ok=True)
        picture(number, side).save(run / "samples" / file)
        text = prompt.replace("[V]", "ohwx")
        images.append({"file": file, "prompt": prompt, "text": text, "seed": seed, "role": role, "kind": kind})
    return images


def recipe(noun: str = "dog", **more: Any) -> dict[str, Any]:
    subject = {"photos": "photos/dog", "class_noun": noun, "identifier": "ohwx"}
    return {"subjects": [subject], "model": "toybox", "method": "lora", "steps": 40, "prior_weight": 1.0} | more


def about(noun: str = "dog", **more: Any) -> dict[str, Any]:
    """The contents of run.json."""
    photos = [{"id": "a", "file": "one.heic", "caption": None}, {"id": "b", "file": "two.jpg", "caption": "by the sea"}]
    return {
        "model": {"name": "toybox", "family": "sd", "identity": "x"},
        "photos": photos,
        "identifier": "ohwx",
        "class": noun,
        "created": "2026-11-23T17:50:12+00:00",
        "derived": {"steps": "20 a photo", "subjects[0].identifier": "the rarest word"},
        "times": {"class images": 41.0, "training": 20.0},
        "peak_mb": 1930.4,
        "warnings": ["two.jpg is blurred"],
        "finished": True,
    } | more


def finished_run(folder: Path) -> Path:
    """A finished run of two photos and 40 steps."""
    (folder / "photos").mkdir(parents=True)
    for number in range(2):
        picture(90 + number, 256).save(folder / "photos" / f"{number:02d}.jpg")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe()))
    write_json(folder / "run.json", about())
    write_json(folder / "environment.json", {"torch": "2.13.0+cpu", "threads": 2, "git": None})
    sampling = {"sampler": "DPM++ 2M", "steps": 25, "guidance": 7.5}
    write_json(folder / "samples" / "manifest.json", {"images": samples(folder), **sampling})
    write_steps(folder, [step(number) for number in range(1, 41)])
    return folder
