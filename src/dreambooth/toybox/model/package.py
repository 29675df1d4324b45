"""Writes what ships: a stock pipeline folder, the metrics' two encoders and the classifiers, all small."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, PreTrainedModel, ViTModel

from dreambooth.errors import RunError
from dreambooth.toybox.model.clip import text_half, vision_half
from dreambooth.toybox.model.denoiser import scheduler
from dreambooth.toybox.model.train import RECORD, tokenizer, trained

MEGABYTE = 1_000_000
FILE_LIMIT = 15 * MEGABYTE
LIMIT = 32 * MEGABYTE
SHARD = "14MB"
PARTS = ("base", "encoders", "classifiers")
PREFIX = "text_model."
TABLE = f"{PREFIX}embeddings.token_embedding.weight"
TOKENIZER_KEYS = ("bos_token", "eos_token", "model_max_length", "pad_token", "tokenizer_class", "unk_token")
# Pixels go into the encoders as they go into the autoencoder: in [-1, 1].
PREPROCESSOR = {
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"height": 64, "width": 64},
}


def write(home: Path, out: Path) -> None:
    """Writes `out`/base, `out`/encoders and `out`/classifiers from the finished networks in the folder of a size.

    Raises:
        UserError: A network is not trained.
        RunError: A file, or all of them, are over the limit.
    """
    write_encoders(home, out / "encoders")
    write_classifiers(home, out / "classifiers")
    clip = CLIPModel.from_pretrained(trained(home, "clip"), dtype=torch.float32)
    write_base(assemble(home, clip), out / "base")
    check_sizes(out)


def write_encoders(home: Path, out: Path) -> None:
    """Writes what the metrics read beside the text encoder of the base: CLIP's other half, `image`, and `identity`.

    Raises:
        UserError: A network is not trained.
    """
    clip = CLIPModel.from_pretrained(trained(home, "clip"), dtype=torch.float32)
    write_encoder(vision_half(clip), out / "image", "CLIPImageProcessor")
    identity = ViTModel.from_pretrained(trained(home, "identity"), add_pooling_layer=False, dtype=torch.float32)
    write_encoder(identity, out / "identity", "ViTImageProcessor")


def write_classifiers(home: Path, out: Path) -> None:
    """Writes the classifiers in half precision, beside the record of their training.

    Raises:
        UserError: They are not trained.
    """
    folder = trained(home, "classifiers")
    out.mkdir(parents=True, exist_ok=True)
    halves = {name: tensor.half() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(halves, out / "model.safetensors", metadata={"format": "pt"})
    shutil.copyfile(folder / "config.json", out / "config.json")
    shutil.copyfile(folder.parent / RECORD, out / RECORD)


def assemble(home: Path, clip: CLIPModel) -> StableDiffusionPipeline:
    """The stock pipeline of the finished networks, in float32."""
    return StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(trained(home, "autoencoder")),
        text_encoder=text_half(clip),
        tokenizer=tokenizer(),
        unet=UNet2DConditionModel.from_pretrained(trained(home, "denoiser")),
        scheduler=DPMSolverMultistepScheduler.from_config(scheduler().config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def write_base(pipe: StableDiffusionPipeline, folder: Path) -> None:
    """Half precision; the token table in eight bits, which lose nothing since `clip.quantise` rounded it to them.

    The text encoder's names get the prefix that every version of transformers reads (5.6 dropped it when writing).
    """
    pipe.to(dtype=torch.float16)
    pipe.save_pretrained(folder, max_shard_size=SHARD)
    _shrink_text(folder / "text_encoder")
    for part in (folder / "vae", folder / "unet", folder / "scheduler"):
        _edit(next(part.glob("*config.json")))
    _edit(folder / "model_index.json")
    _write_words(folder / "tokenizer")


def _shrink_text(folder: Path) -> None:
    weights = folder / "model.safetensors"
    tensors = {PREFIX + name.removeprefix(PREFIX): tensor for name, tensor in load_file(weights).items()}
    tensors[TABLE] = tensors[TABLE].to(torch.float8_e4m3fn)
    save_file(tensors, weights, metadata={"format": "pt"})
    _edit(folder / "config.json", dtype="float32")


def _write_words(folder: Path) -> None:
    """Half the bytes of the vocabulary; none of the settings of the last call that the tokenizer remembers."""
    words = json.loads((folder / "tokenizer.json").read_text()) | {"truncation": None, "padding": None}
    (folder / "tokenizer.json").write_text(json.dumps(words, ensure_ascii=False, separators=(",", ":")))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    kept = {name: value for name, value in config.items() if name in TOKENIZER_KEYS}
    (folder / "tokenizer_config.json").write_text(json.dumps(kept, indent=2) + "\n")


def write_encoder(module: PreTrainedModel, folder: Path, processor: str) -> None:
    """Half precision on disk, float32 when loaded; with the preprocessing that it was trained with."""
    module.half().save_pretrained(folder)
    _edit(folder / "config.json", dtype="float32")
    (folder / "preprocessor_config.json").write_text(
        json.dumps({**PREPROCESSOR, "image_processor_type": processor}, indent=2) + "\n"
    )


def check_sizes(out: Path) -> int:
    """Bytes of all the files.

    Raises:
        RunError: A file, or all of them, are over the limit.
    """
    sizes = {path: path.stat().st_size for part in PARTS for path in (out / part).rglob("*.*")}
    for path, size in sizes.items():
        if size >= FILE_LIMIT:
            raise RunError(f"{path} has {size / MEGABYTE:.1f} MB; the limit is {FILE_LIMIT / MEGABYTE:.0f} MB")
    total = sum(sizes.values())
    if total > LIMIT:
        raise RunError(f"{out} has {total / MEGABYTE:.1f} MB; the limit is {LIMIT / MEGABYTE:.0f} MB")
    return total


def _edit(path: Path, **changes: Any) -> None:
    """Changes entries of a JSON file and drops the path from which the part was once loaded."""
    data = json.loads(path.read_text()) | changes
    data.pop("_name_or_path", None)
    path.write_text(json.dumps(data, indent=2) + "\n")
