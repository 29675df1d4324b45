"""What is SDXL's own: the size and crop of each image, and its two text encoders."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import EDMDPMSolverMultistepScheduler
from PIL import Image
from safetensors.torch import load_file

from dreambooth import loop, methods, sampling, scaling
from dreambooth.batches import draw
from dreambooth.cache import Row, encode_photo
from dreambooth.errors import UserError
from dreambooth.families import sdxl
from dreambooth.models import resolve
from dreambooth.photos import Photo, box, crop
from dreambooth.samples import image_generator
from tests.families.conftest import Model
from tests.families.stock import PROMPTS, arguments, second_call
from tests.families.test_families import recipe
from tests.pictures import picture
from tests.test_loop import make_loop


@pytest.fixture(scope="module")
def model(models: Callable[[str], Model]) -> Model:
    return models("sdxl")


def test_the_size_and_crop_of_an_image_are_told_as_the_stock_pipeline_tells_them(model: Model) -> None:
    sizes = {"original_size": (300, 200), "crops_coords_top_left": (7, 9), "height": 64, "width": 80}
    given, expected = second_call(model.stock, model.stock.unet, guidance_scale=1.0, **sizes)
    assert given["time_ids"].tolist() == [[300, 200, 7, 9, 64, 80]] * 2
    cond = sdxl.collate(sdxl.encode_prompts(model.pipe, PROMPTS))
    cond["view_B4"] = torch.tensor([[300.0, 200.0, 7.0, 9.0]] * 2)
    given_BCHW, t_B = given["sample"], given["timestep"].expand(2)
    with torch.no_grad():
        predicted = sdxl.predict(model.pipe.unet, given_BCHW, t_B, cond)
        other = sdxl.predict(model.pipe.unet, given_BCHW, t_B, {**cond, "view_B4": torch.zeros(2, 4)})
    torch.testing.assert_close(predicted, expected, rtol=1e-5, atol=1e-5)
    assert (other - expected).abs().max() > 1e-4


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_centred_crop_of_a_wide_photo_is_told(model: Model, tmp_path: Path, mirrored: bool) -> None:
    """300 of 500 columns from column 100 on; at 64 pixels, a crop at 100 * 64 / 300."""
    picture(0, (500, 300)).save(tmp_path / "wide.png")
    photo = Photo("wide", tmp_path / "wide.png", (500, 300))
    told = encode_photo(model.pipe, model.family, Row(photo, (64, 64), 0, mirrored), seed=0)["view_4"]
    assert told.tolist() == pytest.approx([300, 500, 0, 64 / 3])


@pytest.mark.parametrize("size", [(64, 64), (96, 40), (48, 80)])
def test_a_random_crop_is_told_as_it_was_cut(model: Model, tmp_path: Path, size: tuple[int, int]) -> None:
    """The place of a mark in the photo, scaled and less the crop, is its place in the view; also in the mirror."""
    ramp = np.repeat(np.arange(200, dtype=np.uint8)[None], 160, axis=0)
    Image.fromarray(np.stack([ramp] * 3, axis=-1)).save(tmp_path / "ramp.png")
    photo = Photo("ramp", tmp_path / "ramp.png", (200, 160))
    for variant in (1, 2, 3):
        view = crop(photo, size, box(photo, size, variant, 5))[20, :, 0].astype(float)
        scale = (size[0] - 1) / (view[-1] - view[0])
        rows = [Row(photo, size, variant, mirrored) for mirrored in (False, True)]
        left, right = (encode_photo(model.pipe, model.family, row, 5)["view_4"][3].item() for row in rows)
        assert left == pytest.approx(view[0] * scale, abs=1.5)
        assert right == pytest.approx((199 - view[-1]) * scale, abs=1.5)


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_view_at_another_scale_is_told_by_the_part_that_is_seen(model: Model, tmp_path: Path, mirrored: bool) -> None:
    picture(0, (200, 160)).save(tmp_path / "photo.png")
    photo = Photo("photo", tmp_path / "photo.png", (200, 160))
    for number in range(6):
        scaled = scaling.draw(photo, (64, 64), number, 0, 8)
        told = encode_photo(model.pipe, model.family, Row(photo, (64, 64), 0, mirrored, scaled), 0)["view_4"].tolist()
        (left, top, right, bottom), frame = scaled.part, scaled.frame
        across, down = (frame[2] - frame[0]) / (right - left), (frame[3] - frame[1]) / (bottom - top)
        assert told == pytest.approx([160, 200, top * down, (200 - right if mirrored else left) * across])


def test_training_tells_each_image_its_own_view(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sdxl, "load", lambda source, dtype: model.fresh())
    state, _ = make_loop(recipe(model, batch_size=2))
    batch, calls = draw(state.plan.slots(0), state.latents, 0, 0.1), []
    hook = state.trainee._pipe.unet.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(arguments(module, args, kwargs)), with_kwargs=True
    )
    with hook:
        loop.backward(state, batch)
    sides = torch.full((4, 2), 64.0)
    assert torch.equal(calls[0]["time_ids"], torch.cat([batch.view_B4, sides], dim=1))
    assert len(batch.view_B4.unique(dim=0)) == 4


def test_without_a_negative_prompt_guidance_is_that_of_the_stock_pipeline(model: Model) -> None:
    """SDXL was trained with zeros for no prompt, and guides away from them, unless it is told a negative prompt."""

    def guided(negative: str) -> torch.Tensor:
        calls = []
        settings = sampling.Sampling("euler", 1, 5.0, 64, negative)
        hook = model.pipe.unet.register_forward_pre_hook(
            lambda module, args, kwargs: calls.append(arguments(module, args, kwargs)), with_kwargs=True
        )
        with hook:
            list(sampling.draw(model.pipe, ["a dog"], [image_generator(0)], settings))
        embeds: torch.Tensor = calls[0]["encoder_hidden_states"][0]
        return embeds

    assert not guided("").any()
    assert guided("ugly").any()


def test_the_text_encoders_have_keys_of_their_own(model: Model, tmp_path: Path) -> None:
    pipe, given = model.fresh(), recipe(model, train_text_encoder=True)
    methods.get("lora").attach(pipe, model.family, given)
    methods.get("lora").save(pipe, model.family, model.source, given, tmp_path)
    keys = load_file(tmp_path / "pytorch_lora_weights.safetensors").keys()
    starts = {key.split(".encoder.")[0] for key in keys if key.startswith("text_encoder")}
    assert starts == {"text_encoder.text_model", "text_encoder_2.text_model"}


def test_a_model_of_edms_process_is_refused(model: Model, tmp_path: Path) -> None:
    folder = shutil.copytree(model.source.path, tmp_path / "playground")
    EDMDPMSolverMultistepScheduler().save_pretrained(folder / "scheduler")
    index = json.loads((folder / "model_index.json").read_text())
    index["scheduler"][1] = "EDMDPMSolverMultistepScheduler"
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="playground is of SDXL's shape, but of EDM's process, which is not supported"):
        sdxl.load(resolve(str(folder)), torch.float32)
