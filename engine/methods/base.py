"""What a training method is: it crafts x_adv from a clean batch; the trainer then descends on it."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from ...kernels import PixelBounds, pixel_bounds, random_start
from ...loaders import Batch
from ..errors import UsageError
from ..step import AttackBN, batch_norm_mode, projected_ascent


class Position(NamedTuple):
    """Where in the run a batch is."""

    epoch: int  # from 0
    step: int  # within the epoch, from 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What every method is given: the classifier, the threat, and the choices that are open to all methods."""

    net: nn.Module
    epsilon: Fraction  # radius in [0, 1] pixel units
    box: bool  # whether x_adv must also lie in [0, 1]
    attack_bn: AttackBN  # the classifier's mode while an attack is crafted
    label_smoothing: float  # torch's definition, for every loss that moves weights
    seed: int
    channels: int  # of an image
    dtype: torch.dtype = torch.float32  # of the images, the nets and the perturbations
    device: torch.device | str = "cpu"

    def bounds(self) -> PixelBounds:
        """The exact table of the threat, in this setting's dtype and on its device."""
        return pixel_bounds(self.epsilon, box=self.box, dtype=self.dtype, device=self.device)

    def attack_from_noise(self, batch: Batch, *, steps: int, alpha: Fraction, bounds: PixelBounds) -> Tensor:
        """x_adv after `steps` signed steps from uniform noise in the ball, the classifier in `attack_bn` mode."""
        noise = random_start(batch.x, batch.index, key=batch.key, radius=self.epsilon, dtype=self.dtype)
        with batch_norm_mode(self.net, self.attack_bn):
            return projected_ascent(self.net, batch.x, batch.label, noise, steps=steps, alpha=alpha, bounds=bounds)


class Method:
    """A training method; subclasses implement `craft`.

    A method that trains nets of its own (FGSM-SDI's generator) returns them from `nets` and their optimisers from
    `optimizers`; the trainer then saves and resumes them.
    """

    select_by: Literal["pgd-10", "clean"] = "pgd-10"
    """The held-out accuracy that chooses the best checkpoint."""

    def craft(self, batch: Batch, position: Position) -> Tensor:
        """x_adv [N, C, H, W] in the setting's dtype, detached, for one clean batch.

        May leave statistics of its own in `metrics`. Never leaves a gradient in the classifier's parameters.
        """
        raise NotImplementedError

    def nets(self) -> dict[str, nn.Module]:
        """Nets that belong to the method, by the name they are saved under."""
        return {}

    def optimizers(self) -> dict[str, tuple[torch.optim.Optimizer, nn.Module]]:
        """The optimiser of each of those nets."""
        return {}

    def metrics(self) -> dict[str, Tensor]:
        """The newest statistics: scalars on the device that the method updates in place; saved with the run."""
        return {}


def check_count(value: int, name: str) -> None:
    """Raises UsageError unless a count of steps, batches or channels is at least 1."""
    if value < 1:
        raise UsageError(f"{name} must be at least 1, not {value}")
