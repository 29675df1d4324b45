"""Handing a run on: to diffusers, to programs with kohya's LoRA names, to ComfyUI, as a checkpoint, or merged.

What is written is read back before it is put in place; docs/export.md says which reader proved which format.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file
from torch import Tensor

from dreambooth import families, methods
from dreambooth.errors import RunError, UserError
from dreambooth.export import card, metadata, names, original, reading
from dreambooth.files import atomic_folder, require_writable, write_json
from dreambooth.models import Source, safetensors_header
from dreambooth.precision import storage_dtype
from dreambooth.recipe import Recipe
from dreambooth.run import Run
from dreambooth.targets import find

MANIFEST = "export.json"
"""Marks a folder that may be written again."""


@dataclass(frozen=True)
class Shipment:
    """A finished run on its way out.

    Attributes:
        run: The run.
        source: Its base model.
    """

    run: Run
    source: Source

    @property
    def name(self) -> str:
        """Name of what is written: the run folder's."""
        return self.run.path.resolve().name

    @property
    def method(self) -> str:
        """How the run was trained."""
        return self.run.recipe.method

    def base(self) -> DiffusionPipeline:
        """Load the untouched base model."""
        return families.get(self.source.family).load(self.source, storage_dtype(self.run.recipe))

    def merged(self) -> DiffusionPipeline:
        """Load the trained model without any adapter left: the LoRA is added to the weights in float32."""
        recipe, family = self.run.recipe, families.get(self.source.family)
        if recipe.method == "full":
            return methods.get("full").load(family, self.source, recipe, self.run.adapter)
        pipe = family.load(self.source, torch.float32)
        pipe.load_lora_weights(self.run.adapter)
        pipe.fuse_lora(components=list(pipe.get_list_adapters()))  # by itself it leaves FLUX's text encoder out
        pipe.unload_lora_weights()
        return pipe.to(storage_dtype(recipe))

    def describe(self, pipe: DiffusionPipeline, adapter: str | None) -> dict[str, str]:
        """Return what a file says of itself; see `metadata.model_spec`."""
        licence = self.source.card.licence if self.source.card else None
        return metadata.model_spec(self.run, pipe, licence, adapter)


@dataclass(frozen=True)
class Format:
    """A form in which a run can be handed on.

    Attributes:
        write: Writes it into an empty folder.
        holds: Whether it can hold what a recipe trains.
        families: Families that it can hold; None for all.
        proof: What is known of the files: what was read back now, and what the tests of the package prove.
    """

    write: Callable[[Shipment, Path], None]
    holds: Callable[[Recipe], bool]
    families: tuple[str, ...] | None
    proof: str


def export(run: str | Path, format: str, out: str | Path | None = None) -> Path:
    """Write a finished run in the form that other programs read, with a model card.

    Args:
        run: The run folder.
        format: A name of `FORMATS`.
        out: Folder to write; an earlier export there is replaced. Default: `export/FORMAT` in the run.

    Returns:
        The folder.

    Raises:
        UserError: There is no such run or format, the format cannot hold the run, or other files lie there.
        RunError: The disk is full, or what was written does not read back; then nothing is left.
    """
    found = Run.open(run)
    if format not in FORMATS:
        raise UserError(f"no format '{format}': choose from {', '.join(FORMATS)}")
    folder = Path(out) if out else found.path / "export" / format
    require_writable(folder.parent)
    _check_folder(folder)
    shipment = Shipment(found, find(found.path).source)
    _require_possible(shipment, format)
    with atomic_folder(folder) as temporary:
        FORMATS[format].write(shipment, temporary)
        files = sorted(path for path in temporary.rglob("*") if path.is_file())
        hashes = {path.relative_to(temporary).as_posix(): _sha256(path) for path in files}
        card.write(found, shipment.source, format, temporary)
        info = found.info
        made = {"format": format, "run": info["identity"], "model": info["model"], "proof": FORMATS[format].proof}
        made["sha256"] = hashes
        write_json(temporary / MANIFEST, made)
    return folder


def _require_possible(shipment: Shipment, format: str) -> None:
    wanted = FORMATS[format]
    can = [name for name, other in FORMATS.items() if _holds(other, shipment)]
    if _holds(wanted, shipment):
        return
    what = f"a run of {shipment.run.recipe.kind} and the family {shipment.source.family}"
    raise UserError(f"--format {format} cannot hold {shipment.run.path}, {what}: choose {' or '.join(can)}")


def _holds(format: Format, shipment: Shipment) -> bool:
    fits = format.families is None or shipment.source.family in format.families
    return fits and format.holds(shipment.run.recipe)


def _check_folder(folder: Path) -> None:
    if folder.suffix == ".safetensors":
        raise UserError(f"--out {folder} names a file, and --out is a folder: give {folder.with_suffix('')}")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: choose another --out")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MANIFEST).is_file():
        raise UserError(f"{folder} holds other files than an export: choose another --out")


def _as_trained(shipment: Shipment, folder: Path) -> None:
    """Write what the run ships, as stock diffusers loads it; adapters describe themselves."""
    shutil.copytree(shipment.run.adapter, folder, dirs_exist_ok=True)
    own = sorted(shipment.run.adapter.glob("*.safetensors"))
    if shipment.method == "full" or not own:
        return
    described = shipment.describe(shipment.base(), shipment.method)
    for file in own:
        tensors = load_file(file)
        _, there = safetensors_header(file)
        _save(tensors, folder / file.name, {**there, **described})


def _as_kohya(shipment: Shipment, folder: Path) -> None:
    """Write a LoRA with kohya's names, which ComfyUI, A1111, Forge and diffusers read too."""
    pipe = shipment.base()
    adapter = load_file(shipment.run.adapter / "pytorch_lora_weights.safetensors")
    described = shipment.describe(pipe, "lora")
    described |= metadata.kohya(shipment.run, pipe, any(tensor.dim() == 4 for tensor in adapter.values()))
    file = folder / f"{shipment.name}.safetensors"
    _save(kohya(adapter, pipe), file, described)
    back = reading.read(file, pipe)
    if back.keys() != adapter.keys() or not all(torch.equal(back[key], adapter[key]) for key in adapter):
        raise RunError(f"{file.name} does not read back as what the run ships: nothing is left of it; report it")


def kohya(adapter: dict[str, Tensor], pipe: DiffusionPipeline) -> dict[str, Tensor]:
    """Return a LoRA under kohya's names, each layer with its alpha.

    The run's adapter has its scale folded in, so that alpha is the rank.

    Args:
        adapter: `PATH.lora_A.weight` and `PATH.lora_B.weight` of each layer.
        pipe: A pipeline that it is for, of the family `sd` or `sdxl`.

    Raises:
        UserError: It is not a plain LoRA.
    """
    found = {}
    for key, tensor in adapter.items():
        match = re.fullmatch(r"(.+)\.lora_([AB])\.weight", key)
        if match is None:
            raise UserError(f"this adapter is no plain LoRA ({key}), which kohya's names cannot say: choose merged")
        stem = names.written(match[1], pipe)
        if match[2] == "A":
            found[f"{stem}.lora_down.weight"] = tensor
            found[f"{stem}.alpha"] = torch.tensor(float(len(tensor)))
        else:
            found[f"{stem}.lora_up.weight"] = tensor
    return found


def _as_checkpoint(shipment: Shipment, folder: Path) -> None:
    """Write the whole trained model into one file of the original layout."""
    pipe = shipment.merged()
    described = shipment.describe(pipe, None)
    _save(original.state_dict(pipe), folder / f"{shipment.name}.safetensors", described)


def _as_pipeline(shipment: Shipment, folder: Path) -> None:
    """Write the whole trained model as a diffusers folder."""
    cast(DiffusionPipeline, shipment.merged()).save_pretrained(folder)


def _save(tensors: dict[str, Tensor], file: Path, described: dict[str, str]) -> None:
    metadata.save(tensors, file, described)
    shapes, _ = safetensors_header(file)
    if shapes != {name: list(tensor.shape) for name, tensor in tensors.items()}:
        raise RunError(f"{file.name} does not hold what was written: nothing is left of it; check the disk")


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _everything(recipe: Recipe) -> bool:
    return True


def _is_mergeable(recipe: Recipe) -> bool:
    return recipe.method == "full" or recipe.is_plain_lora


def _is_kohya(recipe: Recipe) -> bool:
    """DoRA's magnitudes have no name that all of kohya's readers know."""
    return recipe.is_plain_lora and recipe.adapter != "dora"


UNET_FAMILIES = ("sd", "sdxl")

FORMATS = {
    "diffusers": Format(
        _as_trained, _everything, None, "what the run ships; pictures of a run are drawn from it by stock diffusers"
    ),
    "kohya": Format(
        _as_kohya,
        _is_kohya,
        UNET_FAMILIES,
        "read back now, tensor by tensor; tested to draw the same picture in stock diffusers",
    ),
    "comfyui": Format(
        _as_kohya,
        _is_kohya,
        UNET_FAMILIES,
        "read back now, tensor by tensor; tested against ComfyUI's own table of names, every key finds its layer",
    ),
    "single-file": Format(
        _as_checkpoint,
        _is_mergeable,
        ("sd",),
        "names and shapes read back now; tested to draw the same picture through from_single_file",
    ),
    "merged": Format(
        _as_pipeline, _is_mergeable, None, "tested to draw the picture of base model and adapter in stock diffusers"
    ),
}
"""Name of a format -> how it is written and what it can hold."""
