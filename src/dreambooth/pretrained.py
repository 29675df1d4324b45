"""Networks of transformers, on the hub or in a folder: found, checked and loaded frozen. No user's pickle is opened."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from dreambooth.errors import UserError
from dreambooth.models import CONVERT, PICKLE_REFUSAL, PICKLES, hub_errors

SAFE_WEIGHTS = "*.safetensors"
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "spiece.model")
TEXT_FILES = (*TOKENIZER_FILES, "tokenizer_config.json", "merges.txt", "special_tokens_map.json")
PICTURE_FILES = ("preprocessor_config.json", "processor_config.json")


def download(repository: str, revision: str | None, needed: Sequence[str], others: Sequence[str] = ()) -> Path:
    """Return the folder of a hub model in the cache; it is named by the commit.

    Args:
        repository: Hub id.
        revision: Commit, branch or tag; None for the newest.
        needed: Patterns of files that must be there.
        others: Patterns of files that are taken where they are.

    Raises:
        UserError: It cannot be had, or not whole.
    """
    from huggingface_hub import constants, snapshot_download

    with hub_errors(repository, revision):
        given = {"allow_patterns": [*needed, *others], "local_files_only": constants.HF_HUB_OFFLINE}
        folder = Path(snapshot_download(repository, revision=revision, **given))
    missing = [pattern for pattern in needed if not any(folder.glob(pattern))]
    if missing:
        fetch = f"run `hf download {repository} --revision {folder.name}` where there is a network"
        lacking = f"if the hub has no {missing[0]} of it either, give another model"
        raise UserError(f"{repository} is only partly in the cache: {fetch}; {lacking}")
    return folder


def check_weights(folder: Path) -> None:
    """See that a folder holds weights that may be opened.

    Raises:
        UserError: There are none, or only a pickle.
    """
    if not any(folder.glob(SAFE_WEIGHTS)):
        pickled = any(file.suffix in PICKLES for file in folder.iterdir())
        reason = f"only as a pickle: {PICKLE_REFUSAL}; {CONVERT}" if pickled else "not there: get the model again"
        raise UserError(f"the weights of the model {folder} are {reason}")


def read_json(file: Path) -> dict[str, Any]:
    """Read a model's configuration.

    Raises:
        UserError: It is not there, or damaged.
    """
    try:
        value: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: get the model again") from error
    return value


def network(cls: type[PreTrainedModel], folder: Path, device: str, pickled: bool = False, **options: Any) -> Any:
    """Load a frozen network in float32.

    Args:
        cls: Its class.
        folder: Where its configuration and its weights are.
        device: Where it computes.
        pickled: Whether the weights are a pickle, which torch's restricted unpickler opens: it makes tensors alone.
        **options: More that the class takes.

    Raises:
        UserError: The weights are not all there; transformers would draw the rest at random.
    """
    model, info = cls.from_pretrained(
        folder,
        dtype=torch.float32,
        use_safetensors=not pickled,
        weights_only=True,
        output_loading_info=True,
        **options,
    )
    if info["missing_keys"]:
        some = ", ".join(sorted(info["missing_keys"])[:2])
        raise UserError(f"the model in {folder} lacks {len(info['missing_keys'])} tensors ({some}): get it again")
    return model.to(device).eval().requires_grad_(False)
