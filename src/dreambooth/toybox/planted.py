"""Does the identifier search find out what was planted? `python -m dreambooth.toybox.planted` measures it.

The training captions bind 100 rare tokens to colours, shapes and objects, at rates from 1 in 100 to 1 in 10,000
(`world.priors`). Beside as many tokens that no caption has, the measured prior must order them by these rates.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dreambooth.identifiers import CLIP_TAIL
from dreambooth.toybox import BASE
from dreambooth.toybox.world.priors import BINDINGS, FREE, PLANTED

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dreambooth.identifier_search import Reader, Values

NOUNS = ("dog", "mug")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the rank correlation of planted rate and measured prior, as JSON."""
    parser = argparse.ArgumentParser(prog="python -m dreambooth.toybox.planted", description=__doc__)
    parser.add_argument("--text", type=Path, help="a CLIP or its text half; default: the packaged text encoder")
    parser.add_argument("--model", default="toybox", help="model that draws, for --seeds")
    parser.add_argument("--seeds", type=int, default=0, help="draw each token with so many seeds too")
    parser.add_argument("--class", dest="nouns", nargs="+", default=NOUNS)
    chosen = parser.parse_args(arguments)
    from dreambooth.progress import hush_libraries

    hush_libraries()
    from dreambooth.identifier_search import conditioning

    reader = read(chosen.text or BASE / "text_encoder")
    words = [*PLANTED, *unseen(reader[0], len(PLANTED))]
    for noun in chosen.nouns:
        means = {word: float(values.mean()) for word, values in conditioning([reader], words, noun).items()}
        print(json.dumps({"class": noun, "by": "text encoder"} | summary(means)))
        if chosen.seeds:
            print(
                json.dumps({"class": noun, "by": "pictures"} | summary(drawn(chosen.model, words, noun, chosen.seeds)))
            )
    return 0


def read(folder: Path) -> Reader:
    """Load the text half of a CLIP, which may be a whole one, with the toybox's tokenizer."""
    from transformers import AutoTokenizer, CLIPTextModel

    encoder = CLIPTextModel.from_pretrained(folder).float().eval().requires_grad_(False)
    return AutoTokenizer.from_pretrained(BASE / "tokenizer"), encoder


def unseen(tokenizer: PreTrainedTokenizerBase, count: int) -> list[str]:
    """Return rare words of 2 to 4 letters that no caption has: the toybox's `FREE`, then others, always the same."""
    tail = [token for token, index in tokenizer.get_vocab().items() if index >= CLIP_TAIL]
    rare = {token.removesuffix("</w>") for token in tail if re.fullmatch("[a-z]{2,4}</w>", token)}
    free = sorted(rare - {*PLANTED, *FREE})
    others = np.random.default_rng(0).choice(free, count - len(FREE), replace=False)
    return [*FREE, *map(str, others)]


def drawn(model: str, words: Sequence[str], noun: str, seeds: int) -> dict[str, float]:
    """Return each word's distance in pictures, the mean over seeds."""
    from dreambooth import identifier_search, targets
    from dreambooth.progress import Silent

    target = targets.find(model)
    assert target.source.card
    features = identifier_search.load_features(target.source.card.clip_encoder, "cpu")
    pipe = targets.load(target)
    apart_WS = identifier_search.picture_distances(pipe, words, noun, range(seeds), target.defaults, features, Silent())
    return dict(zip(words, apart_WS.mean(1).tolist(), strict=True))


def summary(prior: Mapping[str, float]) -> dict[str, Any]:
    """Return Spearman's correlations of the rates with the priors, and the median prior of each rate (0: unseen)."""
    rate_W = np.array([PLANTED[word].rate if word in PLANTED else 0.0 for word in prior])
    prior_W = np.array(list(prior.values()))
    kinds = {
        kind: [word not in PLANTED or PLANTED[word].kind == kind for word in prior]
        for kind in dict.fromkeys(binding.kind for binding in BINDINGS)
    }
    return {
        "spearman": _rounded(spearman(rate_W, prior_W)),
        "planted_only": _rounded(spearman(rate_W[rate_W > 0], prior_W[rate_W > 0])),
        "kinds": {kind: _rounded(spearman(rate_W[rows], prior_W[rows])) for kind, rows in kinds.items()},
        "medians": {f"{rate:g}": _rounded(float(np.median(prior_W[rate_W == rate]))) for rate in np.unique(rate_W)},
    }


def spearman(one_N: Values, two_N: Values) -> float:
    """Return Spearman's rank correlation; ties share the mean of their ranks, 0 where all of one side are equal."""
    one_N, two_N = _ranks(one_N), _ranks(two_N)
    if np.ptp(one_N) == 0 or np.ptp(two_N) == 0:
        return 0.0
    return float(np.corrcoef(one_N, two_N)[0, 1])


def _ranks(values_N: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    _, place_N, count_K = np.unique(values_N, return_inverse=True, return_counts=True)
    ranks_N: npt.NDArray[np.float64] = (np.cumsum(count_K) - (count_K - 1) / 2)[place_N]
    return ranks_N


def _rounded(value: float) -> float:
    return round(value, 3)


if __name__ == "__main__":
    sys.exit(main())
