"""From a feeder process's ring to the device: by the side stream of a GPU, or as it lies there for a CPU."""

from __future__ import annotations

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
        self._upload = Upload(self._feeder, device) if device.type == "cuda" else None

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
        if self._upload is not None:
            self._upload.close()
        self._feeder.close()


class Upload:
    """Copies batches to static buffers on a GPU, on a stream of its own, one batch ahead of the training step.

    The ring's memory is pinned, so the copies run beside the step, and nothing here waits for the device but for copies
    of earlier batches, which are long done.
    """

    def __init__(self, feeder: Feeder, device: torch.device) -> None:
        self._feeder, self._device = feeder, device
        self._buffers = torch.empty(DEPTH, *feeder.ring.shape, dtype=torch.uint8, device=device)
        self._stream = torch.cuda.Stream(device)
        self._copied = [torch.cuda.Event() for _ in range(DEPTH)]
        self._used = [torch.cuda.Event() for _ in range(DEPTH)]
        self._pinned: Tensor | None = torch.frombuffer(feeder.ring.memory, dtype=torch.uint8)
        _check(torch.cuda.cudart().cudaHostRegister(self._pinned.data_ptr(), feeder.ring.nbytes, 0))

    def batches(self, deliveries: Iterator[Delivery]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(images on the device, records, labels) of each delivery."""
        waiting: list[tuple[int, Delivery]] = []
        try:
            for number, delivery in enumerate(deliveries):
                waiting.append((number % DEPTH, delivery))
                self._copy(*waiting[-1])
                if len(waiting) == DEPTH:
                    yield from self._ready(*waiting.pop(0))
            while waiting:
                yield from self._ready(*waiting.pop(0))
        finally:
            self._stream.synchronize()  # no copy reads a slot that the next epoch writes to

    def _copy(self, buffer: int, delivery: Delivery) -> None:
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(self._used[buffer])
            self._buffers[buffer].copy_(torch.from_numpy(delivery.arrays.images), non_blocking=True)
            self._copied[buffer].record(self._stream)

    def _ready(self, buffer: int, delivery: Delivery) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        step = torch.cuda.current_stream(self._device)
        step.wait_event(self._copied[buffer])
        try:
            yield self._buffers[buffer], *_numbers(delivery)
        finally:
            self._used[buffer].record(step)
        self._copied[buffer].synchronize()
        self._feeder.give_back(delivery)

    def close(self) -> None:
        """Unpins the ring."""
        if self._pinned is not None:
            self._stream.synchronize()
            _check(torch.cuda.cudart().cudaHostUnregister(self._pinned.data_ptr()))
            self._pinned = None


def _numbers(delivery: Delivery) -> tuple[Tensor, Tensor]:
    """Copies of the records and labels of a delivery."""
    return torch.from_numpy(delivery.arrays.index.copy()), torch.from_numpy(delivery.arrays.labels.copy())


def _check(status: int) -> None:
    """Raises RuntimeError unless a call of the CUDA runtime succeeded."""
    torch.cuda.check_error(int(status))
