"""FFCV in a feeder: one `ffcv.loader.Loader`, compiled once, whose epochs are given their records and boxes.

FFCV is not safe on a damaged file and is at home in a process that may die: the validator has read the file before, and
this runs in the feeder. Two buffers more than `ahead` hold decoded batches; a decoded image at its full size exists
once for each thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from queue import Empty
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..errors import DataError
from ..source import ImageSource
from .spec import Decoded, FeedSpec


@contextmanager
def torch_threads_kept() -> Iterator[None]:
    """FFCV sets torch's number of threads when it is imported and with every loader: puts it back."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


try:
    with torch_threads_kept():
        import numba
        from ffcv.loader import Loader
        from ffcv.loader.epoch_iterator import EpochIterator
        from ffcv.pipeline import PipelineSpec

        from .ffcv_decoders import GOOD, BoxDecoder, RecordDecoder, scale_box
except ImportError as error:
    raise DataError(
        f"the ffcv loader needs ffcv ({error}): pip install 'hardfast[ffcv]', which compiles it with Debian's "
        "libopencv-dev libturbojpeg0-dev pkg-config g++ python3-dev"
    ) from None

POLL = 0.1  # seconds


class Epoch(EpochIterator):
    """One epoch's thread. An exception in it is raised in whoever asks for a batch, and it can be ended at any time."""

    error: BaseException | None = None

    def run(self) -> None:
        """Decodes batch after batch until the queue is full, in a thread."""
        try:
            super().run()
        except BaseException as error:  # raised again by `take`
            self.error = error

    def take(self) -> Any | None:
        """The results for the next batch, valid until the one after it is asked for; None at the end.

        FFCV's own `__next__` waits for ever where the thread has died.
        """
        while True:
            alive = self.is_alive()  # before the look: what it put last is there
            try:
                given = self.output_queue.get(timeout=POLL if alive else 0)
            except Empty:
                if not alive:
                    raise RuntimeError(f"FFCV's thread ended in mid-epoch: {self.error!r}") from self.error
                continue
            return None if given is None else given[1]

    def end(self) -> None:
        """Ends the thread after the batch that it is at, and waits for that."""
        self.iter_ixes = iter(())  # it looks at `terminate_event` only where the queue is full
        self.close()
        while self.is_alive():
            try:
                self.output_queue.get(timeout=POLL)  # its last `put` has no limit
            except Empty:
                continue
        self.join()


class FfcvBackend:
    """See `spec.Backend`. Making one compiles, which takes seconds; epochs do not.

    JPEGs that libjpeg-turbo finds something amiss with are decoded again by the source, which is stricter and names
    them; nothing else of an image that cannot be decoded is ever delivered.
    """

    def __init__(self, spec: FeedSpec, source: ImageSource) -> None:
        """Reads the file's tables and compiles the decoders.

        Raises:
            DataError: the source is no .beton file, or has changed since it was opened.
        """
        if spec.place.kind != "beton":
            raise DataError(
                f"FFCV reads .beton files and {source} is none: make one with `hardfast data prepare NAME --beton`"
            )
        self.spec, self.source = spec, source
        with torch_threads_kept():
            self.loader = Loader(
                spec.place.path,
                batch_size=spec.batch_size,
                num_workers=min(max(spec.workers, 1), numba.config.NUMBA_NUM_THREADS),
                os_cache=True,
                pipelines={
                    "image": PipelineSpec("image", decoder=BoxDecoder(spec.height, spec.width)),
                    "label": PipelineSpec("label", decoder=RecordDecoder()),
                },
                batches_ahead=max(spec.ahead, 1),
            )
            for table in ("sample_to_pages", "page_to_samples", "ptr_to_size"):
                getattr(self.loader.memory_manager, table).clear()  # its other memory manager's: 0.5 GB for ImageNet
            stored = self.loader.reader.metadata["f0"]
            if not (
                np.array_equal(stored["height"], source.heights) and np.array_equal(stored["width"], source.widths)
            ):
                raise DataError(f"{source} has changed since it was opened: start again")
            first = np.array([[0, 0, 0, source.heights[0], source.widths[0]]])
            for _ in self._results(first):
                pass  # compiled

    def batches(self, index: npt.NDArray[np.int64], boxes: npt.NDArray[np.int64]) -> Iterator[Decoded]:
        """The batches of one epoch, in order.

        Args:
            index: [N], records of the file.
            boxes: [N, 4]: top, left, height, width inside their images.

        Raises:
            DataError: an image is damaged; names the record.
            ValueError: a record or a box is not there.
            RuntimeError: FFCV's thread failed.
        """
        rows = np.ascontiguousarray(np.column_stack((index, boxes)), dtype=np.int64)
        self._check(rows)
        return self._batches(rows)

    def close(self) -> None:
        """Nothing: an epoch ends its own thread."""

    def _batches(self, rows: npt.NDArray[np.int64]) -> Iterator[Decoded]:
        at = 0
        for (images, status), records in self._results(rows):
            for i in np.flatnonzero(status != GOOD):
                self._decode_again(rows[at + i], images[i])
            at += len(images)
            yield Decoded(images, records[:, 0], records[:, 1])

    def _results(self, rows: npt.NDArray[np.int64]) -> Iterator[Any]:
        """What FFCV's pipelines give for each batch."""
        epoch = Epoch(self.loader, rows)
        try:
            while (results := epoch.take()) is not None:
                yield results
        finally:
            epoch.end()

    def _decode_again(self, row: npt.NDArray[np.int64], image: npt.NDArray[np.uint8]) -> None:
        """One sample by the source's own reading, into its place in the batch."""
        record = int(row[0])
        pixels = self.source.pixels(record)
        expected = (self.source.heights[record], self.source.widths[record], 3)
        if pixels.shape != expected:
            raise DataError(f"{self.source.name(record)} is an image of {pixels.shape}, not {expected}: make it again")
        scale_box(np.ascontiguousarray(pixels), row[1:], image)

    def _check(self, rows: npt.NDArray[np.int64]) -> None:
        """What is compiled reads wherever it is told to: everything must be inside."""
        record, top, left, height, width = rows.T
        if len(rows) and not (record.min() >= 0 and record.max() < len(self.source)):
            raise ValueError(f"{self.source} has {len(self.source)} records, not {record.min()} to {record.max()}")
        inside = (np.minimum(top, left) >= 0) & (np.minimum(height, width) >= 1)
        inside &= (top + height <= self.source.heights[record]) & (left + width <= self.source.widths[record])
        if not inside.all():
            raise ValueError(f"a box is not inside its image: {rows[~inside][0].tolist()}")
