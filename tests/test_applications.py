"""Applications: lists of prompts, how cells are judged and laid out, `dreambooth apply`, and the study of them."""

from __future__ import annotations

import functools
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from dreambooth import applications
from dreambooth.application_lists import APPLICATIONS, Cell, choose, choose_all, fitting, kind_of, read
from dreambooth.applications import Applied, Scored, apply, sheet
from dreambooth.errors import UserError
from dreambooth.evaluation import embeddings, encoders
from dreambooth.evaluation.pictures import PictureSet
from dreambooth.evaluation.statistics import Estimate
from dreambooth.run import Run
from dreambooth.sampling import Sampling
from dreambooth.toybox import applied
from dreambooth.toybox.applied import BEGIN, END, Judged, judge, truth, write_up
from dreambooth.toybox.model.classifiers import Classifier
from dreambooth.toybox.study import Study
from dreambooth.toybox.world import vocabulary
from tests import calls
from tests.commands import make_photos

ENCODERS = {"identity_encoder": "toybox-identity", "clip_encoder": "toybox-clip"}
SAMPLING = Sampling("dpm++", 2, 1.0, 64)
OWN = """
title: Two by two
rows:
  dog: a [V] dog
  hat: a [V] dog wearing a red hat
columns:
  in the snow: "{} in the snow"
  sketch: a pencil sketch of {}
keeps_colour: true
"""


# Lists


def test_every_prompt_names_the_subject_once_and_every_cell_has_a_label_of_its_own() -> None:
    for noun in ("dog", "teapot"):
        for name in fitting(noun, kind_of(noun)):
            cells = APPLICATIONS[name].cells(noun, kind_of(noun))
            assert len({cell.label for cell in cells}) == len({cell.template for cell in cells}) == len(cells) >= 4
            assert {cell.template.count("{}") for cell in cells} == {1}


def test_the_papers_words() -> None:
    prompts = {
        cell.named("sks dog") for name in fitting("dog", "live") for cell in APPLICATIONS[name].cells("dog", "live")
    }
    assert prompts >= {
        "a sks dog in the jungle",
        "a painting of a sks dog in the style of Van Gogh",
        "a statue of a sks dog in the style of Michelangelo",
        "a sks dog seen from the top",
        "a red sks dog",
        "a sks dog made out of stone",
        "a sks dog in a police outfit",
        "a sks dog with an angry expression",
        "a cross of a sks dog and an elephant",
        'a cartoon of a sks dog grabbing a fork and a knife saying "time to eat"',
    }
    assert "a cross of a sks dog and a dog" not in prompts


def test_the_article_follows_the_class_noun_and_not_the_identifier() -> None:
    cell = Cell("x", "", "a painting of a {} and a car")
    assert cell.plain("elephant") == "a painting of an elephant and a car"
    assert cell.named("ohwx dog") == "a painting of a ohwx dog and a car"  # as the photos' captions have it
    assert Cell("red", "", "a red {}").plain("elephant") == "a red elephant"


def test_objects_have_more_scenes_and_no_faces() -> None:
    assert fitting("teapot", "object") == ["recontext", "art", "views", "properties", "comic"]
    assert len(choose(["recontext"], "teapot")["recontext"][1]) == 20
    assert len(choose(["recontext"], "dog")["recontext"][1]) == 10
    for name in ("accessories", "expressions", "hybrids"):
        with pytest.raises(UserError, match=f"'{name}' is for living subjects, and 'teapot' .* use recontext, art"):
            choose([name], "teapot")
    assert choose(["hybrids"], "axolotl", "live")


def own(text: str, tmp_path: Path) -> Path:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    return file


def test_an_own_list_has_rows_and_columns(tmp_path: Path) -> None:
    file = own(OWN, tmp_path)
    application, cells = choose([str(file)], "dog")["own-mine"]
    assert application.title == "Two by two"
    assert [(cell.label, cell.named("shs dog")) for cell in cells] == [
        ("dog, in the snow", "a shs dog in the snow"),
        ("dog, sketch", "a pencil sketch of a shs dog"),
        ("hat, in the snow", "a shs dog wearing a red hat in the snow"),
        ("hat, sketch", "a pencil sketch of a shs dog wearing a red hat"),
    ]


def test_each_of_several_subjects_gets_what_fits_its_kind(tmp_path: Path) -> None:
    mine = str(own("- a [V] dog in the snow\n- a [V] mug on the beach\n", tmp_path))
    dog, mug = choose_all(["art", "accessories", mine], ["dog", "mug"])
    assert list(dog) == ["art", "accessories", "own-mine"]
    assert list(mug) == ["art", "own-mine"]
    assert [cell.plain("mug") for cell in mug["own-mine"][1]] == ["a mug in the snow", "a mug on the beach"]
    with pytest.raises(UserError, match="'accessories' is for living subjects"):
        choose_all(["accessories"], ["mug", "teapot"])
    with pytest.raises(UserError, match="no application 'arts'"):
        choose_all(["arts"], ["dog", "mug"])
    lively = str(own("title: x\nlive:\n  asleep: a [V] dog asleep\n", tmp_path))
    assert [list(some) for some in choose_all([lively], ["dog", "mug"])] == [["own-mine"], []]


def test_a_plain_list_is_a_list_too(tmp_path: Path) -> None:
    found = read(own("- a [V] dog in the snow\n- a {} {at} home\n- my [V]\n", tmp_path), ["dog"])
    cells = found.cells("dog", "live")
    assert [cell.plain("dog") for cell in cells] == ["a dog in the snow", "a dog {at} home", "my dog"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("- a dog in the snow", "does not name the subject once"),
        ("- a [V] dog and a [V] dog", "does not name the subject once"),
        ("- a [V] dog and a [V2] cat", "does not name the subject once"),
        ("rows: {a: 'a [V] dog'}\ncolumns: {b: in the snow}", "column 'b'"),
        ("rows: {a: 'a [V] dog'}\ncolours: {}", "colours: extra inputs"),
        ("rows: {a: 3}", "rows.a: input should be a valid string"),
        ("rows: {a: 'a [V] dog'}\ncolumns: {}", "columns"),
        ("title: empty", "holds no prompts"),
        ("3: 4", "no list of prompts"),
        ("[]", "holds no prompts"),
        ("a: b: c", "cannot read"),
        ("- [V] dog on the beach", "is to be in quotes"),
        ("hello", "holds no list"),
    ],
)
def test_lists_that_are_none_are_refused_in_one_line(text: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        read(own(text, tmp_path), ["dog"])
    assert told in str(refused.value)
    assert "mine.yaml" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_wrong_name_gets_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'accessories'"):
        choose(["acessories"], "dog")
    with pytest.raises(UserError, match="asked for twice"):
        choose(["art", "art"], "dog")


# How a cell is judged


def rows(**changes: float) -> dict[str, Any]:
    values = {"identity": 0.6, "floor": 0.4, "fidelity": 0.3, "ceiling": 0.31, "clear": 0.08, "frozen_clear": 0.1}
    noise = np.array([-0.01, 0.0, 0.01, 0.0])
    return {name: value + noise for name, value in (values | changes).items()}


@pytest.mark.parametrize(
    ("changes", "weak", "kept"),
    [
        ({}, (), 0.8),
        ({"clear": 0.051}, (), 0.51),
        ({"clear": 0.049}, ("words",), 0.49),
        ({"clear": -0.02}, ("words",), -0.2),
        ({"floor": 0.599}, (), 0.8),
        ({"floor": 0.6}, ("subject",), 0.8),
        ({"floor": 0.7, "clear": 0.0}, ("words", "subject"), 0.0),
        ({"frozen_clear": -0.1, "clear": -0.5}, (), None),
    ],
)
def test_weak_is_what_falls_below_the_frozen_model(changes: dict[str, float], weak: Any, kept: float | None) -> None:
    found = applications._cell(Cell("red hat", "", "a {}"), rows(**changes))
    assert found.weak == weak
    assert found.kept == (kept if kept is None else pytest.approx(kept))
    assert ("WEAK" in found.caption) is bool(weak)
    assert ("not known" in found.caption) is (kept is None)
    # no figure of an encoder's own scale decides
    smaller = {name: 0.1 * value_K + 3 * (name in ("identity", "floor")) for name, value_K in rows(**changes).items()}
    assert applications._cell(Cell("red hat", "", "a {}"), smaller).weak == weak


# How it is laid out


def coloured(folder: Path, count: int, cells: int) -> list[list[Path]]:
    files = [[folder / f"{cell}-{at}.png" for at in range(count)] for cell in range(cells)]
    for cell, some in enumerate(files):
        for at, file in enumerate(some):
            Image.new("RGB", (64, 64), (20 * cell, 100 + at, 200)).save(file)
    return files


def scored(index: int, weak: tuple[str, ...] = ()) -> Scored:
    cell = Cell(f"row {index // 2}", f"column {index % 2}", "a {}")
    return Scored(cell, 0.6, 0.4, Estimate(0.2, None, None, 2), 0.3, 0.3, 0.9, weak)


def test_the_grid_shows_every_picture_in_its_place_and_frames_the_weak(tmp_path: Path) -> None:
    files = coloured(tmp_path, count=2, cells=4)
    cells = [scored(index, ("words",) if index == 2 else ()) for index in range(4)]
    made = np.asarray(sheet("photos", [Image.new("RGB", (64, 64))] * 3, cells, files, columns=2))
    red = (made == (0xCF, 0x22, 0x2E)).all(-1)
    centre = {}
    for cell in range(4):
        for at in range(2):
            found = np.argwhere((made == (20 * cell, 100 + at, 200)).all(-1))
            centre[cell, at] = found.mean(0)
            assert len(found) == 128 * 128
    assert centre[0, 0][0] == centre[1, 0][0] == centre[1, 1][0] < centre[2, 0][0] == centre[3, 1][0]
    assert centre[0, 0][1] == centre[2, 0][1] < centre[0, 1][1] < centre[1, 0][1] == centre[3, 0][1]
    framed = np.argwhere(red).mean(0)
    assert framed == pytest.approx((centre[2, 0] + centre[2, 1]) / 2, abs=1)


# The command


@pytest.fixture(scope="module")
def trained(tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("applied")
    done = calls.train(make_photos(home / "photos"), tiny_sd, out=home / "run", inference_steps=2)
    assert done.status == 0, done
    return home / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_a_cells_figures_can_be_recomputed_from_its_pictures(run: Path, tmp_path: Path) -> None:
    (made,) = apply(run, [str(own(OWN, tmp_path))], count=2, **ENCODERS)
    told = json.loads((run / "applications" / "own-mine" / "application.json").read_text())
    assert told == made.document
    assert [cell["column"] for cell in told["cells"]] == ["in the snow", "sketch"] * 2
    assert [finding["name"] for finding in told["findings"]] == ["context", "overfitting", "entanglement"]
    identity, clip = (encoders.load(name) for name in ("toybox-identity", "toybox-clip"))
    photos_RD = embeddings.embed_files(identity, sorted(Run(run).recipe.subjects[0].photos.glob("*.png")))
    texts = [cell["plain"] for cell in told["cells"]]
    words = dict(zip([*texts, "a dog"], embeddings.embed_texts(clip, [*texts, "a dog"]), strict=True))
    for cell in told["cells"]:
        files = {
            "tuned": [made.folder / image["file"] for image in cell["images"]],
            "frozen": [Path(file) for file in cell["frozen"]],
        }
        like = {name: (embeddings.embed_files(identity, some) @ photos_RD.T).mean() for name, some in files.items()}
        others_D = np.mean([row_D for text, row_D in words.items() if text != cell["plain"]], axis=0)
        nearer_D = words[cell["plain"]] - others_D
        clear = {name: (embeddings.embed_files(clip, some) @ nearer_D).mean() for name, some in files.items()}
        assert (cell["identity"], cell["floor"]) == pytest.approx((like["tuned"], like["frozen"]), abs=1e-5)
        known = bool(clear["frozen"] > 0)
        assert (cell["kept"] is not None) is known
        assert not known or cell["kept"] == pytest.approx(clear["tuned"] / clear["frozen"], rel=1e-3)
        assert ("subject" in cell["weak"]) is bool(like["tuned"] <= like["frozen"])
        assert ("words" in cell["weak"]) is bool(known and clear["tuned"] < clear["frozen"] / 2)
        assert cell["plain"] == re.sub(r"a \S+ dog", "a dog", cell["prompt"])
        assert Image.open(files["tuned"][0]).info["prompt"] == cell["prompt"] != cell["plain"]
        assert Image.open(files["frozen"][0]).info["prompt"] == cell["plain"]
    assert any(cell["kept"] is not None for cell in told["cells"])
    assert (made.folder / "grid.png").is_file()
    page = (run / "report.html").read_text(encoding="utf-8")
    for cell in made.cells:
        assert page.count(f"<strong>{cell.cell.label}</strong>") == 1
    assert page.count(", weak in ") == made.document["weak"] == sum(bool(cell.weak) for cell in made.cells)
    assert page.count(', seed 1"') == len(made.cells)
    assert "is missing" not in page


def test_what_is_there_is_not_drawn_again(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lists = [str(own(OWN, tmp_path)), "views"]
    first = apply(run, lists, count=1, **ENCODERS)
    assert [each.name for each in first] == ["own-mine", "views"]
    with monkeypatch.context() as patch:
        patch.setattr("dreambooth.targets.load", lambda *_: pytest.fail("a model was loaded"))
        assert [each.document for each in apply(run, lists, count=1, **ENCODERS)] == [each.document for each in first]
    lost = first[1].tuned.shots[2].file
    before = lost.read_bytes()
    lost.unlink()
    flags = [word for name, value in ENCODERS.items() for word in (f"--{name.replace('_', '-')}", value)]
    done = calls.call("apply", run, "views", "--count", 1, "--json", *flags)
    assert done.status == 0, done
    assert json.loads(done.out) == {"views": first[1].document}
    assert lost.read_bytes() == before
    shown = calls.call("apply", run, "views", "--count", 1, *flags)
    weak = sum(bool(cell["weak"]) for cell in first[1].document["cells"])
    assert f"Text-guided views: {weak} of 4 cells are weak" in shown.out
    assert shown.out.count("WEAK") == weak


def test_mistakes_are_told_before_any_work(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(applications, "draw_missing", lambda *_: pytest.fail("it drew"))
    assert "no application 'arts'" in calls.call("apply", run, "arts").refusal
    assert "holds no run" in calls.call("apply", tmp_path, "art").refusal
    assert "at least 1 picture" in calls.call("apply", run, "art", "--count", 0).refusal
    assert "is for living subjects" in calls.call("apply", run, "hybrids", "--kind", "object").refusal
    assert not (run / "applications").exists()


def test_a_prompt_that_is_too_long_is_not_drawn_without_its_end(run: Path, tmp_path: Path) -> None:
    file = own(f"- a [V] dog {'on a very long road ' * 20}\n", tmp_path)
    with pytest.raises(UserError, match="tokens"):
        apply(run, [str(file)], count=1, **ENCODERS)
    assert not list(run.rglob("applications/**/*.png"))


# The study on the toybox


KNOWN = {
    "context": list(vocabulary.CONTEXTS),
    "style": ["none", *vocabulary.STYLES],
    "view": list(vocabulary.VIEWS),
    "colour": list(vocabulary.COLOURS),
    "accessory": ["none", *vocabulary.OUTFITS],
    "class": list(vocabulary.CLASSES),
    "property": ["none", *vocabulary.PROPERTIES],
    "material": ["none", *vocabulary.MATERIALS],
    "sculpture": ["none", *vocabulary.SCULPTORS],
    "expression": ["none", *vocabulary.EXPRESSIONS],
}


def test_what_the_toybox_has_words_for_is_judged() -> None:
    counts = {
        name: sum(bool(truth(name, cell, "dog", KNOWN)) for cell in APPLICATIONS[name].cells("dog", "live"))
        for name in APPLICATIONS
    }
    assert counts == {
        "recontext": 10,
        "art": 5,  # no Vermeer
        "views": 4,
        "properties": 12,
        "accessories": 11,  # no witch
        "expressions": 5,
        "hybrids": 7,
        "comic": 12,  # not "time to eat"
    }
    (cell,) = [each for each in APPLICATIONS["comic"].cells("dog", "live") if each.label == "in the snow, cartoon"]
    assert truth("comic", cell, "dog", KNOWN) == {"context": ("in the snow",), "style": ("cartoon",)}
    assert truth("hybrids", Cell("pig", "", ""), "dog", KNOWN) == {"class": ("dog", "pig")}
    assert truth("properties", Cell("transparent", "", ""), "dog", KNOWN) == {"material": ("glass",)}
    assert truth("art", Cell("Rodin", "", ""), "dog", KNOWN) == {"sculpture": ("Rodin",)}
    assert truth("expressions", Cell("sad", "", ""), "dog", {}) == {}


class Reader:
    """Stands for the classifiers: a picture's red is its view, its green and blue are its two likeliest classes."""

    labels: ClassVar = {"view": ["top", "side"], "class": ["dog", "pig", "cat"]}

    def __call__(self, pixels_BCHW: torch.Tensor) -> dict[str, torch.Tensor]:
        value_BC = ((pixels_BCHW.mean((2, 3)) + 1) * 127.5).round().long()
        one_hot = torch.nn.functional.one_hot
        classes_BK = 2 * one_hot(value_BC[:, 1], 3) + one_hot(value_BC[:, 2], 3)
        return {"view": one_hot(value_BC[:, 0], 2).float(), "class": classes_BK.float()}


def applied_to(folder: Path, name: str, cells: list[Scored], tuned: list[Any], frozen: list[Any]) -> Applied:
    """An application whose pictures have these colours, two a cell."""
    sets = []
    for part, colours in (("tuned", tuned), ("frozen", frozen)):
        pictures = PictureSet(folder / part / "images", ("",) * len(cells), (0, 1), SAMPLING, "m")
        pictures.folder.mkdir(parents=True)
        for shot, colour in zip(pictures.shots, colours, strict=True):
            Image.new("RGB", (8, 8), colour).save(shot.file)
        sets.append(pictures)
    return Applied(name, APPLICATIONS[name], *sets, tuple(cells), {})


def test_pictures_are_judged_by_what_was_asked_of_their_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(applied, "class_of", lambda _: "dog")
    cells = [
        replace(scored(0), cell=Cell("top", "", "")),
        replace(scored(1), cell=Cell("bottom", "", "")),  # the reader has no such view
        replace(scored(2), cell=Cell("side", "", ""), weak=("words",)),
    ]
    top, side = (0, 0, 1), (1, 0, 1)
    made = applied_to(tmp_path / "a", "views", cells, [top, side, top, top, side, top], [top, top, top, top, top, top])
    found = list(judge(made, "spotted_dog", 2, Reader()))  # type: ignore[arg-type]
    assert [(each.cell, each.seed, each.right, each.frozen, each.weak) for each in found] == [
        (0, 2000, True, True, False),
        (0, 2001, False, True, False),
        (2, 2000, True, False, True),
        (2, 2001, False, False, True),
    ]
    pig = [replace(scored(0), cell=Cell("pig", "", ""), weak=("subject",))]
    made = applied_to(tmp_path / "b", "hybrids", pig, [(0, 0, 1), (0, 1, 0)], [(0, 0, 2), (0, 2, 1)])
    found = list(judge(made, "spotted_dog", 0, Reader()))  # type: ignore[arg-type]
    assert [(each.right, each.frozen, each.weak) for each in found] == [(True, False, False), (True, False, False)]


def test_the_table_gives_the_shares_and_the_worth_of_the_marks() -> None:
    judged = [
        Judged("views", f"s{subject}", cell, seed, right=cell == 0, frozen=seed == 0, weak=cell == 1)
        for subject in range(6)
        for cell in range(2)
        for seed in range(2)
    ]
    lines = write_up(judged, "six subjects")
    (row,) = [line for line in lines if line.startswith("| views |")]
    assert row == "| views | 2 | 50% | 50% | +0% | 50% | 0% | 100% |"
    assert sum("the classifiers do not know it" in line for line in lines) == len(APPLICATIONS) - 1


def test_the_table_and_the_grids_go_into_the_page(tmp_path: Path) -> None:
    made = applied_to(tmp_path / "run", "views", [scored(0)], [(0, 0, 0)] * 2, [(0, 0, 0)] * 2)
    Image.new("RGB", (3, 3)).save(made.folder / "grid.png")
    page = tmp_path / "docs" / "applications.md"
    page.parent.mkdir()
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    for _ in range(2):
        applied.write(page, ["| new |"], [made])
    text = page.read_text()
    assert text.startswith(f"before\n{BEGIN}\n")
    assert text.endswith(f"\n{END}\nafter\n")
    assert "old" not in text
    assert text.count("| new |") == 1
    assert (page.parent / "applications" / "views.png").is_file()
    assert "![Text-guided views](applications/views.png)" in text


def test_the_study_refuses_before_it_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert applied.main(["--classifiers", str(tmp_path)]) == 2
    assert "no classifiers" in capsys.readouterr().err
    assert applied.main(["--out", str(tmp_path / "none.md")]) == 2
    assert "no place for the table" in capsys.readouterr().err


def test_the_study_goes_from_trainings_to_the_page(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = []

    def learn(where: Study, arm: Any, subject: str, seed: int, _: Any) -> Run:
        cells.append((subject, seed))
        return Run(shutil.copytree(trained, where.home / f"{subject}-{seed}"))

    monkeypatch.setattr(Study, "learn", learn)
    monkeypatch.setattr(applied, "apply", functools.partial(apply, **ENCODERS))
    monkeypatch.setattr(applied, "fitting", lambda *_: ["views", "expressions"])
    classifier = Classifier((8, 8), KNOWN).eval()
    monkeypatch.setattr("dreambooth.toybox.model.classifiers.load", lambda _: classifier)
    page = tmp_path / "applications.md"
    page.write_text(f"{BEGIN}\n{END}\n")
    given = ["--out", page, "--home", tmp_path / "home", "--subjects", "spotted_dog"]
    assert applied.main([str(word) for word in [*given, "--seeds", 2, "--count", 1]]) == 0
    assert cells == [("spotted_dog", 0), ("spotted_dog", 1)]
    lines = page.read_text().splitlines()
    (row,) = [line for line in lines if line.startswith("| views |")]
    made = Image.open(tmp_path / "home" / "spotted_dog-0" / "applications" / "views" / "grid.png")
    assert row.split(" | ")[1] == "4"
    assert Image.open(tmp_path / "applications" / "views.png").size == made.size
    assert sum(line.startswith("![") for line in lines) == 2


def test_the_documented_page_has_a_row_for_each_application_and_its_list_can_be_read(tmp_path: Path) -> None:
    text = (Path(__file__).parents[1] / "docs" / "applications.md").read_text()
    assert re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE) == list(APPLICATIONS)
    assert text.count(BEGIN) == text.count(END) == 1
    (example,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert len(read(own(example, tmp_path), ["dog"]).cells("dog", "live")) == 4
    assert yaml.safe_load(example)["keeps_colour"] is True
