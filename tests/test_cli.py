"""The command line: what it prints, with which exit status, and what it refuses before any work."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

import dreambooth
from dreambooth import cli, other_trainers, presets
from dreambooth.cli.shared import print_next
from dreambooth.models import CARDS
from dreambooth.run import Run
from tests.calls import Call, call, train
from tests.commands import make_photos
from tests.pictures import picture

COMMON = {"--help", "--version", "-h"}
SETTINGS = (
    "--accumulation --adapter --allow --alpha --aspect --background-weight --base --batch-size --beta1 --beta2 "
    "--cache --compile --consistency --crops --cuda-graphs --dco-beta --ema --ema-profiles --flip "
    "--gradient-checkpointing --guidance --inference-steps --keep --l2-to-base --label --learning-rate --log-every "
    "--low-resolution-noise --max-grad-norm --memory --method --min-rank --min-snr --model --more-resolutions "
    "--no-cache --no-compile --no-cuda-graphs --no-ema-profiles --no-flip --no-gradient-checkpointing "
    "--no-offload-blocks --no-select --no-step-in-backward --no-train-text-encoder --offload-blocks --optimizer "
    "--precision --prior-count --prior-dropout --prior-guidance --prior-images --prior-loss --prior-others "
    "--prior-precision --prior-scenes --prior-steps --prior-weight --rank --resolution --revision --sampler --samples "
    "--save-every --scales --scenes --schedule --seed --select --start --step-in-backward --steps --targets "
    "--text-encoder-learning-rate --train-text-encoder --warmup --weight-decay"
)
"""The flags of a recipe."""


def with_settings(others: str) -> str:
    return " ".join(sorted([*SETTINGS.split(), *others.split()]))


FLAGS = {
    "train": with_settings("--class --dry-run --identifier --json --log-format --out --recipe PHOTOS"),
    "generate": (
        "--adapter --consistency --count --guidance --inference-steps --json --log-format --negative --out --sampler "
        "--seed --size PROMPTS TARGET"
    ),
    "check": "--class --json --model --resolution --segmenter --sheet PHOTOS",
    "evaluate": (
        "--class-count --clip-encoder --count --diversity --held-out --identity-encoder --json --log-format --masks "
        "--out --prompts --references --seed RUNS"
    ),
    "apply": "--clip-encoder --count --identity-encoder --json --kind --log-format --seed APPLICATIONS RUN",
    "bench": with_settings("--count --diversity --json --limit --log-format --out --prompts SUBJECTS"),
    "identifier": "--class --count --encoder --fast --json --letters --log-format --model --tokens",
    "prior": "--class --count --json --log-format --model --out --precision",
    "models": "--json",
    "report": "--json RUN",
    "export": "--format --json --out --push-to-hub RUN",
    "average": "--json --log-format --out --width RUN",
    "demo": "--json --log-format --out",
    "cache list": "--json",
    "cache clear": "--json",
}
"""Every flag and argument that people and scripts may rely on. Take none away; add new ones here."""


def app_of(command: str) -> Any:
    found: Any = cli.app
    for word in command.split():
        found = found[word]
    return found


# The front door


def test_the_flags_are_frozen() -> None:
    names = {
        command: tuple(sorted(n for entry in app_of(command).assemble_argument_collection() for n in entry.names))
        for command in FLAGS
    }
    assert {command: " ".join(n for n in found if n != "*") for command, found in names.items()} == FLAGS


def test_what_other_trainers_flags_are_called_here_is_there() -> None:
    told = " ".join([*other_trainers.FLAGS.values(), *other_trainers.SENTENCES.values()])
    flags = {name: set(FLAGS[name].split()) for name in ("train", "generate")}
    assert set(re.findall(r"--[a-z0-9-]+", told)) <= flags["train"] | flags["generate"]
    for flag in other_trainers.FLAGS.values():
        if " " in flag:
            assert call("train", *flag.split(), "--nothing").refusal == "Unknown option: --nothing."


SEEN = (
    "max_train_steps lr output_dir instance_data_dir instance_prompt network_dim network_alpha train_batch_size "
    "gradient_accumulation_steps use_8bit_adam resume_from_checkpoint num_class_images class_prompt validation_prompt "
    "unet_lr pretrained_model_name_or_path mixed_precision checkpointing_steps lr_scheduler noise_offset report_to"
)
"""Flags of diffusers' and kohya's scripts that people have typed."""


@pytest.mark.parametrize("flag", SEEN.split())
def test_a_flag_of_another_trainer_is_translated(flag: str) -> None:
    ours = other_trainers.FLAGS.get(flag)
    hint = f". Did you mean {ours}?" if ours else f": {other_trainers.SENTENCES[flag]}"
    assert call("train", "photos", f"--{flag}", "1").refusal == f"Unknown option: --{flag}{hint}"


def test_no_command_is_without_frozen_flags() -> None:
    commands = {name for name in cli.app if name not in COMMON} - {"cache"}
    commands |= {f"cache {name}" for name in cli.app["cache"] if name not in COMMON}
    assert commands == set(FLAGS)


def test_the_public_names_are_frozen() -> None:
    public = ["Recipe", "Run", "RunError", "Subject", "UserError", "evaluate", "generate", "report", "train"]
    assert dreambooth.__all__ == public
    for module in ("reporting", "training", "generation"):
        importlib.import_module(f"dreambooth.{module}")
    assert all(callable(getattr(dreambooth, name)) for name in public)


def test_version() -> None:
    from importlib import metadata

    assert call("--version") == Call(0, metadata.version("dreambooth") + "\n", "")


@pytest.mark.parametrize("command", ["", "cache", *FLAGS])
def test_help(command: str) -> None:
    shown = call(*command.split(), "--help")
    assert (shown.status, shown.err) == (0, "")
    for flag in FLAGS.get(command, "").split():
        assert flag in shown.out.replace("\n", "") or flag.startswith("--no-")


@pytest.mark.parametrize("command", ["train", "generate", "bench"])
def test_help_says_where_defaults_come_from_that_it_does_not_show(command: str) -> None:
    assert " ".join(call(command, "--help").out.split()).count("Where no default is shown, it ") == 1


def test_help_is_quick() -> None:
    began, before = time.perf_counter(), os.times()
    subprocess.run([sys.executable, "-m", "dreambooth", "--help"], check=True, capture_output=True)
    wall, after = time.perf_counter() - began, os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    print(f"dreambooth --help: {wall:.2f} s, {used:.2f} s of them on the processor")
    assert used < 2


def test_the_libraries_say_nothing(tmp_path: Path, tiny_sd: Path) -> None:
    """In a process of its own: they speak while they are imported."""
    photos = make_photos(tmp_path / "photos")
    assert train(photos, tiny_sd, out=tmp_path / "run").status == 0
    planned = ["train", photos, "--class", "dog", "--model", tiny_sd, "--dry-run"]
    for command in (planned, ["export", tmp_path / "run", "--format", "kohya"]):
        line = [sys.executable, "-m", "dreambooth", *map(str, command)]
        done = subprocess.run(line, capture_output=True, check=True)
        assert done.stderr == b""


def test_a_library_does_not_speak_before_a_refusal() -> None:
    done = subprocess.run([sys.executable, "-m", "dreambooth", "average", "nosuch"], capture_output=True, text=True)
    assert done.stderr == "dreambooth: there is no run at nosuch: give a folder that `dreambooth train` made\n"


INTERRUPTED = """
import runpy, sys
class Interrupt:
    def find_spec(self, name, *rest):
        if name == "cyclopts":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupt())
runpy.run_module("dreambooth", run_name="__main__")
"""


def test_an_interruption_of_the_imports_is_one_line() -> None:
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "dreambooth: stopped\n")


@pytest.mark.parametrize("words", [["models"], ["--help"], ["train", "--help"]], ids=" ".join)
def test_output_that_nobody_reads_is_no_error(words: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-m", "dreambooth", *words], stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


def test_output_that_has_nowhere_to_go_is_no_error() -> None:
    done = subprocess.run(f"{shlex.quote(sys.executable)} -m dreambooth models >&-", shell=True, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, b"")


WITHOUT_TORCH = """
import contextlib, io, sys
from dreambooth import cli
for command in sys.argv[2:]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        cli.main(command.split())
    print(command, *sorted({"torch", "diffusers", "transformers", "peft", "accelerate"} & set(sys.modules)))
"""


def test_what_needs_no_model_imports_no_torch(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos")
    commands = ["--help", "train --help", "models", "models --json", f"check {photos}", "cache list --json"]
    line = [sys.executable, "-c", WITHOUT_TORCH, "", *commands]
    done = subprocess.run(line, check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == commands


# What is told without a model


def test_models() -> None:
    listed = json.loads(call("models", "--json").out)
    assert [list(entry) for entry in listed] == [["name", "family", "repository", "licence", "gated"]] * len(CARDS)
    assert [entry["name"] for entry in listed] == [card.name for card in CARDS]
    toybox = listed[0]
    assert (toybox["name"], toybox["repository"], toybox["gated"]) == ("toybox", None, False)
    text = call("models").out
    assert all(card.name in text and card.licence in text for card in CARDS)


def test_check(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos")
    shutil.copy(photos / "0.png", photos / "3.png")
    (photos / "notes.md").write_text("x", encoding="utf-8")
    (photos / "4.jpg").write_bytes(b"no picture")
    checked = call("check", photos, "--resolution", 64, "--json")
    assert (checked.status, checked.err) == (0, "")
    found = json.loads(checked.out)
    assert list(found) == ["photos", "warnings"]
    assert [(entry["file"], entry["used"]) for entry in found["photos"]] == [
        ("0.png", True),
        ("1.png", True),
        ("2.png", True),
        ("3.png", False),
        ("4.jpg", False),
        ("notes.md", False),
    ]
    problems = {entry["file"]: entry["problems"] for entry in found["photos"]}
    assert problems["0.png"] == []
    assert [list(problem) for problem in problems["3.png"]] == [["kind", "message", "risk"]]
    assert [problem["kind"] for problem in problems["3.png"] + problems["4.jpg"]] == ["duplicate", "unreadable"]
    text = call("check", photos, "--resolution", 64).out
    assert f"3.png: not used\n  duplicate: {problems['3.png'][0]['message']} (else " in text


def test_the_cache_is_listed_and_cleared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DREAMBOOTH_CACHE", str(tmp_path))
    assert call("cache", "list") == Call(0, "nothing is kept\n", "")
    home = tmp_path / "prior" / "dog-123"
    home.mkdir(parents=True)
    (home / "manifest.json").write_text('{"prompt": "a dog"}', encoding="utf-8")
    picture(0).save(home / "00000.png")
    (entry,) = json.loads(call("cache", "list", "--json").out)
    assert (entry["prompt"], entry["folder"], entry["images"]) == ("a dog", str(home), 1)
    assert json.loads(call("cache", "clear", "--json").out) == {"megabytes": entry["megabytes"]}
    assert json.loads(call("cache", "list", "--json").out) == []


# Exit statuses of what nobody can foresee


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (RuntimeError("CUDA:\nout of memory"), 1, r"dreambooth: RuntimeError at making\.py:\d+: CUDA: out of memory"),
        (torch.OutOfMemoryError("CUDA"), 1, r"dreambooth: the GPU's memory is full: give a smaller --size, or .*"),
        (PermissionError(13, "Permission denied", "x.png"), 1, r"dreambooth: Permission denied: x\.png"),
        (
            NotADirectoryError(20, "Not a directory", "x/y"),
            2,
            r"dreambooth: x/y is a file, where a folder is wanted: .*",
        ),
        (KeyboardInterrupt(), 130, r"dreambooth: stopped; go on with: dreambooth generate toybox 'a dog'"),
    ],
)
def test_whatever_happens_is_one_line_and_a_status(
    error: BaseException, status: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **named: object) -> None:
        raise error

    monkeypatch.setattr("dreambooth.generation.generate", fail)
    ended = call("generate", "toybox", "a dog")
    assert (ended.status, ended.out) == (status, "")
    assert re.fullmatch(said + "\n", ended.err)


# A run, from its photos to its pictures


class Lab:
    """Photos, a model, a finished run with a strong adapter, and a folder in which commands are given."""

    def __init__(self, home: Path, model: Path) -> None:
        self.home = home
        self.model = model
        self.photos = make_photos(home / "photos")
        self.run = home / "run"
        settings = {"samples": 1, "inference_steps": 2, "learning_rate": 0.5, "guidance": 2.0, "allow": "learning-rate"}
        self.trained = train(self.photos, model, "--json", out=self.run, **settings)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, tiny_sd: Path) -> Lab:
    return Lab(tmp_path_factory.mktemp("lab"), tiny_sd)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give every command in an empty folder of its own."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)


def here() -> set[str]:
    return {str(path) for path in Path().rglob("*")}


def test_train_tells_one_json_document(lab: Lab) -> None:
    assert lab.trained.status == 0
    told = json.loads(lab.trained.out)
    assert told["run"] == str(lab.run)
    assert told["finished"] is True
    assert told == {"run": str(lab.run), **Run(lab.run).info}


def test_the_log_can_be_json_lines(lab: Lab, tmp_path: Path) -> None:
    logged = train(lab.photos, lab.model, "--log-format", "json", out=tmp_path / "run")
    events = [json.loads(line) for line in logged.err.splitlines()]
    assert [event["step"] for event in events if event["event"] == "step"] == [1, 2]
    assert "training" in [event["name"] for event in events if event["event"] == "stage"]
    last = logged.out.splitlines()[-1]
    assert last.startswith("next     ")
    assert last.endswith(f" generate {tmp_path / 'run'} 'a [V] dog in the snow' --count 4")


@pytest.mark.parametrize(
    ("family", "label", "line"),
    [
        ("sd", "a [V]", "generate runs/x 'a [V] in the snow' --count 4"),
        ("deepfloyd_sr", "a [V] {class}", "export runs/x --format diffusers"),
    ],
)
def test_what_is_proposed_next_works(family: str, label: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    run = Mock(path=Path("runs/x"), info={"model": {"family": family}, "class": "dog"}, recipe=Mock(label=label))
    print_next(run)
    assert capsys.readouterr().out.rstrip().endswith(line)


def test_without_out_the_run_is_named_by_its_photos_method_and_identity(lab: Lab) -> None:
    flags = {"learning_rate": 5e-6, "allow": "learning-rate", "steps": 1}
    first = train(lab.photos, lab.model, "--json", **flags)
    assert first.status == 0, first.err
    run = Path(json.loads(first.out)["run"])
    assert run == Path("runs") / f"photos-lora-{Run(run).info['identity'][:8]}"
    recipe = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
    assert (recipe["allow"], recipe["learning_rate"]) == (["learning-rate"], 5e-6)
    again = call("train", "--recipe", run / "recipe.yaml")
    assert again.status == 0
    assert again.err.splitlines()[-1] == f"{run} is finished: 1 steps done"


def test_a_finished_run_says_that_it_draws_no_more_and_names_no_folder_that_is_not_there(
    lab: Lab, tmp_path: Path
) -> None:
    first = train(lab.photos, lab.model, out=tmp_path / "run")
    assert first.status == 0, first
    again = train(lab.photos, lab.model, out=tmp_path / "run", samples=4, scenes="a [V] dog in a car")
    told = "; its pictures stay as they are, by another --samples, --scenes: `dreambooth generate` draws others"
    assert again.err.splitlines()[-1].endswith(told)
    for each in (first, again):
        assert not [line for line in each.out.splitlines() if line.startswith("pictures")]


def test_a_recipe_is_found_from_anywhere(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(lab.home)
    told = train(Path("photos"), Path(os.path.relpath(lab.model)), "--dry-run", "--json")
    recipe = json.loads(told.out)["recipe"]
    assert recipe["model"] == str(lab.model)
    assert recipe["subjects"][0]["photos"] == str(lab.photos)


def test_flags_win_over_the_recipe(lab: Lab) -> None:
    line = ["train", "--recipe", lab.run / "recipe.yaml", "--seed", 5, "--class", "cat", "--dry-run", "--json"]
    recipe = json.loads(call(*line).out)["recipe"]
    there = yaml.safe_load((lab.run / "recipe.yaml").read_text(encoding="utf-8"))
    (subject,) = there["subjects"]
    assert recipe == {**there, "seed": 5, "subjects": [{**subject, "class_noun": "cat"}]}


def test_a_dry_run_tells_the_reasons_and_touches_nothing(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(lab.photos, lab.model, "--dry-run")  # remembers the hash of the model's files
    cache = Path(os.environ["DREAMBOOTH_CACHE"])
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*")}
    told = train(lab.photos, lab.model, "--dry-run", "--json", out=tmp_path / "run", learning_rate=None)
    document = json.loads(told.out)
    assert set(document) == {"recipe", "reasons", "buckets", "warnings"}
    assert document["recipe"]["learning_rate"] == presets.TRAINING["sd", "lora"].values["learning_rate"]
    assert document["reasons"]["learning_rate"] == presets.TRAINING["sd", "lora"].source
    assert "steps" not in document["reasons"]  # it was given
    text = train(lab.photos, lab.model, "--dry-run").out
    line = next(line for line in text.splitlines() if line.startswith("resolution: 32 "))
    assert line.endswith("# the model's own")
    assert yaml.safe_load(text) == document["recipe"]
    files = [f"{index}.png (17% cut away)" for index in range(3)]
    assert f"# photos at 32 x 32 pixels: {', '.join(files)}" in text.splitlines()
    assert document["buckets"][0]["photos"][2] == {"file": "2.png", "lost": 0.1667}
    assert here() == set()
    assert not (tmp_path / "run").exists()
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*")} == before


def test_a_dry_run_tells_the_buckets_of_photos_that_keep_their_shape(lab: Lab, tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", [(100, 60), (60, 100), (90, 100), (800, 100)])
    told = train(photos, lab.model, "--dry-run", "--aspect", "keep").out.splitlines()
    assert [line for line in told if line.startswith("# photos")] == [
        "# photos at 40 x 24 pixels: 0.png (whole)",
        "# photos at 24 x 40 pixels: 1.png (whole)",
        "# photos at 32 x 32 pixels: 2.png (10% cut away)",
        "# photos at 64 x 16 pixels: 3.png (50% cut away)",
    ]


def generate(target: object, *prompts: str, out: str, **settings: object) -> tuple[Path, list[np.ndarray]]:
    """Draw with two steps and return the folder and the pictures."""
    named = {"inference-steps": 2, **settings}
    flags = [word for name, value in named.items() for word in (f"--{name}", value)]
    made = call("generate", target, *prompts, "--out", out, *flags)
    assert made == Call(0, f"{out}/grid.png\n", made.err)
    manifest = json.loads(Path(out, "manifest.json").read_text(encoding="utf-8"))
    return Path(out), [np.asarray(Image.open(Path(out, entry["file"]))) for entry in manifest["images"]]


def test_generate_writes_a_picture_each_a_grid_and_a_manifest(lab: Lab) -> None:
    prompts = ["a [V] dog", "a [V] dog in the snow"]
    settings = {"count": 2, "seed": 7, "negative": "blurry", "guidance": 3, "sampler": "ddim"}
    folder, pictures = generate(lab.run, *prompts, out="pictures", **settings)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    images = manifest.pop("images")
    (weights,) = (lab.run / "adapter").iterdir()
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert manifest == {
        "model": str(lab.run),
        "adapters": [{"path": str(lab.run), "kind": "lora", "strength": 1.0, "sha256": digest}],
        "sampler": "ddim",
        "steps": 2,
        "guidance": 3.0,
        "size": 32,
        "negative": "blurry",
    }
    texts = ["a ohwx dog", "a ohwx dog in the snow"]
    expected = [(prompt, text, seed) for prompt, text in zip(prompts, texts, strict=True) for seed in (7, 8)]
    assert [(entry["prompt"], entry["text"], entry["seed"]) for entry in images] == expected
    assert {path.name for path in folder.iterdir()} == {e["file"] for e in images} | {"grid.png", "manifest.json"}
    assert [each.shape for each in pictures] == [(32, 32, 3)] * 4
    assert all((pictures[0] != other).any() for other in pictures[1:])


def test_pictures_that_an_interruption_has_left_are_drawn_over(lab: Lab) -> None:
    folder, (whole, _) = generate(lab.run, "a [V] dog", out="broken-off", count=2)
    for name in ("grid.png", "manifest.json", "00-a-V-dog-1.png"):
        (folder / name).unlink()
    _, (again, _) = generate(lab.run, "a [V] dog", out="broken-off", count=2)
    assert (again == whole).all()
    (folder / "grid.png").unlink()
    assert "holds other files" in call("generate", lab.run, "a [V] cat", "--out", folder).refusal


def test_a_path_may_hold_an_equals_sign(lab: Lab) -> None:
    run = Path(shutil.copytree(lab.run, "rate=1e-4"))
    _, (whole,) = generate(lab.model, "a ohwx dog", out="equals", adapter=run)
    _, (half,) = generate(lab.model, "a ohwx dog", out="equals-half", adapter=f"{run}=0.5")
    assert (whole != half).any()


def test_strength_0_is_the_base_model_and_others_are_not(lab: Lab) -> None:
    _, (base,) = generate(lab.model, "a ohwx dog", out="base", guidance=2)
    _, (off,) = generate(lab.run, "a [V] dog", out="off", adapter=f"{lab.run}=0")
    _, (half,) = generate(lab.run, "a [V] dog", out="half", adapter=f"{lab.run}=0.5")
    _, (whole,) = generate(lab.run, "a [V] dog", out="whole", adapter=f"{lab.run}=1")
    _, (plain,) = generate(lab.run, "a [V] dog", out="plain")
    assert np.array_equal(off, base)
    assert np.array_equal(whole, plain)
    assert (half != base).any()
    assert (half != whole).any()
    folder, (added,) = generate(lab.model, "a [V] dog", out="added", adapter=f"{lab.run}=0.5", guidance=2)
    assert np.array_equal(added, half)
    (adapter,) = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["adapters"]
    assert (adapter["path"], adapter["strength"]) == (str(lab.run), 0.5)


def test_a_further_run_is_added_with_its_subject(lab: Lab) -> None:
    """Two halves of one adapter are the whole of it; `[V2]` is the second run's identifier."""
    shutil.copytree(lab.run, "other")
    flags = ["--adapter", f"{lab.run}=0.5", "--adapter", "other=0.5", "--inference-steps", 2, "--out", "both"]
    made = call("generate", lab.run, "a [V2] dog", *flags)
    assert (made.status, made.err) == (0, "pictures: 1 to do\n")
    manifest = json.loads(Path("both/manifest.json").read_text(encoding="utf-8"))
    assert [adapter["path"] for adapter in manifest["adapters"]] == [str(lab.run), "other"]
    assert manifest["images"][0]["text"] == "a ohwx dog"
    both = np.asarray(Image.open(Path("both", manifest["images"][0]["file"])))
    _, (whole,) = generate(lab.run, "a [V] dog", out="whole")
    assert np.abs(both.astype(int) - whole).max() <= 1


def test_a_further_run_whose_subject_has_the_same_name_is_warned_of(lab: Lab) -> None:
    other = Run(shutil.copytree(lab.run, "other"))
    other.update(photos=[{**photo, "id": "another"} for photo in other.info["photos"]])
    made = call("generate", lab.run, "a [V2] dog", "--adapter", other.path, "--inference-steps", 1, "--out", "told")
    (warned,) = [line for line in made.err.splitlines() if line.startswith("warning")]
    assert warned.startswith(f"warning: 'ohwx' is the subject of {lab.run}, and another one of other: no prompt")


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        (["a dog in the snow", "a mug"], ["warning: no prompt names the subject: write [V]"]),
        (["a dog in the snow", "a [V] dog"], []),
        (["a ohwx dog"], []),
        (["ohwxy"], ["warning: no prompt names the subject: write [V]"]),
        (["a", "[V]", "dog"], ["warning: these are 3 prompts of one word each: write one in quotes: 'a [V] dog'"]),
        (["[V]", "[V] asleep"], []),
    ],
)
def test_pictures_without_the_subject_are_warned_of(prompts: list[str], said: list[str], lab: Lab) -> None:
    made = call("generate", lab.run, *prompts, "--inference-steps", 1, "--out", "told")
    assert made.status == 0
    assert [line for line in made.err.splitlines() if line.startswith("warning")] == said


def test_a_base_model_has_no_subject_to_name(lab: Lab) -> None:
    made = call("generate", lab.model, "a dog", "--inference-steps", 1, "--out", "told")
    assert (made.status, "warning" in made.err) == (0, False)


def test_a_run_draws_at_its_own_size_however_far_it_is(lab: Lab) -> None:
    run = Path(shutil.copytree(lab.run, "run"))
    recipe = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
    (run / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "resolution": 128}), encoding="utf-8")
    _, (drawn,) = generate(run, "a [V] dog", out="far")
    assert drawn.shape == (128, 128, 3)


def test_pictures_are_drawn_as_the_run_drew_its_own(lab: Lab) -> None:
    """The same seed, sampler, steps and guidance: the picture of the report."""
    manifest = json.loads((lab.run / "samples" / "manifest.json").read_text(encoding="utf-8"))
    entry = next(e for e in manifest["images"] if (e["role"], e["kind"]) == ("after", "subject"))
    theirs = np.asarray(Image.open(lab.run / "samples" / entry["file"]))
    _, (ours,) = generate(lab.run, entry["prompt"], out="again", seed=entry["seed"])
    assert np.abs(ours.astype(int) - theirs).max() <= 1


def test_pictures_go_to_the_next_folder(lab: Lab) -> None:
    prompt = ["a dog", "--inference-steps", 1, "--json"]
    for number in ("001", "002"):
        told = json.loads(call("generate", lab.model, *prompt).out)
        assert told["folder"] == f"images/sd/{number}"
        assert json.loads(Path(told["folder"], "manifest.json").read_text(encoding="utf-8")).items() <= told.items()
    shutil.rmtree("images/sd/001")
    assert json.loads(call("generate", lab.model, *prompt).out)["folder"] == "images/sd/003"
    run = Path(shutil.copytree(lab.run, "run"))
    assert json.loads(call("generate", run, *prompt).out)["folder"] == "run/images/001"


def test_the_embedded_model_draws_without_a_run() -> None:
    folder, (drawn,) = generate("toybox", "a dog", out="dogs")
    assert drawn.std() > 5
    assert json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["adapters"] == []


def test_prior_makes_a_set_that_only_its_class_may_use(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(presets.SAMPLING["sd"].values, "prior_steps", 1)
    line = ["prior", "--model", lab.model, "--count", 1, "--out", "dogs"]
    assert json.loads(call(*line, "--class", "dog", "--json").out) == {"folder": "dogs", "count": 1}
    assert call(*line, "--class", "dog").out == "1 class images in dogs\n"
    said = call(*line, "--class", "cat").refusal
    what = "prompt 'a dog' there, 'a cat' asked"
    assert said == f"dogs holds other class images ({what}): choose another folder or remove it"
    said = train(lab.photos, lab.model, **{"class": "cat", "prior-images": "dogs", "out": "run"}).refusal
    assert said == f"{Path('dogs').absolute()} holds class images of 'a dog', not of 'a cat': choose another"
    assert not Path("run").exists()


def test_report_is_written_anew(lab: Lab) -> None:
    run = Path(shutil.copytree(lab.run, "run"))
    (run / "report.html").unlink()
    assert json.loads(call("report", run, "--json").out) == {"report": "run/report.html"}
    assert (run / "report.html").is_file()


# What is refused, before any work

LONG = "very " * 80 + "old"
Builder = Callable[[Lab], list[object]]


def training(*more: object) -> Builder:
    return lambda lab: ["train", lab.photos, "--class", "dog", "--model", lab.model, *more]


REFUSED: dict[str, tuple[Builder, str]] = {
    "no such command": (lambda lab: ["trian", lab.photos], 'Unknown command "trian". Did you mean "train"?'),
    "no photos": (lambda lab: ["train"], "no photos given: dreambooth train PHOTOS --class dog"),
    "no class": (lambda lab: ["train", lab.photos], "no class given: dreambooth train PHOTOS --class dog"),
    "no such folder": (
        lambda lab: ["train", "photso", "--class", "dog", "--model", lab.model],
        "photso: give the folder that holds the subject's photos",
    ),
    "an empty folder": (
        lambda lab: ["train", folder("empty"), "--class", "dog", "--model", lab.model],
        "empty is empty: put 3 to 5 photos of the subject there",
    ),
    "no readable photo": (
        lambda lab: ["train", folder("notes", "a.jpg"), "--class", "dog", "--model", lab.model],
        "a.jpg: cannot be read",
    ),
    "a space": (training("extra"), "unexpected argument 'extra': quote what has spaces, or leave it out"),
    "an empty noun": (
        lambda lab: ["train", lab.photos, "--class", ""],
        "the class noun is empty: give a noun such as dog, mug or robot",
    ),
    "a noun of two lines": (
        lambda lab: ["train", lab.photos, "--class", "dog\ncat"],
        "the class noun has two lines: give one noun such as dog, mug or robot",
    ),
    "a long noun": (
        lambda lab: ["train", lab.photos, "--class", LONG, "--model", lab.model],
        "the class noun in 'a x very very very very very very very very very very ver...' has 85 tokens, 77 fit",
    ),
    "an identifier that splits": (
        training("--identifier", "zwx"),
        "the identifier 'zwx' splits into 2 tokens (z, wx): type ohwx instead (--allow identifier overrides)",
    ),
    "a negative rank": (training("--rank", -1), "--rank -1: input should be greater than or equal to 1"),
    "a misspelt flag": (training("--rnak", 4), "Unknown option: --rnak. Did you mean --rank?"),
    "a flag of diffusers": (
        training("--max_train_steps", 4),
        "Unknown option: --max_train_steps. Did you mean --steps?",
    ),
    "a flag of kohya": (training("--network-dim=4"), "Unknown option: --network-dim. Did you mean --rank?"),
    "a flag of diffusers for nothing": (
        training("--report_to", "wandb"),
        "Unknown option: --report_to: the run's report.html tells its course, and",
    ),
    "a flag of diffusers to draw with": (
        lambda lab: ["generate", lab.run, "x", "--num_inference_steps", 4],
        "Unknown option: --num_inference_steps. Did you mean --inference-steps?",
    ),
    "a flag of diffusers that this command has not": (
        lambda lab: ["report", lab.run, "--max_train_steps", 4],
        "Unknown option: --max_train_steps.",
    ),
    "a flag without its value": (training("--rank"), "--rank requires an argument"),
    "an unknown key": (
        lambda lab: ["train", lab.photos, "--class", "dog", "--recipe", text("r.yaml", "lerning_rate: 1")],
        "r.yaml: unknown setting 'lerning_rate': did you mean 'learning_rate'?",
    ),
    "an unknown key of a subject": (
        lambda lab: ["train", "--recipe", text("r.yaml", "subjects:\n- {photos: x, clas_noun: dog}\n")],
        "r.yaml: unknown setting 'clas_noun': did you mean 'class_noun'?",
    ),
    "a key that is no word": (
        lambda lab: ["train", lab.photos, "--class", "dog", "--recipe", text("r.yaml", "1: 2")],
        "r.yaml: unknown setting '1': `dreambooth train --help` lists them",
    ),
    "an empty noun beside a recipe": (
        lambda lab: ["train", lab.photos, "--class", "", "--recipe", text("r.yaml", "steps: 2")],
        "the class noun is empty: give a noun such as dog, mug or robot",
    ),
    "a recipe without a class": (
        lambda lab: ["train", "--recipe", text("r.yaml", "subjects:\n- photos: x\n")],
        "no class given: dreambooth train PHOTOS --class dog",
    ),
    "a recipe that is a folder": (lambda lab: ["train", "--recipe", lab.photos], "(Is a directory): give the path"),
    "no recipe": (lambda lab: ["train", "--recipe", "r.yaml"], "no recipe at r.yaml: give the path of a YAML file"),
    "a rate for other training": (
        training("--learning-rate", "5e-6"),
        "--learning-rate 5e-06 is a rate of full fine-tuning, at which a LoRA would learn nothing: "
        "leave it out for 0.0001 (--allow learning-rate overrides)",
    ),
    "a folder of other files": (
        lambda lab: training("--out", folder("other", "a.txt"))(lab),
        "other holds other files and no run: choose another --out",
    ),
    "the photos' own folder": (
        lambda lab: training("--out", lab.photos)(lab),
        "photos holds other files and no run: choose another --out",
    ),
    "a file": (
        lambda lab: training("--out", text("file", "x"))(lab),
        "file is a file: choose another --out",
    ),
    "a folder in a file": (
        lambda lab: training("--out", f"{text('file', 'x')}/run")(lab),
        "file is a file: choose another --out",
    ),
    "a dry run into a file": (
        lambda lab: training("--dry-run", "--out", text("file", "x"))(lab),
        "file is a file: choose another --out",
    ),
    "class images in a file": (
        lambda lab: ["prior", "--class", "dog", "--model", lab.model, "--out", text("file", "x")],
        "file is a file: choose another --out",
    ),
    "an export in a file": (
        lambda lab: ["export", lab.run, "--out", f"{text('file', 'x')}/export"],
        "file is a file: choose another --out",
    ),
    "a comparison in a file": (
        lambda lab: ["evaluate", lab.run, lab.run, "--out", text("file", "x")],
        "file is a file: choose another --out",
    ),
    "a bench in a file": (
        lambda lab: ["bench", lab.home, "--out", text("file", "x")],
        "file is a file: choose another --out",
    ),
    "an average in a file": (
        lambda lab: ["average", lab.run, "--out", f"{text('file', 'x')}/run"],
        "file is a file: choose another --out",
    ),
    "a sheet that is a folder": (
        lambda lab: ["check", lab.photos, "--sheet", folder("sheets")],
        "--sheet sheets is a folder: give a file, such as sheet.png",
    ),
    "a sheet among the photos": (
        lambda lab: ["check", "photos", "--sheet", f"{folder('photos')}/sheet.png"],
        "--sheet photos/sheet.png lies among the photos, and would be taken for one: give another place",
    ),
    "two classes for one folder": (
        lambda lab: ["train", f"{folder('photos')}:dog", "--class", "cat"],
        "--class cat contradicts 'photos:dog': leave one out",
    ),
    "two names for one folder": (
        lambda lab: ["train", f"rex={folder('photos')}:dog", "--identifier", "ohwx"],
        "--identifier ohwx contradicts 'rex=photos:dog': leave one out",
    ),
    "several subjects of which one has no class": (
        lambda lab: ["train", "a=x/y", "b=x/z:mug"],
        "'a=x/y' names no class: of several subjects each is written FOLDER:NOUN",
    ),
    "a bench of no subject": (
        lambda lab: ["bench", folder("subjects"), "--limit", "0"],
        "--limit 0: give at least 1",
    ),
    "a sheet in a file": (
        lambda lab: ["check", lab.photos, "--sheet", f"{text('file', 'x')}/sheet.png"],
        "file is a file: choose another --sheet",
    ),
    "a model without a U-Net": (
        lambda lab: ["train", lab.photos, "--class", "dog", "--model", without_unet(lab.model)],
        "broken has no U-Net: the folder unet is missing; get the whole model again",
    ),
    "a pickle": (
        lambda lab: ["train", lab.photos, "--class", "dog", "--model", text("m.ckpt", "x")],
        "m.ckpt is a pickle: a pickle can run any code when it is opened, so it is never loaded; convert it at ",
    ),
    "a hub model that is not here": (
        lambda lab: ["train", lab.photos, "--class", "dog", "--model", "nobody/nothing"],
        "nobody/nothing is not in the cache and HF_HUB_OFFLINE is set: run `hf download nobody/nothing` where",
    ),
    "a misspelt model": (
        lambda lab: ["train", lab.photos, "--class", "dog", "--model", "toybxo"],
        "there is no model 'toybxo': did you mean toybox?",
    ),
    "fp16 on a CPU": (training("--precision", "fp16"), "--precision fp16 does not work on a CPU: use fp32 or bf16"),
    "a rank without a LoRA": (
        training("--method", "full", "--rank", 4),
        "--rank is a setting of a LoRA: leave it out, or use --method lora",
    ),
    "layers of no LoRA": (
        training("--method", "full", "--targets", "attention"),
        "--targets attention names layers with a LoRA, and none is trained: leave it out, or use --method lora",
    ),
    "an alpha without a LoRA": (
        training("--method", "full", "--alpha", 4),
        "--alpha is a setting of a LoRA: leave it out, or use --method lora",
    ),
    "an odd resolution": (
        training("--resolution", 36),
        "--resolution 36 does not fit this model: give a multiple of 8, such as 32",
    ),
    "a tiny resolution": (training("--resolution", 8), "--resolution 8: input should be greater than or equal to 16"),
    "too much accumulation": (
        training("--accumulation", 3),
        "--accumulation 3 splits a step of 2 images: give 2 or less, or a larger --batch-size",
    ),
    "too much accumulation without a prior": (
        training("--accumulation", 2, "--prior-weight", 0),
        "--accumulation 2 splits a step of 1 image: give 1 or less, or a larger --batch-size",
    ),
    "an unknown sampler": (training("--sampler", "nonsense"), "no sampler 'nonsense': choose from dpm++, "),
    "a scene of another subject": (
        training("--scenes", "a [V2] dog"),
        "prompt 'a [V2] dog' asks for [V2], which is not there: write [V]",
    ),
    "a long scene": (training("--scenes", f"a [V] {LONG}"), "has 85 tokens, 77 fit: shorten it, "),
    "a long caption": (
        lambda lab: ["train", captioned(lab.photos, LONG), "--class", "dog", "--model", lab.model],
        "the caption of 0.png, 'very very ",
    ),
    "a caption of another subject": (
        lambda lab: ["train", captioned(lab.photos, "[V3]"), "--class", "dog", "--model", lab.model],
        "prompt '[V3]' asks for [V3], which is not there: write [V]",
    ),
    "no class images": (
        training("--prior-images", "nowhere"),
        "nowhere: give a folder of real class images as --prior-images",
    ),
    "an unknown refusal": (
        training("--allow", "all"),
        "--allow all: input should be 'identifier', 'learning-rate', 'alpha', 'resolution',",
    ),
    "no such run or model": (
        lambda lab: ["generate", "nothing", "x"],
        "a folder, a file, a hub id or a run folder",
    ),
    "no prompt": (lambda lab: ["generate", lab.run], "PROMPTS requires an argument"),
    "a subject of a base model": (
        lambda lab: ["generate", lab.model, "a [V] dog"],
        "prompt 'a [V] dog' asks for [V], which is not there: leave it out, or give a run: a base model has no subject",
    ),
    "a second subject": (
        lambda lab: ["generate", lab.run, "a [V2] dog"],
        "prompt 'a [V2] dog' asks for [V2], which is not there: write [V]",
    ),
    "an empty prompt": (
        lambda lab: ["generate", lab.run, "a [V] dog", " "],
        "a prompt is empty: write one such as 'a [V] dog in the snow'",
    ),
    "a small letter": (
        lambda lab: ["generate", lab.run, "a [v] dog"],
        "the prompt 'a [v] dog' does not name the subject by [v]: write [V]",
    ),
    "a long prompt": (lambda lab: ["generate", lab.run, LONG], "has 83 tokens, 77 fit: shorten it, '"),
    "a long negative prompt": (
        lambda lab: ["generate", lab.run, "x", "--negative", LONG],
        "the negative prompt 'very very ",
    ),
    "a strength in words": (
        lambda lab: ["generate", lab.run, "x", "--adapter", f"{lab.run}=loud"],
        "=loud: 'loud' is no strength: write RUN=0.8",
    ),
    "a strength without an end": (
        lambda lab: ["generate", lab.run, "x", "--adapter", f"{lab.run}=inf"],
        "=inf: 'inf' is no strength: write RUN=0.8",
    ),
    "no such adapter": (
        lambda lab: ["generate", lab.run, "x", "--adapter", "nothing=1"],
        "there is no run at nothing: give a folder that `dreambooth train` made",
    ),
    "a strength of a fully fine-tuned run": (
        lambda lab: ["generate", fully_tuned(lab.run), "x", "--adapter", "full=0.5"],
        "full is a run of full: only a LoRA run can be an --adapter",
    ),
    "an adapter of another model": (
        lambda lab: ["generate", lab.run, "x", "--adapter", of_another_shape(lab.run)],
        "wider does not fit this model: it was trained on ",
    ),
    "a run whose base has changed": (
        lambda lab: ["generate", on_another_base(lab.run), "x"],
        " is not the one that moved was trained on: put that one back",
    ),
    "an odd size": (
        lambda lab: ["generate", lab.run, "x", "--size", 36],
        "--size 36 does not fit this model: give a multiple of 8",
    ),
    "a huge size": (
        lambda lab: ["generate", lab.run, "x", "--size", 100000],
        "--size 100000 is far from the 32 pixels that this model draws at: give 16 to 64",
    ),
    "a tiny size": (lambda lab: ["generate", lab.model, "x", "--size", 8], "--size 8 is far from the 32 pixels that"),
    "an unknown sampler to draw with": (
        lambda lab: ["generate", lab.run, "x", "--sampler", "no"],
        "no sampler 'no': choose from ",
    ),
    "no count": (lambda lab: ["generate", lab.run, "x", "--count", 0], "--count 0: give at least 1"),
    "a negative seed": (lambda lab: ["generate", lab.run, "x", "--seed", -1], "--seed -1: give at least 0"),
    "no steps": (
        lambda lab: ["generate", lab.run, "x", "--inference-steps", 0],
        "--inference-steps 0: give at least 1",
    ),
    "negative guidance": (lambda lab: ["generate", lab.run, "x", "--guidance", -2], "--guidance -2.0: give at least 0"),
    "pictures among other files": (
        lambda lab: ["generate", lab.run, "x", "--out", lab.photos],
        "photos holds other files than pictures made by this command: choose another --out",
    ),
    "pictures in a run": (
        lambda lab: ["generate", lab.run, "x", "--out", lab.run],
        "run holds other files than pictures made by this command: choose another --out",
    ),
    "pictures in a file": (
        lambda lab: ["generate", lab.run, "x", "--out", text("file", "x")],
        "file is a file: choose another --out",
    ),
    "pictures in a folder in a file": (
        lambda lab: ["generate", lab.run, "x", "--out", f"{text('file', 'x')}/pictures"],
        "file is a file: choose another --out",
    ),
    "no class images to make": (lambda lab: ["prior", "--class", "dog", "--count", 0], "--count 0: give at least 1"),
    "class images of nothing": (lambda lab: ["prior", "--class", " "], "the class noun is empty: give a noun"),
    "a word for an article and a noun": (
        lambda lab: ["identifier", "--class", "a dog", "--model", lab.model],
        "the class noun 'a dog' has an article of its own: give 'dog'",
    ),
    "a noun behind the identifier": (
        lambda lab: ["train", lab.photos, "--class", "[V] dog", "--model", lab.model],
        "the class noun '[V] dog' holds a placeholder: give 'dog' alone",
    ),
    "a noun with a placeholder": (
        lambda lab: ["train", f"{lab.photos}:dog {{class}}", "--model", lab.model],
        "the class noun 'dog {class}' holds a placeholder: give 'dog' alone",
    ),
    "class images of a label": (
        lambda lab: ["prior", "--class", "a [V] dog", "--model", lab.model],
        "the class noun 'a [V] dog' holds a placeholder: give 'dog' alone",
    ),
    "a word for a label": (
        lambda lab: ["identifier", "--class", "a [V] {class}", "--model", lab.model],
        "the class noun 'a [V] {class}' holds a placeholder: give a noun such as dog, mug or robot alone",
    ),
    "photos of a placeholder": (
        lambda lab: ["check", lab.photos, "--class", "dog}", "--model", lab.model],
        "the class noun 'dog}' holds a placeholder: give 'dog' alone",
    ),
    "a word for nothing": (lambda lab: ["identifier", "--class", ""], "the class noun is empty: give a noun"),
    "photos of nothing": (
        lambda lab: ["check", lab.photos, "--class", "the dog", "--model", lab.model],
        "the class noun 'the dog' has an article of its own: give 'dog'",
    ),
    "class images of a long noun": (
        lambda lab: ["prior", "--class", LONG, "--model", lab.model],
        "the class noun in 'a very very ",
    ),
    "class images among other files": (
        lambda lab: ["prior", "--class", "dog", "--model", lab.model, "--out", lab.photos],
        "photos holds files and no manifest of class images: choose an empty folder",
    ),
    "a check of nothing": (
        lambda lab: ["check", "nowhere", "--json"],
        "there is no folder nowhere: give the folder that holds the subject's photos",
    ),
    "a check at no resolution": (
        lambda lab: ["check", lab.photos, "--resolution", 0],
        "--resolution 0: give a side in pixels, such as 512",
    ),
    "a class for nobody": (
        lambda lab: ["check", lab.photos, "--class", "dog"],
        "--class is asked of a model or a segmenter: give --model too, such as --model toybox",
    ),
    "a segmenter that is told no class": (
        lambda lab: ["check", lab.photos, "--segmenter", "nobody/nothing"],
        "--segmenter finds what --class names: give --class too, such as --class dog",
    ),
    "a segmenter that is not here": (
        lambda lab: ["check", lab.photos, "--segmenter", "nobody/nothing", "--class", "dog"],
        "nobody/nothing is not in the cache and HF_HUB_OFFLINE is set: run `hf download nobody/nothing` where",
    ),
    "a bad name on the hub": (
        lambda lab: ["export", lab.run, "--push-to-hub", "bad name"],
        "'bad name' is no repository's name: write OWNER/NAME",
    ),
    "an upload without a network": (
        lambda lab: ["export", lab.run, "--push-to-hub", "me/dog"],
        "HF_HUB_OFFLINE is set, so nothing can be uploaded: unset it",
    ),
    "a report of nothing": (lambda lab: ["report", lab.photos, "--json"], "photos holds no run"),
}


def text(name: str, content: str) -> str:
    Path(name).write_text(content, encoding="utf-8")
    return name


def folder(name: str, *names: str) -> str:
    Path(name).mkdir()
    for each in names:
        (Path(name) / each).write_text("x", encoding="utf-8")
    return name


def without_unet(model: Path) -> str:
    shutil.copytree(model, "broken", ignore=shutil.ignore_patterns("unet"))
    return "broken"


def fully_tuned(run: Path) -> str:
    shutil.copytree(run, "full")
    recipe = yaml.safe_load(Path("full/recipe.yaml").read_text(encoding="utf-8"))
    kept = {name: value for name, value in recipe.items() if name not in ("rank", "alpha")}
    Path("full/recipe.yaml").write_text(yaml.safe_dump({**kept, "method": "full"}), encoding="utf-8")
    return "full"


def of_another_shape(run: Path) -> str:
    shutil.copytree(run, "wider")
    path = Path("wider/adapter/pytorch_lora_weights.safetensors")
    save_file({name: torch.cat([weight, weight], dim=-1) for name, weight in load_file(path).items()}, path)
    return "wider"


def on_another_base(run: Path) -> str:
    shutil.copytree(run, "moved")
    info = json.loads(Path("moved/run.json").read_text(encoding="utf-8"))
    Path("moved/run.json").write_text(json.dumps({**info, "model": {"identity": "sha256:0"}}), encoding="utf-8")
    return "moved"


def captioned(photos: Path, caption: str) -> str:
    shutil.copytree(photos, "captioned")
    Path("captioned/0.txt").write_text(caption, encoding="utf-8")
    return "captioned"


@pytest.mark.parametrize(
    "words", [["generate", "a dog"], ["evaluate"], ["export"], ["report"], ["apply", "art"], ["average"]]
)
@pytest.mark.parametrize(("typed", "meant"), [("runs/dgo", "runs/dog"), ("./runs/dgo", "runs/dog"), ("dgo", "dog")])
def test_a_misspelt_run_is_not_taken_for_a_model_of_the_hub(words: list[str], typed: str, meant: str, lab: Lab) -> None:
    shutil.copytree(lab.run, meant)
    command, *more = words
    said = call(command, typed, *more).refusal
    assert said == f"there is no run at {typed.removeprefix('./')}: did you mean {meant}?"


@pytest.mark.parametrize("typed", ["runs/dgo", "./dgo", "/none/dgo", "mine/cat"])
def test_a_path_without_a_run_is_not_asked_of_the_hub(typed: str, lab: Lab) -> None:
    shutil.copytree(lab.run, "mine/dog")
    assert call("generate", typed, "a dog").refusal == f"there is no run or model at {typed}: check the path"


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_come_before_any_work_in_one_line(case: str, lab: Lab) -> None:
    build, said = REFUSED[case]
    arguments = build(lab)
    before, run = here(), {path: path.stat().st_mtime_ns for path in lab.home.rglob("*")}
    assert said in call(*arguments).refusal
    assert here() == before
    assert {path: path.stat().st_mtime_ns for path in lab.home.rglob("*")} == run


WRITTEN: dict[str, tuple[Builder, str]] = {
    "train": (training("--out", "there/run"), "there (Permission denied): choose another --out"),
    "a dry run": (training("--dry-run", "--out", "there/run"), "there (Permission denied): choose another --out"),
    "prior": (
        lambda lab: ["prior", "--class", "dog", "--model", lab.model, "--out", "there"],
        "there (Permission denied): choose another --out",
    ),
    "generate": (lambda lab: ["generate", lab.run, "x", "--out", "there/x"], "there (Permission denied): choose anoth"),
    "export": (lambda lab: ["export", lab.run, "--out", "there/x"], "there (Permission denied): choose another --out"),
    "average": (lambda lab: ["average", lab.run, "--out", "there/x"], "there (Permission denied): choose another --"),
    "bench": (lambda lab: ["bench", lab.home, "--out", "there"], "there (Permission denied): choose another --out"),
    "evaluate": (lambda lab: ["evaluate", lab.run], "run (Permission denied): copy the run to where you may write"),
    "apply": (lambda lab: ["apply", lab.run, "art"], "run (Permission denied): copy the run to where you may write"),
    "check": (
        lambda lab: ["check", lab.photos, "--sheet", "there/x.png"],
        "there (Permission denied): choose another --sheet",
    ),
}


@pytest.mark.parametrize("case", WRITTEN)
def test_where_nothing_can_be_written_no_work_is_begun(case: str, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root, who may run the tests, may write everywhere."""

    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("dreambooth.files.tempfile.TemporaryFile", refuse)
    build, said = WRITTEN[case]
    folder("there")
    refused = call(*build(lab)).refusal
    assert refused.startswith("cannot write into ")
    assert said in refused
    assert here() == {"there"}


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="a folder of Linux")
def test_a_folder_in_which_even_root_can_make_nothing_is_refused(lab: Lab) -> None:
    refused = call(*training("--out", "/proc/run")(lab)).refusal
    assert re.fullmatch(r"cannot write into /proc \(.*\): choose another --out", refused)
