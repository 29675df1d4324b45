"""The protocol of the paper as data: its 30 subjects with their classes, and its 2 x 25 prompts.

From dataset/prompts_and_classes.txt of https://github.com/google/dreambooth (CC-BY 4.0); Ruiz et al. 2023, 4.1.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from dreambooth.errors import UserError
from dreambooth.prompts import PLACE, PLACEHOLDER, article, of_class, placed
from dreambooth.yaml_files import reason

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

KIN = {
    "dog": (
        "dog puppy akita beagle bulldog chihuahua collie corgi dachshund dalmatian greyhound hound husky labrador "
        "malamute mastiff pomeranian poodle pug retriever rottweiler samoyed schnauzer shepherd shiba spaniel terrier"
    ),
    "cat": "cat kitten kitty siamese sphynx tabby",
    "duck": "duck duckling",
}
"""A class -> what nouns its animals go by, their breeds among them."""
LIVE_NOUNS = " ".join(KIN.values()) + (
    # people
    " baby boy child face girl human kid lady man person toddler woman "
    # mammals
    "alpaca animal ape badger bear beaver bison bull bunny calf camel chimpanzee chipmunk cow deer dolphin donkey "
    "elephant ferret fox giraffe goat gorilla hamster hedgehog hippo horse kangaroo koala lamb lemur "
    "leopard lion llama meerkat monkey moose mouse mule otter panda panther pig piglet pony rabbit raccoon rat "
    "reindeer rhino sheep skunk sloth squirrel stallion tiger whale wolf zebra "
    # birds
    "bird budgie canary chick chicken cockatiel cockatoo crow dove eagle falcon flamingo goose hawk hen "
    "hummingbird macaw magpie ostrich owl parakeet parrot peacock pelican penguin pigeon raven robin rooster seagull "
    "sparrow swan "
    # the rest, and those of tales
    "alligator butterfly chameleon crab crocodile dinosaur dragon fish frog gecko goldfish iguana lizard octopus "
    "shark snail snake spider toad tortoise turtle unicorn"
)
"""Nouns that take the paper's prompts for live subjects; every other is an object."""
LIFELESS = (
    # toys
    "balloon inflatable knitted plush plushie robot stuffed teddy toy "
    # what things are made of
    "bronze ceramic chocolate clay crochet felt glass gummy marble metal paper plastic porcelain rubber stone wooden "
    # other things that are called so
    "computer gaming hot wireless"
)
"""Words before such a noun that make a thing of it: "rubber duck", "computer mouse", "hot dog"."""
DETERMINERS = "a an the of this that these those my your his her its our their"
"""Where one of these stands before the subject, an own prompt is whole as it is written."""


@dataclass(frozen=True)
class Prompt:
    """A prompt of the protocol.

    Attributes:
        scene: What is asked of the subject, its place left open: "{} in the snow", "red {}".
        kind: "recontext", "accessory" or "property"; "own" in a user's list.
        takes_article: Whether an indefinite article belongs before the scene, as before "red {}" and not "the {}".
    """

    scene: str
    kind: str
    takes_article: bool = True

    def text(self, subject: str) -> str:
        """The whole prompt for a subject without its article: "[V] dog" gives "a [V] dog in the snow"."""
        filled = of_class(self.scene, subject)
        return article(filled) if self.takes_article else filled

    def named(self, called: str) -> str:
        """The whole prompt for a run: "ohwx dog" gives "a ohwx dog in the snow", as its photos were captioned."""
        filled = self.scene.replace(PLACE, called)
        if not self.takes_article:
            return filled
        return f"a {filled}" if self.scene.startswith(PLACE) else article(filled)

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
    """Whether a class takes the prompts for live subjects: its last word lives, and none before makes it a thing."""
    *before, noun = class_noun.lower().split()
    return noun in LIVE_NOUNS.split() and not set(LIFELESS.split()) & set(before)


def set_name(prompts: Sequence[Prompt]) -> str:
    """Return what a list of prompts is: "live", "object", or a user's "own"."""
    return next((name for name, known in SETS.items() if known == tuple(prompts)), "own")


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
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(
            f"no prompts in {path} ({reason(error)}): give live, object or a YAML list of prompts"
        ) from None
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise UserError(f"{path} holds no list of prompts: expected lines like '- a [V] dog in the snow'")
    return texts


def _own(text: str, nouns: Sequence[str], where: str) -> Prompt:
    """A prompt of a user's list; "a [V] dog in the snow" and "a {} in the snow" are the same."""
    given = placed(text, nouns)
    scene = re.sub(r"^an?\s+", "", given, flags=re.IGNORECASE)
    if scene.count(PLACE) != 1 or PLACEHOLDER.search(scene):
        mend = f"write it as 'a [V] {nouns[0]} in the snow'"
        raise UserError(f"the prompt '{text}' in {where} does not name the subject once: {mend}")
    before = scene.partition(PLACE)[0].lower().split()
    return Prompt(scene, "own", scene != given or not set(DETERMINERS.split()) & set(before))
