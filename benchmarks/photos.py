"""A folder of photos as a phone makes them, checked: `python benchmarks/photos.py [--count 5] [--repeats 3]`.

HEIC of 48 megapixels in tiles of 512 pixels, turned by a quarter; `dreambooth check` in a process of its own, so that
its start counts too.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pillow_heif
from PIL import ExifTags, Image

SIZE = (8064, 6048)
TILE = 512
QUARTER_TURN = 6
"""EXIF's orientation of a phone that is held upright."""


def picture(seed: int) -> Image.Image:
    """Return large blots of colour with a fine texture and the grain of a sensor."""
    random = np.random.default_rng(seed)
    blots = Image.fromarray(random.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize(SIZE)
    width, height = (side // 8 for side in SIZE)
    texture = Image.fromarray(random.integers(0, 32, (height, width), dtype=np.uint8)).resize(SIZE)
    pixels_HWC = np.asarray(blots, dtype=np.int16) + (np.asarray(texture, dtype=np.int16) - 16)[..., None]
    pixels_HWC += random.integers(-4, 5, pixels_HWC.shape, dtype=np.int8)
    return Image.fromarray(pixels_HWC.clip(0, 255).astype(np.uint8))


def write_photos(folder: Path, count: int) -> None:
    """Write photos; the encoder's fastest preset, since its work is not what is measured."""
    pillow_heif.register_heif_opener()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = QUARTER_TURN
    for index in range(count):
        options = {"quality": 60, "tile_size": TILE, "enc_params": {"preset": "ultrafast"}}
        # as bytes: only so the plugin stores the rotation as phones do
        picture(index).save(folder / f"{index}.heic", exif=exif.tobytes(), **options)


def check(folder: Path) -> tuple[float, float]:
    """Return the seconds of a whole `dreambooth check` and the most memory that it had resident, in MB.

    Raises:
        SystemExit: It failed.
    """
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "dreambooth", "check", str(folder)], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit("dreambooth check failed")
    return time.perf_counter() - began, usage.ru_maxrss / 1000 * (1.024 if sys.platform == "linux" else 1e-3)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=5, help="photos")
    parser.add_argument("--repeats", type=int, default=3, help="of the command; the median is told")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_photos(folder, chosen.count)
        megabytes = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
        print(f"{platform.platform()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}", flush=True)
        print(f"{chosen.count} HEIC photos of {SIZE[0]} x {SIZE[1]} pixels, {megabytes:.0f} MB in all", flush=True)
        seconds, peaks = zip(*(check(folder) for _ in range(chosen.repeats)), strict=True)
    print(f"{statistics.median(seconds):.1f} s ({min(seconds):.1f} to {max(seconds):.1f}), peak {max(peaks):.0f} MB")


if __name__ == "__main__":
    main()
