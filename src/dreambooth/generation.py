"""Pictures on request: prompts x seeds, from a run or an untouched base model, by the stock pipeline."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from diffusers import DiffusionPipeline

from dreambooth import families, prompts, samples, sampling
from dreambooth.errors import require
from dreambooth.files import atomic, require_writable, write_json
from dreambooth.images import grid, save_png
from dreambooth.mistakes import SIDE_FACTOR
from dreambooth.models import native_resolution
from dreambooth.progress import Reporter, Silent
from dreambooth.run import Run
from dreambooth.sampling import Sampling, draw
from dreambooth.targets import Target, digest, find, load, override

SMALL = re.compile(r"\[v\d*\]")
"""What is typed for `[V]` and stands for nothing."""


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
    settings = override(found.defaults, **given, consistency=share)
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


def _check_numbers(**values: float | None) -> None:
    least = {"count": 1, "seed": 0, "inference_steps": 1, "guidance": 0, "consistency": 0}
    for name, value in values.items():
        flag = "--" + name.replace("_", "-")
        require(value is None or value >= least[name], f"{flag} {value}: give at least {least[name]}")


def _check_folder(folder: Path, files: set[str]) -> None:
    """Pictures go into an empty folder, or over earlier ones, of which an interruption may have left a part."""
    there = {file.name for file in folder.iterdir() if not file.name.endswith(".tmp")} if folder.is_dir() else set()
    ours = {"grid.png", "manifest.json"} <= there or there <= files | {"grid.png"}
    require(ours, f"{folder} holds other files than pictures made by this command: choose another --out")


def _check_settings(settings: Sampling, target: Target) -> None:
    sampling.require(settings.sampler)
    size, stride, native = settings.size, families.get(target.source.family).STRIDE, native_resolution(target.source)
    require(size > 0 and size % stride == 0, f"--size {size} does not fit this model: give a multiple of {stride}")
    least, most = native / SIDE_FACTOR, native * SIDE_FACTOR
    far = f"--size {size} is far from the {native} pixels that this model draws at: give {least:g} to {most:g}"
    require(least <= size <= most or size == target.defaults.size, far)  # at its own size a run was told to train


def _check_consistency(settings: Sampling, target: Target) -> None:
    if settings.consistency is None:
        return
    mend = "give --consistency off, or leave it out"
    require(bool(target.adapters or target.files), f"{target.name} has no LoRA: {mend}")
    for run, _ in target.adapters:
        alone = f"{run.path} is no run of a LoRA of the denoiser alone, which --consistency leaves out: {mend}"
        require(run.recipe.adapts_denoiser_alone, alone)


def _check_lengths(named_texts: Sequence[tuple[str, str]], pipe: DiffusionPipeline) -> None:
    for what, text in named_texts:
        prompts.require_fits(what, text, prompts.readers(pipe))


def _pictures(texts: Sequence[str], seeds: Sequence[int], target: Target) -> list[Picture]:
    require(bool(texts), "no prompt given: add one such as 'a [V] dog in the snow'")
    for text in texts:
        require(bool(text.strip()), "a prompt is empty: write one such as 'a [V] dog in the snow'")
        small = SMALL.search(text)
        require(not small, f"the prompt '{text}' does not name the subject by {small and small[0]}: write [V]")
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


def _entry(run: Run, strength: float) -> dict[str, Any]:
    return {"path": str(run.path), "kind": run.recipe.method, "strength": strength, "sha256": digest(run)}


def _next_folder(target: str | Path) -> Path:
    run = Run(target)
    folder = run.path / "images" if run.exists else Path("images") / _slug(Path(target).name)
    numbers = [int(path.name) for path in folder.glob("*") if path.name.isdigit()]
    return folder / f"{max(numbers, default=0) + 1:03d}"


def _slug(text: str) -> str:
    return re.sub(r"\W+", "-", text.replace("[V]", "V")).strip("-")[:48]
