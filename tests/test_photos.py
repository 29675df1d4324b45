from __future__ import annotations

import hashlib
import os
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import Image, ImageDraw, ImageFilter

import dreambooth.photos
from dreambooth import photo_checks, photos
from dreambooth.errors import UserError

pillow_heif.register_heif_opener()

ADVICE = "put 3 to 5 photos of the subject there (JPEG, PNG, HEIC, WebP or TIFF)"
TURNS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""How a camera stores an upright picture for each EXIF orientation: the inverse of what undoes it."""


def picture(seed: int, size: tuple[int, int] = (96, 80)) -> Image.Image:
    """Large blobs, like a photo, with sharp-edged boxes on them."""
    random = np.random.default_rng(seed)
    blobs = Image.fromarray(random.integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(blobs)
    for _ in range(12):
        left, top = random.integers(0, size[0]), random.integers(0, size[1])
        colour = tuple(int(value) for value in random.integers(0, 256, 3))
        draw.rectangle((left, top, left + size[0] // 8, top + size[1] // 8), fill=colour)
    return blobs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four good photos, 00.png to 03.png."""
    for seed in range(4):
        picture(seed).save(tmp_path / f"{seed:02}.png")
    return tmp_path


def kinds(folder: Path, resolution: int = 64) -> dict[str, list[str]]:
    return {found.file: [problem.kind for problem in found.problems] for found in photos.read(folder, resolution)}


def used(folder: Path, resolution: int = 64) -> list[str]:
    return [photo.path.name for photo in photos.usable(photos.read(folder, resolution))]


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=np.int16)


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


def test_a_small_photo_is_used_with_a_word_and_a_tiny_one_is_not(tmp_path):
    sizes = {"enough": (256, 300), "small": (255, 300), "least": (16, 300), "tiny": (15, 300)}
    for seed, (name, size) in enumerate(sizes.items()):
        picture(seed, size).save(tmp_path / f"{name}.png")
    assert kinds(tmp_path, 512) == {
        "enough.png": [],
        "least.png": ["small"],
        "small.png": ["small"],
        "tiny.png": ["small"],
    }
    assert used(tmp_path, 512) == ["enough.png", "least.png", "small.png"]


# Blur and exposure


def test_a_strong_blur_is_named(tmp_path):
    picture(0, (512, 512)).filter(ImageFilter.GaussianBlur(8)).save(tmp_path / "soft.png")
    picture(1, (512, 512)).save(tmp_path / "sharp.png")
    assert kinds(tmp_path) == {"sharp.png": [], "soft.png": ["blur"]}
    assert used(tmp_path) == ["sharp.png", "soft.png"]


def test_a_sharp_subject_before_a_blurred_background_is_sharp(tmp_path):
    photo = picture(0, (512, 512)).filter(ImageFilter.GaussianBlur(8))
    photo.paste(picture(1, (128, 128)), (300, 200))
    photo.save(tmp_path / "portrait.png")
    assert kinds(tmp_path) == {"portrait.png": []}


def test_sharpness_is_the_largest_variance_of_the_laplacian():
    checks = np.zeros((32, 32), dtype=np.uint8)
    checks[8:16, 16:24] = np.indices((8, 8)).sum(axis=0) % 2 * 100
    inner = [
        4 * int(checks[y, x]) - sum(int(checks[y + dy, x + dx]) for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0)))
        for y in range(8, 16)
        for x in range(16, 24)
    ]
    assert photo_checks.sharpness(Image.fromarray(checks)) == pytest.approx(np.var(inner))


@pytest.mark.parametrize(
    ("name", "levels", "word"),
    [("black", lambda v: v // 20, "black"), ("blown", lambda v: min(255, 215 + v), "white or burnt out")],
)
def test_black_and_blown_out_photos_are_named(tmp_path, name, levels, word):
    picture(0).point(levels).save(tmp_path / f"{name}.png")
    [finding] = photos.read(tmp_path, 64)
    assert finding.used
    assert [problem.kind for problem in finding.problems] == ["exposure"]
    assert word in finding.problems[0].message


def test_a_product_on_white_and_strong_colours_are_well_exposed(tmp_path):
    product = Image.new("RGB", (200, 200), "white")
    product.paste(picture(0, (100, 60)), (50, 70))
    product.save(tmp_path / "product.png")
    poster = Image.fromarray(
        np.kron(np.indices((10, 10)).sum(axis=0) % 2, np.ones((20, 20))).astype(np.uint8), mode="P"
    )
    poster.putpalette([255, 0, 0, 0, 0, 255])
    poster.save(tmp_path / "poster.png")
    assert kinds(tmp_path) == {"poster.png": [], "product.png": []}


# Duplicates


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("99.png", lambda image: image),
        ("99.jpg", lambda image: image),
        ("99.webp", lambda image: image),
        ("half.png", lambda image: image.resize((100, 75), Image.Resampling.BILINEAR)),
    ],
)
def test_the_same_picture_is_used_once(tmp_path, name, change):
    for seed in range(3):
        picture(seed, (200, 150)).save(tmp_path / f"{seed:02}.png")
    change(picture(1, (200, 150))).save(tmp_path / name, quality=40)
    copy = photos.read(tmp_path, 64)[-1]
    message = "the same picture as 01.png, which is used: remove it"
    assert copy == photos.Finding(name, None, (photos.Problem("duplicate", message),))
    assert used(tmp_path) == ["00.png", "01.png", "02.png"]


def test_the_same_file_is_used_once_even_if_flat(tmp_path):
    Image.new("RGB", (64, 64), "grey").save(tmp_path / "a.png")
    shutil.copy(tmp_path / "a.png", tmp_path / "b.png")
    assert used(tmp_path) == ["a.png"]
    assert kinds(tmp_path)["b.png"] == ["blur", "duplicate"]


def test_the_largest_of_several_copies_is_kept(tmp_path):
    for name, side in (("a", 100), ("b", 300), ("c", 200)):
        picture(0, (300, 300)).resize((side, side)).save(tmp_path / f"{name}.png")
    assert used(tmp_path) == ["b.png"]


def test_a_copy_stored_turned_is_found(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(2).transpose(TURNS[6]).save(folder / "turned.jpg", exif=exif, quality=90)
    assert kinds(folder)["turned.jpg"] == ["duplicate"]


def test_different_pictures_are_no_duplicates(tmp_path):
    """Not even noise, black and white, a moved subject, and one picture in two colours."""
    random = np.random.default_rng(0)
    for index in range(3):
        Image.fromarray(random.integers(0, 256, (256, 256, 3), dtype=np.uint8)).save(tmp_path / f"noise{index}.png")
    for colour in ("black", "white", "grey"):
        Image.new("RGB", (64, 64), colour).save(tmp_path / f"{colour}.png")
    for left in (20, 80):
        photo = picture(5, (256, 256))
        photo.paste(picture(6, (100, 100)), (left, 60))
        photo.save(tmp_path / f"moved{left}.png")
    for name, order in (("rgb", (0, 1, 2)), ("bgr", (2, 1, 0))):
        Image.fromarray(np.asarray(picture(7))[..., order]).save(tmp_path / f"{name}.png")
    assert not [name for name, found in kinds(tmp_path).items() if "duplicate" in found]


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


def test_just_under_the_limit_is_no_bomb(folder):
    make_bomb(folder / "huge.png", 15_811)
    assert kinds(folder)["huge.png"] == ["unreadable"]


@pytest.mark.filterwarnings("error")
def test_pillows_own_limit_is_set_aside_and_kept(folder, monkeypatch):
    (folder / "broken.png").write_bytes(b"nothing")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert len(used(folder)) == 4
    photo = photos.usable(photos.read(folder, 64))[0]
    assert photos.crop(photo, 32, 0, 0).shape == (32, 32, 3)
    assert Image.MAX_IMAGE_PIXELS == 10


# Crops


@pytest.fixture
def ramp(tmp_path: Path) -> photos.Photo:
    """A photo whose red is x and whose green is y, with a mask that is white from x = 100 on."""
    y, x = np.indices((120, 200), dtype=np.uint8)
    Image.fromarray(np.stack([x, y, np.zeros_like(x)], axis=-1)).save(tmp_path / "ramp.png")
    Image.fromarray(((x >= 100) * 255).astype(np.uint8)).save(tmp_path / "ramp.mask.png")
    return photos.usable(photos.read(tmp_path, 64))[0]


def square(pixels_HWC: np.ndarray, side: int) -> tuple[float, float, float]:
    """Left, top and side of the crop of a ramp, from the colours in its centre and near its edges."""
    red, green = pixels_HWC[side // 2, :, 0].astype(float), pixels_HWC[:, side // 2, 1].astype(float)
    low, high = side // 4, 3 * side // 4
    scale = (red[high] - red[low]) / (high - low)
    assert (green[high] - green[low]) / (high - low) == pytest.approx(scale, abs=0.06)
    return red[side // 2] - scale * side / 2, green[side // 2] - scale * side / 2, scale * side


def test_variant_0_is_the_centre(ramp):
    reference = Image.open(ramp.path).crop((40, 0, 160, 120)).resize((48, 48), Image.Resampling.LANCZOS)
    cut = photos.crop(ramp, 48, 0, seed=7)
    assert (cut.shape, cut.dtype) == ((48, 48, 3), np.uint8)
    assert np.abs(cut.astype(int) - pixels(reference)).max() <= 1
    assert np.array_equal(cut, photos.crop(ramp, 48, 0, seed=8))


def test_other_variants_are_random_squares_of_the_stated_size(ramp):
    squares = np.array([square(photos.crop(ramp, 60, variant, seed=0), 60) for variant in range(1, 60)])
    left, top, side = squares.T
    assert side.min() >= 0.85 * 120 - 3
    assert side.max() <= 120 + 3
    assert side.max() - side.min() > 12
    assert left.min() > -3
    assert left.min() < 12
    assert (left + side).max() < 203
    assert (left + side).max() > 188
    assert top.min() > -3
    assert (top + side).max() < 123
    assert len({tuple(row) for row in squares}) > 50


def test_crops_depend_on_seed_photo_and_variant_alone(ramp):
    first = photos.crop(ramp, 32, 1, seed=0)
    assert np.array_equal(first, photos.crop(ramp, 32, 1, seed=0))
    other = photos.Photo("0" * 32, ramp.path, ramp.size)
    for different in (photos.crop(ramp, 32, 2, 0), photos.crop(ramp, 32, 1, 1), photos.crop(other, 32, 1, 0)):
        assert not np.array_equal(first, different)


def test_small_photos_are_enlarged(ramp):
    assert photos.crop(ramp, 300, 0, 0).shape == (300, 300, 3)


@pytest.mark.parametrize("variant", range(6))
def test_the_mask_is_cut_where_the_photo_is(ramp, variant):
    cut, mask = photos.crop(ramp, 120, variant, 0), photos.crop_mask(ramp, 120, variant, 0)
    assert (mask.shape, mask.dtype) == ((120, 120), np.uint8)
    assert np.all(mask[cut[..., 0] >= 102] == 255)
    assert np.all(mask[cut[..., 0] <= 97] == 0)


def test_without_a_mask_there_is_none_to_cut(folder):
    assert photos.crop_mask(photos.usable(photos.read(folder, 64))[0], 32, 0, 0) is None


def test_what_is_transparent_in_a_mask_is_not_the_subject(tmp_path):
    picture(0).save(tmp_path / "a.png")
    mask = Image.new("LA", (96, 80), (255, 0))
    mask.paste((255, 255), (0, 0, 48, 80))
    mask.save(tmp_path / "a.mask.png")
    photo = photos.usable(photos.read(tmp_path, 64))[0]
    cut = photos.crop_mask(photo, 40, 0, 0)
    assert (cut[20, 2], cut[20, 37]) == (255, 0)


# For programs


def test_json_names_every_file(folder):
    (folder / "notes.pdf").write_text("x")
    suffix = "no photo by its suffix (.pdf), passed over: save it as JPEG or PNG if it is one"
    good = [{"file": f"{index:02}.png", "used": True, "problems": []} for index in range(4)]
    bad = {"file": "notes.pdf", "used": False, "problems": [{"kind": "not-a-photo", "message": suffix}]}
    assert photos.to_json(photos.read(folder, 64)) == {"photos": [*good, bad]}


def test_importing_photos_loads_neither_torch_nor_the_heic_reader():
    source = Path(dreambooth.photos.__file__).parents[1]
    code = "import sys, dreambooth.photos; print([name for name in ('torch', 'pillow_heif') if name in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(source)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == "[]"
