"""A full disk, a failing one, one that must not be written to: each error of a save surfaces and damages nothing.

Some are real: a small file system that is full or read-only, a user without rights, a limit on the size of files. The
others are raised in place of one system call of a real writer, each call in turn.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

from ..night import NIGHT, figure
from .store_writer import Request, content, record, writers

pytest.importorskip("safetensors")
pytest.importorskip("pydantic")

from hardfast.engine.checkpoint import CheckpointStore

AREA = "ENOSPC, EIO, EROFS, EACCES at each write"
ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES)
# What is tried by day, each in place of one call of a save of a new step or of the last one again.
BY_DAY = (
    (False, "before", "mkdir temporary", errno.EACCES),
    (False, "before", "open model.safetensors", errno.EROFS),
    (False, "half", "write state.safetensors", errno.ENOSPC),
    (False, "before", "fsync train.json", errno.EIO),
    (False, "before", "close MANIFEST.json", errno.EIO),
    (True, "before", "rename temporary to step", errno.ENOSPC),
    (False, "before", "fsync store", errno.EIO),
    (False, "before", "unlink model.safetensors", errno.EROFS),
)


def state_of(folder: Path) -> dict[str, str]:
    """The sha256 of every file in a store."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def prepared(folder: Path, notes: Path) -> dict[str, str]:
    """A store that holds two steps."""
    assert writers().run(Request(folder=str(folder), notes=str(notes / "before"), last=2)) == 0
    return state_of(folder)


def told(notes: Path) -> dict[str, str]:
    """What the faulty save raised."""
    (line,) = (notes / "error").read_text().splitlines()
    return dict(json.loads(line))


def check_error(notes: Path, folder: Path, number: int, place: str, *, saving: bool = True) -> None:
    """The error is that of the system, in one line that names the file, and the room where a save had too little."""
    found = told(notes)
    assert found["errno"] == number, place
    assert "\n" not in found["text"], place
    assert f"{folder}" in found["text"], place
    assert os.strerror(number) in found["text"], place
    room = re.search(r"needs \d+\.\d MB, \d+\.\d MB are free", found["text"])
    assert bool(room) == (saving and number == errno.ENOSPC), place


def check_next_save(folder: Path, place: str) -> None:
    """With room again, the next save works, and nothing of the failed one is left."""
    store, tensors = CheckpointStore(folder), content(9, 0)
    store.save(9, model=tensors, state=tensors, record=record(9))
    latest = store.latest()
    assert latest is not None, place
    assert latest.record.at.total == 9, place
    assert not [path.name for path in folder.iterdir() if "." in path.name], place


@cache
def points(folder: Path, again: bool) -> list[str]:
    """The names of all calls of one save and the pruning after it, in a store that holds two steps."""
    store, notes = folder / f"dry-{again}", folder / f"dry-notes-{again}"
    prepared(store, notes)
    step = 2 if again else 3
    assert writers().run(Request(folder=str(store), notes=str(notes), first=step, last=step)) == 0
    return (notes / "points").read_text().splitlines()


def plan(folder: Path) -> list[tuple[bool, str, int, int]]:
    """(the last step again, before or half, number of the call, errno): eight by day, each call by night."""
    if not NIGHT:
        return [(again, when, points(folder, again).index(name), number) for again, when, name, number in BY_DAY]
    found = []
    for again in (False, True):
        for point, name in enumerate(points(folder, again)):
            # Two of the four at each call of one save, the other two at those of the other.
            some = ERRORS[point % 2 :: 2] if again else ERRORS[1 - point % 2 :: 2]
            found += [(again, "before", point, number) for number in some]
            found += [(again, "half", point, errno.ENOSPC)] if name.startswith("write") else []
    return found


def test_errors_at_each_call(tmp_path: Path) -> None:
    fired = 0
    tried = plan(tmp_path)
    for count, (again, when, point, number) in enumerate(tried):
        folder, notes = tmp_path / f"store-{count}", tmp_path / f"notes-{count}"
        before = prepared(folder, notes)
        step = 2 if again else 3
        place = f"{errno.errorcode[number]} {when} {points(tmp_path, again)[point]}"
        faulty = Request(
            folder=str(folder),
            notes=str(notes),
            first=step,
            last=step,
            fault_in=0,
            point=point,
            when=when,
            error=number,
        )
        assert writers().run(faulty) == 0, place
        assert place.endswith((notes / "fired").read_text().strip()), place
        fired += 1
        whole = (notes / "saved").exists()  # it was the pruning that failed
        check_error(notes, folder, number, place, saving=not whole)
        after = state_of(folder)
        if not whole:
            assert not [path.name for path in folder.iterdir() if "." in path.name], place  # no .tmp-*, no .old
            assert {name: after.get(name) for name in before} == before or again, place
        latest = CheckpointStore(folder).latest()
        assert latest is not None, place
        assert latest.record.at.total == step if whole else latest.record.at.total in (2, step), place
        assert latest.model()["a"][0, 0] == latest.record.at.total, place
        for name, sha256 in before.items():
            if not name.startswith(f"step-{latest.record.at.total:08d}") and not whole:
                assert after[name] == sha256, place
        check_next_save(folder, place)
    figure(AREA, tried=len(tried), held=len(tried), fired=fired, note="raised in place of a system call")


@contextmanager
def file_system(place: Path, size: str) -> Iterator[Path]:
    """A small file system in memory; skips the test where none can be mounted."""
    place.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=755", "tmpfs", str(place)]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        pytest.skip("there is no command `mount`")
    if done.returncode:
        pytest.skip(f"no file system can be mounted: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True, timeout=60)


def test_a_disk_that_is_full(tmp_path: Path) -> None:
    pages = range(7, 12, 1 if NIGHT else 3)  # one checkpoint needs 6 pages of 4 KiB, two need 12
    for number in pages:
        with file_system(tmp_path / f"full-{number}", f"{4 * number}k") as disk:
            folder, notes = disk / "checkpoints", tmp_path / f"notes-{number}"
            assert writers().run(Request(folder=str(folder), notes=str(notes), last=2)) == 0
            assert (notes / "saved").read_text() == "1 0\n"
            check_error(notes, folder, errno.ENOSPC, f"{number} pages")
            latest = CheckpointStore(folder).latest()
            assert latest is not None
            assert latest.record.at.total == 1
            assert [path.name for path in folder.iterdir()] == ["step-00000001"]
            subprocess.run(["mount", "-o", "remount,size=1m", str(disk)], check=True, timeout=60)
            check_next_save(folder, f"{number} pages")
    figure(AREA, tried=len(pages), held=len(pages), fired=len(pages), note="full file systems")


def test_a_disk_that_is_read_only(tmp_path: Path) -> None:
    with file_system(tmp_path / "disk", "1m") as disk:
        folder, notes = disk / "checkpoints", tmp_path / "notes"
        before = prepared(folder, notes)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True, timeout=60)
        assert writers().run(Request(folder=str(folder), notes=str(notes), first=3, last=3)) == 0
        check_error(notes, folder, errno.EROFS, "read-only")
        assert state_of(folder) == before
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True, timeout=60)
        check_next_save(folder, "read-only")
    figure(AREA, tried=1, held=1, fired=1, note="a read-only file system")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_a_user_without_rights() -> None:
    with tempfile.TemporaryDirectory() as place:  # pytest's own folders can be entered by their owner alone
        root = Path(place)
        root.chmod(0o755)
        folder, notes = root / "checkpoints", root / "notes"
        before = prepared(folder, notes)
        notes.chmod(0o777)
        asked = Request(folder=str(folder), notes=str(notes), first=3, last=3, as_nobody=True)
        assert writers().run(asked) == 0
        check_error(notes, folder, errno.EACCES, "nobody")
        assert state_of(folder) == before
        check_next_save(folder, "nobody")
    figure(AREA, tried=1, held=1, fired=1, note="a user without rights")


def test_a_limit_on_the_size_of_files(tmp_path: Path) -> None:
    folder, notes = tmp_path / "checkpoints", tmp_path / "notes"
    before = prepared(folder, notes)
    asked = Request(folder=str(folder), notes=str(notes), first=3, last=3, largest=5000)
    assert writers().run(asked) == 0
    check_error(notes, folder, errno.EFBIG, "limit")
    assert state_of(folder) == before
    check_next_save(folder, "limit")
    figure(AREA, tried=1, held=1, fired=1, note="a limit on the size of files")


def test_training_on_a_disk_that_fills_up(tmp_path: Path) -> None:
    """The command itself: exit code 2, one line that says how much is needed, and the same command goes on later."""
    words = ["train", "digits", "--out", "run", "--epochs", "2", "--crop-padding", "0", "--data.image-size", "8"]
    command = [sys.executable, "-c", "from hardfast.engine.cli import main; main()", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with file_system(tmp_path / "disk", "1m") as disk:  # for one checkpoint of 0.7 MB

        def train() -> subprocess.CompletedProcess[str]:
            return subprocess.run(command, cwd=disk, env=environment, capture_output=True, text=True, timeout=300)

        done = train()
        assert done.returncode == 2, done.stderr
        assert "No space left on device" in done.stderr.splitlines()[-1]
        assert re.search(r"needs 0\.7 MB, 0\.\d MB are free", done.stderr.splitlines()[-1])
        assert "Traceback" not in done.stderr
        store = CheckpointStore(disk / "run" / "checkpoints")
        latest = store.latest()
        assert latest is not None
        assert latest.record.at.epoch == 1
        assert not store.rejected
        assert len(list(store.folder.iterdir())) == 1
        if NIGHT:
            subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True, timeout=60)
            done = train()
            assert done.returncode == 0, done.stderr
            assert "resuming at epoch 2" in done.stdout + done.stderr
    figure(AREA, tried=1, held=1, fired=1, note="`hardfast train` on a full file system")
