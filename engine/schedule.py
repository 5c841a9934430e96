"""Learning rates, iteration by iteration, as pure functions of the step."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from .errors import UsageError


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleOptions:
    """How the learning rate moves over the run."""

    kind: Literal["multistep", "cyclic"] = "multistep"
    """multistep: times gamma at each milestone. cyclic: one triangle, from zero to lr and back to zero."""

    milestones: tuple[int, ...] = ()
    """Epochs at whose start the learning rate falls (multistep); whole numbers, in order."""

    gamma: float = 0.1
    """The factor at each milestone (multistep)."""

    peak: float = 0.5
    """Where the triangle has its top, as a share of the run (cyclic)."""

    cycle_momentum: bool = False
    """Move momentum against the learning rate, momentum - 0.1 at its top, as PyTorch's CyclicLR would (cyclic)."""

    def __post_init__(self) -> None:
        if any(isinstance(epoch, bool) or not isinstance(epoch, int) for epoch in self.milestones):
            raise UsageError(
                f"schedule.milestones {self.milestones} must be whole epochs: a milestone between two iterations "
                "would never fire"
            )
        if any(epoch < 1 for epoch in self.milestones) or any(a >= b for a, b in pairwise(self.milestones)):
            raise UsageError(f"schedule.milestones {self.milestones} must be positive and increase")
        if not 0 < self.peak < 1:
            raise UsageError(f"schedule.peak must lie between 0 and 1, not {self.peak}")
        if not 0 < self.gamma <= 1:
            raise UsageError(f"schedule.gamma must lie in (0, 1], not {self.gamma}")
        if self.kind == "cyclic" and self.milestones:
            raise UsageError("schedule.milestones do not apply to a cyclic schedule: drop them")


def learning_rate(options: ScheduleOptions, *, peak: float, step: int, steps_per_epoch: int, epochs: int) -> float:
    """The learning rate of iteration `step` (from 0), `peak` being the largest one.

    The same values as PyTorch's MultiStepLR with milestones in iterations, and its CyclicLR with base_lr = 0.
    """
    if options.kind == "multistep":
        passed = sum(step >= milestone * steps_per_epoch for milestone in options.milestones)
        return peak * options.gamma**passed
    return peak * _triangle(options, step=step, total=steps_per_epoch * epochs)


def momentum(options: ScheduleOptions, *, base: float, step: int, steps_per_epoch: int, epochs: int) -> float:
    """The momentum of iteration `step`: `base`, unless the schedule cycles it."""
    if options.kind == "cyclic" and options.cycle_momentum:
        return base - 0.1 * _triangle(options, step=step, total=steps_per_epoch * epochs)
    return base


def _triangle(options: ScheduleOptions, *, step: int, total: int) -> float:
    """From 0 at step 0 up to 1 at the peak and down to 0 at the end of the run."""
    top = options.peak * total
    return step / top if step <= top else (total - step) / (total - top)
