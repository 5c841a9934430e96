"""The feeder process: runs one backend and copies its batches into the ring.

It reads requests from its standard input, a line of JSON each: first what to open (`FeedSpec`, the ring), then `epoch`,
followed by the bytes of its order and boxes, and `free`, a slot that the parent has no more use for. It answers, a line
of JSON each, on a pipe of its own, since libraries print to standard output: `ready`, `batch`, `error`.

It lives no longer than its parent: the kernel kills it when the parent dies, and it leaves when its input ends. It
leads its own process group, so that what it started can be ended with it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from ..child_process import die_with_parent
from ..errors import DataError
from ..sources import open_source
from .backends import open_backend
from .ring import Ring
from .spec import Backend, Decoded, FeedSpec

MOST_SAID = 1000  # characters


@dataclass(slots=True)
class Inbox:
    """What the parent asks for; filled by a thread of its own, so that it is noticed while the backend works."""

    slots: int
    changed: threading.Condition = field(default_factory=threading.Condition)
    epoch: int = -1  # number of the newest epoch that was asked for
    work: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]] | None = None  # its records and boxes, until it is begun
    free: list[int] = field(default_factory=list)

    def ask(self, epoch: int, index: npt.NDArray[np.int64], boxes: npt.NDArray[np.int64]) -> None:
        """Puts an epoch in the place of the one before it, whose slots are all free again."""
        with self.changed:
            self.epoch, self.work, self.free = epoch, (index, boxes), list(range(self.slots))
            self.changed.notify_all()

    def give_back(self, epoch: int, slot: int) -> None:
        """Marks a slot as free, if it is one of the epoch at hand."""
        with self.changed:
            if epoch == self.epoch:
                self.free.append(slot)
                self.changed.notify_all()

    def next_epoch(self) -> tuple[int, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Waits for an epoch that has not been begun."""
        with self.changed:
            self.changed.wait_for(lambda: self.work is not None)
            assert self.work is not None
            work, self.work = self.work, None
            return self.epoch, *work

    def free_slot(self, epoch: int) -> int | None:
        """Waits for a slot to write to; None once another epoch is asked for."""
        with self.changed:
            self.changed.wait_for(lambda: self.free or self.epoch != epoch)
            return self.free.pop(0) if self.epoch == epoch else None


class Outbox:
    """Messages to the parent."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = threading.Lock()

    def send(self, **message: Any) -> None:
        line = json.dumps(message).encode() + b"\n"
        with self._lock:
            while line:
                line = line[os.write(self._descriptor, line) :]

    def failed(self, error: BaseException) -> None:
        """Says what went wrong, in one line, and whether it is the data's fault."""
        said = str(error).rstrip()
        if "Original Traceback" in said:  # DataLoader's, around an error of a worker
            said = said.splitlines()[-1]
        said = " ".join(said.split())[:MOST_SAID] or type(error).__name__
        if isinstance(error, DataError):
            self.send(error=said, data=True)
        else:
            self.send(error=f"{type(error).__name__}: {said}", data=False)


def receive(stream: BinaryIO, inbox: Inbox) -> None:
    """Reads requests until the parent closes the pipe, then ends this process and all that it started."""
    while line := stream.readline():
        request = json.loads(line)
        if "free" in request:
            inbox.give_back(request["epoch"], request["free"])
        else:
            count = request["samples"]
            index = np.frombuffer(stream.read(8 * count), np.int64)
            boxes = np.frombuffer(stream.read(32 * count), np.int64).reshape(-1, 4)
            inbox.ask(request["epoch"], index, boxes)
    os.killpg(0, signal.SIGKILL)


def serve(backend: Backend, ring: Ring, inbox: Inbox, outbox: Outbox) -> None:
    """Epoch after epoch, until the process ends.

    Raises:
        Whatever the backend raises.
    """
    while True:
        epoch, index, boxes = inbox.next_epoch()
        with closing(backend.batches(index, boxes)) as batches:  # type: ignore[type-var]  # they are generators
            for number, decoded in enumerate(batches):
                slot = inbox.free_slot(epoch)
                if slot is None:
                    break
                _copy(decoded, ring, slot)
                outbox.send(batch=number, epoch=epoch, slot=slot)


def _copy(decoded: Decoded, ring: Ring, number: int) -> None:
    slot = ring.slot(number)
    slot.images[:], slot.index[:], slot.labels[:] = decoded.images, decoded.index, decoded.labels


def main() -> None:
    """Opens what the first line of the input says, and serves."""
    # Away from sys.stdin: processes that a backend forks close that, and would wait for the lock of our reading thread.
    requests = os.fdopen(os.dup(0), "rb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    opening = json.loads(requests.readline())
    die_with_parent(opening["parent"])
    spec = FeedSpec.from_json(opening["spec"])
    outbox = Outbox(opening["answers"])
    inbox = Inbox(opening["slots"])
    threading.Thread(target=receive, args=(requests, inbox), daemon=True).start()
    threading.excepthook = lambda args: outbox.failed(args.exc_value or RuntimeError("a thread failed"))
    try:
        ring = Ring((spec.batch_size, spec.height, spec.width, 3), opening["slots"], opening["ring"])
        backend = open_backend(spec, open_source(spec.place))
        outbox.send(ready=True)
        serve(backend, ring, inbox, outbox)
    except BaseException as error:  # of any kind: the parent has to know
        outbox.failed(error)
        sys.stdout.flush()
        os._exit(1)  # at once: threads of a library that failed may not end by themselves


if __name__ == "__main__":
    main()
