"""Files that a crash leaves whole or absent, and reading that no odd file can mislead or hang.

Every call here that changes a disk is one of `os`, and each error names the file that it was about.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

CHUNK = 1 << 20
FULL = (errno.ENOSPC, errno.EDQUOT)


class OddFile(ValueError):
    """What should be a plain file of a reasonable size is none."""


def write_folder(folder: Path, files: Iterable[tuple[str, bytes]]) -> None:
    """Makes a folder of new files, and returns when all of it is on the disk.

    All are written before the first is waited for: the disk works on one while the next is made and written. Of their
    contents one is held at a time.

    Raises:
        OSError: naming the file that could not be written; part of the folder may be there.
    """
    descriptors: dict[Path, int] = {}
    folder.mkdir()
    try:
        for name, content in files:
            path = folder / name
            with _named(path):
                descriptors[path] = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
                rest = memoryview(content)
                while rest:
                    rest = rest[os.write(descriptors[path], rest) :]
            del content, rest
        for path, descriptor in descriptors.items():
            with _named(path):
                os.fsync(descriptor)
    finally:
        for path, descriptor in descriptors.items():
            with _named(path):
                os.close(descriptor)
    sync_folder(folder)


def make_folder(folder: Path) -> None:
    """Makes a folder and those above it, and brings the entries of the new ones to the disk."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Brings the entries of a folder to the disk: what was made, renamed or removed in it."""
    with _named(folder):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove(path: Path) -> None:
    """Removes a folder with all that it holds, or a file, or a link but not what it leads to."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    except OSError as error:  # of a file in it, it has the name alone
        raise OSError(error.errno, error.strerror, str(path)) from None


def digest(path: Path) -> tuple[int, str]:
    """Size in bytes and sha256, in hexadecimal, of a plain file.

    Raises:
        OSError: it is missing or cannot be read.
        OddFile: it is no plain file.
    """
    found, size = hashlib.sha256(), 0
    with _plain(path) as descriptor:
        while chunk := os.read(descriptor, CHUNK):
            found.update(chunk)
            size += len(chunk)
    return size, found.hexdigest()


def read(path: Path, *, largest: int | None = None) -> bytes:
    """The content of a plain file, read into its final place: it needs no more memory than the file has bytes.

    Raises:
        OSError: it is missing or cannot be read.
        OddFile: it is no plain file, or has more than `largest` bytes.
    """
    with _plain(path) as descriptor:
        size = os.fstat(descriptor).st_size
        if largest is not None and size > largest:
            raise OddFile(f"{path} has {size} bytes, which is more than any such file has ({largest})")
        return FileIO(descriptor, closefd=False).readall()


def size_of(path: Path) -> int:
    """Bytes of a plain file; raises as `digest`."""
    with _plain(path) as descriptor:
        return os.fstat(descriptor).st_size


def with_room(error: OSError, needed: int, folder: Path) -> OSError:
    """The error, which also says what was needed and is free where the disk was full; one line."""
    cause = error.strerror or str(error)
    if error.errno in FULL:
        cause += f" (a checkpoint needs {needed / 1e6:.1f} MB, {shutil.disk_usage(folder).free / 1e6:.1f} MB are free)"
    return OSError(error.errno, cause, error.filename)


@contextmanager
def _plain(path: Path) -> Iterator[int]:
    """A plain file opened for reading: never through a link, and without waiting for the writer of a pipe."""
    with _named(path):
        kind = os.lstat(path).st_mode  # before it is opened: opening a device may do something
        if not stat.S_ISREG(kind):
            raise OddFile(f"{path} is {_called(kind)}, not a plain file")
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            yield descriptor
        finally:
            os.close(descriptor)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Errors of the system name the file, which calls on an open one do not know."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def _called(mode: int) -> str:
    kinds = {stat.S_ISLNK: "a link", stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket"}
    return next((name for test, name in kinds.items() if test(mode)), "a device")
