"""What becomes of images in a .beton file: JPEGs as they are, everything else as plain pixels."""

from __future__ import annotations

import hashlib
import io
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from ..errors import DataError
from ..image_folder import decode_rgb
from ..source import ImageSource
from .check import check_images, read_structure
from .format import JPEG, LARGEST_SIDE, MOST_PIXELS, RAW, data_start, empty_tables, head, page_size
from .jpeg import jpeg_size

QUALITY, SUBSAMPLING = 90, 2  # of images that are scaled down: JPEG quality 90, colours at half resolution (4:2:0)
VERIFIED_TOGETHER = 256  # images
SYNC_EVERY = 256 << 20  # bytes; so that the last fsync is short


@dataclass(frozen=True, slots=True)
class Record:
    """One image as it is stored."""

    content: bytes
    mode: int
    height: int
    width: int
    sha256: bytes


def make_record(source: ImageSource, sample: int, *, limit: int, max_side: int | None) -> Record:
    """Reads, decodes and encodes one image. A plain JPEG goes through unchanged unless it has more than `limit` bytes.

    Decoding every JPEG once is how a damaged one is found now and not by who trains on it.

    Raises:
        DataError: it cannot be read or decoded, or is too large; names the sample.
    """
    content = source.encoded(sample)
    if content is not None and (len(content) > limit or jpeg_size(content) is None):
        content = None
    pixels = source.pixels(sample) if content is None else decode_rgb(content, source.name(sample))
    height, width = pixels.shape[:2]
    if (height, width) != (source.heights[sample], source.widths[sample]):
        raise DataError(
            f"{source.name(sample)} has {width}x{height} pixels, not {source.widths[sample]}x{source.heights[sample]} "
            "as when it was indexed: index it again"
        )
    if max_side is not None and max(height, width) > max_side:
        content = _smaller(pixels, max_side)
        pixels = decode_rgb(content, source.name(sample))
        height, width = pixels.shape[:2]
    if max(height, width) > LARGEST_SIDE:
        raise DataError(
            f"{source.name(sample)} has {width}x{height} pixels and the format holds {LARGEST_SIDE} on a side: "
            f"give a largest side to scale it down to"
        )
    if content is not None:
        return Record(content, JPEG, height, width, hashlib.sha256(content).digest())
    content = pixels.tobytes()
    return Record(content, RAW, height, width, hashlib.sha256(content).digest())


def _smaller(pixels: npt.NDArray[np.uint8], side: int) -> bytes:
    """The image with its longer side scaled to `side` by Pillow's Lanczos filter, as a JPEG."""
    from PIL import Image

    height, width = pixels.shape[:2]
    factor = side / max(height, width)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    file = io.BytesIO()
    small = Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS)
    small.save(file, "JPEG", quality=QUALITY, subsampling=SUBSAMPLING)
    return file.getvalue()


def write_records(
    source: ImageSource, path: Path, *, max_side: int | None, workers: int, advance: Callable[[int], object]
) -> list[bytes]:
    """Writes all images of a source to a file, which is emptied, and makes sure that they are on the disk.

    The bytes depend on the source and `max_side` alone. Images are read and decoded in `workers` threads.

    Args:
        advance: told of every image that is written.

    Returns:
        The sha256 of each image as it was handed to the file.

    Raises:
        DataError: an image cannot be read, decoded or stored; names it.
        OSError: the file cannot be written.
    """
    samples = len(source)
    page = page_size(_largest(source, max_side))
    records, allocations = empty_tables(samples)
    place = start = data_start(samples, page)
    digests: list[bytes] = []
    synced = 0
    with path.open("wb") as file:
        file.seek(start)
        for sample, record in enumerate(_in_order(source, page, max_side, workers)):
            size = len(record.content)
            if place % page + size > page:
                place += page - place % page
                file.seek(place)
            file.write(record.content)
            label = int(source.labels[sample])
            records[sample] = (record.mode, record.width, record.height, place, label)
            allocations[sample] = (sample, place, size)
            digests.append(record.sha256)
            place += size
            if place - synced > SYNC_EVERY:
                _sync(file)
                synced = place
            advance(1)
        end = -(-place // page) * page
        file.seek(end)
        file.write(allocations.tobytes())
        file.seek(0)
        file.write(head(samples, page, end) + records.tobytes())
        _sync(file)
        # What is read back for comparison then comes from the disk and not from memory.
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return digests


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _largest(source: ImageSource, max_side: int | None) -> int:
    """Bytes that the largest image has as plain pixels."""
    if not len(source):
        raise DataError(f"{source} has no images: there is nothing to write")
    height, width = source.heights.astype(np.int64), source.widths.astype(np.int64)
    if max_side is not None:
        longer = np.maximum(height, width)
        over = longer > max_side
        # One more on the other side, for what rounding may add.
        small = np.ceil(np.minimum(height, width) * (max_side / np.maximum(longer, 1))).astype(np.int64) + 1
        height, width = np.where(over, max_side, height), np.where(over, small, width)
    largest = int(np.argmax(height * width))
    pixels = int(height[largest]) * int(width[largest])
    if pixels > MOST_PIXELS:
        raise DataError(
            f"{source.name(largest)} has {width[largest]}x{height[largest]} pixels, and {MOST_PIXELS} are the most: "
            "give a largest side to scale it down to"
        )
    return 3 * pixels


def _in_order(source: ImageSource, limit: int, max_side: int | None, workers: int) -> Iterator[Record]:
    """The records of all samples, some of them being made ahead."""
    with ThreadPoolExecutor(workers) as pool:
        ahead: deque[Future[Record]] = deque()
        try:
            for sample in range(len(source)):
                ahead.append(pool.submit(make_record, source, sample, limit=limit, max_side=max_side))
                if len(ahead) > 2 * workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def verify_records(path: Path, digests: list[bytes], advance: Callable[[int], object]) -> str | None:
    """Checks a written file as `validate` would, and compares every image with what it was; reads from front to end.

    Returns:
        The sha256 of the whole file; None where an image differs.

    Raises:
        DataError: its structure is wrong.
    """
    structure = read_structure(path)
    whole, done = hashlib.sha256(), 0
    for first in range(0, len(digests), VERIFIED_TOGETHER):
        part = range(first, min(first + VERIFIED_TOGETHER, len(digests)))
        for sample in part:
            begin, record = int(structure.places[sample]), structure.record(sample).data
            whole.update(structure.content[done:begin].data)
            whole.update(record)
            if hashlib.sha256(record).digest() != digests[sample]:
                return None
            done = begin + len(record)
            advance(1)
        check_images(path, structure, part)
    whole.update(structure.content[done:].data)
    return whole.hexdigest()
