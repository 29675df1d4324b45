"""Identifier search: rare words, ranked by how much the frozen model already means by them.

A prior is a distance in units of the candidates' own: 1 is the word in their middle, so numbers compare within one
search only. `docs/identifiers.md` says how each distance was chosen and what it finds where the truth is known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from dreambooth import environment, families, identifiers, models, placing, prompts, targets
from dreambooth.errors import UserError
from dreambooth.evaluation import statistics
from dreambooth.evaluation.scoring import alone
from dreambooth.progress import Reporter, Silent
from dreambooth.samples import image_generator
from dreambooth.sampling import Sampling, draw

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Values = npt.NDArray[np.float64]
Reader = tuple["PreTrainedTokenizerBase", nn.Module]
"""A tokenizer and the text encoder that it serves."""
Features = Callable[[Sequence[Image.Image]], Tensor]
"""Pictures -> unit rows (N, D)."""

FIRST_SEEDS, MOST_SEEDS = 2, 16
KEPT = 4
POOL = 24
# Weight of the effect beside the row, chosen on the toybox's planted tokens (docs/identifiers.md).
EFFECT_POWER = 0.25
BATCH = 256
MOST_LETTERS, MOST_TOKENS = 12, 3
EVERY_COUNT = 99
"""As many tokens as a word may have for a tokenizer that reads rare words in pieces."""


@dataclass(frozen=True)
class Found:
    """A candidate and the prior it carries.

    Attributes:
        text: The word.
        ids: Its tokens in a prompt, of the model's first tokenizer.
        prior: Distance that it makes, 1 for the candidate in the middle; the less the better.
        low: Lower bound of the 95 % interval; None where fewer than 5 prompts or seeds tell it.
        high: Upper bound, or None.
        note: Why it is there, or why not to take it: "folklore", "folklore: splits into 2 tokens (z, wx)"; else "".
    """

    text: str
    ids: list[int]
    prior: float
    low: float | None
    high: float | None
    note: str = ""

    @classmethod
    def of(cls, text: str, ids: list[int], values_N: Values, note: str = "") -> Found:
        """Return a candidate whose prior was measured in some prompts, or with some seeds."""
        figure = statistics.estimate(alone(text, values_N))
        assert figure.value is not None, "every word was measured"
        return cls(text, ids, figure.value, figure.low, figure.high, note)


@dataclass(frozen=True)
class Round:
    """So many words are drawn with these seeds; the better half of them goes on."""

    words: int
    seeds: range

    @property
    def pictures(self) -> int:
        """Pictures to draw: the class's own with them."""
        return (self.words + 1) * len(self.seeds)


def search(
    model: str | None,
    class_noun: str,
    *,
    fast: bool = False,
    letters: int = 3,
    tokens: int = 1,
    encoder: str | None = None,
    reporter: Reporter | None = None,
) -> list[Found]:
    """Rank the rare words of a model by the prior they carry, the best first.

    Args:
        model: A base model as `--model` takes it. Default: the one for this machine.
        class_noun: The subject's class.
        fast: Measure by the text encoders alone; else the best of that are drawn and measured by their pictures too.
        letters: Most letters of a token.
        tokens: Most tokens of a word.
        encoder: Name or folder of the image encoder that compares pictures. Default: the CLIP that suits the model.
        reporter: Listens to the progress.

    Returns:
        Words that the pictures of most seeds speak for, then the others; within these by prior. Folklore is among
        them, and last where it is no good identifier.

    Raises:
        UserError: There is no such model or encoder, or no word fits.
    """
    reporter = reporter or Silent()
    _check(letters, tokens)
    target = targets.find(model or models.choose_for_device()[0])
    pipe, device = targets.load(target), environment.processes().device
    scattered = placing.gather(pipe)  # its text encoders are called by themselves
    words, notes = _candidates(pipe, class_noun, letters, tokens)
    reporter.say(f"{len(words)} candidates, read in {len(_templates(class_noun))} prompts each")
    measured = conditioning(readers(pipe), words, class_noun)
    if not fast:
        best = [word for word in rank(measured) if word not in notes]
        pool = [*best[:POOL], *notes]
        if scattered:
            placing.place(pipe, device)
        card = target.source.card
        features = load_features(encoder or (card.clip_encoder if card else models.CLIP_ENCODER), device.type)
        measured = in_pictures(pipe, pool, class_noun, target.defaults, features, reporter)
    tokenizer, _ = readers(pipe)[0]
    found = [
        Found.of(word, identifiers.token_ids(word, tokenizer), measured[word], notes.get(word, ""))
        for word in rank(measured)
    ]
    return sorted(found, key=lambda each: ":" in each.note)


def least(pipe: DiffusionPipeline, class_noun: str, words: Sequence[str]) -> str:
    """Return the word that the text encoders know least, of those encoders that read rare words whole; else the first.

    Args:
        pipe: The frozen model.
        class_noun: The subject's class.
        words: The candidates, at least one.
    """
    whole = [pipe.components[name] for name in families.of(pipe).WORD_TOKENIZERS]
    known = [reader for reader in readers(pipe) if reader[0] in whole]
    if not known or len(words) == 1:
        return words[0]
    return rank(conditioning(known, words, class_noun))[0]


def to_json(found: Sequence[Found]) -> list[dict[str, Any]]:
    """Return what was found as JSON values, the best first."""
    return [asdict(each) for each in found]


def rank(measured: Mapping[str, Values]) -> list[str]:
    """Order words: those with most measurements first, which got so far by their small priors; then the least prior."""
    return sorted(measured, key=lambda word: (-len(measured[word]), measured[word].mean()))


def rounds(words: int) -> list[Round]:
    """Plan successive halving: half of the words go on with twice the seeds, until few are left or the seeds are many.

    Karnin et al. 2013, "Almost Optimal Exploration in Multi-Armed Bandits", without its equal budget a round.
    """
    planned, seeds = [Round(words, range(FIRST_SEEDS))], FIRST_SEEDS
    while planned[-1].words > KEPT and 2 * seeds <= MOST_SEEDS:
        planned.append(Round(max(KEPT, -(-planned[-1].words // 2)), range(seeds, 2 * seeds)))
        seeds *= 2
    return planned


def readers(pipe: DiffusionPipeline) -> list[Reader]:
    """Return each tokenizer of a pipeline with the text encoder that it serves."""
    parts = pipe.components
    names = [name for name, part in parts.items() if name.startswith("tokenizer") and part is not None]
    return [(parts[name], parts[name.replace("tokenizer", "text_encoder")]) for name in names]


@torch.no_grad()
def conditioning(readers: Sequence[Reader], words: Sequence[str], class_noun: str) -> dict[str, Values]:
    """Measure how far words lie from what the text encoders make of any rare word.

    Returns:
        For each word a distance a prompt, 1 for the word in the middle.
    """
    templates = _templates(class_noun)
    parts = [_relative(_distances(*reader, words, templates)) for reader in readers]
    return dict(zip(words, np.mean(parts, axis=0), strict=True))


def in_pictures(
    pipe: DiffusionPipeline,
    words: Sequence[str],
    class_noun: str,
    sampling: Sampling,
    features: Features,
    reporter: Reporter,
) -> dict[str, Values]:
    """Measure how far pictures of "a [word] dog" lie from those of "a dog" with the same seeds.

    Args:
        pipe: The frozen model.
        words: The candidates; the worse half of them is dropped after each round.
        class_noun: The class.
        sampling: How pictures are drawn.
        features: What compares them: one minus the cosine.
        reporter: Is told the number of pictures before the first is drawn.

    Returns:
        For each word a distance a seed, 1 for the word in the middle of the first round.
    """
    planned = rounds(len(words))
    total = sum(each.pictures for each in planned)
    seeds = sum(len(each.seeds) for each in planned)
    reporter.say(f"{total} pictures: {len(words)} words with {FIRST_SEEDS} seeds, the best {KEPT} with {seeds}")
    reporter.stage("pictures", total)
    distances: dict[str, Values] = {word: np.zeros(0) for word in words}
    going_on = list(words)
    for each in planned:
        going_on = going_on[: each.words]
        apart_WS = picture_distances(pipe, going_on, class_noun, each.seeds, sampling, features, reporter)
        for word, apart_S in zip(going_on, apart_WS, strict=True):
            distances[word] = np.append(distances[word], apart_S)
        going_on = rank(distances)
    middle = np.median([distances[word][:FIRST_SEEDS].mean() for word in words])
    return {word: values_S / middle for word, values_S in distances.items()}


def picture_distances(
    pipe: DiffusionPipeline,
    words: Sequence[str],
    class_noun: str,
    seeds: Sequence[int],
    sampling: Sampling,
    features: Features,
    reporter: Reporter,
) -> Values:
    """Draw each word and the class alone with the same seeds; return one minus the cosine of their features, (W, S)."""
    texts = [prompts.class_prompt(class_noun), *(f"a {word} {class_noun}" for word in words)]
    generators = [image_generator(seed) for _ in texts for seed in seeds]
    rows = []
    for image in draw(pipe, [text for text in texts for _ in seeds], generators, sampling):
        rows.append(features([image])[0].double().numpy())
        reporter.advance()
    rows_TSD = np.stack(rows).reshape(len(texts), len(seeds), -1)
    apart_WS: Values = 1 - (rows_TSD[1:] * rows_TSD[:1]).sum(-1)
    return apart_WS


def load_features(encoder: str, device: str) -> Features:
    """Load the image encoder that compares pictures.

    Args:
        encoder: A name of `evaluation.encoders.SPECS`, or a folder.
        device: Where it computes.

    Raises:
        UserError: There is no such encoder.
    """
    from dreambooth.evaluation import encoders

    loaded = encoders.load(encoder, device)
    return lambda images: loaded.embed_images(torch.stack([loaded.prepare(image) for image in images]))


def _check(letters: int, tokens: int) -> None:
    for name, value, most in (("letters", letters, MOST_LETTERS), ("tokens", tokens, MOST_TOKENS)):
        if not 1 <= value <= most:
            raise UserError(f"--{name} {value}: give 1 to {most}")


def _candidates(
    pipe: DiffusionPipeline, class_noun: str, letters: int, tokens: int
) -> tuple[list[str], dict[str, str]]:
    """Return all words to measure, and notes on those that are there as folklore.

    Raises:
        UserError: No word fits.
    """
    everyone = prompts.tokenizers(pipe)
    whole = [pipe.components[name] for name in families.of(pipe).WORD_TOKENIZERS] or everyone
    words = identifiers.candidates(class_noun, whole, letters, tokens)
    words = [word for word in words if not identifiers.reading_problems(word, class_noun, everyone, EVERY_COUNT)]
    if not words:
        kind = f"no rare word of tokens of {letters} letters, {tokens} at most"
        raise UserError(f"{kind}, is read exactly by all tokenizers of this model: give more --letters or --tokens")
    notes, languages = {}, identifiers.languages(identifiers.FOLKLORE)
    for word in identifiers.FOLKLORE:
        problems = identifiers.reading_problems(word, class_noun, whole, tokens)
        problems += identifiers.meaning(languages.get(word))
        notes[word] = f"folklore: {problems[0]}" if problems else "folklore"
    return list(dict.fromkeys([*words, *notes])), notes


def _templates(class_noun: str) -> tuple[str, ...]:
    """Return the prompts that a word is read in, with `[V]`."""
    label = prompts.label(prompts.LABEL, class_noun)
    return (label, *prompts.scenes(label))


def _distances(
    tokenizer: PreTrainedTokenizerBase, encoder: nn.Module, words: Sequence[str], templates: Sequence[str]
) -> Values:
    """Return how far each word lies from the middle of all of them in each prompt, (W, T).

    What a word does to a prompt is soon as strong as it gets, while its row of the token table moves on with every
    caption that has it. So the row leads, and the effect tells rows apart that moved alike.
    """
    apart_WT = np.empty((len(words), len(templates)))
    for index, template in enumerate(templates):
        states_WD = F.normalize(_states(tokenizer, encoder, words, template), dim=-1)
        apart_WT[:, index] = (states_WD - states_WD.median(0).values).norm(dim=-1).cpu().numpy()
    prior_WT: Values = _row_distances(tokenizer, encoder, words)[:, None] * apart_WT**EFFECT_POWER
    return prior_WT


def _states(tokenizer: PreTrainedTokenizerBase, encoder: nn.Module, words: Sequence[str], template: str) -> Tensor:
    """Return the mean of the text encoder's output over all that follows the word in a prompt, float32 (W, D).

    There the word has done its work, and there prompts with and without it, or with words of more tokens, compare.
    """
    texts = [prompts.fill(template, [word]) for word in words]
    follow = _common_end(tokenizer(texts[0]).input_ids, tokenizer(template.replace("[V] ", "")).input_ids)
    device = next(encoder.parameters()).device
    found = []
    for start in range(0, len(texts), BATCH):
        batch = tokenizer(texts[start : start + BATCH], padding=True, padding_side="right", return_tensors="pt")
        batch = batch.to(device)
        output = encoder(input_ids=batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=True)
        states_BLD = output.get("last_hidden_state", output.hidden_states[-1]).float()
        place_BL = torch.arange(states_BLD.shape[1], device=device)[None] - batch.attention_mask.sum(1, keepdim=True)
        follows_BL1 = ((place_BL >= -follow) & (place_BL < 0))[..., None]
        found.append((states_BLD * follows_BL1).sum(1) / follow)
    return torch.cat(found)


def _common_end(one: Sequence[int], two: Sequence[int]) -> int:
    pairs = zip(reversed(one), reversed(two), strict=False)
    return next((index for index, (left, right) in enumerate(pairs) if left != right), min(len(one), len(two)))


def _row_distances(tokenizer: PreTrainedTokenizerBase, encoder: Any, words: Sequence[str]) -> Values:
    """Return how far each word's rows of the token table lie from the middle of all of them, (W,).

    A row that training met often has moved far (Land and Bartolo 2024, "Fishing for Magikarp", section 3); what a word
    of several tokens means is bound by the commonest of them.
    """
    ids = [identifiers.token_ids(word, tokenizer) for word in words]
    table_ND = encoder.get_input_embeddings().weight.float()
    middle_D = torch.stack([table_ND[row].mean(0) for row in ids]).median(0).values
    return np.array([float((table_ND[row] - middle_D).norm(dim=-1).max()) for row in ids])


def _relative(distance_WN: Values) -> Values:
    """Scale distances so that the word in the middle has 1."""
    scaled_WN: Values = distance_WN / np.median(distance_WN.mean(1))
    return scaled_WN
