"""What a training method is: it crafts x_adv from a clean batch; the trainer then descends on it."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from ...kernels import PixelBounds, pixel_bounds, random_start
from ...loaders import Batch
from ..classifier import Classifier
from ..errors import UsageError
from ..gradients import projected_ascent
from ..phases import phase


class Position(NamedTuple):
    """Where in the run a batch is."""

    epoch: int  # from 0
    step: int  # within the epoch, from 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What every method is given: the classifier, the threat, and the choices that are open to all methods."""

    classifier: Classifier
    epsilon: Fraction  # radius in [0, 1] pixel units
    box: bool  # whether x_adv must also lie in [0, 1]
    seed: int
    channels: int  # of an image
    dtype: torch.dtype = torch.float32  # of the images, the weights and the perturbations

    @property
    def device(self) -> torch.device:
        """Where everything lies."""
        return self.classifier.execution.device

    def bounds(self) -> PixelBounds:
        """The exact table of the threat, in this setting's dtype and on its device."""
        return pixel_bounds(self.epsilon, box=self.box, dtype=self.dtype, device=self.device)

    def attack_from_noise(self, batch: Batch, *, steps: int, alpha: Fraction, bounds: PixelBounds) -> Tensor:
        """x_adv after `steps` signed steps from uniform noise in the ball."""
        with phase("adversarial gradient"):
            noise = random_start(batch.x, batch.index, key=batch.key, radius=self.epsilon, dtype=self.dtype)
            ascended = self.classifier.attack_loss
            return projected_ascent(ascended, batch.x, batch.label, noise, steps=steps, alpha=alpha, bounds=bounds)


class Method:
    """A training method; subclasses implement `craft`.

    A method that trains nets of its own (FGSM-SDI's generator) returns them from `nets` and their optimisers from
    `optimizers`; the trainer then saves and resumes them.
    """

    select_by: Literal["pgd-10", "clean"] = "pgd-10"
    """The held-out accuracy that chooses the best checkpoint."""

    def craft(self, batch: Batch, position: Position) -> Tensor:
        """x_adv [N, C, H, W] in the setting's dtype, detached, for one clean batch.

        May leave statistics of its own in `metrics`. Never leaves a gradient in the classifier's parameters, and never
        waits for the device. What it does may depend on the position through `kind` alone.
        """
        raise NotImplementedError

    def kind(self, position: Position) -> Hashable:
        """Tells steps apart that do different work: each kind becomes a CUDA graph of its own."""
        return "step"

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
