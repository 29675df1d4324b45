"""Averages chosen after training: their arithmetic by EDM2's own figures, and a run that ships one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dreambooth import post_hoc
from dreambooth.averaging import WIDTHS, Profiles, combine, exponent, mixture
from dreambooth.errors import UserError
from dreambooth.run import Run
from tests import calls
from tests.commands import make_photos


def test_widths_are_those_of_the_paper() -> None:
    """Karras et al. 2023: 0.05 is an exponent of 16.97, 0.10 one of 6.94."""
    assert [exponent(width) for width in (0.05, 0.10)] == pytest.approx([16.97, 6.94], abs=5e-3)
    assert exponent(12**-0.5) == pytest.approx(0)


def test_an_average_that_is_there_is_taken_as_it_is() -> None:
    kept = [(step, width) for step in (100, 200, 400) for width in WIDTHS]
    assert mixture(kept, (400, 0.10)) == pytest.approx(np.eye(6)[5], abs=1e-6)
    assert mixture(kept, (400, 0.13)).sum() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("width", [post_hoc.NARROWEST, 0.05, 0.07, 0.10, 0.15, post_hoc.WIDEST])
def test_an_average_of_another_width_is_made_of_snapshots(width: float, tmp_path: Path) -> None:
    source, weight = torch.Generator().manual_seed(0), torch.zeros(50)
    profiles, direct = Profiles({"w": weight}), torch.zeros(50)
    for step in range(1, 401):
        weight += torch.randn(50, generator=source)
        profiles.update(step)
        direct = torch.lerp(direct, weight, 1 - (1 - 1 / step) ** (exponent(width) + 1))
        if step % 50 == 0:
            profiles.save(tmp_path, step)
    made = combine(tmp_path, width, 400)["w"]
    assert float((made - direct).norm()) < 0.15 * float((weight - direct).norm())


@pytest.fixture
def run(tiny_sd: Path, tmp_path: Path) -> Run:
    photos = make_photos(tmp_path / "photos")
    done = calls.train(photos, tiny_sd, "--ema-profiles", out=tmp_path / "run", steps=16, save_every=5, samples=1)
    assert done.status == 0, done
    return Run(tmp_path / "run")


def _adapter(run: Run) -> dict[str, Tensor]:
    return load_file(run.adapter / "pytorch_lora_weights.safetensors")


def test_a_run_ships_an_average_chosen_afterwards(run: Run) -> None:
    assert [file.stem for file in sorted(run.profiles.iterdir())] == [f"{step:06d}" for step in range(2, 17, 2)]
    (run.path / "applications" / "art").mkdir(parents=True)
    (run.path / "applications" / "art" / "application.json").write_text("{}")
    done = calls.call("average", run.path, "--width", "0.1")
    assert done.status == 0, done
    assert not (run.path.with_name("run-average-0.1") / "applications").exists()
    made = Run(run.path.with_name("run-average-0.1"))
    assert done.out.strip() == str(made.path)
    ours, averaged = _adapter(run), _adapter(made)
    assert ours.keys() == averaged.keys()
    kept = load_file(sorted(run.profiles.iterdir())[-1])
    told = sorted(float(w.norm()) for name, w in kept.items() if name.startswith("profile 0.1."))
    assert sorted(float(w.norm()) for w in averaged.values()) == pytest.approx(told, rel=1e-4)
    assert any(not torch.equal(ours[name], averaged[name]) for name in ours)
    assert made.info["average"] == {"width": 0.1, "of": str(run.path)}
    assert (made.path / "report.html").is_file()
    picture = "after-subject-00-a-V-dog-0.png"
    assert (made.samples / picture).read_bytes() != (run.samples / picture).read_bytes()
    assert calls.call("generate", made.path, "a [V] dog", "--inference-steps", 1).status == 0


def test_what_is_kept_does_not_depend_on_interruptions(run: Run, tiny_sd: Path, tmp_path: Path) -> None:
    for steps in (7, 16):
        done = calls.train(
            tmp_path / "photos", tiny_sd, "--ema-profiles", out=tmp_path / "two", steps=steps, save_every=5
        )
        assert done.status == 0, done
    one, two = (load_file(path / "000016.safetensors") for path in (run.profiles, Run(tmp_path / "two").profiles))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_refusals(run: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--width 0\.5 is none: give a share"):
        post_hoc.average(run.path, 0.5)
    with pytest.raises(UserError, match="lies in the run itself"):
        post_hoc.average(run.path, 0.1, run.path / "averaged")
    with pytest.raises(UserError, match="is there already"):
        post_hoc.average(run.path, 0.1, run.path)
    for file in run.profiles.iterdir():
        file.unlink()
    with pytest.raises(UserError, match="kept nothing to average: train it with --ema-profiles"):
        post_hoc.average(run.path, 0.1)
    run.update(finished=False)
    with pytest.raises(UserError, match="is not finished"):
        post_hoc.average(run.path, 0.1)
    with pytest.raises(UserError, match="holds no run"):
        post_hoc.average(tmp_path, 0.1)
