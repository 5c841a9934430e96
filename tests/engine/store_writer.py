"""Writers of checkpoints that die, or meet an error of the system, at one call of their choice.

Run as a program, this imports the engine once and forks a writer for every line of its input: a request as JSON,
answered by how the writer ended. A writer saves step after step into the store of the request. In its process alone,
the functions of `os` that change a disk are wrapped: each call is a point with a name like `fsync train.json` or
`rename temporary to step`, and at the point of the request, before it, after it or half through a write, the writer
kills itself by SIGKILL or raises an OSError. It notes that on disk first.

Used by tests as `Writers`.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

WRAPPED = ("mkdir", "open", "write", "fsync", "close", "rename", "unlink", "rmdir")
NOBODY = 65534  # a user without rights
ENDED_BY_KILL = -signal.SIGKILL
LONGEST = 120  # seconds; a writer that still runs then is stuck, and ended by the system


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a writer does.

    Attributes:
        folder: of the store.
        notes: a folder for what the writer says: `saved`, a line for each step and version that was saved whole;
            `points`, the names of the points of its last save; `fired`, the point of the fault; `error`, what the
            faulty save raised.
        first, last: the steps.
        twice: each step is saved twice, with other content, as an epoch's end is after a save in mid-epoch.
        plain: writes the files in place instead, as one does without a store.
        fault_in: the save, counted from 0, that the fault is in, with the pruning after it; -1 for none.
        point: which of its calls, counted from 0; -1 for none.
        when: before, half (through a write) or after.
        error: the errno that is raised; 0 for a kill.
        as_nobody: the last save is made as a user without rights.
        largest: bytes that a file of the last save can have; 0 for any.
    """

    folder: str
    notes: str
    first: int = 1
    last: int = 3
    twice: bool = False
    plain: bool = False
    fault_in: int = -1
    point: int = -1
    when: str = "before"
    error: int = 0
    as_nobody: bool = False
    largest: int = 0


def content(step: int, version: int) -> dict[str, Tensor]:
    """The tensors of one save, each element of which tells which one it is."""
    return {"a": torch.full((40, 50), step + version / 4), "count": torch.tensor(step)}


def record(step: int) -> Any:
    """What train.json of a step holds."""
    from hardfast.engine.models import NetShape
    from hardfast.engine.record import Best, Counters, Record

    at = Counters(epoch=1, step=0, total=step, step_seconds=0.1, wall_seconds=0.25)
    return Record(at=at, best=Best(step=best(step), epoch=1, score=50.0), net=NetShape(num_classes=10, in_channels=3))


def best(step: int) -> int:
    """The step of the best checkpoint so far, which pruning keeps: sometimes this one, sometimes an older one."""
    return step - step % 3 if step >= 3 else 1


def sign(path: Path) -> None:
    """Makes the manifest of a checkpoint that of its files as they are now."""
    entries = {}
    for name in ("model.safetensors", "state.safetensors", "train.json"):
        data = (path / name).read_bytes()
        entries[name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (path / "MANIFEST.json").write_text(json.dumps(entries, indent=2) + "\n")


class Writers:
    """The program, running; each request is one forked writer."""

    def __init__(self) -> None:
        self._program = subprocess.Popen(
            [sys.executable, "-m", "tests.engine.store_writer"],
            cwd=Path(__file__).parent.parent.parent,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        atexit.register(self._program.kill)

    def run(self, request: Request) -> int:
        """How the writer ended: its exit code, or the number of the signal as a negative one."""
        assert self._program.stdin is not None
        assert self._program.stdout is not None
        Path(request.notes).mkdir(exist_ok=True, parents=True)
        self._program.stdin.write(json.dumps(asdict(request)) + "\n")
        self._program.stdin.flush()
        code = int(self._program.stdout.readline())
        assert code != -signal.SIGALRM, f"a writer was stuck: {request}"
        return code


@cache
def writers() -> Writers:
    """One program for all tests of a session."""
    return Writers()


class Faults:
    """The wrapped functions, and the fault at one of their calls."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.points: list[str] = []  # of the save at hand
        self.armed = False
        self._paths: dict[int, str] = {}
        self._written: set[int] = set()  # descriptors of files that are written
        self._real = {name: getattr(os, name) for name in WRAPPED}
        for name in WRAPPED:
            setattr(os, name, self._wrapper(name))

    def _wrapper(self, name: str) -> Callable[..., Any]:
        real = self._real[name]

        def call(*words: Any, **options: Any) -> Any:
            if name == "open" and not words[1] & os.O_CREAT:  # to read or to sync
                descriptor = real(*words, **options)
                self._paths[descriptor] = str(words[0])
                self._written.discard(descriptor)
                return descriptor
            if name == "close" and words[0] not in self._written:
                return real(*words, **options)
            here = len(self.points)
            self.points.append(self._called(name, words))
            due = self.armed and here == self.request.point
            if due and self.request.when == "before":
                self._strike(words[0], *(words[1:2] if name == "rename" else ()))
            if due and self.request.when == "half":
                real(words[0], words[1][: len(words[1]) // 2])
                self._strike()
            found = real(*words, **options)
            if name == "open":
                self._paths[found] = str(words[0])
                self._written.add(found)
            if due and self.request.when == "after":
                self._strike()
            return found

        return call

    def _called(self, name: str, words: tuple[Any, ...]) -> str:
        paths = [self._paths.get(word, "?") if isinstance(word, int) else str(word) for word in words[:2]]
        called = ["store" if path == self.request.folder else role(path) for path in paths]
        return f"{name} {called[0]} to {called[1]}" if name == "rename" else f"{name} {called[0]}"

    def _strike(self, *paths: Any) -> None:
        """Kills, or raises as the system does: with the path that the call was given, if it was given one."""
        self.armed = False
        self.note("fired", f"{self.request.when} {self.points[-1]}")
        if not self.request.error:
            os.kill(os.getpid(), signal.SIGKILL)
        error = OSError(self.request.error, os.strerror(self.request.error))
        if paths and not isinstance(paths[0], int):
            error.filename, error.filename2 = str(paths[0]), str(paths[1]) if len(paths) > 1 else None
        raise error

    def note(self, kind: str, line: str) -> None:
        """Adds a line to a file of the notes, by the real functions."""
        path = os.path.join(self.request.notes, kind)
        descriptor = self._real["open"](path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        self._real["write"](descriptor, (line + "\n").encode())
        self._real["close"](descriptor)


def role(path: str) -> str:
    """A path by what it is to the store: step, aside, temporary, gone, or the file's or folder's own name."""
    name = path.rpartition("/")[2]
    for pattern, found in (
        (r"step-\d+", "step"),
        (r"step-\d+\.old", "aside"),
        (r"step-\d+(\.old)?\.tmp-gone", "gone"),
        (r"step-\d+\.tmp-\d+", "temporary"),
    ):
        if re.fullmatch(pattern, name):
            return found
    return name


def write(request: Request) -> None:
    """The writer: saves and prunes, and dies if that is its request."""
    from hardfast.engine.checkpoint import CheckpointStore

    faults = Faults(request)
    folder = Path(request.folder)
    store = CheckpointStore(folder)
    saves = [(step, version) for step in range(request.first, request.last + 1) for version in range(1 + request.twice)]
    for number, (step, version) in enumerate(saves):
        faults.points.clear()
        faults.armed = number == request.fault_in
        if number == len(saves) - 1:
            if request.largest:
                resource.setrlimit(resource.RLIMIT_FSIZE, (request.largest, resource.RLIM_INFINITY))
            if request.as_nobody:
                os.setuid(NOBODY)
        try:
            if request.plain:
                _in_place(folder, step, version)
            else:
                tensors = content(step, version)
                minus = {key: -value for key, value in tensors.items()}
                store.save(step, model=tensors, state=minus, record=record(step))
        except Exception as error:
            told = {"type": type(error).__name__, "errno": getattr(error, "errno", None), "text": str(error)}
            faults.note("error", json.dumps(told))
            return
        faults.note("saved", f"{step} {version}")
        if not request.plain:
            try:
                store.prune(keep={step, best(step)})
            except OSError as error:
                told = {"type": type(error).__name__, "errno": error.errno, "text": str(error)}
                faults.note("error", json.dumps(told))
                return
    faults.note("points", "\n".join(faults.points))


def _in_place(folder: Path, step: int, version: int) -> None:
    """What a plain writer does: each file over the one before it."""
    from safetensors.torch import save

    folder.mkdir(exist_ok=True)
    for name, sign in (("model.safetensors", 1), ("state.safetensors", -1)):
        data = save({key: value * sign for key, value in content(step, version).items()})
        descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.write(descriptor, data)
        os.close(descriptor)


def main() -> None:
    """Serves until its input ends."""
    import safetensors.torch  # noqa: F401

    record(1).to_json()  # imports and builds all that a first save needs
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            signal.alarm(LONGEST)
            code = 1
            try:
                write(Request(**json.loads(line)))
                code = 0
            except BaseException:
                sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
            finally:
                os._exit(code)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
