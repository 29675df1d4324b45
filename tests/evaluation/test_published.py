"""The published formulas against loops over their pairs, and their known mistakes."""

from __future__ import annotations

import numpy as np
import pytest

from dreambooth.evaluation import published
from dreambooth.evaluation.published import SubjectRows

PHOTOS = {"backpack_dog": 5, "cat": 5, "cat2": 5, "dog": 4, "dog2": 6}


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    rows = rng.normal(size=(*shape, 6)) + 0.7
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def data() -> dict[str, SubjectRows]:
    rng = np.random.default_rng(0)
    rules = ("class", "identifier", "hra")
    return {
        name: SubjectRows(unit(rng, photos), unit(rng, 3, 2), {rule: unit(rng, 3) for rule in rules})
        for name, photos in PHOTOS.items()
    }


def pairs(data: dict[str, SubjectRows], subject: str, pictures_of: str) -> list[float]:
    return [
        sum(x * y for x, y in zip(picture, photo, strict=True))
        for prompt in data[pictures_of].generated_PKD
        for picture in prompt
        for photo in data[subject].real_RD
    ]


def mean_of_subjects(data: dict[str, SubjectRows]) -> float:
    return float(np.mean([np.mean(pairs(data, name, name)) for name in data]))


def test_the_paper_and_all_who_take_all_pairs_agree(data: dict[str, SubjectRows]) -> None:
    for formula in (
        published.paper_image,
        published.textual_inversion_image,
        published.cloneofsimo_image,
        published.hra_image,
    ):
        assert formula(data) == pytest.approx(mean_of_subjects(data), abs=1e-12)


def test_text_rows_meet_the_text_of_their_own_prompt(data: dict[str, SubjectRows]) -> None:
    for rule in ("class", "identifier"):
        cosines = [
            float(picture @ subject.texts_PD[rule][prompt])
            for subject in data.values()
            for prompt in range(3)
            for picture in subject.generated_PKD[prompt]
        ]
        assert published.paper_text(data, rule) == pytest.approx(np.mean(cosines))
        if rule == "class":
            clipped = [2.5 * max(0.0, cosine) for cosine in cosines]
            assert min(cosines) < 0
            assert published.custom_diffusion_text(data) == pytest.approx(np.mean(clipped))
            assert published.kosmos_g_text(data) == pytest.approx(100 * np.mean(cosines))
    assert published.hra_text(data) == published.paper_text(data, "hra") != published.paper_text(data)


def test_one_reference_is_all_references_on_average(data: dict[str, SubjectRows]) -> None:
    equal = {name: SubjectRows(rows.real_RD[:4], rows.generated_PKD, rows.texts_PD) for name, rows in data.items()}
    chosen = [published.kosmos_g_image(equal, dict.fromkeys(equal, photo)) for photo in range(4)]
    assert np.mean(chosen) == pytest.approx(100 * published.paper_image(equal))
    assert np.ptp(chosen) > 1
    assert published.dreambench_plus_image(equal) == pytest.approx(chosen[0])
    assert published.kosmos_g_image(equal, dict.fromkeys(equal, 0) | {"dog": 2}) != chosen[0]
    averse = {name: SubjectRows(-rows.real_RD, rows.generated_PKD, rows.texts_PD) for name, rows in equal.items()}
    assert published.kosmos_g_image(averse, dict.fromkeys(averse, 0)) == 0


def test_oft_weighs_subjects_by_their_photos(data: dict[str, SubjectRows]) -> None:
    expected = np.mean([cosine for name in data for cosine in pairs(data, name, name)])
    assert published.oft_image(data, exact_folders=True) == pytest.approx(expected)
    assert expected != pytest.approx(mean_of_subjects(data), abs=1e-4)


def test_ofts_dog_pools_the_backpack_and_nothing_else_pools(data: dict[str, SubjectRows]) -> None:
    meant = [cosine for name in data for cosine in pairs(data, name, name)]
    expected = np.mean(meant + pairs(data, "dog", "backpack_dog"))
    assert published.oft_image(data) == pytest.approx(expected)
    alone = {name: rows for name, rows in data.items() if name != "backpack_dog"}
    assert published.oft_image(alone) == pytest.approx(published.oft_image(alone, exact_folders=True))


def test_no_default_pools_another_subject(data: dict[str, SubjectRows]) -> None:
    backpack = data["backpack_dog"]
    moved = data | {"backpack_dog": SubjectRows(backpack.real_RD, -backpack.generated_PKD, backpack.texts_PD)}
    for name in data:
        same = published.paper_image({name: data[name]}) == published.paper_image({name: moved[name]})
        assert same == (name != "backpack_dog")
    shift = (published.paper_image(moved) - published.paper_image(data)) * len(data)
    assert shift == pytest.approx(-2 * published.paper_image({"backpack_dog": backpack}))


def test_the_oracles_and_their_identity(data: dict[str, SubjectRows]) -> None:
    without, with_self = [], []
    for rows in data.values():
        cosine = rows.real_RD @ rows.real_RD.T
        with_self += cosine.ravel().tolist()
        without += cosine[~np.eye(len(cosine), dtype=bool)].tolist()
    assert published.oft_oracle(data) == pytest.approx(np.mean(without))
    assert published.hra_oracle(data) == pytest.approx(np.mean(with_self))
    share = sum(PHOTOS.values()) / sum(count**2 for count in PHOTOS.values())
    rest = 1 - published.oft_oracle(data)
    assert published.hra_oracle(data) == pytest.approx(published.oft_oracle(data) + rest * share)
    for name, photos in PHOTOS.items():
        one = {name: data[name]}
        mean = published.paper_oracle(one, self_pairs=False)
        assert published.paper_oracle(one, self_pairs=True) == pytest.approx(mean + (1 - mean) / photos)
    means = [published.paper_oracle({name: data[name]}, self_pairs=True) for name in data]
    assert published.paper_oracle(data, self_pairs=True) == pytest.approx(np.mean(means))
