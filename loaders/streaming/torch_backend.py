"""The torch backend: PyTorch's DataLoader over torchvision's decoders. Slow, and runs wherever torch does.

Worker processes are forked from the feeder, which has no CUDA context and no work of its own. They write their batches
to shared memory that has no name and was there before they were, and send back no more than where: nothing is left of
it however they end. A DataError goes the same way as a value, since DataLoader would wrap it in its traceback.
"""

from __future__ import annotations

import io
import mmap
import os
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ..child_process import die_with_parent
from ..errors import DataError
from ..source import ImageSource
from .ring import Ring
from .spec import Decoded, FeedSpec

try:
    from PIL import Image
    from torchvision.io import ImageReadMode, decode_image
    from torchvision.transforms.v2 import functional
except ImportError as error:
    raise DataError(
        f"the torch loader needs torchvision and Pillow ({error}): pip install torchvision pillow"
    ) from None

ABANDONED = 0  # in place of the number of an epoch: what is still under way is not wanted
# Pillow's format and layout of files that torchvision decodes to the same RGB. Its other results differ (transparency,
# CMYK, more than 8 bits a channel), or it cannot decode them.
ALIKE = {("JPEG", "L"), ("JPEG", "RGB"), ("MPO", "L"), ("MPO", "RGB"), ("PNG", "L"), ("PNG", "RGB")}


@dataclass(frozen=True, slots=True)
class Task:
    """One batch to decode."""

    epoch: int
    slot: int  # where it goes
    items: list[tuple[int, tuple[int, int, int, int]]]  # record and box of each image


class Tasks(Sampler[Task]):
    """The batch sampler: cuts the order it was handed last into tasks.

    DataLoader asks for one more when it hands over a batch, so that as many as it works ahead are under way beside the
    one that is in use: `slots`, together, are used in turn.
    """

    def __init__(self, batch_size: int, slots: int) -> None:
        self.batch_size, self.slots = batch_size, slots
        self.hand(0, np.empty(0, np.int64), np.empty((0, 4), np.int64))

    def hand(self, epoch: int, index: npt.NDArray[np.int64], boxes: npt.NDArray[np.int64]) -> None:
        """What to cut from now on: records [M] and their boxes [M, 4]."""
        self.epoch, self.index, self.boxes = epoch, index, boxes

    def __len__(self) -> int:
        return len(self.index) // self.batch_size

    def __iter__(self) -> Iterator[Task]:
        for number in range(len(self)):
            part = slice(number * self.batch_size, (number + 1) * self.batch_size)
            boxes = map(tuple, self.boxes[part].tolist())
            yield Task(self.epoch, number % self.slots, list(zip(self.index[part].tolist(), boxes, strict=True)))


class Decoder(Dataset[int | DataError]):
    """Decodes a task into its slot, wherever DataLoader runs it: gives the slot's number, or the error.

    Args:
        source: of the images.
        ring: the slots.
        wanted: one int64 in memory that is shared with the workers: the epoch that is wanted, or ABANDONED.
    """

    def __init__(self, source: ImageSource, ring: Ring, wanted: npt.NDArray[np.int64]) -> None:
        self.source, self.ring, self.wanted = source, ring, wanted

    def __getitem__(self, task: Task) -> int | DataError:
        slot = self.ring.slot(task.slot)
        try:
            for at, (record, box) in enumerate(task.items):
                if self.wanted[0] != task.epoch:
                    break
                slot.images[at] = crop(self.source, record, box, self.ring.shape[1:3]).permute(1, 2, 0).numpy()
                slot.index[at], slot.labels[at] = record, self.source.labels[record]
        except DataError as error:
            return error
        return task.slot


class TorchBackend:
    """Decodes batches in a DataLoader's worker processes, or, without workers, right here.

    One DataLoader and its workers serve all epochs. An epoch that is given up costs what its workers need to finish the
    image at hand.

    Args:
        spec: `workers` processes decode; together they work `ahead` batches ahead, each of them one at least.
        source: of the images.
    """

    def __init__(self, spec: FeedSpec, source: ImageSource) -> None:
        each = -(-spec.ahead // spec.workers) if spec.workers else 0
        slots = each * spec.workers + 1
        self._ring = Ring((spec.batch_size, spec.height, spec.width, 3), slots)
        self._wanted = np.frombuffer(mmap.mmap(-1, 8), np.int64)
        self._tasks = Tasks(spec.batch_size, slots)
        self._epoch = ABANDONED
        self._reading: Iterator[int | DataError] | None = None
        several: dict[str, Any] = {}
        if spec.workers:
            several = {
                "prefetch_factor": max(each, 1),
                "persistent_workers": True,
                "multiprocessing_context": "fork",
                "worker_init_fn": _Start(os.getpid()),
            }
        with _as_many_as_asked():
            self._loader: DataLoader[int | DataError] | None = DataLoader(
                Decoder(source, self._ring, self._wanted),
                sampler=self._tasks,
                batch_size=None,  # a task is a batch
                collate_fn=_unchanged,
                num_workers=spec.workers,
                **several,
            )

    def batches(self, index: npt.NDArray[np.int64], boxes: npt.NDArray[np.int64]) -> Iterator[Decoded]:
        """The batches of one epoch, in order; see `Backend.batches`. It ends where another one begins.

        Raises:
            DataError: an image is damaged or its box lies outside of it; names the sample.
            RuntimeError: a worker process died.
        """
        if self._loader is None:
            raise RuntimeError("the backend has been closed")
        self._epoch = own = self._epoch + 1
        self._wanted[0] = own
        self._tasks.hand(own, index, boxes)
        with _as_many_as_asked():
            self._reading = iter(self._loader)
        try:
            while self._epoch == own and self._reading is not None:
                result = next(self._reading, None)
                if result is None:
                    return
                if isinstance(result, DataError):
                    raise result
                slot = self._ring.slot(result)
                yield Decoded(slot.images, slot.index, slot.labels)
        finally:
            if self._epoch == own:
                self._wanted[0] = ABANDONED

    def close(self) -> None:
        """Ends the worker processes; may be called twice."""
        self._wanted[0] = ABANDONED
        self._reading = self._loader = None  # with the last reference to it, DataLoader ends its workers and joins them
        self._ring.close()


class _Start:
    """What a worker process does first. DataLoader itself gives it one thread."""

    def __init__(self, feeder: int) -> None:
        self.feeder = feeder

    def __call__(self, worker: int) -> None:
        # DataLoader looks for its parent every five seconds; the kernel needs none, and ends a stopped worker too.
        die_with_parent(self.feeder)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the feeder's to answer


@contextmanager
def _as_many_as_asked() -> Iterator[None]:
    """Keeps DataLoader from warning of more workers than cores: the user has named their number."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        yield


def _unchanged(result: Any) -> Any:
    return result


def crop(source: ImageSource, record: int, box: tuple[int, int, int, int], size: tuple[int, int]) -> Tensor:
    """What a box shows of an image, at the size that is asked for: uint8 [3, height, width], in no set memory format.

    Args:
        source: of the image.
        record: its number.
        box: top, left, height, width; of that very size, its pixels are taken as they are.
        size: (height, width).

    Raises:
        DataError: the image is damaged, or the box lies outside of it.
    """
    image = decode(source, record)
    top, left, height, width = box
    if min(top, left) < 0 or min(height, width) < 1 or top + height > image.shape[1] or left + width > image.shape[2]:
        raise DataError(
            f"{source.name(record)} has {image.shape[1]}x{image.shape[2]} pixels, and no box of {height}x{width} at "
            f"{top}, {left}: prepare the data set again, its index is of other files"
        )
    part = image[:, top : top + height, left : left + width]
    if (height, width) == size:
        return part
    resized: Tensor = functional.resize(part, list(size), functional.InterpolationMode.BILINEAR, antialias=True)
    return resized


def decode(source: ImageSource, record: int) -> Tensor:
    """One whole image: uint8 [3, H, W]; by torchvision, where its RGB is Pillow's.

    Raises:
        DataError: it is damaged.
    """
    content = source.encoded(record)
    if content is None or not _alike(content):
        return torch.from_numpy(np.array(source.pixels(record))).permute(2, 0, 1)
    try:
        return decode_image(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.RGB)
    except RuntimeError as error:
        source.pixels(record)  # says it in the source's words, but takes PNGs with wrong checksums and pixels
        cause = " ".join(str(error).rpartition(", ")[2].split())
        raise DataError(f"{source.name(record)} is damaged ({cause}): copy it again, or remove it") from None


def _alike(content: bytes) -> bool:
    """Whether torchvision decodes this file to the RGB that Pillow gives; a file that is damaged is not asked about."""
    try:
        with Image.open(io.BytesIO(content), formats=["JPEG", "PNG"]) as image:
            if image.format == "PNG" and image.tile[0][3] != image.mode:  # fewer or more than 8 bits
                return False
            return (image.format, image.mode) in ALIKE
    except (OSError, ValueError, SyntaxError, IndexError, Image.DecompressionBombError):
        return False
