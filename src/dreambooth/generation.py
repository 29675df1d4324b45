"""Pictures on request: prompts x seeds, from a run or an untouched base model, by the stock pipeline."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from dreambooth import environment, families, methods, presets, prompts, sampling
from dreambooth.errors import UserError
from dreambooth.files import atomic, write_json
from dreambooth.images import grid, save_png
from dreambooth.models import Source, native_resolution, resolve
from dreambooth.precision import DTYPES
from dreambooth.progress import Reporter, Silent
from dreambooth.run import Run
from dreambooth.samples import image_generator
from dreambooth.sampling import Sampling, draw


@dataclass(frozen=True)
class Loaded:
    """A pipeline that is ready to draw.

    Attributes:
        pipe: The stock pipeline, on its device.
        name: What was asked for.
        identifiers: What `[V]`, `[V2]`, ... stand for.
        adapters: Path, strength and hash of each adapter.
        defaults: How it draws when nothing else is said.
        stride: Image sides must be a multiple of this many pixels.
    """

    pipe: DiffusionPipeline
    name: str
    identifiers: tuple[str, ...]
    adapters: list[dict[str, Any]]
    defaults: Sampling
    stride: int


@dataclass(frozen=True)
class Picture:
    """A picture to draw.

    Attributes:
        file: Name of its file.
        prompt: The prompt as given.
        text: What the model is given.
        seed: Seed of its noise.
    """

    file: str
    prompt: str
    text: str
    seed: int


def generate(
    target: str | Path,
    texts: Sequence[str],
    *,
    count: int = 1,
    seed: int = 0,
    out: str | Path | None = None,
    negative: str = "",
    guidance: float | None = None,
    sampler: str | None = None,
    inference_steps: int | None = None,
    size: int | None = None,
    adapters: Sequence[str] = (),
    reporter: Reporter | None = None,
) -> Path:
    """Draw `count` pictures of each prompt and write them with `grid.png` and `manifest.json`.

    Args:
        target: A finished run, or a base model as `--model` takes it.
        texts: Prompts; `[V]` stands for the run's identifier.
        count: Pictures of each prompt, with seeds `seed`, `seed + 1`, ...
        seed: The first seed.
        out: Folder to write. Default: the next `images/N` in the run, or `images/NAME/N` here for a base model.
        negative: Negative prompt.
        guidance: Guidance scale.
        sampler: A name of `sampling.SAMPLERS`.
        inference_steps: Denoising steps.
        size: Image side in pixels.
        adapters: `RUN` or `RUN=strength` of further LoRA runs; the target's own run sets its strength.
        reporter: Listens to the progress.

    Returns:
        The folder.

    Raises:
        UserError: There is no such run, model, sampler or identifier; a prompt is too long; other files lie there.
    """
    reporter = reporter or Silent()
    own = {"sampler": sampler, "steps": inference_steps, "guidance": guidance, "size": size, "negative": negative}
    _check_numbers(count=count, seed=seed, inference_steps=inference_steps, guidance=guidance)
    folder = Path(out) if out else _next_folder(target)
    _check_folder(folder)
    loaded = load(target, adapters)
    settings = _override(loaded.defaults, **own)
    _check_settings(settings, loaded)
    wanted = _pictures(texts, range(seed, seed + count), loaded)
    folder.mkdir(parents=True, exist_ok=True)
    reporter.stage("pictures", len(wanted))
    drawn = []
    generators = [image_generator(picture.seed) for picture in wanted]
    images = draw(loaded.pipe, [picture.text for picture in wanted], generators, settings)
    for picture, image in zip(wanted, images, strict=True):
        with atomic(folder / picture.file) as temporary:
            save_png(image, temporary, {"prompt": picture.text, "seed": str(picture.seed), "model": loaded.name})
        drawn.append(image)
        reporter.advance()
    with atomic(folder / "grid.png") as temporary:
        grid(drawn, columns=count, labels=list(texts)).save(temporary, format="PNG")
    made = {"model": loaded.name, "adapters": loaded.adapters, **asdict(settings)}
    write_json(folder / "manifest.json", {**made, "images": [asdict(picture) for picture in wanted]})
    return folder


def load(target: str | Path, adapters: Sequence[str] = ()) -> Loaded:
    """Load a run or a base model, with further adapters on top.

    Raises:
        UserError: There is no such run or model, or a run is not finished.
    """
    loaded = _load_run(Run(target)) if Run(target).exists else _load_base(str(target))
    strengths = {"subject": 1.0} if loaded.adapters and loaded.adapters[0]["kind"] == "lora" else {}
    identifiers = list(loaded.identifiers)
    for index, text in enumerate(adapters):
        path, strength = _parse_adapter(text)
        if Run(path).path.resolve() == Path(target).resolve():
            _require(bool(strengths), f"{target} is fully fine-tuned and has no strength: leave out --adapter {text}")
            strengths["subject"] = loaded.adapters[0]["strength"] = strength
            continue
        run = Run.open(path)
        _require_finished(run)
        _require(run.recipe.method == "lora", f"{path} is not a LoRA run: only LoRA runs can be added")
        name = f"extra{index}"
        _add(loaded.pipe, run, name)
        strengths[name] = strength
        loaded.adapters.append(_adapter_entry(run, strength))
        identifiers += run.info["identifiers"]
    if strengths:
        loaded.pipe.set_adapters(list(strengths), list(strengths.values()))
    return replace(loaded, identifiers=tuple(identifiers))


def _add(pipe: DiffusionPipeline, run: Run, name: str) -> None:
    try:
        pipe.load_lora_weights(run.adapter, adapter_name=name)
    except RuntimeError as error:  # weights of other shapes
        base = run.info["model"]["name"]
        raise UserError(f"{run.path} does not fit this model: it was trained on {base}, add it to that") from error


def _require_finished(run: Run) -> None:
    mend = f"dreambooth train --recipe {run.path / 'recipe.yaml'} --out {run.path}"
    _require(run.finished_steps is not None, f"{run.path} is not finished: go on with: {mend}")


def _load_run(run: Run) -> Loaded:
    info, recipe = run.info, run.recipe
    _require_finished(run)
    assert recipe.model is not None
    source = resolve(recipe.model, recipe.revision)
    _require(
        source.identity == info["model"]["identity"],
        f"the base model {recipe.model} is not the one that {run.path} was trained on: put that one back",
    )
    family = families.get(source.family)
    pipe = methods.get(recipe.method).load(family, source, recipe, run.adapter)
    defaults = _defaults(source)
    own = {
        "sampler": recipe.sampler,
        "steps": recipe.inference_steps,
        "guidance": recipe.guidance,
        "size": recipe.resolution,
    }
    entry = _adapter_entry(run, 1.0)
    names = tuple(info["identifiers"])
    return Loaded(_ready(pipe), str(run.path), names, [entry], _override(defaults, **own), family.STRIDE)


def _load_base(name: str) -> Loaded:
    source = resolve(name)
    device = environment.processes().device
    family = families.get(source.family)
    pipe = family.load(source, DTYPES["bf16" if device.type == "cuda" else "fp32"])
    return Loaded(_ready(pipe), name, (), [], _defaults(source), family.STRIDE)


def _ready(pipe: DiffusionPipeline) -> DiffusionPipeline:
    return pipe.to(environment.processes().device)


def _defaults(source: Source) -> Sampling:
    values = presets.SAMPLING[presets.key(source)].values
    return Sampling(values["sampler"], values["inference_steps"], values["guidance"], native_resolution(source))


def _override(sampling: Sampling, **values: Any) -> Sampling:
    return Sampling(**{**asdict(sampling), **{name: value for name, value in values.items() if value is not None}})


def _check_numbers(**values: float | None) -> None:
    least = {"count": 1, "seed": 0, "inference_steps": 1, "guidance": 0}
    for name, value in values.items():
        flag = "--" + name.replace("_", "-")
        _require(value is None or value >= least[name], f"{flag} {value}: give at least {least[name]}")


def _check_folder(folder: Path) -> None:
    """Pictures go into an empty folder, or over earlier ones."""
    _require(folder.is_dir() or not folder.exists(), f"{folder} is a file: choose another --out")
    there = [file.name for file in folder.iterdir()] if folder.is_dir() else []
    ours = not there or {"grid.png", "manifest.json"} <= set(there)
    _require(ours, f"{folder} holds other files than pictures made by this command: choose another --out")


def _check_settings(settings: Sampling, loaded: Loaded) -> None:
    sampling.require(settings.sampler)
    stride, size = loaded.stride, settings.size
    _require(size > 0 and size % stride == 0, f"--size {size} does not fit this model: give a multiple of {stride}")
    prompts.require_fits("the negative prompt", settings.negative, prompts.tokenizers(loaded.pipe))


def _pictures(texts: Sequence[str], seeds: Sequence[int], loaded: Loaded) -> list[Picture]:
    _require(bool(texts), "no prompt given: add one such as 'a [V] dog in the snow'")
    pictures = []
    for index, prompt in enumerate(texts):
        text = prompts.fill(prompt, loaded.identifiers)
        prompts.require_fits("the prompt", text, prompts.tokenizers(loaded.pipe))
        name = f"{index:02d}-{_slug(prompt)}"
        pictures += [Picture(f"{name}-{seed}.png", prompt, text, seed) for seed in seeds]
    return pictures


def _parse_adapter(text: str) -> tuple[str, float]:
    path, _, strength = text.partition("=")
    try:
        value = float(strength or 1.0)
    except ValueError:
        value = math.nan
    _require(math.isfinite(value), f"--adapter {text}: '{strength}' is no strength: write RUN=0.8")
    return path, value


def _adapter_entry(run: Run, strength: float) -> dict[str, Any]:
    digest = hashlib.sha256()
    for file in sorted(run.adapter.rglob("*.safetensors")):
        digest.update(file.read_bytes())
    return {"path": str(run.path), "kind": run.recipe.method, "strength": strength, "sha256": digest.hexdigest()}


def _next_folder(target: str | Path) -> Path:
    run = Run(target)
    folder = run.path / "images" if run.exists else Path("images") / _slug(Path(target).name)
    numbers = [int(path.name) for path in folder.glob("*") if path.name.isdigit()]
    return folder / f"{max(numbers, default=0) + 1:03d}"


def _slug(text: str) -> str:
    return re.sub(r"\W+", "-", text.replace("[V]", "V")).strip("-")[:48]


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise UserError(message)
