"""The paper's protocol as data."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from dreambooth.errors import UserError
from dreambooth.evaluation import dreambench
from dreambooth.evaluation.dreambench import SUBJECTS, Prompt, choose, is_live


def test_the_subjects_are_the_papers() -> None:
    assert len(SUBJECTS) == 30
    assert sum(count for _, count in SUBJECTS.values()) == 158
    assert len({noun for noun, _ in SUBJECTS.values()}) == 15
    assert sum(is_live(noun) for noun, _ in SUBJECTS.values()) == 9
    assert sum(1 / count for _, count in SUBJECTS.values()) / 30 == pytest.approx(0.1922, abs=1e-4)


def test_thirty_subjects_make_three_thousand_pictures() -> None:
    assert sum(len(choose(noun)) * 4 for noun, _ in SUBJECTS.values()) == 3000


@pytest.mark.parametrize(
    ("noun", "kinds"),
    [("dog", {"recontext": 10, "accessory": 10, "property": 5}), ("can", {"recontext": 20, "property": 5})],
)
def test_the_kinds_of_the_prompts(noun: str, kinds: dict[str, int]) -> None:
    assert Counter(prompt.kind for prompt in choose(noun)) == kinds
    assert len({prompt.scene for prompt in choose(noun)}) == 25


def test_prompts_read_as_the_papers_do() -> None:
    first, *_, last = choose("dog")
    assert first.text("sks dog") == "a sks dog in the jungle"
    assert last.text("sks dog") == "a cube shaped sks dog"
    assert last.text("elephant") == "a cube shaped elephant"
    assert first.text("elephant") == "an elephant in the jungle"
    assert (first.context, last.context) == ("in the jungle", "cube shaped")


@pytest.mark.parametrize(
    ("noun", "live"),
    [
        *((noun, True) for noun in ("dog", "old Dog", "woman", "corgi", "german shepherd", "penguin", "dinosaur")),
        *((noun, False) for noun in ("toy", "stuffed bear", "toy dog", "teddy bear", "rubber duck", "computer mouse")),
        *((noun, False) for noun in ("hot dog", "ceramic cat", "dog bowl", "shepherd's pie")),
    ],
)
def test_live_or_object(noun: str, live: bool) -> None:
    assert is_live(noun) is live
    assert choose(noun) == dreambench.SETS["live" if live else "object"]


def test_the_sets_have_names(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("- a [V] dog on the moon\n")
    assert [dreambench.set_name(choose("dog", asked)) for asked in (None, "object", str(tmp_path / "own.yaml"))] == [
        "live",
        "object",
        "own",
    ]


def test_the_kind_can_be_asked_for() -> None:
    assert choose("dog", "object") == dreambench.OBJECT_PROMPTS


def test_own_prompts(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("- a [V] dog on the moon\n- an oil painting of a [V] dog\n- a {} asleep\n")
    moon, oil, asleep = choose("dog", str(file))
    assert moon.text("[V] dog") == "a [V] dog on the moon"
    assert oil.text("[V] dog") == "an oil painting of a [V] dog"
    assert asleep.text("dog") == "a dog asleep"
    assert {prompt.kind for prompt in (moon, oil, asleep)} == {"own"}


@pytest.mark.parametrize(
    ("written", "noun", "named", "plain"),
    [
        ("A [V] dog in the snow", "dog", "a ohwx dog in the snow", "a dog in the snow"),
        ("A photo of [V] dog", "dog", "a photo of ohwx dog", "a photo of dog"),
        ("An oil painting of a [V] dog", "dog", "an oil painting of a ohwx dog", "an oil painting of a dog"),
        ("a painting of an [V] elephant", "elephant", "a painting of an ohwx elephant", "a painting of an elephant"),
        ("a painting of a {}", "elephant", "a painting of a ohwx elephant", "a painting of an elephant"),
        ("the [V] dog in the snow", "dog", "the ohwx dog in the snow", "the dog in the snow"),
        ("pixel art of a [V] dog", "dog", "pixel art of a ohwx dog", "pixel art of a dog"),
        ("red [V]", "dog", "a red ohwx dog", "a red dog"),
        ("a [V] {class} in the snow", "dog", "a ohwx dog in the snow", "a dog in the snow"),
        ("a [V] catching a ball", "cat", "a ohwx cat catching a ball", "a cat catching a ball"),
        ("a [V] dog in the snow", "Dog", "a ohwx Dog in the snow", "a Dog in the snow"),
    ],
)
def test_an_own_prompt_is_drawn_as_it_is_written(
    written: str, noun: str, named: str, plain: str, tmp_path: Path
) -> None:
    (tmp_path / "own.yaml").write_text(f'- "{written}"\n')
    (prompt,) = choose(noun, str(tmp_path / "own.yaml"))
    assert (prompt.named(f"ohwx {noun}"), prompt.text(noun)) == (named, plain)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- a [V] dog and a [V2] mug\n", "does not name the subject once"),
        ("- a dog on the moon\n", "does not name the subject once"),
        ("- a [V] dog and a [V] dog\n", "does not name the subject once"),
        ("- a [V] dog at sea\n- red [V]\n- a {} at sea\n", "asks for '{} at sea' twice: take one out"),
        ("prompts: 3\n", "no list of prompts"),
        ("- [\n", "no prompts in"),
        ("- [V] dog on the beach\n", "is to be in quotes"),
        ("- 3\n", "no list of prompts"),
    ],
)
def test_bad_lists_are_refused(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=said):
        choose("dog", str(file))


def test_a_missing_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="live, object or a YAML list"):
        choose("dog", str(tmp_path / "none.yaml"))


def test_a_runs_prompts_have_the_article_of_its_captions() -> None:
    texts = [Prompt(scene, "own").named("ohwx elephant") for scene in ("{} in the snow", "old {}")]
    assert texts == ["a ohwx elephant in the snow", "an old ohwx elephant"]


def test_braces_of_an_own_prompt_are_its_own() -> None:
    assert Prompt("{} in a {x} box", "own").text("dog") == "a dog in a {x} box"
