"""The parent's side of a feeder process: starts it, hands it epochs, takes its batches, and notices when it is lost."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..child_process import command, descendants, environment, process_state
from ..errors import DataError, LoaderDied
from .ring import Ring, Slot
from .spec import FeedSpec

STARTUP_SECONDS = 300.0  # imports and FFCV's compilation, on a machine that is busy with other work
GLANCE_MILLISECONDS = 250  # between two looks at the processes while there is nothing to read
END_SECONDS = 5.0  # that a killed process is waited for
ADVICE = "--loader.watchdog allows it more"
MOST_WORDS = 1 << 20  # bytes that are kept of what the process writes
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
        self._epoch, self._received, self._lost = -1, b"", ""
        with ExitStack() as opened:  # nothing stays open if one of these fails
            self.ring = Ring((spec.batch_size, spec.height, spec.width, 3), spec.ahead + 2)
            opened.callback(self.ring.close)
            self._errors = os.memfd_create("hardfast-feeder-errors")
            opened.callback(os.close, self._errors)
            self._answers, theirs = os.pipe()
            opened.callback(os.close, self._answers)
            try:
                self.process = subprocess.Popen(
                    command("hardfast.loaders.streaming.child"),
                    stdin=subprocess.PIPE,
                    stdout=self._errors,
                    stderr=self._errors,
                    pass_fds=(self.ring.descriptor, theirs),
                    # It decodes on the CPU: a CUDA context of its own would cost GPU memory.
                    env=environment() | {"CUDA_VISIBLE_DEVICES": ""},
                    start_new_session=True,  # Ctrl-C is the parent's, and the group can be ended as one
                )
            finally:
                os.close(theirs)
            self._end = weakref.finalize(self, _end, self.process, os.getpid(), opened.pop_all())
        assert self.process.stdin is not None
        os.set_blocking(self.process.stdin.fileno(), False)
        opening = {
            "spec": spec.to_json(),
            "parent": os.getpid(),
            "ring": self.ring.descriptor,
            "answers": theirs,
            "slots": self.ring.slots,
        }
        self._send(opening)
        self._answer(STARTUP_SECONDS, "from the start")

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
        """Lets the feeder write to the delivery's slot again; one that has ended says why at the next delivery."""
        self._send({"free": delivery.slot, "epoch": delivery.epoch}, tell=False)

    def close(self) -> None:
        """Kills the process and all that it started."""
        self._lost = self._lost or "was closed"
        self._end()

    def _send(self, message: dict[str, Any], *payload: bytes, tell: bool = True) -> None:
        """Writes a request; never waits for a process that does not read.

        Args:
            message: the request.
            payload: bytes that follow it.
            tell: raise why the process reads no more, if so.
        """
        self._check_usable()
        assert self.process.stdin is not None
        watch, poll = _Watch(self.process, self.watchdog), select.poll()
        poll.register(self.process.stdin, select.POLLOUT)
        for part in (json.dumps(message).encode() + b"\n", *payload):
            rest = memoryview(part)
            while rest:
                ready = poll.poll(GLANCE_MILLISECONDS)
                try:
                    rest = rest[os.write(self.process.stdin.fileno(), rest) if ready else 0 :]
                except BlockingIOError:
                    continue
                except BrokenPipeError:
                    while tell:  # past batches that nobody wants any more, to what it ended with
                        self._answer(self.watchdog)
                    return
                if not ready and (trouble := watch.trouble()):
                    raise self._died(trouble)

    def _answer(self, limit: float, advice: str = ADVICE) -> dict[str, Any]:
        """The next message; raises what it tells of, or why none comes."""
        self._check_usable()
        watch = _Watch(self.process, limit, advice)
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
        poll = select.poll()
        poll.register(self._answers, select.POLLIN)
        ready = poll.poll(GLANCE_MILLISECONDS)
        some = os.read(self._answers, 1 << 16) if ready else b""
        self._received += some
        if ready and not some:  # it has closed the pipe and is about to end
            time.sleep(0.01)
        if os.fstat(self._errors).st_size > MOST_WORDS:  # warnings of libraries, image after image
            os.ftruncate(self._errors, 0)
            os.lseek(self._errors, 0, os.SEEK_SET)  # the process writes at the same place
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

    def __init__(self, process: subprocess.Popen[bytes], limit: float, advice: str = ADVICE) -> None:
        self._process, self._limit, self._advice = process, limit, advice
        self._looked, self._waited, self._stood = time.monotonic(), 0.0, 0.0

    def trouble(self) -> str | None:
        """What is wrong with the process; None while it may be waited for."""
        code = self._process.poll()
        if code is not None:
            return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        # Not the whole time since the last look: this process may have been suspended itself.
        now = time.monotonic()
        passed, self._looked = min(now - self._looked, 1.0), now
        self._waited += passed
        stopped = stopped_process(self._process.pid)
        self._stood = 0.0 if stopped is None else self._stood + passed
        if self._stood > STOPPED_SECONDS:
            return f"has been stopped (process {stopped}, by a signal such as SIGSTOP)"
        if self._waited > self._limit:
            return f"has delivered nothing for {self._limit:.0f} s ({self._advice})"
        return None


def _end(process: subprocess.Popen[bytes], owner: int, opened: ExitStack) -> None:
    """Kills the process group and gives back what was opened for it."""
    if os.getpid() != owner:  # a forked copy of the parent: the feeder is not its own
        return
    with opened:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        assert process.stdin is not None
        process.stdin.close()
        with suppress(subprocess.TimeoutExpired):  # one that hangs in the kernel, over a dead disk, ends later
            process.wait(END_SECONDS)


def stopped_process(pid: int) -> int | None:
    """A process that stands still because of a signal, out of `pid` and its descendants; None if all of them run."""
    return next((one for one in (pid, *descendants(pid)) if process_state(one) in ("T", "t")), None)
