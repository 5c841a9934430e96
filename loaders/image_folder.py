"""A folder of images, FOLDER/CLASS/FILE: numbered, indexed once, and each file checked whenever it is read."""

from __future__ import annotations

import hashlib
import io
import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt

from .errors import DataError
from .folder_index import Index, Listing, again, check_listing, differences, list_folder, rows_of, shown
from .index_file import read_index, write_index
from .progress import progress
from .source import Place

if TYPE_CHECKING:
    from PIL.Image import Image

LARGEST_FILE = 256 << 20  # bytes; what has more is no training image
CHUNK = 64  # files that a thread indexes before the bar moves
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
DEEP = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")  # Pillow's modes with more than 8 bits: it would clip them


class FolderSource:
    """The images of one split's folder, as an `ImageSource`.

    Made by `open`, `checked`, `refreshed` or `index`. Classes are numbered in the sorted order of their folders' names,
    files in the sorted order of class and name. EXIF orientation is not applied.

    Attributes:
        classes: names of the classes.
        left_out: visible files that were taken for no images when the folder was indexed just now; else empty.
        changes: what `refreshed` has found to differ from the index of before, in words; else empty.
    """

    def __init__(self, folder: Path, index: Index, changes: str = "") -> None:
        self.place = Place("folder", str(folder.absolute()))
        self.labels = index.listing.labels()
        self.heights, self.widths = index.heights, index.widths
        self.sizes, self.sha256 = index.listing.sizes, index.sha256
        self.classes, self.left_out, self.changes = index.listing.classes, index.listing.left_out, changes
        self._folder, self._names, self._index = folder, index.listing.names, index

    @classmethod
    def open(cls, folder: Path) -> Self:
        """The folder by its index alone, which is made where there is none: cheap, however many files there are.

        Raises:
            DataError: there is no such folder, the index is damaged, or a folder without one cannot be indexed.
        """
        index = read_index(folder)
        return cls.index(folder) if index is None else cls(folder, index)

    @classmethod
    def checked(cls, folder: Path) -> Self:
        """The same, and the folder is listed: what was added, removed or has another size is noticed.

        Raises:
            DataError: as `open`, or names the first file that differs from the index.
        """
        index = read_index(folder)
        if index is None:
            return cls.index(folder)
        check_listing(folder, index)
        return cls(folder, index)

    @classmethod
    def refreshed(cls, folder: Path) -> Self:
        """Reads every file and writes the index anew; what differs from the one of before is in `changes`.

        Every image is decoded to its end, except those that were when the index of before was made and still have the
        sha256 that it says.

        Raises:
            DataError: as `index`; the index of before stays as it was.
        """
        known, changes = None, ""
        try:
            known = read_index(folder)
        except DataError:
            changes = f"the index of {shown(folder)} could not be used, so nothing is known of changes"
        index = make_index(folder, decode=True, known=known)
        write_index(folder, index)
        return cls(folder, index, changes if known is None else differences(folder, known, index))

    @classmethod
    def index(cls, folder: Path, *, decode: bool = False) -> Self:
        """Reads every file, notes its sha256 and its size in pixels, and writes the index anew.

        Args:
            folder: the split's folder.
            decode: decode every image to its end, so that damaged ones are found now and not while training.

        Raises:
            DataError: naming the first file that cannot be read or is no image; or the index cannot be written.
        """
        index = make_index(folder, decode=decode)
        write_index(folder, index)
        return cls(folder, index)

    def __len__(self) -> int:
        return len(self._names)

    def __str__(self) -> str:
        return shown(self._folder)

    def name(self, sample: int) -> str:
        """The file's path."""
        return shown(self._folder / self._names[sample])

    def check(self) -> None:
        """Raises DataError, naming the first file, unless the folder still holds the files of the index."""
        check_listing(self._folder, self._index)

    def encoded(self, sample: int) -> bytes:
        """The bytes of one file.

        Raises:
            DataError: it cannot be read, or is not what it was when it was indexed.
        """
        path = self._folder / self._names[sample]
        content = _read(self._folder, self._names[sample], int(self.sizes[sample]))
        if hashlib.sha256(content).digest() != self.sha256[sample].tobytes():
            raise DataError(
                f"{shown(path)} is not the file that was indexed, by its sha256: copy it again; if it was changed on "
                f"purpose, {again(self._folder)}"
            )
        return content

    def pixels(self, sample: int) -> npt.NDArray[np.uint8]:
        """One image, uint8 [H, W, 3].

        Raises:
            DataError: as `encoded`, or it is cut short or cannot be decoded.
        """
        return decode_rgb(self.encoded(sample), self.name(sample))


def make_index(folder: Path, *, decode: bool = False, known: Index | None = None) -> Index:
    """The index of a folder, from its files; many are read, and decoded where that is asked for, at the same time.

    Args:
        folder: the split's folder.
        decode: decode every image to its end.
        known: an index of before. Files whose sha256 it has are not decoded again, if they were then.

    Raises:
        DataError: naming the first file that cannot be read or is no image.
    """
    _pillow(shown(folder))
    listing = list_folder(folder)
    total = len(listing.names)
    known = known if known is not None and known.decoded else None
    rows_known = np.full(total, -1) if known is None else rows_of(listing, known)
    inspect = partial(_inspect, folder, listing, decode, known, rows_known)
    rows: list[tuple[int, int, bytes]] = []
    plain = f"indexing {shown(folder)}, {total} images"
    with progress(total, f"indexing {shown(folder.name)}", unit="images", plain=plain) as advance:
        pool = ThreadPoolExecutor(min(16, 2 * (os.cpu_count() or 1)))  # reading and sha256 do not hold Python's lock
        try:
            for part in pool.map(inspect, range(0, total, CHUNK)):
                rows += part
                advance(len(part))
        finally:
            pool.shutdown(cancel_futures=True)  # after an error or Ctrl-C, what has not begun is not waited for
    heights, widths, digests = zip(*rows, strict=True)
    sha256 = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32)
    return Index(listing, np.array(heights, np.int64), np.array(widths, np.int64), sha256, decode)


def _inspect(
    folder: Path, listing: Listing, decode: bool, known: Index | None, rows_known: npt.NDArray[np.int64], start: int
) -> list[tuple[int, int, bytes]]:
    """(height, width, sha256) of CHUNK files; the sizes are those of their headers."""
    rows = []
    for number in range(start, min(start + CHUNK, len(listing.names))):
        name, row = listing.names[number], int(rows_known[number])
        content = _read(folder, name, int(listing.sizes[number]))
        digest = hashlib.sha256(content).digest()
        if known is not None and row >= 0 and known.sha256[row].tobytes() == digest:
            rows.append((int(known.heights[row]), int(known.widths[row]), digest))
            continue
        with _decoding(shown(folder / name), content) as image:
            width, height = image.size
            if decode:
                image.convert("RGB")
        rows.append((height, width, digest))
    return rows


def _read(folder: Path, name: str, size: int) -> bytes:
    """A plain file of `size` bytes."""
    path = folder / name
    if size > LARGEST_FILE:
        raise DataError(f"{shown(path)} has {size} bytes, more than {LARGEST_FILE >> 20} MiB: it is no training image")
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            found = os.fstat(file.fileno())
            content = file.read(size + 1) if stat.S_ISREG(found.st_mode) else b""
    except OSError as error:
        raise DataError(f"{shown(path)} cannot be read ({error.strerror}): copy it there again") from None
    if len(content) != size:
        what = f"has {found.st_size} bytes, not {size}" if stat.S_ISREG(found.st_mode) else "is no plain file"
        raise DataError(f"{shown(path)} {what} as when it was indexed: copy it again; {again(folder)}")
    return content


def _open_at_once(path: str, flags: int) -> int:
    """Where a pipe has taken the file's place, opening it does not wait for a writer."""
    return os.open(path, flags | os.O_NONBLOCK)


def decode_rgb(content: bytes, name: str) -> npt.NDArray[np.uint8]:
    """The pixels of an image file as RGB, uint8 [H, W, 3]: grey in three equal channels, without transparency.

    Raises:
        DataError: it cannot be decoded to its end, or has more than 8 bits a channel; names `name`.
    """
    with _decoding(name, content) as image:
        return np.array(image.convert("RGB"))


@contextmanager
def _decoding(name: str, content: bytes) -> Iterator[Image]:
    """An image file as Pillow opens it. Whatever Pillow raises inside becomes a DataError."""
    image_module = _pillow(name)
    try:
        with image_module.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.mode in DEEP:
                raise DataError(f"{name} has more than 8 bits a channel: convert it to 8 bits")
            yield image
    except DataError:
        raise
    except Exception as error:  # of damaged bytes, decoders raise nearly everything
        cause = " ".join(str(error).partition(" <_io")[0].split()) or type(error).__name__
        raise DataError(f"{name} is damaged or no image ({cause}): copy it again, or remove it") from None


def _pillow(what: str) -> ModuleType:
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError(f"reading {what} needs Pillow ({error}): pip install pillow") from None
    return Image
