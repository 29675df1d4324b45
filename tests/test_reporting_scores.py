from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dreambooth.pages import Score, number
from dreambooth.reporting_scores import compare_page, score_groups, verdict
from tests.evaluations import SCORES, comparison
from tests.pages import Page

KNOWN = {name: Score(*score, n=100) for name, score in SCORES.items()}


def headline(levels: tuple[tuple[str, str], ...] = (), **scores: Score) -> str:
    return verdict(KNOWN | scores, levels, "dog")[0]


@pytest.mark.parametrize(
    ("dino", "words"),
    [
        (Score(0.70, 0.61, 0.75), "It looks like your dog and"),
        (Score(0.55, 0.50, 0.60), "It has something of your dog, but"),
        (Score(0.55, 0.44, 0.66), "It looks no more like yours than any dog does, but"),
        (Score(0.30, 0.25, 0.35), "It looks no more like yours than any dog does, but"),
    ],
)
def test_likeness_is_judged_by_floor_and_oracle_and_never_on_noise(dino: Score, words: str):
    assert headline(dino=dino).startswith(words)


@pytest.mark.parametrize(("clip_t", "less"), [(Score(0.3, 0.28, 0.305), True), (Score(0.3, 0.28, 0.31), False)])
def test_prompt_fidelity_is_lost_only_where_the_intervals_part(clip_t: Score, less: bool):
    assert ("less well" in headline(clip_t=clip_t)) is less


def test_what_one_picture_shows_is_no_verdict():
    alone = {name: Score(KNOWN[name].value, None, None, n=1) for name in ("dino", "floor_dino", "clip_t")}
    assert headline(**alone) == "These scores do not say how good it is."
    assert headline(clip_t=alone["clip_t"]) == "It looks like your dog."


def test_an_oracle_under_the_floor_is_no_praise():
    assert headline(oracle_dino=Score(0.4, 0.3, 0.5)).startswith("Likeness cannot be told, for your photos")


def test_bad_checks_stand_in_the_headline_and_all_others_that_are_not_good_under_it():
    levels = (("Copies", "bad"), ("Drift", "good"), ("Colours", "unknown"))
    assert headline(levels).endswith("; 1 of 3 checks is bad.")
    assert verdict(KNOWN, levels, "dog")[1][-1] == (
        "1 of 3 checks raise no concern; look at: Copies (bad), Colours (unknown)."
    )


def test_without_scores_the_verdict_says_so():
    title, sentences = verdict({}, [], "dog")
    assert title == "These scores do not say how good it is."
    assert "Likeness (DINO) is not measured." in sentences[0]


def test_every_score_is_told_once_and_bars_run_from_floor_to_oracle():
    rows = {row.metric.label: row for _, rows in score_groups(KNOWN | {"new": Score(1.0)}) for row in rows}
    assert len(rows) == len(KNOWN) + 1
    assert rows["new"].bar is None
    dino = rows["DINO"].bar
    assert dino is not None
    floor, oracle = dino.marks
    share = (0.7013 - 0.4126) / (0.8226 - 0.4126)
    assert (dino.value - floor.place) / (oracle.place - floor.place) == pytest.approx(share)
    change = rows["PRES, change"].bar
    assert change is not None
    assert change.marks[1].place == 50, "no change lies in the middle"


def test_a_bar_without_its_ends_is_not_drawn():
    rows = {row.metric.label: row for _, rows in score_groups({"dino": Score(0.7, 0.6, 0.8)}) for row in rows}
    assert rows["DINO"].bar is None


def test_a_change_that_is_not_known_is_no_bar():
    rows = {row.metric.label: row for _, rows in score_groups({"diversity_drift": Score(n=1)}) for row in rows}
    assert rows["Diversity, change"].bar is None


# The comparison


def test_the_comparison_needs_nothing_else_and_shows_every_figure(tmp_path: Path):
    data = comparison()
    page = Page(compare_page(data, tmp_path / "comparison.html"))
    assert not page.all("script")
    links = [attrs[name] for _, attrs in page.tags for name in ("src", "href", "srcset") if name in attrs]
    assert all(link.startswith("data:") for link in links)
    for run in data["runs"]:
        assert run["label"] in page.text
        for name in ("dino", "clip_t", "pres"):
            score = run["scores"][name]
            low, high = number(score["low"]), number(score["high"])
            assert f"{number(score['value'])} {low} to {high}, n {score['n']}" in page.text
    for pair in data["pairs"]:
        difference = pair["difference"]
        assert f"{number(difference['value'])} {number(difference['low'])} to {number(difference['high'])}" in page.text
        assert f"p {pair['p']:.4f} corrected {pair['p_holm']:.4f}" in page.text
    for row in data["published"]:
        assert row["label"] in page.text
        assert f"{row['scores']['dino']:.3f} interval unknown" in page.text
    assert "The floor lies at 0.413 (0.373 to 0.453); the oracle lies at" in page.text
    assert len(page.all("circle", "dot")) == len(data["runs"]) + len(data["pairs"])
    assert len(page.all("line", "cross")) == 2 * len(data["runs"])


def pair(metric: str, difference: float, p_holm: float | None) -> dict[str, Any]:
    return {"a": "one", "b": "two", "metric": metric, "difference": {"value": difference}, "p": 0.001, "p_holm": p_holm}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (pair("dino", 0.1, 0.01), "one is better"),
        (pair("dino", -0.1, 0.01), "two is better"),
        (pair("pres", 0.1, 0.01), "two is better"),
        (pair("pres", -0.1, 0.01), "one is better"),
        (pair("floor_dino", -0.1, 0.01), "two is higher"),
        (pair("dino", 0.1, 0.05), "no difference shown"),
        (pair("dino", 0.1, None), "cannot be told"),
    ],
)
def test_who_is_better_follows_the_metric_and_the_corrected_p(tmp_path: Path, given: dict[str, Any], words: str):
    assert words in Page(compare_page({"pairs": [given]}, tmp_path / "c.html")).text


def test_a_comparison_of_nothing_names_what_is_missing(tmp_path: Path):
    text = Page(compare_page({}, tmp_path / "c.html")).text
    for absence in (
        "No plot: no run has both DINO and CLIP-T.",
        "No scores were recorded.",
        "No pair of runs was compared.",
    ):
        assert absence in text


def test_names_of_runs_are_text_and_never_markup(tmp_path: Path):
    evil = "\"><script>alert('x')</script> & {{ 7*7 }}"
    data = json.loads(json.dumps(comparison()).replace("lora", json.dumps(evil)[1:-1]))
    page = Page(compare_page(data, tmp_path / "c.html"))
    assert not page.all("script")
    assert evil in page.text
