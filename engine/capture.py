"""A training step as CUDA graphs: about a thousand launches become one."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor

from ..loaders import Batch
from .errors import CaptureError
from .methods import Position
from .step import Step

WARMUP_STEPS = 3


class CapturedStep:
    """Runs a step as a CUDA graph, one for each kind of step, all in one memory pool.

    The first step of a kind is run a few times on a side stream, which compiles what is to be compiled and lets cuDNN
    choose, then everything it changed is put back, and it is captured and replayed. So the first step of a kind is one
    step like every other, only slower. Batches are copied to the addresses that the graphs read, all of one shape.

    Args:
        step: the step. It must not wait for the device, and everything that differs from one call to the next must
            reach it through the batch or through tensors that are written in place, like the learning rate.
        kind: tells steps apart that do different work, by their position.
        rewind: a context that puts back, when it ends, all that steps inside it changed, in place.
        device: a CUDA device.

    Attributes:
        warmup_seconds, capture_seconds: spent so far; warm-up includes compilation.
    """

    def __init__(
        self,
        step: Step,
        kind: Callable[[Position], Hashable],
        rewind: Callable[[], AbstractContextManager[None]],
        device: torch.device,
    ) -> None:
        self.step, self.kind, self.rewind, self.device = step, kind, rewind, device
        self.stream = torch.cuda.Stream(device)
        self.graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}
        self.batch: Batch | None = None  # at the addresses that the graphs read
        self.warmup_seconds = self.capture_seconds = 0.0

    def __call__(self, batch: Batch, position: Position) -> None:
        """Trains on one clean batch.

        Raises:
            CaptureError: the step cannot be captured; every tensor is as it was.
            ValueError: the batch has another shape than the first one.
        """
        self.prepare(batch, position)
        self.graphs[self.kind(position)].replay()

    def prepare(self, batch: Batch, position: Position) -> None:
        """All of a step but its execution: takes the batch, and captures its kind of step if it is the first one.

        Raises:
            CaptureError, ValueError: as a step does.
        """
        self._take(batch)
        kind = self.kind(position)
        if kind not in self.graphs:
            self.graphs[kind] = self._capture(position)

    def _take(self, batch: Batch) -> None:
        """Copies a batch to where the graphs read it."""
        if self.batch is None:
            self.batch = Batch(*(t.clone() for t in batch.tensors()))
            return
        for static, tensor in zip(self.batch.tensors(), batch.tensors(), strict=True):
            if static.shape != tensor.shape:
                raise ValueError(f"a batch of {tuple(tensor.shape)} does not fit the captured {tuple(static.shape)}")
            static.copy_(tensor)

    def _capture(self, position: Position) -> torch.cuda.CUDAGraph:
        assert self.batch is not None
        began = time.perf_counter()
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream), self.rewind():
            for _ in range(WARMUP_STEPS - 1):
                self.step(self.batch, position)
            self._rehearse(position)
        torch.cuda.synchronize(self.device)
        self.warmup_seconds += time.perf_counter() - began
        began = time.perf_counter()
        gc.collect()  # what a collection in the middle of a capture would free may be in use by other graphs
        graph = torch.cuda.CUDAGraph()
        pool = next(iter(self.graphs.values())).pool() if self.graphs else None
        try:
            # The outer context puts the stream back also where the end of a capture fails.
            with (
                torch.cuda.stream(self.stream),
                torch.cuda.graph(graph, pool=pool, stream=self.stream, capture_error_mode="thread_local"),
            ):
                self.step(self.batch, position)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise CaptureError(_root_cause(error)) from error
        self.capture_seconds += time.perf_counter() - began
        return graph

    def _rehearse(self, position: Position) -> None:
        """The last step of a warm-up, in which waiting for the device is an error.

        A wait is what makes most steps uncapturable, and in a capture it would leave the process's random generator and
        the loss scaler in the middle of it.
        """
        assert self.batch is not None
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            self.step(self.batch, position)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise CaptureError(_root_cause(error)) from error
        finally:
            torch.cuda.set_sync_debug_mode(before)


def _root_cause(error: BaseException) -> str:
    """The first line of the error that came first: the end of a failed capture raises another one over it."""
    while error.__context__ is not None:
        error = error.__context__
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


@contextmanager
def rewound(tensors: Callable[[], dict[str, Tensor]]) -> Iterator[None]:
    """Puts every tensor back to what it was, in place; those that did not exist before become zero.

    Zero is what an optimiser's momentum and step count are before its first step.

    Args:
        tensors: all that may change, by name, asked for before and after.
    """
    before = {name: tensor.detach().clone() for name, tensor in tensors().items()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, tensor in tensors().items():
                if name in before:
                    tensor.copy_(before[name])
                else:
                    tensor.zero_()
