"""`fgsm-2step`: FGSM-SDI with the sign of the gradient in the generator's place, the control that its paper lacks.

It costs what FGSM-SDI costs without the generator, so it shows what the second gradient alone brings.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Literal

from torch import Tensor

from ...kernels import signed_step, to_float
from ...loaders import Batch
from ...loaders.option_types import check_options
from ..errors import UsageError
from ..markers import HIDDEN
from ..phases import phase
from .base import Method, MethodTraits, Position, Setting, within_a_pixel


@dataclass(frozen=True, kw_only=True, slots=True)
class Fgsm2StepOptions(MethodTraits):
    """Two signed steps of unequal size: a short one from the image, then a whole one."""

    name: Annotated[Literal["fgsm-2step"], HIDDEN] = "fgsm-2step"

    first: float = 0.5
    """Size of the first step, in epsilons."""

    alpha: str | None = None
    """Size of the second step, like 8/255; by default epsilon."""

    def __post_init__(self) -> None:
        check_options(self, "method", UsageError)
        if not self.first > 0:
            raise UsageError(f"method.first must be a positive number of epsilons, not {self.first}")

    def build(self, setting: Setting) -> Method:
        """The method for one classifier and threat."""
        return Fgsm2Step(self, setting)


class Fgsm2Step(Method):
    """Costs 2 + 2 + 3 units."""

    def __init__(self, options: Fgsm2StepOptions, setting: Setting) -> None:
        self.setting, self.bounds = setting, setting.bounds()
        self.first = within_a_pixel(
            setting.epsilon * Fraction(options.first), "method.first", fix="lower it or epsilon"
        )
        self.alpha = setting.step_size(options.alpha, setting.epsilon)

    def craft(self, batch: Batch, position: Position) -> Tensor:
        setting, x, y = self.setting, batch.x, batch.label
        with phase("clean gradient"):
            gradient = setting.classifier.input_gradient(to_float(x, setting.dtype), y)
        with phase("adversarial gradient"):
            clean = setting.no_perturbation(batch)
            flag = setting.classifier.watch.flag
            start, eta = signed_step(x, clean, gradient, alpha=self.first, bounds=self.bounds, flag=flag)
            gradient = setting.classifier.input_gradient(start, y)
            return signed_step(x, eta, gradient, alpha=self.alpha, bounds=self.bounds, flag=flag, keep_delta=False)
