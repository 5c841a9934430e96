"""The process that writes a .beton file: `python -m hardfast.loaders.beton.child JOB`, started by `writer.py`.

It tells its parent what it does in lines of JSON on standard output: {"written": 0} when it begins, then
{"written": images}, {"compared": images}, and at the end {"sha256": ..., "images": ...} or {"error": what to tell the
user}. Its parent holds the lock on the file, and this process too, so that it lasts until both have ended.
"""

from __future__ import annotations

import json
import mmap
import os
import select
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import numpy.typing as npt

from ..child_process import die_with_parent
from ..errors import DataError
from ..source import ImageSource, Place
from ..sources import open_source
from .records import verify_records, write_records

REPORT_SECONDS = 0.1


class MemorySource:
    """Images and labels in a file in memory that the parent has filled; an `ImageSource` of plain pixels.

    The file holds labels, int64 [N], and then images, uint8 [N, H, W, C] with C of 1 or 3.
    """

    def __init__(self, descriptor: int, shape: tuple[int, int, int, int], name: str) -> None:
        self.place = Place("beton", name)  # never opened: nobody but this process reads from it
        count, height, width, _ = shape
        content = np.frombuffer(mmap.mmap(descriptor, 0, prot=mmap.PROT_READ), np.uint8)
        self.labels: npt.NDArray[np.int64] = content[: 8 * count].view(np.int64)
        self.heights: npt.NDArray[np.int64] = np.full(count, height)
        self.widths: npt.NDArray[np.int64] = np.full(count, width)
        self._images = content[8 * count :].reshape(shape)

    def __len__(self) -> int:
        return len(self.labels)

    def __str__(self) -> str:
        return self.place.path

    def name(self, sample: int) -> str:
        """What messages call a sample."""
        return f"image {sample} of {self}"

    def encoded(self, sample: int) -> bytes | None:
        """None: there are pixels only."""
        return None

    def pixels(self, sample: int) -> npt.NDArray[np.uint8]:
        """One image, uint8 [H, W, 3]; grey ones with three equal channels."""
        image = self._images[sample]
        return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image


def _source(job: dict[str, Any]) -> ImageSource:
    if "memory" in job:
        return MemorySource(job["memory"], tuple(job["shape"]), job["path"])
    return open_source(Place(job["kind"], job["place"]))


def _counter(tell: Callable[[dict[str, Any]], None], key: str) -> Callable[[int], None]:
    """What is told of every image and reports a few times a second."""
    count, last = 0, time.monotonic()

    def advance(done: int) -> None:
        nonlocal count, last
        count += done
        now = time.monotonic()
        if now - last > REPORT_SECONDS:
            tell({key: count})
            last = now

    return advance


def _end_with_parent() -> None:
    """Waits until nobody holds the other end of standard input, which nobody writes to, and ends this process.

    An interrupt may drop the parent's handle on this process before the parent could end it. What is written so far
    stays, for the next writer to remove: by now the file may be another process's.
    """
    os.read(0, 1)
    os._exit(1)


def _write(job: dict[str, Any], path: Path, tell: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    source = _source(job)
    written, compared = _counter(tell, "written"), _counter(tell, "compared")
    tell({"written": 0})
    digests = write_records(source, path, max_side=job["max_side"], workers=job["workers"], advance=written)
    found = verify_records(path, digests, compared)
    if found is None:
        raise DataError(f"{path.parent} gives back other bytes than were written: check the disk")
    return {"sha256": found, "images": len(source)}


def main() -> None:
    """Does the job of the command line, and dies with the parent whatever happens to it."""
    job = json.loads(sys.argv[1])
    die_with_parent(job["parent"])
    if select.select([0], [], [], 0)[0]:  # let go of before it began
        os._exit(1)
    Thread(target=_end_with_parent, daemon=True).start()
    path = Path(job["temporary"])
    reports = os.dup(1)
    os.dup2(2, 1)  # what a library prints must not come between the lines of JSON

    def tell(message: dict[str, Any]) -> None:
        os.write(reports, json.dumps(message).encode() + b"\n")

    try:
        message = _write(job, path, tell)
    except DataError as error:
        message = {"error": str(error)}
    except OSError as error:
        message = {"error": f"{job['path']} cannot be written ({error.strerror}): check the disk and the folder"}
    except Exception as error:  # anything else that a source or a decoder raises is told to the parent, which raises it
        message = {"error": f"{job['path']} cannot be written ({type(error).__name__}: {error}): report this"}
    tell(message)
    os._exit(0)  # threads that still decode what nobody wants are not waited for


if __name__ == "__main__":
    main()
