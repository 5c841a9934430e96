"""The parent's side of a feeder process: starts it, hands it epochs, takes its batches, and notices when it is lost."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import DataError, LoaderDied
from .ring import Ring, Slot
from .spec import FeedSpec

STARTUP_SECONDS = 300.0  # imports and FFCV's compilation, on a machine that is busy with other work
GLANCE_SECONDS = 0.25  # between two looks at the processes while there is nothing to read
STOPPED_SECONDS = 1.0  # a process that stands still for so long was stopped, and not just suspended with its parent
FIX = "run the same command again, or choose another with --loader.name"


@dataclass(frozen=True, slots=True)
class Delivery:
    """One batch in the ring, valid until it is given back."""

    epoch: int  # the request it belongs to
    slot: int
    arrays: Slot


class Feeder:
    """A feeder process and its ring.

    Args:
        spec: what it reads and how.
        watchdog: seconds without a batch, while one is waited for, after which it counts as hung.

    Raises:
        DataError: the backend cannot be opened: its package is missing, or its data are damaged.
        LoaderDied: the process died, or did not start within five minutes.
    """

    def __init__(self, spec: FeedSpec, *, watchdog: float) -> None:
        self.spec, self.watchdog = spec, watchdog
        self.ring = Ring((spec.batch_size, spec.height, spec.width, 3), spec.ahead + 2)
        self._epoch, self._received, self._lost = -1, b"", ""
        errors = os.memfd_create("hardfast-feeder-errors")
        answers, theirs = os.pipe()
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "CUDA_VISIBLE_DEVICES": "",  # it decodes on the CPU: a context of its own would cost GPU memory
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "hardfast.loaders.streaming.child"],
            stdin=subprocess.PIPE,
            stdout=errors,
            stderr=errors,
            pass_fds=(self.ring.descriptor, theirs),
            env=environment,
            start_new_session=True,  # Ctrl-C is the parent's, and the group can be ended as one
        )
        os.close(theirs)
        assert self.process.stdin is not None
        os.set_blocking(self.process.stdin.fileno(), False)
        self._answers, self._errors = answers, errors
        self._end = weakref.finalize(self, _end, self.process, (answers, errors), self.ring)
        opening = {
            "spec": spec.to_json(),
            "parent": os.getpid(),
            "ring": self.ring.descriptor,
            "answers": theirs,
            "slots": self.ring.slots,
        }
        self._send(opening)
        self._answer(STARTUP_SECONDS)

    def epoch(self, index: npt.NDArray[np.int64], boxes: npt.NDArray[np.int64]) -> Iterator[Delivery]:
        """The batches of these records and boxes; asking for another epoch ends this one.

        Args:
            index: [batches * batch_size].
            boxes: [batches * batch_size, 4].

        Raises:
            DataError: an image is damaged.
            LoaderDied: the process died, was stopped, or delivers nothing.
        """
        if not len(index):
            return
        self._epoch += 1
        own = self._epoch
        self._send({"epoch": own, "samples": len(index)}, index.tobytes(), boxes.tobytes())
        for number in range(len(index) // self.spec.batch_size):
            while True:
                if self._epoch != own:
                    return
                answer = self._answer(self.watchdog)
                if answer["epoch"] == own:
                    break
            if answer["batch"] != number:
                raise self._died(f"delivered batch {answer['batch']} in place of {number}")
            yield Delivery(own, answer["slot"], self.ring.slot(answer["slot"]))

    def give_back(self, delivery: Delivery) -> None:
        """Lets the feeder write to the delivery's slot again."""
        self._send({"free": delivery.slot, "epoch": delivery.epoch})

    def close(self) -> None:
        """Kills the process and all that it started."""
        self._lost = self._lost or "was closed"
        self._end()

    def _send(self, message: dict[str, Any], *payload: bytes) -> None:
        """Writes a request; never waits for a process that does not read."""
        self._check_usable()
        assert self.process.stdin is not None
        pipe, watch = self.process.stdin.fileno(), _Watch(self.process, self.watchdog)
        for part in (json.dumps(message).encode() + b"\n", *payload):
            rest = memoryview(part)
            while rest:
                _, writable, _ = select.select([], [pipe], [], GLANCE_SECONDS)
                try:
                    rest = rest[os.write(pipe, rest) if writable else 0 :]
                except BlockingIOError:
                    continue
                except BrokenPipeError:
                    self._answer(GLANCE_SECONDS)  # says what it died of
                    raise self._died("has closed its input") from None
                if not writable and (trouble := watch.trouble()):
                    raise self._died(trouble)

    def _answer(self, limit: float) -> dict[str, Any]:
        """The next message; raises what it tells of, or why none comes."""
        self._check_usable()
        watch = _Watch(self.process, limit)
        while b"\n" not in self._received:
            if not self._readable() and (trouble := watch.trouble()) and not self._readable():
                raise self._died(trouble)
        line, _, self._received = self._received.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            if answer["data"]:
                self._lost = "ended with an error"
                self._end()
                raise DataError(answer["error"])
            raise self._died(f"failed ({answer['error']})")
        return answer

    def _check_usable(self) -> None:
        if self._lost:
            raise LoaderDied(f"the {self.spec.backend} loader {self._lost}: {FIX}")

    def _readable(self) -> bool:
        """Waits for a glance; whether there was something to read, which is then in `_received`."""
        ready, _, _ = select.select([self._answers], [], [], GLANCE_SECONDS)
        some = os.read(self._answers, 1 << 16) if ready else b""
        self._received += some
        return bool(some)

    def _last_words(self) -> str:
        """The last line that the process wrote, in brackets."""
        size = os.fstat(self._errors).st_size
        lines = os.pread(self._errors, 4096, max(0, size - 4096)).decode(errors="replace").split("\n")
        words = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f" ({words[:200]})" if words else ""

    def _died(self, what: str) -> LoaderDied:
        self._lost = what + self._last_words()
        self._end()
        what = self._lost
        return LoaderDied(f"the {self.spec.backend} loader of {self.spec.place.path} {what}: {FIX}")


class _Watch:
    """Looks after a process while something of it is waited for, for `limit` seconds at most."""

    def __init__(self, process: subprocess.Popen[bytes], limit: float) -> None:
        self._process, self._limit = process, limit
        self._began = time.monotonic()
        self._stopped_since: float | None = None

    def trouble(self) -> str | None:
        """What is wrong with the process; None while it may be waited for."""
        code, now = self._process.poll(), time.monotonic()
        if code is not None:
            return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        stopped = stopped_process(self._process.pid)
        self._stopped_since = None if stopped is None else self._stopped_since or now
        if self._stopped_since is not None and now - self._stopped_since > STOPPED_SECONDS:
            return f"has been stopped (process {stopped}, by a signal such as SIGSTOP)"
        if now - self._began > self._limit:
            return f"has done nothing for {self._limit:.0f} s"
        return None


def _end(process: subprocess.Popen[bytes], descriptors: tuple[int, ...], ring: Ring) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert process.stdin is not None
    process.stdin.close()
    for descriptor in descriptors:
        os.close(descriptor)
    ring.close()


def stopped_process(pid: int) -> int | None:
    """A process that stands still because of a signal, out of `pid` and its descendants; None if all of them run."""
    waiting = [pid]
    while waiting:
        current = waiting.pop()
        try:
            state = Path(f"/proc/{current}/stat").read_text().rpartition(")")[2].split()[0]
            if state in "Tt":
                return current
            for task in os.listdir(f"/proc/{current}/task"):
                waiting += map(int, Path(f"/proc/{current}/task/{task}/children").read_text().split())
        except (OSError, IndexError):  # it has ended meanwhile
            continue
    return None
