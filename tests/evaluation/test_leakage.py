"""Several subjects: how far one went towards another is measured as planted, and told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dreambooth.applications import apply
from dreambooth.errors import UserError
from dreambooth.evaluation.comparison import compare
from dreambooth.evaluation.judges import load_judges
from dreambooth.evaluation.leakage import Drawn, finding, leaks
from dreambooth.evaluation.material import Plan, gather
from dreambooth.evaluation.metrics import Options
from dreambooth.evaluation.runs import evaluate, judge
from dreambooth.planning import make_plans
from dreambooth.progress import Silent
from dreambooth.recipe import Recipe
from dreambooth.run import Run
from tests import calls
from tests.commands import make_photos
from tests.pictures import picture

ENCODERS = {"identity_encoder": "toybox-identity", "clip_encoder": "toybox-clip"}
TEXTS = ["a x dog", "a y mug", "a dog", "a mug"]


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def planted(leak: float) -> list[np.ndarray]:
    """Directions: the dog, the mug, and what classes look like; "a y mug" went so far towards the dog."""
    draw = np.random.default_rng(0)
    dog, mug, plain = np.eye(16)[:3]

    def pictures(direction: np.ndarray) -> np.ndarray:
        return unit(direction + 0.02 * draw.normal(size=(8, 16)))

    return [pictures(dog), pictures(unit(mug + leak * dog)), pictures(plain), pictures(plain)]


def photos() -> list[np.ndarray]:
    return [np.eye(16)[[index] * 4] for index in range(2)]


def frozen() -> list[np.ndarray]:
    return [np.eye(16)[[2] * 8] for _ in range(2)]


def test_a_planted_leak_is_found_where_it_is() -> None:
    found = {(leak.text, leak.towards): leak.share for leak in leaks(Drawn(TEXTS, planted(0.5), frozen(), photos()))}
    assert set(found) == {(text, towards) for text in TEXTS for towards in (0, 1)} - {(TEXTS[0], 0), (TEXTS[1], 1)}
    expected = 0.5 / np.sqrt(1.25)
    assert found["a y mug", 0].value == pytest.approx(expected, abs=0.03)
    assert found["a y mug", 0].low is not None
    for key, share in found.items():
        if key != ("a y mug", 0):
            assert abs(share.value) < 0.05


@pytest.mark.parametrize(("leak", "level"), [(0.0, "good"), (0.2, "watch"), (0.8, "bad")])
def test_the_worst_is_told(leak: float, level: str) -> None:
    told = finding(leaks(Drawn(TEXTS, planted(leak), frozen(), photos())), ["dog", "mug"])
    assert told.level == level
    if level != "good":
        assert '"a y mug"' in told.text
        assert "towards the dog" in told.text


def test_a_subject_that_was_not_learned_and_appears_for_another_is_a_leak() -> None:
    dog, _, plain, _ = planted(0.0)
    nothing = finding(leaks(Drawn(TEXTS, [plain, plain, plain, plain], frozen(), photos())), ["dog", "mug"])
    assert nothing.level == "good"
    swapped = finding(leaks(Drawn(TEXTS, [plain, dog, plain, plain], frozen(), photos())), ["dog", "mug"])
    assert swapped.level == "bad"
    assert '"a y mug" moved 100% of the way towards the dog' in swapped.text


def looks(draw: np.random.Generator, shared: float) -> np.ndarray:
    """Looks of two subjects that have a share of their variance in common, (2, 64)."""
    common, own = draw.normal(size=64) / 8, draw.normal(size=(2, 64)) / 8
    return np.asarray(np.sqrt(shared) * common + np.sqrt(1 - shared) * own)


def level_of(
    draw: np.random.Generator, shared: float, leak: float = 0.0, learned: float = 1.0, rough: float = 1.0
) -> str:
    """The level of a run of two dogs: 4 photos of each, `rough` times as unlike as pictures are, and 12 pictures."""
    one, two = looks(draw, shared)
    kind, others = draw.normal(size=64) / 8, draw.normal(size=(2, 12, 64)) / 8

    def pictures(look: np.ndarray, count: int, rough: float = 1.0) -> np.ndarray:
        return unit(kind + look + 0.6 * rough * draw.normal(size=(count, 64)) / 8)

    mine = [
        learned * look + (1 - learned) * other
        for look, other in zip((one, two + leak * (one - two)), others, strict=True)
    ]
    tuned, bare, frozen = ([pictures(look, 12) for look in some] for some in (mine, others, others))
    real = [pictures(look, 4, rough) for look in (one, two)]
    return finding(leaks(Drawn(TEXTS, tuned + bare, frozen, real)), ["dog", "mug"]).level


@pytest.mark.parametrize(("learned", "rough"), [(1.0, 1.0), (1.0, 1.3), (0.0, 1.0)])
def test_subjects_that_look_alike_do_not_leak(learned: float, rough: float) -> None:
    """Whether they were learned or not, and where photos have more accidents than pictures."""
    draw = np.random.default_rng(7)
    told = [level_of(draw, shared, 0.0, learned, rough) for shared in (0.0, 0.2, 0.4, 0.6) for _ in range(30)]
    assert told.count("bad") == 0
    assert told.count("watch") <= 0.05 * len(told)
    assert told.count("good") >= 0.7 * len(told)


@pytest.mark.parametrize(("shared", "least"), [(0.0, "bad"), (0.2, "bad"), (0.4, "bad"), (0.6, "watch")])
def test_a_leak_of_subjects_that_look_alike_is_found(shared: float, least: str) -> None:
    """Pictures of the second go half of the way to the first."""
    draw = np.random.default_rng(8)
    told = [level_of(draw, shared, leak=0.5) for _ in range(15)]
    assert told.count("good") == 0
    assert sum(level in ("bad", least) for level in told) >= 14


def test_a_large_leak_of_too_few_pictures_is_not_told_as_one() -> None:
    dog, mug, plain = np.eye(16)[:3]
    tuned = [unit(np.stack([dog, dog])), unit(np.stack([mug, mug + dog])), plain[None].repeat(2, 0)]
    drawn = Drawn(TEXTS[:3], tuned, [each[:2] for each in frozen()], photos())
    told = finding(leaks(drawn), ["dog", "mug"])
    assert told.level == "unknown"
    assert "It may be chance: draw more pictures (--class-count)" in told.text


def test_where_photos_are_less_alike_than_the_class_leakage_cannot_be_told() -> None:
    apart = [np.eye(16)[4:8], np.eye(16)[[1] * 4]]
    towards_class = [unit(np.ones((8, 16))), frozen()[1]]
    told = finding(leaks(Drawn(TEXTS, [*towards_class, *towards_class], towards_class, apart)), ["dog", "mug"])
    assert told.level == "unknown"


def test_subjects_of_one_class_share_its_pictures() -> None:
    texts = ["a x dog", "a y dog", "a dog", "a dog"]
    told = leaks(Drawn(texts, planted(0.0), frozen(), photos()))
    assert [(leak.text, leak.towards) for leak in told] == [
        ("a y dog", 0),
        ("a dog", 0),
        ("a x dog", 1),
        ("a dog", 1),
    ]


def test_two_subjects_from_the_command_line(tiny_sd: Path, tmp_path: Path) -> None:
    make_photos(tmp_path / "one")
    make_photos(tmp_path / "two", ((80, 96),) * 3)
    named = (f"phol={tmp_path / 'one'}:dog", f"{tmp_path / 'two'}:mug")
    done = calls.call(
        "train", *named, "--model", tiny_sd, "--out", tmp_path / "run", *calls.flags(inference_steps=2, samples=1)
    )
    assert done.status == 0, done
    recipe = Run.open(tmp_path / "run").recipe
    assert [subject.class_noun for subject in recipe.subjects] == ["dog", "mug"]
    assert recipe.subjects[0].identifier == "phol"
    assert recipe.subjects[1].identifier not in (None, "phol")
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "<h1>a <span>[V]</span> dog, a <span>[V2]</span> mug</h1>" in page
    assert "“a dog” and “a mug”, before and after" in page
    drawn = json.loads((tmp_path / "run" / "samples" / "manifest.json").read_text())["images"]
    assert {each["prompt"] for each in drawn if each["kind"] == "subject"} == {"a [V] dog", "a [V2] mug"}
    assert sum(each["prompt"].startswith("a [V2] mug ") for each in drawn) == 4  # of five scenes, one is a painting


@pytest.fixture(scope="module")
def trained(tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a dog called phol and of a mug."""
    home = tmp_path_factory.mktemp("two")
    make_photos(home / "one")
    make_photos(home / "two", ((80, 96),) * 3)
    named = (f"phol={home / 'one'}:dog", f"ohwx={home / 'two'}:mug")
    done = calls.call("train", *named, "--model", tiny_sd, "--out", home / "run", *calls.flags(inference_steps=2))
    assert done.status == 0, done
    return home / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def plan(tmp_path: Path) -> Plan:
    (tmp_path / "p.yaml").write_text("- a [V] dog in the snow\n- a red [V] mug\n")
    return Plan(str(tmp_path / "p.yaml"), count=2, class_count=3)


def test_every_subject_is_measured_and_all_together(run: Path, tmp_path: Path) -> None:
    found = evaluate(run, plan(tmp_path), **ENCODERS)
    document = json.loads((run / "evaluation" / "evaluation.json").read_text())
    assert document == found.document
    assert len(document["leakage"]) == 2 * 4 - 2
    assert [each["name"] for each in document["findings"]] == ["leakage"]
    dog, mug = document["subjects"]
    assert [(each["class"], each["identifier"]) for each in (dog, mug)] == [("dog", "phol"), ("mug", "ohwx")]
    for name in ("dino", "clip_t", "pres"):
        both = [each["scores"][name]["value"] for each in (dog, mug)]
        assert document["scores"][name]["value"] == pytest.approx(np.mean(both))
        assert both[0] != both[1]
    assert [prompt["text"] for prompt in mug["prompts"]] == ["a [V2] mug in the snow", "a red [V2] mug"]
    first = run / "evaluation" / mug["prompts"][0]["images"][0]["file"]
    assert Image.open(first).info["prompt"] == "a ohwx mug in the snow"
    known = [entry["id"] for entry in Run(run).info["photos"]]
    for subject, own in zip((dog, mug), found.materials, strict=True):
        for copy in subject["copies"]:
            assert known[copy["photo"]] in {photo.id for photo in own.photos}
    page = (run / "report.html").read_text(encoding="utf-8")
    for title in ("All subjects together", "The dog, “phol”", "The mug, “ohwx”"):
        assert f'<h2 class="of">{title}</h2>' in page
    assert "is not in the run folder" not in page


def test_a_subject_is_scored_as_if_it_were_alone(run: Path, tmp_path: Path) -> None:
    whole = evaluate(run, plan(tmp_path), **ENCODERS)
    opened, judges = Run.open(run), load_judges(Run.open(run), *ENCODERS.values())
    alone = judge(gather(opened, plan(tmp_path), 1), judges, Options(), [], Silent())
    assert alone.document["scores"] == whole.document["subjects"][1]["scores"]


def test_runs_of_several_subjects_are_compared_subject_by_subject(run: Path, tmp_path: Path) -> None:
    found = evaluate(run, plan(tmp_path), **ENCODERS)
    other = evaluate(Path(shutil.copytree(run, tmp_path / "other")), plan(tmp_path), **ENCODERS)
    for pair in compare([found, other])["pairs"]:
        assert pair["difference"]["value"] == pytest.approx(0, abs=1e-6)


def test_the_command_tells_each_subject_and_all(run: Path, tmp_path: Path) -> None:
    asked = plan(tmp_path)
    flags = [word for name, value in ENCODERS.items() for word in (f"--{name.replace('_', '-')}", value)]
    line = ("evaluate", run, "--prompts", asked.prompts, "--count", 2, "--class-count", 3, *flags)
    scores = json.loads(calls.call(*line, "--json").out)
    assert list(scores) == ["all", "phol", "ohwx"]
    both = [scores[name]["dino"]["value"] for name in ("phol", "ohwx")]
    assert scores["all"]["dino"]["value"] == pytest.approx(np.mean(both))
    told = calls.call(*line).out
    assert told.index("dog 'phol'") < told.index("mug 'ohwx'")
    assert told.count("dino ") == 3 * 3  # the floor's and the oracle's with it


def test_each_subjects_prompts_are_told_as_generate_takes_them(run: Path, tmp_path: Path) -> None:
    evaluate(run, plan(tmp_path), **ENCODERS)
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "<h4>“a [V] dog in the snow”</h4>" in page
    assert "<h4>“a [V2] mug in the snow”</h4>" in page


def test_held_out_photos_lie_in_a_folder_for_each_subject(run: Path, tmp_path: Path) -> None:
    (tmp_path / "held").mkdir()
    make_photos(tmp_path / "held" / "phol", ((100, 80),) * 2)
    with pytest.raises(UserError, match=r"there is no folder .*ohwx"):
        evaluate(run, plan(tmp_path), held_out=tmp_path / "held", **ENCODERS)
    make_photos(tmp_path / "held" / "ohwx", ((80, 100),) * 2)
    found = evaluate(run, plan(tmp_path), held_out=tmp_path / "held", **ENCODERS)
    assert all("held_out_gap" in each["scores"] for each in found.document["subjects"])


def test_every_subject_is_applied_as_fits_it(run: Path) -> None:
    made = apply(run, ["views", "expressions"], count=1, **ENCODERS)
    assert [each.name for each in made] == ["subject-1/views", "subject-1/expressions", "subject-2/views"]
    assert made[2].folder == run / "applications" / "subject-2" / "views"
    assert (made[2].folder / "grid.png").is_file()
    assert Image.open(made[2].tuned.shots[0].file).info["prompt"] == "a ohwx mug seen from the top"


def test_each_of_several_subjects_has_the_steps_of_one(tiny_sd: Path, tmp_path: Path) -> None:
    subjects = [{"photos": make_photos(tmp_path / name), "class_noun": "dog"} for name in ("one", "two")]
    single, both = (
        make_plans(Recipe.of({"model": str(tiny_sd), "subjects": some})) for some in (subjects[:1], subjects)
    )
    assert single.recipe.steps
    assert both.recipe.steps == 2 * single.recipe.steps
    assert both.reasons["steps"].endswith(f": {single.recipe.steps} for each of 2 subjects")


def test_one_identifier_for_two_subjects_is_refused(tiny_sd: Path, tmp_path: Path) -> None:
    make_photos(tmp_path / "one")
    make_photos(tmp_path / "two", ((80, 96),) * 3)
    named = [f"ohwx={tmp_path / name}:{noun}" for name, noun in (("one", "dog"), ("two", "mug"))]
    line = ("train", *named, "--model", tiny_sd, "--out", tmp_path / "run", "--allow", "identifier")
    assert "the identifier 'ohwx' names two subjects" in calls.call(*line).refusal
    split = [f"ohwx={tmp_path / 'one'}:dog", f"zwx={tmp_path / 'two'}:mug"]
    refusal = calls.call("train", *split, "--model", tiny_sd, "--out", tmp_path / "run").refusal
    assert "'zwx' splits into" in refusal
    assert "type ohwx" not in refusal


def test_what_is_found_of_photos_says_whose_they_are(tiny_sd: Path, tmp_path: Path) -> None:
    subjects = [{"photos": make_photos(tmp_path / name), "class_noun": "dog"} for name in ("one", "two")]
    picture(0, (10, 10)).save(tmp_path / "two" / "small.png")
    warnings = make_plans(Recipe.of({"model": str(tiny_sd), "subjects": subjects})).warnings
    assert next(text for text in warnings if "small.png" in text).startswith("two: small.png: ")


def test_one_class_for_two_subjects_is_refused(tmp_path: Path) -> None:
    folders = [make_photos(tmp_path / name) for name in ("one", "two")]
    assert "write NAME=FOLDER:NOUN" in calls.call("train", *folders, "--class", "dog").refusal
