"""What a training step takes of the memory, found before the first by going through one without computing it.

Torch's fake tensors have shapes and sizes but no numbers. A fake copy of all that is trained takes two whole steps (the
second with the optimiser's state), and every storage is booked from its birth to its death.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, cast

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dreambooth import cache, frozen, methods, optimizers, quantise
from dreambooth.averaging import WIDTHS
from dreambooth.cache import Memo
from dreambooth.families import Family
from dreambooth.loop import Trainee
from dreambooth.losses import denoising
from dreambooth.methods import Group
from dreambooth.optimizers import InBackward
from dreambooth.precision import DTYPES, as_they_are
from dreambooth.recipe import Recipe


class Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Books the storage of every tensor that is made while it is entered, until it is freed.

    Attributes:
        now: Bytes in use.
        most: The most that they have been.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now: int = 0
        self.most: int = 0
        self._booked: dict[int, Any] = {}

    def book(self, tensor: Tensor) -> None:
        """Count a tensor's storage, once."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._booked:
            return
        self.now += size
        self.most = max(self.most, self.now)
        self._booked[key] = weakref.ref(storage, self._strike(key, size))

    def _strike(self, key: int, size: int) -> Callable[[object], None]:
        def strike(_: object) -> None:
            self.now -= size
            del self._booked[key]

        return strike

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count what it makes."""
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor):
                self.book(leaf)
        return made


def step_bytes(pipe: DiffusionPipeline, family: Family, recipe: Recipe, images: int, device: torch.device) -> int:
    """Return the most bytes that the tensors of a training step take on the device, weights included.

    Images are squares of the first resolution. Of a run that looks at pictures on the way, what draws them counts too.

    Not counted: what a kernel takes while it runs, and what the allocator keeps back.

    Args:
        pipe: The pipeline, loaded; it is not changed, and nothing is computed with it.
        family: Its family.
        recipe: A resolved recipe.
        images: How many share a forward pass.
        device: Where it is trained.
    """
    outline = _outline(pipe, recipe)
    latent = _latent_shape(outline, family, recipe)
    groups = methods.get(recipe.method).attach(outline, family, recipe)
    count = sum(weight.numel() for group in groups for weight in group.parameters.values())
    with FakeTensorMode(allow_non_fake_inputs=True):
        seen: dict[int, Tensor] = {}
        for part in _networks(outline).values():
            _fill_in(part, device, seen)
        step = _Step(outline, family, recipe, (images, *latent), device, pipe)
        # others look at numbers, which there are none: AdamW stands in for them
        adamw = recipe.model_copy(update={"optimizer": "adamw"})
        optimizer = optimizers.build([_in_place(group, outline) for group in groups], adamw)
        inward = optimizers.InBackward(optimizer, recipe.max_grad_norm) if recipe.step_in_backward else None
        with Ledger() as ledger:
            for module in step.modules:
                for weight in chain(module.parameters(), module.buffers()):
                    ledger.book(weight)
            for _ in range(2):
                step.take(optimizer, inward)
    most = max(ledger.most, ledger.now + (_idle_bytes(outline, step.modules) if recipe.select else 0))
    state = optimizers.KINDS[recipe.optimizer].state - optimizers.KINDS["adamw"].state
    state += 4 * (len(WIDTHS) if recipe.ema_profiles else int(recipe.ema is not None))
    # the weights as they were, and their differences from these, which the backward pass needs
    state += 4 * (int(frozen.is_needed(recipe)) + int(recipe.l2_to_base is not None))
    total: int = most + count * state - _saved(pipe, family, recipe)
    return total


def _idle_bytes(pipe: DiffusionPipeline, busy: Sequence[nn.Module]) -> int:
    """Return the bytes of the networks that no step needs."""
    idle = [part for part in _networks(pipe).values() if not any(part is other for other in busy)]
    return sum(weight.nbytes for part in idle for weight in chain(part.parameters(), part.buffers()))


def checkpoint_gradients(module: nn.Module) -> None:
    """Have a network of diffusers or transformers recompute its activations in the backward pass."""
    name = "enable_gradient_checkpointing"  # as diffusers calls it
    getattr(module, name if hasattr(module, name) else "gradient_checkpointing_enable")()


def _networks(pipe: DiffusionPipeline) -> dict[str, nn.Module]:
    return {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}


def _outline(pipe: DiffusionPipeline, recipe: Recipe) -> DiffusionPipeline:
    """Return the pipeline with networks that hold no numbers, and tokenizers of its own where tokens will be added."""
    outline = copy.copy(pipe)
    for name, part in _networks(pipe).items():
        weights = [*part.parameters(), *part.buffers()]
        empty: dict[int, Any] = {id(weight): torch.empty_like(weight, device="meta") for weight in weights}
        empty |= {id(p): nn.Parameter(empty[id(p)], p.requires_grad) for p in part.parameters()}
        setattr(outline, name, copy.deepcopy(part, empty))
    for name, part in pipe.components.items():
        if recipe.learns_token and name.startswith("tokenizer"):
            setattr(outline, name, copy.deepcopy(part))
    return outline


def _latent_shape(outline: DiffusionPipeline, family: Family, recipe: Recipe) -> tuple[int, ...]:
    """Return the shape of an image's latents, (C, H, W)."""
    assert recipe.resolution is not None, "presets.fill leaves no resolution open"
    pixels_1CHW = torch.zeros(1, 3, recipe.resolution, recipe.resolution, device="meta")
    with torch.no_grad():
        return tuple(family.encode_images(outline, pixels_1CHW)["mean_BCHW"].shape[1:])


def _fill_in(network: nn.Module, device: torch.device, seen: dict[int, Tensor]) -> None:
    """Put fake tensors on the device in place of all that a network has; `seen` keeps tied weights tied."""
    for module in network.modules():
        for name, weight in module.named_parameters(recurse=False):
            fake = seen.setdefault(id(weight), nn.Parameter(_like(weight, device), weight.requires_grad))
            module.register_parameter(name, cast(nn.Parameter, fake))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, _like(buffer, device))


def _like(tensor: Tensor, device: torch.device) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=device)


def _in_place(group: Group, pipe: DiffusionPipeline) -> Group:
    """Return a group with the weights that its component has now."""
    now = dict(pipe.components[group.component].named_parameters())
    return replace(group, parameters={name: now[name] for name in group.parameters})


class _Step:
    """A training step as `loop.backward` and `loop.steps` take it, on fake tensors.

    Attributes:
        modules: What lies on the device while it trains.
    """

    def __init__(
        self,
        pipe: DiffusionPipeline,
        family: Family,
        recipe: Recipe,
        latents: tuple[int, ...],
        device: torch.device,
        real: DiffusionPipeline,
    ) -> None:
        components = methods.trained_components(pipe, family, recipe)
        if recipe.gradient_checkpointing:
            for module in (family.denoiser(pipe), *components.values()):
                checkpoint_gradients(module)
        for module in components.values():
            module.train()
            for part in module.modules():
                if hasattr(part, "module_dropout"):
                    part.training = False  # peft's LoKr and LoHa look at a number they draw, which there is none here
        prompt = f"a {recipe.subjects[0].identifier} {recipe.subjects[0].class_noun}"
        self.modules = [family.denoiser(pipe)]
        rows: Memo[str, dict[str, Tensor]] | None = None
        if methods.trains_text_encoders(recipe):
            self.modules += [part for name, part in _networks(pipe).items() if name.startswith("text_encoder")]
        else:
            row = _encode(pipe, family, prompt, real)
            rows = Memo(lambda _: row)
        self._trainee = Trainee(pipe, family, components, rows, uncast=as_they_are(recipe))
        images, _, height, width = latents
        self._latents_BCHW = torch.zeros(latents, device=device)
        self._view_B4 = torch.zeros(images, 4, device=device)
        self._t_B = family.process(pipe).sample_t(torch.rand(images, device=device), (height, width))
        self._prompts, self._recipe, self._device = [prompt] * images, recipe, device

    def take(self, optimizer: torch.optim.Optimizer, inward: InBackward | None = None) -> None:
        """Forward, backward, clipping and the optimiser, which may do its part in the backward pass."""
        noisy_BCHW, target_BCHW = torch.randn_like(self._latents_BCHW), torch.randn_like(self._latents_BCHW)
        with self._autocast():
            predicted_BCHW = self._trainee(noisy_BCHW, self._t_B, self._prompts, self._view_B4)
        denoising(predicted_BCHW.float(), target_BCHW, None).sum().backward()  # type: ignore[no-untyped-call]
        if inward:
            inward.take_norm()
            return
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        torch.nn.utils.clip_grad_norm_(weights, self._recipe.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()

    def _autocast(self) -> torch.autocast:
        precision = self._recipe.precision or "fp32"
        return torch.autocast(self._device.type, DTYPES[precision], enabled=precision != "fp32")


def _encode(pipe: DiffusionPipeline, family: Family, prompt: str, real: DiffusionPipeline) -> dict[str, Tensor]:
    """Return a prompt's row: really encoded where its shape depends on what the encoder sees."""
    try:
        return cache.encode_prompt(pipe, family, prompt)
    except (DataDependentOutputException, DynamicOutputShapeException):
        with unset_fake_temporarily():
            row = cache.encode_prompt(real, family, prompt)
        return {name: _like(tensor, tensor.device) for name, tensor in row.items()}


def _saved(pipe: DiffusionPipeline, family: Family, recipe: Recipe) -> int:
    """Return the bytes by which a quantised base is smaller."""
    if not recipe.base:
        return 0
    layers = quantise.layers(family.denoiser(pipe)).values()
    return sum(layer.weight.nbytes - quantise.nbytes(layer, recipe.base) for layer in layers)
