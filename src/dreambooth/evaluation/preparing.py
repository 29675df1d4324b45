"""What an evaluation needs besides pictures, found before any is drawn: photos, photos held out, masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dreambooth import photos
from dreambooth.errors import UserError
from dreambooth.evaluation import masks, metrics
from dreambooth.evaluation.masks import Masked
from dreambooth.evaluation.material import Material, Plan, gather_all
from dreambooth.evaluation.metrics import Options
from dreambooth.photos import Photo
from dreambooth.run import Run


@dataclass(frozen=True)
class Prepared:
    """A subject of a run, ready to be drawn and scored.

    Attributes:
        material: What is to be scored.
        held_out: Photos of it that were not trained on.
        masked: The masks of its pictures, where there are some.
    """

    material: Material
    held_out: list[Photo]
    masked: Masked | None


def prepare(
    run: str | Path, plan: Plan, options: Options, held_out: Path | None = None, mask_folder: Path | None = None
) -> list[Prepared]:
    """Find all that `runs.evaluate` needs of a run's subjects, and refuse what it cannot do, before anything is drawn.

    The arguments are those of `runs.evaluate`.

    Raises:
        UserError: The run is not finished, its photos, masks or held-out photos are not there, or no such prompts.
    """
    found = []
    for material in gather_all(Run.open(run), plan):
        apart = _held_out(_own(held_out, material), material)
        metrics.require_reference(options.references, len(material.photos), len(apart))
        folder, references = _own(mask_folder, material), apart if options.references == "held-out" else []
        found.append(Prepared(material, apart, masks.find(folder, material, references) if folder else None))
    return found


def _own(folder: Path | None, material: Material) -> Path | None:
    """A subject's part of a folder that the user gave; the whole folder where there is one subject."""
    is_one = len(material.run.recipe.subjects) == 1
    return folder if folder is None or is_one else folder / material.identifier


def _held_out(folder: Path | None, material: Material) -> list[Photo]:
    if folder is None:
        return []
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: give a folder of photos that were not trained on")
    side = material.tuned.sampling.size
    found = photos.usable(photos.read(folder, side))
    trained = {photo.id for photo in material.photos}
    same = [photo.path.name for photo in found if photo.id in trained]
    if same:
        raise UserError(f"{folder / same[0]} was trained on, so it is not held out: take it away")
    return found


def require_alike(runs: Sequence[Sequence[Material]]) -> None:
    """Refuse runs between which a difference would say nothing of how they were trained; nothing needs to be drawn yet.

    Args:
        runs: Each run's subjects.

    Raises:
        UserError: They differ in their subjects' number, classes, photos or prompts.
    """
    first, *others = runs
    for other in others:
        both = f"{first[0].run.path} and {other[0].run.path}"
        if len(first) != len(other):
            raise UserError(f"{both} have {len(first)} and {len(other)} subjects: compare runs of the same subjects")
        for one, two in zip(first, other, strict=True):
            _require_alike(one, two, both)


def _require_alike(one: Material, two: Material, both: str) -> None:
    if one.noun != two.noun:
        raise UserError(f"{both} are of a {one.noun} and a {two.noun}: compare runs of the same subject and class")
    if {photo.id for photo in one.photos} != {photo.id for photo in two.photos}:
        raise UserError(f"{both} were trained on different photos of the {one.noun}: compare runs of the same ones")
    lone = sorted({prompt.scene for prompt in one.prompts} ^ {prompt.scene for prompt in two.prompts})
    if lone:
        raise UserError(f"{both} differ in {len(lone)} prompts, such as '{lone[0]}': evaluate both with the same")
