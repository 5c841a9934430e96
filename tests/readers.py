"""Readers of files from elsewhere in processes with little memory and little time, and one that obeys every pickle.

Run as a program, this imports the engine once and forks a reader for every line of its input: a request as JSON,
answered by what the reader said. A reader that needs more memory or processor time than it has is killed by the system
or fails.

Used by tests as `Readers`.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import json
import os
import pickle
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

MEMORY = 768 << 20  # bytes beyond what the program has when it forks
SECONDS = 5  # of the processor; a request may allow fewer
LONGEST = 300  # seconds; a reader that still runs then waits for something that does not come
SHAPES = {"a": [16, 8], "b": [40], "c": [2, 3, 4]}


class Readers:
    """The program, running; each request is one forked reader."""

    def __init__(self) -> None:
        self._program = subprocess.Popen(
            [sys.executable, "-m", "tests.readers"],
            cwd=Path(__file__).parent.parent,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        atexit.register(self._program.kill)

    def run(self, reader: str, path: Path, **options: Any) -> dict[str, Any]:
        """What a reader made of a file.

        Returns:
            ended: 0, or the number of the signal that killed it as a negative one. If 0 also type and text of what it
            raised, type "" if nothing; seconds of the processor; grown, the bytes of memory that it took.
        """
        assert self._program.stdin is not None
        assert self._program.stdout is not None
        self._program.stdin.write(json.dumps({"reader": reader, "path": str(path), **options}) + "\n")
        self._program.stdin.flush()
        answer: dict[str, Any] = json.loads(self._program.stdout.readline())
        return answer


@cache
def readers() -> Readers:
    """One program for all tests of a session."""
    return Readers()


def obey(path: Path) -> None:
    """What an unsafe reader does: everything that the file says."""
    import torch

    with contextlib.suppress(Exception):
        pickle.loads(path.read_bytes())  # noqa: S301  # its purpose
    with contextlib.suppress(Exception):  # what the code returned is no tensor
        torch.load(path, weights_only=False)


def unbounded(path: Path) -> None:
    """A reader that runs no code, and has no other bounds."""
    import torch

    torch.load(path, weights_only=True)


def weights(path: Path) -> None:
    from hardfast.engine import load_weights

    load_weights(path)


def tensors(path: Path) -> None:
    """A weight file, whatever net it is of."""
    from hardfast.engine.weight_file import read_weight_file

    read_weight_file(path)


def evaluate(path: Path) -> None:
    """The command; raises its one line as a RuntimeError if it exits with 2."""
    from hardfast.engine.cli import run

    with contextlib.redirect_stderr(io.StringIO()) as said:
        code = run(["evaluate", str(path), "--data.name", "digits", "--epsilon", "8/255"])
    if code:
        raise RuntimeError(f"{code}: {said.getvalue().strip()}")


def model(path: Path) -> None:
    from hardfast.engine import load_model

    load_model(path, checkpoint="last")


def cifar(path: Path) -> None:
    from hardfast.loaders.cifar import CIFAR10, read_cifar

    read_cifar(CIFAR10, path)


def fashion(path: Path) -> None:
    from hardfast.loaders.fashion_mnist import FILES, read_idx

    read_idx(path, FILES["train images"])


def tiny(path: Path) -> None:
    from hardfast.loaders.tiny_imagenet import read_tiny_imagenet

    read_tiny_imagenet(path)


def imagenet(path: Path) -> None:
    """The training archive, taken for the published one."""
    import hashlib
    from dataclasses import replace

    from hardfast.loaders.imagenet import PUBLISHED, Archive
    from hardfast.loaders.imagenet_archives import unpack_imagenet

    found = hashlib.md5((path / PUBLISHED.train.name).read_bytes(), usedforsecurity=False).hexdigest()
    unpack_imagenet(path, replace(PUBLISHED, train=Archive(PUBLISHED.train.name, found)))


READERS: dict[str, Callable[[Path], object]] = {
    function.__name__: function
    for function in (obey, unbounded, weights, tensors, evaluate, model, cifar, fashion, tiny, imagenet)
}


def fuzz(path: Path, seed: int, count: int) -> dict[str, float]:
    """Reads so many damaged .safetensors files, made in memory, each in SECONDS or the system ends this process.

    Returns:
        How many were refused, how many were none, and the seconds of the processor that the slowest took.

    Raises:
        AssertionError: one was refused by anything but a CheckpointError of one line.
    """
    from hardfast.engine import CheckpointError
    from hardfast.engine.checkpoint_folder import load_verified
    from hardfast.engine.weight_file import read_weight_file

    draw = random.Random(seed)
    told: dict[str, float] = {"refused": 0, "read": 0, "slowest": 0.0}
    for number in range(count):
        path.write_bytes(damaged(draw))
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # its signal, SIGPROF, is nobody's here
        began = time.process_time()
        try:
            read_weight_file(path) if number % 2 else load_verified(path, None)
            told["read"] += 1
        except CheckpointError as error:
            assert "\n" not in str(error), f"{seed}/{number}: {error}"
            told["refused"] += 1
        except BaseException as error:
            raise AssertionError(f"{seed}/{number}: {error!r}") from error
        told["slowest"] = max(told["slowest"], time.process_time() - began)
    signal.setitimer(signal.ITIMER_PROF, 0)
    return told


def damaged(draw: random.Random) -> bytes:
    """A .safetensors file with something wrong in its header."""
    header: dict[str, Any] = {}
    end = 0
    for name, shape in SHAPES.items():
        size = 4
        for length in shape:
            size *= length
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    body = bytes(end)
    odd = (-1, 0, 1, 2**31, 2**63 - 1, 2**64, 10**30, 1.5, True, None, "x", "", [], {}, [[]], "F4", "BF16", "C64")
    kind = draw.randrange(8)
    name = draw.choice(list(header))
    if kind == 0:
        header[name][draw.choice(("dtype", "shape", "data_offsets"))] = draw.choice(odd)
    elif kind == 1:
        field = draw.choice(("shape", "data_offsets"))
        header[name][field] = [draw.choice((*odd, *header[name][field])) for _ in range(draw.randrange(5))]
    elif kind == 2:
        types = ("F64", "F16", "BF16", "I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F4", "F6_E2M3", "U64", "C64", "E8")
        header[name]["dtype"] = draw.choice(types)
    elif kind == 3:
        header[draw.choice(("__metadata__", "d", "", "a\n", "\ud800"))] = draw.choice(odd)
    elif kind == 4:
        other = draw.choice(list(header))
        header[name]["data_offsets"], header[other]["data_offsets"] = (
            header[other]["data_offsets"],
            header[name]["data_offsets"],
        )
        header[name]["shape"] = [length * draw.choice((1, 1, 2, 2**20, 2**40)) for length in header[name]["shape"]]
    text = json.dumps(header).encode()
    if kind == 5:
        text = draw.choice((text[: draw.randrange(len(text))], b"[" * draw.randrange(1, 3000), text + text, b"{}", b""))
    elif kind == 6:
        changed = bytearray(text)
        for _ in range(draw.randrange(1, 4)):
            changed[draw.randrange(len(changed))] = draw.randrange(256)
        text = bytes(changed)
    length = len(text)
    if kind == 7:
        length = draw.choice((0, 1, length - 1, length + 1, 2**20, 10**8, 2**31, 2**40, 2**63, 2**64 - 1))
        body = body[: draw.randrange(len(body))] if draw.random() < 0.5 else body
    return length.to_bytes(8, "little") + text + body


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Reads what the request names, in this process, which has little memory and time from now on."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    if request["reader"] != "fuzz":
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY,) * 2)
        seconds = request.get("seconds", SECONDS) + int(time.process_time()) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    told: dict[str, Any] = {"type": "", "text": ""}
    path = Path(request["path"])
    try:
        if request["reader"] == "fuzz":
            told |= fuzz(path, request["seed"], request["count"])
        else:
            READERS[request["reader"]](path)
    except Exception as error:
        told = {"type": type(error).__name__, "text": str(error)}
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    return told | {"seconds": time.process_time() - began, "grown": grown}


def main() -> None:
    """Serves until its input ends."""
    import numpy  # noqa: F401
    import safetensors.torch  # noqa: F401
    import sklearn.datasets  # noqa: F401

    import hardfast.engine.cli  # noqa: F401

    for line in sys.stdin:
        result, inside = os.pipe()
        pid = os.fork()
        if pid == 0:
            signal.alarm(LONGEST)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.write(inside, json.dumps(answer(json.loads(line))).encode())
            os._exit(0)
        os.close(inside)
        with os.fdopen(result) as file:
            said = file.read()
        told = {"ended": os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}
        print(json.dumps(told | (json.loads(said) if said else {})), flush=True)


if __name__ == "__main__":
    main()
