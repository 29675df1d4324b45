"""The toybox: a small text-to-image model that ships with the package, the world it is of, and the recipe of both."""

from __future__ import annotations

from pathlib import Path

BASE = Path(__file__).parent / "base"
"""A stock `StableDiffusionPipeline` folder."""

ENCODERS = Path(__file__).parent / "encoders"
"""Stock encoders of the same world, for the metrics: `image` (CLIP's, whose texts `BASE` encodes) and `identity`."""

CLASSIFIERS = Path(__file__).parent / "classifiers"
"""What reads class, context, colour, view, accessory and style off a picture; trained on renders only."""

SUBJECTS = Path(__file__).parent / "subjects"
"""A folder of photos for each bundled subject."""
