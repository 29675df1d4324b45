"""Each mistake is found before any work, and told in words that mend it; what is right passes without a word."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dreambooth import contradictions, mistakes, optimizers, presets
from dreambooth.errors import UserError
from dreambooth.mistakes import Plan
from dreambooth.models import Source, resolve
from dreambooth.photos import Photo
from dreambooth.recipe import Recipe

DOG = {"photos": "photos/dog", "class_noun": "dog"}
MUG = {"photos": "photos/mug", "class_noun": "mug"}
PRODIGY = {"optimizer": "prodigy"}


@pytest.fixture
def source(tiny_sd: Path) -> Source:
    return resolve(str(tiny_sd))


def photos(count: int = 4, **values: Any) -> list[Photo]:
    plain = [Photo(f"id{index}", Path(f"{index}.jpg"), (64, 64), None, None) for index in range(count)]
    return [replace(photo, **values) for photo in plain]


def plan(source: Source, pool: list[Photo] | None = None, name: str | None = None, **values: Any) -> Plan:
    """The plan of a recipe on the debug model; `name` makes the source pass for a model with presets of its own."""
    source = replace(source, name=name, family=name.partition("-")[0]) if name else source
    given = Recipe.of({"subjects": [DOG], **values})
    filled, _ = presets.fill(given, source, 64, "cpu")
    return Plan(given, filled, source, 64, [photos() if pool is None else pool for _ in given.subjects])


@pytest.mark.parametrize("optimizer", optimizers.KINDS)
@pytest.mark.parametrize("method", ["lora", "full", "textual-inversion"])
@pytest.mark.parametrize("name", [None, "sdxl", "flux"])
def test_a_plain_run_is_passed_without_a_word_and_so_is_its_own_recipe(
    name: str | None, method: str, optimizer: str, source: Source
) -> None:
    if (optimizer, method) in (("muon", "full"), ("muon", "textual-inversion")):
        pytest.skip("muon trains matrices alone")
    plain = plan(source, name=name, method=method, optimizer=optimizer)
    again = replace(plain, given=Recipe.of(plain.recipe.model_dump()))
    contradictions.refuse(again.given)
    assert mistakes.look(plain) == mistakes.look(again) == []


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a LoRA's rate on a whole model": ({"method": "full", "learning_rate": 1e-4}, "would burn a whole model"),
    "a rate that burns the LoRA": ({"learning_rate": 0.5}, "burn the LoRA"),
    "AdamW's rate for prodigy": ({**PRODIGY, "learning_rate": 1e-4}, "multiplies the rate that it finds .* for 1 "),
    "full fine-tuning's rate for prodigy": ({**PRODIGY, "learning_rate": 1e-6}, "multiplies the rate .* for 1 "),
    "a rate that burns prodigy's LoRA": ({**PRODIGY, "learning_rate": 20.0}, "multiplies the rate that it finds"),
    "a text encoder's rate without training it": ({"text_encoder_learning_rate": 3e-5}, "does nothing without"),
    "an alpha that scales the LoRA away": ({"rank": 64, "alpha": 1.0}, "scales the LoRA away"),
    "an alpha that blows the LoRA up": ({"rank": 2, "alpha": 128.0}, "blows the LoRA up"),
    "a resolution too small": ({"resolution": 16}, "far from the 64 pixels"),
    "a resolution too large": ({"resolution": 256}, "far from the 64 pixels"),
    "a further resolution too large": ({"more_resolutions": [256]}, "--more-resolutions 256 is far from the 64"),
    "a resolution given twice": ({"more_resolutions": [64]}, "--more-resolutions 64 is learnt at already"),
    "a warm-up as long as the run": ({"steps": 20, "warmup": 20}, "lasts as long as"),
    "a class noun with an article": ({"subjects": [{**DOG, "class_noun": "a dog"}]}, "give 'dog'"),
    "an identifier in the class noun": (
        {"subjects": [{**DOG, "class_noun": "phol dog", "identifier": "phol"}]},
        "give the noun alone",
    ),
    "an identifier that is the class noun": (
        {"subjects": [{**DOG, "identifier": "dog"}]},
        "holds the identifier 'dog': give another --identifier, or none",
    ),
    "a scene without the subject": ({"scenes": ["a [V] dog", "a dog on the beach"]}, "write .V. in it"),
    "one folder for two subjects": ({"subjects": [DOG, {**MUG, "photos": "photos/dog"}]}, "give each its own"),
    "the photos as class images": ({"prior_images": "photos/dog"}, "give pictures of others of its class"),
    "a flow's sampler": ({"sampler": "heun"}, "no sampler 'heun' for this model"),
    "a weight of what is not masked": ({"background_weight": 0.5}, "does nothing without masks"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused(name: str, source: Source) -> None:
    values, message = REFUSED[name]
    with pytest.raises(UserError, match=message):
        mistakes.look(plan(source, **values))


@pytest.mark.parametrize(
    ("values", "allow"),
    [
        ({"method": "full", "learning_rate": 1e-4}, "learning-rate"),
        ({**PRODIGY, "learning_rate": 1e-6}, "learning-rate"),
        ({"rank": 64, "alpha": 1.0}, "alpha"),
        ({"resolution": 256}, "resolution"),
        ({"scenes": ["a dog on the beach"]}, "scenes"),
    ],
)
def test_who_knows_better_may(values: dict[str, Any], allow: str, source: Source) -> None:
    with pytest.raises(UserError, match=f"--allow {allow} overrides"):
        mistakes.look(plan(source, **values))
    mistakes.look(plan(source, **values, allow=[allow]))


@pytest.mark.parametrize("values", [{}, {"learning_rate": 0.1}, {"learning_rate": 10.0, "method": "full"}])
def test_prodigy_takes_rates_about_one(values: dict[str, Any], source: Source) -> None:
    assert mistakes.look(plan(source, **PRODIGY, **values)) == []


WARNED: dict[str, tuple[dict[str, Any], str]] = {
    "a text encoder faster than the denoiser": (
        {"train_text_encoder": True, "learning_rate": 1e-4, "text_encoder_learning_rate": 2e-4},
        "faster than the denoiser",
    ),
    "steps that do not show every photo": ({"steps": 3}, "do not show all 4 photos"),
    "steps that do not show every scale": ({"steps": 7, "scales": 1}, "all 4 photos once at all scales"),
    "a label without the class": ({"label": "a [V]"}, "leaves out the class noun"),
    "few class images": ({"prior_count": 3}, "soon known by heart"),
    "class images in few steps": ({"prior_steps": 3}, "a bad prior"),
    "class images counted and never drawn": ({"prior_count": 3, "prior_loss": "parent"}, "--prior-count does nothing"),
    "class images guided and never drawn": (
        {"prior_guidance": 3.0, "prior_weight": 0.0},
        "--prior-guidance does nothing",
    ),
    "pictures in few steps": ({"inference_steps": 3}, "pictures drawn in 3 steps"),
}


@pytest.mark.parametrize("name", WARNED)
def test_it_is_warned_of(name: str, source: Source) -> None:
    values, message = WARNED[name]
    (warning,) = mistakes.look(plan(source, **values))
    assert message in warning


def test_captions_that_do_not_name_the_subject(source: Source) -> None:
    named, silent = photos(2, caption="a [V] dog asleep"), photos(2, caption="a dog asleep")
    (warning,) = mistakes.look(plan(source, [*named, *silent]))
    assert "the captions of 2 photos (0.jpg, 1.jpg)" in warning
    assert mistakes.look(plan(source, named)) == []


def test_one_photo_of_two_subjects(source: Source) -> None:
    two = plan(source, subjects=[DOG, MUG])
    dog, mug = ([replace(photo, path=Path(name, photo.path)) for photo in photos()] for name in ("dog", "mug"))
    others = [replace(photo, id=f"mug {photo.id}") for photo in mug]
    assert mistakes.look(replace(two, photos=[dog, others])) == []
    assert mistakes.look(replace(two, photos=[[*dog, dog[0]], others])) == []
    (warning,) = mistakes.look(replace(two, photos=[dog, [*others[1:], mug[2]]]))
    assert warning.startswith("dog/2.jpg and mug/2.jpg are one photo for two subjects")


def test_masks_that_do_nothing(source: Source) -> None:
    masked = photos(3, mask_path=Path("0.mask.png"))
    (warning,) = mistakes.look(plan(source, masked, background_weight=1.0))
    assert "masks of 3 photos do nothing" in warning
    assert mistakes.look(plan(source, masked, background_weight=0.5)) == []


def test_a_distilled_model_is_told_and_not_guided(source: Source) -> None:
    (warning,) = mistakes.look(plan(source, name="flux-schnell"))
    assert "distilled" in warning
    for setting in ("guidance", "prior_guidance"):
        with pytest.raises(UserError, match="draws without guidance"):
            mistakes.look(plan(source, name="flux-schnell", **{setting: 3.5}))
    mistakes.look(plan(source, name="flux-schnell", guidance=3.5, allow=["guidance"]))


def test_a_flow_has_no_snr(source: Source) -> None:
    with pytest.raises(UserError, match="leave it out"):
        mistakes.look(plan(source, name="flux", min_snr=5.0))
    with pytest.raises(UserError, match="choose from euler, euler-a"):
        mistakes.look(plan(source, name="flux", sampler="ddim"))


def test_there_are_enough_of_them() -> None:
    assert len(REFUSED) + len(WARNED) >= 20
