"""`dreambooth evaluate` from a trained run to its files, on the debug model and the toybox's encoders."""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dreambooth.errors import UserError
from dreambooth.evaluation import embeddings, encoders, runs
from dreambooth.evaluation.comparison import compare
from dreambooth.evaluation.material import Plan, gather
from dreambooth.evaluation.metrics import Options
from dreambooth.evaluation.runs import evaluate, evaluate_all
from dreambooth.paths import endings
from dreambooth.run import Run
from tests import calls
from tests.commands import make_photos

ENCODERS = {"identity_encoder": "toybox-identity", "clip_encoder": "toybox-clip"}
PROMPTS = "- a [V] dog in the snow\n- a [V] dog on the beach\n- a red [V] dog\n"
ASKED = {
    *("dino", "clip_i", "clip_t", "clip_t_identifier", "pres", "div", "copying", "pres_drift", "diversity_drift"),
    *("class_kept", "class_clip_t", "class_clip_t_frozen"),
    *("oracle_dino", "oracle_dino_self", "oracle_clip_i", "floor_dino", "floor_clip_i", "ceiling_clip_t"),
}


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("prompts") / "prompts.yaml"
    file.write_text(PROMPTS)
    return str(file)


@pytest.fixture(scope="module")
def trained(tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("trained")
    photos = make_photos(home / "photos")
    done = calls.train(photos, tiny_sd, out=home / "run", inference_steps=2)
    assert done.status == 0, done
    return home / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def plan(prompts: str) -> Plan:
    return Plan(prompts, count=2, class_count=3)


def test_it_leaves_scores_pictures_and_a_report(run: Path, prompts: str) -> None:
    found = evaluate(run, plan(prompts), **ENCODERS)
    scores = json.loads((run / "scores.json").read_text())
    assert set(scores) >= ASKED
    assert all(set(figure) == {"value", "low", "high", "n"} for figure in scores.values())
    assert scores["dino"]["n"] == 6
    assert scores["pres"]["n"] == 3
    document = json.loads((run / "evaluation" / "evaluation.json").read_text())
    assert document["scores"] == scores == found.document["scores"]
    assert [entry["text"] for entry in document["prompts"]][2] == "a red [V] dog"
    pictures = [run / "evaluation" / image["file"] for entry in document["prompts"] for image in entry["images"]]
    assert len(pictures) == 6
    assert all(file.is_file() for file in pictures)
    assert {finding["name"] for finding in document["findings"]} == {
        "context",
        "weak prior",
        "overfitting",
        "drift",
        "siblings",
        "class",
        "entanglement",
    }
    assert "in the snow" in (run / "report.html").read_text()


def test_one_picture_of_the_class_is_enough_for_a_report(run: Path, prompts: str) -> None:
    found = evaluate(run, Plan(prompts, count=2, class_count=1, siblings=0), **ENCODERS)
    assert found.document["scores"]["diversity_drift"]["value"] is None
    assert "in the snow" in (run / "report.html").read_text()


def test_a_score_can_be_recomputed_from_what_was_written(run: Path, prompts: str) -> None:
    evaluate(run, plan(prompts), **ENCODERS)
    document = json.loads((run / "evaluation" / "evaluation.json").read_text())
    encoder = encoders.load("toybox-identity")
    photos = sorted(Run(run).recipe.subjects[0].photos.glob("*.png"))
    real = embeddings.embed_files(encoder, photos)
    means = []
    for entry in document["prompts"]:
        rows = embeddings.embed_files(encoder, [run / "evaluation" / image["file"] for image in entry["images"]])
        means.append(np.mean([row @ photo for row in rows for photo in real]))
        assert [image["dino"] for image in entry["images"]] == pytest.approx((rows @ real.T).mean(1), abs=1e-4)
    assert document["scores"]["dino"]["value"] == pytest.approx(np.mean(means), abs=1e-6)


def test_what_is_there_is_used_again_and_what_is_not_is_drawn(
    run: Path, prompts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = evaluate(run, plan(prompts), **ENCODERS)
    with monkeypatch.context() as patch:
        patch.setattr("dreambooth.targets.load", lambda *_: pytest.fail("a model was loaded"))
        again = evaluate(run, plan(prompts), **ENCODERS)
    assert again.document == first.document
    lost = first.materials[0].tuned.shots[1].file
    before = lost.read_bytes()
    lost.unlink()
    assert evaluate(run, plan(prompts), **ENCODERS).document == first.document
    assert lost.read_bytes() == before


def test_without_sibling_classes_the_other_scores_are_the_same(run: Path, prompts: str, tmp_path: Path) -> None:
    whole = evaluate(run, plan(prompts), **ENCODERS)
    shutil.rmtree(run / "evaluation")
    bare = evaluate(run, replace(plan(prompts), siblings=0), **ENCODERS)
    assert whole.figures.keys() - bare.figures.keys() == {"sibling_drift"}
    for name, figure in bare.figures.items():
        assert figure.value == pytest.approx(whole.figures[name].value, abs=1e-3), name
    told = {finding["name"]: finding for finding in bare.document["findings"]}
    assert {told[name]["level"] for name in ("weak prior", "class")} == {"unknown"}
    assert [entry["class"] for entry in bare.document["drift"]] == ["dog"]


def test_a_broken_picture_is_named(run: Path, prompts: str) -> None:
    found = evaluate(run, plan(prompts), **ENCODERS)
    broken = found.materials[0].tuned.shots[3].file
    broken.write_bytes(broken.read_bytes()[:100])
    done = calls.call("evaluate", run, "--prompts", prompts, "--count", 2, "--class-count", 3, *flags())
    assert (done.status, done.out) == (2, "")
    assert broken.name in done.err.splitlines()[-1]


def flags() -> list[str]:
    return [word for name, value in ENCODERS.items() for word in (f"--{name.replace('_', '-')}", value)]


def test_the_command_prints_the_scores_as_json(run: Path, prompts: str) -> None:
    done = calls.call("evaluate", run, "--prompts", prompts, "--count", 2, "--class-count", 3, "--json", *flags())
    assert done.status == 0, done
    assert json.loads(done.out) == json.loads((run / "scores.json").read_text())


def test_the_command_tells_which_prompts_it_took(run: Path) -> None:
    line = ("--prompts", "object", "--count", 1, "--class-count", 1, *flags())
    assert "prompts  object, 25 (--prompts says otherwise)" in calls.call("evaluate", run, *line).out.splitlines()


def test_two_runs_are_compared_on_the_same_pictures(run: Path, prompts: str, tmp_path: Path) -> None:
    other = Path(shutil.copytree(run, tmp_path / "other"))
    arguments = ["--prompts", prompts, "--count", 2, "--class-count", 3, "--out", tmp_path / "compared", *flags()]
    done = calls.call("evaluate", run, other, *arguments, "--json")
    assert done.status == 0, done
    assert set(json.loads(done.out)) == {str(run), str(other)}
    compared = json.loads((tmp_path / "compared" / "comparison.json").read_text())
    assert {pair["metric"] for pair in compared["pairs"]} >= {"dino", "clip_t"}
    assert all(pair["difference"]["value"] == 0 for pair in compared["pairs"])  # the same run twice
    assert (tmp_path / "compared" / "comparison.html").is_file()


def test_held_out_photos_must_be_held_out(run: Path, prompts: str) -> None:
    photos = Run(run).recipe.subjects[0].photos
    arguments = ["--prompts", prompts, "--held-out", photos, *flags()]
    assert "was trained on" in calls.call("evaluate", run, *arguments).refusal


@pytest.mark.parametrize("words", [("--references", "held-out"), ("--diversity", "lpips-alex")])
def test_what_is_not_there_is_said_before_anything_is_drawn(
    run: Path, prompts: str, words: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lpips", None)
    refusal = calls.call("evaluate", run, "--prompts", prompts, *words, *flags()).refusal
    assert "give --held-out FOLDER" in refusal or "pip install 'dreambooth[lpips]'" in refusal
    assert not (run / "evaluation").exists()


def halve(files: dict[str, list[Path]], folder: Path) -> dict[str, dict[str, list[Path]]]:
    """Write masks of the left halves of pictures into `folder/masks`; return pictures of each side alone, on grey."""
    halves: dict[str, dict[str, list[Path]]] = {"foreground": {}, "background": {}}
    for name, file in ((name, file) for name, some in files.items() for file in some):
        picture = Image.open(file).convert("RGB")
        mask = Image.new("L", picture.size)
        mask.paste(255, (0, 0, picture.width // 2, picture.height))
        masks = folder / "masks" / name
        masks.mkdir(parents=True, exist_ok=True)
        mask.save(masks / f"{file.stem}.png")
        for side, kept in (("foreground", mask), ("background", mask.point(lambda value: 255 - value))):
            half = folder / f"{side}-{name}-{file.stem}.png"
            Image.composite(picture, Image.new("RGB", picture.size, embeddings.GREY), kept).save(half)
            halves[side].setdefault(name, []).append(half)
    return halves


def likeness(one: list[Path], two: list[Path]) -> float:
    encoder = encoders.load("toybox-identity", "cpu")
    return float((embeddings.embed_files(encoder, one) @ embeddings.embed_files(encoder, two).T).mean())


def test_masks_tell_the_subject_from_its_surroundings(run: Path, prompts: str, tmp_path: Path) -> None:
    """The scores of one side of the masks are those of pictures that show only that side, on grey."""
    material = evaluate(run, plan(prompts), **ENCODERS).materials[0]
    sets = {
        "tuned": [shot.file for shot in material.tuned.shots],
        "frozen": [shot.file for shot in material.frozen.shots],
        "photos": [photo.path for photo in material.photos],
    }
    halves = halve(sets, tmp_path)
    figures = evaluate(run, plan(prompts), **ENCODERS, mask_folder=tmp_path / "masks").figures
    for side, score in (("foreground", "foreground_dino"), ("background", "background")):
        for label, name in ((score, "tuned"), (f"floor_{score}", "frozen")):
            expected = likeness(halves[side][name], halves[side]["photos"])
            assert figures[label].value == pytest.approx(expected, abs=1e-5)
    assert figures["foreground_dino"].value != pytest.approx(figures["background"].value, abs=1e-3)


def test_masks_serve_photos_that_are_held_out_too(run: Path, prompts: str, tmp_path: Path) -> None:
    held_out = make_photos(tmp_path / "held out", ((80, 96),) * 2)
    material = evaluate(run, plan(prompts), **ENCODERS).materials[0]
    sets = {
        "tuned": [shot.file for shot in material.tuned.shots],
        "photos": [photo.path for photo in material.photos],
        "held-out": sorted(held_out.glob("*.png")),
    }
    halves = halve(sets, tmp_path)
    asked = {"held_out": held_out, "mask_folder": tmp_path / "masks", **ENCODERS}
    for rule, name in (("held-out", "held-out"), ("all", "photos")):
        figures = evaluate(run, plan(prompts), Options(rule), **asked).figures
        expected = likeness(halves["foreground"]["tuned"], halves["foreground"][name])
        assert figures["foreground_dino"].value == pytest.approx(expected, abs=1e-5)
    (tmp_path / "masks" / "held-out" / "1.png").unlink()
    evaluate(run, plan(prompts), **asked)  # which does not look at them
    with pytest.raises(UserError, match=r"1\.png has no mask .*held-out"):
        evaluate(run, plan(prompts), Options("held-out"), **asked)


def test_several_runs_have_their_masks_apart(run: Path, prompts: str, tmp_path: Path) -> None:
    """Their pictures have the same names, and show the subject elsewhere."""
    other = Path(shutil.copytree(run, tmp_path / "other"))
    material = evaluate(run, plan(prompts), **ENCODERS).materials[0]
    sets = {"tuned": [shot.file for shot in material.tuned.shots], "photos": [photo.path for photo in material.photos]}
    halves = halve(sets, tmp_path)
    (tmp_path / "masks").rename(tmp_path / "left")
    for name in ("run", "other"):
        shutil.copytree(tmp_path / "left", tmp_path / "masks" / name)
    for mask in (tmp_path / "masks" / "other" / "tuned").iterdir():
        Image.open(mask).point(lambda value: 255 - value).save(mask)
    line = ["--prompts", prompts, "--count", 2, "--class-count", 3, "--masks", tmp_path / "masks", *flags()]
    line += ["--out", tmp_path / "compared"]
    assert calls.call("evaluate", run, other, *line).status == 0
    for folder, side in ((run, "foreground"), (other, "background")):
        expected = likeness(halves[side]["tuned"], halves["foreground"]["photos"])
        figure = json.loads((folder / "scores.json").read_text())["foreground_dino"]
        assert figure["value"] == pytest.approx(expected, abs=1e-5)
    again = Path(shutil.copytree(run, tmp_path / "again" / "run"))
    assert "two runs are called run" in calls.call("evaluate", run, again, *line).refusal
    (tmp_path / "masks" / "other").rename(tmp_path / "masks" / "third")
    third = Path(shutil.copytree(run, tmp_path / "third"))
    shutil.rmtree(third / "evaluation")
    assert f"has no mask {tmp_path / 'masks' / 'other'}" in calls.call("evaluate", third, other, *line).refusal
    assert not (third / "evaluation").exists()


def test_a_missing_mask_is_named_before_anything_is_drawn(run: Path, prompts: str, tmp_path: Path) -> None:
    refusal = calls.call("evaluate", run, "--prompts", prompts, "--masks", tmp_path, *flags()).refusal
    assert "has no mask" in refusal
    assert not (run / "evaluation").exists()


def test_refusals(run: Path, prompts: str, tmp_path: Path) -> None:
    assert "holds no run" in calls.call("evaluate", tmp_path).refusal
    assert "there is no encoder" in calls.call("evaluate", run, "--identity-encoder", "dino-vits17").refusal
    assert "no rule of references" in calls.call("evaluate", run, "--references", "some").refusal
    photo = min(Run(run).recipe.subjects[0].photos.glob("*.png"))
    moved = photo.rename(tmp_path / photo.name)
    assert "no longer holds the photos" in calls.call("evaluate", run, "--prompts", prompts).refusal
    Image.new("RGB", (64, 64)).save(photo)
    assert "no longer holds the photos" in calls.call("evaluate", run, "--prompts", prompts).refusal
    shutil.move(moved, photo)


def test_photos_are_known_by_what_they_show_whatever_they_are_called(run: Path) -> None:
    first, *_ = before = gather(Run(run), Plan()).photos
    moved = first.path.rename(first.path.with_name("zzz.png"))
    after = gather(Run(run), Plan()).photos
    assert [photo.id for photo in after] == [photo.id for photo in before]
    assert after[0].path.name == "zzz.png"
    moved.rename(first.path)


@pytest.mark.parametrize(
    ("noun", "classes"),
    [
        ("dog", ("dog", "cat", "duck")),
        ("Corgi", ("Corgi", "cat", "duck")),
        ("kitten", ("kitten", "dog", "duck")),
        ("wolf", ("wolf", "cat", "dog")),
        ("sports car", ("sports car", "teapot", "clock")),
    ],
)
def test_other_classes_are_none_that_the_subject_is_of(
    noun: str, classes: tuple[str, ...], run: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    recipe = copy / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("class_noun: dog", f"class_noun: {noun}"))
    assert gather(Run(copy), Plan()).classes == classes


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--clip-encoder", "toybox-identity"], "the encoder toybox-identity reads no text"),
        (["--diversity", "lpips-alex"], "LPIPS cannot be loaded"),
    ],
)
def test_what_is_found_late_is_said_before_anything_is_drawn(
    more: list[str], said: str, run: Path, prompts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lpips", None)
    given = [*flags()[: 2 if "--clip-encoder" in more else 4], *more]
    assert said in calls.call("evaluate", run, "--prompts", prompts, *given).refusal
    assert not (run / "evaluation").exists()


def test_a_run_that_cannot_be_measured_is_told_before_the_others_are_drawn(
    run: Path, prompts: str, tmp_path: Path
) -> None:
    cut = Run(shutil.copytree(run, tmp_path / "cut"))
    cut.update(finished=False)
    for other, said in ((cut.path, "cut is not finished"), (tmp_path / "nosuch", "nosuch")):
        assert said in calls.call("evaluate", run, other, "--prompts", prompts, *flags()).refusal
    assert not (run / "evaluation").exists()


def test_counts_that_draw_nothing_are_refused_before_anything_is_removed(run: Path, prompts: str) -> None:
    evaluate(run, plan(prompts), **ENCODERS)
    there = sorted((run / "evaluation").rglob("*.png"))
    for flag, value in (("--count", 0), ("--class-count", 0), ("--seed", -1), ("--references", "fixed:9")):
        refusal = calls.call("evaluate", run, "--prompts", prompts, flag, value, *flags()).refusal
        assert str(value) in refusal or "no photo 9 among 3" in refusal
    assert sorted((run / "evaluation").rglob("*.png")) == there


def test_only_runs_of_the_same_subject_are_compared(run: Path, tiny_sd: Path, tmp_path: Path) -> None:
    photos = Run(run).recipe.subjects[0].photos
    others = {
        "vase": (photos, "vase", "are of a dog and a vase: compare runs of the same subject and class"),
        "new": (make_photos(tmp_path / "new", ((80, 96),) * 3), "dog", "were trained on different photos of the dog"),
    }
    for name, (folder, noun, said) in others.items():
        done = calls.train(folder, tiny_sd, out=tmp_path / "runs" / name, inference_steps=2, **{"class": noun})
        assert done.status == 0, done
        refusal = calls.call("evaluate", run, tmp_path / "runs" / name, *flags()).refusal
        assert refusal.startswith(f"{run} and {tmp_path / 'runs' / name} {said}")
        assert not (run / "evaluation").exists()


def test_pictures_are_paired_by_what_their_prompts_ask_for(run: Path, prompts: str, tmp_path: Path) -> None:
    """Whatever their order in the lists; and runs with other prompts are refused."""
    (tmp_path / "turned.yaml").write_text("".join(reversed(PROMPTS.splitlines(keepends=True))))
    (tmp_path / "others.yaml").write_text("- a [V] dog in the snow\n- a [V] dog at sea\n")
    found = evaluate(run, plan(prompts), **ENCODERS)
    turned, others = (
        evaluate(Path(shutil.copytree(run, tmp_path / name)), plan(str(tmp_path / f"{name}.yaml")), **ENCODERS)
        for name in ("turned", "others")
    )
    for pair in compare([found, turned])["pairs"]:
        assert pair["difference"]["value"] == pytest.approx(0, abs=1e-3), pair["metric"]  # drawn in other batches
    with pytest.raises(UserError, match=r"differ in 3 prompts, such as 'red \{\}': evaluate both with the same"):
        compare([found, others])


def test_comparing_needs_the_same_encoders(run: Path, prompts: str) -> None:
    found = evaluate(run, plan(prompts), **ENCODERS)
    other = evaluate(run, plan(prompts), **ENCODERS)
    other.document["encoders"] = {"dino": "another"}
    with pytest.raises(Exception, match="scored by different encoders"):
        compare([found, other])


def test_encoders_that_differ_are_found_before_anything_is_drawn(
    run: Path, prompts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Path(shutil.copytree(run, tmp_path / "other"))
    monkeypatch.setattr(runs, "encoder_names", lambda opened, *asked: ("toybox-identity", opened.path.name))
    with pytest.raises(UserError, match=f"{run} and {other} are scored by different encoders: name one for both"):
        evaluate_all([run, other], plan(prompts), **ENCODERS)
    assert not (run / "evaluation").exists()


def test_runs_of_one_name_are_told_apart(run: Path, prompts: str, tmp_path: Path) -> None:
    folders = [Path(shutil.copytree(run, tmp_path / home / "dog")) for home in ("one", "two")]
    compared = compare(evaluate_all(folders, plan(prompts), **ENCODERS))
    assert [each["name"] for each in compared["runs"]] == ["one/dog", "two/dog"]
    assert {(pair["a"], pair["b"]) for pair in compared["pairs"]} == {("one/dog", "two/dog")}
    assert endings([tmp_path / "a", tmp_path / "b"]) == ["a", "b"]
    assert endings([run, run]) == ["run", "run"]


@pytest.mark.skipif(not Path("/dev/fd").is_dir(), reason="the system has no /dev/fd")
def test_prompts_may_come_through_a_pipe(run: Path) -> None:
    """As `--prompts <(...)` gives them: they can be read once."""
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as file:
        file.write(PROMPTS)
    flags = ["--count", 1, "--class-count", 1, *(f"--{name.replace('_', '-')}={of}" for name, of in ENCODERS.items())]
    done = calls.call("evaluate", run, "--prompts", f"/dev/fd/{reader}", *flags)
    os.close(reader)
    assert done.status == 0, done.err
    assert len(json.loads((run / "evaluation" / "evaluation.json").read_text())["prompts"]) == 3
