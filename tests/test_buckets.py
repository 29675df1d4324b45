"""To what sizes photos are cut: none is left out, little of each is, and every size is one that the model takes."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from dreambooth import buckets, families, geometry
from dreambooth.errors import UserError
from dreambooth.models import CARDS
from dreambooth.photos import Photo, box
from dreambooth.planning import make_plans
from dreambooth.recipe import Recipe
from tests.commands import make_photos

REAL = sorted({(card.resolution, families.get(card.family).STRIDE) for card in CARDS if card.resolution >= 256})
"""Resolution and stride of every real model."""
GRIDS = [*REAL, (32, 8), (64, 8), (64, 16), (64, 32)]
"""And those of small ones."""


def recipe(**values: object) -> Recipe:
    subject = {"photos": ".", "class_noun": "dog"}
    return Recipe.of({"aspect": "keep", "resolution": 512, "subjects": [subject], **values})


def photo(name: str, width: int, height: int) -> Photo:
    return Photo(name, Path(f"{name}.jpg"), (width, height))


def random_size(draw: random.Random, steepest: float = 6.0) -> tuple[int, int]:
    """A photo of 16 to 6000 pixels a side."""
    long = draw.randint(64, 6000)
    short = max(16, round(long / steepest ** draw.random()))
    return (long, short) if draw.random() < 0.5 else (short, long)


@pytest.mark.parametrize(("resolution", "stride"), GRIDS)
def test_every_bucket_is_one_that_the_model_takes_and_that_fits_where_the_square_does(
    resolution: int, stride: int
) -> None:
    found = buckets.sizes(resolution, stride)
    assert (resolution, resolution) in found
    assert len(found) == len(set(found))
    assert {size[::-1] for size in found} == set(found), "upright photos have what wide ones have"
    for width, height in found:
        assert width % stride == height % stride == 0
        assert 0.9 * resolution**2 <= width * height <= resolution**2
        assert max(width, height) <= 2 * resolution
        assert min(width, height) >= resolution / 2 - stride
        assert (resolution, stride) not in REAL or width * height >= 0.94 * resolution**2


@pytest.mark.parametrize(("resolution", "stride"), REAL)
def test_a_photo_of_any_usual_shape_loses_little(resolution: int, stride: int) -> None:
    draw = random.Random(0)
    for _ in range(300):
        size = random_size(draw, steepest=4.0)
        if min(size) >= resolution / 2:
            assert buckets.lost(size, buckets.nearest(size, resolution, stride)) < 0.04


@pytest.mark.parametrize(("resolution", "stride"), GRIDS)
def test_the_nearest_bucket_keeps_most_and_its_turned_self_that_of_the_turned_photo(
    resolution: int, stride: int
) -> None:
    draw = random.Random(1)
    for _ in range(30):
        size = random_size(draw)
        chosen = buckets.nearest(size, resolution, stride)
        shares = [buckets.lost(size, other) for other in buckets.sizes(resolution, stride)]
        assert buckets.lost(size, chosen) == min(shares)
        turned = buckets.nearest(size[::-1], resolution, stride)
        assert buckets.lost(size[::-1], turned) == min(shares)
    assert buckets.nearest((777, 777), resolution, stride) == (resolution, resolution)


@pytest.mark.parametrize("aspect", ["square", "keep"])
def test_no_photo_is_left_out(aspect: str) -> None:
    draw = random.Random(2)
    for _ in range(50):
        photos = [photo(f"{k}", *random_size(draw)) for k in range(draw.randint(1, 30))]
        found = buckets.plan(photos, recipe(aspect=aspect), 16)
        assert sorted(file for bucket in found for file, _ in bucket.lost) == sorted(p.path.name for p in photos)
        assert len({bucket.size for bucket in found}) == len(found)
        assert aspect == "keep" or [bucket.size for bucket in found] == [(512, 512)]


def test_what_is_said_to_be_lost_is_what_the_crop_leaves_out() -> None:
    draw = random.Random(3)
    for k in range(200):
        one = photo(f"{k}", *random_size(draw))
        size = buckets.learnt(one.size, recipe(aspect=draw.choice(["square", "keep"])), 16)[0]
        left, top, right, bottom = box(one, size, 0, 0)
        width, height = one.size
        kept = (right - left) * (bottom - top) / (width * height)
        assert buckets.lost(one.size, size) == pytest.approx(1 - kept, abs=1e-12)
        assert abs(left - (width - right)) <= 1
        assert abs(top - (height - bottom)) <= 1
        assert right - left == width or bottom - top == height


def test_a_bucket_tells_its_photos_and_what_they_lose() -> None:
    photos = [photo("wide", 3000, 2000), photo("tall", 1080, 1920), photo("old", 3008, 2000)]
    told = [str(bucket) for bucket in buckets.plan(photos, recipe(), 16)]
    assert told == ["624 x 416 pixels: wide.jpg (whole), old.jpg (whole)", "384 x 672 pixels: tall.jpg (2% cut away)"]
    (square,) = buckets.plan(photos, recipe(aspect="square"), 16)
    assert str(square) == "512 x 512 pixels: wide.jpg (33% cut away), tall.jpg (44% cut away), old.jpg (34% cut away)"
    assert square.as_json()["photos"][0] == {"file": "wide.jpg", "lost": 0.3333}


@pytest.mark.parametrize("aspect", ["square", "keep"])
def test_every_photo_is_learnt_at_the_first_resolution_and_at_the_others_where_it_has_the_pixels(aspect: str) -> None:
    several = recipe(aspect=aspect, more_resolutions=(768, 1024))
    assert [len(buckets.learnt(size, several, 16)) for size in [(90, 60), (600, 600), (900, 900), (3000, 2000)]] == [
        *(1, 1, 2, 3)
    ]
    draw = random.Random(4)
    for _ in range(100):
        size = random_size(draw)
        first, *further = buckets.learnt(size, several, 16)
        assert [first] == buckets.learnt(size, recipe(aspect=aspect), 16)
        for wide, high in further:
            kept = geometry.fit(size, (wide, high))
            assert kept[0] >= wide
            assert kept[1] >= high - 1  # whole pixels of the photo


def test_a_resolution_that_no_photo_has_is_told_and_is_no_part_of_the_run(tiny_sd: Path, tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos")
    values = {"subjects": [{"photos": photos, "class_noun": "dog"}], "model": str(tiny_sd), "aspect": "keep"}
    plain = make_plans(Recipe.of({**values, "more_resolutions": [48]}))
    told = make_plans(Recipe.of({**values, "more_resolutions": [48, 96], "allow": ["resolution"]}))
    assert plain.warnings == []
    assert told.warnings == ["--more-resolutions 96 adds nothing: no photo has the pixels for it"]
    assert told.buckets == plain.buckets
    assert told.identity(told.recipe) == plain.identity(plain.recipe)
    with pytest.raises(UserError, match="--more-resolutions 50 does not fit this model: give a multiple of"):
        make_plans(Recipe.of({**values, "more_resolutions": [50]}))
