"""Pictures on request: prompts x seeds, from a run or an untouched base model, by the stock pipeline."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


from accelerate import PartialState
from diffusers import DiffusionPipeline

from dreambooth import families, methods, presets, prompts
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
    """

    pipe: DiffusionPipeline
    name: str
    identifiers: tuple[str, ...]
    adapters: list[dict[str, Any]]
    defaults: Sampling


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
        out: Folder to write. Default: `images/N` in the run, or `images/NAME` here for a base model.
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
        UserError: There is no such run, model, sampler or identifier.
    """
    reporter = reporter or Silent()
    if not texts:
        raise UserError("no prompt given: add one such as 'a [V] dog in the snow'")
    loaded = load(target, adapters)
    sampling = _override(loaded.defaults, sampler=sampler, steps=inference_steps, guidance=guidance, size=size, negative=negative)
    _check_size(sampling.size, loaded.pipe)
    folder = Path(out) if out else _default_folder(target)
    wanted = [(text, prompts.fill(text, loaded.identifiers), seed + k) for text in texts for k in range(count)]
    reporter.stage("pictures", len(wanted))
    pictures, entries = [], []
    generators = [image_generator(each) for _, _, each in wanted]
    for (text, filled, each), image in zip(
        wanted, draw(loaded.pipe, [filled for _, filled, _ in wanted], generators, sampling), strict=True
    ):
        name = f"{texts.index(text):02d}-{_slug(text)}-{each}.png"
        with atomic(folder / name) as temporary:
            save_png(image, temporary, {"prompt": filled, "seed": str(each), "model": loaded.name})
        pictures.append(image)
        entries.append({"file": name, "prompt": text, "text": filled, "seed": each})
        reporter.advance()
    with atomic(folder / "grid.png") as temporary:
        grid(pictures, columns=count, labels=list(texts)).save(temporary, format="PNG")
    write_json(folder / "manifest.json", {"model": loaded.name, "adapters": loaded.adapters, **asdict(sampling), "images": entries})
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
        _require(run.recipe.method == "lora", f"{path} is not a LoRA run: only LoRA runs can be added")
        name = f"extra{index}"
        loaded.pipe.load_lora_weights(run.adapter, adapter_name=name)
        strengths[name] = strength
        loaded.adapters.append(_adapter_entry(run, strength))
        identifiers += run.info["identifiers"]
    if strengths:
        loaded.pipe.set_adapters(list(strengths), list(strengths.values()))
    return Loaded(loaded.pipe, loaded.name, tuple(identifiers), loaded.adapters, loaded.defaults)


def _load_run(run: Run) -> Loaded:
    info, recipe = run.info, run.recipe
    if not run.adapter.is_dir():
        raise UserError(f"{run.path} has no adapter yet: give its `dreambooth train` command again to finish it")
    assert recipe.model is not None
    source = resolve(recipe.model, recipe.revision)
    _require(
        source.identity == info["model"]["identity"],
        f"the base model {recipe.model} has changed since {run.path} was trained on it: give the model it was trained on",
    )
    pipe = methods.get(recipe.method).load(families.get(source.family), source, recipe, run.adapter)
    defaults = _defaults(source)
    own = {"sampler": recipe.sampler, "steps": recipe.inference_steps, "guidance": recipe.guidance, "size": recipe.resolution}
    entry = _adapter_entry(run, 1.0)
    return Loaded(_ready(pipe), str(run.path), tuple(info["identifiers"]), [entry], _override(defaults, **own))


def _load_base(name: str) -> Loaded:
    source = resolve(name)
    device = PartialState().device
    pipe = families.get(source.family).load(source, DTYPES["bf16" if device.type == "cuda" else "fp32"])
    return Loaded(_ready(pipe), name, (), [], _defaults(source))


def _ready(pipe: DiffusionPipeline) -> DiffusionPipeline:
    return pipe.to(PartialState().device)


def _defaults(source: Source) -> Sampling:
    values = presets.SAMPLING[presets.key(source)].values
    return Sampling(values["sampler"], values["inference_steps"], values["guidance"], native_resolution(source))


def _override(sampling: Sampling, **values: Any) -> Sampling:
    return Sampling(**{**asdict(sampling), **{name: value for name, value in values.items() if value is not None}})


def _check_size(size: int, pipe: DiffusionPipeline) -> None:
    stride = pipe.vae_scale_factor
    _require(size > 0 and size % stride == 0, f"--size {size} does not fit this model: give a multiple of {stride}")


def _parse_adapter(text: str) -> tuple[str, float]:
    path, _, strength = text.partition("=")
    try:
        return path, float(strength or 1.0)
    except ValueError:
        raise UserError(f"--adapter {text}: '{strength}' is no number; write RUN=0.8") from None


def _adapter_entry(run: Run, strength: float) -> dict[str, Any]:
    digest = hashlib.sha256()
    for file in sorted(run.adapter.rglob("*.safetensors")):
        digest.update(file.read_bytes())
    return {"path": str(run.path), "kind": run.recipe.method, "strength": strength, "sha256": digest.hexdigest()}


def _default_folder(target: str | Path) -> Path:
    if not Run(target).exists:
        return Path("images") / _slug(Path(target).name)
    folder = Run(target).path / "images"
    return folder / f"{len(list(folder.glob('*'))) + 1:03d}"


def _slug(text: str) -> str:
    return re.sub(r"\W+", "-", text.replace("[V]", "V")).strip("-")[:48]


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise UserError(message)
