"""Where the subject of a photo is, told by a network that is asked for the class noun: CLIPSeg.

Lüddecke and Ecker, "Image Segmentation Using Text and Image Prompts", CVPR 2022. It knows what a dog is, where
`saliency` knows only what stands out; for that it takes a download and a second or so a photo.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import CLIPSegForImageSegmentation, CLIPSegProcessor

from dreambooth import pretrained
from dreambooth.errors import UserError
from dreambooth.pretrained import PICTURE_FILES, SAFE_WEIGHTS, TEXT_FILES, TOKENIZER_FILES
from dreambooth.prompts import class_prompt

EXAMPLE = "CIDAS/clipseg-rd64-refined"

Mask = npt.NDArray[np.bool_]


def load(model: str, device: str = "cpu") -> Callable[[Image.Image, str], Mask]:
    """Load a CLIPSeg.

    Args:
        model: The folder of one, or a hub id.
        device: Where it computes, in float32.

    Returns:
        What finds things by their noun in an RGB picture: their mask, (H, W) as the picture, True where they are.

    Raises:
        UserError: There is no such model, it cannot be downloaded, or it is no CLIPSeg.
    """
    kind = pretrained.read_json(_folder(model, "config.json") / "config.json").get("model_type", "nameless")
    if kind != "clipseg":
        raise UserError(f"{model} is a {kind} model, no CLIPSeg: give one, such as {EXAMPLE}")
    folder = _folder(model, "config.json", SAFE_WEIGHTS)
    for names in (TOKENIZER_FILES, PICTURE_FILES):
        # transformers makes an empty tokenizer where there is none
        if not any((folder / name).is_file() for name in names):
            raise UserError(f"{folder} has no {' or '.join(names)}: get the whole model again")
    pretrained.check_weights(folder)
    network = pretrained.network(CLIPSegForImageSegmentation, folder, device)
    return partial(_segment, network, CLIPSegProcessor.from_pretrained(folder))


def _folder(model: str, *needed: str) -> Path:
    """Return a model's folder; of a hub model no more is downloaded than what is needed and what is small."""
    folder = Path(model).expanduser()
    if not folder.is_dir():
        return pretrained.download(model, None, needed, (*TEXT_FILES, *PICTURE_FILES))
    if not (folder / "config.json").is_file():
        raise UserError(f"there is no model in {folder}: it has no config.json")
    return folder


@torch.inference_mode()
def _segment(network: Any, processor: Any, image: Image.Image, noun: str) -> Mask:
    inputs = processor(text=[class_prompt(noun)], images=[image], return_tensors="pt").to(network.device)
    logits_11HW = network(**inputs).logits[:, None]
    resized_11HW = F.interpolate(logits_11HW, (image.height, image.width), mode="bilinear")
    return np.asarray(resized_11HW[0, 0].cpu() > 0)  # likelier than not
