"""What the families that read prompts with a language model have in common."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub.utils import filter_repo_objects

from dreambooth import models as found_models
from dreambooth import presets
from dreambooth.errors import UserError
from dreambooth.families import language
from dreambooth.recipe import Recipe
from tests.families.conftest import Model
from tests.families.test_families import recipe

NAMES = ["z_image", "qwen_image", "flux2", "flux2-klein"]


@pytest.fixture(params=NAMES)
def model(request: pytest.FixtureRequest, models: Callable[[str], Model]) -> Model:
    return models(request.param)


def longest(model: Model, last: str) -> str:
    """The longest prompt that the model takes, ending with the word `last`."""
    prompt = "a" + " dog" * (model.pipe.tokenizer.model_max_length - 2) + f" {last}"
    assert len(model.pipe.tokenizer(prompt).input_ids) == model.pipe.tokenizer.model_max_length
    return prompt


def tokens_read(model: Model, prompt: str) -> list[int]:
    """What the language model is given of a prompt in its template."""
    seen: list[dict[str, torch.Tensor]] = []
    hook = model.pipe.text_encoder.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True
    )
    with hook, torch.no_grad():
        model.family.encode_prompts(model.pipe, [prompt])
    ids: list[int] = seen[0]["input_ids"][seen[0]["attention_mask"].bool()].tolist()
    return ids


def test_the_longest_prompt_is_read_to_its_end_in_its_whole_template(model: Model) -> None:
    uncounted = getattr(model.pipe, "prompt_template_encode_start_idx", 0)
    most, few = tokens_read(model, longest(model, "dog")), tokens_read(model, "a dog dog dog dog dog")
    assert len(most) - uncounted == language.TOKENS
    assert most[-5:] == few[-5:]


def test_the_last_word_of_the_longest_prompt_counts(model: Model) -> None:
    with torch.no_grad():
        dog, cat = model.family.encode_prompts(model.pipe, [longest(model, "dog"), longest(model, "cat")])
    assert len(dog["prompt_embeds_LD"]) == language.TOKENS
    assert (dog["prompt_embeds_LD"] - cat["prompt_embeds_LD"]).abs().max() > 1e-3


def test_one_token_more_is_refused(model: Model) -> None:
    with pytest.raises(UserError, match=r"fit: shorten it"):
        model.family.encode_prompts(model.pipe, [longest(model, "dog") + " cat"])


def test_the_language_model_is_never_trained(model: Model) -> None:
    given = {"model": str(model.source.path), "subjects": [{"photos": ".", "class_noun": "dog"}]}
    with pytest.raises(UserError, match=r"^--train-text-encoder: the text encoder of \w+ models is never trained"):
        presets.fill(Recipe.of({**given, "train_text_encoder": True}), model.source, model.side, "cpu")
    with pytest.raises(UserError, match=r"use --method lora or --method full$"):
        presets.fill(Recipe.of({**given, "method": "textual-inversion"}), model.source, model.side, "cpu")


def test_an_open_recipe_is_filled_in(model: Model) -> None:
    for method in ("lora", "full"):
        open_recipe = recipe(model, method=method, steps=None, learning_rate=None, rank=None, alpha=None)
        filled, reasons = presets.fill(open_recipe, model.source, model.side, "cpu")
        assert filled.steps
        assert filled.learning_rate
        assert reasons["learning_rate"] == presets.TRAINING[presets.key(model.source), method].source


def test_the_chat_template_is_downloaded_and_part_of_the_models_identity() -> None:
    names = ["tokenizer/chat_template.jinja", "README.md"]
    kept = filter_repo_objects(names, allow_patterns=found_models.WANTED, ignore_patterns=found_models.UNWANTED)
    assert list(kept) == names[:1]


def test_a_saved_pipeline_is_loaded_with_the_same_limit(model: Model, tmp_path: Path) -> None:
    """Full fine-tuning ships it with its tokenizer."""
    model.pipe.tokenizer.save_pretrained(tmp_path)
    again = type(model.pipe.tokenizer).from_pretrained(tmp_path)
    assert again.chat_template == model.stock.tokenizer.chat_template
    assert again.model_max_length == model.pipe.tokenizer.model_max_length < language.TOKENS


def test_rows_keep_their_length_and_a_mask_is_there_where_they_differ() -> None:
    long_LD, short_LD = torch.rand(4, 3), torch.rand(2, 3)
    cond = language.collate([{"prompt_embeds_LD": long_LD}, {"prompt_embeds_LD": short_LD}])
    assert cond["mask_BL"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert torch.equal(cond["prompt_embeds_BLD"][1], torch.cat([short_LD, torch.zeros(2, 3)]))
    back = language.separate(cond["prompt_embeds_BLD"], cond["mask_BL"])
    assert all(torch.equal(got, given) for got, given in zip(back, (long_LD, short_LD), strict=True))
    alike = language.collate([{"prompt_embeds_LD": long_LD}] * 2)
    assert alike.keys() == {"prompt_embeds_BLD"}
    assert len(language.separate(alike["prompt_embeds_BLD"], None)) == 2
