"""The paper's scores and what guards them against copying and drift, each as rows: one value a picture.

Everything works on embeddings: rows of unit length, (N, D). A figure is the mean of its rows (`statistics.estimate`),
so anybody can recompute it. PRES (Ruiz et al. 2023, section 4.4) is `to_references` of pictures of "a [class noun]".
`docs/evaluation.md` gives the formulas, what others do instead, and the evidence for each default.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image

from dreambooth.errors import UserError

Rows = npt.NDArray[np.floating[Any]]
Values = npt.NDArray[np.float64]
Indices = npt.NDArray[np.integer[Any]]

TextRule = Literal["class", "identifier"]
Diversity = Literal["dino", "lpips-alex"]
Spread = Literal["nearest", "pairs"]

LPIPS_SIDE = 512
"""LPIPS depends on the resolution: every picture is brought to this side. The paper names neither net nor size."""
_UNIT = 1e-3


@dataclass(frozen=True)
class Options:
    """How scores are taken. The defaults are the paper's, or the closest to it that its text allows.

    Attributes:
        references: "all" (every photo), "fixed:K" (photo K alone), "held-out" (photos that were not trained on) or
            "centroid" (the direction of the photos' mean).
        text: What CLIP-T reads: the prompt with the class noun alone ("class"), or with the identifier too.
        scale: Factor of CLIP-T. CLIPScore's 2.5 (Hessel et al. 2021) is never applied unasked.
        diversity: What DIV is measured by. The paper's LPIPS needs the extra `lpips`.
        spread: What a picture's nearest photo is ranked among, see `copying`.
    """

    references: str = "all"
    text: TextRule = "class"
    scale: float = 1.0
    diversity: Diversity = "dino"
    spread: Spread = "nearest"

    def __post_init__(self) -> None:
        """Refuse what is no option, before any work.

        Raises:
            UserError: An option has a value that it cannot have.
        """
        _reference_rule(self.references)
        for name, kind in (("text", TextRule), ("diversity", Diversity), ("spread", Spread)):
            if getattr(self, name) not in get_args(kind):
                known = ", ".join(get_args(kind))
                raise UserError(f"the option {name} cannot be '{getattr(self, name)}': give one of {known}")
        if not self.scale > 0:
            raise UserError(f"the option scale cannot be {self.scale}: give a positive number, 1 for plain cosines")

    def as_json(self) -> dict[str, Any]:
        """Return the options for a manifest."""
        return asdict(self)


def to_references(generated_GD: Rows, real_RD: Rows, rule: str = "all", held_out_HD: Rows | None = None) -> Values:
    """Return each picture's mean cosine to the references, (G,) in [-1, 1].

    With the rule "all" its mean is DINO or CLIP-I, "average pairwise cosine similarity between generated and real
    images" (Ruiz et al. 2023, section 4.1), by whichever encoder made the rows.

    Args:
        generated_GD: Unit rows of the pictures.
        real_RD: Unit rows of the photos.
        rule: See `Options.references`.
        held_out_HD: Unit rows of photos that were not trained on; the rule "held-out" needs them.

    Raises:
        UserError: There is no such rule, or not the photos that it asks for.
    """
    return np.asarray(_cosines(generated_GD, _references(real_RD, rule, held_out_HD)).mean(axis=1))


def oracle(real_RD: Rows, self_pairs: bool) -> Values:
    """Return each photo's mean cosine to the photos, itself left out or not, (R,).

    With itself the mean m rises to m + (1 - m) / R. Without itself a single photo has no oracle: NaN.
    """
    cosine_RR = _cosines(real_RD, real_RD)
    return np.asarray(cosine_RR.mean(axis=1)) if self_pairs else _mean_of_others(cosine_RR)


def to_text(generated_GD: Rows, text_GD: Rows, scale: float = 1.0) -> Values:
    """Return the cosine between each picture and its text, times `scale`, (G,): the rows of CLIP-T.

    Args:
        generated_GD: Unit rows of the pictures, by an encoder that has text and pictures in one space.
        text_GD: Unit row of each picture's text.
        scale: See `Options.scale`.
    """
    if len(generated_GD) != len(text_GD):
        raise ValueError(f"{len(generated_GD)} pictures and {len(text_GD)} texts: give each picture its text")
    return np.asarray(scale * np.einsum("gd,gd->g", _checked(generated_GD), _checked(text_GD)))


def diversity(generated_GD: Rows, prompt_G: Indices) -> Values:
    """Return each picture's mean distance, 1 - cosine, to the other pictures of its prompt, (G,) in [0, 2].

    The mean of a prompt's rows is the mean over its unordered pairs: DIV (Ruiz et al. 2023, section 4.4) by an identity
    encoder. A prompt's only picture has NaN.
    """
    rows_GD = _checked(generated_GD)
    return _within_prompts(prompt_G, lambda at: 1 - rows_GD[at] @ rows_GD[at].T)


def lpips_diversity(images: Sequence[Image.Image], prompt_G: Indices, distance: LpipsDistance) -> Values:
    """Return each picture's mean LPIPS distance to the other pictures of its prompt, (G,): the paper's DIV.

    Args:
        images: The pictures.
        prompt_G: The prompt of each.
        distance: From `load_lpips`.
    """
    return _within_prompts(prompt_G, lambda at: distance([images[index] for index in at]))


@dataclass(frozen=True)
class Copying:
    """How near pictures come to the photos, measured by how near the photos come to one another.

    Attributes:
        photo_G: Index of the most similar photo.
        similarity_G: Cosine to it.
        percentile_G: Its rank in the photos' own spread, 0..100, ties counting half. For a picture that is no nearer
            to the photos than they are to one another it is about 50 on average. NaN where there is a single photo.
        excess_G: Similarity minus the largest between two photos. Above 0 the picture is nearer to a photo than any
            two photos are to each other. NaN where there is a single photo.
        chance: Share of pictures that have an excess above 0 though they copy nothing: of R photos and one more, the
            nearest two include the last with the probability 2 / (R + 1). More of them are copies.
    """

    photo_G: npt.NDArray[np.intp]
    similarity_G: Values
    percentile_G: Values
    excess_G: Values
    chance: float


def copying(generated_GD: Rows, real_RD: Rows, spread: Spread = "nearest") -> Copying:
    """Rank each picture's similarity to its nearest photo within the photos' own spread.

    Args:
        generated_GD: Unit rows of the pictures.
        real_RD: Unit rows of the photos trained on.
        spread: "nearest", each photo's similarity to its nearest other photo: like is compared with like, a largest
            with largest ones. Or "pairs", all pairs of different photos: stricter, since the largest of several
            similarities is ranked among single ones.
    """
    cosine_GR, own = _cosines(generated_GD, real_RD), _own_similarities(real_RD, spread)
    photo_G, nearest_G, chance = cosine_GR.argmax(axis=1), cosine_GR.max(axis=1), 2 / (len(real_RD) + 1)
    if not own.size:
        unknown_G = np.full(len(nearest_G), np.nan)
        return Copying(photo_G, nearest_G, unknown_G, unknown_G, chance)
    below_G = np.searchsorted(own, nearest_G, side="left") + np.searchsorted(own, nearest_G, side="right")
    return Copying(photo_G, nearest_G, 50 * below_G / len(own), nearest_G - own[-1], chance)


def held_out_gap(generated_GD: Rows, trained_RD: Rows, held_out_HD: Rows) -> Values:
    """Return each picture's mean cosine to the photos trained on minus that to photos held out, (G,).

    Near 0 where the subject was learned; above it where the photos were. The photos' own sets differ too, so compare
    with the gap of the frozen model's pictures (`statistics.compare`).
    """
    return to_references(generated_GD, trained_RD) - to_references(generated_GD, held_out_HD)


def change(tuned_GD: Rows, frozen_GD: Rows, real_RD: Rows) -> Values:
    """Return how much nearer to the photos tuning brought each picture, (G,): tuned minus frozen, same prompt and seed.

    Of pictures of "a [class noun]" or of a sibling class it is language drift, the rise of PRES. Of pictures and photos
    with the subject filled out it is the similarity of backgrounds alone, beyond what the prompts bring about.
    """
    return _paired(to_references(tuned_GD, real_RD), to_references(frozen_GD, real_RD))


def diversity_change(tuned_GD: Rows, frozen_GD: Rows, prompt_G: Indices) -> Values:
    """Return how much farther tuning moved each picture from the others of its prompt, (G,); below 0 variety was lost.

    Args:
        tuned_GD: Unit rows of the tuned model's pictures.
        frozen_GD: Unit rows of the frozen model's, of the same prompts and seeds.
        prompt_G: The prompt of each.
    """
    return _paired(diversity(tuned_GD, prompt_G), diversity(frozen_GD, prompt_G))


LpipsDistance = Callable[[Sequence[Image.Image]], Values]
"""Takes N pictures, gives their distances (N, N)."""


def load_lpips(device: str = "cpu") -> LpipsDistance:
    """Load LPIPS on AlexNet (Zhang et al. 2018), as the package `lpips` gives it.

    Returns:
        A function of N pictures that gives their distances, (N, N). Pictures are brought to `LPIPS_SIDE`.

    Raises:
        UserError: The extra is not installed, or its weights cannot be had.
    """
    try:
        module = importlib.import_module("lpips")
    except ImportError as error:
        mend = "pip install 'dreambooth[lpips]', or measure diversity by dino"
        raise UserError(f"LPIPS cannot be loaded ({error}): {mend}") from None
    try:
        network = module.LPIPS(net="alex", verbose=False).to(device).eval()
    except OSError as error:
        mend = "let torchvision fetch them once, or measure diversity by dino"
        raise UserError(f"the weights of LPIPS cannot be had ({error}): {mend}") from None
    return lambda images: _lpips_distances(network, images, device)


def _lpips_distances(network: Any, images: Sequence[Image.Image], device: str) -> Values:
    import torch

    size = (LPIPS_SIDE, LPIPS_SIDE)
    resized = [np.asarray(image.convert("RGB").resize(size, Image.Resampling.BICUBIC)) for image in images]
    pixels_NCHW = torch.from_numpy(np.stack(resized)).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
    one, two = np.triu_indices(len(images), 1)
    distance_NN = np.zeros((len(images), len(images)))
    for a, b in zip(one, two, strict=True):
        with torch.no_grad():
            distance_NN[a, b] = network(pixels_NCHW[[a]], pixels_NCHW[[b]]).item()
    return distance_NN + distance_NN.T


def _checked(rows_ND: Rows) -> Values:
    """The rows in float64, refused where one is not of unit length."""
    checked_ND = np.asarray(rows_ND, dtype=np.float64)
    if checked_ND.ndim != 2 or not checked_ND.size:
        raise ValueError(f"embeddings have the shape {checked_ND.shape}: give rows (N, D)")
    wrong = np.flatnonzero(~(np.abs(np.linalg.norm(checked_ND, axis=1) - 1) < _UNIT))
    if wrong.size:
        raise ValueError(f"row {wrong[0]} of the embeddings is not of unit length")
    return checked_ND


def _cosines(one_ND: Rows, two_MD: Rows) -> Values:
    return _checked(one_ND) @ _checked(two_MD).T


def _reference_rule(rule: str) -> tuple[str, int]:
    """Split a rule into its name and the photo that it fixes."""
    name, _, number = rule.partition(":")
    if rule in ("all", "held-out", "centroid"):
        return rule, 0
    if name == "fixed" and number.isdecimal():
        return name, int(number)
    raise UserError(f"no rule of references is called '{rule}': give all, held-out, centroid or fixed:K")


def require_reference(rule: str, count: int, held_out: int) -> None:
    """Refuse a rule of references that asks for photos which there are not.

    Args:
        rule: See `Options.references`.
        count: How many photos there are.
        held_out: How many that were not trained on.

    Raises:
        UserError: It does.
    """
    name, photo = _reference_rule(rule)
    if name == "fixed" and photo >= count:
        raise UserError(f"there is no photo {photo} among {count}: give fixed:0 to fixed:{count - 1}")
    if name == "held-out" and not held_out:
        raise UserError(
            "the rule 'held-out' needs photos that were not trained on: give --held-out FOLDER, or use 'all'"
        )


def _references(real_RD: Rows, rule: str, held_out_HD: Rows | None) -> Rows:
    name, photo = _reference_rule(rule)
    require_reference(rule, len(real_RD), 0 if held_out_HD is None else len(held_out_HD))
    if name == "held-out" and held_out_HD is not None:
        return held_out_HD
    if name == "fixed":
        return real_RD[photo : photo + 1]
    if name == "centroid":
        mean_1D = _checked(real_RD).mean(axis=0, keepdims=True)
        return np.asarray(mean_1D / np.linalg.norm(mean_1D))
    return real_RD


def _mean_of_others(values_NN: Values) -> Values:
    """Mean of each row without its diagonal entry; NaN where there is no other."""
    count = len(values_NN)
    if count < 2:
        return np.full(count, np.nan)
    return np.asarray((values_NN.sum(axis=1) - values_NN.diagonal()) / (count - 1))


def _within_prompts(prompt_G: Indices, distances: Callable[[npt.NDArray[np.intp]], Values]) -> Values:
    values_G = np.full(len(prompt_G), np.nan)
    for prompt in np.unique(prompt_G):
        at = np.flatnonzero(prompt_G == prompt)
        values_G[at] = _mean_of_others(distances(at))
    return values_G


def _own_similarities(real_RD: Rows, spread: Spread) -> Values:
    """The photos' similarities to one another in rising order; none where there is a single photo."""
    cosine_RR = _cosines(real_RD, real_RD)
    if len(cosine_RR) < 2:
        return np.empty(0)
    if spread == "pairs":
        return np.sort(cosine_RR[np.triu_indices(len(cosine_RR), 1)])
    np.fill_diagonal(cosine_RR, -np.inf)
    return np.sort(cosine_RR.max(axis=1))


def _paired(tuned_G: Values, frozen_G: Values) -> Values:
    if len(tuned_G) != len(frozen_G):
        raise ValueError(f"{len(tuned_G)} tuned and {len(frozen_G)} frozen pictures: draw the same prompts and seeds")
    return tuned_G - frozen_G
