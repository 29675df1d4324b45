"""Every export is read by the reader that it is for, and must draw the picture that the run's own adapter draws."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from safetensors.torch import load_file

from dreambooth import export as exporting
from dreambooth import targets
from dreambooth.errors import RunError, UserError
from dreambooth.export import FORMATS, export, metadata, names
from dreambooth.models import resolve, safetensors_header
from dreambooth.run import Run
from tests import calls, debug_models
from tests.export import comfyui
from tests.export.runs import TOLERANCE, assert_same, finished, load_base, picture, shipped

TOKEN = {"subjects": [{"photos": ".", "class_noun": "dog", "identifier": "<dog-1>"}]}
WHOLE = {"method": "full", "rank": None, "alpha": None}
WIDE = {"targets": "wide", "train_text_encoder": True, "alpha": 3.0}
RUNS: dict[str, tuple[str, dict[str, object]]] = {
    "attention": ("sd", {}),
    "wide": ("sd", WIDE),
    "whole": ("sd", {**WHOLE, "train_text_encoder": True}),
    "token": ("sd", {**WHOLE, "method": "textual-inversion", "text_encoder_learning_rate": None, **TOKEN}),
    "xl": ("sdxl", WIDE),
    "toybox": ("toybox", WIDE),
    "flux": ("flux", {"alpha": 3.0, "train_text_encoder": True}),
    "pivotal": ("sd", {"method": "pivotal", "text_encoder_learning_rate": 1e-3, **TOKEN}),
    "xl token": ("sdxl", {**WHOLE, "method": "textual-inversion", "text_encoder_learning_rate": None, **TOKEN}),
    "dora": ("sd", {"adapter": "dora"}),
    "lokr": ("sd", {"adapter": "lokr", "train_text_encoder": True}),
    "oft": ("sd", {"adapter": "oft"}),
    "pivotal lokr": ("sd", {"method": "pivotal", "adapter": "lokr", "text_encoder_learning_rate": 1e-3, **TOKEN}),
    "t-lora": ("sd", {"rank": 8, "alpha": 8.0, "min_rank": 2}),
}
LORAS = ("attention", "wide", "xl", "toybox")
EVERY_FORMAT = ("attention", "toybox")
"""Runs whose card is tried in all forms: of a model in a folder, and of the one in the package."""


class World:
    """A run of each kind, their base models loaded once, and the pictures of what they ship drawn once."""

    def __init__(self, home: Path) -> None:
        kinds = {kind for kind, _ in RUNS.values()} - {"toybox"}
        self.models = {kind: debug_models.build(kind, home / f"model-{kind}") for kind in kinds}
        self.models["toybox"] = Path("toybox")
        self.runs = {name: finished(home / name, self.models[kind], **values) for name, (kind, values) in RUNS.items()}

    @cached_property
    def bases(self) -> dict[str, DiffusionPipeline]:
        return {kind: load_base(str(model)) for kind, model in self.models.items()}

    def base(self, name: str) -> DiffusionPipeline:
        """A stock pipeline of a run's base model, to do with as one likes."""
        return copy.deepcopy(self.bases[RUNS[name][0]])

    @cache  # noqa: B019 there is one world
    def expected(self, name: str) -> np.ndarray:
        run = self.runs[name]
        ships = picture(shipped(run), metadata.trigger(run))
        if run.recipe.method == "lora":
            assert abs(picture(self.base(name), metadata.trigger(run)) - ships).max() > 0.01
        return ships

    def check(self, name: str, pipe: DiffusionPipeline) -> None:
        """Check that a pipeline draws what a run ships."""
        assert_same(picture(pipe, metadata.trigger(self.runs[name])), self.expected(name))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def runs(world: World) -> dict[str, Run]:
    return world.runs


def only_file(folder: Path) -> Path:
    (file,) = folder.glob("*.safetensors")
    return file


@pytest.mark.parametrize("name", ["wide", "whole", "token", "xl", "flux"])
def test_diffusers_reads_its_own_format(name: str, world: World, tmp_path: Path) -> None:
    run = world.runs[name]
    folder = export(run.path, "diffusers", tmp_path / "out")
    if run.recipe.method == "full":
        pipe = DiffusionPipeline.from_pretrained(folder)
    else:
        pipe = world.base(name)
        (pipe.load_lora_weights if run.recipe.method == "lora" else pipe.load_textual_inversion)(folder)
    world.check(name, pipe)


@pytest.mark.parametrize("name", RUNS)
def test_the_code_of_its_card_loads_what_it_holds(name: str, world: World, tmp_path: Path) -> None:
    run = world.runs[name]
    for format in [format for format in FORMATS if holds(run, format)] if name in EVERY_FORMAT else ["diffusers"]:
        folder = export(run.path, format, tmp_path / format)
        card = (folder / "README.md").read_text(encoding="utf-8")
        code = card.partition("```python")[2].partition("```")[0].replace("PATH_OF_THIS_FOLDER", str(folder))
        *loads, draws = code.strip().splitlines()
        assert draws == f'image = pipe("{metadata.trigger(run)}").images[0]'
        found: dict[str, DiffusionPipeline] = {}
        exec("\n".join(loads), found)
        if run.recipe.min_rank:
            assert "This is a T-LoRA" in card
        else:
            world.check(name, found["pipe"])


def holds(run: Run, format: str) -> bool:
    shipment = exporting.Shipment(run, targets.find(run.path).source)
    return exporting._holds(FORMATS[format], shipment)


@pytest.mark.parametrize("format", [name for name in FORMATS if name != "diffusers"])
@pytest.mark.parametrize("name", ["t-lora", "lokr", "oft", "pivotal", "pivotal lokr"])
def test_what_would_draw_another_picture_is_refused(name: str, format: str, world: World) -> None:
    with pytest.raises(UserError, match=f"--format {format} cannot hold .*: choose diffusers$"):
        export(world.runs[name].path, format)


def test_a_run_of_another_family_is_no_adapter_for_a_model(world: World) -> None:
    """Of FLUX's LoRA Stable Diffusion would take the text encoder's half alone."""
    flux = world.runs["flux"].path
    said = f"{flux} does not fit this model: it was trained on {world.models['flux']}, add it to that"
    for target in (world.runs["attention"].path, world.models["sd"]):
        with pytest.raises(UserError, match=re.escape(said)):
            targets.find(target, [str(flux)])


@pytest.mark.parametrize("name", LORAS)
def test_diffusers_reads_kohya_names(name: str, world: World, tmp_path: Path) -> None:
    pipe = world.base(name)
    pipe.load_lora_weights(only_file(export(world.runs[name].path, "kohya", tmp_path / "out")))
    world.check(name, pipe)


@pytest.mark.parametrize("name", LORAS)
def test_comfyui_finds_a_place_for_every_key(name: str, world: World, tmp_path: Path) -> None:
    tensors = load_file(only_file(export(world.runs[name].path, "comfyui", tmp_path / "out")))
    pipe = world.base(name)
    assert comfyui.load(pipe, tensors) == []
    world.check(name, pipe)


def test_comfyui_would_leave_out_the_attention_of_the_diffusers_format(world: World) -> None:
    tensors = load_file(world.runs["attention"].adapter / "pytorch_lora_weights.safetensors")
    assert comfyui.load(world.base("attention"), tensors) == sorted(tensors)


@pytest.mark.parametrize("name", LORAS)
def test_every_layer_of_kohya_has_its_alpha(name: str, runs: dict[str, Run], tmp_path: Path) -> None:
    run = runs[name]
    tensors = load_file(only_file(export(run.path, "kohya", tmp_path / "out")))
    stems = {key.split(".")[0] for key in tensors}
    assert len(tensors) == 3 * len(stems)
    for stem in stems:
        assert tensors[f"{stem}.alpha"].item() == len(tensors[f"{stem}.lora_down.weight"]) == run.recipe.rank
    shipped_keys = load_file(run.adapter / "pytorch_lora_weights.safetensors")
    assert len(shipped_keys) == 2 * len(stems)


def test_kohya_names_are_those_of_each_kind(runs: dict[str, Run], tmp_path: Path) -> None:
    def stems(name: str) -> set[str]:
        return {key.split(".")[0] for key in load_file(only_file(export(runs[name].path, "kohya", tmp_path / name)))}

    first = stems("wide")
    assert "lora_te_text_model_encoder_layers_1_self_attn_out_proj" in first
    assert "lora_unet_up_blocks_1_attentions_2_transformer_blocks_0_attn2_to_out_0" in first
    assert "lora_unet_down_blocks_0_resnets_1_conv2" in first
    second = stems("xl")
    prefixes = ("lora_te1_text_model_", "lora_te2_text_model_", "lora_unet_")
    assert all(stem.startswith(prefixes) for stem in second)
    assert {"lora_unet_output_blocks_2_2_conv", "lora_unet_input_blocks_3_0_op"} < second
    assert "lora_unet_middle_block_1_transformer_blocks_1_attn1_to_q" in second
    assert not any("down_blocks" in stem for stem in second)


@pytest.mark.parametrize("name", ["wide", "whole", "toybox"])
def test_a_single_file_is_a_checkpoint(name: str, world: World, tmp_path: Path) -> None:
    run = world.runs[name]
    file = only_file(export(run.path, "single-file", tmp_path / "out"))
    config, tokenizer = str(resolve(str(run.recipe.model)).path), world.base(name).tokenizer
    pipe = StableDiffusionPipeline.from_single_file(file, config=config, tokenizer=tokenizer, dtype=torch.float32)
    world.check(name, pipe)


@pytest.mark.parametrize("name", ["wide", "whole", "xl", "flux"])
def test_a_merged_model_needs_no_adapter(name: str, world: World, tmp_path: Path) -> None:
    folder = export(world.runs[name].path, "merged", tmp_path / "out")
    assert not any("lora" in key for file in folder.rglob("*.safetensors") for key in safetensors_header(file)[0])
    world.check(name, DiffusionPipeline.from_pretrained(folder))


@pytest.mark.parametrize(
    ("name", "format", "instead"),
    [
        ("whole", "kohya", "diffusers or single-file or merged"),
        ("whole", "comfyui", "diffusers or single-file or merged"),
        ("token", "kohya", "diffusers"),
        ("token", "single-file", "diffusers"),
        ("token", "merged", "diffusers"),
        ("xl", "single-file", "diffusers or kohya or comfyui or merged"),
        ("flux", "kohya", "diffusers or merged"),
    ],
)
def test_a_format_that_cannot_hold_a_run_says_so(
    name: str, format: str, instead: str, runs: dict[str, Run], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=f"--format {format} cannot hold .*: choose {instead}$"):
        export(runs[name].path, format, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_exported_is_refused(runs: dict[str, Run], tmp_path: Path) -> None:
    run = runs["attention"]
    with pytest.raises(UserError, match="no format 'ckpt': choose from diffusers, kohya"):
        export(run.path, "ckpt", tmp_path / "out")
    with pytest.raises(UserError, match="holds no run"):
        export(tmp_path, "kohya")
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="holds other files than an export"):
        export(run.path, "kohya", tmp_path)
    with pytest.raises(UserError, match=r"mine.safetensors names a file, and --out is a folder: give .*mine$"):
        export(run.path, "kohya", tmp_path / "mine.safetensors")
    with pytest.raises(UserError, match=r"mine.txt is a file"):
        export(run.path, "kohya", tmp_path / "mine.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_unfinished_run_is_refused(tiny_sd: Path, tmp_path: Path) -> None:
    run = finished(tmp_path / "run", tiny_sd)
    run.update(finished=False)
    with pytest.raises(UserError, match="is not finished"):
        export(run.path, "kohya")


def test_an_export_is_written_again_in_place_and_is_the_same(tiny_sd: Path, tmp_path: Path) -> None:
    run = finished(tmp_path / "run", tiny_sd)
    folder = export(run.path, "kohya")
    assert folder == run.path / "export" / "kohya"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(before) == {"run.safetensors", "README.md", "export.json"}
    assert json.loads(before["export.json"])["sha256"] == {
        "run.safetensors": hashlib.sha256(before["run.safetensors"]).hexdigest()
    }
    export(run.path, "kohya")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("fault", ["a wrong name", "a lost alpha scale", "two layers under one name"])
def test_a_file_that_does_not_read_back_is_not_left(
    fault: str, runs: dict[str, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = names.written
    if fault == "a wrong name":
        monkeypatch.setattr(names, "written", lambda path, pipe: right(path, pipe).replace("attn1", "attn3"))
    elif fault == "two layers under one name":
        monkeypatch.setattr(names, "written", lambda path, pipe: right(path, pipe).replace("attn1", "attn2"))
    else:
        monkeypatch.setattr("dreambooth.export.torch.tensor", lambda value: torch.full((), 0.5))
    with pytest.raises((RunError, UserError)):
        export(runs["attention"].path, "kohya", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_file_says_what_it_is(runs: dict[str, Run], tmp_path: Path) -> None:
    run = runs["wide"]
    _, described = safetensors_header(only_file(export(run.path, "kohya", tmp_path / "kohya")))
    info = run.info
    expected = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": "wide",
        "modelspec.date": "2026-01-02T03:04:05+00:00",
        "modelspec.resolution": "32x32",
        "modelspec.trigger_phrase": "a ohwx dog",
        "modelspec.usage_hint": "Write 'a ohwx dog' in the prompt",
        "modelspec.prediction_type": "epsilon",
        "ss_base_model_version": "sd_v1",
        "ss_v2": "False",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "2",
        "ss_network_alpha": "2",
        "ss_network_args": '{"conv_dim": "2", "conv_alpha": "2"}',
        "dreambooth.recipe_hash": info["identity"],
        "dreambooth.base_model": info["model"]["identity"],
    }
    assert expected.items() <= described.items()
    whole = safetensors_header(only_file(export(run.path, "single-file", tmp_path / "whole")))[1]
    assert whole["modelspec.architecture"] == "stable-diffusion-v1"
    assert whole["modelspec.merged_from"] == info["model"]["identity"]
    own = safetensors_header(only_file(export(run.path, "diffusers", tmp_path / "own")))[1]
    assert own["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert not any(key.startswith("ss_") for key in (*whole, *own))
    second = safetensors_header(only_file(export(runs["xl"].path, "kohya", tmp_path / "xl")))[1]
    assert (second["modelspec.architecture"], second["ss_base_model_version"]) == (
        "stable-diffusion-xl-v1-base/lora",
        "sdxl_base_v1-0",
    )


@pytest.mark.parametrize("format", ["diffusers", "kohya", "single-file"])
def test_the_hash_is_that_of_the_tensors(format: str, runs: dict[str, Run], tmp_path: Path) -> None:
    file = only_file(export(runs["attention"].path, format, tmp_path / "out"))
    content = file.read_bytes()
    tensors = content[8 + int.from_bytes(content[:8], "little") :]
    _, described = safetensors_header(file)
    assert described["modelspec.hash_sha256"] == f"0x{hashlib.sha256(tensors).hexdigest()}"


def test_velocity_is_said(tiny_sd_v: Path, tmp_path: Path) -> None:
    run = finished(tmp_path / "run", tiny_sd_v)
    _, described = safetensors_header(only_file(export(run.path, "kohya")))
    assert (described["modelspec.prediction_type"], described["ss_base_model_version"]) == ("v", "sd_v1_v")


def test_every_format_is_named() -> None:
    assert list(FORMATS) == ["diffusers", "kohya", "comfyui", "single-file", "merged"]


def test_the_command_writes_and_says_how_it_is_proved(runs: dict[str, Run], tmp_path: Path) -> None:
    run = runs["attention"]
    done = calls.call("export", run.path, "--format", "kohya", "--out", tmp_path / "out", "--json")
    assert done.status == 0, done
    told = json.loads(done.out)
    assert told["format"] == "kohya"
    assert "read back" in told["proof"]
    assert all((tmp_path / "out" / name).is_file() for name in told["sha256"])


def test_an_exported_file_is_an_adapter_of_any_base(runs: dict[str, Run], tmp_path: Path) -> None:
    """`generate BASE --adapter FILE` draws what the run draws."""
    run = runs["attention"]
    (file,) = (export(run.path, "kohya", tmp_path / "out")).glob("*.safetensors")
    base = str(run.recipe.model)
    found = targets.find(base, [f"{file}=1"])
    assert_same(picture(targets.load(found)), picture(shipped(run)))
    weaker = picture(targets.load(targets.find(base, [f"{file}=0.5"])))
    assert abs(weaker - picture(shipped(run))).max() > TOLERANCE
    refused = calls.call("generate", base, "a dog", "--adapter", tmp_path / "none.safetensors").refusal
    assert "there is no file" in refused
