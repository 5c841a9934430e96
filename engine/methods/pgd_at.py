"""`pgd-at`, `pgd2-at`, `pgd4-at`: projected gradient descent, Algorithm 1.

Sources: Madry et al. (2018), as Rice, Wong, Kolter, "Overfitting in adversarially robust deep learning" (2020) train
it; the two short ones are those of Table IV, as costly as FGSM-SDI or half again.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, ClassVar, Literal

from torch import Tensor

from ...loaders import Batch
from ...loaders.option_types import check_options
from ..errors import UsageError
from ..markers import HIDDEN
from .base import MOST_PASSES, Method, MethodTraits, Position, Setting, check_count

PgdStart = Literal["uniform", "zero"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PgdAtOptions(MethodTraits):
    """Several signed steps from uniform noise in the ball."""

    name: Annotated[Literal["pgd-at"], HIDDEN] = "pgd-at"

    steps: int = 10
    """Steps of the attack; each costs a forward and an input gradient."""

    alpha: str | None = None
    """Step size, like 2/255; by default a quarter of epsilon."""

    start: PgdStart = "uniform"
    """uniform: noise in the ball. zero: the image itself."""

    def __post_init__(self) -> None:
        check_options(self, "method", UsageError)
        check_count(self.steps, "method.steps", most=MOST_PASSES)

    def build(self, setting: Setting) -> Method:
        """The method for one classifier and threat."""
        alpha = setting.step_size(self.alpha, setting.epsilon / 4)
        return PgdAt(setting, steps=self.steps, alpha=alpha, start=self.start)


@dataclass(frozen=True, kw_only=True, slots=True)
class ShortPgdOptions(MethodTraits):
    """What the two short ones share: they begin at the image and could just reach the edge of the ball."""

    steps: ClassVar[int]

    alpha: str | None = None
    """Step size, like 4/255; by default epsilon over the number of steps."""

    start: PgdStart = "zero"
    """zero: the image itself (the paper does not say). uniform: noise in the ball."""

    def __post_init__(self) -> None:
        check_options(self, "method", UsageError)

    def build(self, setting: Setting) -> Method:
        """The method for one classifier and threat."""
        alpha = setting.step_size(self.alpha, setting.epsilon / self.steps)
        return PgdAt(setting, steps=self.steps, alpha=alpha, start=self.start)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pgd2AtOptions(ShortPgdOptions):
    """Two signed steps from the image itself."""

    name: Annotated[Literal["pgd2-at"], HIDDEN] = "pgd2-at"
    steps: ClassVar[int] = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Pgd4AtOptions(ShortPgdOptions):
    """Four signed steps from the image itself."""

    name: Annotated[Literal["pgd4-at"], HIDDEN] = "pgd4-at"
    steps: ClassVar[int] = 4


class PgdAt(Method):
    """Costs 2 * steps + 3 units: 23 with the 10 steps of the papers, 7 with two, 11 with four."""

    def __init__(self, setting: Setting, *, steps: int, alpha: Fraction, start: PgdStart) -> None:
        self.setting, self.bounds = setting, setting.bounds()
        self.steps, self.alpha, self.start = steps, alpha, start

    def craft(self, batch: Batch, position: Position) -> Tensor:
        setting = self.setting
        start = setting.noise(batch) if self.start == "uniform" else setting.no_perturbation(batch)
        return setting.ascend(batch, start, steps=self.steps, alpha=self.alpha, bounds=self.bounds)
