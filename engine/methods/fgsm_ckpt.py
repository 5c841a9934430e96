"""`fgsm-ckpt`: FGSM-RS whose step is shortened, image by image, to the first checkpoint that fools the net.

Source: Kim, Lee, Lee, "Understanding catastrophic overfitting in single-step adversarial training" (2021); what its
text leaves open follows the released code: crafting in eval mode, clean images where the noise alone fools the net.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from ...kernels import project, signed_step, to_float
from ...loaders import Batch
from ...loaders.option_types import check_options
from ..classifier import AttackBN
from ..errors import UsageError
from ..gradients import input_gradient
from ..markers import HIDDEN
from ..phases import phase
from .base import MOST_PASSES, Method, MethodTraits, Position, Setting, check_count


@dataclass(frozen=True, kw_only=True, slots=True)
class FgsmCkptOptions(MethodTraits):
    """One step of FGSM from uniform noise, no longer than needed to fool the net."""

    name: Annotated[Literal["fgsm-ckpt"], HIDDEN] = "fgsm-ckpt"

    checkpoints: int = 3
    """The perturbation is tried at so many equal parts of its length, the whole one included."""

    alpha: str | None = None
    """Step size, like 10/255; by default 1.25 times epsilon."""

    paper_attack_bn: ClassVar[AttackBN] = "eval"

    def __post_init__(self) -> None:
        check_options(self, "method", UsageError)
        check_count(self.checkpoints, "method.checkpoints", most=MOST_PASSES)

    def build(self, setting: Setting) -> Method:
        """The method for one classifier and threat."""
        return FgsmCkpt(self, setting)


class FgsmCkpt(Method):
    """Costs 5 units and a forward pass for each checkpoint but the last: 7 with three.

    The released code leaves out images that are decided already; telling their number would make the host wait.
    """

    def __init__(self, options: FgsmCkptOptions, setting: Setting) -> None:
        self.setting, self.bounds, self.checkpoints = setting, setting.bounds(), options.checkpoints
        self.alpha = setting.step_size(options.alpha, setting.epsilon * Fraction(5, 4))

    def craft(self, batch: Batch, position: Position) -> Tensor:
        setting, x, y = self.setting, batch.x, batch.label
        classifier, flag = setting.classifier, setting.classifier.watch.flag
        with phase("adversarial gradient"):
            start, noise = project(x, setting.noise(batch), bounds=self.bounds)
            gradient, logits = input_gradient(classifier.attack_loss, start, y)
            x_adv, delta = signed_step(x, noise, gradient, alpha=self.alpha, bounds=self.bounds, flag=flag)
            for part in range(self.checkpoints - 1, 0, -1):  # downwards: the shortest that fools is chosen last
                shorter, _ = project(x, delta * (part / self.checkpoints), bounds=self.bounds)
                x_adv = torch.where(self._right(classifier.attack_logits(shorter), y), x_adv, shorter)
            return torch.where(self._right(logits, y), x_adv, to_float(x, setting.dtype))

    @staticmethod
    def _right(logits: Tensor, labels: Tensor) -> Tensor:
        """bool [N, 1, 1, 1]: which images are classified right."""
        return (logits.argmax(dim=1) == labels)[:, None, None, None]
