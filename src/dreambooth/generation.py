"""Pictures on request: prompts x seeds, from a run or an untouched base model, by the stock pipeline."""

from __future__ import annotations

import hashlib
import math
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from diffusers import DiffusionPipeline

from dreambooth import environment, families, methods, presets, prompts, samples, sampling
from dreambooth.errors import UserError
from dreambooth.files import atomic, require_writable, write_json
from dreambooth.images import grid, save_png
from dreambooth.mistakes import SIDE_FACTOR
from dreambooth.models import CARDS, Source, native_resolution, resolve
from dreambooth.placing import place
from dreambooth.precision import DTYPES
from dreambooth.progress import Reporter, Silent
from dreambooth.run import Run, beside, missing, nearest
from dreambooth.sampling import Sampling, draw

SMALL = re.compile(r"\[v\d*\]")
"""What is typed for `[V]` and stands for nothing."""


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
    consistency: float | Literal["off"] | None = None,
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
        consistency: Share of what a LoRA changed, in DCO's guidance by the frozen model (`consistency.guided`); "off":
            without that guidance, whatever the run's recipe says.
        adapters: `RUN` or `RUN=strength` of further LoRA runs; the target's own run sets its strength. `FILE` or
            `FILE=strength` of another trainer's LoRA in a `.safetensors` file.
        reporter: Listens to the progress.

    Returns:
        The folder.

    Raises:
        UserError: There is no such run, model, sampler or identifier; a prompt is too long; other files lie there.
    """
    reporter = reporter or Silent()
    share = None if consistency == "off" else consistency
    _check_numbers(count=count, seed=seed, inference_steps=inference_steps, guidance=guidance, consistency=share)
    folder = Path(out) if out else _next_folder(target)
    require_writable(folder)
    found = find(target, adapters)
    sampling.require_prompted(found.source.family)
    given = {"sampler": sampler, "steps": inference_steps, "guidance": guidance, "size": size, "negative": negative}
    settings = _override(found.defaults, **given, consistency=share)
    if consistency == "off":
        settings = replace(settings, consistency=None)
    _check_settings(settings, found)
    _check_consistency(settings, found)
    wanted = _pictures(texts, range(seed, seed + count), found)
    _check_folder(folder, {each.file for each in wanted})
    pipe = load(found)
    _check_lengths([("the negative prompt", negative), *(("the prompt", each.text) for each in wanted)], pipe)
    for warning in (*_clashes(found), *_unnamed(wanted, found)):
        reporter.say(f"warning: {warning}")
    folder.mkdir(parents=True, exist_ok=True)
    reporter.stage("pictures", len(wanted))
    drawn = []
    generators = [samples.image_generator(each.seed) for each in wanted]
    images = draw(pipe, [each.text for each in wanted], generators, settings)
    for picture, image in zip(wanted, images, strict=True):
        with atomic(folder / picture.file) as temporary:
            save_png(image, temporary, {"prompt": picture.text, "seed": str(picture.seed), "model": found.name})
        drawn.append(image)
        reporter.advance()
    with atomic(folder / "grid.png") as temporary:
        grid(drawn, columns=count, labels=list(texts)).save(temporary, format="PNG")
    made = {"model": found.name, "adapters": [_entry(*each) for each in found.adapters], **settings.document}
    if found.files:
        made["files"] = [{"path": str(file), "strength": strength} for file, strength in found.files]
    write_json(folder / "manifest.json", {**made, "images": [asdict(picture) for picture in wanted]})
    return folder


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
        return Target(str(name), source, None, None, given, _defaults(source), files)
    _require_finished(run)
    recipe = run.recipe
    assert recipe.model is not None
    source = resolve(recipe.model, recipe.revision)
    _require(
        source.identity == run.info["model"]["identity"],
        f"the base model {recipe.model} is not the one that {run.path} was trained on: put that one back",
    )
    strengths = [strength for other, strength in given if _is_same(other, run)]
    strength = [1.0, *strengths][-1] if recipe.has_strength else None
    extras = [(other, strength) for other, strength in given if not _is_same(other, run)]
    own_fits = not (extras or files) or not recipe.has_adapter or recipe.is_lora
    _require(
        own_fits, f"{run.path} is a run of {run.recipe.kind}, which goes with no other adapter: leave --adapter out"
    )
    for other, _ in extras:
        _require_lora_file(other)
    guidance = run.info.get("selection", {}).get("guidance", recipe.guidance)
    own = {"sampler": recipe.sampler, "steps": recipe.inference_steps, "guidance": guidance}
    defaults = _override(_defaults(source), size=recipe.resolution, consistency=recipe.consistency, **own)
    return Target(str(run.path), source, run, strength, extras, defaults, files)


def _base(name: str) -> Source:
    """Find a base model. A name that is rather a mistyped run's is not asked of the hub."""
    path = Path(name).expanduser()
    if not path.exists() and all(card.name != name for card in CARDS):
        if nearest(path):
            raise missing(path)
        is_path = name.startswith((".", "/", "~", "runs/")) or ("/" in name and bool(beside(path)))
        _require(not is_path, f"there is no run or model at {name}: check the path")
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
        from dreambooth.export import reading  # which itself finds runs by this module
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


def _is_same(run: Run, other: Run) -> bool:
    return run.path.resolve() == other.path.resolve()


def _require_finished(run: Run) -> None:
    mend = shlex.join(["dreambooth", "train", "--recipe", str(run.path / "recipe.yaml"), "--out", str(run.path)])
    what = f"{run.adapter} holds no weights" if run.info["finished"] else f"{run.path} is not finished"
    _require(run.finished_steps is not None, f"{what}: go on with: {mend}")


def _defaults(source: Source) -> Sampling:
    values = presets.SAMPLING[presets.key(source)].values
    return Sampling(values["sampler"], values["inference_steps"], values["guidance"], native_resolution(source))


def _override(sampling: Sampling, **values: Any) -> Sampling:
    return Sampling(**{**asdict(sampling), **{name: value for name, value in values.items() if value is not None}})


def _check_numbers(**values: float | None) -> None:
    least = {"count": 1, "seed": 0, "inference_steps": 1, "guidance": 0, "consistency": 0}
    for name, value in values.items():
        flag = "--" + name.replace("_", "-")
        _require(value is None or value >= least[name], f"{flag} {value}: give at least {least[name]}")


def _check_folder(folder: Path, files: set[str]) -> None:
    """Pictures go into an empty folder, or over earlier ones, of which an interruption may have left a part."""
    there = {file.name for file in folder.iterdir() if not file.name.endswith(".tmp")} if folder.is_dir() else set()
    ours = {"grid.png", "manifest.json"} <= there or there <= files | {"grid.png"}
    _require(ours, f"{folder} holds other files than pictures made by this command: choose another --out")


def _check_settings(settings: Sampling, target: Target) -> None:
    sampling.require(settings.sampler)
    size, stride, native = settings.size, families.get(target.source.family).STRIDE, native_resolution(target.source)
    _require(size > 0 and size % stride == 0, f"--size {size} does not fit this model: give a multiple of {stride}")
    least, most = native / SIDE_FACTOR, native * SIDE_FACTOR
    far = f"--size {size} is far from the {native} pixels that this model draws at: give {least:g} to {most:g}"
    _require(least <= size <= most or size == target.defaults.size, far)  # at its own size a run was told to train


def _check_consistency(settings: Sampling, target: Target) -> None:
    if settings.consistency is None:
        return
    mend = "give --consistency off, or leave it out"
    _require(bool(target.adapters or target.files), f"{target.name} has no LoRA: {mend}")
    for run, _ in target.adapters:
        alone = f"{run.path} is no run of a LoRA of the denoiser alone, which --consistency leaves out: {mend}"
        _require(run.recipe.adapts_denoiser_alone, alone)


def _check_lengths(named_texts: Sequence[tuple[str, str]], pipe: DiffusionPipeline) -> None:
    for what, text in named_texts:
        prompts.require_fits(what, text, prompts.readers(pipe))


def _pictures(texts: Sequence[str], seeds: Sequence[int], target: Target) -> list[Picture]:
    _require(bool(texts), "no prompt given: add one such as 'a [V] dog in the snow'")
    for text in texts:
        _require(bool(text.strip()), "a prompt is empty: write one such as 'a [V] dog in the snow'")
        small = SMALL.search(text)
        _require(not small, f"the prompt '{text}' does not name the subject by {small and small[0]}: write [V]")
    filled = [(index, prompt, prompts.fill(prompt, target.identifiers)) for index, prompt in enumerate(texts)]
    return [
        Picture(f"{index:02d}-{_slug(prompt)}-{seed}.png", prompt, text, seed)
        for index, prompt, text in filled
        for seed in seeds
    ]


def _unnamed(wanted: Sequence[Picture], target: Target) -> Iterator[str]:
    """Say that a run's subject is in no picture, or that one prompt has come as many, without its quotes."""
    given = [each.prompt for each in wanted if each.seed == wanted[0].seed]
    is_split = len(given) > 1 and all(len(prompt.split()) == 1 for prompt in given)
    if is_split and any(prompts.PLACEHOLDER.fullmatch(prompt) for prompt in given):
        yield f"these are {len(given)} prompts of one word each: write one in quotes: '{' '.join(given)}'"
    names = [re.compile(rf"(?<!\w){re.escape(name)}(?!\w)") for name in target.identifiers]
    if names and not any(name.search(each.text) for name in names for each in wanted):
        yield "no prompt names the subject: write [V]"


def _clashes(target: Target) -> Iterator[str]:
    """Say which runs' subjects have one name; runs that share a photo share the subject."""
    owners: dict[str, Run] = {}
    for run, _ in target.adapters:
        for name in run.info["identifiers"]:
            owner = owners.setdefault(name, run)
            if _photos(owner).isdisjoint(_photos(run)):
                mend = "no prompt can tell them apart: train one of them anew with another --identifier"
                yield f"'{name}' is the subject of {owner.path}, and another one of {run.path}: {mend}"


def _photos(run: Run) -> set[str]:
    return {photo["id"] for photo in run.info["photos"]}


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
    _require(math.isfinite(value), f"--adapter {text}: '{strength}' is no strength: write RUN=0.8")
    return path, value


def _is_lora_file(text: str) -> bool:
    return _parted(text)[0].endswith(".safetensors")


def _parse_file(text: str) -> tuple[Path, float]:
    path, value = _strength(text)
    _require(Path(path).is_file(), f"there is no file {path}: give a run folder or a LoRA in a .safetensors file")
    return Path(path), value


def _parse_adapter(text: str) -> tuple[Run, float]:
    path, value = _strength(text)
    run = Run.open(path)
    _require_finished(run)
    _require(run.recipe.has_strength, f"{path} is a run of {run.recipe.kind}: only a LoRA run can be an --adapter")
    return run, value


def _require_lora_file(run: Run) -> None:
    """A run on top of another: stock diffusers adds LoRA files alone, at all times and without a token."""
    fits = run.recipe.is_plain_lora
    _require(fits, f"{run.path} is a run of {run.recipe.kind}: only a plain LoRA can be put on top of another model")


def digest(run: Run) -> str:
    """Return the sha256 of what a run ships."""
    found = hashlib.sha256()
    for file in sorted(run.adapter.rglob("*.safetensors")):
        found.update(file.read_bytes())
    return found.hexdigest()


def _entry(run: Run, strength: float) -> dict[str, Any]:
    return {"path": str(run.path), "kind": run.recipe.method, "strength": strength, "sha256": digest(run)}


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
