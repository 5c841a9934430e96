"""`fgsm-rs`: one signed step from a random start, Algorithm 2.

Source: Wong, Rice, Kolter, "Fast is better than free: revisiting adversarial training" (2020).
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Literal

from torch import Tensor

from ...loaders import Batch
from ...loaders.option_types import check_options
from ..errors import UsageError
from ..markers import HIDDEN
from .base import Method, MethodTraits, Position, Setting


@dataclass(frozen=True, kw_only=True, slots=True)
class FgsmRsOptions(MethodTraits):
    """One step of FGSM from uniform noise in the ball."""

    name: Annotated[Literal["fgsm-rs"], HIDDEN] = "fgsm-rs"

    alpha: str | None = None
    """Step size, like 10/255; by default 1.25 times epsilon."""

    def __post_init__(self) -> None:
        check_options(self, "method", UsageError)

    def build(self, setting: Setting) -> Method:
        """The method for one classifier and threat."""
        return FgsmRs(self, setting)


class FgsmRs(Method):
    """Costs 5 units: 2 for the attack, 3 for the descent."""

    def __init__(self, options: FgsmRsOptions, setting: Setting) -> None:
        self.setting, self.bounds = setting, setting.bounds()
        self.alpha = setting.step_size(options.alpha, setting.epsilon * Fraction(5, 4))

    def craft(self, batch: Batch, position: Position) -> Tensor:
        return self.setting.ascend(batch, self.setting.noise(batch), steps=1, alpha=self.alpha, bounds=self.bounds)
