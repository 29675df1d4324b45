"""Photos in a wider colour space are learned in the colours that they show."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from dreambooth import photos
from dreambooth.colours import to_srgb

# Columns are the primaries under D50: Apple's Display P3 and sRGB, as their profiles have them.
P3 = np.array([[0.5151, 0.2920, 0.1571], [0.2412, 0.6922, 0.0666], [-0.0011, 0.0419, 0.7841]])
SRGB = np.array([[0.4361, 0.3851, 0.1431], [0.2225, 0.7169, 0.0606], [0.0139, 0.0971, 0.7141]])
GAMMA = 2.2
COLOURS = np.array([[220, 20, 20], [30, 180, 60], [250, 150, 40], [128, 128, 128], [10, 40, 120]])


def profile(primaries_33: np.ndarray) -> bytes:
    """Write an ICC profile of a matrix and one exponent."""
    tags = {}
    for name, primary in zip("rgb", primaries_33.T, strict=True):
        tags |= {f"{name}XYZ".encode(): xyz(primary), f"{name}TRC".encode(): curve(GAMMA)}
    return icc(b"RGB ", tags)


def xyz(values: np.ndarray) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in values))


def curve(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IHH", 1, round(gamma * 256), 0)


def icc(space: bytes, own: dict[bytes, bytes]) -> bytes:
    """Write an ICC profile (version 2) of a colour space with tags of its own, after the specification."""
    text = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(78)
    tags = {b"desc": text, b"cprt": b"text\0\0\0\0none\0\0\0\0", b"wtpt": xyz(np.array([0.9642, 1.0, 0.8249])), **own}
    start, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for name, value in tags.items():
        value += bytes(-len(value) % 4)
        table += name + struct.pack(">II", start + len(body), len(value))
        body += value
    head = struct.pack(">I4sI4s4s4s", start + len(body), b"none", 0x02400000, b"mntr", space, b"XYZ ") + bytes(12)
    head += b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def in_srgb(colours_N3: np.ndarray) -> np.ndarray:
    """What P3's numbers are in sRGB, written out."""
    linear_N3 = (colours_N3 / 255) ** GAMMA @ P3.T @ np.linalg.inv(SRGB).T
    linear_N3 = linear_N3.clip(0, 1)
    return 255 * np.where(linear_N3 <= 0.0031308, 12.92 * linear_N3, 1.055 * linear_N3 ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("suffix", ["png", "webp", "tiff"])
def test_a_photo_of_a_telephone_has_the_colours_that_it_shows(suffix: str, tmp_path: Path) -> None:
    stripes = np.repeat(np.repeat(COLOURS[None], 32, axis=1), 96, axis=0).astype(np.uint8)
    options = {"lossless": True} if suffix == "webp" else {}
    Image.fromarray(stripes).save(tmp_path / f"a.{suffix}", icc_profile=profile(P3), **options)
    read = np.asarray(photos.open_upright(tmp_path / f"a.{suffix}"))[48, 16::32]
    np.testing.assert_allclose(read, in_srgb(COLOURS), atol=2.5)
    assert abs(read.astype(int) - COLOURS).max() > 20
    seen: list[Image.Image] = []
    photos.read(tmp_path, 64, lambda name, image: seen.append(image))
    np.testing.assert_allclose(np.asarray(seen[0])[48, 16::32], read, atol=2)


@pytest.mark.parametrize("mode", ["L", "LA", "I;16", "clear"])
def test_a_grey_photo_is_as_light_as_its_profile_says(mode: str, tmp_path: Path) -> None:
    greys = np.array([0, 40, 128, 200, 255])
    stripes = np.repeat(np.repeat(greys[None], 32, axis=1), 96, axis=0).astype(np.uint8)
    image, more = Image.fromarray(stripes), {}
    if mode == "I;16":
        image = Image.fromarray(stripes.astype(np.uint16) * 257)
    elif mode == "clear":  # one grey stands for the background, which is white
        greys, more = np.array([255, 40, 128, 200, 255]), {"transparency": 0}
    else:
        image = image.convert(mode)
    image.save(tmp_path / "a.png", icc_profile=icc(b"GRAY", {b"kTRC": curve(1.4)}), **more)
    read = np.asarray(photos.open_upright(tmp_path / "a.png"))[48, 16::32]
    linear = (greys / 255) ** 1.4
    srgb = 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    np.testing.assert_allclose(read, np.repeat(srgb[:, None], 3, axis=1), atol=2)


def test_what_needs_no_change_has_none() -> None:
    image = Image.fromarray(COLOURS[None].astype(np.uint8))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert to_srgb(image, None) is image
    assert to_srgb(image, srgb) is image
    assert to_srgb(image, b"damaged") is image
    assert to_srgb(image.convert("L"), profile(P3)).mode == "L"
    cmyk = image.convert("CMYK")
    assert to_srgb(cmyk, profile(P3)) is cmyk
