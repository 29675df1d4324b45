"""The order of the data and its random draws are functions of (seed, step, slot) alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from dreambooth.batches import Item, Plan, Slot, by_size, draw, generator, share
from dreambooth.cache import Memo, Row
from dreambooth.photos import Photo


def items(count: int, name: str) -> list[Item]:
    photos = [Photo(f"{name}{k}", Path(f"{name}{k}.png"), (8, 8), None, None) for k in range(count)]
    return [Item((Row(photo, (8, 8)),), f"caption of {photo.id}") for photo in photos]


def encode(row: Row) -> dict[str, torch.Tensor]:
    mean = torch.full((4, 2, 2), 10.0 * sum(map(ord, row.photo.id)))
    return {"mean_CHW": mean, "std_CHW": torch.full((4, 2, 2), 0.5), "view_4": torch.ones(4)}


def latents() -> Memo[Row, dict[str, torch.Tensor]]:
    return Memo(encode)


@pytest.mark.parametrize("photos", [1, 3, 5])
@pytest.mark.parametrize("prior", [0, 7, 100])
@pytest.mark.parametrize("batch", [1, 3])
def test_every_image_is_reached_and_as_often_as_the_others(photos: int, prior: int, batch: int) -> None:
    plan = Plan(0, items(photos, "photo"), items(prior, "class"), batch, 1.0)
    rounds = 300
    seen = [slot.item.prompt for step in range(rounds) for slot in plan.slots(step)]
    for pool in (plan.photos, plan.prior):
        counts = [seen.count(item.prompt) for item in pool]
        if pool:
            assert max(counts) - min(counts) <= 1
            assert sum(counts) == rounds * batch


def test_the_order_differs_between_rounds_and_seeds() -> None:
    plan = Plan(0, items(5, "photo"), [], 5, 1.0)
    orders = {tuple(slot.item.prompt for slot in plan.slots(step)) for step in range(20)}
    assert len(orders) > 10
    other = Plan(1, plan.photos, [], 5, 1.0)
    assert [s.item for s in plan.slots(0)] != [s.item for s in other.slots(0)] or plan.slots(1) != other.slots(1)


def test_weights_are_the_papers_equation_2() -> None:
    plan = Plan(0, items(5, "photo"), items(9, "class"), 4, 0.7)
    slots = plan.slots(3)
    assert [slot.weight for slot in slots] == [1 / 4] * 4 + [0.7 / 4] * 4
    assert [slot.is_prior for slot in slots] == [False] * 4 + [True] * 4


def test_a_share_of_the_class_images_has_no_prompt_and_all_else_stays_as_it_was() -> None:
    whole = Plan(0, items(5, "photo"), items(9, "class"), 2, 1.0)
    plan = replace(whole, prior_dropout=0.25)
    slots, named = ([slot for step in range(500) for slot in each.slots(step)] for each in (plan, whole))
    assert [slot.item.rows for slot in slots] == [slot.item.rows for slot in named]
    kept = [
        replace(slot, item=was.item) if not slot.item.prompt else slot for slot, was in zip(slots, named, strict=True)
    ]
    assert kept == named
    dropped = [not slot.item.prompt for slot in slots if slot.is_prior]
    assert sum(dropped) / len(dropped) == pytest.approx(0.25, abs=0.04)
    assert all(slot.item.prompt for slot in slots if not slot.is_prior)
    assert plan.slots(7) == [slot for slot in slots if slot.step == 7]


def test_a_share_of_the_prior_takes_photos_for_other_things_and_all_else_stays_as_it_was() -> None:
    whole = Plan(0, items(5, "photo"), items(9, "class"), 2, 1.0, 0.25)
    plan = replace(whole, prior_others=0.5, others=("a cup", "a pig", "a hat"))
    places = [(new, old) for step in range(500) for new, old in zip(plan.slots(step), whole.slots(step), strict=True)]
    taken = [new for new, _ in places if new.item.prompt in plan.others]
    assert all(new == old for new, old in places if new.item.prompt not in plan.others)
    assert all(slot.is_prior and slot.item.rows in [photo.rows for photo in plan.photos] for slot in taken)
    assert len(taken) / 1000 == pytest.approx(0.5, abs=0.04)
    assert sum(not new.item.prompt for new, _ in places) / 1000 == pytest.approx(0.25, abs=0.04)
    pairs = Counter((slot.item.prompt, slot.item.rows) for slot in taken)
    assert len(pairs) == 3 * 5
    assert max(pairs.values()) < 3 * min(pairs.values())


@pytest.mark.parametrize(("accumulation", "world"), [(1, 1), (2, 1), (3, 2), (4, 1), (1, 2), (2, 3)])
def test_sharing_gives_every_slot_once_and_every_process_as_many_passes(accumulation: int, world: int) -> None:
    slots = Plan(0, items(5, "photo"), items(9, "class"), 3, 1.0).slots(0)
    shares = [share(slots, accumulation, rank, world) for rank in range(world)]
    assert all(len(passes) == accumulation and all(passes) for passes in shares)
    given = [slot for passes in shares for part in passes for slot in part]
    assert sorted(slot.index for slot in given if slot.weight) == [slot.index for slot in slots]
    assert sum(slot.weight for slot in given) == pytest.approx(sum(slot.weight for slot in slots))


def test_a_caption_stays_with_its_photo_under_any_shuffle() -> None:
    pool, cache = items(6, "photo"), latents()
    expected = {item.prompt: encode(item.rows[0])["mean_CHW"].mean().item() for item in pool}
    for seed in range(10):
        plan = Plan(seed, pool, [], 4, 1.0)
        for step in range(20):
            batch = draw(plan.slots(step), cache, seed, 0.1)
            for prompt, latent_CHW in zip(batch.prompts, batch.latents_BCHW, strict=True):
                assert abs(latent_CHW.mean().item() - expected[prompt]) < 5  # std 0.5; photos lie 10 apart


def test_draws_do_not_depend_on_who_asks_for_them() -> None:
    plan = Plan(3, items(5, "photo"), items(5, "class"), 3, 1.0)
    whole = draw(plan.slots(7), latents(), 3, 0.1)
    split = [draw([slot], latents(), 3, 0.1) for slot in plan.slots(7)]
    for name in ("latents_BCHW", "noise_BCHW", "u_B", "weight_B", "prior_B", "view_B4"):
        assert torch.equal(getattr(whole, name), torch.cat([getattr(part, name) for part in split]))


def test_every_draw_is_its_own() -> None:
    plan = Plan(3, items(1, "photo"), items(1, "class"), 2, 1.0)
    batches = [draw(plan.slots(step), latents(), 3, 0.1) for step in range(50)]
    times = torch.cat([batch.u_B for batch in batches])
    assert len(set(times.tolist())) == len(times)
    assert 0.4 < times.mean() < 0.6
    noise = torch.cat([batch.noise_BCHW for batch in batches])
    assert abs(noise.mean()) < 0.05
    assert abs(noise.std() - 1) < 0.05


def shaped(sizes: list[tuple[int, int]], row: Row) -> dict[str, torch.Tensor]:
    """An image of its row's size, in which every number tells which of them it is."""
    mean = torch.full((4, *row.size[::-1]), float(sizes.index(row.size)))
    return {"mean_CHW": mean, "std_CHW": torch.zeros_like(mean), "view_4": torch.ones(4)}


def test_images_are_drawn_size_by_size_and_as_each_alone() -> None:
    sizes = [(8, 8), (4, 16), (16, 4)]
    photos = [Photo(f"{k}", Path("x.png"), (8, 8)) for k in range(7)]
    pool = [Item(tuple(Row(photo, size) for size in sizes), photo.id) for photo in photos]
    plan, cache = Plan(5, pool, items(3, "class"), 7, 1.0), Memo(partial(shaped, sizes))
    for step in range(10):
        slots = plan.slots(step)
        parts = by_size(slots, 5)
        assert sorted(slot.index for part in parts for slot in part) == list(range(14))
        batches = [draw(part, cache, 5, 0.1) for part in parts]
        assert len({batch.latents_BCHW.shape[1:] for batch in batches}) == len(batches)
        for part, batch in zip(parts, batches, strict=True):
            alone = [draw([slot], cache, 5, 0.1) for slot in part]
            assert torch.equal(batch.noise_BCHW, torch.cat([each.noise_BCHW for each in alone]))
            assert torch.equal(batch.u_B, torch.cat([each.u_B for each in alone]))


def test_the_order_and_the_times_do_not_depend_on_the_sizes() -> None:
    """So a run in buckets shows the same photos at the same times as one in squares."""
    sizes = [(8, 8), (4, 16)]
    pools = [[Item((Row(item.rows[0].photo, size),), item.prompt) for item in items(5, "photo")] for size in sizes]
    plans = [Plan(5, pool, [], 3, 1.0) for pool in pools]
    for step in range(10):
        one, other = (draw(plan.slots(step), Memo(partial(shaped, sizes)), 5, 0.1) for plan in plans)
        assert one.prompts == other.prompts
        assert torch.equal(one.u_B, other.u_B)


def test_generators_repeat_and_differ_by_every_part_of_the_key() -> None:
    def first(*key: int | str) -> float:
        return torch.rand(1, generator=generator(0, *key)).item()

    assert first("slot", 1, 2) == first("slot", 1, 2)
    assert len({first("slot", 1, 2), first("slot", 12), first("slot", 2, 1), first("photos", 1, 2)}) == 4


def test_views_of_a_photo_are_all_used() -> None:
    photo = Photo("a", Path("a.png"), (8, 8), None, None)
    item = Item(tuple(Row(photo, (8, 8), k, mirrored) for k in range(3) for mirrored in (False, True)), "a")
    seen: list[Row] = []

    def note(row: Row) -> dict[str, torch.Tensor]:
        seen.append(row)
        return encode(row)

    for step in range(60):
        draw([Slot(step, 0, item, 1.0, False)], Memo(note, keep=False), 0, 0.1)
    assert set(seen) == set(item.rows)


def test_masks_weigh_the_background_and_only_where_there_is_one() -> None:
    mask = torch.tensor([[[1.0, 0.0], [0.5, 0.0]]])

    def masked(row: Row) -> dict[str, torch.Tensor]:
        return {**encode(row), **({"mask_1HW": mask} if row.photo.id == "photo0" else {})}

    slots = [Slot(0, k, item, 1.0, False) for k, item in enumerate(items(2, "photo"))]
    batch = draw(slots, Memo(masked), 0, 0.2)
    assert batch.mask_B1HW is not None
    torch.testing.assert_close(batch.mask_B1HW[0, 0], torch.tensor([[1.0, 0.2], [0.6, 0.2]]))
    assert torch.equal(batch.mask_B1HW[1], torch.ones(1, 2, 2))
    assert draw(slots[1:], Memo(masked), 0, 0.2).mask_B1HW is None
