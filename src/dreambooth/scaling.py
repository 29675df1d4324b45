"""Views of a photo at another scale, which the caption names, so that its composition is not learned as the subject's.

Kumari et al. 2023 (Custom Diffusion), https://arxiv.org/abs/2212.04488, with the words and about the scales of their
code, https://github.com/adobe-research/custom-diffusion: two views in three are smaller, anywhere in an empty frame
that the loss leaves out; the others are closer, within what is seen of the photo as it is.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from dreambooth import geometry, photos
from dreambooth.geometry import Box, Size
from dreambooth.photos import Photo

SMALLER = (1 / 3, 0.6, ("far away", "very small"))
CLOSER = (1.2, 1.4, ("close up", "zoomed in"))
"""Least and greatest scale, and what a caption says of it."""
WORDS = (*SMALLER[2], *CLOSER[2])


@dataclass(frozen=True)
class Scaled:
    """A view at another scale.

    Attributes:
        part: What is seen of the photo, in its pixels.
        frame: Where that lies in the view, in the view's pixels.
        words: What the caption says of it.
    """

    part: Box
    frame: Box
    words: str


def draw(photo: Photo, size: Size, number: int, seed: int, stride: int) -> Scaled:
    """Draw a photo's view at another scale, whose frame is a multiple of `stride` pixels in place and size.

    Args:
        photo: The photo.
        size: Of the view.
        number: Which of the photo's views it is.
        seed: Chooses scale, place and words, together with the photo and the number.
        stride: Pixels, so that what the loss leaves out are whole latent pixels.
    """
    source = random.Random(f"{seed} {photo.id} scale {number}")
    smallest, largest, said = SMALLER if source.random() < 2 / 3 else CLOSER
    scale, across, down = source.uniform(smallest, largest), source.random(), source.random()
    words = source.choice(said)
    if scale > 1:
        left, top, right, bottom = photos.box(photo, size)
        whole = (right - left, bottom - top)
        width, height = (max(1, round(side / scale)) for side in whole)
        x, y, *_ = geometry.placed(whole, (width, height), across, down)
        return Scaled((left + x, top + y, left + x + width, top + y + height), (0, 0, *size), words)
    width, height = (max(1, round(side * scale / stride)) * stride for side in size)
    return Scaled(
        photos.box(photo, (width, height)), geometry.placed(size, (width, height), across, down, stride), words
    )


def worded(caption: str, words: str) -> str:
    """Return the caption of a view: "a [V] dog, far away"."""
    return f"{caption}, {words}"
