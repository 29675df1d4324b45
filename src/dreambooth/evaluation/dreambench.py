"""The protocol of the paper as data: its 30 subjects with their classes, and its 2 x 25 prompts.

From dataset/prompts_and_classes.txt of https://github.com/google/dreambooth (CC-BY 4.0); Ruiz et al. 2023, 4.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from dreambooth.errors import UserError
from dreambooth.prompts import PLACE, article, placed

SUBJECTS: dict[str, tuple[str, int]] = {
    "backpack": ("backpack", 6),
    "backpack_dog": ("backpack", 5),
    "bear_plushie": ("stuffed animal", 5),
    "berry_bowl": ("bowl", 6),
    "can": ("can", 6),
    "candle": ("candle", 5),
    "cat": ("cat", 5),
    "cat2": ("cat", 5),
    "clock": ("clock", 6),
    "colorful_sneaker": ("sneaker", 5),
    "dog": ("dog", 5),
    "dog2": ("dog", 6),
    "dog3": ("dog", 6),
    "dog5": ("dog", 5),
    "dog6": ("dog", 5),
    "dog7": ("dog", 5),
    "dog8": ("dog", 5),
    "duck_toy": ("toy", 4),
    "fancy_boot": ("boot", 6),
    "grey_sloth_plushie": ("stuffed animal", 5),
    "monster_toy": ("toy", 5),
    "pink_sunglasses": ("glasses", 6),
    "poop_emoji": ("toy", 5),
    "rc_car": ("toy", 5),
    "red_cartoon": ("cartoon", 4),
    "robot_toy": ("toy", 5),
    "shiny_sneaker": ("sneaker", 6),
    "teapot": ("teapot", 5),
    "vase": ("vase", 6),
    "wolf_plushie": ("stuffed animal", 5),
}
"""Folder -> class noun and number of photos."""

RECONTEXT = (
    "{} in the jungle",
    "{} in the snow",
    "{} on the beach",
    "{} on a cobblestone street",
    "{} on top of pink fabric",
    "{} on top of a wooden floor",
    "{} with a city in the background",
    "{} with a mountain in the background",
    "{} with a blue house in the background",
    "{} on top of a purple rug in a forest",
)
OBJECT_RECONTEXT = (
    "{} with a wheat field in the background",
    "{} with a tree and autumn leaves in the background",
    "{} with the Eiffel Tower in the background",
    "{} floating on top of water",
    "{} floating in an ocean of milk",
    "{} on top of green grass with sunflowers around it",
    "{} on top of a mirror",
    "{} on top of the sidewalk in a crowded street",
    "{} on top of a dirt road",
    "{} on top of a white rug",
)
ACCESSORIES = (
    "{} wearing a red hat",
    "{} wearing a santa hat",
    "{} wearing a rainbow scarf",
    "{} wearing a black top hat and a monocle",
    "{} in a chef outfit",
    "{} in a firefighter outfit",
    "{} in a police outfit",
    "{} wearing pink glasses",
    "{} wearing a yellow shirt",
    "{} in a purple wizard outfit",
)
PROPERTIES = ("red {}", "purple {}", "shiny {}", "wet {}", "cube shaped {}")

LIVE_NOUNS = (
    "animal baby bear bird boy bunny cat child chicken cow deer dog dragon duck elephant face fish fox "
    "frog girl goat hamster horse kitten lion man monkey mouse owl panda parrot person pig pony puppy "
    "rabbit rat sheep squirrel stallion tiger toddler turtle wolf woman"
)
"""Nouns that take the paper's prompts for live subjects; every other is an object."""


@dataclass(frozen=True)
class Prompt:
    """A prompt of the protocol.

    Attributes:
        scene: What is asked of the subject, its place left open: "{} in the snow", "red {}".
        kind: "recontext", "accessory" or "property"; "own" in a user's list.
    """

    scene: str
    kind: str

    def text(self, subject: str) -> str:
        """The whole prompt for a subject without its article: "[V] dog" gives "a [V] dog in the snow"."""
        return article(self.scene.replace(PLACE, subject))

    def named(self, called: str) -> str:
        """The whole prompt for a run: "ohwx dog" gives "a ohwx dog in the snow", as its photos were captioned."""
        return f"a {self.scene.replace(PLACE, called)}" if self.scene.startswith(PLACE) else self.text(called)

    @property
    def context(self) -> str:
        """What is asked without any subject: "in the snow", "red"."""
        return self.scene.replace(PLACE, "").strip()


def _kind(scenes: Sequence[str], kind: str) -> tuple[Prompt, ...]:
    return tuple(Prompt(scene, kind) for scene in scenes)


OBJECT_PROMPTS = _kind(RECONTEXT, "recontext") + _kind(OBJECT_RECONTEXT, "recontext") + _kind(PROPERTIES, "property")
LIVE_PROMPTS = _kind(RECONTEXT, "recontext") + _kind(ACCESSORIES, "accessory") + _kind(PROPERTIES, "property")
SETS = {"object": OBJECT_PROMPTS, "live": LIVE_PROMPTS}


def is_live(class_noun: str) -> bool:
    """Whether a class takes the prompts for live subjects; the last word of its noun decides ("stuffed animal" not)."""
    *before, noun = class_noun.lower().split()
    return noun in LIVE_NOUNS.split() and not {"stuffed", "toy", "plush"} & set(before)


def choose(class_noun: str, asked: str | None = None, others: Sequence[str] = ()) -> tuple[Prompt, ...]:
    """Return the prompts to evaluate with: those of the class's kind, or what was asked for.

    Args:
        class_noun: The subject's class.
        asked: "live", "object", or the path of a YAML list of own prompts, each with `[V]` or `{}` for the subject.
        others: Classes of the run's other subjects, which the list may name as well.

    Raises:
        UserError: There is no such list, or a prompt in it has no place for the subject or is there twice.
    """
    if asked is None:
        return SETS["live" if is_live(class_noun) else "object"]
    if asked in SETS:
        return SETS[asked]
    own = [_own(text, (class_noun, *others), asked) for text in _read(Path(asked))]
    twice = next((prompt.scene for at, prompt in enumerate(own) if prompt in own[:at]), None)
    if twice is not None:
        raise UserError(f"{asked} asks for '{twice}' twice: take one out, --count draws more pictures of each prompt")
    return tuple(own)


def _read(path: Path) -> list[str]:
    try:
        texts = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"no prompts in {path} ({reason}): give live, object or a YAML list of prompts") from None
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise UserError(f"{path} holds no list of prompts: expected lines like '- a [V] dog in the snow'")
    return texts


def _own(text: str, nouns: Sequence[str], where: str) -> Prompt:
    """A prompt of a user's list; "a [V] dog in the snow" and "a {} in the snow" are the same."""
    scene = placed(text, nouns).removeprefix("a ").removeprefix("an ")
    if scene.count(PLACE) != 1:
        mend = f"write it as 'a [V] {nouns[0]} in the snow'"
        raise UserError(f"the prompt '{text}' in {where} does not name the subject once: {mend}")
    return Prompt(scene, "own")
