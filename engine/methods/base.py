"""What a training method is: it crafts x_adv from a clean batch and descends on it."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ...kernels import PixelBounds, pixel_bounds, random_start
from ...loaders import Batch
from ..classifier import AttackBN, Classifier
from ..errors import UsageError
from ..gradients import projected_ascent
from ..learner import Learner
from ..phases import phase
from ..threat import parse_pixels

# Beyond these nothing is meant: a step would not end, or its loss would be no number.
MOST_PASSES, LARGEST_WEIGHT = 1000, 1_000_000


class Position(NamedTuple):
    """Where in the run a batch is."""

    epoch: int  # from 0
    step: int  # within the epoch, from 0


class MethodTraits:
    """What a recipe must know of a method before it is built; the options of every method say it."""

    __slots__ = ()

    paper_attack_bn: ClassVar[AttackBN] = "train"
    """BatchNorm's mode while the method's authors craft."""

    stores_per_sample: ClassVar[bool] = False
    """Whether it keeps a perturbation of every training image."""

    attacks_as_it_trains: ClassVar[bool] = False
    """Whether one pass serves the attack and the descent, so that both see the net in train mode."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What every method is given: the classifier, the threat, and the choices that are open to all methods."""

    classifier: Classifier
    epsilon: Fraction  # radius in [0, 1] pixel units
    box: bool  # whether x_adv must also lie in [0, 1]
    seed: int
    image: tuple[int, int, int]  # channels, height and width
    batch_size: int
    samples: int  # images in the training set
    dtype: torch.dtype = torch.float32  # of the images, the weights and the perturbations

    @property
    def device(self) -> torch.device:
        """Where everything lies."""
        return self.classifier.execution.device

    def bounds(self) -> PixelBounds:
        """The exact table of the threat, in this setting's dtype and on its device."""
        return pixel_bounds(self.epsilon, box=self.box, dtype=self.dtype, device=self.device)

    def step_size(self, alpha: str | None, default: Fraction) -> Fraction:
        """`alpha` of a method's options in [0, 1] pixel units, or the default where none is given.

        Raises:
            UsageError: it is not written over 255, or above the range of a pixel.
        """
        return within_a_pixel(default, "the step size") if alpha is None else parse_pixels(alpha, "method.alpha")

    def zeros(self, samples: int, image: tuple[int, int, int]) -> Tensor:
        """A perturbation [samples, C, H, W] that is zero, in channels-last memory format."""
        empty = torch.empty(samples, *image, dtype=self.dtype, device=self.device, memory_format=torch.channels_last)
        return empty.zero_()

    def no_perturbation(self, batch: Batch) -> Tensor:
        """Zeros [N, C, H, W]: a start at the images themselves."""
        return torch.zeros_like(batch.x, dtype=self.dtype)

    def noise(self, batch: Batch, *, radius: Fraction | None = None) -> Tensor:
        """Uniform noise [N, C, H, W], by default in the ball; of a sample and an epoch."""
        return random_start(
            batch.x, batch.index, key=batch.key, radius=self.epsilon if radius is None else radius, dtype=self.dtype
        )

    def ascend(self, batch: Batch, start: Tensor, *, steps: int, alpha: Fraction, bounds: PixelBounds) -> Tensor:
        """x_adv after `steps` signed steps from x + start, start and every step projected."""
        with phase("adversarial gradient"):
            return projected_ascent(
                self.classifier.attack_loss,
                batch.x,
                batch.label,
                start,
                steps=steps,
                alpha=alpha,
                bounds=bounds,
                flag=self.classifier.watch.flag,
            )


class Method:
    """A training method; subclasses implement `craft`, or the whole of `step` where crafting and descending mix.

    A method that trains nets of its own (FGSM-SDI's generator) returns them from `nets` and their optimisers from
    `optimizers`, and one that remembers perturbations returns them from `state`; the trainer then saves and resumes
    them.
    """

    select_by: Literal["pgd-10", "clean"] = "pgd-10"
    """The held-out accuracy that chooses the best checkpoint."""

    uncompiled: str | None = None
    """Which of its passes stay eager where passes are compiled, and why; None if none do."""

    def craft(self, batch: Batch, position: Position) -> Tensor:
        """x_adv [N, C, H, W] in the setting's dtype, detached, for one clean batch.

        What consumes an input gradient here reports to the flag of the classifier's watch, by the kernels' `flag`: a
        sign swallows NaN. May leave statistics of its own in `metrics`. Never leaves a gradient in the classifier's
        parameters, and never waits for the device. What it does may depend on the position through `kind` alone.
        """
        raise NotImplementedError

    def step(self, batch: Batch, position: Position, learner: Learner) -> None:
        """Everything that is done with one clean batch; under the same rules as `craft`."""
        x_adv = self.craft(batch, position)
        with phase("update"):
            learner.descend(x_adv, batch.label)

    def early(self, position: Position, learner: Learner) -> list[Tensor]:
        """What a step of this kind changes, in place, before it is known to be healthy: put back where it is not.

        Descents of the learner need not be named unless they are several, nor the classifier's buffers. What is
        written after the last descent can be kept from changing instead, by the watch's `left_out`.
        """
        return []

    def begin_epoch(self, epoch: int, seed: int) -> None:
        """Before the first step of an epoch, outside of any captured graph; `seed` is that of what training draws."""

    def resize(self, image: tuple[int, int, int], batch_size: int) -> None:
        """Batches have another shape from now on: what is stored for each place in a batch begins anew."""

    def kind(self, position: Position) -> Hashable:
        """Tells steps apart that do different work: each kind becomes a CUDA graph of its own."""
        return "step"

    def nets(self) -> dict[str, nn.Module]:
        """Nets that belong to the method, by the name they are saved under."""
        return {}

    def optimizers(self) -> dict[str, tuple[torch.optim.Optimizer, nn.Module]]:
        """The optimiser of each of those nets."""
        return {}

    def state(self) -> dict[str, Tensor]:
        """What the method remembers from step to step: tensors on the device that it updates in place."""
        return {}

    def metrics(self) -> dict[str, Tensor]:
        """The newest statistics: scalars on the device that the method updates in place; saved with the run."""
        return {}


def within_a_pixel(value: Fraction, name: str, *, fix: str = "lower epsilon") -> Fraction:
    """A size that follows from epsilon; raises UsageError where it is above the whole range of a pixel."""
    if value > 1:
        raise UsageError(f"{name} would be {float(value * 255):g}/255, above the whole range of a pixel: {fix}")
    return value


def check_count(value: int, name: str, *, most: int | None = None) -> None:
    """Raises UsageError unless a count of steps, batches or channels is at least 1, and at most `most`."""
    if value < 1:
        raise UsageError(f"{name} must be at least 1, not {value}")
    if most is not None and value > most:
        raise UsageError(f"{name} must be at most {most}, not {value}")
