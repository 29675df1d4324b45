"""Does `--select` choose well? `python -m dreambooth.toybox.selection` asks it on the toybox: docs/selection.md.

Every subject is trained with `--select`, and without it, judged after several counts of steps; and some, both ways, for
far too many steps. All are judged alike, by pictures that no choice has seen. Interrupted, the same command goes on.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from dreambooth import planning
from dreambooth.evaluation import statistics
from dreambooth.files import write_text
from dreambooth.looks import SCENES
from dreambooth.progress import Lines, hush_libraries
from dreambooth.select import least_copies
from dreambooth.toybox.methods import LESS
from dreambooth.toybox.options import options
from dreambooth.toybox.reproduction import WORDS, verdict
from dreambooth.toybox.study import Arm, Rows, Study, Training, balances, by_training, difference, of_trainings

SELECT = Arm("--select", {"select": True})
HELD_OUT = "the least held-out loss"
COUNTS = 7
"""Fixed counts of steps beside the default one."""
EXCESS = 4
"""The count of steps that is far too many is so many times the default."""
SHOWN = ("dino", "truth", "clip_t", "pres", "copying")
HEAD = (f"| | balance | {' | '.join(SHOWN)} |", "| --- |" + " --- |" * (len(SHOWN) + 1))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what has not been, then write the page."""
    chosen = options("selection", __doc__, "docs/selection.md", seeds=3).parse_args(arguments)
    hush_libraries()
    study = Study(chosen.home, chosen.model, workers=chosen.workers, archive=chosen.archive)
    fixed, default = counts(study, chosen.subjects[0])
    reporter = Lines(sys.stdout)
    found = study.run([*fixed, SELECT], chosen.subjects, range(chosen.seeds), reporter)
    long = study.run(excessive(default), chosen.subjects[::2], [0], reporter)
    size = f"{len(chosen.subjects)} subjects x {chosen.seeds} trainings x {study.scenes * study.count} pictures"
    write_text(chosen.out, write_up(found, [arm.name for arm in fixed], default.name, size) + long_part(long))
    return 0


def counts(study: Study, subject: str) -> tuple[list[Arm], Arm]:
    """Return one run without `--select`, as it is after each of several steps up to that one's; and the default one."""
    most, default = (planning.make_plans(study.recipe(arm, subject, 0)).recipe.steps for arm in (SELECT, Arm("")))
    assert most is not None, "presets.fill leaves no steps open"
    assert default is not None, "presets.fill leaves no steps open"
    at = {number * (most // COUNTS) for number in range(1, COUNTS)} | {default, most}
    arms = {step: Arm(f"{step} steps", {"steps": step}, chain="fixed") for step in sorted(at)}
    return list(arms.values()), arms[default]


def excessive(default: Arm) -> list[Arm]:
    """Return a run of far too many steps without `--select`, and with it."""
    steps = EXCESS * int(default.settings["steps"])
    return [
        Arm(f"{steps} steps", {"steps": steps}),
        Arm(f"--select of {steps} steps", {"steps": steps, "select": True}),
    ]


def least_loss(found: Mapping[str, Rows], fixed: Sequence[str]) -> dict[Training, str]:
    """Return for each training the count of steps after which renders that were held out are denoised best."""
    losses = {name: by_training(found[name]["held_out_loss"]) for name in fixed}
    return {each: min(fixed, key=lambda name: losses[name][each]) for each in losses[fixed[0]]}


def write_up(found: Mapping[str, Rows], fixed: Sequence[str], default: str, size: str) -> str:
    """Return the page.

    Args:
        found: The rows of each arm.
        fixed: Names of the arms of a fixed count.
        default: The one of them that is a run without `--select`.
        size: What was measured, in words.
    """
    values = {name: by_training(balances(rows)) for name, rows in found.items()}
    stopped = least_loss(found, fixed)
    values[HELD_OUT] = {each: values[name][each] for each, name in stopped.items()}
    hindsight = max(fixed, key=lambda name: float(np.mean(list(values[name].values()))))
    lines = [
        "# Does `--select` choose well?",
        "",
        "Written by `python -m dreambooth.toybox.selection`.",
        f"{size}. `balance` is the mean of two shares: the way in DINO",
        "from the frozen model's class to the photos, and CLIP-T over the frozen model's. Of `pres` and `copying` less",
        "is better. Intervals (95 %) are over subjects. A fixed count ships the weights as they are after it;",
        f"`--select` may take twice as many as {default}, and looks at, chooses among and ships averages of the",
        "weights. It chooses the strength and the guidance too.",
        "",
        "The rule: of the looks whose pictures follow their prompts no less than the frozen model's, and copy photos",
        "no more than by chance, the one most like the photos. *Less* and *more* are beyond noise, in tests of the",
        "same prompts and seeds, at a level for all seven looks together. Training ends after three looks without a",
        "new best.",
        "",
        f"{SCENES} pictures a look are few, the price of eighty in all: a look is ruled out where each of them follows",
        f"its prompt less than the frozen model's, or where {least_copies(SCENES, 2 / 6)} of them are nearer to one of",
        "five photos than any two photos are to each other. One with half its pictures near a photo may ship, and",
        "`copying` below says that some do.",
        "",
        *HEAD,
        *(_row(name, values[name], found.get(name)) for name in [*fixed, HELD_OUT, SELECT.name]),
        f"| {SELECT.name} over {default} | {' | '.join(_gains(found[SELECT.name], found[default]))} |",
        "",
        f"`--select` {_shipped(found[SELECT.name])}",
        f"In hindsight {hindsight} are the best fixed count.",
        "",
        "| difference in balance | | verdict |",
        "| --- | --- | --- |",
        *_differences(values, default, hindsight),
        "",
    ]
    return "\n".join(lines)


def long_part(found: Mapping[str, Rows]) -> str:
    """Return what becomes of a run of far too many steps, without `--select` and with it."""
    (plain, selected), values = found, {name: by_training(balances(rows)) for name, rows in found.items()}
    lines = [
        "",
        f"## Where the count is wrong: {plain}, one training of every second subject",
        "",
        *HEAD,
        *(_row(name, values[name], rows) for name, rows in found.items()),
        f"| difference | {' | '.join(_gains(found[selected], found[plain]))} |",
        "",
        f"`{selected}` {_shipped(found[selected])}",
        "",
    ]
    return "\n".join(lines)


def _gains(one: Rows, two: Rows) -> Iterator[str]:
    """Yield the difference in balance and in every metric, and whether it is one for the better."""
    pairs = {"balance": (of_trainings(by_training(balances(one))), of_trainings(by_training(balances(two))))}
    pairs |= {name: (one[name], two[name]) for name in SHOWN}
    for name, (first, second) in pairs.items():
        apart = difference(first, second)
        gained = difference(second, first) if name in LESS else apart
        yield f"{apart.text('+')}, {WORDS[verdict(gained)]}"


def _shipped(rows: Rows) -> str:
    steps, looking = (list(by_training(rows[name]).values()) for name in ("chosen_step", "looking"))
    shipped = f"ships a step from {min(steps):.0f} to {max(steps):.0f}, {np.mean(steps):.0f} in the mean"
    return f"{shipped}; looking takes {np.mean(looking):.0f} s of a run."


def _differences(values: Mapping[str, Mapping[Training, float]], default: str, hindsight: str) -> Iterator[str]:
    pairs = [(SELECT.name, default), (SELECT.name, hindsight), (SELECT.name, HELD_OUT), (HELD_OUT, default)]
    for one, two in dict.fromkeys(pairs):
        apart = difference(of_trainings(values[one]), of_trainings(values[two]))
        yield f"| {one} over {two} | {apart.text('+')} | {WORDS[verdict(apart)]} |"


def _row(name: str, value: Mapping[Training, float], rows: Rows | None) -> str:
    cells = [statistics.estimate(rows[metric]).text() if rows else "" for metric in SHOWN]
    balance = difference(of_trainings(value), of_trainings(dict.fromkeys(value, 0.0)))  # subjects are the units
    return f"| {name} | {balance.text()} | {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
