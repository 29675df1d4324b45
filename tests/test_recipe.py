"""The recipe: what it refuses, how it round-trips, and what changes the identity of a run."""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageOps

from dreambooth import environment, planning, presets
from dreambooth.errors import UserError
from dreambooth.models import native_resolution, resolve
from dreambooth.recipe import LATER, Recipe, counted, identity
from dreambooth.run import Run
from tests.commands import make_photos
from tests.pictures import picture

SUBJECT = {"photos": "photos", "class_noun": "dog", "identifier": "ohwx"}
COUNTED = {
    "method": "full",
    "label": "a [V]",
    "learning_rate": 2e-4,
    "schedule": "cosine",
    "warmup": 3,
    "batch_size": 2,
    "adapter": "dora",
    "min_rank": 2,
    "rank": 8,
    "alpha": 2.0,
    "targets": "wide",
    "train_text_encoder": True,
    "text_encoder_learning_rate": 1e-6,
    "prior_weight": 0.5,
    "prior_loss": "distilled",
    "prior_dropout": 0.2,
    "prior_others": 0.3,
    "dco_beta": 1000.0,
    "l2_to_base": 1.0,
    "low_resolution_noise": 0,
    "prior_count": 7,
    "prior_scenes": ["on a street"],
    "prior_steps": 9,
    "prior_guidance": 2.0,
    "prior_precision": "bf16",
    "min_snr": 5.0,
    "resolution": 64,
    "aspect": "keep",
    "more_resolutions": [768],
    "crops": 1,
    "scales": 2,
    "flip": True,
    "background_weight": 0.5,
    "optimizer": "prodigy",
    "ema": 0.9,
    "select": True,
    "base": "nf4",
    "weight_decay": 0.1,
    "beta1": 0.8,
    "beta2": 0.99,
    "max_grad_norm": 2.0,
    "step_in_backward": True,
    "ema_profiles": True,
    "precision": "bf16",
    "seed": 1,
}
OFF = ("prior_precision", "prior_scenes", "min_rank", "dco_beta", "l2_to_base", "low_resolution_noise", "consistency")
BY_MEMORY = ("memory", "accumulation", "gradient_checkpointing", "offload_blocks")
ASIDE = {
    "model": "elsewhere",
    "revision": "main",
    "steps": 77,
    "accumulation": 2,
    "prior_images": "elsewhere",
    "start": "elsewhere",
    "gradient_checkpointing": True,
    "cuda_graphs": True,
    "offload_blocks": True,
    "compile": True,
    "memory": 8.0,
    "cache": False,
    "save_every": 3,
    "keep": 9,
    "log_every": 4,
    "scenes": ["a [V] dog on the moon"],
    "samples": 1,
    "sampler": "ddim",
    "inference_steps": 5,
    "guidance": 2.0,
    "consistency": 0.4,
    "allow": ["identifier"],
}


def recipe(**values: Any) -> Recipe:
    return Recipe.of({"subjects": [SUBJECT], **values})


def refusal(values: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        Recipe.of(values)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def name(values: Recipe, model: str = "sha256:1", photo: str = "a") -> str:
    return identity(values, model, [[[photo, "", ""]]])


def test_every_setting_either_counts_or_does_not() -> None:
    """A new setting must say whether it changes the result, by its place in one of the two tables above."""
    assert {*COUNTED, *ASIDE, "subjects"} == set(Recipe.model_fields)


@pytest.mark.parametrize("setting", COUNTED)
def test_what_changes_the_result_changes_the_identity(setting: str) -> None:
    assert name(recipe(**{setting: COUNTED[setting]})) != name(recipe())


@pytest.mark.parametrize("setting", ASIDE)
def test_what_does_not_change_the_result_leaves_the_identity(setting: str) -> None:
    changed = recipe(**{setting: ASIDE[setting]})
    assert changed != recipe()
    assert name(changed) == name(recipe())


@pytest.mark.parametrize("phased", [{"schedule": "cosine"}, {"method": "pivotal"}])
def test_the_number_of_steps_counts_where_what_they_do_depends_on_it(phased: dict[str, Any]) -> None:
    assert name(recipe(**phased, steps=5)) != name(recipe(**phased, steps=6))


@pytest.mark.parametrize(
    ("changed", "counts"),
    [({"class_noun": "cat"}, True), ({"identifier": "phol"}, True), ({"photos": "elsewhere"}, False)],
)
def test_the_subject_counts_and_not_where_its_photos_lie(changed: dict[str, str], counts: bool) -> None:
    assert (name(recipe(subjects=[{**SUBJECT, **changed}])) != name(recipe())) == counts


@pytest.mark.parametrize("setting", LATER)
def test_a_later_setting_does_not_count_as_what_it_was(setting: str) -> None:
    """Runs from before it was there keep their identity."""
    assert setting not in counted(recipe(**{setting: LATER[setting]}))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, "distilled"),
        ({"adapter": "dora", "train_text_encoder": True}, "distilled"),
        ({"prior_loss": "images"}, "images"),
        ({"method": "pivotal"}, "images"),
        ({"method": "full"}, "images"),
        ({"method": "full", "prior_loss": "parent"}, "parent"),
        ({"method": "textual-inversion"}, "images"),
        ({"prior_weight": 0.0}, "images"),
        ({"dco_beta": 1000.0}, "images"),
        ({"l2_to_base": 1.0}, "images"),
        ({"prior_images": "dogs"}, "distilled"),
    ],
)
def test_the_prior_is_the_best_that_was_measured_unless_another_is_asked_for(
    values: dict[str, Any], expected: str, tiny_sd: Path
) -> None:
    filled, reasons = presets.fill(recipe(**values), resolve(str(tiny_sd)), 32, "cpu")
    assert filled.prior_loss == expected
    assert ("prior_loss" in reasons) == ("prior_loss" not in values)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, 0.1),
        ({"prior_loss": "parent", "method": "full"}, 0.1),
        ({"prior_loss": "images"}, 0.0),
        ({"prior_weight": 0.0}, 0.0),
        ({"guidance": 1.0}, 0.1),
        ({"prior_dropout": 0.3}, 0.3),
    ],
)
def test_the_frozen_model_is_kept_where_guidance_starts_from(
    values: dict[str, Any], expected: float, tiny_sd: Path
) -> None:
    source = resolve(str(tiny_sd))
    assert presets.fill(recipe(**values), source, 32, "cpu")[0].prior_dropout == expected
    for told in (replace(source, family="flux"), replace(source, family="flux2", name="flux2-dev")):
        assert presets.fill(recipe(**values), told, 32, "cpu")[0].prior_dropout == values.get("prior_dropout", 0.0)
    unguided = replace(source, family="z_image", name="z-image-turbo")
    assert presets.fill(recipe(), unguided, 32, "cpu")[0].prior_dropout == 0


@pytest.mark.parametrize(("method", "weight"), [("lora", 1.0), ("full", 1.0), ("textual-inversion", 0.0)])
def test_the_prior_is_on_where_the_class_could_be_lost(method: str, weight: float, tiny_sd: Path) -> None:
    source = resolve(str(tiny_sd))
    assert presets.fill(recipe(method=method), source, 32, "cpu")[0].prior_weight == weight
    assert presets.fill(recipe(method=method, prior_weight=0.25), source, 32, "cpu")[0].prior_weight == 0.25


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"rank": 4}, "--rank is a setting of a LoRA: leave it out, or use --method lora"),
        ({"alpha": 4.0}, "--alpha is a setting of a LoRA: leave it out, or use --method lora"),
        ({"train_text_encoder": True}, "--train-text-encoder does not go with textual inversion"),
        ({"text_encoder_learning_rate": 1e-4}, "--text-encoder-learning-rate does not go with textual inversion"),
    ],
)
def test_what_textual_inversion_has_no_use_for_is_refused(setting: dict[str, Any], said: str, tiny_sd: Path) -> None:
    with pytest.raises(UserError) as caught:
        presets.fill(recipe(method="textual-inversion", **setting), resolve(str(tiny_sd)), 32, "cpu")
    assert str(caught.value).startswith(said)


def test_a_method_without_a_preset_is_refused(tiny_sd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(presets.TRAINING, ("sd", "full"))
    with pytest.raises(UserError) as caught:
        presets.fill(recipe(method="full"), resolve(str(tiny_sd)), 32, "cpu")
    mend = "use --method lora or --method textual-inversion or --method pivotal"
    assert str(caught.value) == f"--method full is not there for sd models: {mend}"


def test_the_model_and_the_photos_count() -> None:
    assert name(recipe(), model="sha256:2") != name(recipe())
    assert name(recipe(), photo="b") != name(recipe())


class Folder:
    """A recipe's photos and real class images, on which identities are taken as `train` takes them."""

    def __init__(self, home: Path, model: Path) -> None:
        self.photos = make_photos(home / "photos")
        self.class_images = make_photos(home / "dogs")
        self.model = model

    def identity(self, **values: Any) -> str:
        subject = {**SUBJECT, "photos": self.photos}
        plans = planning.make_plans(Recipe.of({"subjects": [subject], "model": str(self.model), **values}))
        return plans.identity(plans.recipe)


@pytest.fixture
def folder(tmp_path: Path, tiny_sd: Path) -> Folder:
    return Folder(tmp_path, tiny_sd)


def caption(folder: Folder) -> None:
    (folder.photos / "0.txt").write_text("a [V] dog on a sofa", encoding="utf-8")


def mask(folder: Folder, left: int = 10) -> None:
    size = Image.open(folder.photos / "0.png").size
    whole = Image.new("L", size, 0)
    whole.paste(255, (left, 10, left + 30, 50))
    whole.save(folder.photos / "0.mask.png")


def another_mask(folder: Folder) -> None:
    mask(folder, left=20)


def another_photo(folder: Folder) -> None:
    picture(9).save(folder.photos / "9.png")


def another_pixel(folder: Folder) -> None:
    ImageOps.mirror(Image.open(folder.photos / "0.png")).save(folder.photos / "0.png")


def test_photos_captions_and_masks_count_by_their_content(folder: Folder) -> None:
    changes: list[Callable[[Folder], None]] = [caption, mask, another_mask, another_photo, another_pixel]
    seen = [folder.identity()]
    for change in changes:
        change(folder)
        seen.append(folder.identity())
    assert len(set(seen)) == len(changes) + 1


def test_a_copy_of_the_photos_is_the_same(folder: Folder) -> None:
    caption(folder)
    mask(folder)
    before = folder.identity()
    folder.photos = Path(shutil.copytree(folder.photos, folder.photos.with_name("elsewhere")))
    assert folder.identity() == before


def test_real_class_images_count_by_their_content(folder: Folder) -> None:
    generated = folder.identity()
    real = folder.identity(prior_images=folder.class_images)
    assert real != generated
    picture(9).save(folder.class_images / "9.png")
    assert folder.identity(prior_images=folder.class_images) not in (real, generated)


def test_a_default_that_is_given_is_the_default(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "has_bf16", lambda: False)
    assert folder.identity(learning_rate=1e-4, rank=4, alpha=4, resolution=32, precision="fp32") == folder.identity()


def test_yaml_gives_the_same_recipe(tmp_path: Path) -> None:
    values = {**COUNTED, **ASIDE, "allow": ["identifier", "learning-rate"], "subjects": [SUBJECT, SUBJECT]}
    whole = Recipe.of(values)
    (tmp_path / "recipe.yaml").write_text(whole.to_yaml(), encoding="utf-8")
    assert Recipe.read(tmp_path / "recipe.yaml") == whole
    assert name(Recipe.read(tmp_path / "recipe.yaml")) == name(whole)


def test_yaml_takes_numbers_as_people_write_them(tmp_path: Path) -> None:
    text = "subjects:\n- {photos: x, class_noun: dog}\nlearning_rate: 1e-4\nalpha: 4\n"
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    assert (Recipe.read(tmp_path / "recipe.yaml").learning_rate, Recipe.read(tmp_path / "recipe.yaml").alpha) == (
        1e-4,
        4,
    )


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"lerning_rate": 1e-4}, "unknown setting 'lerning_rate': did you mean 'learning_rate'?"),
        ({"prior-count": 3}, "unknown setting 'prior-count': did you mean 'prior_count'?"),
        ({"max_train_steps": 3}, "unknown setting 'max_train_steps': did you mean 'steps'?"),
        ({"output_dir": "x"}, "unknown setting 'output_dir': `dreambooth train --help` lists them"),
        ({"use_8bit_adam": True}, "unknown setting 'use_8bit_adam': did you mean 'optimizer'?"),
        ({"xyzzy": 1}, "unknown setting 'xyzzy': `dreambooth train --help` lists them"),
        (
            {"subjects": [{"photos": "x", "clas_noun": "dog"}]},
            "unknown setting 'clas_noun': did you mean 'class_noun'?",
        ),
        ({"subjects": []}, "subjects []: give at least one"),
        ({"subjects": "photos"}, "subjects photos: give a list"),
        ({"subjects": ["photos"]}, "subjects.0 photos: give 'photos: FOLDER' and 'class_noun: NOUN'"),
        ({"scenes": "a [V] dog"}, "--scenes a [V] dog: give a list"),
        ({"rank": -1}, "--rank -1: input should be greater than or equal to 1"),
        ({"rank": "much"}, "--rank much: input should be a valid integer, unable to parse string as an integer"),
        ({"method": "lra"}, "--method lra: input should be 'lora', 'full', 'textual-inversion' or 'pivotal'"),
        (
            {"allow": ["everything"]},
            "--allow everything: input should be 'identifier', 'learning-rate', 'alpha', 'resolution', 'scenes', "
            "'guidance' or 'memory'",
        ),
    ],
)
def test_refusals(values: dict[str, Any], said: str) -> None:
    assert refusal({"subjects": [SUBJECT], **values}) == said


@pytest.mark.parametrize(
    ("noun", "said"),
    [
        ("", "the class noun is empty: give a noun such as dog, mug or robot"),
        (" \t", "the class noun is empty: give a noun such as dog, mug or robot"),
        ("dog\ncat", "the class noun has two lines: give one noun such as dog, mug or robot"),
    ],
)
def test_class_nouns(noun: str, said: str) -> None:
    assert refusal({"subjects": [{**SUBJECT, "class_noun": noun}]}) == said


@pytest.mark.parametrize("missing", ["photos", "class_noun"])
def test_what_has_no_default_is_asked_for(missing: str) -> None:
    subject = {key: value for key, value in SUBJECT.items() if key != missing}
    what = "class" if missing == "class_noun" else "photos"
    assert refusal({"subjects": [subject]}) == f"no {what} given: dreambooth train PHOTOS --class dog"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"- a list", "holds no recipe: expected 'setting: value' lines"),
        (b"", "holds no recipe: expected 'setting: value' lines"),
        (b"a: [1", "is no YAML: "),
        (b"\xff\xfe\xff", "is no YAML: "),
        (b"!!python/object/apply:os.getcwd []", "is no YAML: "),
        (b"scenes: 2024-13-45", "is no YAML: month must be in 1..12"),
    ],
)
def test_files_that_are_no_recipe(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        Recipe.read(path)
    assert str(caught.value).startswith(f"{path} {said}")
    assert "\n" not in str(caught.value)


WRITTEN = "subjects:\n- {photos: x, class_noun: dog}\n"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("stepps: 3", "unknown setting 'stepps': did you mean 'steps'?"),
        ("1: 2", "unknown setting '1': `dreambooth train --help` lists them"),
        ("steps: yes", "--steps is no switch: give a value, not yes or no"),
        ("subjects: yes", "--subjects is no switch: give a value, not yes or no"),
        ("precision: off", "--precision is no switch: give a value, not yes or no"),
        ("prior_count: 0", "--prior-count 0: input should be greater than or equal to 1"),
    ],
)
def test_what_is_wrong_in_a_file_names_it(line: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(WRITTEN + line, encoding="utf-8")
    for read in (lambda: Recipe.read(path), lambda: Run(tmp_path).recipe):
        with pytest.raises(UserError) as caught:
            read()
        assert str(caught.value) == f"{path}: {said}"


def test_switches_are_yes_or_no(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(WRITTEN + "flip: yes\ngradient_checkpointing: off\n", encoding="utf-8")
    assert (Recipe.read(path).flip, Recipe.read(path).gradient_checkpointing) == (True, False)


@pytest.mark.parametrize("line", ["scenes:\n- [V] dog on the beach", "label: [V] {class}"])
def test_what_begins_with_the_identifier_is_to_be_quoted(line: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(WRITTEN + line, encoding="utf-8")
    with pytest.raises(UserError, match=r"is no YAML: .*: what begins with \[V\] is to be in quotes: '\[V\] dog'$"):
        Recipe.read(path)


def test_nothing_is_left_open_and_every_choice_has_a_reason(tiny_sd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "has_bf16", lambda: False)
    source = resolve(str(tiny_sd))
    unused = {"lora": set(), "pivotal": set(), "full": {"rank", "alpha"}}
    unused["textual-inversion"] = {"rank", "alpha", "text_encoder_learning_rate"}
    for method in unused:
        given = recipe(method=method, seed=3)
        filled, reasons = presets.fill(given, source, native_resolution(source), "cpu")
        left = {key for key, value in filled if value is None}
        optional = {"model", "revision", "prior_images", "start", "min_snr", "scenes", "ema", "base", *OFF, *BY_MEMORY}
        assert left == optional | unused[method]
        changed = {key for key, value in filled if value != getattr(given, key)}
        assert changed == set(reasons)
        assert all(reasons.values())


@pytest.mark.parametrize(
    ("values", "accelerator", "has_bf16", "expected"),
    [
        ({"method": "full"}, "cpu", True, "bf16"),
        ({"prior_loss": "images"}, "cpu", True, "bf16"),
        ({"prior_loss": "images"}, "cpu", False, None),
        ({"prior_loss": "images"}, "cuda", True, None),
        ({"prior_loss": "images", "precision": "fp32"}, "cpu", True, None),
        ({"precision": "fp32", "prior_precision": "bf16"}, "cpu", False, "bf16"),
        ({"prior_loss": "parent"}, "cpu", True, None),
        ({"prior_loss": "parent", "prior_precision": "bf16"}, "cpu", True, None),
        ({"method": "full", "precision": "bf16", "prior_precision": "bf16"}, "cpu", True, None),
        ({"prior_weight": 0.0}, "cpu", True, None),
        ({"prior_images": "dogs"}, "cpu", True, None),
        ({"method": "textual-inversion"}, "cpu", True, None),
    ],
)
def test_class_images_are_drawn_in_bf16_where_the_cpu_has_it_and_nothing_else_was_asked(
    values: dict[str, Any],
    accelerator: str,
    has_bf16: bool,
    expected: str | None,
    tiny_sd: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(environment, "has_bf16", lambda: has_bf16)
    filled, reasons = presets.fill(recipe(**values), resolve(str(tiny_sd)), 32, accelerator)
    assert filled.prior_precision == expected
    assert ("prior_precision" in reasons) == (filled.prior_precision != values.get("prior_precision"))
    again, _ = presets.fill(filled, resolve(str(tiny_sd)), 32, accelerator)
    assert again == filled, "a run's own recipe makes the same run, wherever it is repeated"


@pytest.mark.parametrize(("accelerator", "expected"), [("cpu", "fp32"), ("mps", "fp32"), ("cuda", "bf16")])
def test_the_precision_suits_the_device(accelerator: str, expected: str, tiny_sd: Path) -> None:
    filled, _ = presets.fill(recipe(), resolve(str(tiny_sd)), 32, accelerator)
    assert filled.precision == expected


@pytest.mark.parametrize(("steps", "every"), [(1, 1), (8, 2), (10, 3), (1000, 250), (4000, 500)])
def test_checkpoints_come_at_every_quarter(steps: int, every: int, tiny_sd: Path) -> None:
    filled, _ = presets.fill(recipe(steps=steps), resolve(str(tiny_sd)), 32, "cpu")
    assert filled.save_every == every


def test_paths_are_no_part_of_what_counts() -> None:
    whole = recipe(model="/home/me/model", prior_images="/home/me/dogs", subjects=[{**SUBJECT, "photos": "/home/me/x"}])
    assert "/home/me" not in str(counted(whole))


def test_every_setting_is_described() -> None:
    for key, field in Recipe.model_fields.items():
        assert field.description, key
        assert inspect.cleandoc(field.description).endswith("."), key
