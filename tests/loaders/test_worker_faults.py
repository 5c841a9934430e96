"""Real processes that raise, are killed, stopped or hang: the loader says so within seconds, and nothing is left of it.

`make test` holds a sixth of the faults, one for each kind and backend; `make test-night` all of them.
"""

from __future__ import annotations

import gc
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

pytest.importorskip("torchvision")
pytest.importorskip("PIL")
pytest.importorskip("sklearn")

from hardfast.loaders import Augmentation, DataError, LoaderDied
from hardfast.loaders.beton.source import BetonSource
from hardfast.loaders.image_folder import FolderSource
from hardfast.loaders.source import ImageSource
from hardfast.loaders.streamed import StreamedSplit
from hardfast.loaders.streaming.loader import StreamingLoader

from .processes import Process, alive, descendants, handles, identify, resident, shared_memory, threads, within
from .sources import slow_jpeg, write_folder

IMAGES, BATCH, SIZE = 48, 4, (24, 24)
SECONDS = 5.0  # from a fault to its error, and from that until the last process is gone
WATCHDOG = 2.0
PACKAGES = {"torch": "torchvision", "dali": "nvidia.dali", "ffcv": "ffcv"}
SIGNALS = {"killed": signal.SIGKILL, "segfault": signal.SIGSEGV, "stopped": signal.SIGSTOP}
BATCHES_BEFORE = {"idle": 0, "begun": 1, "middle": 7, "between": IMAGES // BATCH}


@dataclass(frozen=True)
class Case:
    """A fault.

    Attributes:
        backend: whose processes have it.
        workers: of the backend.
        fault: a file that is "damaged", or one on which decoding "hangs"; or "WHO HOW", where WHO is the feeder or a
            worker, and HOW what happens to it.
        when: before the first batch is asked for, after one, in mid-epoch, or between two epochs.
    """

    backend: str
    workers: int
    fault: str
    when: str = "begun"

    def __str__(self) -> str:
        return f"{self.backend}, {self.workers} workers, {self.fault}, {self.when}"


QUICK = (
    *(Case("torch", 0, "damaged"), Case("torch", 2, "damaged"), Case("torch", 2, "hangs")),
    *(Case("torch", 2, "worker killed", "middle"), Case("torch", 1, "worker stopped")),
    *(Case("torch", 2, "feeder killed", "middle"), Case("torch", 2, "feeder stopped", "between")),
    # DALI's feeder starts in a tenth of the time of the others.
    *(Case("dali", 1, f"feeder {how}", when) for how, when in (("killed", "idle"), ("killed", "between"))),
    *(Case("dali", 1, f"feeder {how}", when) for how, when in (("segfault", "begun"), ("stopped", "middle"))),
    *(Case("dali", 1, "feeder stopped", "idle"), Case("dali", 1, "damaged"), Case("dali", 1, "hangs")),
    Case("ffcv", 1, "feeder stopped"),
)
NIGHT = (
    *(Case("torch", w, f"feeder {how}", when) for w in (0, 1, 2, 3) for how in SIGNALS for when in BATCHES_BEFORE),
    *(Case("torch", w, f"worker {how}", when) for w in (1, 2, 3) for how in SIGNALS for when in ("begun", "between")),
    *(Case("torch", w, fault) for w in (0, 1, 3) for fault in ("damaged", "hangs")),
    *(Case(name, 2, f"feeder {how}", when) for name in ("dali", "ffcv") for how in SIGNALS for when in BATCHES_BEFORE),
    *(Case("dali", 2, "damaged"), Case("dali", 2, "hangs")),
)
ALL = [
    *(pytest.param(case, id=str(case)) for case in QUICK),
    *(pytest.param(case, id=str(case), marks=pytest.mark.slow) for case in NIGHT if case not in QUICK),
]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Training folders, indexed as they are: "sound", or with a file that is "damaged" or on which decoding "hangs"."""
    made = {}
    for name in ("sound", "damaged", "hangs"):
        made[name] = write_folder(tmp_path_factory.mktemp(name), IMAGES, kind="jpg", size=SIZE)
        odd = made[name] / "class-1" / "00021.jpg"
        if name == "damaged":
            content = odd.read_bytes()
            odd.write_bytes(content[: content.rindex(b"\xff\xda") + 30])  # in its pixels
        if name == "hangs":
            odd.write_bytes(slow_jpeg())
        FolderSource.index(made[name])
    return made


def opened(folder: Path, case: Case) -> StreamingLoader:
    source: ImageSource = FolderSource.open(folder)
    if case.backend == "ffcv":
        from .beton_files import write_plainly

        path = folder.parent / "train.beton"
        source = BetonSource.open(path if path.exists() else write_plainly(source, path))
    return StreamingLoader(
        StreamedSplit(source, torch.arange(IMAGES), SIZE),
        backend=case.backend,
        batch_size=BATCH,
        augmentation=Augmentation(padding=2, flip=True),
        seed=1,
        device="cpu",
        workers=case.workers,
        watchdog=WATCHDOG if case.fault == "hangs" else 120,
    )


class Watched:
    """A loader with what there was before it, so that what it leaves is seen."""

    def __init__(self, folder: Path, case: Case) -> None:
        gc.collect()  # what earlier tests left to it
        self.shared = set(os.listdir("/dev/shm"))
        self.handles = handles(os.getpid())
        before = set(descendants(os.getpid()))
        self.loader = opened(folder, case)
        self.feeder = next(pid for pid in descendants(os.getpid()) if pid not in before)
        self.processes: list[Process] = [identify(self.feeder)]

    def note_processes(self) -> list[int]:
        """The workers, which are noted with the feeder."""
        workers = descendants(self.feeder)
        self.processes = [identify(pid) for pid in (self.feeder, *workers)]
        return workers

    def nothing_is_left(self) -> None:
        """Asserts so: no process, shared memory or file handle."""
        assert within(SECONDS, lambda: not any(map(alive, self.processes))), self.processes
        assert not shared_memory(but=self.shared)
        gc.collect()
        assert handles(os.getpid()) == self.handles


def deliver(loader: StreamingLoader, batches: int) -> Iterator[object]:
    """Takes so many batches of epoch 0 and returns the epoch, to go on with."""
    epoch = loader.epoch(0)
    for _ in range(batches):
        next(epoch)
    if batches == len(loader):
        assert next(epoch, None) is None
    return epoch


def go_on(loader: StreamingLoader, epoch: Iterator[object]) -> tuple[type[DataError], str, float]:
    """Trains on until there is an error: its class, its message, and how long it was waited for."""
    began = time.monotonic()
    try:
        for number in range(1, 1000):
            while next(epoch, None) is not None:
                began = time.monotonic()
            epoch = loader.epoch(number)
    except DataError as error:
        return type(error), str(error), time.monotonic() - began
    raise AssertionError("no error in 1,000 epochs")


def expected(case: Case) -> str:
    """What the message says, as a pattern."""
    if case.fault == "damaged":
        return r"class-1/00021\.jpg.*: .*(copy it again|remove it|replace it)"
    if case.fault == "hangs":
        what = r"has delivered nothing for 2 s \(--loader\.watchdog allows it more\)( \(.*\))?"
    elif "stopped" in case.fault:
        what = r"has been stopped \(process \d+, by a signal such as SIGSTOP\)"
    elif "worker" in case.fault:
        what = r"failed \(.*worker \(pid.* (is killed by signal|exited unexpectedly).*\)"
    else:
        what = f"was killed by {SIGNALS[case.fault.split()[1]].name}.*"
    fix = r"run the same command again, or choose another with --loader\.name"
    return rf"^the {case.backend} loader of \S+ {what}: {fix}$"


@pytest.mark.parametrize("case", ALL)
def test_a_fault_is_told_of_and_leaves_nothing(case: Case, places: dict[str, Path]) -> None:
    pytest.importorskip(PACKAGES[case.backend])
    watched = Watched(places.get(case.fault, places["sound"]), case)
    loader = watched.loader
    try:
        epoch = deliver(loader, 0 if case.fault in places else BATCHES_BEFORE[case.when])
        workers = watched.note_processes()
        began = time.monotonic()
        if case.fault not in places:
            who, how = case.fault.split()
            os.kill(workers[-1] if who == "worker" else watched.feeder, SIGNALS[how])
        kind, message, waited = go_on(loader, epoch)
        if case.fault not in places:
            waited = time.monotonic() - began
        assert re.search(expected(case), message), message
        assert "\n" not in message
        assert (kind is LoaderDied) == (case.fault != "damaged")
        assert waited < SECONDS + (WATCHDOG if case.fault == "hangs" else 0)
        with pytest.raises(LoaderDied, match="run the same command again"):
            next(loader.epoch(0))
    finally:
        loader.close()
    loader.close()
    with pytest.raises(LoaderDied):
        next(loader.epoch(0))
    del loader, epoch, watched.loader
    watched.nothing_is_left()


PARENT = f"""
import sys, torch
from pathlib import Path
from hardfast.loaders import Augmentation
from hardfast.loaders.image_folder import FolderSource
from hardfast.loaders.streamed import StreamedSplit
from hardfast.loaders.streaming.loader import StreamingLoader

split = StreamedSplit(FolderSource.open(Path(sys.argv[1])), torch.arange({IMAGES}), {SIZE})
how = dict(batch_size={BATCH}, augmentation=Augmentation(), seed=1, device="cpu")
loader = StreamingLoader(split, backend=sys.argv[2], workers=int(sys.argv[3]), **how)
for epoch in range(10 ** 9):
    for batch in loader.epoch(epoch):
        print(epoch, flush=True)
"""


@pytest.mark.parametrize(
    ("backend", "workers", "stopped"),
    [
        ("torch", 2, True),
        pytest.param("torch", 0, False, marks=pytest.mark.slow),
        pytest.param("torch", 2, False, marks=pytest.mark.slow),
        pytest.param("dali", 2, False, marks=pytest.mark.slow),
        pytest.param("ffcv", 2, False, marks=pytest.mark.slow),
    ],
)
def test_nothing_outlives_a_killed_run(backend: str, workers: int, stopped: bool, places: dict[str, Path]) -> None:
    """`kill -9` of the process that trains; feeder and workers may even be stopped, and look for no parent."""
    pytest.importorskip(PACKAGES[backend])
    shared = set(os.listdir("/dev/shm"))
    words = [sys.executable, "-c", PARENT, str(places["sound"]), backend, str(workers)]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"0\n"
        left = [identify(pid) for pid in descendants(parent.pid)]
        assert len(left) == 1 + (workers if backend == "torch" else 0)
        for pid, _ in left if stopped else ():
            os.kill(pid, signal.SIGSTOP)
        parent.kill()
    assert within(SECONDS, lambda: not any(map(alive, left))), left
    assert not shared_memory(but=shared)


def state(feeder: int) -> list[tuple[int, int, list[str]]]:
    """(number, threads, file handles) of this process, the feeder and its workers."""
    return [(pid, threads(pid), handles(pid)) for pid in (os.getpid(), feeder, *descendants(feeder))]


def drop(loader: StreamingLoader, count: int) -> None:
    """Makes iterators and gives them up."""
    for number in range(count):
        epoch = loader.epoch(number)
        if number % 3:  # some are not even begun
            next(epoch)


def take(loader: StreamingLoader, count: int) -> None:
    """At least so many batches, in whole epochs."""
    for number in range(-(-count // len(loader))):
        assert sum(1 for _ in loader.epoch(number)) == len(loader)


@pytest.mark.parametrize(
    ("backend", "workers", "iterators", "batches"),
    [
        ("dali", 1, 250, 2500),
        ("torch", 2, 250, 2500),
        pytest.param("torch", 0, 500, 5000, marks=pytest.mark.slow),
        pytest.param("torch", 3, 500, 5000, marks=pytest.mark.slow),
        pytest.param("dali", 2, 500, 5000, marks=pytest.mark.slow),
        pytest.param("ffcv", 2, 500, 5000, marks=pytest.mark.slow),
    ],
)
def test_a_long_life_takes_no_more(
    backend: str, workers: int, iterators: int, batches: int, places: dict[str, Path]
) -> None:
    """Iterators made and dropped, and batches: threads and file handles stay the same, memory stays flat."""
    pytest.importorskip(PACKAGES[backend])
    watched = Watched(places["sound"], Case(backend, workers, ""))
    loader, feeder = watched.loader, watched.feeder

    try:
        drop(loader, iterators // 5)
        take(loader, batches // 5)
        before, used = state(feeder), [resident(pid) for pid, *_ in state(feeder)]
        drop(loader, iterators - iterators // 5)
        take(loader, batches - batches // 5)
        assert state(feeder) == before
        grown = [resident(pid) - memory for (pid, *_), memory in zip(before, used, strict=True)]
        assert max(grown) < 6 << 20, grown
        watched.note_processes()
    finally:
        loader.close()
    del loader, watched.loader
    watched.nothing_is_left()
