"""The phases of a training step: what `hardfast profile` charges time to, and the ranges that profilers show."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, Protocol

import torch
from torch.profiler import record_function

PhaseName = Literal["data", "clean gradient", "generator", "generator update", "adversarial gradient", "update"]


class PhaseObserver(Protocol):
    """Told where each phase begins and ends. Phases inside another one are part of it."""

    def begin(self, name: PhaseName) -> None:
        """The phase begins."""

    def end(self, name: PhaseName) -> None:
        """The phase has been issued; on a GPU it may still be running."""


_OBSERVER: ContextVar[PhaseObserver | None] = ContextVar("observer", default=None)
_OPEN: ContextVar[bool] = ContextVar("open", default=False)


@contextmanager
def observed_by(observer: PhaseObserver) -> Iterator[None]:
    """Reports the phases of everything inside to `observer`."""
    token = _OBSERVER.set(observer)
    try:
        yield
    finally:
        _OBSERVER.reset(token)


@contextmanager
def phase(name: PhaseName) -> Iterator[None]:
    """A phase: a range in torch's profiler, an NVTX range on a GPU, and news for the observer.

    Captured in a CUDA graph, the ranges are those of the capture; a replay shows none.
    """
    if _OPEN.get():
        yield
        return
    observer, token, nvtx = _OBSERVER.get(), _OPEN.set(True), torch.cuda.is_initialized()
    try:
        with record_function(f"hardfast: {name}"):
            if nvtx:
                torch.cuda.nvtx.range_push(f"hardfast: {name}")
            if observer is not None:
                observer.begin(name)
            yield
            if observer is not None:
                observer.end(name)
    finally:
        if nvtx:
            torch.cuda.nvtx.range_pop()
        _OPEN.reset(token)
