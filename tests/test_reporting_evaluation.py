from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from dreambooth.pages import number
from dreambooth.reporting import report
from dreambooth.reporting_evaluation import NEAREST, PAIRS, _best_first
from tests.evaluations import LEVELS, TITLES, draw, evaluation, files
from tests.pages import Page, finished_run, picture, write_json


def store(run: Path, content: dict[str, Any]) -> None:
    write_json(run / "evaluation" / "evaluation.json", content)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run with an evaluation and all of its pictures."""
    folder = finished_run(tmp_path / "dog")
    draw(evaluation(), folder / "evaluation", lambda seed, _, path: picture(1000 + seed, 16).save(path))
    store(folder, evaluation())
    return folder


def figure(score: dict[str, Any]) -> str:
    """As the text of a page has it, where the value is set in bold."""
    return f"{number(score['value'])} , {number(score['low'])} to {number(score['high'])}"


def test_the_page_still_needs_nothing_else(run: Path):
    page = Page(report(run))
    links = [attrs[name] for _, attrs in page.tags for name in ("src", "href", "srcset") if name in attrs]
    assert all(link.startswith("data:") for link in links)
    assert not page.all("script")
    assert not re.search(r"https?://|url\(|@import", page.source)


def test_every_score_stands_with_its_interval_its_count_and_its_direction(run: Path):
    page = Page(report(run))
    for score in evaluation()["scores"].values():
        told = f"{number(score['value'])} {number(score['low'])} to {number(score['high'])} {score['n']}"
        assert told in page.text
    directions = {span["aria-label"] for span in page.all("span", "arrow")}
    assert directions == {"higher is better", "lower is better"}
    assert "Measured by DINO: toybox-identity; CLIP: toybox-clip; DIV: dino." in page.text


def test_every_prompt_stands_once_with_its_scores_and_those_of_each_picture(run: Path):
    page = Page(report(run))
    for prompt in evaluation()["prompts"]:
        assert page.source.count(f"<h4>“{prompt['text']}”</h4>") == 1
        for score in prompt["scores"].values():
            assert figure(score) in page.text
        for image in prompt["images"]:
            told = f"DINO {image['dino']:.3f} CLIP-I {image['clip_i']:.3f} CLIP-T {image['clip_t']:.3f}"
            near = f"photo {image['nearest'] + 1}: {image['nearest_similarity']:.3f}, {100 * image['percentile']:.0f} %"
            assert f"{told} {near} seed {image['seed']}" in page.text
    assert len(page.all("article", "prompt")) == len(evaluation()["prompts"])


def test_the_best_come_first_then_the_worst_and_the_others_fold_by_kind(run: Path):
    page = Page(report(run))
    content = evaluation()["prompts"]
    order = [page.source.index(f"<h4>“{prompt['text']}”") for prompt in _best_first(content)]
    best, rest, worst = order[:3], order[3:-3], order[-3:][::-1]
    folded = page.source.index("<details>")
    assert best == sorted(best)
    assert worst == sorted(worst)
    assert max(best) < min(worst)
    assert max(worst) < folded < min(rest)


def test_the_order_weighs_likeness_and_prompt_alike():
    def prompt(text: str, dino: float | None, clip_t: float | None) -> dict[str, Any]:
        return {"text": text, "scores": {"dino": {"value": dino}, "clip_t": {"value": clip_t}}}

    given = {"low": (0.1, 0.1), "likely": (0.9, 0.05), "none": (None, None), "lowest": (0.05, 0.02), "both": (0.8, 0.9)}
    prompts = [prompt(text, *scores) for text, scores in given.items()]
    assert [each["text"] for each in _best_first(prompts)] == ["both", "likely", "low", "none", "lowest"]
    assert _best_first([{"text": "a"}, {"text": "b"}]) == [{"text": "a"}, {"text": "b"}]


def test_checks_carry_their_level_in_words_and_in_shape(run: Path):
    page = Page(report(run))
    marks = page.all("span", "level")
    assert [mark["class"] for mark in marks] == [f"level {level}" for level in LEVELS.values()]
    shapes = re.findall(r'class="level (\w+)"><svg[^>]*>(.*?)</svg>(\w+)</span>', page.source, re.DOTALL)
    assert [word for _, _, word in shapes] == list(LEVELS.values())
    assert len({" ".join(shape.split()) for _, shape, _ in shapes}) == len(set(LEVELS.values()))
    for title, text in TITLES.values():
        assert f"{title} {text}" in page.text
    for finding in evaluation()["findings"]:
        for score in finding["figures"].values():
            assert f"change in clip t {figure(score)}" in page.text


def test_copies_stand_beside_the_photos_they_come_near_to(run: Path):
    page = Page(report(run))
    photos = {image["alt"]: image["src"] for image in page.all("img") if image["alt"].startswith("Photo of")}
    by_index = [photos["Photo of the dog, one.heic"], photos["Photo of the dog, two.jpg: by the sea"]]
    images = page.all("img")
    for copy in evaluation()["copies"]:
        (at,) = [index for index, image in enumerate(images) if image["alt"] == f"{copy['prompt']}, suspected copy"]
        assert images[at + 1]["src"] == by_index[copy["photo"]]
        told = f"Similarity {copy['similarity']:.3f}: nearer than {100 * copy['percentile']:.0f} % {NEAREST}."
        assert told in page.text


def test_what_a_percentile_counts_follows_the_option(run: Path):
    store(run, evaluation() | {"options": {"spread": "pairs"}})
    text = Page(report(run)).text
    assert f"% {PAIRS}." in text
    assert NEAREST not in text


def test_drift_shows_before_and_after_of_the_class_and_its_siblings(run: Path):
    page = Page(report(run))
    assert "“a cat”, a class beside yours" in page.text
    assert "“a dog”, a class beside yours" not in page.text
    for item in evaluation()["drift"]:
        for name in ("pres", "diversity"):
            assert f"before {figure(item[name + '_frozen'])} after {figure(item[name])}" in page.text
    for role in ("before", "after"):
        alts = [image["alt"] for image in page.all("img") if image["alt"].startswith(f"a dog, {role} training, eval")]
        assert alts == [f"a dog, {role} training, evaluation picture {number}" for number in range(1, 7)]


def test_the_table_by_kind(run: Path):
    text = Page(report(run)).text
    for kind, scores in evaluation()["kinds"].items():
        name = {"recontext": "New surroundings", "accessory": "Outfits", "property": "Changed properties"}[kind]
        assert name in text
        for score in scores.values():
            assert figure(score).replace(" ,", "") in text


def test_every_picture_is_there_and_has_words(run: Path):
    page = Page(report(run))
    assert not page.all("p", "missing")
    assert all(image["alt"].strip() for image in page.all("img"))
    drawn = [image["src"] for image in page.all("img")]
    assert len(set(drawn)) == 15 + len(files(evaluation())), "the run's own and the evaluation's"
    assert all(svg.get("aria-label") or svg.get("aria-hidden") for svg in page.all("svg"))


def test_frozen_pictures_may_lie_outside_the_run_folder(run: Path, tmp_path: Path):
    content = evaluation()
    picture(7, 16).save(tmp_path / "elsewhere.png")
    content["prompts"][0]["frozen"] = [str(tmp_path / "elsewhere.png")]
    store(run, content)
    assert not Page(report(run)).all("p", "missing")


def test_many_large_pictures_make_a_page_of_a_few_megabytes(run: Path):
    picture(3, 24).resize((512, 512)).save(run / "large.png")
    draw(evaluation(), run / "evaluation", lambda _, __, path: path.write_bytes((run / "large.png").read_bytes()))
    pictures = len(files(evaluation()))
    assert pictures * (run / "large.png").stat().st_size > 20_000_000
    assert report(run).stat().st_size < pictures * 20_000, "so 200 of them take less than 4 MB"


@pytest.mark.parametrize("name", ["recontext-0-0.png", "property-1-3.png"])
def test_a_large_picture_that_is_broken_is_named(run: Path, name: str):
    path = run / "evaluation" / "images" / name
    picture(3, 300).save(path)
    path.write_bytes(path.read_bytes()[:5000])
    assert f"{name} cannot be read" in Page(report(run)).text


PARTS = {
    "scores": "No scores were recorded.",
    "findings": "No checks were recorded.",
    "prompts": "No pictures were recorded prompt by prompt.",
    "kinds": "No scores by kind were recorded.",
    "copies": "No picture was held against its nearest photo.",
    "drift": "No class was drawn again after training.",
    "options": "The options of the evaluation were not recorded.",
}


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_part_is_named_and_the_others_stand(run: Path, part: str):
    store(run, {name: value for name, value in evaluation().items() if name != part})
    text = Page(report(run)).text
    assert [absence for absence in PARTS.values() if absence in text] == [PARTS[part]]


def test_parts_that_are_empty_inside_are_named_too(run: Path):
    store(
        run, {"prompts": [{"text": "a [V] dog"}], "drift": [{}], "copies": [{}], "findings": [{}], "kinds": {"odd": {}}}
    )
    text = Page(report(run)).text
    for absence in (
        "No pictures were recorded.",
        "No pictures by the untrained model.",
        "Not scored.",
        "photo is not in the run folder",
        "A check without a name",
    ):
        assert absence in text


def test_a_broken_evaluation_is_said(run: Path):
    (run / "evaluation" / "evaluation.json").write_text('{"scores": ')
    text = Page(report(run)).text
    assert "evaluation.json could not be read, so this page does without it." in text
    assert "Not measured yet: dreambooth evaluate" in text


def test_pictures_that_are_gone_are_named(run: Path):
    (run / "evaluation" / "images" / "recontext-0-0.png").unlink()
    assert "recontext-0-0.png is missing" in Page(report(run)).text


def test_nothing_that_an_evaluation_says_is_markup(run: Path):
    evil = "\"><script>alert('x')</script><img src=x onerror=y> & ' {{ 7*7 }} </style>"

    def poisoned(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: poisoned(item) for name, item in value.items()} | {evil: evil}
        if isinstance(value, list):
            return [poisoned(item) for item in value]
        return evil if isinstance(value, str) else value

    content = poisoned(evaluation())
    for name in ("scores", "kinds"):
        content[name].pop(evil)
    content["kinds"] = {evil: content["kinds"]["property"]}
    store(run, json.loads(json.dumps(content)))
    page = Page(report(run))
    assert not page.all("script")
    assert all(image["src"].startswith("data:image/") for image in page.all("img"))
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert page.text.count("<script>alert('x')</script><img src=x onerror=y>") >= 50
