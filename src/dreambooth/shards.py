"""Tensors in files, a part at a time: while they are saved, no second copy of all of them is held."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from huggingface_hub import StateDictSplit, split_torch_state_dict_into_shards
from safetensors.torch import load_file, save_file
from torch import Tensor

SHARD = "5GB"
"""The most that a file holds, and that is copied at a time."""


def write(tensors: Mapping[str, Tensor], file: Path, dtype: torch.dtype | None = None) -> StateDictSplit:
    """Write tensors to `file`, or to several beside it ("name-00001-of-00002.safetensors") where it would be too large.

    Args:
        tensors: By name, on whatever device, each in memory of its own.
        file: Of safetensors, in a folder that is there.
        dtype: What they are kept in; None for their own.

    Returns:
        Which tensor lies in which file.
    """
    pattern = f"{file.stem}{{suffix}}{file.suffix}"
    split = split_torch_state_dict_into_shards(dict(tensors), filename_pattern=pattern, max_shard_size=SHARD)
    for name, held in (split.filename_to_tensors or {file.name: []}).items():
        shard = {each: tensors[each].detach().to("cpu", dtype).contiguous() for each in held}
        save_file(shard, file.with_name(name), metadata={"format": "pt"})
    return split


def read(file: Path) -> dict[str, Tensor]:
    """Read what `write` wrote.

    Raises:
        FileNotFoundError: A file is missing.
        SafetensorError: A file is damaged.
    """
    parts = [file] if file.is_file() else sorted(file.parent.glob(f"{file.stem}-*-of-*{file.suffix}"))
    if not parts or (parts != [file] and len(parts) != int(parts[0].stem.rsplit("-", 1)[1])):
        raise FileNotFoundError(f"{file} lacks a part")
    return {name: tensor for part in parts for name, tensor in load_file(part).items()}
