"""Detectors of the paper's limitations (Ruiz et al. 2023, section 5 and figure 9): each looks, decides, and says why.

Every threshold compares the tuned model with the frozen one or with the photos themselves, so none of them depends on
the scale of an encoder. Where the frozen model gives nothing to compare with, a detector says that it cannot tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from PIL import Image

from dreambooth.evaluation.dreambench import Prompt
from dreambooth.evaluation.metrics import Rows, Values, copying, diversity
from dreambooth.evaluation.scoring import Embedded, Grid, Texts, alone
from dreambooth.evaluation.statistics import Estimate, Scores, estimate

Level = Literal["good", "watch", "bad", "unknown"]

KEPT_GOOD, KEPT_BAD = 0.8, 0.5
"""Share of the frozen model's signal that tuning must keep to be good; under the second it is bad."""
COPIES_WATCH, COPIES_BAD = 0.1, 0.4
"""Share of pictures that are nearer to a photo than any two photos are to each other, beyond what chance gives."""
CENTRE = 0.5
"""Without masks the subject is looked for in this share of the picture's sides, around its centre."""
COLOUR_WATCH, COLOUR_BAD = 1.0, 1.5
"""Shift of the subject's colour between scenes, in units of its shift between the photos."""
DRIFT_WATCH, DRIFT_BAD = 0.1, 0.3
"""Share of the way from the frozen model's "a class" to the photos that tuning moved "a class"."""
LEAST_PROMPTS, RESAMPLES = 5, 2000
RECOGNISED = 0.75
"""Share of the frozen model's "a class" that must be nearest to that class's text."""


@dataclass(frozen=True)
class Finding:
    """What a detector found.

    Attributes:
        name: Of the limitation.
        title: What the reader sees first.
        level: "good", "watch", "bad", or "unknown" where it cannot be told.
        text: One or two sentences: what was measured and what it means.
        figures: Figures by name.
        pictures: Indices of the pictures that show it, the worst first.
    """

    name: str
    title: str
    level: Level
    text: str
    figures: dict[str, Estimate]
    pictures: list[int] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values, its pictures left out: who has drawn them names their files."""
        told = {name: getattr(self, name) for name in ("name", "title", "level", "text")}
        return {**told, "figures": {name: figure.as_json() for name, figure in self.figures.items()}}


def find(identity: Embedded, clip: Embedded, texts: Texts, grid: Grid, prompts: Sequence[Prompt]) -> list[Finding]:
    """Run the detectors that look at embeddings."""
    return [
        context(clip, texts, grid, prompts),
        weak_prior(clip, texts, grid),
        overfitting(identity, grid),
        drift(identity, grid),
        *siblings(identity, grid),
        broken_class(clip, texts, grid),
    ]


def context(clip: Embedded, texts: Texts, grid: Grid, prompts: Sequence[Prompt]) -> Finding:
    """Context not synthesised (figure 9a): pictures answer their scene's words less than the frozen model's do."""
    rows_P = np.array([prompt.kind != "property" for prompt in prompts])
    at_G = rows_P[grid.prompt_G]
    tuned_G, frozen_G = (margin(pictures, texts.contexts_PD, grid) for pictures in (clip.tuned_GD, clip.frozen_GD))
    signal = estimate(grid.scores(frozen_G).at(at_G))
    kept = _ratio(grid.scores(tuned_G).at(at_G), grid.scores(frozen_G).at(at_G))
    figures = {"kept": kept, "frozen_signal": signal}
    title = "Scenes are drawn as asked"
    if not _is_positive(signal) or kept.value is None:
        text = "The frozen model does not draw these scenes so that the encoder can tell them: nothing to compare with."
        return Finding("context", "Context", "unknown", text, figures)
    level = _level(kept.value, KEPT_GOOD, KEPT_BAD)
    lost = [index for index in _worst(tuned_G - frozen_G, grid) if rows_P[index]][:3]
    named = "; ".join(prompts[index].context for index in lost)
    text = f"The scene shows {kept.value:.0%} as clearly as in the frozen model's pictures."
    if level != "good":
        title = "Context not synthesised"
        text += f" Weakest: {named}. Fewer steps, a lower adapter strength or more guidance bring scenes back."
    return Finding("context", title, level, text, figures, [index * len(grid.seeds) for index in lost])


def weak_prior(clip: Embedded, texts: Texts, grid: Grid) -> Finding:
    """Weak prior (section 5): the frozen model itself hardly draws the class."""
    frozen_CKD = clip.frozen_classes_CKD
    if len(frozen_CKD) == 1:
        return Finding("weak prior", "Weak prior", "unknown", "No sibling class was drawn to tell the class from.", {})
    nearest_K = (frozen_CKD[0] @ texts.classes_CD.T).argmax(axis=1)
    share = estimate(alone(grid.subject, (nearest_K == 0).astype(float)))
    assert share.value is not None, "the class has pictures"
    level: Level = "good" if share.value >= RECOGNISED else "watch" if share.value >= KEPT_BAD else "bad"
    text = f"{share.value:.0%} of the frozen model's pictures of the bare class are told from its sibling classes."
    if level == "good":
        return Finding("weak prior", "The base model knows the class", level, text, {"recognised": share})
    text += " A subject is learned badly on a class that the model hardly draws: try a broader class noun."
    return Finding("weak prior", "Weak prior", level, text, {"recognised": share})


def overfitting(identity: Embedded, grid: Grid) -> Finding:
    """Overfitting to the photos (figure 9c): pictures repeat a photo, or all pictures of a prompt are one picture."""
    found = copying(identity.tuned_GD, identity.photos_RD)
    copies = estimate(grid.scores(np.where(np.isnan(found.excess_G), np.nan, found.excess_G > 0)))
    kept = _ratio(*(grid.scores(diversity(each, grid.prompt_G)) for each in (identity.tuned_GD, identity.frozen_GD)))
    figures = {"copies": copies, "diversity_kept": kept}
    pictures = np.argsort(-found.excess_G)[:4].tolist()
    if copies.value is None or kept.value is None:
        text = "One photo, or one picture a prompt, leaves nothing to compare with."
        return Finding("overfitting", "Overfitting", "unknown", text, figures)
    beyond = copies.value - found.chance
    level = _worse(_level(-beyond, -COPIES_WATCH, -COPIES_BAD), _level(kept.value, KEPT_GOOD, KEPT_BAD))
    text = (
        f"{copies.value:.0%} of the pictures are nearer to a photo than any two photos are to each other "
        f"(new photos would be in {found.chance:.0%} of cases); "
        f"pictures of one prompt differ {kept.value:.0%} as much as the frozen model's."
    )
    title = "Pictures are new" if level == "good" else "Overfitting to the photos"
    return Finding("overfitting", title, level, text, figures, pictures)


def drift(identity: Embedded, grid: Grid) -> Finding:
    """Language drift (section 4.4): "a class" without the identifier becomes the subject."""
    photos_RD, own_KD = identity.photos_RD, identity.own_KD
    tuned_K, frozen_K = (
        (rows[0] @ photos_RD.T).mean(1) for rows in (identity.classes_CKD, identity.frozen_classes_CKD)
    )
    way = float((own_KD @ photos_RD.T).mean() - frozen_K.mean())
    moved = estimate(alone(grid.subject, tuned_K - frozen_K))
    share = estimate(alone(grid.subject, (tuned_K - frozen_K) / way)) if way > 0 else Estimate(None, None, None, 0)
    figures = {"pres_drift": moved, "share_of_the_way": share}
    if share.value is None:
        text = "The subject itself is no nearer to the photos than the frozen model's class: nothing was learned yet."
        return Finding("drift", "Language drift", "unknown", text, figures)
    level = _level(-share.value, -DRIFT_WATCH, -DRIFT_BAD)
    text = f"Without the identifier the class moved {max(0.0, share.value):.0%} of the way towards the subject."
    if level == "good":
        return Finding("drift", "The class stayed itself", level, text, figures)
    return Finding("drift", "Language drift", level, f"{text} Fewer steps or a larger --prior-weight hold it.", figures)


def siblings(identity: Embedded, grid: Grid) -> list[Finding]:
    """Other classes become the subject, which no prior on the subject's own class holds; none where none was drawn."""
    photos_RD, count = identity.photos_RD, len(identity.classes_CKD) - 1
    if not count:
        return []
    own = float((identity.own_KD @ photos_RD.T).mean())
    tuned_CK, frozen_CK = (
        (rows[1:] @ photos_RD.T).mean(2) for rows in (identity.classes_CKD, identity.frozen_classes_CKD)
    )
    way_C1 = own - frozen_CK.mean(1, keepdims=True)
    if (way_C1 <= 0).any():
        text = "The subject itself is no nearer to the photos than other classes are: nothing was learned yet."
        return [Finding("siblings", "Other classes", "unknown", text, {})]
    share = estimate(alone(grid.subject, ((tuned_CK - frozen_CK) / way_C1).ravel()))
    moved = share.value or 0.0
    level = _level(-moved, -DRIFT_WATCH, -DRIFT_BAD)
    text = f"Pictures of {count} other classes moved {max(0.0, moved):.0%} of the way towards the subject."
    title = "Other classes stayed themselves"
    if level != "good":
        title = "Other classes turn into the subject"
        text += " Draw those without the adapter, or with less of it (--adapter RUN=0.6); with a frozen model's prior"
        text += " --prior-others 0.1 holds more of them."
    return [Finding("siblings", title, level, text, {"share_of_the_way": share})]


def broken_class(clip: Embedded, texts: Texts, grid: Grid) -> Finding:
    """Pictures of "a class" answer that word no longer, which PRES does not see: it asks for the subject in them."""
    title, classes_CD = "The class is still drawn", texts.classes_CD
    if len(classes_CD) == 1:
        return Finding("class", title, "unknown", "No sibling class was drawn to tell the class from.", {})
    own_D = classes_CD[0] - classes_CD[1:].mean(axis=0)
    tuned, frozen = (
        alone(grid.subject, rows_CKD[0] @ own_D) for rows_CKD in (clip.classes_CKD, clip.frozen_classes_CKD)
    )
    signal, kept = estimate(frozen), _ratio(tuned, frozen)
    figures = {"kept": kept, "frozen_signal": signal}
    if not _is_positive(signal) or kept.value is None:
        text = "The frozen model does not draw the class so that the encoder can tell it: nothing to compare with."
        return Finding("class", title, "unknown", text, figures)
    level = _level(kept.value, KEPT_GOOD, KEPT_BAD)
    text = f"Without the identifier the class shows {kept.value:.0%} as clearly as in the frozen model's pictures."
    if level == "good":
        return Finding("class", title, level, text, figures)
    return Finding(
        "class",
        "The class falls apart",
        level,
        f"{text} Fewer steps, --prior-dropout 0.1 or --prior-loss images hold it.",
        figures,
    )


def entanglement(colours_G3: Values, photo_colours_R3: Values, grid: Grid, prompts: Sequence[Prompt]) -> Finding:
    """Context-appearance entanglement (figure 9b): the subject's colour changes with the scene.

    Args:
        colours_G3: Mean colour (CIELAB) of the subject in each picture, from its mask or its middle.
        photo_colours_R3: The same of the photos.
        grid: What the pictures are.
        prompts: The prompts; those that ask for another property of the subject are left out.
    """
    keep_P = np.array([prompt.kind != "property" for prompt in prompts])
    per_prompt_P3 = colours_G3.reshape(len(grid.kinds), len(grid.seeds), 3).mean(1)[keep_P]
    shift_P = np.linalg.norm(per_prompt_P3 - np.median(per_prompt_P3, axis=0), axis=1)
    own_R = np.linalg.norm(photo_colours_R3 - np.median(photo_colours_R3, axis=0), axis=1)
    unit = float(own_R.mean())
    shift = estimate(alone(grid.subject, shift_P / unit)) if unit > 0 else Estimate(None, None, None, 0)
    if shift.value is None:
        text = "The photos show one colour alone: nothing to compare with."
        return Finding("entanglement", "Entanglement", "unknown", text, {"colour_shift": shift})
    level = _level(-shift.value, -COLOUR_WATCH, -COLOUR_BAD)
    text = f"Between scenes the subject's colour shifts {shift.value:.1f} times as far as between the photos."
    kept = np.flatnonzero(keep_P)
    worst = [int(kept[index]) * len(grid.seeds) for index in np.argsort(-shift_P)[:3]]
    if level == "good":
        return Finding("entanglement", "Its colours stay its own", level, text, {"colour_shift": shift})
    weakest = "; ".join(prompts[index // len(grid.seeds)].context for index in worst)
    return Finding(
        "entanglement", "Entangled with the scene", level, f"{text} Most: {weakest}.", {"colour_shift": shift}, worst
    )


def centre_colour(image: Image.Image, mask: Image.Image | None = None) -> Values:
    """Return the mean colour of the subject in CIELAB (L 0..100, a and b about -100..100), (3,).

    Args:
        image: The picture.
        mask: White where the subject is; without one its middle is taken.
    """
    rgb_HW3 = np.asarray(image.convert("RGB"), float) / 255
    if mask is not None:
        weight_HW = np.asarray(mask.convert("L").resize(image.size), float) / 255
    else:
        weight_HW = np.zeros(rgb_HW3.shape[:2])
        height, width = image.height, image.width
        top, left = int(height * (1 - CENTRE) / 2), int(width * (1 - CENTRE) / 2)
        weight_HW[top : height - top, left : width - left] = 1
    return np.asarray(np.average(lab(rgb_HW3).reshape(-1, 3), axis=0, weights=weight_HW.ravel() + 1e-9))


def lab(rgb: Values) -> Values:
    """Convert sRGB in [0, 1], (..., 3), to CIELAB under D65 (CIE 15:2004; IEC 61966-2-1)."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    scaled = linear @ to_xyz.T / to_xyz.sum(axis=1)
    root = np.where(scaled > (6 / 29) ** 3, np.cbrt(scaled), scaled / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = np.moveaxis(root, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def margin(pictures_GD: Rows, contexts_PD: Rows, grid: Grid) -> Values:
    """How much nearer each picture is to its own scene's words than to the other scenes'."""
    similarity_GP = pictures_GD @ contexts_PD.T
    own_G = similarity_GP[np.arange(len(pictures_GD)), grid.prompt_G]
    others_G = (similarity_GP.sum(axis=1) - own_G) / max(1, len(contexts_PD) - 1)
    return np.asarray(own_G - others_G, float)


def _ratio(one: Scores, two: Scores) -> Estimate:
    """Mean of the first over mean of the second, with an interval by drawing prompts, the same ones for both."""
    prompts = np.unique(one.prompt_N)
    means = np.array([[scores.value_N[scores.prompt_N == p].mean() for p in prompts] for scores in (one, two)])
    if np.isnan(means).any() or means[1].mean() <= 0:
        return Estimate(None, None, None, 0)
    value = float(means[0].mean() / means[1].mean())
    if len(prompts) < LEAST_PROMPTS:
        return Estimate(value, None, None, len(one.value_N))
    drawn = means[:, np.random.default_rng(0).integers(len(prompts), size=(RESAMPLES, len(prompts)))].mean(-1)
    ratios = drawn[0][drawn[1] > 0] / drawn[1][drawn[1] > 0]
    low, high = np.quantile(ratios, [0.025, 0.975])
    return Estimate(value, float(low), float(high), len(one.value_N), "prompts")


def _worst(value_G: Values, grid: Grid) -> list[int]:
    """Prompts by their mean, the least first."""
    return [int(index) for index in np.argsort(value_G.reshape(len(grid.kinds), -1).mean(axis=1))]


def _is_positive(figure: Estimate) -> bool:
    bound = figure.low if figure.low is not None else figure.value
    return bound is not None and bound > 0


def _level(value: float, good: float, bad: float) -> Level:
    return "good" if value >= good else "watch" if value >= bad else "bad"


def _worse(one: Level, two: Level) -> Level:
    order: list[Level] = ["good", "watch", "bad"]
    return max(one, two, key=order.index)
