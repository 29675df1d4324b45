"""Scores of the subject without its surroundings, and of these without the subject, where masks are given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dreambooth.errors import UserError
from dreambooth.evaluation import metrics
from dreambooth.evaluation.embeddings import Part, embed_files
from dreambooth.evaluation.encoders import Encoder
from dreambooth.evaluation.material import Material
from dreambooth.evaluation.metrics import Options, Rows
from dreambooth.evaluation.scoring import Grid, alone
from dreambooth.evaluation.statistics import Scores

PREFIXES = {"foreground": "foreground_dino", "background": "background"}
"""Which score each side of the masks gives."""


@dataclass(frozen=True)
class Masked:
    """Pictures and their masks, one for each.

    Attributes:
        tuned: The run's pictures.
        frozen: The frozen model's; empty where they have no masks.
        photos: The photos.
    """

    tuned: list[tuple[Path, Path]]
    frozen: list[tuple[Path, Path]]
    photos: list[tuple[Path, Path]]


def find(folder: Path, material: Material) -> Masked:
    """Find the mask of every picture, each called as its picture in `evaluation/images` is, and of every photo.

    Those of the run's pictures lie in `folder/tuned`, those of the frozen model's in `folder/frozen` where it is there,
    those of the photos in `folder/photos` (`01.png` for `01.jpg`) or beside them (`01.mask.png`).

    Raises:
        UserError: A photo or a picture has no mask.
    """
    given = {photo.path: folder / "photos" / f"{photo.path.stem}.png" for photo in material.photos}
    beside = {photo.path: photo.mask_path for photo in material.photos}
    photos = [(path, mask if mask.is_file() else beside[path] or mask) for path, mask in given.items()]
    tuned, frozen = (
        [(shot.file, folder / name / shot.file.name) for shot in pictures.shots]
        for name, pictures in (("tuned", material.tuned), ("frozen", material.frozen))
    )
    if not (folder / "frozen").is_dir():
        frozen = []
    for picture, mask in (*photos, *tuned, *frozen):
        if not mask.is_file():
            mend = "paint the subject white and the rest black, at the picture's size"
            raise UserError(f"{picture.name} has no mask {mask}: {mend}")
    return Masked(tuned, frozen, photos)


def score(
    encoder: Encoder, masked: Masked, grid: Grid, options: Options, advance: Callable[[], None]
) -> dict[str, Scores]:
    """Return `foreground_dino` and `background`, their floors where the frozen pictures have masks, their oracles.

    The similarity of backgrounds is a sign of copying as far as it is above its floor, which the prompts bring about.
    """
    rows: dict[str, Scores] = {}
    for name, prefix in PREFIXES.items():
        part_RD, tuned_GD, frozen_GD = (
            _embed(encoder, each, name, advance) for each in (masked.photos, masked.tuned, masked.frozen)
        )
        assert part_RD is not None, "a run has photos"
        for label, pictures_GD in ((prefix, tuned_GD), (f"floor_{prefix}", frozen_GD)):
            if pictures_GD is not None:
                rows[label] = grid.scores(metrics.to_references(pictures_GD, part_RD, options.references))
        rows[f"oracle_{prefix}"] = alone(grid.subject, metrics.oracle(part_RD, self_pairs=False), pairs=True)
    return rows


def _embed(encoder: Encoder, pairs: Sequence[tuple[Path, Path]], side: str, advance: Callable[[], None]) -> Rows | None:
    if not pairs:
        return None
    parts = [Part("foreground" if side == "foreground" else "background", mask) for _, mask in pairs]
    return embed_files(encoder, [file for file, _ in pairs], parts=parts, advance=advance)
