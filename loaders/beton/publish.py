"""How a .beton file gets its name: one writer at a time, and at no moment a file that its sidecar does not vouch for.

The file and its sidecar cannot be replaced in one step, so that a sidecar may hold several digests, a line each, and
vouches for a file that has one of them. Whoever is killed, and wherever, leaves one of these:

    file   sidecar         origin
    old    old             old
    old    new and old     old, but ignored: it counts only beside a sidecar with its one digest
    new    new and old     old, ignored
    new    new             old, ignored, since it names another file's digest
    new    new             new

Where the old file had no sidecar, or there was no file, the new one is without it for a moment.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from ..errors import DataError
from .origin import Origin, origin_file
from .source import digests_beside, sidecar


def temporary(path: Path) -> Path:
    """What a file is called until all of it is written."""
    return path.with_name(f"{path.name}.tmp")


@contextmanager
def locked(path: Path) -> Iterator[int]:
    """Keeps all other writers of a file away, on whatever machine that shares its disk: a lock on NAME.lock beside it.

    Gives the descriptor that holds the lock. Where a process inherits it, the lock lasts until that has ended, too.

    Raises:
        DataError: another one holds the lock, or the disk has no locks.
        OSError: nothing can be written there.
    """
    lock = path.with_name(f"{path.name}.lock")
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise DataError(f"{path} is being written by another process: wait until it has ended") from None
            except OSError as error:
                raise DataError(
                    f"{path} cannot be locked ({error.strerror}): write it to another disk and copy it there"
                ) from None
            if not _is_at(lock, descriptor):
                continue  # whoever held it has removed it meanwhile
            try:
                yield descriptor
            finally:
                lock.unlink(missing_ok=True)
            return
        finally:
            os.close(descriptor)


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def publish(path: Path, digest: str, origin: Origin | None) -> None:
    """Gives the verified temporary file of `path` its name; its writer holds the lock.

    Args:
        path: the file.
        digest: its sha256.
        origin: where its images came from; None is not known.

    Raises:
        OSError: the disk refuses. Where that was before the file had its name, the old file and its sidecar stay.
    """
    beside = sidecar(path)
    before = beside.read_bytes() if beside.exists() else None
    if before is not None:
        _put(beside, _lines(path, digest, *_old_digests(path)))
    try:
        temporary(path).replace(path)
    except OSError:
        if before is not None:
            _put(beside, before)
        raise
    sync_folder(path.parent)
    _put(beside, _lines(path, digest))
    if origin is None:
        origin_file(path).unlink(missing_ok=True)
    else:
        _put(origin_file(path), json.dumps(asdict(origin) | {"sha256": digest}).encode() + b"\n")


def _old_digests(path: Path) -> tuple[str, ...]:
    """What vouches for the file that is there; nothing does for one that is not, or beside a damaged sidecar."""
    try:
        return digests_beside(path) if path.exists() else ()
    except DataError:
        return ()


def _lines(path: Path, *digests: str) -> bytes:
    """In sha256sum's format; each digest once."""
    return b"".join(digest.encode() + b"  " + os.fsencode(path.name) + b"\n" for digest in dict.fromkeys(digests))


def _put(path: Path, content: bytes) -> None:
    """Replaces a small file in one step, which is on the disk afterwards."""
    part = temporary(path)
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Returns when the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
