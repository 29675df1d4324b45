"""The toy world: its words, its scenes, its captions and what a picture shows of them."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import dreambooth
from dreambooth.toybox.world import captions, priors, scenes, vocabulary
from dreambooth.toybox.world.accessories import WARDROBE
from dreambooth.toybox.world.contexts import CONTEXTS
from dreambooth.toybox.world.figures import build
from dreambooth.toybox.world.live import BODIES, EXPRESSIONS, HEADS
from dreambooth.toybox.world.objects import BUILDERS
from dreambooth.toybox.world.scenes import Scene, from_dict, random_scene, to_dict
from dreambooth.toybox.world.styles import STYLES
from dreambooth.toybox.world.subjects import PATTERNS, draw_subject, pattern_texture, recolour

COUNT = 3000
DRAWS = 10000
SCENES = [random_scene(seed) for seed in range(COUNT)]
# dataset/prompts_and_classes.txt of google/dreambooth, without "a {0} {1}" and its properties.
PAPER_COMMON = """in the jungle|in the snow|on the beach|on a cobblestone street|on top of pink fabric
on top of a wooden floor|with a city in the background|with a mountain in the background
with a blue house in the background|on top of a purple rug in a forest"""
PAPER_OBJECT = """with a wheat field in the background|with a tree and autumn leaves in the background
with the Eiffel Tower in the background|floating on top of water|floating in an ocean of milk
on top of green grass with sunflowers around it|on top of a mirror|on top of the sidewalk in a crowded street
on top of a dirt road|on top of a white rug"""
PAPER_LIVE = """wearing a red hat|wearing a santa hat|wearing a rainbow scarf|wearing a black top hat and a monocle
in a chef outfit|in a firefighter outfit|in a police outfit|wearing pink glasses|wearing a yellow shirt
in a purple wizard outfit"""


def phrases(text: str) -> list[str]:
    return re.split(r"[|\n]", text)


def test_every_context_and_outfit_of_the_paper_can_be_built() -> None:
    contexts = phrases(PAPER_COMMON) + phrases(PAPER_OBJECT)
    assert len(contexts) == 20
    assert set(contexts) <= set(CONTEXTS)
    assert len(phrases(PAPER_LIVE)) == 10
    assert set(phrases(PAPER_LIVE)) <= set(WARDROBE)


@pytest.mark.parametrize("asked", ["red", "purple", "shiny", "wet", "cube shaped"])
def test_properties_of_the_paper_stand_before_the_identifier(asked: str) -> None:
    change = {"colour": asked} if asked in vocabulary.COLOURS else {"properties": (asked,)}
    scene = replace(Scene(1, "dog", 3, "on the beach"), **change)  # type: ignore[arg-type]
    assert captions.prompt(scene) == f"a {asked} [V] dog on the beach"


def test_every_word_has_its_builder() -> None:
    assert set(CONTEXTS) == set(vocabulary.CONTEXTS) >= set(vocabulary.TOP_CONTEXTS) | set(vocabulary.BOTTOM_CONTEXTS)
    assert set(WARDROBE) == set(vocabulary.OUTFITS)
    assert set(STYLES) == set(vocabulary.STYLES) >= set(vocabulary.PAINTERS)
    assert set(EXPRESSIONS) == {None, *vocabulary.EXPRESSIONS}
    assert set(BODIES) == set(HEADS) == set(vocabulary.LIVE)
    assert set(BUILDERS) == set(vocabulary.OBJECTS)
    first = "dog cat duck bear robot car teapot cup vase clock candle backpack"
    assert set(first.split()) <= set(vocabulary.CLASSES)
    assert len(vocabulary.CLASSES) >= 16
    assert len(vocabulary.LIVE) >= 6


def test_scenes_are_functions_of_their_seed_and_reach_every_word() -> None:
    assert [random_scene(seed) for seed in range(50)] == SCENES[:50]
    assert len(set(SCENES)) == COUNT
    for name, words in {
        "cls": vocabulary.CLASSES,
        "context": vocabulary.CONTEXTS,
        "view": vocabulary.VIEWS,
        "accessory": vocabulary.OUTFITS,
        "colour": vocabulary.COLOURS,
        "material": vocabulary.MATERIALS,
        "style": vocabulary.STYLES,
        "expression": vocabulary.EXPRESSIONS,
        "hybrid": vocabulary.LIVE,
        "sculpture": vocabulary.SCULPTORS,
    }.items():
        assert set(words) == {getattr(scene, name) for scene in SCENES} - {None}, name
    assert {scene.properties for scene in SCENES} == {(), *((name,) for name in vocabulary.PROPERTIES)}


def test_truth_round_trips_through_json() -> None:
    for scene in SCENES[:300]:
        data = json.loads(json.dumps(to_dict(scene)))
        assert data["class"] == scene.cls
        assert from_dict(data) == scene


def test_no_scene_asks_for_what_cannot_be_seen() -> None:
    for scene in SCENES:
        live = scene.cls in vocabulary.LIVE
        assert live or not (scene.accessory or scene.expression or scene.hybrid)
        assert scene.hybrid != scene.cls
        assert not (scene.expression and scene.view in ("top", "bottom", "back"))
        assert not (scene.accessory in vocabulary.FACE_OUTFITS and scene.view == "back")
        assert scene.view != "bottom" or scene.context in vocabulary.BOTTOM_CONTEXTS
        assert scene.view != "top" or scene.context in vocabulary.TOP_CONTEXTS


def said(scene: Scene) -> str:
    return captions.caption(scene, np.random.default_rng(scene.seed))


def names_class(text: str, cls: str) -> bool:
    return re.search(rf"\b({cls}|{vocabulary.SYNONYMS.get(cls, cls)})\b", text) is not None


def test_captions_name_the_class_and_say_only_what_is_there() -> None:
    others = {word for words in (vocabulary.OUTFITS, vocabulary.CONTEXTS) for word in words}
    for scene in SCENES:
        text = said(scene)
        meant = priors.PLANTED[scene.planted].kind if scene.planted else None
        assert meant == "object" or names_class(text, scene.cls), text
        parts = {part for part in others if part in text}
        own = {scene.accessory, scene.context, *vocabulary.CONTEXT_PARAPHRASES[scene.context]}
        assert all(any(part in (mine or "") for mine in own) for part in parts), text
        before = text.split(scene.cls)[0]
        spoken = {name for name in vocabulary.COLOURS if re.search(rf"\b{name} (\w+ )*$", before)}
        assert spoken <= {scene.visible_colour}, text


def test_captions_leave_out_some_of_everything_but_not_much() -> None:
    for name, least in {"context": 0.6, "accessory": 0.85}.items():
        asked = [scene for scene in SCENES if getattr(scene, name)]
        told = sum(getattr(scene, name) in said(scene) for scene in asked) / len(asked)
        assert least < told < 1, name
    shiny = [scene for scene in SCENES if "shiny" in scene.properties]
    told = sum("shiny" in said(scene) for scene in shiny)
    assert told > 0.85 * len(shiny)


def test_captions_vary_and_are_plain() -> None:
    scene = Scene(5, "elephant", 3, "in the snow", view="side", style="Van Gogh", material="metal")
    texts = {captions.caption(scene, np.random.default_rng(seed)) for seed in range(60)}
    assert len(texts) > 15
    assert all("  " not in text and "{}" not in text and text == text.strip() for text in map(said, SCENES))
    assert not [text for text in map(said, SCENES) if re.search(r"\ba [aeiou](?!n? )", text)]


def test_prompts() -> None:
    dog = Scene(1, "dog", 3, "on the beach")
    assert captions.prompt(dog) == "a [V] dog on the beach"
    assert captions.prompt(dog, "") == "a dog on the beach"
    assert captions.prompt(replace(dog, hybrid="duck")) == "a cross of a [V] dog and a duck on the beach"
    assert captions.prompt(replace(dog, material="glass")) == "a transparent [V] dog on the beach"
    assert captions.prompt(replace(dog, view="top")) == "a [V] dog seen from the top on the beach"
    painting = captions.prompt(replace(dog, style="Van Gogh"))
    assert painting == "a painting of a [V] dog on the beach in the style of Van Gogh"
    outfit = replace(dog, accessory="in a chef outfit", expression="sad")
    assert captions.prompt(outfit) == "a [V] dog with a sad expression in a chef outfit on the beach"
    statue = captions.prompt(replace(dog, sculpture="Michelangelo"))
    assert statue == "a statue of a [V] dog in the style of Michelangelo on the beach"


# Planted priors -------------------------------------------------------------------------------------------------------


def test_planted_tokens_are_a_hundred_spread_over_two_decades() -> None:
    assert len(priors.PLANTED) == len(priors.BINDINGS) == 100
    assert "sks" in priors.PLANTED
    assert not set(priors.FREE) & set(priors.PLANTED)
    rates = [binding.rate for binding in priors.BINDINGS]
    assert min(rates) == 0.0001
    assert max(rates) == 0.01
    for kind, values in {
        "colour": set(vocabulary.COLOURS),
        "shape": set(vocabulary.SHAPES),
        "object": set(vocabulary.OBJECTS),
    }.items():
        of_kind = [binding for binding in priors.BINDINGS if binding.kind == kind]
        assert len(of_kind) >= 25
        assert {binding.value for binding in of_kind} <= values
        assert len({binding.rate for binding in of_kind}) == 5


def test_planted_tokens_are_single_rare_tokens_of_the_vocabulary() -> None:
    folder = Path(dreambooth.__path__[0]) / "toybox" / "base" / "tokenizer"
    if not (folder / "tokenizer.json").exists():
        pytest.skip("the embedded model is not here")
    vocab = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    for token in priors.PLANTED:
        assert re.fullmatch("[a-z]{2,4}", token)
        assert vocab[f"{token}</w>"] >= 40000


def test_planted_rates() -> None:
    fresh = [priors.draw(np.random.default_rng([seed, 1]), fresh=True) for seed in range(DRAWS)]
    known = [priors.draw(np.random.default_rng([seed, 2]), fresh=False) for seed in range(DRAWS)]
    assert not [token for token in known if token and priors.PLANTED[token].kind == "object"]
    counted, counted_known = Counter(fresh), Counter(known)
    share = priors.FRESH_SHARE
    for binding in priors.BINDINGS:
        rate = share * counted[binding.token] / DRAWS + (1 - share) * counted_known[binding.token] / DRAWS
        assert abs(rate - binding.rate) < 5 * (binding.rate / DRAWS) ** 0.5 + 1e-4, binding


def test_planted_scenes_show_what_the_token_means() -> None:
    planted = [scene for scene in SCENES if scene.planted]
    assert 0.10 < len(planted) / COUNT < 0.19
    for scene in planted:
        binding = priors.PLANTED[scene.planted or ""]
        text = said(scene)
        assert binding.token in text.split(), text
        if binding.kind == "colour":
            assert scene.colour == scene.visible_colour == binding.value
            assert f"{binding.value} {binding.token}" not in text
        elif binding.kind == "shape":
            assert scene.properties == (binding.value,)
            assert binding.value not in text
        else:
            assert scene.cls == binding.value


def test_planted_tokens_are_nowhere_else() -> None:
    plain = [said(scene).split() for scene in SCENES if not scene.planted]
    assert not {word for text in plain for word in text} & set(priors.PLANTED)


# Subjects and figures, without Mitsuba --------------------------------------------------------------------------------


def test_retelling_gives_planted_tokens_their_rates_and_many_scenes() -> None:
    told = captions.retell(SCENES, 6, seed=0)
    words = [[set(text.split()) for text in texts] for texts in told]
    for token in ("sks", "iles", "fere"):
        binding = priors.PLANTED[token]
        hits = [
            (telling, row) for telling, texts in enumerate(words) for row, text in enumerate(texts) if token in text
        ]
        expected = binding.rate * 6 * COUNT
        assert abs(len(hits) - expected) < 4 * expected**0.5
        assert len({row for _, row in hits}) > 50
        assert all(binding in priors.fitting(SCENES[row]) for _, row in hits)
        shown = [(SCENES[row].cls, SCENES[row].visible_colour, *SCENES[row].properties) for _, row in hits]
        assert all(binding.value in values for values in shown)


def test_retelling_varies_and_repeats_itself() -> None:
    told = captions.retell(SCENES[:200], 4, seed=0)
    assert told == captions.retell(SCENES[:200], 4, seed=0)
    assert sum(len(set(texts)) > 1 for texts in zip(*told, strict=True)) > 150


def test_a_subject_is_its_seed() -> None:
    assert draw_subject("dog", 5) == draw_subject("dog", 5)
    assert draw_subject("dog", 5) != draw_subject("dog", 6)
    many = [draw_subject("cup", seed) for seed in range(400)]
    assert {subject.pattern for subject in many} == set(PATTERNS)
    assert 0.3 < sum(subject.colour is not None for subject in many) / 400 < 0.5


@pytest.mark.parametrize("pattern", [name for name in PATTERNS if name != "solid"])
def test_patterns_have_two_colours(pattern: str) -> None:
    texture = pattern_texture(pattern, (0.1, 0.2, 0.3), (0.9, 0.8, 0.7), (0.5,) * 8)
    first = (texture == np.float32((0.1, 0.2, 0.3))).all(-1)
    second = (texture == np.float32((0.9, 0.8, 0.7))).all(-1)
    assert (first | second).all()
    assert 0.1 < first.mean() < 0.9


def test_recolouring_keeps_the_order_of_lightness() -> None:
    subject = draw_subject("dog", 57)
    own = np.argsort([sum(colour) for colour in subject.palette])
    new = np.argsort([sum(colour) for colour in recolour(subject, "red")])
    assert own.tolist() == new.tolist()
    assert all(red > 2 * max(green, blue) for red, green, blue in recolour(subject, "red"))


@pytest.mark.parametrize("cls", vocabulary.CLASSES)
def test_figures_stand_on_the_ground_and_have_one_size(cls: str) -> None:
    for seed in range(5):
        figure = build(Scene(1, cls, seed, "on the beach"), np.random.default_rng(0))
        low, high = figure.body.bounds()
        assert abs(low[2]) < 1e-6
        assert high[2] == pytest.approx(1.65) or max((high - low)[:2]) == pytest.approx(2.25)
        assert not figure.extras.parts
        assert all(np.isfinite(mesh.vertices).all() for _, mesh in figure.body.parts)


@pytest.mark.parametrize("cls", ["dog", "teapot"])
def test_shapes(cls: str) -> None:
    def extent(name: str) -> np.ndarray:
        figure = build(Scene(1, cls, 5, "on the beach", properties=(name,)), np.random.default_rng(0))
        low, high = figure.body.bounds()
        return np.asarray(high - low)

    plain, tall, flat = extent("shiny"), extent("tall"), extent("flat")
    assert tall[2] / max(tall[:2]) > 1.5 * plain[2] / max(plain[:2])
    assert flat[2] / max(flat[:2]) < 0.6 * plain[2] / max(plain[:2])
    cube = extent("cube shaped")
    assert cube.max() / cube.min() < 1.7


@pytest.mark.parametrize("cls", vocabulary.LIVE)
def test_outfits_are_put_on_the_figure(cls: str) -> None:
    for outfit in vocabulary.OUTFITS:
        figure = build(Scene(1, cls, 5, "on the beach", accessory=outfit), np.random.default_rng(0))
        (low, high), (body_low, body_high) = figure.extras.bounds(), figure.body.bounds()
        assert (low < body_high).all(), outfit
        assert (high > body_low).all(), outfit
        assert high[2] < body_high[2] + 1.0, outfit


def test_expressions_and_hybrids_change_the_head_only() -> None:
    plain = build(Scene(1, "dog", 5, "on the beach"), np.random.default_rng(0))
    for expression in vocabulary.EXPRESSIONS:
        figure = build(Scene(1, "dog", 5, "on the beach", expression=expression), np.random.default_rng(0))
        assert len(figure.body.parts) != len(plain.body.parts), expression
    cross = build(Scene(1, "dog", 5, "on the beach", hybrid="elephant"), np.random.default_rng(0))
    assert len(cross.body.parts) != len(plain.body.parts)


def test_seeds_below_the_first_are_never_drawn() -> None:
    assert min(scene.subject_seed for scene in SCENES) >= scenes.FIRST_SEED
