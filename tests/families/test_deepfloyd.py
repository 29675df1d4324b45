"""What is DeepFloyd IF's own: pixels, prompts of 77 tokens in small letters, a variance that is not trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dreambooth import models as found_models
from dreambooth import presets, sampling, train
from dreambooth.errors import UserError
from dreambooth.families import deepfloyd
from dreambooth.recipe import Recipe
from tests.families.conftest import Model
from tests.families.stock import PROMPTS, spied_steps
from tests.pictures import picture
from tests.test_training import QUICK, weights


@pytest.fixture(scope="module")
def model(models: Callable[[str], Model]) -> Model:
    return models("deepfloyd")


def test_images_are_the_pixels_that_the_stock_pipeline_draws(model: Model) -> None:
    """What comes out of its last step, in [-1, 1], is the image."""
    settings = {"num_inference_steps": 2, "output_type": "np", **deepfloyd.guide(model.pipe, 3.0, [""])}
    with spied_steps(model.stock) as steps:
        drawn_BHWC = model.stock(prompt=PROMPTS[:1], generator=torch.Generator().manual_seed(0), **settings).images
    pixels_BCHW = torch.tensor(drawn_BHWC).permute(0, 3, 1, 2) * 2 - 1
    encoded = deepfloyd.encode_images(model.pipe, pixels_BCHW)
    torch.testing.assert_close(encoded["mean_BCHW"], steps[-1][1].clamp(-1, 1))
    assert torch.equal(encoded["std_BCHW"], torch.zeros_like(pixels_BCHW))


def test_the_resolution_is_the_networks_own(model: Model) -> None:
    assert model.side == model.pipe.unet.config.sample_size == 16


def test_prompts_are_read_in_small_letters_to_77_tokens(model: Model) -> None:
    one, other = deepfloyd.encode_prompts(model.pipe, ["A Dog", "a dog"])
    assert torch.equal(one["prompt_embeds_LD"], other["prompt_embeds_LD"])
    assert len(one["prompt_embeds_LD"]) == 77
    longest = "dog " * 76
    dog, cat = deepfloyd.encode_prompts(model.pipe, [longest, longest.replace("dog", "cat", 1)])
    assert (dog["prompt_embeds_LD"] - cat["prompt_embeds_LD"]).abs().max() > 1e-3
    with pytest.raises(UserError, match=r"78 tokens, 77 fit: shorten it"):
        deepfloyd.encode_prompts(model.pipe, ["dog " * 77])


@pytest.mark.parametrize("name", list(deepfloyd.SAMPLERS))
def test_a_fine_tuned_model_is_drawn_from_with_a_fixed_variance(name: str, model: Model) -> None:
    """The predicted variance is not trained: only class images, of the frozen model, are drawn with it."""
    assert sampling.scheduler(model.pipe, name).config.variance_type == "fixed_small"
    assert deepfloyd.class_sampler(model.pipe).config.variance_type == "learned_range"


def test_t5_is_never_trained(model: Model) -> None:
    given = {"model": str(model.source.path), "subjects": [{"photos": ".", "class_noun": "dog"}]}
    with pytest.raises(
        UserError, match=r"^--train-text-encoder: the text encoder of deepfloyd models is never trained"
    ):
        presets.fill(Recipe.of({**given, "train_text_encoder": True}), model.source, model.side, "cpu")


def test_a_whole_run_without_an_autoencoder(model: Model, tmp_path: Path) -> None:
    """Photos encoded once or at every step teach the same, from pixels to an adapter and pictures."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for seed in range(2):
        picture(seed).save(photos / f"{seed}.png")
    subjects = [{"photos": photos, "class_noun": "dog"}]
    settings = {**QUICK, "model": str(model.source.path), "samples": 1, "scenes": ["a [V] dog"], "subjects": subjects}
    cached, live = (
        train(Recipe.of({**settings, "cache": cache}), tmp_path / name)
        for cache, name in ((True, "cached"), (False, "live"))
    )
    assert len(list((cached.path / "samples").glob("after-*.png"))) == 3
    first, second = weights(cached), weights(live)
    assert first
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_watermarker_is_not_downloaded() -> None:
    assert "watermarker/*" in found_models.UNWANTED
