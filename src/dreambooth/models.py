"""How a base model is found, refused or accepted, and named for good: a card, a folder, a file or a hub id.

Nothing here loads weights or imports torch before it must; a pickle is never opened.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml

from dreambooth import families
from dreambooth.errors import RunError, UserError
from dreambooth.files import write_json
from dreambooth.paths import cache_root

PACKAGE = Path(__file__).parent

# What a pipeline is made of: no single-file copies at the top level, no half-precision, EMA-less or other doubles.
WANTED = ["model_index.json", "*/*.json", "*/*.txt", "*/*.jinja", "*/*.safetensors"]
UNUSED_PARTS = ("safety_checker", "feature_extractor", "image_encoder", "vae_1_0", "text_encoders", "watermarker")
FEWER_BITS = ["*.fp16[.-]*", "*.bf16[.-]*", "*.8bit[.-]*"]  # of one file and of several: model.fp16-00001-of-00002...
DOUBLES = ["*.non_ema.*", "*flax*", "*onnx*", "*openvino*"]
UNWANTED = [*FEWER_BITS, *DOUBLES, *(f"{part}/*" for part in UNUSED_PARTS)]
WEIGHTLESS_PARTS = ("scheduler", "tokenizer", "image_noising_scheduler")
DENOISERS = ("unet", "transformer")

PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
PICKLE_REFUSAL = "a pickle can run any code when it is opened, so it is never loaded"
CONVERT = "convert it at https://huggingface.co/spaces/safetensors/convert"

# A tensor that every Stable Diffusion 1.x and 2.x checkpoint has, and no other family's.
SD_CROSS_ATTENTION = "model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight"
SD_PREFIXES = {"autoencoder": ("first_stage_model.", "vae."), "text encoder": ("cond_stage_model.",)}
SD_FIRST_LAYER = "model.diffusion_model.input_blocks.0.0.weight"

# What others report for a LoRA of SD 1.5 at batch 1 in half precision; not measured here yet.
SD15_MEMORY_GIB = 8
TEACHING = f"it is a 64-px teaching model: name a real one, such as --model sd15 (a GPU with {SD15_MEMORY_GIB} GiB)"

IDENTITY_ENCODER, CLIP_ENCODER = "dino-vits16", "clip-vit-b32"
"""The paper's encoders (it does not say which CLIP: B/32 is the likeliest, docs/evaluation.md)."""


@dataclass(frozen=True)
class Card:
    """What is known of a base model before it is downloaded.

    Attributes:
        name: What the user types.
        family: Name of the family that loads it.
        repository: Hub id; None for a model that ships with the package.
        revision: Commit that is downloaded; None for the newest.
        licence: Name of the licence of the weights.
        gated: Whether the licence must be accepted on the hub first.
        resolution: Side in pixels that the model was trained at.
        note: One line for the list of models.
        identity_encoder: What tells subjects apart in its pictures (a name of `evaluation.encoders.SPECS`).
        clip_encoder: What holds its pictures against texts.
        nouns: The classes that it knows, where they are few.
    """

    name: str
    family: str
    repository: str | None
    revision: str | None
    licence: str
    gated: bool
    resolution: int
    note: str
    identity_encoder: str = IDENTITY_ENCODER
    clip_encoder: str = CLIP_ENCODER
    nouns: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """A base model that was found and accepted.

    Attributes:
        name: The model as the user asked for it.
        family: Name of the family that loads it.
        path: A diffusers folder or one `.safetensors` file.
        identity: "owner/name@commit" of a hub model, "sha256:..." of the content of a local one.
        card: The card, where the model has one.
    """

    name: str
    family: str
    path: Path
    identity: str
    card: Card | None


def _read_cards() -> tuple[Card, ...]:
    text = (PACKAGE / "families" / "cards.yaml").read_text(encoding="utf-8")
    return tuple(Card(**{**entry, "nouns": tuple(entry.get("nouns", ()))}) for entry in yaml.safe_load(text))


CARDS = _read_cards()


def resolve(model: str, revision: str | None = None, kinds: str = "a folder, a file or a hub id") -> Source:
    """Find a base model: the name of a card, a folder, a `.safetensors` file, or a hub id, in that order.

    Args:
        model: What the user asked for.
        revision: Branch, tag or commit of a hub model.
        kinds: What an unknown name is told to be instead of a card's.

    Raises:
        UserError: There is no such model, or it is one that cannot or must not be loaded.
    """
    card = next((card for card in CARDS if card.name == model), None)
    if card and card.repository:
        return _from_hub(model, card.repository, revision or card.revision, card)
    path = _embedded(card) if card else Path(model).expanduser()
    if card or path.exists():
        if revision is not None:
            raise UserError(f"{model} is a local model and has no revisions: leave out revision {revision!r}")
        return _local(model, path, card)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", model) and path.suffix.lower() not in (".safetensors", *PICKLES):
        return _from_hub(model, model, revision, None)
    raise _not_found(model, kinds)


def choose_for_device() -> tuple[str, str]:
    """Return the card that suits this machine and the reason in a few words."""
    import torch

    if torch.cuda.is_available():
        kind, memory = "CUDA", torch.cuda.get_device_properties(0).total_memory
    elif torch.backends.mps.is_available():
        kind, memory = "MPS", torch.mps.recommended_max_memory()
    else:
        return "toybox", f"no GPU here; {TEACHING}"
    gib = memory / 2**30
    if gib < SD15_MEMORY_GIB:
        return "toybox", f"the {kind} device has {gib:.1f} GiB; {TEACHING}"
    return "sd15", f"the {kind} device has {gib:.1f} GiB"


def _embedded(card: Card) -> Path:
    return PACKAGE / card.name / "base"


def _not_found(model: str, kinds: str) -> UserError:
    if "/" in model or "\\" in model or Path(model).suffix.lower() in (".safetensors", *PICKLES):
        return UserError(f"there is no model at {model}: check the path")
    names = [card.name for card in CARDS]
    near = difflib.get_close_matches(model.lower(), names, n=1)
    hint = f"did you mean {near[0]}?" if near else f"give one of {', '.join(names)}, {kinds}"
    return UserError(f"there is no model {model!r}: {hint}")


def _local(name: str, path: Path, card: Card | None) -> Source:
    if path.is_dir():
        family = _check_folder(str(path), path)
        return Source(name, family, path, f"sha256:{_folder_hash(path)}", card)
    family = _check_file(path)
    return Source(name, family, path, f"sha256:{_file_hashes([path])[0]}", card)


def _from_hub(name: str, repository: str, revision: str | None, card: Card | None) -> Source:
    """Download, or find in the cache, what a pipeline is made of; its class is checked before the weights."""
    from huggingface_hub import constants, hf_hub_download, snapshot_download

    with hub_errors(repository, revision, ", or choose toybox"):
        index = Path(hf_hub_download(repository, "model_index.json", revision=revision))
    _check_index(repository, index)
    commit = index.parent.name
    with hub_errors(repository, revision, ", or choose toybox"):
        patterns = {"allow_patterns": WANTED, "ignore_patterns": UNWANTED}
        # offline some versions of the library ask the hub all the same for what a commit holds
        folder = snapshot_download(repository, revision=commit, local_files_only=constants.HF_HUB_OFFLINE, **patterns)
    family = _check_folder(repository, Path(folder))
    return Source(name, family, Path(folder), f"{repository}@{commit}", card)


@contextmanager
def hub_errors(repository: str, revision: str | None, otherwise: str = "") -> Iterator[None]:
    """Turn what the hub's library raises about a model into one line with the mend.

    `otherwise` is what a user without network can do instead, such as ", or choose toybox".
    """
    from huggingface_hub import constants, errors

    page = f"https://huggingface.co/{repository}"
    try:
        yield
    except errors.GatedRepoError as error:
        raise UserError(
            f"{repository} is gated: accept its licence at {page}, then log in with `hf auth login`"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub cannot be reached"
        fetch = f"hf download {repository}" + (f" --revision {revision}" if revision else "")
        raise UserError(
            f"{repository} is not in the cache and {why}: run `{fetch}` where there is a network{otherwise}"
        ) from error
    except errors.EntryNotFoundError as error:
        raise UserError(
            f"{repository} has no model_index.json, so it is not a diffusers model: "
            "give the id of its diffusers version, or download its .safetensors file and give that"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{repository} has no revision {revision!r}: see {page}/commits/main") from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise UserError(
            f"there is no model {repository} here or on the hub: "
            "check the name; for a private one log in with `hf auth login`"
        ) from error


def _check_folder(shown: str, folder: Path) -> str:
    """Return the family of a diffusers folder.

    Raises:
        UserError: It is not one, is of no known family, or its weights are missing or pickled.
    """
    index_file = folder / "model_index.json"
    if not index_file.is_file():
        raise UserError(
            f"{shown} has no model_index.json, so it is not a diffusers model: "
            "give the folder that save_pretrained wrote, or one .safetensors file"
        )
    index = _check_index(shown, index_file)
    parts = [name for name, value in index.items() if isinstance(value, list) and value[0] is not None]
    if not set(parts) & set(DENOISERS):
        raise UserError(f"{shown} has no U-Net: its model_index.json names only {', '.join(parts) or 'nothing'}")
    for part in parts:
        if part not in UNUSED_PARTS and not part.startswith(WEIGHTLESS_PARTS):
            _check_weights(shown, folder, part)
    return families.PIPELINES[str(index["_class_name"])]


def _check_index(shown: str, index_file: Path) -> dict[str, Any]:
    try:
        index: dict[str, Any] = json.loads(index_file.read_text(encoding="utf-8"))
        pipeline = index["_class_name"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{shown}/model_index.json cannot be read as a pipeline's index: get the file again") from error
    if pipeline not in families.PIPELINES:
        supported = ", ".join(families.PIPELINES)
        raise UserError(f"{shown} is a {pipeline}, which is not supported: choose a model of {supported}")
    return index


def _check_weights(shown: str, folder: Path, part: str) -> None:
    label = "U-Net" if part == "unet" else part.replace("_", " ")
    if not (folder / part).is_dir():
        raise UserError(f"{shown} has no {label}: the folder {part} is missing; get the whole model again")
    files = [file.name for file in (folder / part).glob("*.safetensors")]
    if any(not any(fnmatch(name, pattern) for pattern in [*FEWER_BITS, *DOUBLES]) for name in files):
        return
    if files:
        raise UserError(f"the {label} of {shown} is only there as {files[0]}: save it in whole, without a variant")
    if any(file.suffix in PICKLES for file in (folder / part).iterdir()):
        raise UserError(f"the {label} of {shown} is only there as a pickle: {PICKLE_REFUSAL}; {CONVERT}")
    raise UserError(f"the {label} of {shown} has no weights: no .safetensors file in its folder {part}")


def _check_file(path: Path) -> str:
    """Return the family of a single checkpoint file.

    Raises:
        UserError: It is a pickle, no readable safetensors file, or not a text-to-image checkpoint of a known family.
    """
    if path.suffix.lower() in PICKLES:
        raise UserError(f"{path} is a pickle: {PICKLE_REFUSAL}; {CONVERT}")
    if path.suffix.lower() != ".safetensors":
        raise UserError(f"{path} is no model: give a diffusers folder or a .safetensors file")
    shapes, _ = safetensors_header(path)
    if any("lora" in key for key in shapes):
        raise UserError(f"{path} is a LoRA, not a base model: give the model that it was trained on")
    if SD_CROSS_ATTENTION not in shapes:
        raise UserError(
            f"{path} is not a whole Stable Diffusion 1.x or 2.x checkpoint, the only files supported: "
            "give a diffusers folder"
        )
    channels = shapes[SD_FIRST_LAYER][1]
    if channels != 4:
        raise UserError(f"{path} takes {channels} input channels (inpainting or editing): give a text-to-image model")
    for part, prefixes in SD_PREFIXES.items():
        if not any(key.startswith(prefixes) for key in shapes):
            raise UserError(f"{path} has no {part}: give a file with all parts of the model")
    return "sd"


def safetensors_header(path: Path) -> tuple[dict[str, list[int]], dict[str, str]]:
    """Read the shapes of the tensors in a safetensors file and its metadata, without the tensors.

    Raises:
        UserError: The file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            names = list(file.keys())
            return {name: file.get_slice(name).get_shape() for name in names}, file.metadata() or {}
    except SafetensorError as error:
        raise UserError(f"{path} is damaged or no safetensors file ({error}): get it again") from error


def _folder_hash(folder: Path) -> str:
    """Hash the names and contents of what the pipeline is made of; not the folder's own name or its other files."""
    from huggingface_hub.utils import filter_repo_objects

    names = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    wanted = list(filter_repo_objects(names, allow_patterns=WANTED, ignore_patterns=UNWANTED))
    hashes = _file_hashes(folder / name for name in wanted)
    return hashlib.sha256(json.dumps(list(zip(wanted, hashes, strict=True))).encode()).hexdigest()


def _file_hashes(files: Iterable[Path]) -> list[str]:
    """Return the sha256 of each file, from memory where path, size and time of change are the remembered ones."""
    memory_file = cache_root() / "hashes.json"
    memory: dict[str, str] = {}
    with suppress(OSError, ValueError):  # absent or damaged: it is a cache
        memory = json.loads(memory_file.read_text(encoding="utf-8"))
    hashes, known = [], len(memory)
    for file in files:
        stat = file.stat()
        key = f"{file.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
        if key not in memory:
            memory[key] = _sha256(file)
        hashes.append(memory[key])
    if len(memory) > known:
        with suppress(OSError, RunError):  # a home that cannot be written to costs time, nothing else
            write_json(memory_file, memory)
    return hashes


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def native_resolution(source: Source) -> int:
    """Return the image side in pixels that a model was trained at, read from its card or its configs."""
    if source.card:
        return source.card.resolution
    if source.path.is_file():
        from dreambooth.families import sd  # which imports diffusers

        return sd.resolution_of_file(source.path)
    (denoiser,) = (name for name in DENOISERS if (source.path / name).is_dir())
    config = json.loads((source.path / denoiser / "config.json").read_text(encoding="utf-8"))
    if not (source.path / "vae").is_dir():
        return int(config["sample_size"])  # it works on pixels
    vae = json.loads((source.path / "vae" / "config.json").read_text(encoding="utf-8"))
    if "sample_size" not in config:
        # A transformer that takes any size: then the autoencoder's, which was trained at it, if it says so.
        return int(vae.get("sample_size", 1024))
    blocks = vae.get("block_out_channels") or vae["encoder_block_out_channels"]  # the latter in Sana's
    return int(config["sample_size"] * 2 ** (len(blocks) - 1))
