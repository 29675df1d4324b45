"""Measures the packaged model against truth: what its pictures show, how near renders they lie, at which settings."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import CLIPVisionModelWithProjection

from dreambooth.images import grid
from dreambooth.toybox.model import classifiers, trials
from dreambooth.toybox.model.classifiers import Classifier
from dreambooth.toybox.model.renders import to_pixels
from dreambooth.toybox.model.statistics import Share, frechet
from dreambooth.toybox.model.train import RECORD
from dreambooth.toybox.model.trials import Trial

ALL = "all"
SHEET = "samples.png"
GUIDANCES = (1.5, 2.5, 4.0, 6.0)
STEPS = (10, 20)
BATCH = 32
SHOWN, ROW = 30, 5
"""Pictures on the sheet and in a row of it: those of the first trials, whatever they came to."""


@dataclass(frozen=True)
class Setting:
    """How pictures are drawn."""

    steps: int
    guidance: float


@dataclass(frozen=True)
class Judge:
    """What pictures are judged by: classifiers and an encoder, both trained on renders only."""

    classifier: Classifier
    encoder: CLIPVisionModelWithProjection
    trials: list[Trial]
    renders_NHWC: NDArray[np.uint8]

    def __call__(self, images_NHWC: NDArray[np.uint8]) -> dict[str, Any]:
        """Accuracies and Frechet distance of pictures of the first trials."""
        shares = accuracies(self.classifier, images_NHWC, self.trials[: len(images_NHWC)])
        distance = frechet(features(self.encoder, images_NHWC), features(self.encoder, self.renders_NHWC))
        return {"accuracy": {name: _row(share) for name, share in shares.items()}, "frechet": distance}


def evaluate(package: Path, count: int, home: Path) -> dict[str, Any]:
    """Measures every setting on the same trials, and tells the best one's results apart.

    Args:
        package: What `package.write` wrote.
        count: Trials.
        home: Folder that keeps the fresh renders, and gets a sheet of pictures, `SHEET`.

    Returns:
        "chosen", its "model" results, those of the "renders" themselves (the ceiling), the "sweep", "seconds_16",
        and the record of the "classifiers".
    """
    composed = [trials.compose(number) for number in range(count)]
    fresh_NHWC = trials.renders(composed, home / "renders.npy")
    encoder = CLIPVisionModelWithProjection.from_pretrained(package / "encoders" / "image").eval()
    judge = Judge(classifiers.load(package / "classifiers"), encoder, composed, fresh_NHWC)
    pipe = StableDiffusionPipeline.from_pretrained(package / "base")
    pipe.set_progress_bar_config(disable=True)
    rows = list(sweep(pipe, judge, composed))
    chosen = choose(rows)
    images_NHWC = draw(pipe, [trial.prompt for trial in composed], chosen)
    sheet(images_NHWC[:SHOWN], composed).save(home / SHEET)
    half = count // 2
    ceiling = judge(fresh_NHWC) | {"frechet": _halves(encoder, fresh_NHWC[:half], fresh_NHWC[half:])}
    return {
        "count": count,
        "chosen": {"steps": chosen.steps, "guidance": chosen.guidance},
        "model": judge(images_NHWC),
        "renders": ceiling,
        "sweep": rows,
        "seconds_16": seconds(pipe, composed[:16]),
        "classifiers": json.loads((package / "classifiers" / RECORD).read_text()),
    }


def sweep(pipe: StableDiffusionPipeline, judge: Judge, some: list[Trial]) -> Iterator[dict[str, Any]]:
    """The judgement of every setting."""
    for steps in STEPS:
        for guidance in GUIDANCES:
            images_NHWC = draw(pipe, [trial.prompt for trial in some], Setting(steps, guidance))
            yield {"steps": steps, "guidance": guidance, **judge(images_NHWC)}


def choose(rows: list[dict[str, Any]]) -> Setting:
    """The setting with most pictures right in everything; of equals, the one of the least Frechet distance."""
    best = max(rows, key=lambda row: (float(row["accuracy"][ALL]["value"]), -float(row["frechet"])))
    return Setting(best["steps"], best["guidance"])


def draw(pipe: StableDiffusionPipeline, prompts: list[str], setting: Setting) -> NDArray[np.uint8]:
    """One picture a prompt, (N, H, W, 3); the seed of each is its number."""
    pictures = []
    for start in range(0, len(prompts), BATCH):
        some = prompts[start : start + BATCH]
        seeds = [torch.Generator().manual_seed(start + index) for index in range(len(some))]
        pictures += pipe(
            some, num_inference_steps=setting.steps, guidance_scale=setting.guidance, generator=seeds
        ).images
    return np.stack([np.asarray(picture) for picture in pictures])


def sheet(images_NHWC: NDArray[np.uint8], of: list[Trial]) -> Image.Image:
    """The pictures in rows, each under what was asked for."""
    prompts = [trial.prompt for trial in of[: len(images_NHWC)]]
    labels = [" | ".join(prompts[start : start + ROW]) for start in range(0, len(prompts), ROW)]
    return grid([Image.fromarray(image) for image in images_NHWC], ROW, labels)


def accuracies(classifier: Classifier, images_NHWC: NDArray[np.uint8], of: list[Trial]) -> dict[str, Share]:
    """Right answers of each attribute over the trials that ask for it, and of all that each asks at once."""
    predicted = classifiers.predict(classifier, to_pixels(images_NHWC))
    right: list[dict[str, bool]] = []
    for index, trial in enumerate(of):
        answers = {name: classifier.labels[name][int(predicted[name][index])] for name in trial.truth}
        right.append({name: answers[name] == true for name, true in trial.truth.items()})
    asked = [name for name in classifier.labels if any(name in row for row in right)]
    rows = {name: [row[name] for row in right if name in row] for name in asked}
    rows[ALL] = [all(row.values()) for row in right]
    return {name: Share(sum(hits), len(hits)) for name, hits in rows.items()}


@torch.no_grad()
def features(encoder: CLIPVisionModelWithProjection, images_NHWC: NDArray[np.uint8]) -> Tensor:
    """Pooled features of the image encoder, (N, D)."""
    groups = to_pixels(images_NHWC).split(128)  # type: ignore[no-untyped-call]
    return torch.cat([encoder.vision_model(pixel_values=pixels).pooler_output for pixels in groups])


def seconds(pipe: StableDiffusionPipeline, some: list[Trial]) -> float:
    """Wall-clock time of these pictures in 25 steps, after a first one that is not counted."""
    prompts = [trial.prompt for trial in some]
    draw(pipe, prompts[:1], Setting(2, 4.0))
    began = time.monotonic()
    draw(pipe, prompts, Setting(25, 4.0))
    return time.monotonic() - began


def write(result: dict[str, Any], path: Path) -> None:
    """Writes the evaluation as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


def _halves(encoder: CLIPVisionModelWithProjection, one_NHWC: NDArray[np.uint8], two_NHWC: NDArray[np.uint8]) -> float:
    """Frechet distance between two sets of renders: what sampling alone makes of it."""
    return frechet(features(encoder, one_NHWC), features(encoder, two_NHWC))


def _row(share: Share) -> dict[str, float]:
    low, high = share.interval
    return {"value": share.value, "low": low, "high": high, "count": share.count}
