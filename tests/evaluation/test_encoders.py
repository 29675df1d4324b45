from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTokenizer,
    Dinov2Config,
    Dinov2Model,
    PreTrainedModel,
    SiglipConfig,
    SiglipModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from dreambooth import photos
from dreambooth.errors import UserError
from dreambooth.evaluation import encoders
from dreambooth.evaluation.encoders import SPECS, Encoder, Spec, load
from dreambooth.evaluation.preprocessing import HALF, IMAGENET, OPENAI, Preprocess
from dreambooth.toybox.model import clip as toybox_clip
from dreambooth.toybox.model import identity as toybox_identity
from dreambooth.toybox.model.package import write_encoder
from tests.debug_models import TOKENIZER
from tests.pictures import picture

SIZES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
PICTURE = {"image_size": 32, "patch_size": 8}
TEXT = {"vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407}


def vit() -> ViTModel:
    return ViTModel(ViTConfig(**SIZES, **PICTURE), add_pooling_layer=False)


def dinov2() -> Dinov2Model:
    return Dinov2Model(Dinov2Config(**SIZES, **PICTURE))


def clip() -> CLIPModel:
    text = {**SIZES, **TEXT, "max_position_embeddings": 20}
    return CLIPModel(CLIPConfig(text_config=text, vision_config={**SIZES, **PICTURE}, projection_dim=12))


def siglip() -> SiglipModel:
    text = {**SIZES, **TEXT, "max_position_embeddings": 20, "projection_size": 16}
    return SiglipModel(SiglipConfig(text_config=text, vision_config={**SIZES, **PICTURE}))


def saved(folder: Path, make: Callable[[], PreTrainedModel], tokenizer: bool = False) -> PreTrainedModel:
    """A model of random weights, the same every time, in its folder."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make().eval()
    model.save_pretrained(folder)
    if tokenizer:
        CLIPTokenizer.from_pretrained(TOKENIZER).save_pretrained(folder)
    return model


def pixels(encoder: Encoder, count: int = 3) -> torch.Tensor:
    return torch.stack([encoder.prepare(picture(seed, (50, 40))) for seed in range(count)])


def check_rows(rows: torch.Tensor, expected: torch.Tensor) -> None:
    assert rows.dtype == torch.float32
    assert rows.device.type == "cpu"
    assert torch.allclose(rows.norm(dim=-1), torch.ones(len(rows)), atol=1e-6)
    assert torch.allclose(rows, F.normalize(expected, dim=-1), atol=1e-5)
    assert not torch.allclose(rows[0], rows[1], atol=1e-4), "different inputs, different rows"


@pytest.mark.parametrize("make", [vit, dinov2])
@torch.no_grad()
def test_the_class_token_of_the_last_hidden_state(tmp_path: Path, make: Callable[[], PreTrainedModel]):
    model = saved(tmp_path, make)
    encoder = load(str(tmp_path))
    assert encoder.prepare == Preprocess(32, 32, IMAGENET)
    inputs = pixels(encoder)
    check_rows(encoder.embed_images(inputs), model(pixel_values=inputs).last_hidden_state[:, 0])
    with pytest.raises(UserError, match=r"reads no text.*clip-vit-b32"):
        encoder.embed_texts(["a dog"])


@torch.no_grad()
def test_clips_projected_embeddings(tmp_path: Path):
    model = saved(tmp_path, clip, tokenizer=True)
    encoder = load(str(tmp_path))
    assert encoder.prepare == Preprocess(32, 32, OPENAI)
    inputs = pixels(encoder)
    output = model(pixel_values=inputs, input_ids=torch.tensor([[49406, 320, 1929, 49407]]))
    check_rows(encoder.embed_images(inputs), output.image_embeds)
    texts = ["a dog", "a Very long prompt of a cat in the snow"]
    tokens = CLIPTokenizer.from_pretrained(TOKENIZER)(texts, padding=True, return_tensors="pt")
    expected = model(**tokens, pixel_values=inputs).text_embeds
    check_rows(encoder.embed_texts(texts), expected)
    assert torch.allclose(encoder.embed_texts(texts)[:1], encoder.embed_texts(texts[:1]), atol=1e-6)


@torch.no_grad()
def test_siglips_embeddings_of_pictures_and_of_text_in_lower_case(tmp_path: Path):
    model = saved(tmp_path, siglip, tokenizer=True)
    encoder = load(str(tmp_path))
    assert encoder.prepare == Preprocess(32, 32, HALF)
    inputs = pixels(encoder)
    tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER)
    tokens = tokenizer(["a red dog", "a cat"], padding="max_length", max_length=20, return_tensors="pt").input_ids
    output = model(pixel_values=inputs, input_ids=tokens)
    check_rows(encoder.embed_images(inputs), output.image_embeds)
    check_rows(encoder.embed_texts(["A Red Dog", "a cat"]), output.text_embeds)


def test_a_classifiers_backbone_is_accepted(tmp_path: Path):
    saved(tmp_path, lambda: ViTForImageClassification(ViTConfig(**SIZES, **PICTURE)))
    encoder = load(str(tmp_path))
    assert encoder.embed_images(pixels(encoder)).shape == (3, 16)


def test_a_prompt_that_is_too_long_is_refused(tmp_path: Path):
    saved(tmp_path, clip, tokenizer=True)
    encoder = load(str(tmp_path))
    assert len(encoder.embed_texts(["dog " * 18])) == 1
    with pytest.raises(UserError, match=r"has 21 tokens, the encoder reads 20: shorten it"):
        encoder.embed_texts(["a dog", "dog " * 19])


def test_the_folders_own_preprocessing_and_its_refusal(tmp_path: Path):
    saved(tmp_path, vit)
    settings = {"size": {"height": 32, "width": 32}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2}
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps(settings))
    first = load(str(tmp_path))
    assert first.prepare == Preprocess(32, None, HALF, filter=2)
    file.rename(tmp_path / "processor_config.json")
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": settings}))
    assert load(str(tmp_path)).prepare == first.prepare
    file.write_text(json.dumps({**settings, "size": {"longest_edge": 3}}))
    with pytest.raises(UserError, match=r"preprocessor_config.json asks for an unknown preprocessing .*longest_edge"):
        load(str(tmp_path))


def test_the_identity_follows_weights_and_preprocessing_and_nothing_else(tmp_path: Path):
    model = saved(tmp_path / "one", vit)
    identity = load(str(tmp_path / "one")).identity
    assert identity.startswith("sha256:")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    (tmp_path / "two" / "README.md").write_text("hello")
    assert load(str(tmp_path / "two")).identity == identity
    settings = {"size": 32, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (tmp_path / "two" / "preprocessor_config.json").write_text(json.dumps(settings))
    assert load(str(tmp_path / "two")).identity != identity
    model.embeddings.cls_token.data += 1e-3
    model.save_pretrained(tmp_path / "one")
    assert load(str(tmp_path / "one")).identity != identity


@torch.no_grad()
def test_the_toyboxs_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    network = {"width": 16, "layers": 1, "heads": 2}
    both = toybox_clip.build({"text": network, "vision": network, "length": 32, "image": 64, "patch": 16}).eval()
    token = toybox_identity.build({**network, "image": 64, "patch": 16}).vit.eval()
    for module in (both, token):
        module.half().float()  # the file has half precision
    image, base, own = tmp_path / "image", tmp_path / "base", tmp_path / "identity"
    toybox_clip.text_half(both).save_pretrained(base / "text_encoder")
    CLIPTokenizer.from_pretrained(TOKENIZER, model_max_length=32).save_pretrained(base / "tokenizer")
    write_encoder(toybox_clip.vision_half(both), image, "CLIPImageProcessor")
    expected_token = toybox_identity.embed(token, toybox_pixels())
    write_encoder(token, own, "ViTImageProcessor")
    monkeypatch.setitem(SPECS, "toybox-clip", replace(SPECS["toybox-clip"], folder=image, texts=base))
    monkeypatch.setitem(SPECS, "toybox-identity", replace(SPECS["toybox-identity"], folder=own))
    encoder = load("toybox-clip")
    check_rows(encoder.embed_images(pixels(encoder)), toybox_clip.embed_images(both, toybox_pixels()))
    tokens = toybox_clip.tokens(CLIPTokenizer.from_pretrained(base / "tokenizer"), ["a dog", "a red cat on grass"])
    check_rows(encoder.embed_texts(["a dog", "a red cat on grass"]), toybox_clip.embed_texts(both, tokens))
    encoder = load("toybox-identity")
    check_rows(encoder.embed_images(pixels(encoder)), expected_token)


def toybox_pixels() -> torch.Tensor:
    """The pictures of `pixels` as the toybox's training has them."""
    squashed = [np.asarray(picture(seed, (50, 40)).resize((64, 64), Image.Resampling.BICUBIC)) for seed in range(3)]
    return torch.tensor(np.stack(squashed)).permute(0, 3, 1, 2) / 127.5 - 1


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(UserError, match="did you mean dino-vits16"):
        load("dino-vit16")
    with pytest.raises(UserError, match=r"give one of dino-vits16, .*or a folder"):
        load("xyz")


def test_an_absent_toybox_encoder_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(SPECS, "toybox-identity", Spec(folder=tmp_path / "none"))
    with pytest.raises(UserError, match=r"there is no encoder in .*none"):
        load("toybox-identity")


def test_a_users_pickle_is_never_opened(tmp_path: Path):
    saved(tmp_path, vit)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="not there"):
        load(str(tmp_path))
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"only as a pickle: .*convert it"):
        load(str(tmp_path))


def test_another_architecture_is_refused(tmp_path: Path):
    saved(tmp_path, vit)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "resnet"}))
    with pytest.raises(UserError, match="is a resnet model, no encoder: give one of vit, dinov2, clip"):
        load(str(tmp_path))


def test_weights_that_are_not_all_there_are_refused(tmp_path: Path):
    saved(tmp_path, vit)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(UserError, match=r"lacks \d+ tensors"):
        load(str(tmp_path))


def test_hub_models_are_pinned():
    for name, spec in SPECS.items():
        if spec.repository and name != "dino-vits8":
            assert re.fullmatch("[0-9a-f]{40}", spec.revision or ""), name
            assert spec.preprocess is not None


def test_a_hub_model_that_is_not_here_is_one_line_offline():
    with pytest.raises(UserError, match=r"dino-vits16 is not in the cache .*--revision abe3b354") as error:
        load("dino-vits16")
    assert "\n" not in str(error.value)


def downloaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """Lets the hub give this folder, and notes what it was asked for."""
    asked = []

    def snapshot_download(repository: str, **options: object) -> str:
        asked.append({"repository": repository, **options})
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked


def test_a_hub_models_commit_is_in_its_identity_and_its_pickle_is_left_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / ("a" * 40)
    saved(folder, clip, tokenizer=True)
    asked = downloaded(folder, monkeypatch)
    encoder = load("clip-vit-b32")
    assert encoder.identity.startswith(f"openai/clip-vit-base-patch32@{'a' * 40} resize 224 crop 224 bicubic")
    assert asked[0]["revision"] == SPECS["clip-vit-b32"].revision
    assert "*.safetensors" in asked[0]["allow_patterns"]
    assert not any("bin" in pattern for pattern in asked[0]["allow_patterns"])
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="only partly in the cache: run `hf download"):
        load("clip-vit-b32")


class Evil:
    def __reduce__(self) -> tuple:
        return os.system, ("touch evil-was-here",)


@torch.no_grad()
def test_the_named_pickles_are_opened_by_the_unpickler_that_makes_tensors_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / ("b" * 40)
    model = saved(folder, vit)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    downloaded(folder, monkeypatch)
    encoder = load("dino-vits16")
    assert encoder.identity.startswith(f"facebook/dino-vits16@{'b' * 40} resize 256 crop 224 bicubic")
    inputs = torch.rand(2, 3, 32, 32)
    check_rows(encoder.embed_images(inputs), model(pixel_values=inputs).last_hidden_state[:, 0])
    torch.save({**model.state_dict(), "more": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises((pickle.UnpicklingError, RuntimeError, ValueError, OSError)):
        load("dino-vits16")
    assert not (tmp_path / "evil-was-here").exists()


@pytest.mark.skipif(not (torch.cuda.is_available() or torch.backends.mps.is_available()), reason="no accelerator here")
@pytest.mark.parametrize("make", [vit, dinov2, clip, siglip])
def test_cpu_and_accelerator_agree(tmp_path: Path, make: Callable[[], PreTrainedModel]):
    saved(tmp_path, make, tokenizer=True)
    here = load(str(tmp_path))
    there = load(str(tmp_path), "cuda" if torch.cuda.is_available() else "mps")
    inputs = pixels(here)
    assert (here.embed_images(inputs) - there.embed_images(inputs)).abs().max() < 1e-3
    if make in (clip, siglip):
        assert (here.embed_texts(["a dog"]) - there.embed_texts(["a dog"])).abs().max() < 1e-3


def test_the_published_dino_score_of_a_pair():
    """Google/dreambooth issue 3: rc_car/03 against rc_car/02 (figure 11 of the paper)."""
    folder = os.environ.get("DREAMBENCH")
    if not folder:
        pytest.skip("DREAMBENCH does not name the folder of the paper's subjects")
    try:
        encoder = load("dino-vits16")
    except UserError as error:
        pytest.skip(f"no weights: {error}")
    pair = [photos.open_upright(Path(folder) / "rc_car" / name) for name in ("03.jpg", "02.jpg")]
    one_D, two_D = encoder.embed_images(torch.stack([encoder.prepare(image) for image in pair]))
    assert float(one_D @ two_D) == pytest.approx(0.770, abs=0.005)


def test_every_spec_says_where_it_is():
    assert all((spec.repository is None) != (spec.folder is None) for spec in SPECS.values())
    assert encoders.KINDS.keys() >= {"vit", "dinov2", "clip", "siglip"}
