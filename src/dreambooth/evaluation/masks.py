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
from dreambooth.photos import Photo

PREFIXES = {"foreground": "foreground_dino", "background": "background"}
"""Which score each side of the masks gives."""


@dataclass(frozen=True)
class Masked:
    """Pictures and their masks, one for each.

    Attributes:
        tuned: The run's pictures.
        frozen: The frozen model's; empty where they have no masks.
        photos: The photos.
        held_out: Photos that were not trained on; empty where nothing is compared with them.
    """

    tuned: list[tuple[Path, Path]]
    frozen: list[tuple[Path, Path]]
    photos: list[tuple[Path, Path]]
    held_out: list[tuple[Path, Path]]

    @property
    def count(self) -> int:
        """How many pictures and photos there are."""
        return sum(map(len, (self.tuned, self.frozen, self.photos, self.held_out)))


def find(folder: Path, material: Material, held_out: Sequence[Photo] = ()) -> Masked:
    """Find the mask of every picture, each called as its picture in `evaluation/images` is, and of every photo.

    Those of the run's pictures lie in `folder/tuned`, those of the frozen model's in `folder/frozen` where it is there,
    those of the photos in `folder/photos` (`01.png` for `01.jpg`) or beside them (`01.mask.png`), those of photos held
    out in `folder/held-out` or beside them.

    Args:
        folder: Holds the masks.
        material: The pictures and the photos.
        held_out: Photos that were not trained on, where the scores are to be taken with them.

    Raises:
        UserError: A photo or a picture has no mask.
    """
    photos, apart = _of_photos(folder / "photos", material.photos), _of_photos(folder / "held-out", held_out)
    tuned, frozen = (
        [(shot.file, folder / name / shot.file.name) for shot in pictures.shots]
        for name, pictures in (("tuned", material.tuned), ("frozen", material.frozen))
    )
    if not (folder / "frozen").is_dir():
        frozen = []
    for picture, mask in (*photos, *apart, *tuned, *frozen):
        if not mask.is_file():
            mend = "paint the subject white and the rest black, at the picture's size"
            raise UserError(f"{picture.name} has no mask {mask}: {mend}")
    return Masked(tuned, frozen, photos, apart)


def _of_photos(folder: Path, photos: Sequence[Photo]) -> list[tuple[Path, Path]]:
    given = {photo: folder / f"{photo.path.stem}.png" for photo in photos}
    return [(photo.path, mask if mask.is_file() else photo.mask_path or mask) for photo, mask in given.items()]


def score(
    encoder: Encoder, masked: Masked, grid: Grid, options: Options, advance: Callable[[], None]
) -> dict[str, Scores]:
    """Return `foreground_dino` and `background`, their floors where the frozen pictures have masks, their oracles.

    The similarity of backgrounds is a sign of copying as far as it is above its floor, which the prompts bring about.
    """
    rows: dict[str, Scores] = {}
    for name, prefix in PREFIXES.items():
        part_RD, tuned_GD, frozen_GD, held_out_HD = (
            _embed(encoder, each, name, advance)
            for each in (masked.photos, masked.tuned, masked.frozen, masked.held_out)
        )
        assert part_RD is not None, "a run has photos"
        for label, pictures_GD in ((prefix, tuned_GD), (f"floor_{prefix}", frozen_GD)):
            if pictures_GD is not None:
                rows[label] = grid.scores(metrics.to_references(pictures_GD, part_RD, options.references, held_out_HD))
        rows[f"oracle_{prefix}"] = alone(grid.subject, metrics.oracle(part_RD, self_pairs=False), pairs=True)
    return rows


def _embed(encoder: Encoder, pairs: Sequence[tuple[Path, Path]], side: str, advance: Callable[[], None]) -> Rows | None:
    if not pairs:
        return None
    parts = [Part("foreground" if side == "foreground" else "background", mask) for _, mask in pairs]
    return embed_files(encoder, [file for file, _ in pairs], parts=parts, advance=advance)
