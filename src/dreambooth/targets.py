"""What pictures are drawn from: a run or a base model, and what is put on top of it."""

from __future__ import annotations

import hashlib
import math
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from dreambooth import environment, families, methods, presets
from dreambooth.errors import UserError, require
from dreambooth.models import CARDS, Source, native_resolution, resolve
from dreambooth.placing import place
from dreambooth.precision import DTYPES
from dreambooth.run import Run, beside, missing, nearest
from dreambooth.sampling import Sampling


@dataclass(frozen=True)
class Target:
    """What pictures are drawn from, found and accepted, and not yet loaded.

    Attributes:
        name: What was asked for.
        source: The base model.
        run: The run, where a run was asked for.
        strength: Strength of its LoRA; None for a base model and for a fully fine-tuned one.
        extras: Further LoRA runs and their strengths.
        defaults: How it draws when nothing else is said.
        files: Other trainers' LoRA files and their strengths.
    """

    name: str
    source: Source
    run: Run | None
    strength: float | None
    extras: list[tuple[Run, float]]
    defaults: Sampling
    files: Sequence[tuple[Path, float]] = ()

    @property
    def adapters(self) -> list[tuple[Run, float]]:
        """All runs in it and their strengths."""
        own = [] if self.run is None else [(self.run, 1.0 if self.strength is None else self.strength)]
        return own + self.extras

    @property
    def identifiers(self) -> list[str]:
        """What the subjects of all these runs are called."""
        return [name for run, _ in self.adapters for name in run.info["identifiers"]]


def find(name: str | Path, adapters: Sequence[str] = ()) -> Target:
    """Find a run or a base model, and further LoRA runs to put on top of it.

    Raises:
        UserError: There is no such run or model, a run is not finished, or a run that is to have a strength has none.
    """
    given = [_parse_adapter(text) for text in adapters if not _is_lora_file(text)]
    files = [_parse_file(text) for text in adapters if _is_lora_file(text)]
    run = Run(name)
    if not run.exists:
        source = _base(str(name))
        for other, _ in given:
            _require_lora_file(other)
            _require_family(other, source)
        return Target(str(name), source, None, None, given, _defaults(source), files)
    _require_finished(run)
    recipe = run.recipe
    assert recipe.model is not None
    source = resolve(recipe.model, recipe.revision)
    require(
        source.identity == run.info["model"]["identity"],
        f"the base model {recipe.model} is not the one that {run.path} was trained on: put that one back",
    )
    strengths = [strength for other, strength in given if _is_same(other, run)]
    strength = [1.0, *strengths][-1] if recipe.has_strength else None
    extras = [(other, strength) for other, strength in given if not _is_same(other, run)]
    own_fits = not (extras or files) or not recipe.has_adapter or recipe.is_lora
    require(
        own_fits, f"{run.path} is a run of {run.recipe.kind}, which goes with no other adapter: leave --adapter out"
    )
    for other, _ in extras:
        _require_lora_file(other)
        _require_family(other, source)
    guidance = run.info.get("selection", {}).get("guidance", recipe.guidance)
    own = {"sampler": recipe.sampler, "steps": recipe.inference_steps, "guidance": guidance}
    defaults = override(_defaults(source), size=recipe.resolution, consistency=recipe.consistency, **own)
    return Target(str(run.path), source, run, strength, extras, defaults, files)


def _base(name: str) -> Source:
    """Find a base model. A name that is rather a mistyped run's is not asked of the hub."""
    path = Path(name).expanduser()
    if not path.exists() and all(card.name != name for card in CARDS):
        if nearest(path):
            raise missing(path)
        is_path = name.startswith((".", "/", "~", "runs/")) or ("/" in name and bool(beside(path)))
        require(not is_path, f"there is no run or model at {name}: check the path")
    return resolve(name, kinds="a folder, a file, a hub id or a run folder")


def load(target: Target) -> DiffusionPipeline:
    """Load the stock pipeline, with the adapters at their strengths, onto its device.

    Raises:
        UserError: An adapter does not fit the model.
    """
    device = environment.processes().device
    family = families.get(target.source.family)
    if target.run is None:
        pipe = family.load(target.source, DTYPES["bf16" if device.type == "cuda" else "fp32"])
    else:
        recipe = target.run.recipe
        pipe = methods.get(recipe.method).load(family, target.source, recipe, target.run.adapter)
    strengths = {} if target.strength is None else {"subject": target.strength}
    for index, (run, strength) in enumerate(target.extras):
        _add(pipe, run, f"extra{index}")
        strengths[f"extra{index}"] = strength
    if target.files:
        from dreambooth.export import reading  # which itself finds runs by `targets`
    for index, (file, strength) in enumerate(target.files):
        reading.add(pipe, file, f"file{index}")
        strengths[f"file{index}"] = strength
    if strengths:
        pipe.set_adapters(list(strengths), list(strengths.values()))
    return place(pipe, device)


def _add(pipe: DiffusionPipeline, run: Run, name: str) -> None:
    try:
        pipe.load_lora_weights(run.adapter, adapter_name=name)
    except RuntimeError as error:  # weights of other shapes
        base = run.info["model"]["name"]
        raise UserError(f"{run.path} does not fit this model: it was trained on {base}, add it to that") from error


def _require_family(run: Run, source: Source) -> None:
    """Refuse an adapter of another family: diffusers would leave out what has no place, and load the rest."""
    base = run.info["model"]
    mend = f"{run.path} does not fit this model: it was trained on {base['name']}, add it to that"
    require(base["family"] == source.family, mend)


def _is_same(run: Run, other: Run) -> bool:
    return run.path.resolve() == other.path.resolve()


def _require_finished(run: Run) -> None:
    mend = shlex.join(["dreambooth", "train", "--recipe", str(run.path / "recipe.yaml"), "--out", str(run.path)])
    what = f"{run.adapter} holds no weights" if run.info["finished"] else f"{run.path} is not finished"
    require(run.finished_steps is not None, f"{what}: go on with: {mend}")


def _defaults(source: Source) -> Sampling:
    values = presets.SAMPLING[presets.key(source)].values
    return Sampling(values["sampler"], values["inference_steps"], values["guidance"], native_resolution(source))


def override(sampling: Sampling, **values: Any) -> Sampling:
    """Return a sampling with other values; None leaves one as it is."""
    return Sampling(**{**asdict(sampling), **{name: value for name, value in values.items() if value is not None}})


def _parted(text: str) -> tuple[str, str]:
    """Part a path and a strength; a path may hold a "=" itself."""
    path, equals, strength = text.rpartition("=")
    return (path, strength) if equals and not Path(text).exists() else (text, "")


def _strength(text: str) -> tuple[str, float]:
    path, strength = _parted(text)
    try:
        value = float(strength or 1.0)
    except ValueError:
        value = math.nan
    require(math.isfinite(value), f"--adapter {text}: '{strength}' is no strength: write RUN=0.8")
    return path, value


def _is_lora_file(text: str) -> bool:
    return _parted(text)[0].endswith(".safetensors")


def _parse_file(text: str) -> tuple[Path, float]:
    path, value = _strength(text)
    require(Path(path).is_file(), f"there is no file {path}: give a run folder or a LoRA in a .safetensors file")
    return Path(path), value


def _parse_adapter(text: str) -> tuple[Run, float]:
    path, value = _strength(text)
    run = Run.open(path)
    _require_finished(run)
    require(run.recipe.has_strength, f"{path} is a run of {run.recipe.kind}: only a LoRA run can be an --adapter")
    return run, value


def _require_lora_file(run: Run) -> None:
    """A run on top of another: stock diffusers adds LoRA files alone, at all times and without a token."""
    fits = run.recipe.is_plain_lora
    require(fits, f"{run.path} is a run of {run.recipe.kind}: only a plain LoRA can be put on top of another model")


def digest(run: Run) -> str:
    """Return the sha256 of what a run ships."""
    found = hashlib.sha256()
    for file in sorted(run.adapter.rglob("*.safetensors")):
        found.update(file.read_bytes())
    return found.hexdigest()
