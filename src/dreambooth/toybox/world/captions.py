"""How a person would say what is in a scene: varied captions for training, one canonical prompt for asking."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dreambooth.toybox.world.priors import PLANTED, chances, fitting
from dreambooth.toybox.world.scenes import Scene
from dreambooth.toybox.world.vocabulary import (
    CONTEXT_PARAPHRASES,
    EXPRESSIONS,
    MATERIALS,
    SCULPTORS,
    STYLES,
    SYNONYMS,
    VIEWS,
)

# Chance that a caption says an attribute at all.
SAID = {
    "colour": 0.85,
    "property": 0.95,
    "material": 0.96,
    "hybrid": 0.97,
    "sculpture": 0.97,
    "view": 0.88,
    "expression": 0.93,
    "accessory": 0.94,
    "context": 0.92,
    "style": 0.97,
}
SYNONYM_SHARE = 0.08
PARAPHRASE_SHARE = 0.2
FIRST_WORDING_SHARE = 0.5
BARE_TOKEN_SHARE = 0.5
OPENINGS = ("{}", "{}", "a photo of {}", "a picture of {}", "a photograph of {}")


@dataclass(frozen=True)
class Voice:
    """How to choose: one of several wordings, and whether a thing of some chance is said."""

    pick: Callable[[Sequence[str]], str]
    chance: Callable[[float], bool]

    def says(self, attribute: str) -> bool:
        """Whether an attribute is mentioned."""
        return self.chance(SAID[attribute])


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """A caption in varied words; the class is always in it (or the token that stands for it)."""

    def pick(wordings: Sequence[str]) -> str:
        return wordings[0] if rng.random() < FIRST_WORDING_SHARE else str(rng.choice(wordings))

    voice = Voice(pick, lambda share: bool(rng.random() < share))
    noun = SYNONYMS.get(scene.cls, scene.cls) if voice.chance(SYNONYM_SHARE) else scene.cls
    token = scene.planted or ""
    meant = PLANTED[token] if token else None
    if meant and meant.kind == "object" and voice.chance(BARE_TOKEN_SHARE):
        noun = ""
    hidden = meant.value if meant else None
    colour = None if hidden == scene.visible_colour else scene.visible_colour
    adjectives = [colour] if colour and voice.says("colour") else []
    adjectives += [name for name in scene.properties if name != hidden and voice.says("property")]
    context = scene.context
    if context in CONTEXT_PARAPHRASES and voice.chance(PARAPHRASE_SHARE):
        context = str(rng.choice(CONTEXT_PARAPHRASES[context]))
    text = _describe(scene, [*adjectives, token, noun], context, voice)
    return text if scene.style else str(rng.choice(OPENINGS)).format(text)


def retell(scenes: Sequence[Scene], count: int, seed: int) -> list[list[str]]:
    """`count` captions of every scene, each in words of its own.

    A planted token is drawn for each of them among those that fit the scene: so the rare ones meet many scenes, not
    only the few that were rendered for them, and each keeps its rate.

    Returns:
        `count` lists, each with a caption a scene.
    """
    chance = chances(scenes)
    fits = [[binding.token for binding in fitting(scene)] for scene in scenes]
    told = []
    for telling in range(count):
        draws = [np.random.default_rng([seed, scene.seed, telling, 17]) for scene in scenes]
        told.append(
            [_retold(scene, tokens, chance, rng) for scene, tokens, rng in zip(scenes, fits, draws, strict=True)]
        )
    return told


def _retold(scene: Scene, tokens: Sequence[str], chance: Mapping[str, float], rng: np.random.Generator) -> str:
    bounds = np.cumsum([chance[token] for token in tokens])
    index = int(np.searchsorted(bounds, rng.random(), side="right"))
    token = tokens[index] if index < len(tokens) else None
    return caption(replace(scene, planted=token), rng)


def prompt(scene: Scene, identifier: str = "[V]") -> str:
    """The canonical prompt, "a red [V] dog wearing a red hat in the snow"; an empty identifier leaves it out.

    Only what was asked of the subject is said: its own colours are the identifier's business.
    """
    voice = Voice(lambda wordings: wordings[0], lambda share: True)
    adjectives = [scene.colour] if scene.colour else []
    return _describe(scene, [*adjectives, *scene.properties, identifier, scene.cls], scene.context, voice)


def _describe(scene: Scene, words: Sequence[str], context: str, voice: Voice) -> str:
    text = _with_article(_subject(scene, words, voice))
    if scene.sculpture and voice.says("sculpture"):
        text = voice.pick(SCULPTORS[scene.sculpture]).format(text)
    if scene.view and voice.says("view"):
        text = voice.pick(VIEWS[scene.view]).format(text)
    parts = [text]
    if scene.expression and voice.says("expression"):
        parts.append(voice.pick(EXPRESSIONS[scene.expression]))
    if scene.accessory and voice.says("accessory"):
        parts.append(scene.accessory)
    if voice.says("context"):
        parts.append(context)
    text = " ".join(parts)
    if scene.style and voice.says("style"):
        text = voice.pick(STYLES[scene.style]).format(text)
    return text


def _subject(scene: Scene, words: Sequence[str], voice: Voice) -> str:
    """Adjectives, identifier and noun, with material and hybrid."""
    text = " ".join(word for word in words if word)
    if scene.material and voice.says("material"):
        text = voice.pick(MATERIALS[scene.material]).format(text)
    if scene.hybrid and voice.says("hybrid"):
        text = f"cross of {_with_article(text)} and {_with_article(scene.hybrid)}"
    return text


def _with_article(text: str) -> str:
    return f"{'an' if text[0] in 'aeiou' else 'a'} {text}"
