"""The loss curves of small runs as they were (`python -m tests.test_golden`); the default prior's since 3bab80f."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from dreambooth.recipe import Recipe
from dreambooth.run import Run
from dreambooth.training import train
from tests.commands import make_photos
from tests.debug_models import build

GOLDEN = Path(__file__).with_name("golden_losses.json")


WAYS = {
    "lora": {"method": "lora", "prior_loss": "images"},
    "full": {"method": "full", "prior_loss": "images"},
    "lora, distilled": {"method": "lora", "prior_loss": "distilled", "prior_dropout": 0.1},
}


def losses(way: str, model: Path, folder: Path) -> list[float]:
    """The loss of each of 20 steps."""
    values = {"model": str(model), **WAYS[way], "steps": 20, "samples": 0, "batch_size": 2, "seed": 3}
    values |= {
        "learning_rate": 1e-3,
        "prior_count": 4,
        "prior_steps": 2,
        "crops": 1,
        "log_every": 1,
        "precision": "fp32",
    }
    folder.mkdir(exist_ok=True)
    photos = make_photos(folder / "photos")
    subject = {"photos": photos, "class_noun": "dog", "identifier": "sks"}
    run = train(Recipe.of({**values, "allow": ["identifier", "learning-rate"], "subjects": [subject]}), folder / "run")
    return [json.loads(line)["loss"] for line in (Run(run.path).path / "steps.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("way", WAYS)
def test_the_loss_curve_is_what_it_was(way: str, tiny_sd: Path, tmp_path: Path) -> None:
    expected: Sequence[float] = json.loads(GOLDEN.read_text())[way]
    assert losses(way, tiny_sd, tmp_path) == pytest.approx(expected, rel=1e-4)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as home:
        build("sd", Path(home) / "sd")
        print(json.dumps({name: losses(name, Path(home) / "sd", Path(home) / name) for name in WAYS}))
