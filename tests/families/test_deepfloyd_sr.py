"""What is the super-resolution stage's own: a small image, the level of its noise, and what needs a prompt alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from PIL import Image
from torch import Tensor

from dreambooth import generation, presets, sampling
from dreambooth.errors import UserError
from dreambooth.families import deepfloyd_sr
from dreambooth.recipe import Recipe
from dreambooth.samples import image_generator
from tests.families.conftest import Model
from tests.families.stock import PROMPTS, second_call
from tests.pictures import picture


@pytest.fixture(scope="module")
def model(models: Callable[[str], Model]) -> Model:
    return models("deepfloyd_sr")


def at_level(model: Model, level: int) -> Any:
    pipe = model.fresh()
    pipe.low_resolution_noise = level
    return pipe


def halves(side: int = 16) -> tuple[Tensor, Tensor]:
    both_2BCHW = torch.randn(2, 3, 6, side, side, generator=torch.Generator().manual_seed(0))
    return both_2BCHW[0], both_2BCHW[1]


# The small image


def test_the_small_image_is_upscaled_as_the_stock_pipeline_upscales_it(model: Model) -> None:
    """PIL's bicubic makes it; the pipeline, given that and no noise to add, feeds its denoiser our channels."""
    photo = picture(0, (16, 24))
    small = photo.resize((4, 6), Image.Resampling.BICUBIC)
    pixels_1CHW = pixels(photo)
    stock = model.fresh()
    stock.image_noising_scheduler = DDPMScheduler(trained_betas=[1e-12])
    settings = {"height": 24, "width": 16, "guidance_scale": 1.0, "noise_level": 0, "clean_caption": False}
    calls: list[Tensor] = []
    hook = stock.unet.register_forward_pre_hook(lambda module, args: calls.append(args[0]))
    with hook:
        stock(prompt=PROMPTS[:1], image=pixels(small), num_inference_steps=1, **settings)
    encoded = deepfloyd_sr.encode_images(model.pipe, pixels_1CHW)
    assert torch.equal(encoded["mean_BCHW"][:, :3], pixels_1CHW)
    torch.testing.assert_close(encoded["mean_BCHW"][:, 3:], calls[0][:, 3:], atol=1 / 127, rtol=0)
    assert not encoded["std_BCHW"].any()


def pixels(image: Image.Image) -> Tensor:
    return torch.tensor(np.asarray(image)).permute(2, 0, 1)[None] / 127.5 - 1


# The level of its noise


@pytest.mark.parametrize("level", [0, 13, 250])
def test_the_halves_get_the_noise_of_the_stock_schedulers(level: int, model: Model) -> None:
    """The first that of its time, the second that of the level at every time; nothing is predicted of the second."""
    pipe = at_level(model, level)
    process = deepfloyd_sr.process(pipe)
    x_BCHW, noise_BCHW = halves()
    t_B = torch.tensor([5, 500, 990])
    mixed_BCHW = process.mix(x_BCHW, noise_BCHW, t_B)
    large_BCHW = pipe.scheduler.add_noise(x_BCHW[:, :3], noise_BCHW[:, :3], t_B)
    small_BCHW = pipe.image_noising_scheduler.add_noise(x_BCHW[:, 3:], noise_BCHW[:, 3:], torch.full((3,), level))
    torch.testing.assert_close(mixed_BCHW, torch.cat([large_BCHW, small_BCHW], dim=1))
    assert torch.equal(process.target(x_BCHW, noise_BCHW, t_B), noise_BCHW[:, :3])
    assert deepfloyd_sr.guide(pipe, 1.0, [""])["noise_level"] == level


@pytest.mark.parametrize(("level", "variance"), [(0, 4.1e-5), (13, 1.0e-3), (250, 0.15)])
def test_the_variances_that_are_named(level: int, variance: float, model: Model) -> None:
    alphas_T = deepfloyd_sr.process(model.pipe).small.alphas_cumprod_T
    assert float(1 - alphas_T[level]) == pytest.approx(variance, rel=0.03)


def test_the_denoiser_is_told_the_level(model: Model) -> None:
    pipe = at_level(model, 77)
    settings = {"height": 16, "width": 16, **deepfloyd_sr.guide(pipe, 1.0, ["", ""])}
    given, _ = second_call(model.stock, model.stock.unet, **settings)
    cond = deepfloyd_sr.collate(deepfloyd_sr.encode_prompts(pipe, PROMPTS))
    assert torch.equal(cond["level_B"], given["class_labels"])
    noisy_BCHW, t_B = halves()[0][:2], torch.tensor([300, 300])
    with torch.no_grad():
        loud, quiet = (
            deepfloyd_sr.predict(pipe.unet, noisy_BCHW, t_B, {**cond, "level_B": torch.full((2,), level)})
            for level in (77, 0)
        )
    assert (loud - quiet).abs().max() > 1e-4


def test_a_level_that_there_is_not_is_refused(model: Model) -> None:
    with pytest.raises(UserError, match=r"levels from 0 to 999: give a smaller one$"):
        deepfloyd_sr.process(at_level(model, 1000))


# Settings


def filled(model: Model, **values: Any) -> Recipe:
    given = {"model": str(model.source.path), "subjects": [{"photos": ".", "class_noun": "dog"}]}
    return presets.fill(Recipe.of({**given, **values}), model.source, model.side, "cpu")[0]


def test_the_default_is_the_smallest_level_and_nothing_is_drawn(model: Model) -> None:
    recipe = filled(model)
    assert (recipe.low_resolution_noise, recipe.samples, recipe.prior_weight) == (0, 0, 0.0)
    assert filled(model, low_resolution_noise=13).low_resolution_noise == 13
    assert filled(model, prior_loss="parent").prior_weight == filled(model, prior_images=Path()).prior_weight == 1.0


@pytest.mark.parametrize("values", [{"samples": 2}, {"select": True}, {"prior_weight": 0.5}, {"consistency": 1.0}])
def test_what_needs_a_picture_from_a_prompt_is_refused(values: dict[str, Any], model: Model) -> None:
    with pytest.raises(
        UserError, match=r"draws nothing from a prompt alone: (leave it out|give --prior-images FOLDER)"
    ):
        filled(model, **values)


def test_other_models_have_no_such_level(models: Callable[[str], Model]) -> None:
    with pytest.raises(UserError, match="--low-resolution-noise is a setting of super-resolution models: leave it out"):
        filled(models("deepfloyd"), low_resolution_noise=0)
    assert filled(models("deepfloyd")).low_resolution_noise is None


def test_pictures_from_a_prompt_are_refused(model: Model, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="use it in diffusers on a picture of stage I"):
        generation.generate(str(model.source.path), ["a dog"], out=tmp_path / "images")
    with pytest.raises(UserError, match="use it in diffusers on a picture of stage I"):
        next(sampling.draw(model.pipe, ["a dog"], [image_generator(0)], sampling.Sampling("ddpm", 2, 1.0, 16)))
