"""The encoders of the metrics: DINO, CLIP and their kin, each with the one preprocessing that it is used with.

An encoder's `identity` names all that its embeddings of pictures depend on, so that they can be kept and found again.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer, CLIPTextModel, PreTrainedModel

from dreambooth import pretrained
from dreambooth.errors import UserError
from dreambooth.evaluation.preprocessing import HALF, IMAGENET, OPENAI, Numbers, Preprocess, parse
from dreambooth.pretrained import PICTURE_FILES, SAFE_WEIGHTS, TEXT_FILES, TOKENIZER_FILES
from dreambooth.toybox import BASE, ENCODERS

PICKLED_WEIGHTS = "pytorch_model.bin"

DINO = Preprocess(256, 224, IMAGENET)
CLIP = Preprocess(224, 224, OPENAI)


@dataclass(frozen=True)
class Spec:
    """Where an encoder is and how its pictures are prepared.

    Attributes:
        repository: Hub id; None for a folder.
        revision: Commit; None for the newest, whose commit then stands in the identity.
        preprocess: None for what the preprocessor's file in the folder says.
        pickled: There are no safetensors at that commit. Torch's restricted unpickler, which makes tensors and
            nothing else, opens the file. This is for the repositories named here, never for a user's folder.
        folder: Folder of the model where it is not on the hub.
        texts: Stock pipeline whose text encoder's pooled output is the text embedding, where that half is apart.
    """

    repository: str | None = None
    revision: str | None = None
    preprocess: Preprocess | None = None
    pickled: bool = False
    folder: Path | None = None
    texts: Path | None = None


SPECS = {
    # 256/224 gives the published score of a pair (google/dreambooth issue 3); the repository's own 224 squash does not.
    "dino-vits16": Spec("facebook/dino-vits16", "abe3b354cb6a9b6f146096b14a4a9d7eecbcb4bd", DINO, pickled=True),
    "dino-vits8": Spec("facebook/dino-vits8", None, DINO, pickled=True),
    "dinov2-small": Spec("facebook/dinov2-small", "ed25f3a31f01632728cabb09d1542f84ab7b0056", DINO),
    # The hub's own conversion of the weights at 3d74acf9 to safetensors.
    "clip-vit-b32": Spec("openai/clip-vit-base-patch32", "c237dc49a33fc61debc9276459120b7eac67e7ef", CLIP),
    "clip-vit-l14": Spec("openai/clip-vit-large-patch14", "32bd64288804d66eefd0ccbe215aa642df71cc41", CLIP),
    "siglip2-base": Spec(
        "google/siglip2-base-patch16-224",
        "75de2d55ec2d0b4efc50b3e9ad70dba96a7b2fa2",
        Preprocess(224, None, HALF, Image.Resampling.BILINEAR),
    ),
    "toybox-identity": Spec(folder=ENCODERS / "identity"),
    "toybox-clip": Spec(folder=ENCODERS / "image", texts=BASE),
}


def _class_token(model: PreTrainedModel, pixels_BCHW: Tensor) -> Tensor:
    token_BD: Tensor = model(pixel_values=pixels_BCHW).last_hidden_state[:, 0]
    return token_BD


def _clip_image(model: PreTrainedModel, pixels_BCHW: Tensor) -> Tensor:
    projected_BD: Tensor = model.visual_projection(model.vision_model(pixel_values=pixels_BCHW).pooler_output)
    return projected_BD


def _clip_text(model: PreTrainedModel, tokens_BL: Tensor) -> Tensor:
    projected_BD: Tensor = model.text_projection(model.text_model(input_ids=tokens_BL).pooler_output)
    return projected_BD


def _siglip_image(model: PreTrainedModel, pixels_BCHW: Tensor) -> Tensor:
    pooled_BD: Tensor = model.vision_model(pixel_values=pixels_BCHW).pooler_output
    return pooled_BD


def _siglip_text(model: PreTrainedModel, tokens_BL: Tensor) -> Tensor:
    pooled_BD: Tensor = model.text_model(input_ids=tokens_BL).pooler_output
    return pooled_BD


def _pooled_text(model: PreTrainedModel, tokens_BL: Tensor) -> Tensor:
    pooled_BD: Tensor = model(input_ids=tokens_BL).pooler_output
    return pooled_BD


Half = Callable[[PreTrainedModel, Tensor], Tensor]


@dataclass(frozen=True)
class Kind:
    """A stock architecture: its class, where its embeddings are, and the normalisation if its folder names none."""

    model: str
    image: Half
    text: Half | None
    norm: tuple[Numbers, Numbers]
    lower: bool = False


KINDS = {
    "vit": Kind("ViTModel", _class_token, None, IMAGENET),
    "dinov2": Kind("Dinov2Model", _class_token, None, IMAGENET),
    "clip": Kind("CLIPModel", _clip_image, _clip_text, OPENAI),
    "clip_vision_model": Kind("CLIPVisionModelWithProjection", _clip_image, None, OPENAI),
    # Both generations of SigLIP were trained on text in lower case, which the tokenizer of the second leaves to us.
    "siglip": Kind("SiglipModel", _siglip_image, _siglip_text, HALF, lower=True),
}
"""Architectures by the `model_type` of their config.json."""


@dataclass(frozen=True)
class TextHalf:
    """The half of an encoder that reads prompts.

    Attributes:
        model: The network.
        tokenizer: Its tokenizer.
        length: Tokens that it reads at most, ends included.
        lower: Whether it knows lower case only.
        embed: Finds the embeddings (B, D) of tokens (B, L).
    """

    model: PreTrainedModel
    tokenizer: Any
    length: int
    lower: bool
    embed: Half

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Return the embeddings of texts, (B, D), on the model's device.

        Raises:
            UserError: A text is too long: what is cut off would not be measured.
        """
        known = [text.lower() for text in texts] if self.lower else list(texts)
        rows = self.tokenizer(known, padding="max_length", max_length=self.length)["input_ids"]
        for text, row in zip(texts, rows, strict=True):
            if len(row) > self.length:
                count = f"{len(row)} tokens, the encoder reads {self.length}"
                raise UserError(f"the prompt '{text}' has {count}: shorten it")
        return self.embed(self.model, torch.tensor(rows, device=self.model.device))


@dataclass(frozen=True)
class Encoder:
    """Embeds pictures, and texts where it has a half for them.

    Attributes:
        name: As it was asked for.
        identity: What its embeddings of pictures depend on: the weights and the preprocessing.
        prepare: RGB picture -> pixels, float32 (3, H, W).
        device: Where it computes.
    """

    name: str
    identity: str
    prepare: Preprocess
    device: str
    _image: Callable[[Tensor], Tensor]
    _text: TextHalf | None

    @torch.inference_mode()
    def embed_images(self, pixels_BCHW: Tensor) -> Tensor:
        """Return the unit embeddings of prepared pictures, float32 (B, D) on the CPU."""
        return F.normalize(self._image(pixels_BCHW.to(self.device)), dim=-1).cpu()

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Return the unit embeddings of texts, float32 (B, D) on the CPU.

        Raises:
            UserError: The encoder has no text half, or a text is too long for it.
        """
        return F.normalize(self.require_text()(texts), dim=-1).cpu()

    def require_text(self) -> TextHalf:
        """Return the half that reads texts.

        Raises:
            UserError: The encoder has none.
        """
        if self._text is None:
            raise UserError(f"the encoder {self.name} reads no text: for scores against prompts take clip-vit-b32")
        return self._text


def load(name: str, device: str = "cpu") -> Encoder:
    """Load an encoder.

    Args:
        name: A name of `SPECS`, or the folder of a stock ViT, DINOv2, CLIP or SigLIP model (also a fixed-resolution
            SigLIP 2). A folder is preprocessed for as its preprocessor_config.json says; without one, by a bicubic
            resize of the shorter side, a centre crop and the architecture's usual normalisation.
        device: Where it computes, in float32.

    Raises:
        UserError: There is no such encoder, it cannot be downloaded, or it is not one of those architectures.
    """
    spec = SPECS.get(name) or Spec(folder=Path(name).expanduser())
    folder, origin = _download(spec) if spec.repository else _find(name, spec)
    config = pretrained.read_json(folder / "config.json")
    kind = KINDS.get(config.get("model_type", ""))
    if kind is None:
        known = ", ".join(KINDS)
        raise UserError(f"{name} is a {config.get('model_type', 'nameless')} model, no encoder: give one of {known}")
    prepare = spec.preprocess or _own_preprocess(folder, config, kind)
    options = {"add_pooling_layer": False} if kind.model == "ViTModel" else {}
    model = pretrained.network(getattr(transformers, kind.model), folder, device, spec.pickled, **options)
    text = _text_half(spec, folder, model, kind)
    return Encoder(name, f"{origin} {prepare}", prepare, device, partial(kind.image, model), text)


def is_here(name: str) -> bool:
    """Return whether an encoder can be loaded without a download."""
    from huggingface_hub import try_to_load_from_cache

    spec = SPECS.get(name) or Spec(folder=Path(name).expanduser())
    weights = PICKLED_WEIGHTS if spec.pickled else "model.safetensors"
    return spec.repository is None or isinstance(
        try_to_load_from_cache(spec.repository, weights, revision=spec.revision), str
    )


def _download(spec: Spec) -> tuple[Path, str]:
    """Return the folder of a hub model in the cache, and "repository@commit"."""
    assert spec.repository is not None
    needed = ("config.json", PICKLED_WEIGHTS if spec.pickled else SAFE_WEIGHTS)
    folder = pretrained.download(spec.repository, spec.revision, needed, TEXT_FILES)
    return folder, f"{spec.repository}@{folder.name}"


def _find(name: str, spec: Spec) -> tuple[Path, str]:
    """Return the folder of a local model, and "sha256:..." of its configuration and weights."""
    assert spec.folder is not None
    parts = [spec.folder, *([spec.texts / "text_encoder"] if spec.texts else [])]
    for folder in parts:
        if not (folder / "config.json").is_file():
            raise _not_found(name, folder)
        pretrained.check_weights(folder)
    digest = hashlib.sha256()
    for folder in parts:
        for file in [folder / "config.json", *sorted(folder.glob(SAFE_WEIGHTS))]:
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return spec.folder, f"sha256:{digest.hexdigest()}"


def _not_found(name: str, folder: Path) -> UserError:
    if name in SPECS or folder.is_dir():
        return UserError(f"there is no encoder in {folder}: it has no config.json")
    near = difflib.get_close_matches(name.lower(), SPECS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"give one of {', '.join(SPECS)}, or a folder"
    return UserError(f"there is no encoder {name!r}: {hint}")


def _own_preprocess(folder: Path, config: dict[str, Any], kind: Kind) -> Preprocess:
    """Read how a folder's pictures are prepared; without a preprocessor's file, as the architecture's usually are."""
    files = [folder / name for name in PICTURE_FILES]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        side = config.get("vision_config", config)["image_size"]
        return Preprocess(side, side, kind.norm)
    settings = pretrained.read_json(file)
    try:
        return parse(settings.get("image_processor", settings))
    except (KeyError, TypeError, ValueError) as error:
        known = "a square, or the shorter side and a square cut out of its centre"
        raise UserError(f"{file} asks for an unknown preprocessing ({error}): resize to {known}") from error


def _text_half(spec: Spec, folder: Path, model: PreTrainedModel, kind: Kind) -> TextHalf | None:
    """Return the text half: in its own folder, or in the model where the folder has a tokenizer too."""
    if spec.texts is not None:
        half = pretrained.network(CLIPTextModel, spec.texts / "text_encoder", str(model.device))
        tokenizer = AutoTokenizer.from_pretrained(spec.texts / "tokenizer")
        return TextHalf(half, tokenizer, half.config.max_position_embeddings, lower=False, embed=_pooled_text)
    if kind.text is None or not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return None
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return TextHalf(model, tokenizer, model.config.text_config.max_position_embeddings, kind.lower, kind.text)
