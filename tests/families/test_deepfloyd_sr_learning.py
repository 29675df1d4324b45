"""A real learning result: the less noise on the small images, the truer the detail that a toy model draws from them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, DiffusionPipeline, IFSuperResolutionPipeline, UNet2DConditionModel
from PIL import Image
from torch import Tensor

from dreambooth import Recipe, train
from tests import debug_models

LOW, HIGH = 0, 600
"""Levels of noise of variance 4.1e-5 and 0.66: small images that say all, and next to nothing, of the detail."""

SETTINGS = {
    "method": "full",
    "steps": 300,
    "learning_rate": 2e-2,
    "schedule": "cosine",
    "batch_size": 2,
    "allow": ["learning-rate"],
}


def photo(seed: int) -> Image.Image:
    """A subject whose detail is where its dark and its light squares are, 64 px."""
    random = np.random.default_rng(seed)
    pixels_HWC = np.array(
        Image.fromarray(random.integers(100, 156, (4, 4, 3), dtype=np.uint8)).resize((64, 64), Image.Resampling.BICUBIC)
    )
    for _ in range(25):
        top, left = random.integers(0, 58, 2)
        pixels_HWC[top : top + 6, left : left + 6] = random.choice([48, 208])
    return Image.fromarray(pixels_HWC)


def toy() -> IFSuperResolutionPipeline:
    """A model from 16 px to 64, of one block; it predicts the velocity, from which it learns in fewer steps."""
    debug = debug_models.deepfloyd_sr()
    unet = UNet2DConditionModel(
        sample_size=64,
        in_channels=6,
        out_channels=6,
        layers_per_block=1,
        block_out_channels=(16,),
        down_block_types=("ResnetDownsampleBlock2D",),
        mid_block_type=None,
        up_block_types=("ResnetUpsampleBlock2D",),
        cross_attention_dim=32,
        encoder_hid_dim=debug_models.WIDTH,
        attention_head_dim=8,
        addition_embed_type="text",
        addition_embed_type_num_heads=2,
        resnet_time_scale_shift="scale_shift",
        norm_num_groups=16,
        class_embed_type="timestep",
    )
    scheduler = DDPMScheduler(
        beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", timestep_spacing="trailing"
    )
    return IFSuperResolutionPipeline(
        **{**debug.components, **debug_models.UNUSED, "unet": unet, "scheduler": scheduler}
    )


@pytest.fixture(scope="module")
def errors(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int], float]:
    """Error of the detail drawn of photos that were not learned, by level of training and of drawing."""
    folder = tmp_path_factory.mktemp("super-resolution")
    (folder / "photos").mkdir()
    for seed in range(6):
        photo(seed).save(folder / "photos" / f"{seed}.png")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        toy().save_pretrained(folder / "toy")
    settings = {**SETTINGS, "model": str(folder / "toy")}
    settings["subjects"] = [{"photos": folder / "photos", "class_noun": "dog", "identifier": "ohwx"}]
    found = {}
    for level in (LOW, HIGH):
        run = train(Recipe.of({**settings, "low_resolution_noise": level}), folder / f"run-{level}")
        pipe = DiffusionPipeline.from_pretrained(run.adapter)
        pipe.set_progress_bar_config(disable=True)
        found |= {(level, at): error(pipe, at) for at in (LOW, HIGH)}
    return found


def error(pipe: DiffusionPipeline, level: int) -> float:
    """Mean squared error of the detail that the stock pipeline draws, 0..4."""
    photos = [photo(seed) for seed in range(100, 104)]
    true_BCHW = torch.stack([torch.tensor(np.asarray(each)).permute(2, 0, 1) / 127.5 - 1 for each in photos])
    small = [each.resize((16, 16), Image.Resampling.BICUBIC) for each in photos]
    settings = {"num_inference_steps": 5, "guidance_scale": 1.0, "clean_caption": False, "output_type": "pt"}
    generator = torch.Generator().manual_seed(0)
    prompts = ["a ohwx dog"] * len(photos)
    drawn_BCHW = pipe(prompt=prompts, image=small, noise_level=level, generator=generator, **settings).images
    return float((detail(drawn_BCHW) - detail(true_BCHW)).square().mean())


def detail(images_BCHW: Tensor) -> Tensor:
    return images_BCHW - F.avg_pool2d(images_BCHW, 17, stride=1, padding=8, count_include_pad=False)


def test_detail_is_truer_with_the_low_level_than_with_the_high_one(errors: dict[tuple[int, int], float]) -> None:
    """Each model drawing at the level that it was taught at."""
    assert errors[LOW, LOW] < 0.75 * errors[HIGH, HIGH]


def test_a_model_copes_best_with_the_noise_that_it_was_taught(errors: dict[tuple[int, int], float]) -> None:
    assert errors[HIGH, HIGH] < 0.8 * errors[LOW, HIGH]
    assert errors[LOW, LOW] < 0.9 * errors[HIGH, LOW]
