"""The model as it was before training, for the losses that compare with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.func import functional_call

from dreambooth.adapters import switched_off, tuned_layers
from dreambooth.recipe import Recipe


@dataclass(frozen=True)
class Frozen:
    """The trained modules as they were: without adapters, where they have any, else with the weights of the start.

    An adapter begins as no change, so that both would say the same; leaving it out is faster. A LoRA that goes on from
    another one is compared with the model under both.

    Attributes:
        trainee: What is trained, without a wrapper.
        trained: Its trained weights by name.
        start: The same as they were.
        adapters: Its layers with an adapter.
        as_class: Turns a prompt into one that names the class and not the subject, which the model knows nothing of.
    """

    trainee: nn.Module
    trained: dict[str, nn.Parameter]
    start: dict[str, Tensor]
    adapters: Sequence[BaseTunerLayer]
    as_class: Callable[[str], str]

    @classmethod
    def of(cls, trainee: nn.Module, as_class: Callable[[str], str]) -> Frozen:
        """Take the weights as they are now, before the first step."""
        trained = {name: weight for name, weight in trainee.named_parameters() if weight.requires_grad}
        start = {name: weight.detach().clone() for name, weight in trained.items()}
        return cls(trainee, trained, start, tuned_layers(trainee), as_class)

    @torch.no_grad()
    def predict(self, noisy_BCHW: Tensor, t_B: Tensor, prompts: Sequence[str], view_B4: Tensor) -> Tensor:
        """Predict as `loop.Trainee` does, as it was and with the class in place of the subject."""
        given = (noisy_BCHW, t_B, [self.as_class(prompt) for prompt in prompts], view_B4)
        predicted_BCHW: Tensor
        if not self.adapters:
            predicted_BCHW = functional_call(self.trainee, self.start, given)
            return predicted_BCHW
        with switched_off(self.adapters):
            predicted_BCHW = self.trainee(*given)
        return predicted_BCHW


def is_needed(recipe: Recipe) -> bool:
    """Whether a recipe's loss compares with the model as it was."""
    return recipe.prior_loss != "images" or recipe.dco_beta is not None or recipe.l2_to_base is not None
