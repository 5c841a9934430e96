"""Learning rates, iteration by iteration, as pure functions of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from ...loaders.option_types import check_options
from ..errors import UsageError


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleOptions:
    """How the learning rate moves over the run."""

    kind: Literal["multistep", "cyclic", "onecycle", "linear"] = "multistep"
    """multistep: times gamma at each milestone. cyclic: one triangle, from zero to lr and back to zero. onecycle:
    PyTorch's OneCycleLR, from lr / 25 up to lr over 30% of the run and down to almost nothing. linear: straight lines
    between knots."""

    milestones: tuple[int, ...] = ()
    """Epochs at whose start the learning rate falls (multistep); whole numbers, in order."""

    gamma: float = 0.1
    """The factor at each milestone (multistep)."""

    peak: float = 0.5
    """Where the triangle has its top, as a share of the run (cyclic)."""

    knots: tuple[tuple[float, float], ...] = ()
    """Pairs of an epoch and the learning rate there as a share of lr (linear), like 0 0 1 1 15 0.001."""

    cycle_momentum: bool = False
    """Move momentum against the learning rate, momentum - 0.1 at its top, as PyTorch's CyclicLR would (cyclic)."""

    def __post_init__(self) -> None:
        check_options(self, "schedule", UsageError)
        if any(epoch < 1 for epoch in self.milestones) or any(a >= b for a, b in pairwise(self.milestones)):
            raise UsageError(f"schedule.milestones {self.milestones} must be positive and increase")
        if not 0 < self.peak < 1:
            raise UsageError(f"schedule.peak must lie between 0 and 1, not {self.peak}")
        if not 0 < self.gamma <= 1:
            raise UsageError(f"schedule.gamma must lie in (0, 1], not {self.gamma}")
        if self.kind != "multistep" and self.milestones:
            raise UsageError(f"schedule.milestones do not apply to a {self.kind} schedule: drop them")
        if self.kind != "cyclic" and self.cycle_momentum:
            raise UsageError(f"schedule.cycle-momentum does not apply to a {self.kind} schedule: drop it")
        self._check_knots()

    def _check_knots(self) -> None:
        if self.kind != "linear":
            if self.knots:
                raise UsageError(f"schedule.knots do not apply to a {self.kind} schedule: drop them")
            return
        epochs = [epoch for epoch, _ in self.knots]
        if len(epochs) < 2 or epochs[0] != 0 or any(a >= b for a, b in pairwise(epochs)):
            raise UsageError(f"schedule.knots {self.knots} must be two or more, from epoch 0 on, at increasing epochs")
        if any(not 0 <= share <= 1 for _, share in self.knots):
            raise UsageError(f"schedule.knots {self.knots} must give shares of optimizer.lr, from 0 to 1")


def learning_rate(options: ScheduleOptions, *, peak: float, epoch: int, step: int, steps: int, epochs: int) -> float:
    """The learning rate of one iteration.

    The same values as PyTorch's MultiStepLR with milestones in iterations, its CyclicLR with base_lr = 0, and its
    OneCycleLR with its defaults.

    Args:
        options: the shape.
        peak: the largest rate.
        epoch: whole epochs done.
        step: iterations done in the current one.
        steps: iterations of the current epoch; later epochs may have others.
        epochs: of the run.
    """
    done = epoch + step / steps
    if options.kind == "multistep":
        passed = sum(epoch >= milestone for milestone in options.milestones)
        return peak * options.gamma**passed
    if options.kind == "onecycle":
        return peak * _one_cycle(done, epochs=epochs, one_step=1 / steps)
    if options.kind == "linear":
        return peak * _between(options.knots, done)
    return peak * _triangle(options, done=done, total=epochs)


def momentum(options: ScheduleOptions, *, base: float, epoch: int, step: int, steps: int, epochs: int) -> float:
    """The momentum of one iteration: `base`, unless the schedule cycles it. Arguments as for `learning_rate`."""
    if options.cycle_momentum:
        return base - 0.1 * _triangle(options, done=epoch + step / steps, total=epochs)
    return base


def _triangle(options: ScheduleOptions, *, done: float, total: float) -> float:
    """From 0 at the start up to 1 at the peak and down to 0 at the end of the run, in epochs."""
    top = options.peak * total
    return done / top if done <= top else (total - done) / (total - top)


def _one_cycle(done: float, *, epochs: int, one_step: float) -> float:
    """Half a cosine up to 1 over 30% of the run, then half a cosine down to its last step."""
    start, end, top = 1 / 25, 1 / 25e4, 0.3 * epochs - one_step
    if done <= top:
        return start + (1 - start) * (1 - math.cos(math.pi * done / top)) / 2
    left = (epochs - one_step - done) / (epochs - one_step - top)
    return end + (1 - end) * (1 - math.cos(math.pi * left)) / 2


def _between(knots: tuple[tuple[float, float], ...], done: float) -> float:
    """Linear interpolation; the last share holds beyond the last knot."""
    for (left, low), (right, high) in pairwise(knots):
        if done < right:
            return low + (high - low) * (done - left) / (right - left)
    return knots[-1][1]
