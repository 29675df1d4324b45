"""Whole runs on a debug model: what may not change the result, and what the run leaves behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

from dreambooth import Recipe, Run, train, training
from dreambooth.errors import UserError
from dreambooth.progress import Step
from dreambooth.samples import image_generator
from tests.pictures import picture
from tests.test_loop import recipe_for

QUICK: dict[str, Any] = {
    "steps": 3,
    "learning_rate": 1e-3,
    "rank": 2,
    "prior_count": 2,
    "prior_steps": 2,
    "prior_guidance": 1.0,
    "inference_steps": 2,
    "precision": "fp32",
    "samples": 0,
    "allow": ["learning-rate"],
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three photos, the second with a caption, the third with a mask."""
    folder = tmp_path_factory.mktemp("photos")
    for index in range(3):
        picture(seed=index, size=(64, 48)).save(folder / f"{index:02d}.png")
    (folder / "01.txt").write_text("a photo of a [V] dog at home")
    mask = np.zeros((48, 64), np.uint8)
    mask[10:40, 15:50] = 255
    Image.fromarray(mask).save(folder / "02.mask.png")
    return folder


def run(model: Path, photos: Path, out: Path, **values: Any) -> Run:
    subjects = [{"photos": photos, "class_noun": "dog"}]
    settings = {"model": str(model), **QUICK, "subjects": subjects, **values}
    if settings.get("method", "lora") != "lora":
        settings["rank"] = None
    return train(Recipe.of(settings), out)


def weights(run: Run) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(run.adapter.rglob("*.safetensors")):
        tensors.update({f"{file.parent.name}/{name}": value for name, value in load_file(file).items()})
    return tensors


def losses(run: Run) -> list[tuple[float, ...]]:
    lines = [json.loads(line) for line in (run.path / "steps.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"], line["subject"], line["prior"], line["grad_norm"]) for line in lines]


def assert_equal(one: Run, two: Run) -> None:
    assert losses(one) == losses(two)
    first, second = weights(one), weights(two)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"crops": 2, "flip": True, "batch_size": 2},
        {"crops": 1, "flip": True, "batch_size": 2, "aspect": "keep"},
        {"train_text_encoder": True},
        {"method": "full", "min_snr": 5.0},
        {"method": "textual-inversion"},
    ],
)
def test_cached_is_live(values: dict[str, Any], tiny_sd: Path, photos: Path, tmp_path: Path) -> None:
    assert_equal(
        run(tiny_sd, photos, tmp_path / "cached", **values),
        run(tiny_sd, photos, tmp_path / "live", cache=False, **values),
    )


@pytest.mark.parametrize("values", [{}, {"method": "textual-inversion", "batch_size": 2}])
def test_neither_gradient_checkpointing_nor_accumulation_nor_logging_changes_a_run(
    values: dict[str, Any], tiny_sd: Path, photos: Path, tmp_path: Path
) -> None:
    plain = run(tiny_sd, photos, tmp_path / "plain", **values)
    assert_equal(plain, run(tiny_sd, photos, tmp_path / "checkpointed", gradient_checkpointing=True, **values))
    assert_equal(plain, run(tiny_sd, photos, tmp_path / "logged", log_every=1, save_every=1, keep=1, **values))
    split = run(tiny_sd, photos, tmp_path / "split", accumulation=2, **values)
    np.testing.assert_allclose(np.array(losses(split), float), np.array(losses(plain), float), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("prior_loss", ["images", "distilled"])
def test_compiled_blocks_learn_the_same(
    prior_loss: str, tiny_sd: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled, compile_block = [], torch.nn.Module.compile

    def quickly(module: torch.nn.Module, *args: Any, **options: Any) -> None:
        compiled.append(type(module).__name__)
        compile_block(module, *args, **{**options, "backend": "eager"})

    monkeypatch.setattr(torch.nn.Module, "compile", quickly)
    plain = run(tiny_sd, photos, tmp_path / "plain", prior_loss=prior_loss)
    assert compiled == []
    fast = run(tiny_sd, photos, tmp_path / "compiled", prior_loss=prior_loss, compile=True, gradient_checkpointing=True)
    assert set(compiled) == {"BasicTransformerBlock"}
    np.testing.assert_allclose(np.array(losses(fast), float), np.array(losses(plain), float), rtol=1e-4)
    assert plain.info["identity"] == fast.info["identity"]


def test_a_model_without_repeated_blocks_is_not_compiled(debug_folder: Callable[[str], Path], photos: Path) -> None:
    with pytest.raises(UserError, match="--compile works on repeated blocks"):
        run(debug_folder("sd3"), photos, Path("never"), compile=True)


@pytest.mark.parametrize(
    "values",
    [
        {"train_text_encoder": True, "targets": "wide"},
        {"aspect": "keep", "more_resolutions": (48,)},
        {"method": "full"},
        {"method": "textual-inversion", "label": "a [V]"},
    ],
)
def test_the_runs_pictures_are_those_of_the_shipped_adapter_in_stock_diffusers(
    values: dict[str, Any], tiny_sd: Path, photos: Path, tmp_path: Path
) -> None:
    done = run(tiny_sd, photos, tmp_path / "run", samples=1, scenes=("a [V] dog on the moon",), **values)
    base = done.adapter if done.recipe.method == "full" else tiny_sd
    pipe = StableDiffusionPipeline.from_pretrained(base, safety_checker=None)
    if done.recipe.method == "lora":
        pipe.load_lora_weights(done.adapter)
    elif done.recipe.method == "textual-inversion":
        pipe.load_textual_inversion(done.adapter)
    manifest = json.loads((done.samples / "manifest.json").read_text())
    pipe.scheduler = __import__("diffusers").DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    after = [entry for entry in manifest["images"] if entry["role"] == "after"]
    assert [entry["kind"] for entry in after] == ["subject", "class", "scene"]
    drawn = pipe(
        [entry["text"] for entry in after],
        negative_prompt=[""] * len(after),
        generator=[image_generator(entry["seed"]) for entry in after],
        num_inference_steps=manifest["steps"],
        guidance_scale=manifest["guidance"],
        height=32,
        width=32,
    ).images
    for entry, expected in zip(after, drawn, strict=True):
        with Image.open(done.samples / entry["file"]) as saved:
            # a step of rounding: stock decodes several pictures at once
            np.testing.assert_allclose(np.asarray(saved, int), np.asarray(expected, int), rtol=0, atol=1)


def test_full_fine_tuning_leaves_the_autoencoder_alone_and_moves_the_denoiser(
    tiny_sd: Path, photos: Path, tmp_path: Path
) -> None:
    tuned = weights(run(tiny_sd, photos, tmp_path / "run", method="full"))
    base: dict[str, torch.Tensor] = {}
    for file in sorted(tiny_sd.rglob("*.safetensors")):
        base.update({f"{file.parent.name}/{name}": value for name, value in load_file(file).items()})
    assert tuned.keys() == base.keys()
    moved = {name.split("/")[0] for name in base if not torch.equal(base[name], tuned[name])}
    assert moved == {"unet"}


@pytest.mark.parametrize("method", ["lora", "full", "textual-inversion"])
def test_bf16_keeps_what_it_trains_in_float32(method: str, tiny_sd: Path, photos: Path, tmp_path: Path) -> None:
    done = run(tiny_sd, photos, tmp_path / "run", precision="bf16", method=method, samples=1)
    state = load_file(next(done.checkpoints.iterdir()) / "weights.safetensors")
    assert {value.dtype for value in state.values()} == {torch.float32}
    exact = run(tiny_sd, photos, tmp_path / "exact", precision="fp32", method=method)
    np.testing.assert_allclose([row[1] for row in losses(done)], [row[1] for row in losses(exact)], rtol=0.05)
    assert losses(done) != losses(exact)


def test_settings_that_matter_change_the_run(tiny_sd: Path, photos: Path, tmp_path: Path) -> None:
    changes = [
        {},
        {"seed": 1},
        {"prior_weight": 0.5},
        {"min_snr": 1.0},
        {"crops": 3},
        {"background_weight": 1.0},
        {"warmup": 2},
        {"label": "a [V]"},
    ]
    runs = [run(tiny_sd, photos, tmp_path / str(k), **values) for k, values in enumerate(changes)]
    assert len({json.dumps(losses(each)) + str(weights(each)) for each in runs}) == len(changes)


def test_real_class_images_take_the_place_of_generated_ones(tiny_sd: Path, photos: Path, tmp_path: Path) -> None:
    for index in range(4):
        (tmp_path / "dogs").mkdir(exist_ok=True)
        picture(seed=20 + index, size=(40, 40)).save(tmp_path / "dogs" / f"{index}.png")
    with_real = run(tiny_sd, photos, tmp_path / "real", prior_images=tmp_path / "dogs")
    assert losses(with_real) != losses(run(tiny_sd, photos, tmp_path / "generated"))


def test_what_was_measured_and_foreseen_of_fewer_steps_does_not_stay(
    tiny_sd: Path, photos: Path, tmp_path: Path
) -> None:
    first = run(tiny_sd, photos, tmp_path / "run", steps=1)
    assert any("do not show all" in text for text in first.info["warnings"])
    first.update(warnings=["something happened"])
    for name in ("scores.json", "evaluation/evaluation.json", "applications/art/application.json"):
        (first.path / name).parent.mkdir(parents=True, exist_ok=True)
        (first.path / name).write_text("{}")
    run(tiny_sd, photos, tmp_path / "run", steps=1)  # finished: nothing is touched
    assert (first.path / "scores.json").is_file()
    more = run(tiny_sd, photos, tmp_path / "run", steps=8)
    assert more.info["warnings"] == [*more.info["foreseen"], "something happened"]
    assert not any("do not show all" in text for text in more.info["warnings"])
    assert [path.name for path in first.path.rglob("*.json") if path.read_text() == "{}"] == []


@pytest.mark.parametrize("prior_loss", ["images", "parent"])
def test_two_subjects_each_with_their_name_and_class(
    prior_loss: str, tiny_sd: Path, photos: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(photos, tmp_path / "other")
    subjects = [{"photos": photos, "class_noun": "dog"}, {"photos": other, "class_noun": "mug"}]
    done = run(tiny_sd, photos, tmp_path / "run", subjects=subjects, samples=1, prior_loss=prior_loss)
    first, second = done.info["identifiers"]
    assert first != second
    assert ("class images" in done.info["times"]) == (prior_loss == "images")
    assert done.report.is_file()


def test_a_reporter_hears_everything(tiny_sd: Path, photos: Path, tmp_path: Path) -> None:
    class Listener:
        def __init__(self) -> None:
            self.stages: list[str] = []
            self.steps: list[Step] = []
            self.advanced = 0

        def stage(self, name: str, total: int, done: int = 0) -> None:
            self.stages.append(name)

        def advance(self, count: int = 1) -> None:
            self.advanced += count

        def step(self, step: Step) -> None:
            self.steps.append(step)

        def say(self, message: str) -> None:
            self.said = message

        def close(self) -> None:
            pass

    listener = Listener()
    settings = {"model": str(tiny_sd), **QUICK, "samples": 1, "subjects": [{"photos": photos, "class_noun": "dog"}]}
    train(Recipe.of(settings), tmp_path / "run", listener)
    assert listener.stages == ["class images", "pictures before", "caching", "training", "pictures after"]
    assert [step.step for step in listener.steps] == [1, 2, 3]
    assert all(step.seconds > 0 and step.images_per_second > 0 for step in listener.steps)


@pytest.mark.parametrize(
    ("processes", "told"),
    [
        (2, []),
        (8, ["a step has 2 images for 8 processes: give --batch-size 4, or start 2"]),
    ],
)
def test_processes_without_an_image_are_told(processes: int, told: list[str]) -> None:
    assert training._idle(recipe_for(Path("model")), processes) == told
    assert training._idle(recipe_for(Path("model"), batch_size=4), processes) == []
