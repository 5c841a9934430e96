"""What the two DALI loaders share: epochs of batches through one pipeline, in order, and the file an error came of."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import DataError
from ..source import ImageSource
from .dali_files import Bytes, dali_bytes
from .dali_pipeline import begin, build_pipeline, reason, start, take_images
from .dali_threads import DaemonPool
from .spec import FeedSpec

Integers = npt.NDArray[np.int64]

READERS = 4  # threads that read files at most: sha256 runs at 1.3 GB/s in each, ten times what decodes them


@dataclass(frozen=True, slots=True)
class _Batch:
    index: Integers  # [N]
    boxes: npt.NDArray[np.int32]  # [N, 4]
    files: list[Future[Bytes]]


class DaliReader:
    """Decodes epochs through one pipeline, `spec.ahead` batches ahead of the caller.

    Its pipeline is used by one thread at a time: the one that iterates.

    Args:
        spec: sizes and threads.
        source: where the files come from.
        device_id: the GPU to decode on; None decodes on the CPU.

    Raises:
        DataError: DALI is not installed, or the source holds no image files.
    """

    def __init__(self, spec: FeedSpec, source: ImageSource, device_id: int | None = None) -> None:
        try:
            import nvidia.dali  # noqa: F401
        except ImportError as error:
            raise DataError(
                f"the dali loader needs nvidia-dali-cuda130 ({error}): pip install 'hardfast[dali]'"
            ) from None
        self.spec, self.source, self.device_id = spec, source, device_id
        if len(source):
            dali_bytes(source, 0)
        self._pool = DaemonPool(min(READERS, max(1, spec.workers)), "dali-read")
        self._pipeline: Any = None
        self._reading: deque[_Batch] = deque()
        self._flying: deque[_Batch] = deque()
        self._epoch, self._lost = 0, ""

    def epoch(self, index: Integers, boxes: Integers) -> Generator[tuple[Any, Integers], None, None]:
        """The batches of one epoch, in order: DALI's `TensorList` of images, and the samples' numbers.

        It ends where another one begins. Closing the iterator waits for the batches that are being decoded, and leaves
        the reader ready for another epoch.

        Args:
            index: [batches * batch_size], numbers of samples.
            boxes: [batches * batch_size, 4]: top, left, height, width in stored pixels.

        Raises:
            DataError: a file is missing, changed, damaged or of a kind that cannot be decoded; names it. The reader is
                of no use then: a batch that has been lost must not go unnoticed.
        """
        if self._lost:
            raise DataError(self._lost)
        size = self.spec.batch_size
        if len(index) % size or boxes.shape != (len(index), 4):
            raise DataError(f"dali: {len(index)} samples and {boxes.shape} boxes are not whole batches of {size}")
        self._abandon()
        self._epoch = own = self._epoch + 1
        parts = (slice(first, first + size) for first in range(0, len(index), size))
        waiting = (self._read(index[part], boxes[part]) for part in parts)
        try:
            self._open()
            while self._epoch == own:
                if self._lost:
                    raise DataError(self._lost)
                self._advance(waiting)
                if not self._flying:
                    return
                images = self._take(self._flying[0])
                yield images, self._flying.popleft().index
        except Exception as error:
            self._lost = str(error)
            raise
        finally:
            if self._epoch == own:
                self._abandon()

    def close(self) -> None:
        """Ends its threads."""
        self._lost = self._lost or "the dali loader was closed"
        self._abandon()
        self._pool.close()

    def _open(self) -> None:
        """Makes the pipeline, if there is none."""
        if self._pipeline is not None:
            return
        try:
            pipeline = self._build(self.spec.batch_size, self.spec.ahead)
            start(pipeline, self.spec.ahead)
        except Exception as error:
            raise DataError(f"dali does not start ({reason(error)}): use another with --loader.name") from error
        self._pipeline = pipeline

    def _build(self, batch_size: int, ahead: int) -> Any:
        return build_pipeline(
            batch_size=batch_size,
            height=self.spec.height,
            width=self.spec.width,
            threads=max(1, self.spec.workers),
            ahead=ahead,
            mixed=self.device_id is not None,
            device_id=self.device_id,
        )

    def _read(self, index: Integers, boxes: Integers) -> _Batch:
        files = [self._pool.submit(dali_bytes, self.source, int(sample)) for sample in index]
        return _Batch(index, boxes.astype(np.int32), files)

    def _advance(self, waiting: Iterator[_Batch]) -> None:
        """Begins batches, as many as the pipeline works ahead; reads one more, so that the two overlap."""
        while len(self._flying) < self.spec.ahead:
            while len(self._reading) < 2 and (batch := next(waiting, None)) is not None:
                self._reading.append(batch)
            if not self._reading:
                return
            files = [file.result() for file in self._reading[0].files]
            self._flying.append(self._reading.popleft())
            try:
                begin(self._pipeline, files, self._flying[-1].boxes)
            except Exception as error:
                raise self._trace(self._flying[-1], error) from error

    def _take(self, batch: _Batch) -> Any:
        """The images of the oldest batch that was begun; where DALI fails, the error of the file it failed on."""
        try:
            images = take_images(self._pipeline)
        except Exception as error:
            raise self._trace(batch, error) from error
        expected = [(self.spec.height, self.spec.width, 3)] * len(batch.index)
        if [tuple(shape) for shape in images.shape()] != expected:
            raise DataError(
                f"dali delivered {len(images)} images in place of the {len(expected)} of a batch: {self.source}"
            )
        return images

    def _trace(self, batch: _Batch, error: Exception) -> DataError:
        """Decodes the samples of a batch that failed one by one, until one fails."""
        probe = self._build(1, 1)
        for number, sample in enumerate(batch.index):
            try:
                begin(probe, [batch.files[number].result()], batch.boxes[number : number + 1])
                take_images(probe)
            except Exception as cause:
                return self._damaged(int(sample), cause)
        names = f"{self.source.name(int(batch.index[0]))} to {self.source.name(int(batch.index[-1]))}"
        return DataError(
            f"dali failed on a batch of {len(batch.index)} files, {names}, but on none alone: {reason(error)}"
        )

    def _damaged(self, sample: int, cause: Exception) -> DataError:
        try:
            self.source.pixels(sample)
        except DataError as error:  # Pillow knows better what is wrong with it
            return error
        fix = "prepare the data set again, or save the file as a plain JPEG or PNG"
        return DataError(f"{self.source.name(sample)} cannot be decoded by dali ({reason(cause)}): {fix}")

    def _abandon(self) -> None:
        """Waits for batches that nobody wants any more; a pipeline that has failed, or fails on them, is given up."""
        for batch in self._reading:
            for file in batch.files:
                file.cancel()
        self._reading.clear()
        if self._lost:
            self._pipeline = None
        try:
            for _ in range(len(self._flying) if self._pipeline else 0):
                take_images(self._pipeline)
        except Exception:  # no batch is lost by it: the next epoch meets the file again, with a new pipeline
            self._pipeline = None
        self._flying.clear()
