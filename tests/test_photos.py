from __future__ import annotations

import hashlib
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import Image, ImageFilter

import dreambooth.photos
from dreambooth import photos
from dreambooth.errors import UserError
from tests.pictures import TURNS, picture, pixels, used

pillow_heif.register_heif_opener()

ADVICE = "put 3 to 5 photos of the subject there (JPEG, PNG, HEIC, WebP or TIFF)"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four good photos, 00.png to 03.png."""
    for seed in range(4):
        picture(seed).save(tmp_path / f"{seed:02}.png")
    return tmp_path


# Reading


def test_good_photos_are_used_without_a_word(folder):
    found = photos.read(folder, 64)
    assert [finding.file for finding in found] == ["00.png", "01.png", "02.png", "03.png"]
    assert all(finding.used and not finding.problems for finding in found)
    assert photos.warnings(found) == []
    content = hashlib.sha256((folder / "00.png").read_bytes()).hexdigest()[:32]
    assert found[0].photo == photos.Photo(content, folder / "00.png", (96, 80), None, None)


def test_names_are_sorted_as_people_do(tmp_path):
    names = ["2.png", "10.png", "1.png", "b.png", "A.png", "a2.png", "a10.png"]
    for seed, name in enumerate(names):
        picture(seed).save(tmp_path / name)
    assert used(tmp_path) == ["1.png", "2.png", "10.png", "a2.png", "a10.png", "A.png", "b.png"]


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_exif_rotation_is_undone(tmp_path, orientation, suffix):
    upright = picture(0, (90, 50))
    turn = TURNS[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"photo.{suffix}"
    (upright.transpose(turn) if turn is not None else upright).save(path, exif=exif)
    assert np.array_equal(photos.open_upright(path), upright)
    assert photos.usable(photos.read(tmp_path, 64))[0].size == (90, 50)


@pytest.mark.parametrize("orientation", TURNS)
def test_the_rotation_of_a_phones_heic_is_undone(tmp_path, orientation):
    upright = picture(0, (90, 50)).filter(ImageFilter.GaussianBlur(2))
    turn, exif = TURNS[orientation], Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "photo.heic"
    (upright.transpose(turn) if turn is not None else upright).save(path, exif=exif.tobytes(), quality=95)
    assert np.abs(pixels(photos.open_upright(path)) - pixels(upright)).mean() < 4
    assert photos.usable(photos.read(tmp_path, 64))[0].size == (90, 50)


def test_the_size_of_a_photo_decoded_at_reduced_size_is_its_own(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(0, (2001, 1203)).save(tmp_path / "turned.jpg", exif=exif)
    picture(1, (2001, 1203)).save(tmp_path / "upright.jpg")
    assert [photo.size for photo in photos.usable(photos.read(tmp_path, 64))] == [(1203, 2001), (2001, 1203)]


def test_reading_decodes_large_jpegs_at_reduced_size(tmp_path, monkeypatch):
    picture(0, (4000, 3000)).save(tmp_path / "large.jpg")
    loaded: list[tuple[int, int]] = []
    load = Image.Image.convert
    monkeypatch.setattr(Image.Image, "convert", lambda self, *rest: loaded.append(self.size) or load(self, *rest))
    assert photos.usable(photos.read(tmp_path, 64))[0].size == (4000, 3000)
    assert max(loaded) < (1024, 1024)


@pytest.mark.parametrize(
    ("mode", "name", "tolerance"),
    [
        ("CMYK", "photo.jpg", 2),
        ("CMYK", "photo.tif", 0),
        ("L", "photo.png", 0),
        ("1", "photo.png", 0),
        ("RGB", "photo.bmp", 0),
        ("RGB", "photo.heic", 4),
        ("RGB", "photo.webp", 3),
        ("YCbCr", "photo.tif", 2),
    ],
)
def test_any_mode_becomes_rgb(tmp_path, mode, name, tolerance):
    source = picture(0).filter(ImageFilter.GaussianBlur(2)).convert(mode)
    source.save(tmp_path / name, quality=95)
    read = photos.open_upright(tmp_path / name)
    assert read.mode == "RGB"
    assert np.abs(pixels(read) - pixels(source.convert("RGB"))).mean() <= tolerance
    assert used(tmp_path) == [name]


def test_palettes_keep_their_colours(tmp_path):
    source = picture(0).quantize(64)
    source.save(tmp_path / "palette.png")
    assert np.array_equal(photos.open_upright(tmp_path / "palette.png"), source.convert("RGB"))


@pytest.mark.parametrize("name", ["grey.png", "grey.tif"])
def test_16_bit_grey_is_scaled_and_not_clipped(tmp_path, name):
    ramp = np.linspace(0, 65535, 60 * 40).astype(np.uint16).reshape(40, 60)
    Image.fromarray(ramp).save(tmp_path / name)
    read = pixels(photos.open_upright(tmp_path / name))
    assert np.abs(read - (ramp / 257)[..., None]).max() <= 0.5
    assert used(tmp_path) == [name]


def test_dark_16_bit_grey_stays_dark(tmp_path):
    Image.fromarray(np.full((40, 60), 2570, dtype=np.uint16)).save(tmp_path / "dark.tif")
    assert np.unique(photos.open_upright(tmp_path / "dark.tif")).tolist() == [10]


@pytest.mark.parametrize(("dtype", "top"), [(np.int32, 255), (np.int32, 65535), (np.float32, 1), (np.float32, 3e6)])
def test_32_bit_grey_is_scaled_by_the_range_that_holds_it(tmp_path, dtype, top):
    ramp = np.linspace(0, top, 60 * 40).astype(dtype).reshape(40, 60)
    Image.fromarray(ramp).save(tmp_path / "grey.tif")
    read = pixels(photos.open_upright(tmp_path / "grey.tif"))
    assert np.abs(read - (ramp / top * 255)[..., None]).max() <= 0.51


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_what_is_transparent_becomes_white(tmp_path, suffix):
    source = picture(0).convert("RGBA")
    alpha = np.tile(np.linspace(0, 255, 96).astype(np.uint8), (80, 1))
    source.putalpha(Image.fromarray(alpha))
    source.save(tmp_path / f"clear.{suffix}", lossless=True, exact=True)
    share = alpha[..., None] / 255
    expected = pixels(source)[..., :3] * share + 255 * (1 - share)
    assert np.abs(pixels(photos.open_upright(tmp_path / f"clear.{suffix}")) - expected).max() <= 1


def test_a_transparent_palette_colour_becomes_white(tmp_path):
    source = Image.new("P", (20, 20), 0)
    source.putpalette([10, 20, 30, 200, 100, 50])
    source.paste(1, (0, 0, 10, 20))
    source.save(tmp_path / "clear.gif", transparency=0)
    read = photos.open_upright(tmp_path / "clear.gif")
    assert (read.getpixel((0, 0)), read.getpixel((19, 0))) == ((200, 100, 50), (255, 255, 255))


def test_the_first_frame_of_a_gif_is_read(tmp_path):
    frames = [picture(seed).quantize(64) for seed in range(3)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert np.array_equal(photos.open_upright(tmp_path / "moving.gif"), frames[0].convert("RGB"))
    assert used(tmp_path) == ["moving.gif"]


def test_the_content_counts_and_not_the_suffix(tmp_path):
    picture(0).save(tmp_path / "really_png.JPG", format="PNG")
    assert used(tmp_path) == ["really_png.JPG"]


def test_more_than_a_thousand_photos_are_read(tmp_path):
    random = np.random.default_rng(0)
    for index in range(1100):
        tiny = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        tiny.resize((32, 32), Image.Resampling.NEAREST).save(tmp_path / f"{index}.jpg")
    assert used(tmp_path, 32) == [f"{index}.jpg" for index in range(1100)]


# What is no photo, or a bad one


def test_what_is_no_photo_is_passed_over_and_named(folder):
    for name in (".DS_Store", "._00.png", "notes.txt", "manual.pdf", "raw.CR2", "README", "99.mask.png"):
        (folder / name).write_bytes(b"anything")
    (folder / "more.png").mkdir()
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    named = {
        found.file: (found.used, found.problems[0].kind)
        for found in photos.read(folder, 64)
        if found.file[:2] not in "00010203"
    }
    passed_over = {".DS_Store", "._00.png", "notes.txt", "manual.pdf", "raw.CR2", "README", "99.mask.png"}
    assert named == dict.fromkeys(passed_over | {"more.png", "gone.png"}, (False, "not-a-photo"))
    assert used(folder) == ["00.png", "01.png", "02.png", "03.png"]


@pytest.mark.parametrize("share", [0.02, 0.3, 0.95])
@pytest.mark.parametrize(
    "name", ["broken.jpg", "progressive.jpg", "broken.png", "broken.gif", "broken.tif", "broken.webp", "broken.heic"]
)
def test_a_truncated_photo_is_named_and_not_used(folder, name, share):
    path = folder / name
    picture(9, (640, 600)).save(path, progressive=name.startswith("prog"))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    finding = next(found for found in photos.read(folder, 64) if found.file == name)
    assert not finding.used
    assert [problem.kind for problem in finding.problems] == ["unreadable"]
    assert finding.problems[0].message.startswith("cannot be read (")
    assert "\n" not in finding.problems[0].message
    assert used(folder) == ["00.png", "01.png", "02.png", "03.png"]


def test_text_named_as_a_photo_says_so(folder):
    (folder / "text.jpg").write_text("not a photo")
    message = "cannot be read (no picture, or a damaged one): save it again as JPEG or PNG, or remove it"
    assert photos.read(folder, 64)[-1] == photos.Finding("text.jpg", None, (photos.Problem("unreadable", message),))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_garbage_in_exif_does_no_harm(tmp_path):
    picture(0).save(tmp_path / "odd.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\0\1")
    assert used(tmp_path) == ["odd.jpg"]


@pytest.mark.parametrize(("count", "message"), [(1, "only 1 photo to"), (2, "only 2 photos to")])
def test_few_photos_are_a_warning_of_the_folder(tmp_path, count, message):
    for seed in range(count):
        picture(seed).save(tmp_path / f"{seed}.png")
    [problem] = photos.warnings(photos.read(tmp_path, 64))
    assert problem.kind == "few"
    assert problem.message == f"{message} learn from: 3 to 5, in different places, do better"


# Captions and masks


@pytest.mark.parametrize(
    ("text", "caption"),
    [(b"a dog\n", "a dog"), (b"\xef\xbb\xbf a caf\xc3\xa9 ", "a caf\u00e9"), (b" \n", None), (b"", None)],
)
def test_a_caption_beside_a_photo_is_read(folder, text, caption):
    (folder / "01.txt").write_bytes(text)
    found = photos.read(folder, 64)
    assert [finding.file for finding in found] == ["00.png", "01.png", "02.png", "03.png"]
    assert [finding.photo.caption for finding in found] == [None, caption, None, None]
    assert not any(finding.problems for finding in found)


def test_captions_and_masks_are_found_in_capitals(folder):
    (folder / "01.TXT").write_text("a dog")
    Image.open(folder / "02.png").convert("L").save(folder / "02.MASK.PNG")
    found = photos.read(folder, 64)
    assert [finding.file for finding in found] == ["00.png", "01.png", "02.png", "03.png"]
    assert found[1].photo.caption == "a dog"
    assert found[2].photo.mask_path == folder / "02.MASK.PNG"
    assert not any(finding.problems for finding in found)


def test_a_caption_that_is_no_text_is_ignored_with_a_word(folder):
    (folder / "01.txt").write_bytes(b"\xff\xfea\x00")
    finding = photos.read(folder, 64)[1]
    assert finding.photo.caption is None
    assert finding.problems == (
        photos.Problem("caption", "01.txt cannot be read and is ignored: save it as UTF-8 text"),
    )


def test_a_mask_beside_a_photo_is_found(folder):
    Image.new("L", (96, 80), 255).save(folder / "01.mask.png")
    found = photos.read(folder, 64)
    assert [finding.photo.mask_path for finding in found] == [None, folder / "01.mask.png", None, None]
    assert not any(finding.problems for finding in found)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (Image.new("L", (80, 96), 255), "it has 80 x 96 pixels, the photo has 96 x 80: make them equal"),
        (Image.new("L", (96, 80), 0), "it is black everywhere: paint the subject white"),
        (None, "it cannot be read (no picture, or a damaged one): save it again as PNG"),
    ],
)
def test_a_mask_that_does_not_fit_is_ignored_with_a_word(folder, mask, message):
    path = folder / "01.mask.png"
    path.write_bytes(b"nothing") if mask is None else mask.save(path)
    finding = photos.read(folder, 64)[1]
    assert finding.photo.mask_path is None
    assert finding.problems == (photos.Problem("mask", f"01.mask.png is ignored, {message}"),)


# Refusals


def make_bomb(path: Path, side: int) -> None:
    """A PNG whose header promises side x side pixels, with hardly any data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(9))) + chunk(b"IEND", b"")
    )


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        photos.read(folder, 64)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_folder_is_refused(tmp_path):
    missing = tmp_path / "nowhere"
    assert refusal(missing) == f"there is no folder {missing}: give the folder that holds the subject's photos"


def test_a_file_is_refused(folder):
    file = folder / "00.png"
    assert refusal(file) == f"{file} is a file: give the folder that holds the subject's photos"


def test_an_empty_folder_is_refused(tmp_path):
    assert refusal(tmp_path) == f"{tmp_path} is empty: {ADVICE}"


def test_a_folder_of_text_is_refused(tmp_path):
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        (tmp_path / name).write_text("text")
    reason = "cannot be read (no picture, or a damaged one): save it again as JPEG or PNG, or remove it"
    assert refusal(tmp_path) == f"no photo in {tmp_path} can be used (a.jpg: {reason}; and 2 more): {ADVICE}"


def test_a_folder_of_truncated_photos_is_refused(tmp_path):
    picture(0, (400, 300)).save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:5000])
    assert refusal(tmp_path).startswith(
        f"no photo in {tmp_path} can be used (a.jpg: cannot be read (image file is trunc"
    )


def test_a_folder_of_single_pixels_is_refused(tmp_path):
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    reason = "only 1 x 1 pixels, too few to be used: find a larger version of it"
    assert refusal(tmp_path) == f"no photo in {tmp_path} can be used (dot.png: {reason}): {ADVICE}"


def test_a_decompression_bomb_is_refused_from_its_header(folder):
    bomb = folder / "bomb.png"
    make_bomb(bomb, 20_000)
    message = f"{bomb} has 400 megapixels (20000 x 20000), the most is 250: make it smaller or remove it"
    assert refusal(folder) == message
    with pytest.raises(UserError, match="400 megapixels"):
        photos.open_upright(bomb)


def test_a_photo_of_exactly_the_limit_is_read(folder, monkeypatch):
    monkeypatch.setattr(photos, "MAX_MEGAPIXELS", 96 * 80 / 1e6)
    assert len(used(folder)) == 4
    monkeypatch.setattr(photos, "MAX_MEGAPIXELS", (96 * 80 - 1) / 1e6)
    assert "96 x 80" in refusal(folder)


@pytest.mark.filterwarnings("error")
def test_pillows_own_limit_is_set_aside_and_kept(folder, monkeypatch):
    (folder / "broken.png").write_bytes(b"nothing")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert len(used(folder)) == 4
    photo = photos.usable(photos.read(folder, 64))[0]
    assert photos.crop(photo, (32, 32)).shape == (32, 32, 3)
    assert Image.MAX_IMAGE_PIXELS == 10


# For programs


def test_every_file_is_named(folder):
    (folder / "notes.pdf").write_text("x")
    suffix = "no photo by its suffix (.pdf), passed over: save it as JPEG or PNG if it is one"
    found = photos.read(folder, 64)
    assert [(entry.file, entry.used) for entry in found] == [
        *((f"{index:02}.png", True) for index in range(4)),
        ("notes.pdf", False),
    ]
    assert [(each.kind, each.message) for each in found[-1].problems] == [("not-a-photo", suffix)]


def test_importing_photos_loads_neither_torch_nor_the_heic_reader():
    source = Path(dreambooth.photos.__file__).parents[1]
    code = "import sys, dreambooth.photos; print([name for name in ('torch', 'pillow_heif') if name in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(source)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == "[]"
