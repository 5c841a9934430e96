"""`free-at`: every batch several times, each pass giving the weights' gradient and the perturbation's.

Source: Shafahi et al., "Adversarial training for free!" (2019), as Wong et al.'s code writes it: what is carried over
lies in the ball and in the box. An epoch here passes over the images m times; the paper of FGSM-SDI does not divide its
epochs by m either.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from torch import Tensor

from ...kernels import project, signed_step
from ...loaders import Batch
from ...loaders.option_types import check_options
from ..errors import UsageError
from ..learner import Learner
from ..markers import HIDDEN
from ..phases import phase
from .base import MOST_PASSES, Method, MethodTraits, Position, Setting, check_count


@dataclass(frozen=True, kw_only=True, slots=True)
class FreeAtOptions(MethodTraits):
    """Descent and attack in one pass, on every batch several times in a row."""

    name: Annotated[Literal["free-at"], HIDDEN] = "free-at"

    replays: int = 8
    """Passes over each batch, called m; 8 on CIFAR, 4 on ImageNet."""

    alpha: str | None = None
    """Step size of the perturbation in every pass, like 8/255; by default epsilon."""

    attacks_as_it_trains: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_options(self, "method", UsageError)
        check_count(self.replays, "method.replays", most=MOST_PASSES)

    def build(self, setting: Setting) -> Method:
        """The method for one classifier and threat."""
        return FreeAt(self, setting)


class FreeAt(Method):
    """Costs 3 * m units a batch and makes m updates of the weights."""

    def __init__(self, options: FreeAtOptions, setting: Setting) -> None:
        self.setting, self.bounds, self.replays = setting, setting.bounds(), options.replays
        self.alpha = setting.step_size(options.alpha, setting.epsilon)
        self.delta: Tensor  # of the places in a batch: carried over to the next batch
        self.resize(setting.image, setting.batch_size)

    def resize(self, image: tuple[int, int, int], batch_size: int) -> None:
        self.delta = self.setting.zeros(batch_size, image)

    def step(self, batch: Batch, position: Position, learner: Learner) -> None:
        watch = learner.classifier.watch
        x_adv, delta = project(batch.x, self.delta, bounds=self.bounds, flag=watch.flag)
        # The gradient that moves delta is the scaled loss's where there is a scale, and overflows with it.
        flag = watch.overflow if learner.classifier.scaler.enabled else watch.flag
        for _ in range(self.replays):
            with phase("update"):
                x_adv.requires_grad_()
                learner.descend(x_adv, batch.label)
            gradient = x_adv.grad
            assert gradient is not None
            x_adv, delta = signed_step(batch.x, delta, gradient, alpha=self.alpha, bounds=self.bounds, flag=flag)
        self.delta.copy_(delta)

    def early(self, position: Position, learner: Learner) -> list[Tensor]:
        return [self.delta, *learner.moved()]

    def state(self) -> dict[str, Tensor]:
        return {"delta": self.delta}
