"""The training loop: one for every family and method. A generator of steps; logging and saving are its consumer's."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from diffusers import DiffusionPipeline
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from dreambooth.batches import Batch, Plan, by_size, draw, share
from dreambooth.cache import Memo, Row
from dreambooth.diffusion import Process
from dreambooth.errors import RunError
from dreambooth.families import Family
from dreambooth.frozen import Frozen
from dreambooth.graphs import Predict
from dreambooth.losses import dco, denoising, distance
from dreambooth.optimizers import InBackward
from dreambooth.precision import inputs_as_they_are, send
from dreambooth.progress import Step
from dreambooth.recipe import Recipe

LEAST_SCALE = 2.0**-10
"""fp16's scaler begins at 2^16 and halves with every step it leaves out: below this none has been taken for long."""


class Trainee(nn.Module):
    """All that is trained, as one module, so that one wrapper synchronises the gradients of all of it.

    Args:
        pipe: The pipeline that holds the components.
        family: Its family.
        components: The trained components.
        conditioning: Encoded prompts, where no text encoder is trained.
        predict: The family's, or what does the same faster.
        uncast: Whether a LoRA's inputs stay in the dtype that they have, under autocast.
    """

    def __init__(
        self,
        pipe: DiffusionPipeline,
        family: Family,
        components: dict[str, nn.Module],
        conditioning: Memo[str, dict[str, Tensor]] | None,
        predict: Predict | None = None,
        uncast: bool = False,
    ) -> None:
        super().__init__()
        adapted = family.denoiser(pipe).modules() if uncast else []
        self._lora = [layer for layer in adapted if isinstance(layer, LoraLayer)]
        self._predict = predict or family.predict
        self.components = nn.ModuleDict(components)
        self._pipe = pipe
        self._family = family
        self._conditioning = conditioning

    def forward(self, noisy_BCHW: Tensor, t_B: Tensor, prompts: Sequence[str], view_B4: Tensor) -> Tensor:
        """Predict the target for noisy latents under their prompts, as the views of photos that they are."""
        if self._conditioning is None:
            rows = self._family.encode_prompts(self._pipe, prompts)
        else:
            rows = [self._conditioning[prompt] for prompt in prompts]
        told = {**self._family.collate(rows), "view_B4": view_B4}
        cond = {name: send(value, noisy_BCHW.device) for name, value in told.items()}
        with inputs_as_they_are(self._lora):
            return self._predict(self._family.denoiser(self._pipe), noisy_BCHW, t_B, cond)


@dataclass(frozen=True)
class Loop:
    """What the loop works with.

    Attributes:
        trainee: The trained modules, as prepared by accelerate.
        optimizer: Its optimiser, prepared likewise, with the peak rate of each group as `peak`.
        accelerator: Device, precision and processes.
        process: The diffusion process.
        plan: The order of the data.
        latents: Encoded images.
        recipe: The resolved recipe.
        frozen: The model as it was before training, where the recipe's loss compares with it.
        in_backward: What takes the steps, where the backward pass does.
    """

    trainee: nn.Module
    optimizer: torch.optim.Optimizer
    accelerator: Accelerator
    process: Process
    plan: Plan
    latents: Memo[Row, dict[str, Tensor]]
    recipe: Recipe
    frozen: Frozen | None = None
    in_backward: InBackward | None = None


@dataclass(frozen=True)
class Pending:
    """A step whose figures are still on the device: parts_2 are this process's subject and prior loss."""

    step: int
    parts_2: Tensor
    grad_norm: Tensor
    lr: float
    images: int


def steps(loop: Loop, start: int) -> Iterator[Pending]:
    """Train from step `start` to the recipe's last, yielding after each step.

    The loss is sum_i w_i l_i over all images of the step (Ruiz et al. 2023, eq. 2: 1/N for photos, lambda/M for class
    images), whatever forward passes and processes they are spread over.
    """
    accelerator = loop.accelerator
    assert loop.recipe.steps is not None, "presets.fill leaves no steps open"
    weights = [weight for group in loop.optimizer.param_groups for weight in group["params"]]
    for step in range(start, loop.recipe.steps):
        resting = set_rates(loop.optimizer, step, loop.recipe)
        slots = loop.plan.slots(step)
        passes = share(slots, loop.recipe.accumulation or 1, accelerator.process_index, accelerator.num_processes)
        alike = [part for each in passes for part in by_size(each, loop.plan.seed)]
        parts_2 = torch.zeros(2, device=accelerator.device)
        # Processes may differ in how many sizes they hold: they meet in the last backward pass alone.
        for index, part in enumerate(alike):
            batch = draw(part, loop.latents, loop.plan.seed, loop.recipe.background_weight)
            last = index == len(alike) - 1
            with nullcontext() if last else accelerator.no_sync(loop.trainee):
                parts_2 += backward(loop, batch)
        if loop.in_backward:
            grad_norm = loop.in_backward.take_norm()
        else:
            for weight in resting:
                weight.grad = None  # neither a step nor momentum
            grad_norm = accelerator.clip_grad_norm_(weights, loop.recipe.max_grad_norm)
            loop.optimizer.step()
            loop.optimizer.zero_grad()
        lr = loop.optimizer.param_groups[0]["lr"]
        yield Pending(step + 1, parts_2, torch.as_tensor(grad_norm), lr, len(slots))


def backward(loop: Loop, batch: Batch) -> Tensor:
    """Add the gradient of a batch's part of the loss, and return that loss split into subject and prior [2]."""
    device = loop.accelerator.device
    latents_BCHW, noise_BCHW = send(batch.latents_BCHW, device), send(batch.noise_BCHW, device)
    mask_B1HW = None if batch.mask_B1HW is None else send(batch.mask_B1HW, device)
    height, width = latents_BCHW.shape[-2:]
    t_B = loop.process.sample_t(send(batch.u_B, device), (height, width))
    noisy_BCHW = loop.process.mix(latents_BCHW, noise_BCHW, t_B)
    target_BCHW = loop.process.target(latents_BCHW, noise_BCHW, t_B)
    scale_B, prior_B = loop.process.weight(t_B, loop.recipe.min_snr), send(batch.prior_B, device)
    frozen_BCHW = _frozen(loop, batch, noisy_BCHW, t_B, target_BCHW)
    predicted_BCHW = loop.trainee(noisy_BCHW, t_B, batch.prompts, batch.view_B4)
    if loop.recipe.prior_loss != "images":
        target_BCHW = torch.where(prior_B.bool().view(-1, 1, 1, 1), frozen_BCHW, target_BCHW)
    # w_t || prediction - target ||^2, each image with its own t (Ruiz et al. 2023, eq. 1)
    loss_B = scale_B * denoising(predicted_BCHW, target_BCHW, mask_B1HW)
    if loop.recipe.dco_beta:
        loss_B = dco(loss_B, scale_B * denoising(frozen_BCHW, target_BCHW, mask_B1HW), loop.recipe.dco_beta)
    weighted_B = send(batch.weight_B, device) * loss_B
    total = weighted_B.sum()
    if loop.recipe.l2_to_base and loop.frozen:
        # once a step: the weights of its photos add up to 1, whatever passes and processes they are spread over
        share = send((batch.weight_B * (1 - batch.prior_B)).sum(), device)
        apart = distance(loop.frozen.trained, loop.frozen.start, loop.recipe.lora_scale)
        total = total + share * loop.recipe.l2_to_base * apart
    # Data-parallel training averages gradients over the processes; the loss is a sum over them.
    loop.accelerator.backward(total * loop.accelerator.num_processes)
    return torch.stack([(weighted_B * (1 - prior_B)).sum(), (weighted_B * prior_B).sum()]).detach()


def _frozen(loop: Loop, batch: Batch, noisy_BCHW: Tensor, t_B: Tensor, target_BCHW: Tensor) -> Tensor:
    """Return the frozen model's predictions for the images whose loss needs one, and the targets of the others.

    DCO compares on the photos; the distilled prior (https://arxiv.org/abs/2506.06483) and the parent's, on photos as
    class (as ai-toolkit's differential output preservation), take the prediction as the target of their images.
    """
    if loop.frozen is None:
        return target_BCHW
    of_photos, of_prior = loop.recipe.dco_beta is not None, loop.recipe.prior_loss != "images"
    rows = [index for index, prior in enumerate(batch.prior_B.tolist()) if (of_prior if prior else of_photos)]
    if not rows:
        return target_BCHW
    texts = [batch.prompts[index] for index in rows]
    at_R = send(torch.tensor(rows), t_B.device)  # a list as an index would make the host wait
    predicted_BCHW = loop.frozen.predict(noisy_BCHW[at_R], t_B[at_R], texts, batch.view_B4[rows])
    return target_BCHW.index_copy(0, at_R, predicted_BCHW.to(target_BCHW.dtype))


def set_rates(optimizer: torch.optim.Optimizer, step: int, recipe: Recipe) -> list[nn.Parameter]:
    """Set the learning rates of a step (from 0); return the weights that rest, being trained in other steps."""
    assert recipe.steps is not None, "presets.fill leaves no steps open"
    factor = rate_factor(step, recipe)
    resting: list[nn.Parameter] = []
    for group in optimizer.param_groups:
        begin, end = group.get("span", (0.0, 1.0))
        group["lr"] = group["peak"] * factor
        resting += [] if begin * recipe.steps <= step < end * recipe.steps else group["params"]
    return resting


def rate_factor(step: int, recipe: Recipe) -> float:
    """Return the learning rate of a step (from 0) over its peak: linear warm-up, then constant or cosine to zero."""
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    if recipe.schedule == "constant":
        return 1.0
    assert recipe.steps is not None, "presets.fill leaves no steps open"
    return 0.5 * (1 + math.cos(math.pi * (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)))


def read(pending: Sequence[Pending], began: float, loop: Loop) -> list[Step]:
    """Bring the figures of some steps to the host, in one transfer, summed over the processes.

    Their time is known then: until their figures are there, the device may be behind the host.

    Raises:
        RunError: A loss is not finite, or no step is taken any more; the message names the step.
    """
    figures = torch.stack([torch.cat([p.parts_2, p.grad_norm.reshape(1).to(p.parts_2)]) for p in pending])
    scaler = loop.accelerator.scaler
    if scaler is not None and scaler.get_scale() < LEAST_SCALE:
        raise RunError(f"fp16 overflows at step {pending[-1].step} however it is scaled: use --precision bf16 or fp32")
    parts = loop.accelerator.reduce(figures[:, :2].contiguous(), reduction="sum").tolist()
    norms = figures[:, 2].tolist()
    seconds = (time.perf_counter() - began) / len(pending)
    done = []
    for entry, (subject, prior), norm in zip(pending, parts, norms, strict=True):
        # a gradient that is not finite has spoilt the weights, unless fp16's scaler has skipped the step
        spoilt = scaler is None and not math.isfinite(norm)
        if spoilt or not math.isfinite(subject + prior):
            advice = "lower --learning-rate, or use --precision fp32"
            raise RunError(f"the loss is not finite at step {entry.step}: {advice}")
        shown = prior / loop.plan.prior_weight if loop.plan.prior else None
        told = norm if math.isfinite(norm) else None
        figures_of = (subject + prior, subject, shown, entry.lr, told, seconds, entry.images / seconds)
        done.append(Step(entry.step, *figures_of))
    return done
