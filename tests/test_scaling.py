"""Photos at other scales: what is seen of them and where, what the loss leaves out, and what the caption says."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dreambooth import batches, loop, losses, optimization, photos, scaling
from dreambooth.cache import GREY, Memo, Row, encode_photo, read_view
from dreambooth.families import sd
from dreambooth.models import resolve
from dreambooth.photos import Photo
from dreambooth.recipe import Recipe
from tests.calls import call, train
from tests.pictures import picture

SIZE, STRIDE = (96, 64), 8


@pytest.fixture
def photo(tmp_path: Path) -> Photo:
    """Red is x and green is y, nowhere grey; white in its mask from x = 100 on."""
    y, x = np.indices((120, 200), dtype=np.uint8)
    Image.fromarray(np.stack([x, y, np.full_like(x, 255)], axis=-1)).save(tmp_path / "ramp.png")
    Image.fromarray(((x >= 100) * 255).astype(np.uint8)).save(tmp_path / "ramp.mask.png")
    return photos.usable(photos.read(tmp_path, 64))[0]


def drawn(photo: Photo, count: int = 300, seed: int = 0) -> list[scaling.Scaled]:
    return [scaling.draw(photo, SIZE, number, seed, STRIDE) for number in range(count)]


def widths(box: tuple[int, int, int, int]) -> tuple[int, int]:
    return box[2] - box[0], box[3] - box[1]


def test_two_views_in_three_are_smaller_and_the_words_say_which(photo: Photo) -> None:
    said = Counter()
    for view in drawn(photo):
        (width, height), part = widths(view.frame), widths(view.part)
        assert all(
            0 <= low < high <= side for low, high, side in zip(view.frame[:2], view.frame[2:], SIZE, strict=True)
        )
        assert all(edge % STRIDE == 0 for edge in view.frame)
        assert 0 <= view.part[0] < view.part[2] <= 200
        assert 0 <= view.part[1] < view.part[3] <= 120
        assert part[0] / part[1] == pytest.approx(width / height, rel=0.03)
        if (width, height) == SIZE:
            assert view.words in ("close up", "zoomed in")
            assert 120 / 1.4 - 1 <= part[1] <= 120 / 1.2 + 1
            whole = photos.box(photo, SIZE)
            assert whole[0] <= view.part[0] < view.part[2] <= whole[2]
        else:
            assert view.words in ("far away", "very small")
            assert max(part[0] / 200, part[1] / 120) == 1
            assert 96 / 3 - STRIDE / 2 <= width <= 96 * 0.6 + STRIDE / 2
        said[view.words] += 1
    assert len(said) == 4
    assert 0.6 < (said["far away"] + said["very small"]) / 300 < 0.73
    assert len({view.frame for view in drawn(photo)}) > 50


def test_views_depend_on_seed_photo_and_number_alone(photo: Photo) -> None:
    assert drawn(photo, 20) == drawn(photo, 20)
    assert drawn(photo, 20) != drawn(photo, 20, seed=1)
    assert drawn(photo, 20) != drawn(replace(photo, id="0" * 32), 20)


@pytest.mark.parametrize("mirrored", [False, True])
def test_the_photo_lies_in_its_frame_and_the_rest_is_grey(photo: Photo, mirrored: bool) -> None:
    for scaled in drawn(photo, 12):
        left, top, right, bottom = scaled.frame
        view = read_view(Row(photo, SIZE, 0, mirrored, scaled), 0)
        pixels, mask, filled = (
            np.flip(each, 1) if mirrored else each for each in (view.pixels_HWC, view.mask_HW, view.filled_HW)
        )
        inside = np.zeros(SIZE[::-1], bool)
        inside[top:bottom, left:right] = True
        assert np.array_equal(filled == 255, inside)
        assert np.all(pixels[~inside] == GREY)
        assert np.all(mask[~inside] == 0)
        assert np.array_equal(pixels[inside], photos.crop(photo, widths(scaled.frame), scaled.part).reshape(-1, 3))
        red = pixels[..., 0]
        assert np.all(mask[inside & (red >= 104)] == 255)
        assert np.all(mask[inside & (red <= 95)] == 0)


@pytest.mark.parametrize("masked", [False, True])
def test_the_loss_is_the_mean_over_what_the_photo_fills(photo: Photo, masked: bool, tiny_sd: Path) -> None:
    """Whatever is predicted outside of the frame, with and without a mask inside."""
    pipe = sd.load(resolve(str(tiny_sd)), torch.float32)
    scaled = next(view for view in drawn(photo) if widths(view.frame) != SIZE)
    row = Row(photo if masked else replace(photo, mask_path=None), SIZE, 0, False, scaled)
    encoded = encode_photo(pipe, sd, row, 0)
    left, top, right, bottom = (edge // pipe.vae_scale_factor for edge in scaled.frame)
    latents: Memo = Memo(lambda _: encoded)
    slot = batches.Slot(0, 0, batches.Item((row,), "a dog"), 1.0, False)
    batch = batches.draw([slot], latents, 0, background_weight=0.25)
    predicted, target = torch.randn(2, *batch.latents_BCHW.shape, generator=torch.Generator().manual_seed(0))
    error = ((predicted - target) ** 2)[0, :, top:bottom, left:right].mean(0)
    inside = encoded["mask_1HW"][0, top:bottom, left:right] if masked else torch.ones_like(error)
    weight = 0.25 + 0.75 * inside
    expected = (error * weight).sum() / weight.sum()
    torch.testing.assert_close(losses.denoising(predicted, target, batch.mask_B1HW)[0], expected)


def test_a_photo_and_its_views_are_items_of_their_own(photo: Photo) -> None:
    recipe = Recipe.of(
        {"subjects": [{"photos": ".", "class_noun": "dog"}], "resolution": 64, "scales": 3, "crops": 1, "flip": True}
    )
    whole, *views = optimization._views(recipe, photo, "a ohwx dog", STRIDE)
    assert whole.prompt == "a ohwx dog"
    assert [(row.variant, row.mirrored, row.scaled) for row in whole.rows] == [
        (variant, mirrored, None) for variant in (0, 1) for mirrored in (False, True)
    ]
    assert len(views) == 3
    for number, item in enumerate(views):
        scaled = scaling.draw(photo, (64, 64), number, 0, STRIDE)
        assert item.prompt == f"a ohwx dog, {scaled.words}"
        assert item.rows == tuple(Row(photo, (64, 64), 0, mirrored, scaled) for mirrored in (False, True))


def test_a_run_learns_them_by_every_prior(tiny_sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(0).save(tmp_path / "0.png")
    seen: set[str] = set()
    own = loop.backward

    def spy(state: loop.Loop, batch: batches.Batch) -> torch.Tensor:
        seen.update(batch.prompts)
        return own(state, batch)

    monkeypatch.setattr(loop, "backward", spy)
    for prior, also in (("images", "a dog"), ("distilled", "a dog"), ("parent", ", ")):
        seen.clear()
        done = train(tmp_path, tiny_sd, out=tmp_path / prior, prior_loss=prior, scales=4, steps=10)
        assert done.status == 0, done
        named = {prompt for prompt in seen if "a dog" not in prompt and prompt}
        assert len({prompt for prompt in named if ", " in prompt}) >= 2
        assert len({prompt for prompt in named if ", " not in prompt}) == 1
        assert any(also in prompt for prompt in seen - named)


def test_further_resolutions_are_of_the_photo_as_it_is(photo: Photo) -> None:
    settings = {"resolution": 32, "more_resolutions": [64], "scales": 2, "aspect": "keep"}
    recipe = Recipe.of({"subjects": [{"photos": ".", "class_noun": "dog"}], **settings})
    whole, *views = optimization._views(recipe, photo, "a ohwx dog", STRIDE)
    assert len({row.size for row in whole.rows}) == 2
    assert {row.size for item in views for row in item.rows} == {whole.rows[0].size}


def test_a_caption_that_the_words_make_too_long_is_refused_before_any_work(tiny_sd: Path, tmp_path: Path) -> None:
    picture(0).save(tmp_path / "0.png")
    tokens = 77 - 2
    (tmp_path / "0.txt").write_text("[V] " + "dog " * (tokens - 1))
    fine = call("train", tmp_path, "--class", "dog", "--model", tiny_sd, "--dry-run")
    assert fine.status == 0, fine
    refused = train(tmp_path, tiny_sd, out=tmp_path / "run", scales=1)
    assert refused.refusal.startswith("the caption of 0.png, ")
    assert not (tmp_path / "run").exists()
