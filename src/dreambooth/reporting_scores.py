"""Scores in words: what each metric means and is compared with, and the verdict that they come to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreambooth.charts import Bar, bar, plot
from dreambooth.pages import Json, Score, write_page

SIGNIFICANT = 0.05
CHANGE = 0.2
"""How far a bar of a change reaches to either side, unless the change is larger."""
KINDS = {"recontext": "New surroundings", "accessory": "Outfits and accessories", "property": "Changed properties"}


@dataclass(frozen=True)
class Metric:
    """How a score is told. `ends` are the scores that its bar runs between; a `change` is drawn around zero."""

    label: str
    meaning: str
    better: str = ""
    ends: tuple[tuple[str, str], ...] = ()
    change: bool = False


DINO_ENDS = (("floor", "floor_dino"), ("oracle", "oracle_dino"))
CLIP_ENDS = (("floor", "floor_clip_i"), ("oracle", "oracle_clip_i"))
PROMPT_ENDS = (("untrained model", "ceiling_clip_t"),)
VARIETY_ENDS = (("untrained model", "ceiling_div"),)
CLASS_ENDS = (("untrained model", "class_clip_t_frozen"),)
GROUPS: dict[str, dict[str, Metric]] = {
    "Is it yours?": {
        "dino": Metric("DINO", "likeness to your very photos", "higher", DINO_ENDS),
        "foreground_dino": Metric("DINO, subject only", "the same likeness, background masked", "higher", DINO_ENDS),
        "own_dino": Metric("DINO, bare prompt", "likeness where no scene distracts", "higher", DINO_ENDS),
        "clip_i": Metric("CLIP-I", "likeness in kind and look", "higher", CLIP_ENDS),
    },
    "Does it follow the prompt?": {
        "clip_t": Metric("CLIP-T", "shows what the prompt says", "higher", PROMPT_ENDS),
        "clip_t_identifier": Metric("CLIP-T, with [V]", "the same, identifier left in", "higher", PROMPT_ENDS),
        "clip_t_class": Metric("CLIP-T, class only", "the same, identifier left out", "higher", PROMPT_ENDS),
    },
    "Is it more than a copy?": {
        "copying": Metric("Copying", "nearness to a training photo", "lower"),
        "background": Metric("Background", "photo backgrounds that come back", "lower"),
        "held_out_gap": Metric("Held-out gap", "likeness lost on unseen photos", "lower", change=True),
        "div": Metric("DIV", "variety within a single prompt", "higher", VARIETY_ENDS),
    },
    "Is the class intact?": {
        "pres": Metric("PRES", "class pictures resembling your subject", "lower"),
        "pres_drift": Metric("PRES, change", "the class pulled towards yours", "lower", change=True),
        "sibling_drift": Metric("PRES, change beside", "classes beside it, likewise pulled", "lower", change=True),
        "class_clip_t": Metric("CLIP-T of the class", "the bare class is still drawn", "higher", CLASS_ENDS),
        "class_kept": Metric("Class kept", "likeness to the class as it was, seed by seed", "higher"),
        "diversity_drift": Metric("Diversity, change", "variety the class has gained", "higher", change=True),
    },
    "To compare with": {
        "oracle_dino": Metric("DINO, oracle", "your photos against each other"),
        "oracle_dino_self": Metric("DINO, oracle with self", "each photo against itself too"),
        "floor_dino": Metric("DINO, floor", "the untrained model's any other"),
        "oracle_clip_i": Metric("CLIP-I, oracle", "your photos against each other"),
        "oracle_clip_i_self": Metric("CLIP-I, oracle with self", "each photo against itself too"),
        "floor_clip_i": Metric("CLIP-I, floor", "the untrained model's any other"),
        "ceiling_clip_t": Metric("CLIP-T, ceiling", "the untrained model's prompt fidelity"),
        "ceiling_div": Metric("DIV, ceiling", "the untrained model's own variety"),
        "pres_frozen": Metric("PRES, before", "the untrained model's class pictures"),
        "class_clip_t_frozen": Metric("CLIP-T of the class, before", "the untrained model's class pictures"),
    },
}
METRICS = {name: metric for group in GROUPS.values() for name, metric in group.items()}


@dataclass(frozen=True)
class Row:
    """A line of the score table."""

    metric: Metric
    score: Score
    bar: Bar | None


def verdict(scores: Mapping[str, Score], levels: Sequence[tuple[str, str]], noun: str) -> tuple[str, list[str]]:
    """Say in plain words what scores and checks come to: a headline and the sentences that bear it out.

    Likeness counts as reached above the middle between floor and oracle, and as nothing where its interval meets the
    floor's. Prompt fidelity counts as kept where its interval meets that of the untrained model.

    Args:
        scores: The scores by their names in scores.json.
        levels: Title and level (good, watch, bad, unknown) of each check.
        noun: The subject's class.
    """
    told = {name: scores.get(name, Score()) for name in METRICS}
    clauses = [clause for clause in (_likeness(told, noun), _fidelity(told)) if clause]
    agree = len({good for _, good in clauses}) == 1
    headline = (" and " if agree else ", but ").join(words for words, _ in clauses)
    headline = headline or "these scores do not say how good it is"
    if bad := sum(level == "bad" for _, level in levels):
        headline += f"; {bad} of {len(levels)} checks {'is' if bad == 1 else 'are'} bad"
    sentences = [
        f"Likeness (DINO) is {told['dino']}. The floor, what the untrained model draws for any {noun}, is "
        f"{told['floor_dino']}; the oracle, your photos among themselves, is {told['oracle_dino']}.",
        f"Prompt fidelity (CLIP-T) is {told['clip_t']}. The untrained model, which has only the prompt to mind, "
        f"reaches {told['ceiling_clip_t']}.",
    ]
    return f"{headline[0].upper()}{headline[1:]}.", [*sentences, *_checks(levels)]


def _likeness(scores: Mapping[str, Score], noun: str) -> tuple[str, bool] | None:
    """A clause on likeness, and whether it is good news."""
    dino, floor, oracle = (scores[name] for name in ("dino", "floor_dino", "oracle_dino"))
    if dino.value is None or floor.value is None or dino.low is None or floor.high is None:
        return None  # nothing can be told of one picture
    if oracle.value is not None and oracle.value <= floor.value:
        return f"likeness cannot be told, for your photos are no more alike than any {noun} is like them", False
    if dino.low <= floor.high:
        return f"it looks no more like yours than any {noun} does", False
    if oracle.value is None:
        return f"it looks more like yours than any {noun} does", True
    if dino.value < (floor.value + oracle.value) / 2:
        return f"it has something of your {noun}", False
    return f"it looks like your {noun}", True


def _fidelity(scores: Mapping[str, Score]) -> tuple[str, bool] | None:
    """A clause on prompt fidelity, and whether it is good news."""
    fidelity, ceiling = scores["clip_t"], scores["ceiling_clip_t"]
    if fidelity.high is None or ceiling.low is None:
        return None
    if fidelity.high < ceiling.low:
        return "it follows the prompt less well than before training", False
    return "it follows the prompt as it did before training", True


def _checks(levels: Sequence[tuple[str, str]]) -> list[str]:
    """One sentence that counts the checks and names those that ask for a look."""
    if not levels:
        return []
    named = [f"{title} ({level})" for title, level in levels if level != "good"]
    more = f"; look at: {', '.join(named)}." if named else "."
    return [f"{len(levels) - len(named)} of {len(levels)} checks raise no concern{more}"]


def score_groups(scores: Mapping[str, Score]) -> list[tuple[str, list[Row]]]:
    """The score table by question; scores that this version does not know come last under their own names."""
    groups = [
        (
            title,
            [Row(metric, scores[name], _bar(name, scores)) for name, metric in metrics.items() if name in scores],
        )
        for title, metrics in GROUPS.items()
    ]
    others = [Row(Metric(words(name), ""), score, None) for name, score in scores.items() if name not in METRICS]
    return [(title, rows) for title, rows in [*groups, ("Others", others)] if rows]


def _bar(name: str, scores: Mapping[str, Score]) -> Bar | None:
    """The score between its ends, on the way from 0 to its one end, around zero, or from 0 to 1."""
    metric, score = METRICS[name], scores[name]
    if metric.change:
        return change_bar(score, "no change")
    if not metric.ends:
        before = scores.get("pres_frozen", Score()) if name == "pres" else Score()
        marks = {"0": Score(0.0), "before": before, "1": Score(1.0)}
        return bar(score, _known(marks)) if metric.better else None
    ends = _known({label: scores.get(end, Score()) for label, end in metric.ends})
    if len(ends) < len(metric.ends):
        return None
    return bar(score, ends if len(ends) == 2 else {"0": 0.0} | ends)


def change_bar(change: Score, middle: str) -> Bar | None:
    """Lay a change out around zero, whose mark says `middle`."""
    reach = max([CHANGE, *(abs(edge) for edge in (change.value, change.low, change.high) if edge is not None)])
    return bar(change, {"less": -reach, middle: 0.0, "more": reach})


def _known(marks: Mapping[str, Score]) -> dict[str, float]:
    return {label: score.value for label, score in marks.items() if score.value is not None}


def words(name: str) -> str:
    """The label of a score, or its name as words."""
    return METRICS[name].label if name in METRICS else name.replace("_", " ")


def figures(data: Any) -> list[tuple[str, Score]]:
    """Read a mapping of names to scores, with labels for names."""
    return [(words(name), Score.read(score)) for name, score in (data or {}).items()]


def kind_table(kinds: Json) -> tuple[list[str], list[tuple[str, list[Score]]]]:
    """The heads and the rows of the table by kind."""
    names = list(dict.fromkeys(name for scores in kinds.values() for name in scores))
    rows = [(KINDS.get(kind, kind), [Score.read(scores.get(name)) for name in names]) for kind, scores in kinds.items()]
    return [words(name) for name in names], rows


Scored = tuple[str, str, dict[str, Score]]
"""A run, or a published row: its name, what sets it apart, and its scores."""


@dataclass(frozen=True)
class Pair:
    """Two runs on the same prompts and seeds: a minus b, and what may be said of it."""

    a: str
    b: str
    metric: Metric
    difference: Score
    bar: Bar | None
    p: float | None
    p_holm: float | None
    outcome: str


def compare_page(data: Json, path: Path) -> Path:
    """Write the page that holds several runs against one another: a plot, their scores, and paired differences.

    Args:
        data: The content of comparison.json: `runs`, `pairs`, and perhaps `published` rows.
        path: Where to write the page.

    Returns:
        The path of the page.

    Raises:
        RunError: The disk is full.
    """
    runs = [_scored(run) for run in data.get("runs") or []]
    published = [_scored(row) for row in data.get("published") or []]
    asked = [
        name
        for name in METRICS
        if name not in GROUPS["To compare with"] and any(name in scores for _, _, scores in [*runs, *published])
    ]
    places = [(name, scores.get("dino", Score()), scores.get("clip_t", Score())) for name, _, scores in runs]
    upright = _bounds(runs, {"floor": "floor_dino", "oracle": "oracle_dino"})
    level = _bounds(runs, {"untrained model": "ceiling_clip_t"})
    story = {
        "runs": runs,
        "published": published,
        "metrics": [(name, METRICS[name]) for name in asked],
        "unknown": Score(),
        "pairs": [_pair(pair) for pair in data.get("pairs") or []],
        "bounds": [*upright, *level],
        "plot": plot(places, upright, level),
    }
    write_page("comparison.html.j2", story, path)
    return path


def _scored(row: Json) -> Scored:
    scores = {name: Score.read(score) for name, score in (row.get("scores") or {}).items()}
    name, label = row.get("name") or row.get("label") or "without a name", row.get("label") or ""
    return str(name), str(label) if label != name else "", scores


def _bounds(runs: Sequence[Scored], names: Mapping[str, str]) -> list[tuple[str, Score]]:
    """The runs' lines by what they are; runs of one subject share theirs, so that one is drawn for all."""
    lines = [(label, scores[name]) for _, _, scores in runs for label, name in names.items() if name in scores]
    return list({(label, score.value): (label, score) for label, score in lines}.values())


def _pair(data: Json) -> Pair:
    a, b, metric = str(data.get("a")), str(data.get("b")), str(data.get("metric"))
    told = METRICS.get(metric, Metric(words(metric), ""))
    difference, p, p_holm = (Score.read(data.get(name)) for name in ("difference", "p", "p_holm"))
    return Pair(
        a=a,
        b=b,
        metric=told,
        difference=difference,
        bar=change_bar(difference, "equal"),
        p=p.value,
        p_holm=p_holm.value,
        outcome=_outcome(a, b, told, difference.value, p_holm.value),
    )


def _outcome(a: str, b: str, metric: Metric, difference: float | None, p_holm: float | None) -> str:
    """Judge by the p-value that is corrected for all pairs, at 5 %."""
    if difference is None or p_holm is None:
        return "cannot be told"
    if p_holm >= SIGNIFICANT:
        return "no difference shown"
    if not metric.better:
        return f"{a if difference > 0 else b} is higher"
    return f"{a if (difference > 0) == (metric.better == 'higher') else b} is better"
