"""Colours in sRGB, which models know and screens show: telephones and cameras write photos in wider spaces too."""

from __future__ import annotations

import functools
import io

from PIL import Image, ImageCms

SPACES = {"RGB": "RGB", "CMYK": "CMYK", "L": "GRAY"}
"""Modes of images whose profiles are heeded -> the name of the profiles' space."""


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Return an image with the colours that its profile says, in sRGB.

    Args:
        image: Of whatever mode.
        profile: Its ICC profile, as Pillow has it in `info["icc_profile"]`.

    Returns:
        RGB; the image as it is without a profile, with sRGB's, one for another mode, or one that cannot be read.
    """
    if not profile or image.mode not in SPACES:
        return image
    try:
        own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if own.profile.xcolor_space.strip() != SPACES[image.mode] or _is_srgb(own):
            return image
        return ImageCms.profileToProfile(image, own, _srgb(), outputMode="RGB") or image
    except (OSError, ImageCms.PyCMSError):
        return image


def _is_srgb(profile: ImageCms.ImageCmsProfile) -> bool:
    return ImageCms.getProfileDescription(profile).startswith("sRGB")


@functools.cache
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
