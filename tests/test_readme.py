"""The commands and the code of the README run."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from dreambooth.toybox import SUBJECTS
from tests.calls import call

README = Path(__file__).parents[1] / "README.md"
QUICK = "--steps 2 --prior-count 1 --prior-steps 2 --inference-steps 2 --samples 1"
"""Added to what trains: a run of the README's length would not fit a test."""


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def commands() -> list[str]:
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    return [line.split("  #")[0].strip() for line in lines if line.strip()]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the photos that the README speaks of."""
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(SUBJECTS / "spotted_dog" / "photos", folder / "photos" / "dog")
    return folder


def test_the_first_commands_are_the_makefiles() -> None:
    assert [line.split()[0:2] for line in commands()[:2]] == [["make", "demo"], ["make", "test"]]
    makefile = (README.parent / "Makefile").read_text(encoding="utf-8")
    assert re.search(r"^demo: install$", makefile, re.MULTILINE)
    assert re.search(r"^test: install$", makefile, re.MULTILINE)


def test_every_command_runs(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    ran = 0
    for line in commands()[2:]:
        words = shlex.split(line)
        assert words[0] == "dreambooth", line
        extra = shlex.split(QUICK) if words[1] == "train" and "--dry-run" not in words else []
        extra = ["--inference-steps", "2"] if words[1] == "generate" else extra
        words = ["--count=1" if word == "--count=50" else word for word in words]
        if words[1] == "prior":
            words[words.index("--count") + 1] = "1"
        done = call(*words[1:], *extra)
        assert done.status == 0, f"{line}\n{done.err}"
        ran += 1
    assert ran >= 8


def test_the_python_runs(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = blocks("python")
    quick = "model='toybox', steps=2, prior_count=1, prior_steps=2, inference_steps=2, samples=0"
    assert 'model="toybox"' in code
    monkeypatch.chdir(home)
    shutil.rmtree(home / "runs" / "dog", ignore_errors=True)
    exec(compile(code.replace('model="toybox"', quick), "README.md", "exec"), {})
    assert len(list((home / "runs" / "dog" / "images").rglob("00-*.png"))) == 2


def test_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\((?!http)([^)]+)\)", README.read_text(encoding="utf-8")):
        assert (README.parent / link).exists(), link
