"""What is Chroma's own: which tokens of a prompt are read, by T5 and by the transformer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from dreambooth.diffusion import Flow, SizedShift
from dreambooth.families import chroma
from tests.families.conftest import Model
from tests.families.stock import PROMPTS, arguments


@pytest.fixture(scope="module")
def model(models: Callable[[str], Model]) -> Model:
    return models("chroma")


def test_the_mask_holds_the_tokens_and_one_of_filling(model: Model) -> None:
    for row, prompt in zip(chroma.encode_prompts(model.pipe, PROMPTS), PROMPTS, strict=True):
        read = len(model.pipe.tokenizer(prompt).input_ids)
        assert row["mask_L"].tolist() == [1.0] * (read + 1) + [0.0] * (511 - read)


def test_t5_reads_no_filling(model: Model) -> None:
    """Unlike FLUX.1's."""
    (row,) = chroma.encode_prompts(model.pipe, PROMPTS[:1])
    ids_1L = model.pipe.tokenizer(PROMPTS[0], return_tensors="pt").input_ids
    alone_LD = model.pipe.text_encoder(ids_1L).last_hidden_state[0]
    torch.testing.assert_close(row["prompt_embeds_LD"][: len(alone_LD)], alone_LD)
    assert row["prompt_embeds_LD"].shape == (512, 8)


def test_the_mask_changes_the_prediction(model: Model) -> None:
    """And all tokens of the image are read: a mask of ones is that of a prompt of 511 tokens."""
    noisy_BCHW = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    t_B = torch.tensor([0.3, 0.8])
    calls = []
    hook = model.pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(arguments(module, args, kwargs)), with_kwargs=True
    )
    with hook, torch.no_grad():
        cond = chroma.collate(chroma.encode_prompts(model.pipe, PROMPTS))
        masked_BCHW = chroma.predict(model.pipe.transformer, noisy_BCHW, t_B, cond)
        everything = {**cond, "mask_BL": torch.ones_like(cond["mask_BL"])}
        unmasked_BCHW = chroma.predict(model.pipe.transformer, noisy_BCHW, t_B, everything)
    assert (masked_BCHW - unmasked_BCHW).abs().max() > 1e-6
    given_BL = calls[0]["attention_mask"]
    assert given_BL.shape == (2, 512 + 16)
    assert given_BL[:, 512:].all()


def test_guidance_is_away_from_the_negative_prompts(model: Model) -> None:
    """The denoiser's second call of a step has what we make of the negative prompts."""
    negatives, calls = ["ugly", "blurry, dark"], []
    hook = model.stock.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(arguments(module, args, kwargs)), with_kwargs=True
    )
    with hook:
        settings = {"height": 64, "width": 64, "num_inference_steps": 1, "output_type": "latent"}
        model.stock(prompt=PROMPTS, **settings, **chroma.guide(model.stock, 3.0, negatives))
    away = chroma.collate(chroma.encode_prompts(model.pipe, negatives))
    torch.testing.assert_close(calls[1]["encoder_hidden_states"], away["prompt_embeds_BLD"])
    torch.testing.assert_close(calls[1]["attention_mask"][:, :512], away["mask_BL"])


def test_times_are_logit_normal_and_shifted_as_in_sampling(model: Model) -> None:
    assert chroma.process(model.pipe) == Flow(SizedShift((256, 4096), (0.5, 1.15)), "logit-normal")
