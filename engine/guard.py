"""When training has gone wrong, and what is done then: the rules, as functions of what was seen.

Two guards: one against steps whose losses or gradients are not finite, which the device leaves out by itself
(`nonfinite.py`), one against catastrophic overfitting, in which a one-step attack loses all robustness within a few
steps while its training accuracy rises (Wong, Rice, Kolter, "Fast is better than free", 2020; Andriushchenko,
Flammarion, "Understanding and improving fast adversarial training", 2020). Nothing here touches a device or a file;
`run_guard.py` does what is decided here. What both have seen is part of a checkpoint, so that a resumed run decides as
an unstopped one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from ..kernels import Purpose, derived_seed

GuardMode = Literal["off", "warn", "rollback"]
Answer = Literal["go on", "go back", "stop"]

IN_A_ROW = 3  # steps that are not finite, after which the run goes back
WINDOW, IN_WINDOW = 1000, 10  # so many of them in so many steps end it

DROP = 20.0  # points of PGD accuracy under the highest
APART = 30.0  # points between FGSM and PGD accuracy
JUMP = 15.0  # points that the accuracy on adversarial training images rises between two probes
FLOOR, REACHED = 5.0, 10.0  # percent: PGD accuracy under FLOOR is an alarm once it has been at REACHED
MOST_ROLLBACKS = 3

WIRES = (4, 3, 2)  # parts of an epoch between two trip wires, the finest that can be paid for
FEWEST, MOST = 32, 512  # images of a trip wire
SHARE = 0.02  # of the work of training that they may cost
PROBE_UNITS = 24  # forward passes an image: PGD-10, its count of right answers, and the evaluation's own checks
STEP_UNITS = 5  # of the cheapest adversarial training: an attack of one step and the descent


class Place(NamedTuple):
    """A step of the run."""

    epoch: int  # from 0
    step: int  # within the epoch, from 0


@dataclass(frozen=True, kw_only=True, slots=True)
class NonFiniteHistory:
    """The steps that were left out because a loss or a gradient was not finite."""

    steps: int = 0  # in the whole run, with those of parts that were trained again
    row: int = 0  # without a healthy one until now
    recent: tuple[int, ...] = ()  # their numbers in the run, of the last WINDOW steps
    answered: tuple[Place, ...] = ()  # where a row began for which the run went back

    def after(self, flags: Sequence[bool], *, at: Place, total: int) -> tuple[NonFiniteHistory, Answer, Place]:
        """The history after more steps of one epoch, what to do, and because of what began where.

        Args:
            flags: of each step since the last call, oldest first.
            at: the step that comes next.
            total: steps of the run until then.

        Returns:
            The history up to the step that decides, with the answer and the place that it is for.
        """
        now = self
        for age, flagged in zip(reversed(range(1, len(flags) + 1)), flags, strict=True):
            if not flagged:
                now = replace(now, row=0) if now.row else now
                continue
            number = total - age
            recent = (*(one for one in now.recent if number - WINDOW < one), number)
            now = replace(now, steps=now.steps + 1, row=now.row + 1, recent=recent)
            if len(recent) >= IN_WINDOW:
                return now, "stop", Place(at.epoch, at.step - age)
            if now.row == IN_A_ROW:
                return now.back(
                    Place(at.epoch, max(0, at.step - age - IN_A_ROW + 1))
                )  # a row may begin in the last one
        return now, "go on", at

    def back(self, place: Place) -> tuple[NonFiniteHistory, Answer, Place]:
        """The history when the run would go back because of what began at `place`; a second time it is to stop."""
        if place in self.answered:
            return self, "stop", place
        return replace(self, row=0, answered=(*self.answered, place)), "go back", place

    def put_back(self, restored: NonFiniteHistory, *, total: int) -> NonFiniteHistory:
        """The history of a run that was put back to `total` steps: what was seen beyond them is not its own any more.

        Args:
            restored: its history when it was there.
            total: steps of the run until then.
        """
        return replace(self, row=restored.row, recent=tuple(number for number in self.recent if number < total))


@dataclass(frozen=True, kw_only=True, slots=True)
class CollapseHistory:
    """What the guard against catastrophic overfitting has seen; accuracies in percent."""

    rollbacks: int = 0
    good: int | None = None  # step of the newest checkpoint that was healthy
    highest: float | None = None  # PGD-10, of the probes of all held-out images
    highest_of_wires: float | None = None  # the same of the trip wires, which see fewer images
    train: float | None = None  # on adversarial training images, between the last two probes
    right: float = 0.0  # of them in the epoch until the last probe
    images: float = 0.0
    warned: int | None = None  # epoch of the last warning
    looked: int | None = None  # epoch in which a trip wire last had its second look

    def probed(self, pgd: float, train: float | None, *, wire: bool, right: float, images: float) -> CollapseHistory:
        """The history after a probe.

        Args:
            pgd: its PGD-10 accuracy.
            train: accuracy on adversarial training images since the probe before; None if there were none.
            wire: whether it saw a few images alone.
            right: answers of the epoch's training images so far; 0 at its end.
            images: how many there were.
        """
        before = self.highest_of_wires if wire else self.highest
        highest = pgd if before is None else max(before, pgd)
        return replace(
            self,
            highest=self.highest if wire else highest,
            highest_of_wires=highest if wire else self.highest_of_wires,
            train=self.train if train is None else train,
            right=right,
            images=images,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Signs:
    """Of catastrophic overfitting, at one probe."""

    pgd: float  # accuracies in percent
    fgsm: float | None  # None as long as it was not measured
    highest: float | None  # PGD-10 at earlier probes
    train: float | None  # on adversarial training images since the last probe
    train_before: float | None  # the same between the two probes before

    @property
    def dropped(self) -> bool:
        """PGD accuracy is far under its highest."""
        return self.highest is not None and self.highest - self.pgd >= DROP

    @property
    def apart(self) -> bool:
        """The net withstands FGSM and not PGD."""
        return self.fgsm is not None and self.fgsm - self.pgd > APART

    @property
    def jumped(self) -> bool:
        """The net has suddenly learned to see through its own training attack."""
        return self.train is not None and self.train_before is not None and self.train - self.train_before >= JUMP

    @property
    def lost(self) -> bool:
        """No robustness is left. A net that never had any is not overfitting, it has not learned yet."""
        return self.highest is not None and self.highest >= REACHED and self.pgd < FLOOR

    @property
    def suspicious(self) -> bool:
        """Worth a closer look; FGSM's passes are only paid for then, for alone they decide nothing."""
        return self.dropped or self.jumped or self.lost

    @property
    def alarm(self) -> bool:
        """Whether this is catastrophic overfitting: no robustness is left, or two of the three signs."""
        return self.lost or self.dropped + self.apart + self.jumped >= 2

    @property
    def healthy(self) -> bool:
        """Whether a run may go back to here: no alarm, and not already on the way down. A jump alone is learning."""
        return not self.alarm and (self.highest is None or self.highest - self.pgd < DROP / 2)

    def __str__(self) -> str:
        said = [f"held-out PGD-10 {self.pgd:.1f} %"]
        if self.highest is not None:
            said.append(f"at most {self.highest:.1f} % before")
        if self.fgsm is not None:
            said.append(f"FGSM {self.fgsm:.1f} %")
        if self.jumped:
            said.append(f"adversarial training accuracy up from {self.train_before:.1f} to {self.train:.1f} %")
        return ", ".join(said)


class Wires(NamedTuple):
    """Trip wires: probes of a few held-out images in mid-epoch."""

    every: int  # steps
    images: int

    def due(self, step: int, steps: int) -> bool:
        """Whether one is due after so many of an epoch's steps; at its end, the held-out check is the probe."""
        return 0 < step < steps and step % self.every == 0 and steps - step >= self.every


def trip_wires(*, steps: int, batch_size: int, heldout: int) -> Wires | None:
    """Where an epoch has trip wires, by arithmetic alone: a resumed run has the same.

    At most every quarter of an epoch, and such that they cost at most 2 % of the training between them. A data set as
    small as the digits has none: its epochs are short, and their ends are probes.

    Args:
        steps: of an epoch.
        batch_size: images of a step.
        heldout: images that there are to probe.
    """
    for parts in WIRES:
        every = steps // parts
        paid = int(SHARE * every * batch_size * STEP_UNITS / PROBE_UNITS)
        if paid >= FEWEST and heldout >= FEWEST:
            return Wires(every, min(paid, heldout, MOST))
    return None


def training_seed(seed: int, rollbacks: int) -> int:
    """The seed of order, crops and noise: the recipe's own, until a rollback asks for other randomness."""
    return derived_seed(seed, Purpose.ROLLBACK, rollbacks) if rollbacks else seed
