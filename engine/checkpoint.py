"""Checkpoints on disk: one folder each, written whole or not at all, verified by sha256 before anything is loaded.

checkpoints/step-00001234/model.safetensors   the classifier's state dict, names unchanged
                          state.safetensors   the method's nets and memory, every optimiser's tensors, the tally; where
                                              weights are averaged, model is the average and this the trained net too
                          train.json          counters, and which checkpoint is the best so far
                          MANIFEST.json       size and sha256 of the three

A checkpoint is written under another name and renamed once it is on the disk, and loses its name before the first of
its files is removed: whatever bears the name of a step was whole once. At every moment the newest that was saved is
there, under its name or, while one of the same step takes its place, beside it. One that was found damaged is not
removed but renamed to *.rejected when its turn comes, the newest two of them.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

from . import checkpoint_folder, disk
from .checkpoint_folder import MANIFEST, MODEL, NAME, RECORD, STATE, Checkpoint, not_finite, sealed, verified
from .errors import CheckpointError, Diverged
from .named_tensors import Tensors
from .record import Record

__all__ = ["MANIFEST", "MODEL", "RECORD", "STATE", "Checkpoint", "CheckpointStore"]

ASIDE = ".old"  # the one whose place another of the same step is about to take
REJECTED = ".rejected"  # what was found damaged: kept, for whoever can tell more from it than this engine
MOST_REJECTED = 2
LEFTOVER = re.compile(r"step-\d{8,}(\.old)?(\.rejected)?\.tmp-.+")


class CheckpointStore:
    """The checkpoints of one run. Any process may read them; one that writes them holds the run's lock.

    Attributes:
        rejected: what the last search for the latest found damaged, a line each, the newest first.

    Raises:
        UsageError: safetensors is not installed.
    """

    def __init__(self, folder: Path) -> None:
        checkpoint_folder.safetensors()  # fails now rather than after an epoch
        self.folder = folder
        self.rejected: list[str] = []
        self._damaged: set[Path] = set()

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step lies."""
        return self.folder / f"step-{step:08d}"

    def save(self, step: int, *, model: Tensors, state: Tensors, record: Record) -> Path:
        """Writes one checkpoint: temporary folder, fsync, rename, fsync. A reader sees all of it or nothing.

        Raises:
            OSError: it could not be written, and why; the checkpoints before it are as they were, and nothing of this
                one is left.
            Diverged: a tensor of either is not finite; likewise.
        """
        name = not_finite({**model, **{f"state/{name}": tensor for name, tensor in state.items()}})
        if name is not None:
            raise Diverged(f"'{name}' is not finite after step {step}: nothing is saved, {self.folder} stays as it is")
        target = self.path(step)
        temporary = target.with_name(f"{target.name}.tmp-{os.getpid()}")
        try:
            disk.make_folder(self.folder)
            self.tidy()
            disk.write_folder(temporary, sealed(model, state, record))
            self._put_in_place(temporary, target)
        except BaseException as error:
            with suppress(OSError):  # what has just failed once
                self.tidy()
            if isinstance(error, OSError):
                needed = sum(tensor.nbytes for tensor in (*model.values(), *state.values()))
                raise disk.with_room(error, needed, self.folder.parent) from None
            raise
        return target

    def latest(self, *, at_most: int | None = None) -> Checkpoint | None:
        """The newest checkpoint, of so many steps at most, whose files are what its manifest says; None if there is
        none.

        Raises:
            OSError: one cannot be read now, so that it cannot be told whether it is damaged.
        """
        while True:
            self.rejected, moved = [], False
            for step in self.steps():
                if at_most is not None and step > at_most:
                    continue
                path = self.path(step)
                try:
                    return self.open(path)
                except CheckpointError as error:
                    if os.path.lexists(path) or os.path.lexists(_aside(path)):
                        self.rejected.append(str(error))
                    else:  # a running training has newer ones by now
                        moved = True
            if not moved:
                return None

    def open(self, path: Path) -> Checkpoint:
        """Verifies one checkpoint.

        Raises:
            CheckpointError: it is missing, or a file is not what the manifest says.
            OSError: it cannot be read now.
        """
        try:
            return verified(path)
        except CheckpointError:
            self._damaged.add(path)
            if not os.path.lexists(_aside(path)):  # a writer was killed while it put another in its place
                raise
            return verified(_aside(path))

    def before(self, step: int) -> int | None:
        """The newest step before this one of which there is a checkpoint that was not found damaged; None if there is
        none."""
        return next((other for other in self.steps() if other < step and self.path(other) not in self._damaged), None)

    def prune(self, keep: set[int]) -> None:
        """Removes every checkpoint but those of the given steps, once the newest of these has been read back; all of
        them if none is given. Those that were found damaged lose their names alone.

        Raises:
            CheckpointError: it is damaged; nothing is removed.
            OSError: it could not be read, and nothing is removed; or one could not be removed.
        """
        if keep:
            self.open(self.path(max(keep)))
        for step in self.steps():
            if step not in keep:
                self._give_up(self.path(step))
                _discard(_aside(self.path(step)))

    def tidy(self) -> None:
        """Removes what a killed writer left, and gives back its name to a checkpoint that it had put aside.

        Raises:
            OSError: something could not be removed.
        """
        for path in self._entries():
            if LEFTOVER.fullmatch(path.name):
                disk.remove(path)
        for step in self.steps():
            target, aside = self.path(step), _aside(self.path(step))
            if os.path.lexists(aside):
                if _is_whole(target):
                    _discard(aside)
                else:
                    self._damaged.add(target)
                    self._give_up(target)
                    aside.rename(target)

    def _give_up(self, path: Path) -> None:
        """Removes a checkpoint, or renames one that was found damaged, the newest of which are kept."""
        if path not in self._damaged:
            _discard(path)
        elif os.path.lexists(path):
            rejected = path.with_name(f"{path.name}{REJECTED}")
            _discard(rejected)
            path.rename(rejected)
            every = [other for other in self._entries() if other.name.endswith(REJECTED)]
            for other in sorted(every, key=_renamed_at)[:-MOST_REJECTED]:
                _discard(other)
        self._damaged.discard(path)

    def _put_in_place(self, temporary: Path, target: Path) -> None:
        """Renames a checkpoint that is on the disk; one of the same step goes only when that is done."""
        if target in self._damaged:
            self._give_up(target)
        if os.path.lexists(target):  # its epoch ended at the step at which it was saved, or the step was made again
            target.rename(_aside(target))
        temporary.rename(target)
        disk.sync_folder(self.folder)
        _discard(_aside(target))

    def _entries(self) -> list[Path]:
        return [self.folder / name for name in sorted(os.listdir(self.folder))] if self.folder.is_dir() else []

    def steps(self) -> list[int]:
        """Of the checkpoints there are, whole or damaged, the newest first."""
        found = (NAME.fullmatch(path.name) for path in self._entries())
        return sorted({int(name[1]) for name in found if name is not None}, reverse=True)


def _aside(path: Path) -> Path:
    return path.with_name(f"{path.name}{ASIDE}")


def _discard(path: Path) -> None:
    """Removes a checkpoint if it is there, which is none from the first moment on."""
    if os.path.lexists(path):
        gone = path.with_name(f"{path.name}.tmp-gone")
        path.rename(gone)
        disk.remove(gone)


def _renamed_at(path: Path) -> int:
    return os.lstat(path).st_ctime_ns


def _is_whole(path: Path) -> bool:
    try:
        verified(path)
    except CheckpointError:
        return False
    return True
