"""Writing .beton files: in a process of its own that is watched, under another name until all of it is verified."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np

from .beton import sidecar
from .dataset import Split
from .errors import DataError
from .progress import progress
from .source import ImageSource, Place, open_source

CHILD = "hardfast.loaders.beton_child"
PATIENCE_SECONDS = 60.0
STOPPED_SECONDS = 1.0
POLL_SECONDS = 0.2


def write_beton(
    source: Place | ImageSource | Split,
    path: Path,
    *,
    label: str,
    max_side: int | None = None,
    workers: int | None = None,
    quiet: bool = False,
    patience: float = PATIENCE_SECONDS,
) -> str:
    """Writes images and labels to a .beton file and its sha256 to NAME.beton.sha256 beside it.

    Plain JPEGs (8 bits, grey or colour, Huffman coded) are stored as they are, all other images as plain pixels.
    A process of its own writes NAME.beton.tmp-PID, reads it back and compares it with the source; only then it gets its
    name, so nobody ever sees a part of a file. What a writer that was killed has left is removed by the next one.

    Args:
        source: an image folder, a .beton file or a split in memory (1 or 3 channels), in the order of the records.
        path: the file to write; one that is there is replaced.
        label: stands before the progress bar.
        max_side: images with a longer side are scaled down to it (Pillow's Lanczos filter) and stored as JPEGs of
            quality 90, 4:2:0.
        workers: threads that read and decode; by default one for each core, at most 16.
        quiet: no progress bar.
        patience: seconds without any progress after which the process is given up.

    Returns:
        The sha256 of the file.

    Raises:
        DataError: an image cannot be read or stored (it is named), the process was killed or stopped or got stuck, or
            the disk is full. No file is left behind, and one of that name stays as it was.
    """
    if max_side is not None and max_side < 1:
        raise DataError(f"a largest side of {max_side} pixels leaves nothing of an image: give 1 or more")
    if isinstance(source, Place):
        source = open_source(source)
    path = path.absolute()
    job: dict[str, Any] = {
        "parent": os.getpid(),
        "path": str(path),
        "max_side": max_side,
        "workers": workers or min(16, len(os.sched_getaffinity(0))),
    }
    total = 2 * len(source)  # each image is written and compared
    bar = progress(total, label, unit="images", plain=f"{label}, {len(source)} images, to {path}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_remains(path)
        with nullcontext(lambda done: None) if quiet else bar as advance:
            if isinstance(source, Split):
                job |= into_memory(source)
            else:
                job |= {"kind": source.place.kind, "place": source.place.path}
            try:
                return _supervise(job, path, advance, patience)
            finally:
                if "memory" in job:
                    os.close(job["memory"])
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error.strerror}): check the disk and the folder") from None


def into_memory(split: Split) -> dict[str, Any]:
    """Copies a split into a file in memory, of which nothing stays when its last process has ended."""
    images = split.images.numpy(force=True)
    shape = images.shape
    if images.dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3):
        raise DataError(f"images of {images.dtype} {list(shape)} cannot be written: give uint8 [N, H, W, 1 or 3]")
    descriptor = os.memfd_create("hardfast-split")
    with open(descriptor, "wb", closefd=False) as file:
        file.write(split.labels.numpy(force=True).astype("<i8").tobytes())
        file.write(np.ascontiguousarray(images).data)
    return {"memory": descriptor, "shape": list(shape)}


def _supervise(job: dict[str, Any], path: Path, advance: Callable[[int], object], patience: float) -> str:
    """Runs the process that writes, and gives its file the name once it says that all is well."""
    process = None
    with tempfile.TemporaryFile() as log:
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", CHILD, json.dumps(job)],
                stdin=subprocess.PIPE,  # closed by whatever ends this process or drops its handle on the other
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches this process alone, which then ends the other
                pass_fds=(job["memory"],) if "memory" in job else (),
            )
            digest = _follow(process, path, log, advance, patience)
            _publish(_temporary(path, process.pid), path, digest)
            return digest
        finally:
            if process is not None:
                process.kill()
                process.wait()
                for pipe in (process.stdin, process.stdout):
                    if pipe is not None:
                        pipe.close()
                _temporary(path, process.pid).unlink(missing_ok=True)


def _follow(
    process: subprocess.Popen[bytes], path: Path, log: IO[bytes], advance: Callable[[int], object], patience: float
) -> str:
    """Reads what the process tells until it is done.

    Returns:
        The sha256 of the file it has written.

    Raises:
        DataError: what it tells, or that it tells nothing any more.
    """
    if process.stdout is None:
        raise TypeError("the process was started without a pipe")
    pipe, rest = process.stdout.fileno(), b""
    counts = {"written": 0, "compared": 0}
    heard = running = time.monotonic()
    while True:
        if select.select([pipe], [], [], POLL_SECONDS)[0]:
            received = os.read(pipe, 1 << 16)
            if not received:
                raise DataError(_obituary(process, path, log))
            *lines, rest = (rest + received).split(b"\n")
            heard = time.monotonic()
            for message in map(json.loads, lines):
                if "error" in message:
                    raise DataError(message["error"])
                if "sha256" in message:
                    advance(2 * message["images"] - sum(counts.values()))
                    return str(message["sha256"])
                for phase, count in message.items():
                    advance(count - counts[phase])
                    counts[phase] = count
        now = time.monotonic()
        if process_state(process.pid) not in ("T", "t"):
            running = now
        if now - running > STOPPED_SECONDS:
            raise DataError(f"{path} was not written: process {process.pid} that wrote it was stopped, start again")
        if now - heard > patience:
            raise DataError(
                f"{path} was not written: process {process.pid} made no progress in {patience:g} s; check that the "
                "disks respond and start again"
            )


def _obituary(process: subprocess.Popen[bytes], path: Path, log: IO[bytes]) -> str:
    """Why the process has ended without a word."""
    status = process.wait()
    if status < 0:
        cause = f"was killed by {signal.Signals(-status).name}, perhaps because memory ran out"
    else:
        log.seek(0)
        lines = log.read().decode(errors="replace").strip().splitlines()
        cause = f"ended with status {status} ({lines[-1] if lines else 'without a message'})"
    return f"{path} was not written: process {process.pid} that wrote it {cause}; start again"


def _temporary(path: Path, process: int) -> Path:
    return path.with_name(f"{path.name}.tmp-{process}")


def _publish(temporary: Path, path: Path, digest: str) -> None:
    """Gives a verified file its name. At any moment the sidecar is that of the file, or there is none."""
    beside = sidecar(path)
    part = _temporary(beside, os.getpid())
    beside.unlink(missing_ok=True)
    _sync_folder(path.parent)
    temporary.replace(path)
    try:
        with part.open("w", encoding="utf-8") as file:
            file.write(f"{digest}  {path.name}\n")
            file.flush()
            os.fsync(file.fileno())
        part.replace(beside)
    finally:
        part.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def process_state(process: int) -> str | None:
    """The letter that Linux has for what a process does (`T` is stopped); None where there is none of that number."""
    try:
        return Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return None


def _remove_remains(path: Path) -> None:
    """Removes what earlier writers of the same file have left that were killed together with their parents.

    Raises:
        DataError: one of them is still writing.
    """
    for entry in list(os.scandir(path.parent)):
        for name in (path.name, sidecar(path).name):
            number = entry.name.removeprefix(f"{name}.tmp-")
            if number == entry.name or not number.isdecimal():
                continue
            if _is_writer(int(number)):
                raise DataError(f"{path} is being written by process {number}: wait until it has ended")
            with suppress(FileNotFoundError):
                os.unlink(entry.path)


def _is_writer(process: int) -> bool:
    """Whether that process writes a .beton file, and does not only have the number of one that did."""
    if process_state(process) in (None, "Z", "X"):
        return False
    try:
        return CHILD.encode() in Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return False
