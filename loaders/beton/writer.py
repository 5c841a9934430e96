"""Writing .beton files: in a process of its own that is watched, under another name until all of it is verified."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..child_process import command, environment, process_state
from ..errors import DataError
from ..progress import progress
from ..source import ImageSource, Place
from ..sources import open_source
from ..split import Split
from .origin import Origin, checked_images, fingerprint, origin_of
from .publish import locked, publish, temporary
from .source import digests_beside, validate

CHILD = "hardfast.loaders.beton.child"
PATIENCE_SECONDS = 60.0
END_SECONDS = 5.0  # that a killed process is waited for
START_SECONDS = 120.0  # for a process to import torch, on whatever disk that lies
STOPPED_SECONDS = 1.0
POLL_SECONDS = 0.2
HINTS = {
    signal.SIGKILL: ", perhaps because memory ran out",
    signal.SIGBUS: ", since a mapped file could not be read: check the disk, and that nothing cuts files short",
}


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
    """Writes images and labels to a .beton file, and beside it NAME.beton.sha256 and what it was made of.

    Plain JPEGs (8 bits, grey or colour, Huffman coded) are stored as they are, all other images as plain pixels.
    A process of its own writes NAME.beton.tmp, reads it back and compares it with the source; only then it gets its
    name, so nobody ever sees a part of a file. What a writer that was killed has left is used up by the next one.
    Where the file `is_current`, nothing is written.

    Args:
        source: an image folder, a .beton file or a split in memory (1 or 3 channels), in the order of the records.
        path: the file to write; one that is there is replaced.
        label: stands before the progress bar.
        max_side: images with a longer side are scaled down to it (Pillow's Lanczos filter) and stored as JPEGs of
            quality 90, 4:2:0.
        workers: threads that read and decode; by default one for each core, at most 16.
        quiet: no progress bar.
        patience: seconds without any progress after which the process is given up, once it has begun.

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
    made_of = fingerprint(source)
    if is_current(path, made_of, max_side, quiet=quiet):
        return digests_beside(path)[0]
    job: dict[str, Any] = {
        "parent": os.getpid(),
        "path": str(path),
        "temporary": str(temporary(path)),
        "max_side": max_side,
        "workers": workers or min(16, len(os.sched_getaffinity(0))),
    }
    total = 2 * len(source)  # each image is written and compared
    bar = progress(total, label, unit="images", plain=f"{label}, {len(source)} images, to {path}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path) as lock, nullcontext(lambda done: None) if quiet else bar as advance:
            if isinstance(source, Split):
                job |= into_memory(source)
            else:
                job |= {"kind": source.place.kind, "place": source.place.path}
            try:
                digest = _supervise(job, path, lock, advance, patience)
                publish(path, digest, None if made_of is None else Origin(made_of, max_side))
            finally:
                temporary(path).unlink(missing_ok=True)
                if "memory" in job:
                    os.close(job["memory"])
        return digest
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error.strerror}): check the disk and the folder") from None


def is_current(path: Path, source: str | None, max_side: int | None, *, quiet: bool = False) -> bool:
    """Whether a file is what `write_beton` would write again; before the answer is yes, all of it is read and checked.

    Args:
        path: the .beton file.
        source: the `fingerprint` of the images; where that is None, the answer is no.
        max_side: pixels that the longer side of an image has at most.
        quiet: no progress bar.
    """
    if source is None or origin_of(path) != Origin(source, max_side):
        return False
    try:
        return validate(path, quiet=quiet).sha256 is not None
    except DataError:
        return False


def into_memory(split: Split) -> dict[str, Any]:
    """Copies a split into a file in memory, of which nothing stays when its last process has ended."""
    images = checked_images(split.images)
    descriptor = os.memfd_create("hardfast-split")
    with open(descriptor, "wb", closefd=False) as file:
        file.write(split.labels.numpy(force=True).astype("<i8").tobytes())
        file.write(np.ascontiguousarray(images).data)
    return {"memory": descriptor, "shape": list(images.shape)}


def _supervise(job: dict[str, Any], path: Path, lock: int, advance: Callable[[int], object], patience: float) -> str:
    """Runs the process that writes, until it says that all is well; returns the sha256 of what it wrote."""
    process = None
    with tempfile.TemporaryFile() as log:
        try:
            process = subprocess.Popen(
                [*command(CHILD), json.dumps(job)],
                env=environment(),
                stdin=subprocess.PIPE,  # closed by whatever ends this process or drops its handle on the other
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches this process alone, which then ends the other
                pass_fds=(lock, job["memory"]) if "memory" in job else (lock,),
            )
            return _follow(process, path, log, advance, patience)
        finally:
            if process is not None:
                process.kill()
                with suppress(subprocess.TimeoutExpired):  # one that hangs over a dead disk ends when that answers
                    process.wait(END_SECONDS)
                for pipe in (process.stdin, process.stdout):
                    if pipe is not None:
                        pipe.close()


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
    begun = False
    while True:
        if select.select([pipe], [], [], POLL_SECONDS)[0]:
            received = os.read(pipe, 1 << 16)
            if not received:
                raise DataError(obituary(process, path, log))
            *lines, rest = (rest + received).split(b"\n")
            heard = time.monotonic()
            for message in map(json.loads, lines):
                if "error" in message:
                    raise DataError(message["error"])
                if "sha256" in message:
                    advance(2 * message["images"] - sum(counts.values()))
                    return str(message["sha256"])
                begun = True
                for phase, count in message.items():
                    advance(count - counts[phase])
                    counts[phase] = count
        now = time.monotonic()
        if process_state(process.pid) not in ("T", "t"):
            running = now
        if now - running > STOPPED_SECONDS:
            raise DataError(f"{path} was not written: process {process.pid} that wrote it was stopped, start again")
        if now - heard > (patience if begun else max(patience, START_SECONDS)):
            at = f"after {counts['written']} images" if begun else "at its start"
            raise DataError(
                f"{path} was not written: process {process.pid} made no progress {at} in {now - heard:.0f} s; check "
                "that the disks respond and start again"
            )


def obituary(process: subprocess.Popen[bytes], path: Path, log: IO[bytes]) -> str:
    """Why the process that wrote a file has ended without a word; `log` is what it printed."""
    status = process.wait()
    if status < 0:
        sent = signal.Signals(-status)
        cause = f"was killed by {sent.name}{HINTS.get(sent, '')}"
    else:
        log.seek(0)
        lines = log.read().decode(errors="replace").strip().splitlines()
        cause = f"ended with status {status} ({lines[-1] if lines else 'without a message'})"
    return f"{path} was not written: process {process.pid} that wrote it {cause}; start again"
