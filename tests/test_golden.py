"""The loss curves of two small runs as they were before anything was made faster (`python -m tests.test_golden`)."""

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


def losses(method: str, model: Path, folder: Path) -> list[float]:
    """The loss of each of 20 steps."""
    values = {"model": str(model), "method": method, "steps": 20, "samples": 0, "batch_size": 2, "seed": 3}
    values |= {
        "learning_rate": 1e-3,
        "prior_loss": "images",
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


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_loss_curve_is_what_it_was(method: str, tiny_sd: Path, tmp_path: Path) -> None:
    expected: Sequence[float] = json.loads(GOLDEN.read_text())[method]
    assert losses(method, tiny_sd, tmp_path) == pytest.approx(expected, rel=1e-4)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as home:
        build("sd", Path(home) / "sd")
        print(json.dumps({name: losses(name, Path(home) / "sd", Path(home) / name) for name in ("lora", "full")}))
