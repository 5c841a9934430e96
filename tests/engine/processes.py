"""Real processes of the command `hardfast`: started, signalled, waited for; and what a run leaves, as a hash."""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from hardfast.engine.run_folder import RunFolder

PROGRAM = "from hardfast.engine.cli import main; main()"
ONE_THREAD = {"OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1"}
LONGEST = 300.0  # seconds that anything is waited for; nothing is asserted about the time it takes


class Process(Protocol):
    """One `hardfast`."""

    pid: int
    output: Path  # what it prints, both streams

    @property
    def code(self) -> int | None:
        """Its exit code, negative if a signal ended it; None until `poll` or `wait` has learnt of its end."""

    def poll(self) -> int | None:
        """The same, None only while it runs."""

    def wait(self) -> int:
        """The same, once it has ended; AssertionError if it has to be killed because it does not end."""


_started: list[Process] = []


class Executed:
    """A process that starts like a user's: the interpreter, then everything it imports."""

    def __init__(self, argv: list[str], output: Path) -> None:
        self.output = output
        with output.open("wb") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, *argv],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=os.environ | ONE_THREAD,
                start_new_session=True,
            )
        self.pid = self._process.pid
        _started.append(self)

    @property
    def code(self) -> int | None:
        return self._process.returncode

    def poll(self) -> int | None:
        return self._process.poll()

    def wait(self) -> int:
        return _end_of(self)


class Forked:
    """A process that `forking.py` starts."""

    def __init__(self, forge: subprocess.Popen[str], argv: list[str], output: Path) -> None:
        self._forge, self.output = forge, output
        self.code: int | None = None
        output.write_bytes(b"")  # what an earlier process said may not be taken for its words
        self.pid = self._ask(argv=argv, output=str(output))["pid"]
        _started.append(self)

    def poll(self) -> int | None:
        if self.code is None:
            self.code = self._ask(wait=self.pid)["code"]
        return self.code

    def wait(self) -> int:
        return _end_of(self)

    def _ask(self, **request: Any) -> dict[str, Any]:
        assert self._forge.stdin is not None
        assert self._forge.stdout is not None
        self._forge.stdin.write(json.dumps(request) + "\n")
        self._forge.stdin.flush()
        answer: dict[str, Any] = json.loads(self._forge.stdout.readline())
        return answer


Start = Callable[[list[str], Path], Process]


def _end_of(process: Process) -> int:
    """Its exit code; one that does not end is killed, and is an error."""
    deadline = time.monotonic() + LONGEST
    while (code := process.poll()) is None:
        if time.monotonic() > deadline:
            send(process, signal.SIGKILL)
            raise AssertionError(f"did not end in {LONGEST:.0f} s: {process.output.read_text()}")
        time.sleep(0.005)
    return code


def kill_started() -> None:
    """Kills what a test has started and not waited for, as it does where it fails."""
    while _started:
        process = _started.pop()
        if process.poll() is None:
            send(process, signal.SIGKILL)
            process.wait()


@cache
def _forge() -> subprocess.Popen[str]:
    forge = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("forking.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | ONE_THREAD,
    )
    atexit.register(forge.wait)
    atexit.register(forge.kill)  # which comes first
    return forge


def forked(argv: list[str], output: Path) -> Process:
    """A process that has imported everything already: a fork of one that does nothing else."""
    return Forked(_forge(), argv, output)


def finished(process: Process, code: int = 0) -> str:
    """Waits for a process that must end with `code`; what it said."""
    found = process.wait()
    said = process.output.read_text()
    assert found == code, f"exit code {found}: {said}"
    assert "Traceback" not in said
    return said


def wait_until(seen: Callable[[], bool], process: Process, *, pause: float = 0.001) -> bool:
    """Waits for something that can be seen from outside; False if the process ended before."""
    asked = time.monotonic()
    deadline = asked + LONGEST
    while not seen():
        now = time.monotonic()
        assert now < deadline, process.output.read_text()
        if now > asked + 0.02:  # not every time: what is waited for may last a millisecond
            if process.poll() is not None:
                return False
            asked = now
        time.sleep(pause)
    return True


def send(process: Process, number: signal.Signals) -> None:
    """A signal to a process, unless its end is known: without asking, which takes time that a save may not."""
    if process.code is None:  # so its number is still its own, even if it has ended
        os.kill(process.pid, number)


def newest_step(run: Path) -> int:
    """Of the checkpoints of a run; 0 if there is none."""
    names = (path.name for path in (run / "checkpoints").glob("step-*"))
    return max((int(name.removeprefix("step-")) for name in names if re.fullmatch(r"step-\d{8}", name)), default=0)


def half_written(run: Path) -> set[Path]:
    """Checkpoints that are being written, or were when their process was killed."""
    return set((run / "checkpoints").glob("*.tmp-*"))


def resumption(step: int, epoch_steps: int) -> str:
    """What a process says that goes on from a checkpoint of this step."""
    return f"resuming at epoch {step // epoch_steps + 1}, step {step % epoch_steps}:"


def state_hash(run: Path) -> str:
    """One digest over all that the run's last checkpoint and its log say, but the times."""
    last, digest = RunFolder(run).checkpoint("last"), hashlib.sha256()
    for name, tensor in sorted({**last.model(), **{f"state/{k}": v for k, v in last.state().items()}}.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(_bytes(tensor))
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    digest.update(json.dumps(_timeless([json.loads(last.record.to_json()), log]), sort_keys=True).encode())
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    found: bytes = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return found


def _timeless(value: Any) -> Any:
    """The same JSON without the keys that speak of seconds."""
    if isinstance(value, dict):
        return {key: _timeless(inner) for key, inner in value.items() if "seconds" not in key}
    return [_timeless(inner) for inner in value] if isinstance(value, list) else value
