"""The evaluation's own attacks: FGSM, PGD-n and C&W's margin loss under PGD, on byte images, exactly in the ball.

All project onto the ball and onto [0, 1], and stop per sample once it is misclassified, as the released code of
Rice et al., Wong et al. and FGSM-SDI does. Nothing here leaves the device or computes a weight gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import torch
from torch import Tensor

from ...kernels import PixelBounds, Purpose, pixel_bounds, random_key, random_start
from ..gradients import Objective, attack_loss, projected_ascent, summed_cross_entropy


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    """max over the other classes minus the true class, [N]: positive where the net is wrong."""
    true = logits.gather(1, labels[:, None]).squeeze(1)
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return others.amax(dim=1) - true


def summed_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """The margin, summed over the batch: the C&W objective to ascend."""
    return margins(logits, labels).sum()


@dataclass(frozen=True, kw_only=True, slots=True)
class GradientAttack:
    """Signed gradient steps on one objective.

    Attributes:
        steps: how many.
        alpha: step size in [0, 1] pixel units.
        random_start: start at uniform noise in the ball; otherwise at the clean image.
        objective: what is ascended.

    A batch in which every sample is fooled already still runs to its end: to stop it, the host would have to wait for
    the device in every step.
    """

    steps: int
    alpha: Fraction
    random_start: bool = True
    objective: Objective = summed_cross_entropy

    def perturb(
        self,
        net: Callable[[Tensor], Tensor],
        x: Tensor,
        labels: Tensor,
        index: Tensor,
        *,
        epsilon: Fraction,
        seed: int,
    ) -> Tensor:
        """The adversarial images float32 [N, C, H, W]; each is kept from the step that first fooled the net.

        Args:
            net: classifier in eval mode, float32.
            x: clean images, uint8 [N, C, H, W].
            labels: int64 [N].
            index: int64 [N], each sample's number in the data set: the counter of its noise.
            epsilon: radius in [0, 1] pixel units.
            seed: of the random start.
        """
        start = torch.zeros_like(x, dtype=torch.float32)
        if self.random_start:
            key = _key(seed, x.device)
            start = random_start(x, index, key=key, radius=epsilon, purpose=Purpose.EVALUATE)
        return projected_ascent(
            attack_loss(net, self.objective),
            x,
            labels,
            start,
            steps=self.steps,
            alpha=self.alpha,
            bounds=_bounds(epsilon, x.device),
            keep_fooled=True,
        )


# Both are copied to the device, which the host waits for: once, not for every batch.
@lru_cache(maxsize=8)
def _key(seed: int, device: torch.device) -> Tensor:
    return random_key(seed, device=device)


@lru_cache(maxsize=8)
def _bounds(epsilon: Fraction, device: torch.device) -> PixelBounds:
    return pixel_bounds(epsilon, box=True, device=device)


def gradient_attacks(epsilon: Fraction, step: Fraction | None = None) -> dict[str, GradientAttack]:
    """The attacks of the paper's tables by name; `step` is PGD's and C&W's step size, by default epsilon / 4."""
    alpha = epsilon / 4 if step is None else step
    return {
        "fgsm": GradientAttack(steps=1, alpha=epsilon, random_start=False),
        "pgd-10": GradientAttack(steps=10, alpha=alpha),
        "pgd-20": GradientAttack(steps=20, alpha=alpha),
        "pgd-50": GradientAttack(steps=50, alpha=alpha),
        "cw": GradientAttack(steps=20, alpha=alpha, objective=summed_margin),
    }
