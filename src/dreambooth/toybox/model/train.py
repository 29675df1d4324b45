"""Trains the networks of a size in their order, in as many pieces as it takes, and records what was done."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from transformers import CLIPModel, CLIPTokenizer

from dreambooth.errors import UserError
from dreambooth.toybox import BASE
from dreambooth.toybox.model import autoencoder, classifiers, clip, denoiser, identity
from dreambooth.toybox.model.engine import Point, Task, fit, restore_average
from dreambooth.toybox.model.renders import World
from dreambooth.toybox.model.sizes import TEXT_LENGTH, Plan, Size

RECORD = "record.json"
MODEL = "model"


@dataclass(frozen=True)
class Bench:
    """What every network is built from.

    Attributes:
        name: Of the size.
        size: Its data.
        world: The renders.
        home: Folder of the size; each network has its own folder in it.
        device: Where to train.
    """

    name: str
    size: Size
    world: World
    home: Path
    device: torch.device


def trained(home: Path, network: str) -> Path:
    """Folder of a finished network's weights.

    Raises:
        UserError: It is not finished.
    """
    if not (home / network / RECORD).exists():
        raise UserError(f"{network} is not trained: run `python -m dreambooth.toybox train {network}` first")
    return home / network / MODEL


def tokenizer() -> CLIPTokenizer:
    """The real CLIP vocabulary, 49,408 tokens, from the package."""
    return CLIPTokenizer.from_pretrained(BASE / "tokenizer", model_max_length=TEXT_LENGTH)


def make_task(network: str, bench: Bench, seed: int) -> Task:
    """The network with its first weights, a function of the seed, on the bench's device."""
    torch.manual_seed(seed)
    return BUILDERS[network](bench)


def train(bench: Bench, network: str, plan: Plan, seed: int, seconds: float | None) -> Iterator[Point]:
    """Trains one network on from where it stands; when its plan is done, writes its model and its record."""
    folder = bench.home / network
    task = make_task(network, bench, seed)
    yield from fit(task, folder, plan, seed=seed, precision=bench.size.precision, seconds=seconds)
    state = restore_average(task, folder, plan)
    if state.step < plan.steps:
        return
    with torch.no_grad():
        task.save(folder / MODEL)
        measured = task.evaluate()
    record = {
        "network": network,
        "size": bench.name,
        "seed": seed,
        "steps": state.step,
        "hours": round(state.seconds / 3600, 3),
        "parameters": sum(parameter.numel() for parameter in task.module.parameters()),
        "renders": len(bench.world.train),
        "measured": measured,
        "plan": asdict(plan),
        "config": bench.size.networks[network].config,
        **surroundings(bench),
    }
    (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n")


def surroundings(bench: Bench) -> dict[str, Any]:
    """The code and the machine."""
    cuda = bench.device.type == "cuda"
    return {
        "commit": _commit(),
        "precision": bench.size.precision,
        "device": torch.cuda.get_device_name(bench.device) if cuda else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def _commit() -> str | None:
    here = Path(__file__).parent
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    answer = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or None


def _shape(bench: Bench, network: str) -> tuple[dict[str, Any], int]:
    chosen = bench.size.networks[network]
    return chosen.config, chosen.plan.batch


def _classifiers(bench: Bench) -> Task:
    config, batch = _shape(bench, "classifiers")
    return classifiers.ClassifierTask(classifiers.build(config, bench.world.train).to(bench.device), bench.world, batch)


def _identity(bench: Bench) -> Task:
    config, batch = _shape(bench, "identity")
    return identity.IdentityTask(identity.build(config).to(bench.device), bench.world, batch)


def _clip(bench: Bench) -> Task:
    config, batch = _shape(bench, "clip")
    return clip.ClipTask(clip.build(config).to(bench.device), bench.world, tokenizer(), batch)


def _autoencoder(bench: Bench) -> Task:
    config, batch = _shape(bench, "autoencoder")
    return autoencoder.AutoencoderTask(autoencoder.build(config).to(bench.device), bench.world, batch)


def _denoiser(bench: Bench) -> Task:
    config, batch = _shape(bench, "denoiser")
    module = denoiser.build(config).to(bench.device)
    vae = AutoencoderKL.from_pretrained(trained(bench.home, "autoencoder")).eval().to(bench.device)
    text = clip.text_half(CLIPModel.from_pretrained(trained(bench.home, "clip"))).to(bench.device)
    path = bench.home / "denoiser" / "latents.safetensors"
    latents_2NCHW, held_out_NCHW = denoiser.cached_latents(vae, bench.world, path)
    return denoiser.DenoiserTask(module, bench.world, latents_2NCHW, held_out_NCHW, text, tokenizer(), batch)


BUILDERS: dict[str, Callable[[Bench], Task]] = {
    "classifiers": _classifiers,
    "identity": _identity,
    "clip": _clip,
    "autoencoder": _autoencoder,
    "denoiser": _denoiser,
}
