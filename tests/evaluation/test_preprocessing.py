"""The preprocessing against transformers' own Pillow processors, which share no code with it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from dreambooth import photos
from dreambooth.evaluation.encoders import SPECS
from dreambooth.evaluation.preprocessing import HALF, IMAGENET, OPENAI, Preprocess, parse
from dreambooth.toybox.model.package import PREPROCESSOR
from tests.pictures import TURNS, picture

SIZES = [(101, 173), (231, 120), (401, 307), (256, 256), (37, 700), (224, 225), (64, 64)]


def by_hand(image: Image.Image, size: int, crop: int, mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """Resize by transformers; then the cut and the normalisation of torchvision, written out."""
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": size}, do_center_crop=False, do_normalize=False, do_rescale=False, resample=3
    )
    pixels_CHW = np.asarray(processor(image, return_tensors="np").pixel_values[0], np.float64)
    height, width = pixels_CHW.shape[1:]
    top, left = round((height - crop) / 2.0), round((width - crop) / 2.0)
    cut_CHW = pixels_CHW[:, top : top + crop, left : left + crop]
    return (cut_CHW / 255 - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))


def preprocess_of(name: str) -> Preprocess:
    found = SPECS[name].preprocess
    assert found is not None
    return found


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", ["dino-vits16", "dino-vits8", "dinov2-small"])
def test_dino_is_256_bicubic_224_crop_imagenet(name: str, size: tuple[int, int]):
    image = picture(1, size)
    pixels_CHW = preprocess_of(name)(image)
    assert pixels_CHW.shape == (3, 224, 224)
    assert pixels_CHW.dtype == torch.float32
    expected_CHW = by_hand(image, 256, 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert np.abs(pixels_CHW.numpy() - expected_CHW).max() < 1e-5


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", ["clip-vit-b32", "clip-vit-l14"])
def test_clip_is_openais(name: str, size: tuple[int, int]):
    image = picture(2, size)
    processor = CLIPImageProcessorPil()
    expected_CHW = by_hand(image, 224, 224, tuple(processor.image_mean), tuple(processor.image_std))
    assert np.abs(preprocess_of(name)(image).numpy() - expected_CHW).max() < 1e-5


@pytest.mark.parametrize("size", [(448, 224), (224, 352), (300, 300)], ids=str)
def test_clip_equals_the_whole_processor_where_both_round_alike(size: tuple[int, int]):
    image = picture(3, size)
    expected_CHW = CLIPImageProcessorPil()(image, return_tensors="np").pixel_values[0]
    assert np.abs(preprocess_of("clip-vit-b32")(image).numpy() - expected_CHW).max() < 1e-5


def test_the_cut_rounds_as_torchvision_does():
    """A gap of 111 pixels leaves 56 on the left, one of 109 leaves 54: half goes to the even number."""
    for width, left in ((335, 56), (333, 54)):
        columns = np.tile((np.arange(width) % 256).astype(np.uint8)[None, :, None], (224, 1, 3))
        pixels_CHW = Preprocess(224, 224, ((0.0,) * 3, (1.0,) * 3))(Image.fromarray(columns))
        assert round(float(pixels_CHW[0, 0, 0]) * 255) == left


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_siglip2_is_squashed_bilinearly(size: tuple[int, int]):
    image = picture(4, size)
    processor = SiglipImageProcessorPil(size={"height": 224, "width": 224}, resample=2)
    expected_CHW = processor(image, return_tensors="np").pixel_values[0]
    assert np.abs(preprocess_of("siglip2-base")(image).numpy() - expected_CHW).max() < 1e-5


@pytest.mark.parametrize("size", [(64, 64), (65, 127), (300, 200)], ids=str)
def test_the_toyboxs_own_settings(size: tuple[int, int]):
    image = picture(5, size)
    ours_CHW = parse(PREPROCESSOR)(image).numpy()
    assert (
        np.abs(ours_CHW - ViTImageProcessorPil(**PREPROCESSOR)(image, return_tensors="np").pixel_values[0]).max() < 1e-5
    )
    squashed_HWC = np.asarray(image.resize((64, 64), Image.Resampling.BICUBIC), np.float64)
    assert np.abs(ours_CHW - (squashed_HWC / 127.5 - 1).transpose(2, 0, 1)).max() < 1e-5


def test_every_kind_of_file_is_prepared_as_the_upright_rgb_picture(tmp_path: Path):
    prepare = preprocess_of("dino-vits16")
    upright = picture(6, (140, 90))
    for orientation, turn in TURNS.items():
        stored = upright.transpose(turn) if turn is not None else upright
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored.save(tmp_path / f"{orientation}.png", exif=exif)
        assert torch.equal(prepare(photos.open_upright(tmp_path / f"{orientation}.png")), prepare(upright))
    grey_HW = np.asarray(upright.convert("L"))
    Image.fromarray(grey_HW).save(tmp_path / "grey.png")
    expected = Image.fromarray(np.stack([grey_HW] * 3, -1))
    assert torch.equal(prepare(photos.open_upright(tmp_path / "grey.png")), prepare(expected))
    clear = upright.convert("RGBA")
    clear.putalpha(Image.new("L", upright.size, 0))
    clear.save(tmp_path / "clear.png")
    white = prepare(Image.new("RGB", upright.size, "white"))
    assert torch.equal(prepare(photos.open_upright(tmp_path / "clear.png")), white)


def test_a_picture_that_is_not_rgb_is_refused():
    with pytest.raises(ValueError, match="RGBA"):
        preprocess_of("clip-vit-b32")(picture(7).convert("RGBA"))


def test_it_is_pure_and_safe_in_threads():
    prepare, image = preprocess_of("clip-vit-b32"), picture(8, (200, 150))
    before = image.tobytes()
    alone = prepare(image)
    with ThreadPoolExecutor(8) as pool:
        assert all(torch.equal(alone, each) for each in pool.map(prepare, [image] * 32))
    assert image.tobytes() == before


IMAGENET_SETTINGS = {"image_mean": list(IMAGENET[0]), "image_std": list(IMAGENET[1])}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"size": 224, "resample": 2}, Preprocess(224, None, IMAGENET, Image.Resampling.BILINEAR)),
        ({"size": 256, "do_center_crop": True, "crop_size": 224}, Preprocess(256, 224, IMAGENET)),
        (
            {"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": {"height": 224, "width": 224}},
            Preprocess(256, 224, IMAGENET),
        ),
        ({"size": {"height": 64, "width": 64}, "do_center_crop": None}, Preprocess(64, None, IMAGENET)),
        ({"size": 32, "do_normalize": False}, Preprocess(32, None, ((0.0,) * 3, (1.0,) * 3))),
    ],
)
def test_settings_are_read(settings: dict, expected: Preprocess):
    assert parse({**IMAGENET_SETTINGS, **settings}) == expected


@pytest.mark.parametrize(
    "settings",
    [
        {"size": {"shortest_edge": 224}},
        {"size": {"height": 224, "width": 200}},
        {"size": {"max_height": 3}},
        {"size": {"height": 256, "width": 256}, "do_center_crop": True, "crop_size": 224},
        {"size": {"shortest_edge": 224}, "do_center_crop": True, "crop_size": 256},
        {"size": 224, "do_resize": False},
        {},
    ],
    ids=str,
)
def test_settings_of_another_preprocessing_are_refused(settings: dict):
    with pytest.raises(ValueError, match=r"size|do_resize"):
        parse({**IMAGENET_SETTINGS, **settings})


def test_different_preprocessings_have_different_names():
    every = [
        Preprocess(224, None, IMAGENET),
        Preprocess(224, 224, IMAGENET),
        Preprocess(256, 224, IMAGENET),
        Preprocess(224, 224, OPENAI),
        Preprocess(224, 224, HALF),
        Preprocess(224, 224, HALF, Image.Resampling.BILINEAR),
    ]
    assert len({str(each) for each in every}) == len(every)
