"""`pgd-at`: projected gradient descent, Algorithm 1.

Source: Madry et al. (2018), as Rice, Wong, Kolter, "Overfitting in adversarially robust deep learning" (2020) train it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from torch import Tensor

from ...loaders import Batch
from ..markers import HIDDEN
from ..threat import parse_pixels
from .base import Method, Position, Setting, check_count


@dataclass(frozen=True, kw_only=True, slots=True)
class PgdAtOptions:
    """Several signed steps from uniform noise in the ball."""

    name: Annotated[Literal["pgd-at"], HIDDEN] = "pgd-at"

    steps: int = 10
    """Steps of the attack; each costs a forward and an input gradient."""

    alpha: str | None = None
    """Step size, like 2/255; by default a quarter of epsilon."""

    def __post_init__(self) -> None:
        check_count(self.steps, "method.steps")

    def build(self, setting: Setting) -> Method:
        """The method for one classifier and threat."""
        return PgdAt(self, setting)


class PgdAt(Method):
    """Costs 2 * steps + 3 units: 23 with the 10 steps of the papers."""

    def __init__(self, options: PgdAtOptions, setting: Setting) -> None:
        self.setting, self.bounds, self.steps = setting, setting.bounds(), options.steps
        self.alpha = setting.epsilon / 4 if options.alpha is None else parse_pixels(options.alpha, "method.alpha")

    def craft(self, batch: Batch, position: Position) -> Tensor:
        return self.setting.attack_from_noise(batch, steps=self.steps, alpha=self.alpha, bounds=self.bounds)
