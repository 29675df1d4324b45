"""What is Stable Diffusion 3's own: three readers of a prompt, of which T5 may be absent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline, StableDiffusion3Pipeline
from huggingface_hub.utils import filter_repo_objects

from dreambooth import models as found_models
from dreambooth import prompts
from dreambooth.diffusion import Flow
from dreambooth.families import sd3
from dreambooth.models import resolve
from tests import calls
from tests.commands import make_photos
from tests.families.conftest import Model
from tests.families.stock import PROMPTS, second_call


@pytest.fixture(scope="module")
def whole(models: Callable[[str], Model]) -> Model:
    return models("sd35")


@pytest.fixture(scope="module")
def lean(debug_folder: Callable[[str], Path]) -> DiffusionPipeline:
    """Version 3 without T5, by our own loading."""
    return sd3.load(resolve(str(debug_folder("sd3"))), torch.float32)


def test_without_t5_the_denoiser_is_called_as_the_stock_pipeline_calls_it(
    lean: DiffusionPipeline, debug_folder: Callable[[str], Path]
) -> None:
    stock = StableDiffusion3Pipeline.from_pretrained(debug_folder("sd3"), text_encoder_3=None, tokenizer_3=None)
    given, expected = second_call(stock, stock.transformer, height=64, width=64, guidance_scale=1.0)
    sigma_B = stock.scheduler.sigmas[1].expand(2)
    with torch.no_grad():
        cond = sd3.collate(sd3.encode_prompts(lean, PROMPTS))
        predicted_BCHW = sd3.predict(lean.transformer, given["hidden_states"], sigma_B, cond)
    torch.testing.assert_close(cond["prompt_embeds_BLD"], given["encoder_hidden_states"])
    torch.testing.assert_close(predicted_BCHW, expected, rtol=1e-5, atol=1e-5)


def test_a_model_without_t5_stays_one(lean: DiffusionPipeline, tmp_path: Path) -> None:
    lean.save_pretrained(tmp_path)
    again = sd3.load(resolve(str(tmp_path)), torch.float32)
    assert again.text_encoder_3 is None
    assert [each.model_max_length for each in prompts.readers(again)] == [77, 77]


@pytest.mark.parametrize("more", [(), ("--train-text-encoder",)])
def test_a_model_without_t5_is_trained(
    more: tuple[str, ...], debug_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    done = calls.train(make_photos(tmp_path / "photos"), debug_folder("sd3"), *more, out=tmp_path / "run", steps=2)
    assert done.status == 0, done


@pytest.mark.parametrize("has_t5", [False, True])
def test_the_tokens_of_all_encoders_in_their_places(whole: Model, lean: DiffusionPipeline, has_t5: bool) -> None:
    """Written down again from the encoders alone: CLIP's side by side, zeros up to T5's width, then T5's."""
    pipe = whole.pipe if has_t5 else lean
    (row,) = sd3.encode_prompts(pipe, PROMPTS[:1])
    clips = []
    for tokenizer, encoder in ((pipe.tokenizer, pipe.text_encoder), (pipe.tokenizer_2, pipe.text_encoder_2)):
        ids_BL = tokenizer(PROMPTS[0], padding="max_length", max_length=77, return_tensors="pt").input_ids
        clips.append(encoder(ids_BL, output_hidden_states=True))
    one, two = clips
    clip_LD = torch.cat([one.hidden_states[-2][0], two.hidden_states[-2][0]], dim=-1)
    torch.testing.assert_close(row["prompt_embeds_LD"][:77], F.pad(clip_LD, (0, 8)))
    t5_LD = torch.zeros(256, 24)
    if has_t5:
        read = pipe.tokenizer_3(PROMPTS[0], padding="max_length", max_length=256, return_tensors="pt")
        t5_LD = pipe.text_encoder_3(read.input_ids).last_hidden_state[0]  # the filling is read too: no mask
    torch.testing.assert_close(row["prompt_embeds_LD"][77:], t5_LD)
    torch.testing.assert_close(row["pooled_D"], torch.cat([one.text_embeds[0], two.text_embeds[0]]))


def test_the_doubles_in_its_repository_are_not_downloaded() -> None:
    """A selection of the files of stabilityai/stable-diffusion-3.5-medium: 26 GB of them are doubles."""
    needed = [
        "model_index.json",
        "text_encoder/model.safetensors",
        "text_encoder_3/model-00001-of-00002.safetensors",
        "text_encoder_3/model.safetensors.index.json",
        "tokenizer_3/tokenizer.json",
    ]
    doubles = [
        "sd3.5_medium.safetensors",
        "text_encoder/model.fp16.safetensors",
        "text_encoder_3/model.fp16-00001-of-00002.safetensors",
        "text_encoder_3/model.safetensors.index.fp16.json",
        "text_encoders/t5xxl_fp16.safetensors",
    ]
    wanted, unwanted = found_models.WANTED, found_models.UNWANTED
    assert list(filter_repo_objects(needed + doubles, allow_patterns=wanted, ignore_patterns=unwanted)) == needed


def test_times_are_logit_normal_and_shifted_by_3(whole: Model) -> None:
    process = sd3.process(whole.pipe)
    assert process == Flow(3.0, "logit-normal")
    torch.testing.assert_close(process.sample_t(torch.tensor([0.5]), (8, 8)), torch.tensor([0.75]))


def test_t5_is_never_trained(whole: Model) -> None:
    assert list(sd3.text_encoders(whole.pipe)) == ["text_encoder", "text_encoder_2"]
