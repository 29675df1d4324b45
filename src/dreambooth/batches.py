"""Which images meet at a step, and every random draw for them, as functions of (seed, step, slot) alone.

So there is no random state to save: accumulation, several processes and a resumed run draw the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from dreambooth.cache import Memo, Row
from dreambooth.geometry import Size

T = TypeVar("T")


@dataclass(frozen=True)
class Item:
    """An image to learn from: its encoded views and its caption."""

    rows: tuple[Row, ...]
    prompt: str


@dataclass(frozen=True)
class Slot:
    """A place in an optimiser step.

    Attributes:
        step: The step, from 0.
        index: The place in the step.
        item: The image in it.
        weight: 1 / N for the N photos of the step, lambda / M for its M class images (Ruiz et al. 2023, eq. 2).
        is_prior: Whether it is there to keep what the model knows, as class images are.
    """

    step: int
    index: int
    item: Item
    weight: float
    is_prior: bool


@dataclass
class Batch:
    """What one forward pass needs, all of it drawn, for images of one size.

    Attributes:
        latents_BCHW: Latents drawn from the encoder's posterior.
        noise_BCHW: The noise to mix in.
        u_B: Uniform draws in [0, 1) that the process turns into times.
        prompts: The captions.
        weight_B: Weight of each image in the loss.
        prior_B: 1 for class images and what else the prior shows, 0 for the photos to learn.
        mask_B1HW: Weight of each latent pixel, or None where none differs from another.
        view_B4: Height and width of each photo, and top and left edge of the view of it, as `cache.encode_photo` says.
    """

    latents_BCHW: Tensor
    noise_BCHW: Tensor
    u_B: Tensor
    prompts: list[str]
    weight_B: Tensor
    prior_B: Tensor
    mask_B1HW: Tensor | None
    view_B4: Tensor


@dataclass(frozen=True)
class Plan:
    """The order of the data.

    Attributes:
        seed: Seed of every draw.
        photos: The subjects' images.
        prior: The class images; empty without prior preservation.
        batch_size: Photos a step; as many class images join them.
        prior_weight: Lambda.
        prior_dropout: Share of the prior's places without a prompt.
        prior_others: Share of the prior's places that show a photo under one of `others`.
        others: Prompts of other classes.
    """

    seed: int
    photos: Sequence[Item]
    prior: Sequence[Item]
    batch_size: int
    prior_weight: float
    prior_dropout: float = 0.0
    prior_others: float = 0.0
    others: Sequence[str] = ()

    def slots(self, step: int) -> list[Slot]:
        """Return the slots of a step: photos, then class images, each pool in its own shuffled rounds."""
        size = self.batch_size
        picked = [(self._pick(self.photos, "photos", step * size + k), 1 / size, False) for k in range(size)]
        if self.prior:
            weight = self.prior_weight / size
            picked += [(self._prior_item(step * size + k), weight, True) for k in range(size)]
        return [Slot(step, index, *slot) for index, slot in enumerate(picked)]

    def _prior_item(self, position: int) -> Item:
        item = self._pick(self.prior, "prior", position)
        drawn = float(torch.rand(1, generator=generator(self.seed, "dropout", position)))
        if drawn < self.prior_dropout:
            return replace(item, prompt="")
        if drawn < self.prior_dropout + self.prior_others:
            photo = self._pick(self.photos, "photos as others", position)
            return replace(photo, prompt=self._pick(self.others, "others", position))
        return item

    def _pick(self, pool: Sequence[T], name: str, position: int) -> T:
        round_, place = divmod(position, len(pool))
        order = torch.randperm(len(pool), generator=generator(self.seed, name, round_))
        return pool[int(order[place])]


def share(slots: Sequence[Slot], accumulation: int, rank: int, world: int) -> list[list[Slot]]:
    """Return this process's part of a step, one list a forward pass.

    Where the slots do not divide evenly, the last one stands in with weight 0, so that every process takes part in
    every pass.
    """
    parts = accumulation * world
    size = -(-len(slots) // parts)
    last = slots[-1]
    idle = Slot(last.step, last.index, last.item, 0.0, last.is_prior)
    padded = [*slots, *[idle] * (size * parts - len(slots))]
    return [padded[(micro * world + rank) * size :][:size] for micro in range(accumulation)]


def by_size(slots: Sequence[Slot], seed: int) -> list[list[Slot]]:
    """Split slots into those of one size each, as a forward pass needs them: a loss that is a sum does not mind."""
    found: dict[Size, list[Slot]] = {}
    for slot in slots:
        row, _ = _draw_row(slot, seed)
        found.setdefault(row.size, []).append(slot)
    return list(found.values())


def draw(slots: Sequence[Slot], latents: Memo[Row, dict[str, Tensor]], seed: int, background_weight: float) -> Batch:
    """Draw everything random about `slots` and join them to a batch, on the CPU.

    Args:
        slots: The images, of one size (`by_size`).
        latents: Their encoded views.
        seed: The plan's seed.
        background_weight: Weight in the loss of what an image's mask leaves out.
    """
    drawn, noises, times, masks, views = [], [], [], [], []
    for slot in slots:
        row, source = _draw_row(slot, seed)
        encoded = latents[row]
        mean_CHW = encoded["mean_CHW"]
        times.append(torch.rand(1, generator=source))
        noises.append(torch.randn(mean_CHW.shape, generator=source))
        drawn.append(mean_CHW + encoded["std_CHW"] * torch.randn(mean_CHW.shape, generator=source))
        masks.append(_weight(encoded, background_weight))
        views.append(encoded["view_4"])
    return Batch(
        torch.stack(drawn),
        torch.stack(noises),
        torch.cat(times),
        [slot.item.prompt for slot in slots],
        torch.tensor([slot.weight for slot in slots]),
        torch.tensor([float(slot.is_prior) for slot in slots]),
        _stack(masks, drawn[0].shape[1:]),
        torch.stack(views),
    )


def _draw_row(slot: Slot, seed: int) -> tuple[Row, torch.Generator]:
    """Return the view that a slot shows, and the generator of what else is drawn for it."""
    source = generator(seed, "slot", slot.step, slot.index)
    return slot.item.rows[int(torch.randint(len(slot.item.rows), (1,), generator=source))], source


def _weight(encoded: Mapping[str, Tensor], background_weight: float) -> Tensor | None:
    """Return the weight of each latent pixel of a view, nothing outside of what the photo fills; None: all alike."""
    mask, filled = encoded.get("mask_1HW"), encoded.get("filled_1HW")
    if mask is None:
        return filled
    weight = background_weight + (1 - background_weight) * mask
    return weight if filled is None else weight * filled


def _stack(masks: Sequence[Tensor | None], size: Sequence[int]) -> Tensor | None:
    if all(mask is None for mask in masks):
        return None
    return torch.stack([torch.ones(1, *size) if mask is None else mask for mask in masks])


def generator(seed: int, *key: str | int) -> torch.Generator:
    """Return a CPU generator whose state is a function of the seed and the key."""
    digest = hashlib.sha256(repr((seed, *key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
