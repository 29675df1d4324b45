"""The photo doctor: every finding about a folder of photos, with the risk it brings and what to do.

`photos.read` looks at each photo by itself and is part of every run. This adds what needs the subject's place in the
photo (a mask beside it, else a segmenter's, else `saliency`) and what needs all photos at once. Thresholds are set on
the photos of DreamBench: docs/photos.md has the rates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from dreambooth import photo_scenes, photos, saliency
from dreambooth.geometry import Aspect
from dreambooth.photo_checks import Problem
from dreambooth.photo_scenes import Scene
from dreambooth.photos import Finding, Photo
from dreambooth.saliency import Subject

CLEAR = 0.85
"""Contrast from which a subject that was found by its saliency is believed."""
COARSE = 128
"""Pixels of a photo's shorter side under which its saliency is not believed."""
TINY = 0.025
"""Share of the picture under which the box round the subject is too small."""
LOST = 0.2
"""Share of the subject's box outside the square that is learnt, from which it counts as cut."""
TOUCHING = 0.3
"""Share of the subject's extent along an edge of the photo, from which it counts as cut by it."""
NEARLY_THE_SAME = 0.96
"""Correlation from which one photo is nearly a crop or a mirror image of another."""
ONE_BACKGROUND = 0.7
ONE_POSE = 0.65
MARKED = 0.004
"""Share of the picture with edges in the same place in all photos, from which they carry a mark."""
MANY = 10

Segment = Callable[[Image.Image], npt.NDArray[np.bool_]]
"""From an RGB picture to the mask of the subject in it, (H, W)."""

_PREVIEW = 256
_NEIGHBOURS = 6
_ENOUGH = 3


@dataclass(frozen=True)
class Examination:
    """What the doctor says.

    Attributes:
        findings: One for each entry of the folder, as `photos.read` gives them, with more problems.
        warnings: What is wrong with the photos as a set.
        scenes: The photos that are used, reduced to 256 pixels, with the subject in each.
    """

    findings: list[Finding]
    warnings: list[Problem]
    scenes: list[Scene]


def examine(folder: Path, resolution: int, segment: Segment | None = None, aspect: Aspect = "square") -> Examination:
    """Read a folder of photos and find what is wrong with each and with all together.

    Args:
        folder: The folder of the subject's photos.
        resolution: The side in pixels at which they will be learnt.
        segment: What finds the subject in photos without a mask. Default: its saliency.
        aspect: The shape that they will be cut to, as `photos.read` takes it.

    Raises:
        UserError: As `photos.read`.
    """
    previews: dict[str, Image.Image] = {}
    segmented: dict[str, Subject] = {}

    def keep(name: str, image: Image.Image) -> None:
        previews[name] = image.copy()
        previews[name].thumbnail((_PREVIEW, _PREVIEW), Image.Resampling.BOX)
        if segment:
            segmented[name] = saliency.from_mask(Image.fromarray(segment(image)))

    findings = photos.read(folder, resolution, keep, aspect)
    scenes = [_scene(photo, previews, segmented) for photo in photos.usable(findings)]
    more = near_duplicates(scenes)
    for scene, photo in zip(scenes, photos.usable(findings), strict=True):
        more.setdefault(scene.name, []).extend(subject_problems(scene.subject, photo.size, aspect == "square"))
    joined = [replace(each, problems=(*each.problems, *more.get(each.file, []))) for each in findings]
    return Examination(joined, [*photos.warnings(findings), *set_problems(scenes)], scenes)


def to_json(examination: Examination) -> dict[str, Any]:
    """Return `{"photos": [{"file", "used", "problems", "subject"}], "warnings": [{"kind", "message", "risk"}]}`.

    The subject is `{"box": [left, top, right, bottom], "contrast", "given"}`, in shares of the photo, or null.
    """
    scenes = {scene.name: scene.subject for scene in examination.scenes}
    return {
        "photos": [
            {
                "file": finding.file,
                "used": finding.used,
                "problems": [_problem(problem) for problem in finding.problems],
                "subject": _subject(scenes.get(finding.file)),
            }
            for finding in examination.findings
        ],
        "warnings": [_problem(problem) for problem in examination.warnings],
    }


def subject_problems(subject: Subject, size: tuple[int, int], is_cut_square: bool = True) -> list[Problem]:
    """Say whether the subject is too small in a photo of this width and height, or cut off."""
    if subject.contrast < CLEAR or (not subject.given and min(size) < COARSE):
        return []
    left, top, right, bottom = subject.box
    area = (right - left) * (bottom - top)
    if area < TINY:
        message = f"the subject seems to fill only {area:.1%} of the photo: crop closer to it, or take it from nearer"
        return [Problem("tiny", message)]
    lost = _outside_square(subject, size)
    if lost > LOST and is_cut_square:
        message = f"the square in the middle, which is learnt, seems to leave out {lost:.0%} of the subject"
        return [Problem("cut", f"{message}: crop the photo to it, or train with --aspect keep")]
    edges = _edges_touched(subject)
    if edges:
        message = f"the subject seems to be cut off at the {' and '.join(edges)}"
        return [Problem("cut", f"{message}: use a photo that shows all of it, unless others do")]
    return []


def near_duplicates(scenes: Sequence[Scene]) -> dict[str, list[Problem]]:
    """Find photos that are nearly crops or mirror images of one before, among six neighbours in the folder's order."""
    found: dict[str, list[Problem]] = {}
    for index, scene in enumerate(scenes):
        for earlier in scenes[max(0, index - _NEIGHBOURS) : index]:
            if photo_scenes.overlap(earlier.image, scene.image) >= NEARLY_THE_SAME:
                message = f"nearly the same picture as {earlier.name} (cropped, mirrored or a moment later)"
                found[scene.name] = [Problem("near-duplicate", f"{message}: keep the better one")]
                break
    return found


def set_problems(scenes: Sequence[Scene]) -> list[Problem]:
    """Say what is wrong with the photos as a set, beyond there being too few."""
    found = many(len(scenes))
    if len(scenes) < _ENOUGH:
        return found
    one_background = photo_scenes.least_alike(scenes) >= ONE_BACKGROUND
    if one_background:
        message = "the same background in all photos: take some in other places, or give masks"
        found.append(Problem("background", message))
    clear = [scene for scene in scenes if scene.subject.contrast >= CLEAR]
    if len(clear) == len(scenes) and photo_scenes.least_posed(scenes) >= ONE_POSE:
        found.append(Problem("pose", "the same view of the subject in all photos: take some from other sides"))
    if not one_background and photo_scenes.mark([scene.image for scene in scenes]) >= MARKED:
        message = "a mark in the same place in all photos (a watermark, a date, a frame?): crop it off or paint it over"
        found.append(Problem("mark", message))
    return found


def many(count: int) -> list[Problem]:
    """Say that so many photos are too many, where they are."""
    if count <= MANY:
        return []
    message = f"{count} photos: 3 to 10 that differ are enough, keep the sharpest and most different ones"
    return [Problem("many", message)]


def _scene(photo: Photo, previews: Mapping[str, Image.Image], segmented: Mapping[str, Subject]) -> Scene:
    name = photo.path.name
    if photo.mask_path:
        subject = saliency.from_mask(photos.read_mask(photo.mask_path))
    else:
        subject = segmented.get(name) or saliency.find(previews[name])
    return Scene(name, previews[name], subject)


def _outside_square(subject: Subject, size: tuple[int, int]) -> float:
    """Return the share of the subject's box that the largest square in the centre leaves out."""
    left, top, right, bottom = subject.box
    across, down = (min(size) / side / 2 for side in size)
    width = min(right, 0.5 + across) - max(left, 0.5 - across)
    height = min(bottom, 0.5 + down) - max(top, 0.5 - down)
    return 1 - max(0.0, width) * max(0.0, height) / ((right - left) * (bottom - top))


def _edges_touched(subject: Subject) -> list[str]:
    """Return the edges along which a good part of the subject's extent lies.

    Cells of the outermost ring are never salient, so the next ring stands for them where the mask was not given.
    """
    ring = 0 if subject.given else 1
    mask = subject.mask > 0.5
    extent_x, extent_y = mask.any(axis=0).sum(), mask.any(axis=1).sum()
    lines = {
        "top": (mask[ring], extent_x),
        "bottom": (mask[-1 - ring], extent_x),
        "left": (mask[:, ring], extent_y),
        "right": (mask[:, -1 - ring], extent_y),
    }
    return [name for name, (line, extent) in lines.items() if line.sum() > TOUCHING * max(extent, 1)]


def _problem(problem: Problem) -> dict[str, str | None]:
    return {"kind": problem.kind, "message": problem.message, "risk": problem.risk}


def _subject(subject: Subject | None) -> dict[str, Any] | None:
    if subject is None:
        return None
    box = [round(edge, 3) for edge in subject.box]
    return {"box": box, "contrast": round(subject.contrast, 3), "given": subject.given}
