"""Which method is best? `python -m dreambooth.toybox.methods` measures them all on the toybox: docs/methods.md.

All arms are screened on two subjects; the best go on to six subjects with three seeds each, and their curves over the
steps are measured. Interrupted, the same command goes on.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from dreambooth.evaluation import statistics
from dreambooth.evaluation.scoring import alone
from dreambooth.files import write_text
from dreambooth.progress import Lines, hush_libraries
from dreambooth.recipe import Recipe
from dreambooth.toybox.options import options
from dreambooth.toybox.reproduction import OURS, PAPER, SUBJECT_NAMES, WORDS, verdict
from dreambooth.toybox.study import DEFAULT, Arm, Cost, Rows, Study, balances, difference
from dreambooth.training import train

SCENES = ("in the forest", "in the desert", "at night", "on a white background", "on the moon", "in the sky")
"""What the toybox knows of, and no prompt asks for by which it is judged."""
UNNAMED = {"prior_loss": "distilled", "prior_dropout": 0.1}
ARMS = (
    Arm(OURS),
    Arm("attention alone", {"targets": "attention"}),
    Arm("rank 4", {"rank": 4}),
    Arm("rank 64", {"rank": 64}),
    Arm("rsLoRA", {"adapter": "rslora", "rank": 64}),
    Arm("DoRA", {"adapter": "dora"}),
    Arm("LoKr", {"adapter": "lokr"}),
    Arm("LoHa", {"adapter": "loha"}),
    Arm("OFT", {"adapter": "oft"}),
    Arm("HRA, attention alone", {"adapter": "hra", "rank": 8, "targets": "attention"}),
    Arm("T-LoRA", {"min_rank": 8}),
    Arm("text encoder too", {"train_text_encoder": True}),
    Arm("pivotal", {"method": "pivotal"}),
    Arm("textual inversion", {"method": "textual-inversion", "steps": 400}),
    Arm("full", {"method": "full"}),
    Arm("full, text encoder too", {"method": "full", "train_text_encoder": True}),
    Arm("full, L2 to base", {"method": "full", "l2_to_base": 1.0, "prior_weight": 0.0}),
    Arm("no prior", {"prior_weight": 0.0}),
    Arm("prior 0.3", {"prior_weight": 0.3}),
    Arm("25 class images", {"prior_count": 25}),
    Arm("real class images", others=20),
    Arm("class images, a tenth unnamed", {"prior_dropout": 0.1}),
    Arm("class images in scenes", {"prior_scenes": SCENES}),
    Arm("distilled prior", {"prior_loss": "distilled", "prior_dropout": 0.0}),
    Arm("distilled prior, a tenth unnamed", UNNAMED),
    Arm("parent prior", {"prior_loss": "parent", "prior_dropout": 0.0}),
    Arm("parent prior, a tenth unnamed", {"prior_loss": "parent", "prior_dropout": 0.1}),
    Arm("DCO", {"dco_beta": 1000.0}),
    Arm("min-SNR 5", {"min_snr": 5.0}),
    Arm("EMA 0.99", {"ema": 0.99}),
    Arm("cosine", {"schedule": "cosine"}),
    Arm("crops", {"crops": 2}),
    Arm("scales", {"scales": 2}),
    Arm("masked", masked=True),
    Arm("flip", {"flip": True}),
)
"""What an arm does not name is the paper's: class images and as many steps as the default LoRA wants with them."""
DRAWN = (
    (OURS, (0.4, 0.7, 1.0)),
    ("DCO", (0.4,)),
    ("distilled prior", (1.0,)),
)
"""Names of arms that are drawn from by consistency guidance too, and its shares."""
BECAME = Arm(DEFAULT, {**UNNAMED, "steps": 400})
"""The distilled prior, a tenth unnamed, in 400 steps."""
IMAGE_STEPS = (Arm(OURS), *(Arm(f"{count} steps a class image", {"prior_steps": count}) for count in (5, 10, 50)))
"""How finely class images are drawn; the paper's arm has the preset's 25 steps."""
HELD = (
    *(arm for arm in ARMS if arm.name in (OURS, "no prior", "parent prior, a tenth unnamed")),
    BECAME,
    *(
        replace(
            BECAME, name=f"{share:.0%} the photos as other things", settings={**BECAME.settings, "prior_others": share}
        )
        for share in (0.1, 0.2, 0.4)
    ),
)
"""What is done for other classes than the subject's, which no prior on its own class holds."""
SIBLINGS = 2
"""Other classes that are looked at."""
PRIORS = (
    "real class images",
    *("distilled prior", "distilled prior, a tenth unnamed"),
    *("parent prior", "parent prior, a tenth unnamed"),
)
"""Compared with class images to the end, whatever the screening says."""
SCREENED, SEEDS, FINALISTS = 2, 3, 6
PACED, ROUNDS = 20, 3
"""Steps, and how often both are timed."""
STEPS = (150, 300, 600, 1200)
METRICS = ("balance", "dino", "truth", "clip_t", "pres", "div", "copying")
KEPT = ("class_kept", "class_clip_t")
"""What is left of the class itself."""
LESS = ("pres", "copying")
"""Metrics of which less is better."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what has not been, then write the page."""
    parser = options("methods", __doc__, "docs/methods.md", subjects=SUBJECT_NAMES, seeds=SEEDS)
    parser.add_argument("--screen", action="store_true", help="stop after the screening")
    chosen = parser.parse_args(arguments)
    hush_libraries()
    reporter = Lines(sys.stdout)
    study = Study(chosen.home, chosen.model, workers=chosen.workers, archive=chosen.archive, settings=PAPER)
    screening = chosen.subjects[:SCREENED]
    screened = _balanced(study.run(ARMS, screening, [0], reporter))
    paces = {arm.name: pace(study, arm, screening[0]) for arm in ARMS}
    megabytes = {arm.name: study.cost(arm, screening[0], 0).megabytes for arm in ARMS}
    judged = replace(study, asked=KEPT)
    parts = [
        screen_part(screened, paces, megabytes),
        drawn_part(_balanced(judged.run(drawn(), screening, [0], reporter))),
    ]
    if not chosen.screen:
        one_each = (chosen.subjects, [0], reporter)
        parts.append(image_part(_balanced(judged.run(IMAGE_STEPS, *one_each))))
        parts.append(held_part(_balanced(replace(judged, siblings=SIBLINGS).run(HELD, *one_each))))
        arms = last(best(screened))
        final = _balanced(judged.run([BECAME, *arms], chosen.subjects, range(chosen.seeds), reporter))
        parts.append(final_part(final, f"{len(chosen.subjects)} subjects x {chosen.seeds} seeds"))
        curves = study.run([each for arm in arms for each in along(arm)], screening, [0], reporter)
        parts.append(curve_part(arms, curves))
    write_text(chosen.out, "\n".join([HEAD, *parts]))
    return 0


HEAD = """# Methods, measured

Written by `python -m dreambooth.toybox.methods`, in about 5 core-hours. DreamBooth is here the paper's prior, on class
images, with a LoRA and 600 steps; every other arm is that with the one change that names it. All are trained on the
[toybox](toybox.md) and judged by ten prompts of the paper's lists, two pictures each. DINO stands for the toybox's
identity encoder, CLIP for its CLIP: no figure compares with the paper's own. `truth` is the likeness to renders of the
subject that nothing was trained on. `balance` is the mean of two shares: the way in DINO from the frozen model's class
to the photos among themselves, and CLIP-T over the frozen model's. Of `pres` and `copying` less is better. The time of
a step is over that of DreamBooth's, beside which it was measured. Learning rates are those of the default LoRA: an
adapter that wants another one is not at its best here. Real class images are photos of 20 other subjects of the class,
five of each.

Of the class itself two figures tell, on pictures of "a [class noun]": `class_clip_t`, whether they answer that word,
and `class_kept`, their likeness in CLIP to the frozen model's of the same seeds. PRES asks for the subject in them, and
does not see a class that falls apart.

It does fall apart where the class is held to the frozen model's predictions, on class images (distilled prior) or on
the photos as pictures of the class (parent prior), although each prediction stays near to what it was. Guidance
magnifies the difference between two predictions, with a prompt and without, and only the one with a prompt is held.
Where a tenth of the prior has no prompt (`--prior-dropout 0.1`), both are, and the class stays whole.

The default of a LoRA is the distilled prior, a tenth unnamed, in 400 steps: more like the subject than the paper's
prior in 600, no worse at following prompts, its class no less whole; but photos are copied somewhat more, and the class
has moved a little more towards the subject. The parent prior, a tenth unnamed, has the greatest balance and needs no
class images, and pays for it with prompts that are followed less and photos that are copied more.

No prior on the subject's class holds another: of the way to the subject, two others go a third, whatever the prior, and
two thirds without one. Where the prior also takes the photos for other things, of which those two are none
(`--prior-others`), they go half as far; prompts are followed less, photos copied more, and the class itself moves. So
it is off by default.

Class images of 10 steps teach as much as those of 25 or 50.

Consistency guidance moves along the front after training: with a share of 0.4 DreamBooth's pictures are more varied,
copy less and follow prompts better, and are less like the subject; with 1 the other way round. Photos at other scales
want a model that knows the words for them and has pixels to spare: the toybox has neither, and learns less of them.
"""


def best(screened: Mapping[str, Rows], count: int = FINALISTS) -> list[Arm]:
    """Return the paper's and the others of the greatest balance, `count` in all."""
    others = sorted(ARMS[1:], key=lambda arm: _mean(screened[arm.name], "balance"), reverse=True)
    return [ARMS[0], *others[: count - 1]]


def last(finalists: Sequence[Arm]) -> list[Arm]:
    """Return what is measured on all subjects: the finalists and every prior."""
    return [*finalists, *(arm for arm in ARMS if arm.name in PRIORS and arm not in finalists)]


def drawn() -> list[Arm]:
    """Return the arms of `DRAWN`, each as it is and by consistency guidance."""
    named = {arm.name: arm for arm in ARMS}
    return [
        each for name, shares in DRAWN for each in (named[name], *(_guided(named[name], share) for share in shares))
    ]


def _guided(arm: Arm, share: float) -> Arm:
    name = "" if arm.name == OURS else f"{arm.name}, "
    return replace(arm, name=f"{name}consistency guidance {share:g}", settings={**arm.settings, "consistency": share})


def along(arm: Arm) -> list[Arm]:
    """Return one run of an arm, looked at after each of `STEPS`."""
    return [
        replace(arm, name=_at(arm, steps), settings={**arm.settings, "steps": steps}, chain=f"{arm.name} over steps")
        for steps in STEPS
    ]


def pace(study: Study, arm: Arm, subject: str) -> float:
    """Return how long an arm's step takes over DreamBooth's: the median of rounds in which they take turns."""

    def made() -> tuple[Rows, Cost]:
        own, other = paced(study, arm, subject), paced(study, ARMS[0], subject)
        rounds = [_seconds_a_step(own) / _seconds_a_step(other) for _ in range(ROUNDS)]
        return {"pace": alone(subject, np.array(rounds))}, Cost(0, 0)

    key = f"pace-{PACED}-{ROUNDS}-{study.key(ARMS[0], subject, 0)}-{study.key(arm, subject, 0)}"
    return float(np.median(study.recall(f"{arm.name}, pace", subject, 0, key, made)["pace"].value_N))


def paced(study: Study, arm: Arm, subject: str) -> Recipe:
    """Return the run of an arm by which its steps are timed."""
    recipe = study.recipe(arm, subject, 0)
    average = recipe.ema and 0.5  # of so few steps; it costs the same
    return recipe.model_copy(update={"steps": PACED, "save_every": PACED, "ema": average})


def _seconds_a_step(recipe: Recipe) -> float:
    with tempfile.TemporaryDirectory() as home:
        times: dict[str, float] = train(recipe, Path(home) / "run").info["times"]
    return times["training"] / PACED


def screen_part(screened: Mapping[str, Rows], paces: Mapping[str, float], megabytes: Mapping[str, float]) -> str:
    """Return the table of all arms, the greatest balance first."""
    order = sorted(screened, key=lambda name: _mean(screened[name], "balance"), reverse=True)
    lines = [
        f"## All of them, {SCREENED} subjects, one seed",
        "",
        f"| | {' | '.join(METRICS)} | time of a step | MB a step |",
        "| --- |" + " --- |" * (len(METRICS) + 2),
    ]
    for name in order:
        figures = [f"{_mean(screened[name], metric):.3f}" for metric in METRICS]
        taken = f"{paces[name]:.2f} | {megabytes[name]:.0f}"
        lines.append(f"| {name} | {' | '.join(figures)} | {taken} |")
    return "\n".join([*lines, ""])


def drawn_part(found: Mapping[str, Rows]) -> str:
    """Return the table of what consistency guidance does."""
    title = f"Consistency guidance, {SCREENED} subjects, one seed"
    about = (
        "No way to train but one to draw (`--consistency`): what is predicted without a prompt is the frozen model's,",
        "and what is predicted with one is the frozen model's and this share of what training has changed.",
    )
    return _part(title, about, found, (*METRICS, *KEPT))


def image_part(found: Mapping[str, Rows]) -> str:
    """Return the table of how finely class images are drawn."""
    about = ("With the ancestral sampler and the paper's prior, the toybox's preset being 25 steps.",)
    return _part(f"Steps of a class image, {_subjects(found)} subjects, one seed", about, found, (*METRICS, *KEPT))


def held_part(found: Mapping[str, Rows]) -> str:
    """Return the table of what other classes do."""
    about = (
        "How far the own class and two others (of a dog cat and duck), asked for without the identifier, have gone",
        "on the way from the frozen model's pictures of them to the subject: 1 is all of it, less is better.",
        "`--prior-others` has a share of the prior's places show the photos as other things, of a list without those",
        "two, held to the frozen model's predictions. These and the default have 400 steps, the others 600.",
    )
    metrics = ("class_way", "others_way", *METRICS, *KEPT)
    return _part(f"Other classes, {_subjects(found)} subjects, one seed", about, found, metrics)


def _part(title: str, about: Sequence[str], found: Mapping[str, Rows], metrics: Sequence[str]) -> str:
    """Return a table of means with what it is about."""
    lines = [f"## {title}", "", *about, ""]
    lines += [f"| | {' | '.join(metrics)} |", "| --- |" + " --- |" * len(metrics)]
    for name, rows in found.items():
        lines.append(f"| {name} | {' | '.join(f'{_mean(rows, each):.3f}' for each in metrics)} |")
    return "\n".join([*lines, ""])


def _subjects(found: Mapping[str, Rows]) -> int:
    return len({*next(iter(found.values()))["dino"].subject_N})


def final_part(final: Mapping[str, Rows], size: str) -> str:
    """Return the table of the best with intervals, and how each differs from the paper's."""
    ours, metrics = final[OURS], (*METRICS, *KEPT)
    lines = [
        f"## The best, {size}",
        "",
        f"| | {' | '.join(metrics)} |",
        "| --- |" + " --- |" * len(metrics),
    ]
    for name, rows in final.items():
        cells = [statistics.estimate(rows[metric]).text() for metric in metrics]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [
        "",
        f"Differences from {OURS}, subject by subject, with 95 % intervals:",
        "",
        f"| | {' | '.join(metrics)} |",
        "| --- |" + " --- |" * len(metrics),
    ]
    for name, rows in final.items():
        if name != OURS:
            lines.append(f"| {name} | {' | '.join(_apart(rows, ours, metric) for metric in metrics)} |")
    return "\n".join([*lines, ""])


def curve_part(finalists: Sequence[Arm], curves: Mapping[str, Rows]) -> str:
    """Return DINO, CLIP-T and copying over the steps."""
    lines = ["## Over the steps", "", f"| | {' | '.join(f'{steps} steps' for steps in STEPS)} |"]
    lines.append("| --- |" + " --- |" * len(STEPS))
    for metric in ("dino", "clip_t", "copying"):
        for arm in finalists:
            values = [_mean(curves[_at(arm, steps)], metric) for steps in STEPS]
            lines.append(f"| {metric}, {arm.name} | {' | '.join(f'{value:.3f}' for value in values)} |")
    return "\n".join([*lines, ""])


def _at(arm: Arm, steps: int) -> str:
    return f"{arm.name} at {steps} steps"


def _balanced(found: Mapping[str, Rows]) -> dict[str, Rows]:
    return {name: {**rows, "balance": balances(rows)} for name, rows in found.items()}


def _mean(rows: Rows, metric: str) -> float:
    value = statistics.estimate(rows[metric]).value
    return float("nan") if value is None else value


def _apart(one: Rows, two: Rows, metric: str) -> str:
    apart = difference(one[metric], two[metric])
    gain = difference(two[metric], one[metric]) if metric in LESS else apart
    return f"{apart.text('+')}, {WORDS[verdict(gain)]}"


if __name__ == "__main__":
    sys.exit(main())
