"""Stopwatches for the phases of a step: by the clock on a CPU, by CUDA events on a GPU, in CUDA graphs as well."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Protocol

import torch

from ..engine.phases import PhaseName, PhaseObserver

OTHER = "other"
"""What is in a step but in none of its phases."""


class PhaseTimer(PhaseObserver, Protocol):
    """An observer that is told of whole steps, too."""

    def captured(self, kind: Hashable) -> None:
        """The kind of step to which the phases that were captured since the last call belong, if there were any."""

    def timed(self, step: Callable[[], None], kind: Hashable) -> dict[str, float]:
        """Seconds of each phase of a step of one kind; with those of `OTHER` they add up to the whole step."""


class WallTimer:
    """On a CPU, where a phase's work is done when it ends."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._began = 0.0

    def begin(self, name: PhaseName) -> None:
        """The phase begins."""
        self._began = time.perf_counter()

    def end(self, name: PhaseName) -> None:
        """The phase is over; a name that comes again in a step is the same phase, continued."""
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - self._began

    def captured(self, kind: Hashable) -> None:
        """Nothing is captured on a CPU."""

    def timed(self, step: Callable[[], None], kind: Hashable) -> dict[str, float]:
        """Seconds of each phase of a step, and of `OTHER`."""
        self.seconds = {}
        began = time.perf_counter()
        step()
        return _with_other(self.seconds, time.perf_counter() - began)


@dataclass(frozen=True, slots=True)
class Stretch:
    """One uninterrupted piece of a phase, between two events of the stream."""

    name: PhaseName
    began: torch.cuda.Event
    ended: torch.cuda.Event


class EventTimer:
    """On the current CUDA device, which works on a phase long after it was issued.

    What is executed at once makes new events in every step. What is captured makes external events once, which become
    nodes of the graph: every replay records them again, so they are read before the next one.
    """

    def __init__(self) -> None:
        self.live: list[Stretch] = []
        self.capturing: list[Stretch] = []
        self.graphs: dict[Hashable, list[Stretch]] = {}

    def begin(self, name: PhaseName) -> None:
        """The phase begins."""
        began, ended = self._event(), self._event()
        self._stretches().append(Stretch(name, began, ended))
        began.record()

    def end(self, name: PhaseName) -> None:
        """The phase has been issued."""
        self._stretches()[-1].ended.record()

    def _stretches(self) -> list[Stretch]:
        return self.capturing if torch.cuda.is_current_stream_capturing() else self.live

    def _event(self) -> torch.cuda.Event:
        if torch.cuda.is_current_stream_capturing():
            return torch.cuda.Event(enable_timing=True, external=True)
        return torch.cuda.Event(enable_timing=True)

    def captured(self, kind: Hashable) -> None:
        """The kind of step whose graph holds the events made since the last call, if there were any."""
        self.graphs[kind], self.capturing = self.capturing, []

    def timed(self, step: Callable[[], None], kind: Hashable) -> dict[str, float]:
        """Seconds of each phase of the second of two steps, and of `OTHER`; waits for the device.

        The first one keeps the GPU busy while the second is issued, as the step before does in training.
        """
        began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        step()
        self.live = []
        began.record()
        step()
        ended.record()
        ended.synchronize()
        seconds: dict[str, float] = {}
        for stretch in [*self.live, *self.graphs.get(kind, [])]:
            took = stretch.began.elapsed_time(stretch.ended) / 1000
            seconds[stretch.name] = seconds.get(stretch.name, 0.0) + took
        return _with_other(seconds, began.elapsed_time(ended) / 1000)


def external_events() -> bool:
    """Whether this torch can make events that a CUDA graph records (2.9 can); asks for a CUDA device."""
    try:
        torch.cuda.Event(enable_timing=True, external=True)
    except TypeError:
        return False
    return True


def _with_other(seconds: dict[str, float], whole: float) -> dict[str, float]:
    return seconds | {OTHER: whole - sum(seconds.values())}
