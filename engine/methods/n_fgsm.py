"""`n-fgsm`: one signed step from noise larger than the ball, and no projection onto it.

Source: de Jorge et al., "Make some noise: reliable and efficient single-step adversarial training" (2022).
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Literal

from torch import Tensor

from ...kernels import pixel_bounds
from ...loaders import Batch
from ...loaders.option_types import check_options
from ..errors import UsageError
from ..markers import HIDDEN
from .base import Method, MethodTraits, Position, Setting, within_a_pixel


@dataclass(frozen=True, kw_only=True, slots=True)
class NFgsmOptions(MethodTraits):
    """One step of FGSM from strong noise, with the noise added and nothing clipped to the ball."""

    name: Annotated[Literal["n-fgsm"], HIDDEN] = "n-fgsm"

    noise: float = 2.0
    """Radius of the uniform noise, in epsilons."""

    alpha: str | None = None
    """Step size, like 8/255; by default epsilon."""

    def __post_init__(self) -> None:
        check_options(self, "method", UsageError)
        if self.noise < 0:
            raise UsageError(f"method.noise must be a number of epsilons from 0 on, not {self.noise}")

    def build(self, setting: Setting) -> Method:
        """The method for one classifier and threat."""
        return NFgsm(self, setting)


class NFgsm(Method):
    """Costs 5 units: 2 for the attack, 3 for the descent. Its images lie up to noise * epsilon + alpha away."""

    def __init__(self, options: NFgsmOptions, setting: Setting) -> None:
        self.setting = setting
        self.radius = setting.epsilon * Fraction(options.noise)
        self.alpha = setting.step_size(options.alpha, setting.epsilon)
        within_a_pixel(self.radius + self.alpha, "the reach of n-fgsm", fix="lower method.noise or epsilon")
        # The table of a ball that holds all it can reach clips to the box alone.
        self.bounds = pixel_bounds(Fraction(1), box=setting.box, dtype=setting.dtype, device=setting.device)

    def craft(self, batch: Batch, position: Position) -> Tensor:
        noise = self.setting.noise(batch, radius=self.radius)
        return self.setting.ascend(batch, noise, steps=1, alpha=self.alpha, bounds=self.bounds)
