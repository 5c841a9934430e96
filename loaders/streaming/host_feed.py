"""From a feeder process's ring to the device: by the side stream of a GPU, or as it lies there for a CPU."""

from __future__ import annotations

import weakref
from collections.abc import Iterator

import torch
from torch import Tensor

from .spec import FeedSpec
from .supervisor import Delivery, Feeder

DEPTH = 2  # static buffers on a GPU: one is trained on while the other is filled


class HostFeed:
    """A `Feed` over a feeder process.

    Args:
        spec: what it reads and how.
        device: where the batches go.
        watchdog: as `Feeder`.
    """

    def __init__(self, spec: FeedSpec, device: torch.device, *, watchdog: float) -> None:
        self._feeder = Feeder(spec, watchdog=watchdog)
        try:
            self._upload = Upload(self._feeder, device) if device.type == "cuda" else None
        except BaseException:
            self._feeder.close()
            raise

    def epoch(self, records: Tensor, boxes: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """As `Feed.epoch`."""
        deliveries = self._feeder.epoch(records.numpy(), boxes.contiguous().numpy())
        if self._upload is not None:
            yield from self._upload.batches(deliveries)
            return
        for delivery in deliveries:
            slot = delivery.arrays
            yield torch.from_numpy(slot.images), *_numbers(delivery)
            self._feeder.give_back(delivery)

    def close(self) -> None:
        """Ends the feeder."""
        try:
            if self._upload is not None:
                self._upload.close()
        finally:
            self._feeder.close()


class Upload:
    """Copies batches to static buffers on a GPU, on a stream of its own, one batch ahead of the training step.

    The ring's memory is pinned, so the copies run beside the step. The host waits for the copy of a batch when it asks
    for the next one, which keeps it at most two steps ahead of the device.
    """

    def __init__(self, feeder: Feeder, device: torch.device) -> None:
        self._feeder, self._device, self._epoch = feeder, device, 0
        self._buffers = torch.empty(DEPTH, *feeder.ring.shape, dtype=torch.uint8, device=device)
        self._stream = torch.cuda.Stream(device)
        self._stream.wait_stream(torch.cuda.current_stream(device))  # which the buffers' memory comes from
        self._copied = [torch.cuda.Event() for _ in range(DEPTH)]
        self._used = [torch.cuda.Event() for _ in range(DEPTH)]
        pinned = torch.frombuffer(feeder.ring.memory, dtype=torch.uint8)
        _check(torch.cuda.cudart().cudaHostRegister(pinned.data_ptr(), feeder.ring.nbytes, 0))
        self.close = weakref.finalize(self, _unpin, pinned, self._stream)

    def batches(self, deliveries: Iterator[Delivery]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(images on the device, records, labels) of each delivery; ends where it is asked for another epoch's."""
        self._epoch = own = self._epoch + 1
        step = torch.cuda.current_stream(self._device)
        for used in self._used:
            used.record(step)  # what an epoch that was given up left to do with the buffers
        self._stream.synchronize()  # no copy reads a slot that the feeder writes to from now on
        waiting: list[tuple[int, Delivery]] = []
        for number, delivery in enumerate(deliveries):
            waiting.append((number % DEPTH, delivery))
            self._copy(*waiting[-1])
            if len(waiting) == DEPTH:
                yield self._ready(*waiting[0])
                if self._epoch != own:
                    return
                self._done(*waiting.pop(0))
        while waiting and self._epoch == own:
            yield self._ready(*waiting[0])
            if self._epoch == own:
                self._done(*waiting.pop(0))

    def _copy(self, buffer: int, delivery: Delivery) -> None:
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(self._used[buffer])
            self._buffers[buffer].copy_(torch.from_numpy(delivery.arrays.images), non_blocking=True)
            self._copied[buffer].record(self._stream)

    def _ready(self, buffer: int, delivery: Delivery) -> tuple[Tensor, Tensor, Tensor]:
        torch.cuda.current_stream(self._device).wait_event(self._copied[buffer])
        return self._buffers[buffer], *_numbers(delivery)

    def _done(self, buffer: int, delivery: Delivery) -> None:
        self._used[buffer].record(torch.cuda.current_stream(self._device))
        self._copied[buffer].synchronize()
        self._feeder.give_back(delivery)


def _numbers(delivery: Delivery) -> tuple[Tensor, Tensor]:
    """Copies of the records and labels of a delivery."""
    return torch.from_numpy(delivery.arrays.index.copy()), torch.from_numpy(delivery.arrays.labels.copy())


def _unpin(pinned: Tensor, stream: torch.cuda.Stream) -> None:
    try:
        stream.synchronize()
    finally:
        _check(torch.cuda.cudart().cudaHostUnregister(pinned.data_ptr()))


def _check(status: int) -> None:
    """Raises RuntimeError unless a call of the CUDA runtime succeeded."""
    torch.cuda.check_error(int(status))
