"""Embeddings of picture files and of texts; those of pictures are kept, found by content, and never made twice."""

from __future__ import annotations

import hashlib
import sqlite3
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from dreambooth import photos
from dreambooth.errors import UserError
from dreambooth.evaluation.encoders import Encoder
from dreambooth.paths import cache_root

Array = npt.NDArray[np.float32]
Value = TypeVar("Value")

BATCH = 32
GREY = (127, 127, 127)
TIMEOUT = 60
"""Seconds to wait for another process that writes to the cache."""
VERSION = 2
"""Part of the cache's name: goes up when the same file would be embedded differently."""


@dataclass(frozen=True)
class Part:
    """One side of a picture's mask; the other is filled with mid-grey.

    Attributes:
        name: Which side is kept.
        mask: Picture of the same size, white on the subject.
    """

    name: Literal["foreground", "background"]
    mask: Path


@dataclass(frozen=True)
class Key:
    """What a row depends on besides the encoder: SHA-256 of the file; the name of the part and that of its mask."""

    picture: str
    part: str


Wanted = Mapping[Key, tuple[Path, Part | None]]


def embed_files(
    encoder: Encoder,
    files: Sequence[Path],
    *,
    parts: Sequence[Part | None] | None = None,
    advance: Callable[[], None] = lambda: None,
) -> Array:
    """Embed picture files. Equal files are embedded once, and those embedded before are found in the cache.

    Args:
        encoder: The encoder.
        files: At least one picture of any format that `photos` reads.
        parts: For each file, which part of it to embed; None for the whole.
        advance: Called once for each file, as its embedding is there.

    Returns:
        Unit rows (N, D), float32, in the order of the files.

    Raises:
        UserError: A file or mask cannot be read, a mask has another size or leaves nothing of the picture.
        ValueError: There are no files, or not one entry of `parts` for each.
    """
    parts = [None] * len(files) if parts is None else parts
    if not files or len(files) != len(parts):
        raise ValueError(f"{len(files)} files and {len(parts)} parts")
    cache = Cache(cache_root() / f"embeddings-{VERSION}.sqlite", encoder.identity)
    # As many threads as torch itself takes: they decode while it waits, or beside an accelerator.
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        keys = list(pool.map(_key, files, parts))
        counts = Counter(keys)
        rows = cache.read(counts)
        _advance(advance, counts, rows)
        wanted = dict(zip(keys, zip(files, parts, strict=True), strict=True))
        missing = {key: each for key, each in wanted.items() if key not in rows}
        for made in _embed(encoder, missing, pool):
            cache.write(made)
            rows |= made
            _advance(advance, counts, made)
    return np.stack([rows[key] for key in keys])


def embed_texts(encoder: Encoder, texts: Sequence[str]) -> Array:
    """Embed texts.

    Returns:
        Unit rows (N, D), float32, in the order of the texts.

    Raises:
        UserError: The encoder reads no text, or a text is too long for it.
    """
    batches = [texts[start : start + BATCH] for start in range(0, len(texts), BATCH)]
    return np.concatenate([encoder.embed_texts(batch).numpy() for batch in batches])


def _advance(advance: Callable[[], None], counts: Counter[Key], done: Iterable[Key]) -> None:
    for _ in range(sum(counts[key] for key in done)):
        advance()


def _key(file: Path, part: Part | None) -> Key:
    return Key(_sha256(file), f"{part.name} {_sha256(part.mask)}" if part else "")


def _sha256(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read the picture {file} ({error.strerror}): make it again or leave it out") from error


def _embed(encoder: Encoder, wanted: Wanted, pool: ThreadPoolExecutor) -> Iterator[dict[Key, Array]]:
    """Embed the wanted files (and parts) batch by batch.

    On the CPU decoding and encoding take turns, each on all cores, so that neither waits for a core that the other
    holds. An accelerator has the next batches decoded meanwhile.
    """
    keys = list(wanted)
    batches = deque(keys[start : start + BATCH] for start in range(0, len(keys), BATCH))
    ahead = 1 if encoder.device == "cpu" else 4
    pending: deque[tuple[list[Key], Iterator[Tensor]]] = deque()
    while batches or pending:
        while batches and len(pending) < ahead:
            batch = batches.popleft()
            pending.append((batch, pool.map(lambda key: _prepare(encoder, *wanted[key]), batch)))
        batch, prepared = pending.popleft()
        rows_BD = encoder.embed_images(torch.stack(list(prepared))).numpy()
        yield dict(zip(batch, rows_BD, strict=True))


def _prepare(encoder: Encoder, file: Path, part: Part | None) -> Tensor:
    image = _open(file)
    return encoder.prepare(image if part is None else _keep(image, file, part))


def _open(file: Path, background: str = "white") -> Image.Image:
    try:
        return photos.open_upright(file, background)
    except UserError:
        raise
    except Exception as error:  # Pillow's readers raise nearly anything on a damaged file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{file} is no picture that can be read ({reason}): make it again or leave it out") from error


def _keep(image: Image.Image, file: Path, part: Part) -> Image.Image:
    """Fill all of a picture but the part with grey; soft edges of the mask blend."""
    mask = _open(part.mask, "black").convert("L")
    if mask.size != image.size:
        sizes = f"{mask.width} x {mask.height} pixels, {file} has {image.width} x {image.height}"
        raise UserError(f"the mask {part.mask} has {sizes}: make them equal")
    kept = mask if part.name == "foreground" else mask.point(lambda value: 255 - value)
    if kept.getextrema() == (0, 0):
        raise UserError(
            f"the mask {part.mask} leaves no {part.name} of {file}: paint the subject white, the rest black"
        )
    return Image.composite(image, Image.new("RGB", image.size, GREY), kept)


@dataclass(frozen=True)
class Cache:
    """Rows of one encoder in a sqlite file that processes share.

    It can only save time: a damaged file is replaced, and one that cannot be read or written is done without.

    Attributes:
        file: The database.
        encoder: The encoder's identity.
    """

    file: Path
    encoder: str

    def read(self, keys: Iterable[Key]) -> dict[Key, Array]:
        """Return the rows that are there."""
        return self._run(lambda database: self._found(database, keys), {})

    def write(self, rows: Mapping[Key, Array]) -> None:
        """Keep rows."""
        values = [(self.encoder, key.picture, key.part, row.astype("<f4").tobytes()) for key, row in rows.items()]
        self._run(
            lambda database: database.executemany("INSERT OR REPLACE INTO rows VALUES (?, ?, ?, ?)", values), None
        )

    def _found(self, database: sqlite3.Connection, keys: Iterable[Key]) -> dict[Key, Array]:
        query = "SELECT row FROM rows WHERE encoder = ? AND picture = ? AND part = ?"
        rows = {}
        for key in keys:
            found = database.execute(query, (self.encoder, key.picture, key.part)).fetchone()
            row = np.frombuffer(found[0], "<f4") if found and len(found[0]) % 4 == 0 else np.zeros(1, np.float32)
            if abs(float(np.linalg.norm(row)) - 1) < 1e-3:  # anything else is damage
                rows[key] = row.astype(np.float32)
        return rows

    def _run(self, work: Callable[[sqlite3.Connection], Value], otherwise: Value) -> Value:
        for _ in range(2):
            try:
                return self._attempt(work)
            except (sqlite3.OperationalError, OSError):  # locked for long, a full disk, a home that is read only
                break
            except sqlite3.DatabaseError:
                with suppress(OSError):
                    self.file.unlink(missing_ok=True)
        return otherwise

    def _attempt(self, work: Callable[[sqlite3.Connection], Value]) -> Value:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(self.file, timeout=TIMEOUT)) as database, database:
            database.execute("PRAGMA synchronous = OFF")  # after a power cut it may be damaged, and is made again
            database.execute(
                "CREATE TABLE IF NOT EXISTS rows (encoder TEXT, picture TEXT, part TEXT, row BLOB,"
                " PRIMARY KEY (encoder, picture, part)) WITHOUT ROWID"
            )
            return work(database)
