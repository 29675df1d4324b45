"""Base models are found, refused in one line, and named by their content."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants, errors
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import save_file

from dreambooth import families, models
from dreambooth.errors import UserError
from dreambooth.models import CARDS, SD_CROSS_ATTENTION, SD_FIRST_LAYER, TEACHING, resolve

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PIPELINES = ", ".join(families.PIPELINES)


def refusal(model, revision=None):
    with pytest.raises(UserError) as caught:
        resolve(str(model), revision)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def model(tiny_sd, tmp_path):
    """A model folder that the test may damage."""
    return Path(shutil.copytree(tiny_sd, tmp_path / "model"))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty hub cache and no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def put_in_cache(hub, repository, folder):
    repo = hub / ("models--" + repository.replace("/", "--"))
    shutil.copytree(folder, repo / "snapshots" / COMMIT)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)


def write_index(model, **changes):
    index = json.loads((model / "model_index.json").read_text())
    (model / "model_index.json").write_text(json.dumps({**index, **changes}))


# What is found


def test_the_toybox_ships_with_the_package():
    source = resolve("toybox")
    assert source.family == "sd"
    assert source.card is not None
    assert source.card.resolution == 64
    assert (source.path / "unet" / "diffusion_pytorch_model.safetensors").is_file()
    assert source.identity.startswith("sha256:")


def test_a_folder(tiny_sd):
    source = resolve(str(tiny_sd))
    assert (source.name, source.family, source.path, source.card) == (str(tiny_sd), "sd", tiny_sd, None)


def test_a_hub_model_from_the_cache_is_named_by_its_commit(hub, tiny_sd):
    put_in_cache(hub, "me/tiny", tiny_sd)
    source = resolve("me/tiny")
    assert source.identity == f"me/tiny@{COMMIT}"
    assert source.path == hub / "models--me--tiny" / "snapshots" / COMMIT
    assert resolve("me/tiny", COMMIT).identity == source.identity


def test_a_card_is_fetched_at_its_pinned_commit(monkeypatch, tiny_sd, tmp_path):
    card = next(card for card in CARDS if card.name == "sd15")
    snapshot = tmp_path / card.revision
    shutil.copytree(tiny_sd, snapshot)
    index = Mock(return_value=str(snapshot / "model_index.json"))
    weights = Mock(return_value=str(snapshot))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", index)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", weights)
    source = resolve("sd15")
    assert source.identity == f"{card.repository}@{card.revision}"
    assert index.call_args.kwargs["revision"] == weights.call_args.kwargs["revision"] == card.revision


def test_only_what_the_pipeline_needs_is_downloaded():
    needed = [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "tokenizer/merges.txt",
        "tokenizer/vocab.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "unet/diffusion_pytorch_model.safetensors.index.json",
        "vae/diffusion_pytorch_model-00001-of-00002.safetensors",
    ]
    needless = [
        "README.md",
        "v1-5-pruned.ckpt",
        "v1-5-pruned-emaonly.safetensors",
        "feature_extractor/preprocessor_config.json",
        "safety_checker/model.safetensors",
        "text_encoder/model.fp16.safetensors",
        "text_encoder/model.8bit.safetensors",
        "text_encoder/pytorch_model.bin",
        "text_encoder/flax_model.msgpack",
        "unet/model.onnx",
        "unet/diffusion_pytorch_model.non_ema.safetensors",
    ]
    kept = filter_repo_objects(needless + needed, allow_patterns=models.WANTED, ignore_patterns=models.UNWANTED)
    assert list(kept) == needed


# What is refused


def test_a_misspelt_card():
    assert refusal("toybx") == "there is no model 'toybx': did you mean toybox?"


def test_an_unknown_word():
    names = ", ".join(card.name for card in CARDS)
    assert refusal("hello") == f"there is no model 'hello': give one of {names}, a folder, a file or a hub id"


@pytest.mark.parametrize("path", ["a/b/c", "/no/such/model", "model.safetensors", "old/model.ckpt"])
def test_a_path_that_is_not_there(path):
    assert refusal(path) == f"there is no model at {path}: check the path"


def test_a_folder_without_an_index(tmp_path):
    assert refusal(tmp_path) == (
        f"{tmp_path} has no model_index.json, so it is not a diffusers model: "
        "give the folder that save_pretrained wrote, or one .safetensors file"
    )


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_damaged_index(model, text):
    (model / "model_index.json").write_text(text)
    assert refusal(model) == f"{model}/model_index.json cannot be read as a pipeline's index: get the file again"


def test_an_unknown_pipeline(model):
    write_index(model, _class_name="KandinskyPipeline")
    assert refusal(model) == (f"{model} is a KandinskyPipeline, which is not supported: choose a model of {PIPELINES}")


def test_an_index_without_a_unet(model):
    write_index(model, unet=[None, None])
    assert refusal(model) == (
        f"{model} has no U-Net: its model_index.json names only scheduler, text_encoder, tokenizer, vae"
    )


def test_a_folder_without_a_unet(model):
    shutil.rmtree(model / "unet")
    assert refusal(model) == f"{model} has no U-Net: the folder unet is missing; get the whole model again"


@pytest.mark.parametrize(("part", "label"), [("unet", "U-Net"), ("vae", "vae"), ("text_encoder", "text encoder")])
def test_pickled_weights_in_a_folder(model, part, label):
    weights = next((model / part).glob("*.safetensors"))
    weights.rename(weights.with_suffix(".bin"))
    assert refusal(model) == (
        f"the {label} of {model} is only there as a pickle: a pickle can run any code when it is opened, "
        "so it is never loaded; convert it at https://huggingface.co/spaces/safetensors/convert"
    )


def test_weights_of_fewer_bits_alone(model):
    weights = next((model / "unet").glob("*.safetensors"))
    half = weights.rename(weights.with_suffix(".fp16.safetensors"))
    assert refusal(model) == f"the U-Net of {model} is only there as {half.name}: save it in whole, without a variant"


def test_a_unet_without_weights(model):
    next((model / "unet").glob("*.safetensors")).unlink()
    assert refusal(model) == f"the U-Net of {model} has no weights: no .safetensors file in its folder unet"


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".pth", ".bin", ".CKPT"])
def test_a_pickle(tmp_path, suffix):
    file = tmp_path / f"model{suffix}"
    file.touch()
    assert refusal(file) == (
        f"{file} is a pickle: a pickle can run any code when it is opened, so it is never loaded; "
        "convert it at https://huggingface.co/spaces/safetensors/convert"
    )


def test_a_file_of_another_kind(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"")
    assert refusal(tmp_path / "photo.jpg") == (
        f"{tmp_path}/photo.jpg is no model: give a diffusers folder or a .safetensors file"
    )


def test_a_damaged_safetensors_file(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"not safetensors")
    message = refusal(tmp_path / "a.safetensors")
    assert message.startswith(f"{tmp_path}/a.safetensors is damaged or no safetensors file (")
    assert message.endswith("): get it again")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            {"lora_unet_mid.lora_down.weight": (4, 8)},
            "is a LoRA, not a base model: give the model that it was trained on",
        ),
        (
            {"conv_in.weight": (8, 4, 3, 3)},
            "is not a whole Stable Diffusion 1.x or 2.x checkpoint, the only files supported: give a diffusers folder",
        ),
        (
            {SD_CROSS_ATTENTION: (8, 768), SD_FIRST_LAYER: (8, 9, 3, 3)},
            "takes 9 input channels (inpainting or editing): give a text-to-image model",
        ),
    ],
)
def test_a_safetensors_file_that_is_no_base_model(tmp_path, tensors, message):
    file = tmp_path / "a.safetensors"
    save_file({name: torch.zeros(shape) for name, shape in tensors.items()}, file)
    assert refusal(file) == f"{file} {message}"


@pytest.mark.parametrize("model", ["toybox", "folder"])
def test_a_revision_of_a_local_model(model, tiny_sd):
    model = str(tiny_sd) if model == "folder" else model
    assert refusal(model, "main") == f"{model} is a local model and has no revisions: leave out revision 'main'"


@pytest.mark.usefixtures("hub")
def test_a_hub_model_without_network():
    assert refusal("me/tiny") == (
        "me/tiny is not in the cache and HF_HUB_OFFLINE is set: "
        "run `hf download me/tiny` where there is a network, or choose toybox"
    )
    assert refusal("sd15") == (
        "stable-diffusion-v1-5/stable-diffusion-v1-5 is not in the cache and HF_HUB_OFFLINE is set: "
        "run `hf download stable-diffusion-v1-5/stable-diffusion-v1-5 "
        "--revision 451f4fe16113bff5a5d2269ed5ad43b0592e9a14` where there is a network, or choose toybox"
    )


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            errors.GatedRepoError,
            "me/tiny is gated: accept its licence at https://huggingface.co/me/tiny, then log in with `hf auth login`",
        ),
        (
            errors.RepositoryNotFoundError,
            "there is no model me/tiny here or on the hub: "
            "check the name; for a private one log in with `hf auth login`",
        ),
        (
            errors.RevisionNotFoundError,
            "me/tiny has no revision 'v2': see https://huggingface.co/me/tiny/commits/main",
        ),
        (
            errors.LocalEntryNotFoundError,
            "me/tiny is not in the cache and the hub cannot be reached: "
            "run `hf download me/tiny --revision v2` where there is a network, or choose toybox",
        ),
        (
            errors.EntryNotFoundError,
            "me/tiny has no model_index.json, so it is not a diffusers model: "
            "give the id of its diffusers version, or download its .safetensors file and give that",
        ),
    ],
)
def test_what_the_hub_refuses(monkeypatch, error, message):
    raised = error("no", response=Mock()) if issubclass(error, errors.HfHubHTTPError) else error("no")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", Mock(side_effect=raised))
    assert refusal("me/tiny", "v2") == message


def test_an_unsupported_hub_model_is_refused_before_its_weights_are_fetched(monkeypatch, model):
    write_index(model, _class_name="KandinskyPipeline")
    weights = Mock()
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", Mock(return_value=str(model / "model_index.json")))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", weights)
    message = f"me/kandinsky is a KandinskyPipeline, which is not supported: choose a model of {PIPELINES}"
    assert refusal("me/kandinsky") == message
    weights.assert_not_called()


# Identity


def test_identity_is_that_of_the_content(tiny_sd, model):
    original = resolve(str(tiny_sd)).identity
    (model / "README.md").write_text("notes")
    (model / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"a double")
    assert resolve(str(model)).identity == original
    weights = next((model / "unet").glob("diffusion_pytorch_model.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert resolve(str(model)).identity != original


def test_identity_depends_on_the_configuration(tiny_sd, tiny_sd_v):
    assert resolve(str(tiny_sd)).identity != resolve(str(tiny_sd_v)).identity


def test_weights_are_hashed_once(model, monkeypatch):
    identity = resolve(str(model)).identity
    monkeypatch.setattr(models, "_sha256", Mock(side_effect=AssertionError("hashed again")))
    assert resolve(str(model)).identity == identity
    (model / "vae" / "config.json").touch()
    with pytest.raises(AssertionError, match="hashed again"):
        resolve(str(model))


def test_a_damaged_memory_of_hashes_is_made_again(model, tmp_path, monkeypatch):
    identity = resolve(str(model)).identity
    monkeypatch.setenv("DREAMBOOTH_CACHE", str(tmp_path))
    (tmp_path / "hashes.json").write_text("{half")
    assert resolve(str(model)).identity == identity
    assert json.loads((tmp_path / "hashes.json").read_text())


# Choice and cards


@pytest.mark.parametrize(
    ("gib", "expected"),
    [
        (None, ("toybox", f"no GPU here; {TEACHING}")),
        (6, ("toybox", f"the CUDA device has 6.0 GiB; {TEACHING}")),
        (24, ("sd15", "the CUDA device has 24.0 GiB")),
    ],
)
def test_the_model_that_suits_the_device(monkeypatch, gib, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gib is not None)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Mock(total_memory=(gib or 0) * 2**30))
    assert models.choose_for_device() == expected


def test_cards_are_complete_and_pinned():
    assert len({card.name for card in CARDS}) == len(CARDS)
    for card in CARDS:
        assert card.resolution % 8 == 0
        assert card.licence
        assert (card.repository is None) == (card.name == "toybox")
        assert card.repository is None or len(card.revision or "") == 40


def test_looking_a_model_up_imports_no_torch():
    code = "import sys, dreambooth.models as m; m.resolve('toybox'); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
