"""What the paper does with a subject, as data: grids of prompts; and own lists in YAML.

The prompts are those of Ruiz et al. 2023 and of its list of prompts, or in their words where a figure alone has them.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dreambooth.errors import UserError
from dreambooth.evaluation import dreambench
from dreambooth.prompts import PLACE, PLACEHOLDER, article, of_class, placed
from dreambooth.yaml_files import reason

Kind = Literal["live", "object"]
FORM = "expected 'rows:' with 'label: a [V] dog in the snow' lines"


@dataclass(frozen=True)
class Cell:
    """A field of an application's grid.

    Attributes:
        row: Label of its row.
        column: Label of its column; empty where there is one column.
        template: The prompt; `{}` stands for the subject.
    """

    row: str
    column: str
    template: str

    @property
    def label(self) -> str:
        """Row and column."""
        return ", ".join(filter(None, (self.row, self.column)))

    def named(self, called: str) -> str:
        """The prompt for a run: "sks dog" gives "a sks dog in the snow", with the article of the run's own label."""
        return self.template.replace(PLACE, called)

    def plain(self, noun: str) -> str:
        """The prompt with the class noun alone, its article as grammar has it: "an elephant in the snow"."""
        return of_class(self.template, noun)


class Application(BaseModel):
    """A grid of prompts. Rows and columns go by their labels.

    Attributes:
        title: What the reader sees.
        source: Where the paper shows it.
        rows: Prompts for every class; `{}` stands for the subject.
        live: Further rows for living subjects; a row labelled as the class itself is left out.
        object: Further rows for objects.
        columns: What becomes of a row's prompt, for which `{}` stands here.
        keeps_colour: Whether the subject's colour should be the same in all cells.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str
    source: str = ""
    rows: dict[str, str] = Field(default_factory=dict)
    live: dict[str, str] = Field(default_factory=dict)
    object: dict[str, str] = Field(default_factory=dict)
    columns: dict[str, str] = Field({"": PLACE}, min_length=1)
    keeps_colour: bool = False

    def cells(self, noun: str, kind: Kind) -> tuple[Cell, ...]:
        """The cells for a class, row by row; none where the application is not for its kind."""
        own = self.live if kind == "live" else self.object
        rows = {**self.rows, **{label: text for label, text in own.items() if label != noun}}
        return tuple(
            Cell(row, column, frame.replace(PLACE, text))
            for row, text in rows.items()
            for column, frame in self.columns.items()
        )


Chosen = dict[str, tuple[Application, tuple[Cell, ...]]]


def _scenes(scenes: Iterable[str]) -> dict[str, str]:
    """Scenes of the protocol by what they ask: "in the snow", "red"."""
    return {scene.format("").strip(): f"a {scene}" for scene in scenes}


def _each(template: str, words: Iterable[str]) -> dict[str, str]:
    """A row for each word, put in place of `*`."""
    return {word: template.replace("*", word) for word in words}


APPLICATIONS: dict[str, Application] = {
    "recontext": Application(
        title="Recontextualisation",
        source="figures 7 and 12",
        rows=_scenes(dreambench.RECONTEXT),
        object=_scenes(dreambench.OBJECT_RECONTEXT),
        keeps_colour=True,
    ),
    "art": Application(
        title="Art renditions",
        source="figures 8 and 13",
        rows=_each("a painting of a {} in the style of *", ("Van Gogh", "Andy Warhol", "Vermeer", "Mondrian"))
        | _each("a statue of a {} in the style of *", ("Michelangelo", "Rodin")),
    ),
    "views": Application(
        title="Text-guided views",
        source="figures 8 and 15",
        rows=_each("a {} seen from the *", ("top", "bottom", "side", "back")),
    ),
    "properties": Application(
        title="Property modification",
        source="figures 7 and 17",
        rows=_scenes(dreambench.PROPERTIES)
        | _each("a * {}", ("blue", "yellow", "green", "pink", "transparent"))
        | _each("a {} made out of *", ("stone", "metal")),
    ),
    "accessories": Application(
        title="Accessories and outfits",
        source="figure 16",
        live=_scenes([*dreambench.ACCESSORIES, "{} in a witch outfit", "{} wearing a crown"]),
    ),
    "expressions": Application(
        title="Expressions",
        source="figure 14",
        live={
            mood: f"a {PLACE} with {article(mood)} expression"
            for mood in ("sad", "angry", "joyous", "sleeping", "screaming")
        },
    ),
    "hybrids": Application(
        title="Hybrids",
        source="figures 8 and 17",
        live={
            species: f"a cross of a {PLACE} and {article(species)}"
            for species in ("dog", "cat", "bear", "rabbit", "elephant", "pig", "frog", "duck")
        },
    ),
    "comic": Application(
        title="Comics and drawings",
        source="figure 18",
        rows=_scenes(("{} on the beach", "{} in the snow", "{} with a city in the background")),
        live={"time to eat": 'a {} grabbing a fork and a knife saying "time to eat"'},
        columns={
            "cartoon": "a cartoon of {}",
            "pencil sketch": "a pencil sketch of {}",
            "watercolor": "a watercolor painting of {}",
            "pixel art": "pixel art of {}",
        },
    ),
}
"""The paper's applications by name."""


def choose_all(asked: Sequence[str], nouns: Sequence[str], kind: Kind | None = None) -> list[Chosen]:
    """Find what was asked for, for each of several subjects what fits its kind, as `choose` does for one.

    Raises:
        UserError: As `choose` says, where an application is not for any of the subjects.
    """
    kinds = [kind or kind_of(noun) for noun in nouns]
    known = {each: _known(each, nouns) for each in asked}
    fits = [[each for each in asked if known[each].cells(noun, own)] for noun, own in zip(nouns, kinds, strict=True)]
    for each in asked:
        if not any(each in some for some in fits):
            raise UserError(_not_for(each, nouns[0], kinds[0]))
    return [choose(some, noun, own, nouns) for some, noun, own in zip(fits, nouns, kinds, strict=True)]


def choose(asked: Sequence[str], noun: str, kind: Kind | None = None, others: Sequence[str] = ()) -> Chosen:
    """Find what was asked for; return each application and its cells by the name of its folder.

    Args:
        asked: Names of `APPLICATIONS`, or paths of YAML lists of own prompts.
        noun: The subject's class.
        kind: Whether it lives; None: by the class.
        others: Classes of the run's other subjects, which an own list may name as well.

    Raises:
        UserError: There is no such application or list, it is not for this kind of subject, or is asked for twice.
    """
    kind = kind or kind_of(noun)
    chosen: Chosen = {}
    for each in asked:
        name = each if each in APPLICATIONS else f"own-{Path(each).stem}"
        if name in chosen:
            raise UserError(f"'{each}' is asked for twice, or has the name of another list: give each once")
        application = _known(each, (noun, *others))
        cells = application.cells(noun, kind)
        if not cells:
            raise UserError(_not_for(each, noun, kind))
        chosen[name] = application, cells
    return chosen


def _known(asked: str, nouns: Sequence[str]) -> Application:
    return APPLICATIONS[asked] if asked in APPLICATIONS else read(Path(asked), nouns)


def kind_of(noun: str) -> Kind:
    """Return what a class counts as."""
    return "live" if dreambench.is_live(noun) else "object"


def fitting(noun: str, kind: Kind) -> list[str]:
    """Return the names of the applications for a class."""
    return [name for name, each in APPLICATIONS.items() if each.cells(noun, kind)]


def read(path: Path, nouns: Sequence[str]) -> Application:
    """Read an own list from YAML: the fields of `Application`, or a plain list of prompts.

    Args:
        path: The file. In it the subject is `[V] dog`, `[V]` or `{}`.
        nouns: The classes that may follow `[V]` in it.

    Raises:
        UserError: There is no such file, it holds no list, or a prompt does not name the subject once.
    """
    if not path.is_file():
        near = difflib.get_close_matches(str(path), APPLICATIONS, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise UserError(f"no application '{path}': {hint}give {', '.join(APPLICATIONS)} or a YAML list of own prompts")
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"cannot read {path} ({reason(error)}): {FORM}") from None
    if isinstance(given, list):
        given = {"rows": {str(text): text for text in given}}
    if not isinstance(given, dict):
        raise UserError(f"{path} holds no list of prompts: {FORM}")
    try:
        found = Application(**{"title": path.stem, **given})
    except (ValidationError, TypeError) as error:
        raise UserError(f"{path} is no list of prompts ({_problem(error)}): {FORM}") from None
    return _checked(found, nouns, path)


def _checked(application: Application, nouns: Sequence[str], path: Path) -> Application:
    """The list with `{}` for the subject everywhere, each prompt with one place for it."""
    changed: dict[str, dict[str, str]] = {}
    for part in ("rows", "live", "object"):
        given: Mapping[str, str] = getattr(application, part)
        texts = {label: placed(text, nouns) for label, text in given.items()}
        for label, text in texts.items():
            if text.count(PLACE) != 1 or PLACEHOLDER.search(text):
                mend = f"write it as 'a [V] {nouns[0]} in the snow'"
                raise UserError(f"the prompt '{given[label]}' in {path} does not name the subject once: {mend}")
        changed[part] = texts
    for label, frame in application.columns.items():
        if frame.count(PLACE) != 1:
            mend = "write it as '{} in the snow'"
            raise UserError(f"the column '{label}' in {path} has not one place for the row's prompt: {mend}")
    if not any(changed.values()):
        raise UserError(f"{path} holds no prompts: {FORM}")
    return application.model_copy(update=changed)


def _not_for(asked: str, noun: str, kind: Kind) -> str:
    other, kinds = ("live", "living subjects") if kind == "object" else ("object", "objects")
    mend = f"use {', '.join(fitting(noun, kind))}, or say --kind {other}"
    return f"'{asked}' is for {kinds}, and '{noun}' counts as none: {mend}"


def _problem(error: ValidationError | TypeError) -> str:
    if isinstance(error, TypeError):
        return "a setting has no name"
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg'][:1].lower()}{first['msg'][1:]}"
