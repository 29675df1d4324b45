"""Pictures to be scored: prompts x seeds, drawn once, kept under what they depend on, and never drawn twice.

A set is drawn in batches of fixed bounds: interrupted and gone on with, it is the same to the last bit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from dreambooth.errors import UserError
from dreambooth.files import atomic, remove_folder, write_json
from dreambooth.images import save_png
from dreambooth.progress import Reporter
from dreambooth.samples import image_generator
from dreambooth.sampling import Sampling, batch_size, draw


@dataclass(frozen=True)
class Shot:
    """One picture: which text of the set, which seed, and where it lies."""

    text: int
    seed: int
    file: Path


@dataclass(frozen=True)
class PictureSet:
    """Pictures of some texts, each with the same seeds.

    Attributes:
        folder: Where they are; a manifest beside them says what they depend on.
        texts: What the model is given.
        seeds: Seeds of each text's pictures.
        sampling: How they are drawn.
        model: Identity of the weights that draw them.
    """

    folder: Path
    texts: tuple[str, ...]
    seeds: tuple[int, ...]
    sampling: Sampling
    model: str

    @property
    def shots(self) -> list[Shot]:
        """All pictures, text by text."""
        return [
            Shot(index, seed, self.folder / f"{index:03d}-{seed}.png")
            for index in range(len(self.texts))
            for seed in self.seeds
        ]

    @property
    def identity(self) -> dict[str, Any]:
        """What the pictures depend on."""
        sampling = self.sampling.document | {"batch": batch_size(self.sampling.size)}
        return {"model": self.model, "sampling": sampling, "texts": list(self.texts), "seeds": list(self.seeds)}

    @property
    def files(self) -> list[list[Path]]:
        """The pictures' files, a list for each text."""
        shots = self.shots
        return [[shot.file for shot in shots if shot.text == index] for index in range(len(self.texts))]

    @property
    def missing(self) -> list[list[Shot]]:
        """The batches that lack a picture."""
        shots, size = self.shots, batch_size(self.sampling.size)
        batches = [shots[start : start + size] for start in range(0, len(shots), size)]
        return [batch for batch in batches if not all(shot.file.is_file() for shot in batch)]


def cached(home: Path, texts: Sequence[str], seeds: Sequence[int], sampling: Sampling, model: str) -> PictureSet:
    """Return a frozen model's set, which lies in `home` in a folder named after what it depends on."""
    sampling = replace(sampling, consistency=None)  # of a trained model alone
    named = PictureSet(home, tuple(texts), tuple(seeds), sampling, model)
    digest = hashlib.sha256(json.dumps(named.identity, sort_keys=True).encode()).hexdigest()[:12]
    return PictureSet(home / digest, named.texts, named.seeds, sampling, model)


def claim(pictures: PictureSet) -> None:
    """Make the folder the home of this set. Pictures of an earlier one, which depended on other things, are removed.

    Raises:
        UserError: The folder holds files of somebody else.
    """
    path, there = pictures.folder / "manifest.json", None
    if path.is_file():
        with suppress(ValueError):
            there = json.loads(path.read_text(encoding="utf-8"))
    elif pictures.folder.is_dir() and any(pictures.folder.iterdir()):
        raise UserError(f"{pictures.folder} holds files and no manifest of pictures: move them away")
    if there == pictures.identity:
        return
    if there is not None:
        remove_folder(pictures.folder)
    write_json(path, pictures.identity)


def draw_missing(pictures: PictureSet, load: Callable[[], DiffusionPipeline], reporter: Reporter, stage: str) -> None:
    """Draw what is not there yet; the model is loaded only for that.

    Args:
        pictures: The set.
        load: Gives the pipeline, on its device.
        reporter: Listens to the progress.
        stage: What the progress is called.
    """
    claim(pictures)
    missing = pictures.missing
    count = len(pictures.shots)
    reporter.stage(stage, count, count - sum(map(len, missing)))
    if not missing:
        return
    pipe = load()
    for batch in missing:
        texts = [pictures.texts[shot.text] for shot in batch]
        drawn = draw(pipe, texts, [image_generator(shot.seed) for shot in batch], pictures.sampling)
        for shot, text, image in zip(batch, texts, drawn, strict=True):
            with atomic(shot.file) as temporary:
                save_png(image, temporary, {"prompt": text, "seed": str(shot.seed)})
            reporter.advance()
