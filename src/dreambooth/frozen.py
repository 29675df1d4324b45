"""The model as it was before training, for the losses that compare with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from dreambooth.recipe import Recipe


@dataclass(frozen=True)
class Frozen:
    """The trained modules with the weights that they began with.

    So it is one for every method: an adapter begins as no change, a whole model as itself.

    Attributes:
        trainee: What is trained, without a wrapper.
        trained: Its trained weights by name.
        start: The same as they were.
        as_class: Turns a prompt into one that names the class and not the subject, which the model knows nothing of.
    """

    trainee: nn.Module
    trained: dict[str, nn.Parameter]
    start: dict[str, Tensor]
    as_class: Callable[[str], str]

    @classmethod
    def of(cls, trainee: nn.Module, as_class: Callable[[str], str]) -> Frozen:
        """Take the weights as they are now, before the first step."""
        trained = {name: weight for name, weight in trainee.named_parameters() if weight.requires_grad}
        return cls(trainee, trained, {name: weight.detach().clone() for name, weight in trained.items()}, as_class)

    @torch.no_grad()
    def predict(self, noisy_BCHW: Tensor, t_B: Tensor, prompts: Sequence[str], view_B4: Tensor) -> Tensor:
        """Predict as `loop.Trainee` does, with the weights from the start and the class in place of the subject."""
        texts = [self.as_class(prompt) for prompt in prompts]
        predicted_BCHW: Tensor = functional_call(self.trainee, self.start, (noisy_BCHW, t_B, texts, view_B4))
        return predicted_BCHW


def is_needed(recipe: Recipe) -> bool:
    """Whether a recipe's loss compares with the model as it was."""
    return recipe.prior_loss != "images" or recipe.dco_beta is not None or recipe.l2_to_base is not None
