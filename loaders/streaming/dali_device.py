"""DALI on the GPU that trains: decoded there, by its JPEG engine where it has one, without a feeder process.

Not run on a GPU yet: what does not need one (the graph, order, errors, watchdog) is tested with `device` cpu, and the
graph for a GPU is built and looked at. Tests marked `gpu` compare its pixels with those of the CPU pipeline.

Streams: DALI decodes on streams of its own, and a batch is taken from it when it is complete. It is then copied to one
of two static buffers on torch's current stream. DALI may use the memory again once nobody holds the batch, whatever is
queued on torch's stream; so a batch is held until an event, recorded behind its copy, has happened.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..errors import LoaderDied
from ..source import ImageSource
from .dali_reader import DaliReader
from .dali_threads import DaemonPool
from .spec import FeedSpec

T = TypeVar("T")


@dataclass(slots=True)
class _Slot:
    """A static buffer, and the DALI batch that was last copied into it."""

    images: Tensor
    copied: torch.cuda.Event | None = None
    held: Any = field(default=None, repr=False)

    def fill(self, batch: Any) -> None:
        """Copies DALI's images on torch's current stream, without waiting for the copy on a GPU."""
        from nvidia.dali.plugin.pytorch.torch_utils import feed_ndarray

        if self.copied is None:
            feed_ndarray(batch.as_tensor(), self.images)
            return
        self.copied.synchronize()  # two batches ago: what was held may go
        with torch.cuda.device(self.images.device):
            stream = torch.cuda.current_stream()
            self.held = batch.as_tensor(), batch
            feed_ndarray(self.held[0], self.images, cuda_stream=stream)
            self.copied.record(stream)


class DaliDeviceFeed:
    """Decodes batches with DALI in this process; on a GPU, straight into its memory.

    Waiting is done by a thread, so that a decoder that hangs is noticed.

    Args:
        spec: sizes, threads, and how many batches are decoded ahead.
        source: an image folder (a source whose images are all encoded).
        device: that the images are wanted on.
        watchdog: seconds that a batch may take.

    Raises:
        DataError: DALI is not installed, or the source holds plain pixels.
    """

    def __init__(self, spec: FeedSpec, source: ImageSource, device: torch.device, watchdog: float) -> None:
        self.spec, self.watchdog = spec, watchdog
        number = None
        if device.type == "cuda":
            number = torch.cuda.current_device() if device.index is None else device.index
            device = torch.device("cuda", number)
        self._labels, self._epoch, self._lost = source.labels, 0, ""
        self._reader = DaliReader(spec, source, number)
        shape = (spec.batch_size, spec.height, spec.width, 3)
        self._slots = [
            _Slot(torch.empty(shape, dtype=torch.uint8, device=device), None if number is None else torch.cuda.Event())
            for _ in range(2)
        ]
        self._thread = DaemonPool(1, "dali-wait")

    def epoch(self, records: Tensor, boxes: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The batches of one epoch, in order; it ends where another one begins.

        Args:
            records: int64 [batches * batch_size] on the CPU, numbers of samples.
            boxes: int64 [batches * batch_size, 4] on the CPU: top, left, height, width in stored pixels.

        Yields:
            Images uint8 [N, height, width, 3] on the device, valid until the next batch is asked for; the records and
            labels that they are of, int64 [N] on the CPU.

        Raises:
            DataError: a file is missing, changed or damaged; names it. The feed is of no use then.
            LoaderDied: no batch came for `watchdog` seconds.
        """
        self._epoch = own = self._epoch + 1
        batches = self._reader.epoch(records.numpy(), boxes.numpy())
        coming = self._thread.submit(lambda: next(batches, None))
        number = 0
        try:
            while self._epoch == own and (batch := self._wait(coming)) is not None:
                images, found = batch
                slot = self._slots[number % len(self._slots)]
                slot.fill(images)
                coming = self._thread.submit(lambda: next(batches, None))
                number += 1
                del batch, images
                yield slot.images, torch.from_numpy(found), torch.from_numpy(self._labels[found])
        finally:
            if not self._lost:
                with suppress(LoaderDied):  # the next use tells of it
                    self._wait(self._thread.submit(batches.close))

    def close(self) -> None:
        """Ends its threads; one that hangs is left behind."""
        self._lost = self._lost or "was closed"
        for slot in self._slots:
            if slot.copied is not None:
                slot.copied.synchronize()
            slot.held = None
        self._thread.submit(self._reader.close)
        self._thread.close()

    def _wait(self, coming: Future[T]) -> T:
        if self._lost:
            raise LoaderDied(f"the dali loader of {self.spec.place.path} {self._lost}: run the same command again")
        try:
            return coming.result(self.watchdog)
        except TimeoutError:
            if coming.done():  # just now, or the error is its own
                return coming.result()
            self._lost = f"has delivered nothing for {self.watchdog:.0f} s"
            return self._wait(coming)
