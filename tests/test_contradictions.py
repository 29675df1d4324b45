"""Settings that contradict one another are refused in one line; the same settings apart are not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dreambooth import families, planning, presets
from dreambooth.errors import UserError
from dreambooth.models import resolve
from dreambooth.recipe import Recipe
from tests.commands import make_photos

SUBJECT = {"photos": "photos", "class_noun": "dog", "identifier": "ohwx"}
FULL, TOKEN, PIVOTAL = ({"method": name} for name in ("full", "textual-inversion", "pivotal"))


def filled(model: Path, **values: Any) -> Recipe:
    recipe = Recipe.of({"subjects": [SUBJECT], **values})
    return presets.fill(recipe, resolve(str(model)), 32, "cpu")[0]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({**FULL, "rank": 4}, "--rank is a setting of a LoRA"),
    (
        {"subjects": [SUBJECT, {**SUBJECT, "class_noun": "mug"}], "prior_images": "others"},
        "--prior-images is one folder, and the subjects are of several classes (dog, mug)",
    ),
    ({"ema_profiles": True, "ema": 0.9}, "--ema-profiles averages what is averaged already: leave it out, or --ema"),
    ({"ema_profiles": True, "select": True}, "--ema-profiles averages all steps, and --select ships an earlier one"),
    (
        {"offload_blocks": True, "cache": False},
        "--offload-blocks moves frozen weights about, which --no-cache does not",
    ),
    ({"offload_blocks": True, "select": True}, "--offload-blocks moves frozen weights about, which --select does not"),
    ({**FULL, "offload_blocks": True}, "--offload-blocks moves frozen weights about, which --method full does not"),
    (
        {"offload_blocks": True, "compile": True},
        "--offload-blocks moves frozen weights about, which --compile does not",
    ),
    ({"step_in_backward": True}, "--step-in-backward spares a whole model's gradients: use --method full"),
    ({**FULL, "step_in_backward": True, "optimizer": "prodigy"}, "--step-in-backward does not go with --optimizer pro"),
    ({**FULL, "step_in_backward": True, "accumulation": 2}, "--step-in-backward takes its steps in one pass"),
    ({**FULL, "step_in_backward": True, "aspect": "keep"}, "--step-in-backward takes its steps in one pass"),
    ({**TOKEN, "min_rank": 4}, "--min-rank is a setting of a LoRA"),
    ({**FULL, "adapter": "oft"}, "--adapter oft is a kind of --method lora"),
    ({"adapter": "hra", "alpha": 2.0}, "--alpha scales what is added to the weights, and --adapter hra rotates"),
    ({"adapter": "oft", "rank": 3}, "--rank 3 is odd, and --adapter oft works in pairs: give an even one"),
    ({"adapter": "dora", "optimizer": "muon"}, "--optimizer muon trains matrices alone, and --adapter dora"),
    ({"min_rank": 4, "rank": 4}, "--min-rank 4 is no less than --rank 4: give a smaller one"),
    ({"min_rank": 2, "rank": 4, "adapter": "dora"}, "--min-rank does not go with --adapter dora"),
    ({**TOKEN, "prior_loss": "distilled"}, "--prior-loss distilled is of no use to textual inversion"),
    ({**TOKEN, "l2_to_base": 1.0}, "--l2-to-base does not go with --method textual-inversion"),
    ({"adapter": "lokr", "l2_to_base": 1.0}, "--l2-to-base does not go with --adapter lokr"),
    ({**PIVOTAL, "train_text_encoder": True}, "--train-text-encoder does not go with pivotal tuning"),
    ({"dco_beta": 1000.0, "prior_weight": 1.0}, "--dco-beta keeps the class by itself: leave out --prior-weight"),
    ({"dco_beta": 1000.0, "prior_loss": "parent"}, "--dco-beta keeps the class by itself"),
    ({"prior_scenes": ("by a lake",), "prior_loss": "parent"}, "no class images are drawn here"),
    ({"prior_scenes": ("by a lake",), "prior_images": "dogs"}, "no class images are drawn here"),
    ({"prior_dropout": 0.5, "prior_weight": 0.0}, "there is no prior here for --prior-dropout: leave it out"),
    (
        {"prior_dropout": 0.5, "prior_others": 0.5},
        "--prior-dropout and --prior-others are shares of the prior, 1 toget",
    ),
    ({"prior_others": 0.5, "prior_loss": "images"}, "--prior-others asks the frozen model: use --prior-loss distilled"),
    ({"prior_others": 0.5, "prior_weight": 0.0}, "there is no prior here for --prior-others: leave it out"),
    ({"prior_loss": "parent", "prior_weight": 0.0}, "--prior-weight 0 switches --prior-loss parent off"),
    ({**FULL, "consistency": 0.4}, "--consistency leaves out a LoRA of the denoiser: use --method lora"),
    ({**PIVOTAL, "consistency": 0.4}, "--consistency leaves out a LoRA of the denoiser: use --method lora"),
    ({"train_text_encoder": True, "consistency": 0.4}, "--consistency leaves out a LoRA of the denoiser, and a text"),
    ({"prior_images": "dogs", "prior_weight": 0.0}, "there is no prior here for --prior-images: leave it out"),
    ({**TOKEN, "prior_images": "dogs"}, "there is no prior here for --prior-images: leave it out"),
    ({**FULL, "targets": "wide"}, "--targets wide names layers with a LoRA, and none is trained: leave it out"),
    ({"optimizer": "adafactor", "beta1": 0.5}, "--beta1 does nothing with --optimizer adafactor, which has its own"),
    ({"optimizer": "muon", "beta2": 0.5}, "--beta2 does nothing with --optimizer muon, which has its own"),
    ({"prior_loss": "parent", "prior_images": "dogs"}, "--prior-loss parent learns from the photos"),
]


@pytest.mark.parametrize(("values", "said"), REFUSED, ids=[said for _, said in REFUSED])
def test_a_contradiction_is_refused_in_one_line(values: dict[str, Any], said: str, tiny_sd: Path) -> None:
    with pytest.raises(UserError) as caught:
        filled(tiny_sd, **values)
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "derived"),
    [
        ({}, {"alpha": 4.0, "prior_weight": 1.0}),
        ({"adapter": "rslora", "rank": 16}, {"alpha": 2.0}),
        ({"adapter": "dora", "rank": 16}, {"alpha": 16.0}),
        ({"adapter": "oft"}, {"alpha": None, "rank": 4}),
        ({"adapter": "hra", "rank": 8}, {"alpha": None}),
        ({"dco_beta": 1000.0}, {"prior_weight": 0.0}),
        ({"l2_to_base": 1.0}, {"prior_weight": 0.0}),
        ({"l2_to_base": 1.0, "prior_loss": "parent"}, {"prior_weight": 1.0}),
        ({"l2_to_base": 1.0, "prior_weight": 0.5}, {"prior_weight": 0.5}),
        ({**FULL, "l2_to_base": 1.0, "prior_loss": "distilled"}, {"alpha": None, "prior_weight": 1.0}),
        ({**TOKEN, "dco_beta": 1000.0}, {"prior_weight": 0.0}),
        ({**PIVOTAL, "min_rank": 2}, {"alpha": 4.0, "prior_weight": 1.0, "text_encoder_learning_rate": 5e-4}),
    ],
)
def test_what_is_left_open_follows(values: dict[str, Any], derived: dict[str, Any], tiny_sd: Path) -> None:
    recipe = filled(tiny_sd, **values)
    assert {name: getattr(recipe, name) for name in derived} == derived


def test_rslora_is_a_lora_at_its_usual_rank_and_weaker_by_the_root_at_others(tiny_sd: Path) -> None:
    scales = [filled(tiny_sd, adapter="rslora", rank=rank).lora_scale for rank in (4, 16, 64)]
    assert scales == [1.0, 0.5, 0.25]
    assert filled(tiny_sd, rank=64).lora_scale == 1.0
    assert filled(tiny_sd, **FULL).lora_scale is None


def test_ranks_by_the_steps_of_a_schedule_are_refused_for_a_flow(debug_folder: Callable[[str], Path]) -> None:
    pipes = {name: families.get(name).load(resolve(str(debug_folder(name))), torch.float32) for name in ("sd", "flux")}
    recipe = Recipe.of({"subjects": [SUBJECT], "min_rank": 2, "samples": 0})
    assert planning.identify(recipe, pipes["sd"], []).min_rank == 2
    with pytest.raises(UserError, match="--min-rank follows the steps of a noise schedule, and this model is a flow"):
        planning.identify(recipe, pipes["flux"], [])


def test_blocks_that_a_family_does_not_name_are_refused(tiny_sd: Path, tmp_path: Path) -> None:
    subject = {**SUBJECT, "photos": make_photos(tmp_path / "photos")}
    with pytest.raises(UserError) as caught:
        planning.make_plans(Recipe.of({"model": str(tiny_sd), "targets": "b-lora", "subjects": [subject]}))
    assert str(caught.value) == "--targets b-lora is not there for this model: use attention or wide"
