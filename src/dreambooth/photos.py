"""The subject's photos: read as they come, checked, cropped.

A photo `01.jpg` may have a caption `01.txt` and a mask `01.mask.png` (white where the subject is) beside it. Reading
opens each photo once and decodes it no larger than the checks need; the full decoding happens in `crop`.
"""

from __future__ import annotations

import functools
import hashlib
import random
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from dreambooth import geometry, photo_checks
from dreambooth.ahead import mapped
from dreambooth.colours import to_srgb
from dreambooth.errors import UserError
from dreambooth.geometry import Aspect, Box, Size
from dreambooth.photo_checks import Picture
from dreambooth.photo_checks import Problem as Problem

MAX_MEGAPIXELS = 250
FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "MPO": (".mpo",),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "HEIF": (".heic", ".heif", ".hif"),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "AVIF": (".avif",),
    "JPEG2000": (".jp2",),
}
"""Pillow's name of each format that is read, with the suffixes by which its files are known."""
SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)
CAPTION = ".txt"
MASK = ".mask.png"

_CHECKED_SIDE = 512
_FEW = 3
_READ = "JPEG, PNG, HEIC, WebP or TIFF"
_pillow_limit = threading.Lock()


@dataclass(frozen=True)
class Photo:
    """A photo that will be used.

    Attributes:
        id: First 32 hexadecimal digits of the SHA-256 of the file.
        path: The file.
        size: Width and height in pixels, upright.
        caption: Text of the file `NN.txt` beside it.
        mask_path: The file `NN.mask.png` beside it.
    """

    id: str
    path: Path
    size: tuple[int, int]
    caption: str | None = None
    mask_path: Path | None = None


@dataclass(frozen=True)
class Finding:
    """One entry of the folder: the photo if it is used, and what is wrong with it."""

    file: str
    photo: Photo | None
    problems: tuple[Problem, ...] = ()

    @property
    def used(self) -> bool:
        """Whether the photo is used."""
        return self.photo is not None


def read(
    folder: Path,
    resolution: int,
    look: Callable[[str, Image.Image], object] | None = None,
    aspect: Aspect = "square",
    of: str = "3 to 5 photos of the subject",
) -> list[Finding]:
    """Read and check every entry of a folder, sorted by name (`2.jpg` before `10.jpg`). Sidecars have no entry.

    Args:
        folder: The folder of the subject's photos.
        resolution: The side in pixels at which they will be learnt.
        look: Called with the name and a reduced version (RGB, at most 512 pixels) of every photo that can be read, so
            that who wants to see them need not decode them again.
        aspect: Whether they are cut square or keep their shape, as in the recipe.
        of: What belongs there, as advice says it.

    Raises:
        UserError: There is no such folder, no photo in it can be used, or one has more than 250 megapixels.
    """
    entries = _entries(folder)
    names = {entry.name.lower(): entry for entry in entries} | {entry.name: entry for entry in entries}
    sidecars = {_beside(names, entry, end) for entry in entries if _is_photo(entry) for end in (CAPTION, MASK)}
    listed = [entry for entry in entries if entry not in sidecars]
    pictures: list[Picture] = []
    problems: dict[str, list[Problem]] = {}
    check = functools.partial(photo_checks.check, resolution=resolution, aspect=aspect)
    for entry, (found, picture, image) in zip(listed, mapped(functools.partial(_inspect, check), listed), strict=True):
        problems[entry.name] = found
        pictures += [picture] if picture else []
        if look and image:
            look(entry.name, image)
    large_enough = [picture for picture in pictures if not photo_checks.too_small(picture.size)]
    originals = photo_checks.copies(large_enough)
    for copy, original in originals.items():
        problems[copy].append(Problem("duplicate", f"the same picture as {original}, which is used: remove it"))
    kept = {picture.name: picture for picture in large_enough if picture.name not in originals}
    findings = [_finding(entry, kept.get(entry.name), problems[entry.name], names) for entry in listed]
    if not kept:
        raise UserError(_nothing_usable(folder, findings, f"put {of} there ({_READ})"))
    return findings


def usable(findings: Sequence[Finding]) -> list[Photo]:
    """Return the photos that are used."""
    return [finding.photo for finding in findings if finding.photo]


def warnings(findings: Sequence[Finding]) -> list[Problem]:
    """Return what is wrong with the folder as a whole."""
    count = len(usable(findings))
    if count >= _FEW:
        return []
    message = f"only {count} photo{'s' if count > 1 else ''} to learn from: 3 to 5, in different places, do better"
    return [Problem("few", message)]


def open_upright(path: Path, background: str = "white") -> Image.Image:
    """Read a picture of any mode as 8-bit sRGB, turned as its EXIF says; the first frame if it has several.

    Args:
        path: The file.
        background: Colour behind what is transparent.

    Raises:
        UserError: It has more than 250 megapixels.
        OSError: It cannot be read. Damaged files may raise other errors too.
    """
    with _opened(path) as image:
        ImageOps.exif_transpose(image, in_place=True)
        return to_srgb(_rgb(image, background), image.info.get("icc_profile"))


def count(folder: Path) -> int:
    """Return how many files of a folder are photos by their names, masks left out."""
    return sum(_is_photo(entry) and not entry.name.endswith(MASK) for entry in _entries(folder))


def crop(photo: Photo, size: Size, part: Box | None = None) -> npt.NDArray[np.uint8]:
    """Cut a part out of a photo and resize it.

    Args:
        photo: The photo.
        size: Width and height of the result in pixels.
        part: The part. Default: the largest of that shape, in the centre.

    Returns:
        RGB pixels, (height, width, 3).
    """
    image = open_upright(photo.path)
    return np.asarray(image.resize(size, Image.Resampling.LANCZOS, box=part or box(photo, size), reducing_gap=3.0))


def crop_mask(photo: Photo, size: Size, part: Box | None = None) -> npt.NDArray[np.uint8] | None:
    """Cut the part that `crop` cuts out of the photo's mask: (height, width), 255 on the subject."""
    if photo.mask_path is None:
        return None
    mask = read_mask(photo.mask_path)
    return np.asarray(mask.resize(size, Image.Resampling.BILINEAR, box=part or box(photo, size)))


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir(), key=_natural)
    except FileNotFoundError:
        raise UserError(f"there is no folder {folder}: give the folder that holds the subject's photos") from None
    except NotADirectoryError:
        raise UserError(f"{folder} is a file: give the folder that holds the subject's photos") from None
    except OSError as error:
        raise UserError(f"cannot read the folder {folder} ({error.strerror}): give one that you may read") from None


def _natural(path: Path) -> tuple[list[str | int], str]:
    parts: list[str] = re.split(r"(\d+)", path.name.lower())
    return [int(part) if part.isdecimal() else part for part in parts], path.name


def _is_photo(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.lower().endswith(MASK)


def _beside(names: Mapping[str, Path], photo: Path, end: str) -> Path:
    """Where a photo's caption or mask is, or would be, among the names of its folder: `01.TXT` as well as `01.txt`."""
    usual = photo.with_suffix(end)
    return names.get(usual.name) or names.get(usual.name.lower(), usual)


def _inspect(
    check: Callable[[Image.Image, Size], list[Problem]], path: Path
) -> tuple[list[Problem], Picture | None, Image.Image | None]:
    """Say what is wrong with one entry by itself; return the picture in it too, if there is one, and reduced."""
    reason = _no_photo(path)
    if reason:
        return [Problem("not-a-photo", reason)], None, None
    try:
        size, image = _reduced(path)
        content = hashlib.sha256(path.read_bytes()).hexdigest()[:32]
    except UserError:
        raise
    except Exception as error:  # Pillow's readers raise nearly anything on a damaged file
        message = f"cannot be read ({_cause(error)}): save it again as JPEG or PNG, or remove it"
        return [Problem("unreadable", message)], None, None
    return check(image, size), Picture(path.name, content, size, photo_checks.miniature(image)), image


def _no_photo(path: Path) -> str | None:
    if path.name.startswith("."):
        return "a hidden file, passed over"
    if path.is_dir():
        return "a folder, passed over: photos in it are not read"
    if path.name.lower().endswith(MASK):
        return "a mask without a photo of the same name, passed over"
    if path.suffix.lower() == CAPTION:
        return "a text without a photo of the same name, passed over"
    if path.suffix.lower() not in SUFFIXES:
        return f"no photo by its suffix ({path.suffix or 'none'}), passed over: save it as JPEG or PNG if it is one"
    return None if path.is_file() else "not a file (a broken link?), passed over"


def _reduced(path: Path) -> tuple[tuple[int, int], Image.Image]:
    """Return a photo's upright size and an RGB version of at most 512 pixels, decoded no larger where possible."""
    with _opened(path) as image:
        width, height = image.size
        drafted = image.draft(None, (_CHECKED_SIDE, _CHECKED_SIDE))
        image.load()
        if not drafted:  # TIFF turns itself while loading
            width, height = image.size
        turned = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
        ImageOps.exif_transpose(image, in_place=True)
        small, profile = _rgb(image, "white"), image.info.get("icc_profile")
    small.thumbnail((_CHECKED_SIDE, _CHECKED_SIDE), Image.Resampling.BOX, reducing_gap=2.0)
    return (height, width) if turned else (width, height), to_srgb(small, profile)


@functools.cache
def _formats() -> list[str]:
    """Teach Pillow to read HEIC, and return the formats that it can read here."""
    import pillow_heif

    pillow_heif.register_heif_opener()
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    formats = _formats()
    with _pillow_limit:  # Pillow's own limit is global and lower than ours
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(path, formats=formats)
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    with image:
        width, height = image.size
        if width * height > MAX_MEGAPIXELS * 1_000_000:
            megapixels = f"{width * height / 1e6:.0f} megapixels ({width} x {height})"
            raise UserError(f"{path} has {megapixels}, the most is {MAX_MEGAPIXELS}: make it smaller or remove it")
        yield image


def _rgb(image: Image.Image, background: str) -> Image.Image:
    profile = image.info.get("icc_profile")
    if image.mode.startswith(("I", "F")):
        image = _eight_bits(image)
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    if image.mode in ("CMYK", "L", "LA"):  # of RGB alone the profile still fits afterwards
        image = to_srgb(image.convert("L") if image.mode == "LA" else image, profile)
    if alpha is None:
        return image.convert("RGB")
    colours, canvas = image.convert("RGBA"), Image.new("RGBA", image.size, background)
    colours.putalpha(alpha)
    canvas.alpha_composite(colours)
    return canvas.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit, 32-bit and floating-point grey to 0..255 by the range of its type, or the next that holds it."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float32))
    peak = float(values.max())
    top = 65535.0 if image.mode.startswith("I;16") else next((top for top in (1, 255, 65535) if peak <= top), peak)
    return Image.fromarray((values.clip(0, None) * (255 / top)).round().astype(np.uint8))


def _cause(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "no picture, or a damaged one"
    reason = error.strerror if isinstance(error, OSError) else None
    return " ".join((reason or str(error) or type(error).__name__).split())


def _finding(path: Path, picture: Picture | None, problems: list[Problem], names: Mapping[str, Path]) -> Finding:
    if picture is None:
        return Finding(path.name, None, tuple(problems))
    caption, caption_problems = _caption(_beside(names, path, CAPTION))
    mask, mask_problems = _mask(_beside(names, path, MASK), picture.size)
    photo = Photo(picture.id, path, picture.size, caption, mask)
    return Finding(path.name, photo, (*problems, *caption_problems, *mask_problems))


def _caption(path: Path) -> tuple[str | None, list[Problem]]:
    if not path.is_file():
        return None, []
    try:
        return path.read_text(encoding="utf-8-sig").strip() or None, []
    except (OSError, UnicodeDecodeError):
        return None, [Problem("caption", f"{path.name} cannot be read and is ignored: save it as UTF-8 text")]


def read_mask(path: Path) -> Image.Image:
    """Read a mask as grey of 8 bits, 255 on the subject."""
    return open_upright(path, background="black").convert("L")


def _mask(path: Path, size: tuple[int, int]) -> tuple[Path | None, list[Problem]]:
    if not path.is_file():
        return None, []
    try:
        mask = read_mask(path)
    except Exception as error:  # Pillow's readers raise nearly anything on a damaged file
        reason = f"it cannot be read ({_cause(error)}): save it again as PNG"
        return None, [Problem("mask", f"{path.name} is ignored, {reason}")]
    if mask.size != size:
        sizes = f"{mask.width} x {mask.height} pixels, the photo has {size[0]} x {size[1]}"
        return None, [Problem("mask", f"{path.name} is ignored, it has {sizes}: make them equal")]
    if mask.getextrema() == (0, 0):
        return None, [Problem("mask", f"{path.name} is ignored, it is black everywhere: paint the subject white")]
    return path, []


def box(photo: Photo, size: Size, variant: int = 0, seed: int = 0) -> Box:
    """Return a part of the upright photo, of the shape of a size.

    Args:
        photo: The photo.
        size: Width and height.
        variant: 0 is the largest part of that shape, in the centre; each k > 0 is another random one, of 85 to 100 % of
            its sides, anywhere.
        seed: Chooses the random parts, together with the photo and the variant.
    """
    width, height = geometry.fit(photo.size, size)
    across = down = 0.5
    if variant:
        draw = random.Random(f"{seed} {photo.id} {variant}")
        scale = 0.85 + 0.15 * draw.random()
        width, height = max(1, round(width * scale)), max(1, round(height * scale))
        across, down = draw.random(), draw.random()
    return geometry.placed(photo.size, (width, height), across, down)


def _nothing_usable(folder: Path, findings: Sequence[Finding], advice: str) -> str:
    if not findings:
        return f"{folder} is empty: {advice}"
    first = findings[0]
    more = f"; and {len(findings) - 1} more" if len(findings) > 1 else ""
    return f"no photo in {folder} can be used ({first.file}: {first.problems[0].message}{more}): {advice}"
