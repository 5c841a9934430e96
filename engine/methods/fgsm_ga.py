"""`fgsm-ga`: FGSM with a penalty on input gradients that turn within the ball (GradAlign).

Source: Andriushchenko, Flammarion, "Understanding and improving fast adversarial training" (2020), equation 6; what its
text leaves open follows the released code.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Literal

import torch
from torch import Tensor

from ...kernels import signed_step, to_float
from ...loaders import Batch
from ...loaders.option_types import check_options
from ..errors import UsageError
from ..gradients import summed_cross_entropy
from ..learner import Learner
from ..markers import HIDDEN
from ..phases import phase
from .base import LARGEST_WEIGHT, Method, MethodTraits, Position, Setting


@dataclass(frozen=True, kw_only=True, slots=True)
class FgsmGaOptions(MethodTraits):
    """One step of FGSM from the image itself; gradients there and at a random point of the ball shall be parallel."""

    name: Annotated[Literal["fgsm-ga"], HIDDEN] = "fgsm-ga"

    weight: float = 0.2
    """Of the penalty 1 - cos; 0.2 at epsilon 8/255 (the paper takes more for larger ones)."""

    through: Literal["noisy", "both"] = "noisy"
    """Which gradients the penalty moves weights through. noisy: the one at the random point, as in the released code,
    for 11 units a step. both: as in the paper's equation, for 15."""

    alpha: str | None = None
    """Step size, like 10/255; by default 1.25 times epsilon."""

    def __post_init__(self) -> None:
        check_options(self, "method", UsageError)
        if not 0 <= self.weight <= LARGEST_WEIGHT:
            raise UsageError(f"method.weight must be a number from 0 on, up to {LARGEST_WEIGHT}, not {self.weight}")

    def build(self, setting: Setting) -> Method:
        """The method for one classifier and threat."""
        return FgsmGa(self, setting)


class FgsmGa(Method):
    """Costs 11 units: 2 for the attack, 3 for the descent, 6 for a gradient and its derivative; 15 through both."""

    uncompiled = "the pass at the random point is differentiated twice, which torch.compile cannot"

    def __init__(self, options: FgsmGaOptions, setting: Setting) -> None:
        self.setting, self.bounds, self.options = setting, setting.bounds(), options
        self.alpha = setting.step_size(options.alpha, setting.epsilon * Fraction(5, 4))

    def step(self, batch: Batch, position: Position, learner: Learner) -> None:
        setting, x, y = self.setting, batch.x, batch.label
        clean = to_float(x, setting.dtype)
        with phase("clean gradient"):
            if self.options.through == "both":
                gradient = self._gradient_with_graph(clean, y)
            else:
                gradient = setting.classifier.input_gradient(clean, y)
        with phase("adversarial gradient"):
            x_adv = signed_step(
                x,
                setting.no_perturbation(batch),
                gradient.detach(),
                alpha=self.alpha,
                bounds=self.bounds,
                flag=setting.classifier.watch.flag,
                keep_delta=False,
            )

        def misalignment(logits: Tensor) -> Tensor:
            noisy = self._gradient_with_graph(clean + setting.noise(batch), y)
            return self.options.weight * one_minus_cosine(gradient, noisy)

        with phase("update"):
            learner.descend(x_adv, y, penalty=misalignment)

    def _gradient_with_graph(self, x: Tensor, labels: Tensor) -> Tensor:
        """The input gradient at x, itself differentiable in the weights."""
        x = x.detach().requires_grad_()
        loss = summed_cross_entropy(self.setting.classifier.logits_with_graph(x), labels)
        (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
        return gradient


def one_minus_cosine(one: Tensor, other: Tensor) -> Tensor:
    """The mean of 1 - cos over the samples whose two gradients [N, C, H, W] are not zero; 0 if there are none."""
    image = (1, 2, 3)
    lengths = torch.linalg.vector_norm(one, dim=image) * torch.linalg.vector_norm(other, dim=image)
    counted = lengths != 0
    cosines = (one * other).sum(dim=image) / torch.where(counted, lengths, 1)
    return torch.where(counted, 1 - cosines, 0).sum() / counted.sum().clamp(min=1)
