"""How well are the bundled subjects learned? `python -m dreambooth.toybox.learned` measures it against truth.

Every subject is trained with each method's defaults; runs that are there are used. Interrupted, the same command goes
on.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from dreambooth.errors import RunError, UserError
from dreambooth.evaluation import embeddings, metrics
from dreambooth.evaluation.dreambench import RECONTEXT
from dreambooth.evaluation.encoders import Encoder
from dreambooth.evaluation.judges import load_judges
from dreambooth.evaluation.material import Material, Plan, draw_all, gather
from dreambooth.files import write_json, write_text
from dreambooth.progress import Lines, Reporter, Silent, hush_libraries
from dreambooth.toybox import CLASSIFIERS, SUBJECTS
from dreambooth.toybox.model import classifiers
from dreambooth.toybox.model.classifiers import Classifier
from dreambooth.toybox.model.renders import to_pixels
from dreambooth.toybox.options import options
from dreambooth.toybox.stock import class_of, other_subject
from dreambooth.toybox.study import DEFAULT, Arm, Study

ARMS = (Arm(DEFAULT), Arm("full", {"method": "full"}))
COUNT = 4
"""Pictures of each context."""
STRANGER = 1
"""Seed of the other subject of each class; none of the bundle has it."""
WAY, CONTEXT = 0.7, -0.1
"""The bars: share of the way from the class to the real photos; most that contexts may suffer."""
SHEET = 8
"""Pictures of each kind on the sheet."""
SHOWN = ("context", "frozen", "seconds")


@dataclass(frozen=True)
class Learned:
    """What one training came to. A likeness is a mean cosine of the identity encoder's embeddings.

    Attributes:
        method: Name of the arm.
        subject: Name of the subject.
        seconds: Duration of the training, class images included.
        floor: Likeness of the frozen model's "a class" to the photos.
        likeness: Likeness of "a [V] class" to the photos.
        oracle: Likeness of the photos to one another.
        own: Likeness of "a [V] class" to renders of the subject that nothing was trained on.
        other: Likeness of "a [V] class" to the same kind of renders of another subject of the class.
        context: Share of the contexts asked for that the pictures of "a [V] class ..." show.
        frozen_context: Share that the frozen model's of "a class ..." show.
    """

    method: str
    subject: str
    seconds: float
    floor: float
    likeness: float
    oracle: float
    own: float
    other: float
    context: float
    frozen_context: float

    @property
    def way(self) -> float:
        """Share of the way from the frozen model's "a class" to the photos themselves."""
        return (self.likeness - self.floor) / (self.oracle - self.floor)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train and measure what has not been, then write the page and the sheet of pictures beside it."""
    parser = options("learned", __doc__, "docs/toybox-subjects.md", kept=False)
    parser.add_argument("--classifiers", type=Path, default=CLASSIFIERS, help="folder (default: what ships)")
    chosen = parser.parse_args(arguments)
    hush_libraries()
    try:
        study, reporter = Study(chosen.home, chosen.model), Lines(sys.stdout)
        classifier = classifiers.load(chosen.classifiers)
        cells = [(arm, subject) for subject in chosen.subjects for arm in ARMS]
        found = [measure(study, arm, subject, classifier, reporter) for arm, subject in cells]
    except (UserError, RunError) as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    write_text(chosen.out, write_up(found))
    sheet(study, chosen.subjects).save(chosen.out.with_suffix(".png"))
    return 0


def measure(study: Study, arm: Arm, subject: str, classifier: Classifier, reporter: Reporter) -> Learned:
    """Train one subject and hold its pictures against the truth, unless that has been done."""
    file = study.home / "learned" / f"{study.trained(arm, subject, 0).name}.json"
    if not file.is_file():
        run = study.learn(arm, subject, 0, reporter)
        material = gather(run, Plan(str(_contexts(study)), COUNT))
        draw_all([material], reporter)
        judge = load_judges(material.run).identity
        strangers = sorted((other_subject(class_of(subject), STRANGER, study.home / "others") / "truth").glob("*.png"))
        likenesses = _likenesses(material, judge, subject, strangers)
        shown = {
            "context": _shown(classifier, material, material.tuned.files),
            "frozen_context": _shown(classifier, material, material.frozen.files),
        }
        file.parent.mkdir(parents=True, exist_ok=True)
        taken = sum(run.info["times"].values())
        write_json(file, asdict(Learned(arm.name, subject, taken, **likenesses, **shown)))
    return Learned(**json.loads(file.read_text(encoding="utf-8")))


def write_up(found: Sequence[Learned]) -> str:
    """Return the page: the bars by method, then every training."""
    lines = [
        "# The bundled subjects, learned",
        "",
        "Written by `python -m dreambooth.toybox.learned`; one training a subject and method,",
        "with the method's defaults. A likeness is a mean cosine of the identity encoder's embeddings; `way` is how",
        'far "a [V] class" has come from the frozen model\'s "a class" (0) to what the photos are to one another (1).',
        f"Contexts are read by a classifier of renders, {len(RECONTEXT)} contexts x {COUNT} pictures each.",
        "",
        *_head(
            "method", "likeness rises", "way 0.7 or more", "mean way", "own truth nearer", "context, frozen", "longest"
        ),
        *(_summary(method, [each for each in found if each.method == method]) for method in _methods(found)),
        "",
        *_head("subject", "method", "class", "[V] class", "photos", "way", "own truth", "other subject", *SHOWN),
        *map(_row, found),
        "",
        'Each row of the sheet: three photos, then "a class" of the frozen model, "a [V] class" and "a [V] class" in'
        " contexts, after LoRA.",
        "",
        "![Photos, the frozen model's class, the subject learned](toybox-subjects.png)",
        "",
    ]
    return "\n".join(lines)


def sheet(study: Study, subjects: Sequence[str], side: int = 64) -> Image.Image:
    """Return photos and pictures of every subject, a row each."""
    rows = [list(_pictures(study, subject)) for subject in subjects]
    page = Image.new("RGB", (side * max(map(len, rows)), side * len(rows)), "white")
    for top, files in enumerate(rows):
        for left, file in enumerate(files):
            picture = Image.open(file).convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
            page.paste(picture, (left * side, top * side))
    return page


def _pictures(study: Study, subject: str) -> Iterator[Path]:
    material = gather(study.learn(ARMS[0], subject, 0, Silent()), Plan(str(_contexts(study)), COUNT))
    yield from sorted((SUBJECTS / subject / "photos").glob("*.png"))[:3]
    yield from material.frozen_class.files[0][: SHEET // 2]
    yield from material.tuned_class.files[0][: SHEET // 2]
    yield from [files[0] for files in material.tuned.files[:SHEET]]


def _contexts(study: Study) -> Path:
    path = study.home / "contexts.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, yaml.safe_dump([f"a {scene}" for scene in RECONTEXT]))
    return path


def _likenesses(material: Material, judge: Encoder, subject: str, stranger: Sequence[Path]) -> dict[str, float]:
    drawn_GD, plain_GD, photos_RD, own_RD, other_RD = (
        embeddings.embed_files(judge, files)
        for files in (
            material.tuned_class.files[0],
            material.frozen_class.files[0],
            [photo.path for photo in material.photos],
            sorted((SUBJECTS / subject / "truth").glob("*.png")),
            stranger,
        )
    )
    values = {
        "floor": metrics.to_references(plain_GD, photos_RD),
        "likeness": metrics.to_references(drawn_GD, photos_RD),
        "oracle": metrics.oracle(photos_RD, self_pairs=False),
        "own": metrics.to_references(drawn_GD, own_RD),
        "other": metrics.to_references(drawn_GD, other_RD),
    }
    return {name: float(each.mean()) for name, each in values.items()}


def _shown(classifier: Classifier, material: Material, files: Sequence[Sequence[Path]]) -> float:
    """Share of the pictures in which the classifier sees the context that was asked for."""
    flat = [(prompt.context, file) for prompt, some in zip(material.prompts, files, strict=True) for file in some]
    pixels_BCHW = to_pixels(np.stack([np.asarray(Image.open(file).convert("RGB")) for _, file in flat]))
    answers = classifiers.predict(classifier, pixels_BCHW)["context"].tolist()
    labels = classifier.labels["context"]
    return float(np.mean([labels[answer] == asked for answer, (asked, _) in zip(answers, flat, strict=True)]))


def _head(*columns: str) -> list[str]:
    return [f"| {' | '.join(columns)} |", "| --- " * len(columns) + "|"]


def _methods(found: Sequence[Learned]) -> list[str]:
    return list(dict.fromkeys(each.method for each in found))


def _summary(method: str, some: Sequence[Learned]) -> str:
    def share(hits: Sequence[bool]) -> str:
        return f"{sum(hits)} of {len(hits)}"

    context, frozen = (float(np.mean([getattr(each, name) for each in some])) for name in ("context", "frozen_context"))
    mark = "" if context - frozen >= CONTEXT else ", below the bar"
    cells = [
        method,
        share([each.likeness > each.floor for each in some]),
        share([each.way >= WAY for each in some]),
        f"{np.mean([each.way for each in some]):.2f}",
        share([each.own > each.other for each in some]),
        f"{context:.0%}, {frozen:.0%}{mark}",
        f"{max(each.seconds for each in some):.0f} s",
    ]
    return f"| {' | '.join(cells)} |"


def _row(each: Learned) -> str:
    likenesses = (each.floor, each.likeness, each.oracle, each.way, each.own, each.other)
    cells = [each.subject, each.method, *(f"{value:.2f}" for value in likenesses)]
    return f"| {' | '.join([*cells, f'{each.context:.0%}', f'{each.frozen_context:.0%}', f'{each.seconds:.0f}'])} |"


if __name__ == "__main__":
    sys.exit(main())
