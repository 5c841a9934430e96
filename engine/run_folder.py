"""A run is a folder: what was asked for, where it ran, what happened, what came out.

config.json         the recipe
environment.json    device, versions and numerics of every start
log.jsonl           one line per epoch, whole once it is done; an epoch that is trained again has the newer line alone
guard.jsonl         what the guards said and did: a line for each warning, rollback and stop; not there if all was well
checkpoints/        see checkpoint.py
evaluation.json     accuracy in percent per attack, the newest of each on one checkpoint
evaluations/        the same of each checkpoint, and the progress of an evaluation that was interrupted
evaluations.jsonl   every attack's result, a line each
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from ..loaders import LoaderOptions
from ..loaders.option_types import shown
from .checkpoint import MODEL, Checkpoint, CheckpointStore
from .disk import sync_folder
from .errors import CheckpointError, UsageError
from .models import build_model, channels_last
from .named_tensors import load_strictly
from .recipes.recipe import Recipe, from_json, to_json

Which = Literal["best", "last"]
# Fields of a recipe that do not decide a run's result: what a preset says of itself, where the data lie, what reads
# them, and how the steps are executed (environment.json records both). A .beton with --max-side is another data set.
NOT_IDENTITY = {
    *(("", "about"), ("data", "root")),
    *(("execution", name) for name in ("mode", "pad_channels", "deterministic")),
    *(("loader", field.name) for field in fields(LoaderOptions)),
}


class RunFolder:
    """The files of one run."""

    def __init__(self, path: Path | str) -> None:
        if not str(path) or "\0" in str(path):
            raise UsageError(f"--out {shown(str(path))} is not the name of a folder: choose another")
        self.path = Path(path)
        self.store = CheckpointStore(self.path / "checkpoints")

    @property
    def config(self) -> Path:
        """The recipe of the run."""
        return self.path / "config.json"

    @property
    def log(self) -> Path:
        """One line per epoch."""
        return self.path / "log.jsonl"

    @property
    def guard(self) -> Path:
        """What the guards said and did; not there if they had nothing to say."""
        return self.path / "guard.jsonl"

    @property
    def evaluation(self) -> Path:
        """The newest result of each attack on one checkpoint."""
        return self.path / "evaluation.json"

    @property
    def _lock(self) -> Path:
        return self.path / ".lock"

    @property
    def environment(self) -> Path:
        """Device, versions and numerics of every start of the run."""
        return self.path / "environment.json"

    def note_start(self, start: dict[str, Any]) -> None:
        """Adds a start to environment.json. A damaged one is kept as environment.json.damaged, and begun anew."""
        starts: list[Any] = []
        if self.environment.exists():
            try:
                starts = json.loads(self.environment.read_text())["starts"]
                if not isinstance(starts, list):
                    raise TypeError("no list")
            except (ValueError, LookupError, TypeError):
                self.environment.replace(self.environment.with_suffix(".json.damaged"))
                starts = []
        write_whole(self.environment, json.dumps({"starts": [*starts, start]}, indent=2) + "\n")

    def recipe(self) -> Recipe:
        """The recipe of the run in this folder.

        Raises:
            UsageError: there is none, or it cannot be read.
        """
        try:
            text = self.config.read_text()
        except FileNotFoundError:
            raise UsageError(f"{self.path} holds no run (no config.json): train one with `hardfast train`") from None
        except UnicodeDecodeError:
            raise UsageError(f"{self.config} is not text; restore the file or choose another --out") from None
        return from_json(text, str(self.config))

    def holds(self, recipe: Recipe) -> bool:
        """Whether this folder holds `recipe`'s run already; False if it is still free.

        Raises:
            UsageError: the folder holds another run, whose first difference is named, or other files.
        """
        if self.config.exists():
            first = _first_difference(json.loads(to_json(self.recipe())), json.loads(to_json(recipe)))
            if first is not None:
                saved = [path for path in self.store.folder.glob("step-*") if ".tmp-" not in path.name]
                if not saved and not self.evaluation.exists():
                    return False  # a start that failed before its first checkpoint: nothing is lost
                raise UsageError(
                    f"--out {self.path} holds another run: its {first[0]} is {first[1]}, yours {first[2]}; "
                    "choose another --out, or repeat that run's options to resume it"
                )
            return True
        if self.path.is_dir():
            ours = {self._lock, *self._half_written()}  # of a start that was killed before its config.json was there
            free = all(path in ours for path in self.path.iterdir())
        else:
            free = not self.path.exists()
        if not free:
            raise UsageError(f"--out {self.path} exists and holds no run: choose a new or an empty folder")
        return False

    def create(self, recipe: Recipe) -> None:
        """Makes this the folder of a new run; what a failed start left is removed."""
        self.path.mkdir(parents=True, exist_ok=True)
        for leftover in (self.log, self.guard, self.environment):
            leftover.unlink(missing_ok=True)
        write_whole(self.config, to_json(recipe))

    def checkpoint(self, which: Which) -> Checkpoint:
        """The newest checkpoint, or the best one by its record; verified.

        Raises:
            CheckpointError: there is none, or it is damaged.
        """
        last = self.store.latest()
        if last is None:
            damaged = f" ({self.store.rejected[0]})" if self.store.rejected else ""
            raise CheckpointError(f"{self.store.folder} holds no whole checkpoint{damaged}: train the run again")
        if which == "last":
            if self.store.rejected:
                raise CheckpointError(f"{self.store.rejected[0]}; `hardfast train` goes on from the one before it")
            return last
        best = last.record.best
        if best is None:
            raise CheckpointError(f"{self.path} has no best checkpoint yet, no epoch has ended: use --checkpoint last")
        try:
            return self.store.open(self.store.path(best.step))
        except CheckpointError as error:
            raise CheckpointError(f"{error}; --checkpoint last is whole") from None

    def append_log(self, line: dict[str, Any]) -> None:
        """Adds one line to log.jsonl, at once."""
        append_line(self.log, json.dumps(line))

    def append_guard(self, line: dict[str, Any]) -> None:
        """Adds one line to guard.jsonl, unless it is there: a run that was killed after it comes by here again."""
        text = json.dumps(line)
        if not self.guard.exists() or text not in self.guard.read_text().splitlines():
            append_line(self.guard, text)

    def truncate_log(self, epochs: int) -> None:
        """Drops the lines of epochs that the checkpoint being resumed does not know of."""
        if self.log.exists():
            lines = [text for text in self.log.read_text().splitlines() if 0 < _epoch_of(text) <= epochs]
            write_whole(self.log, "".join(text + "\n" for text in lines))

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps other processes from training into this folder, which is made if it is not there.

        Raises:
            UsageError: one does.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with self._lock.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UsageError(f"--out {self.path} is being trained by another process: wait for it") from None
            for leftover in self._half_written():
                leftover.unlink(missing_ok=True)
            yield

    def _half_written(self) -> list[Path]:
        """What killed processes left of files that only the holder of the lock writes."""
        names = (path.name for path in (self.config, self.environment, self.log))
        return [path for name in names for path in self.path.glob(f".{name}.tmp-*")]


def load_model(run: Path | str, *, checkpoint: Which = "best", device: torch.device | str = "cpu") -> nn.Module:
    """The classifier of a run: eval mode, float32 NCHW images in [0, 1] in, logits out.

    Args:
        run: the run's folder.
        checkpoint: `best` by held-out PGD-10, or `last`.
        device: where the net is put.

    Raises:
        UsageError: the folder holds no run.
        CheckpointError: the checkpoint is missing, damaged, or of another net.
    """
    folder = RunFolder(run)
    recipe, found = folder.recipe(), folder.checkpoint(checkpoint)
    return restored_model(recipe, found).to(device)


def restored_model(recipe: Recipe, checkpoint: Checkpoint) -> nn.Module:
    """The classifier of one verified checkpoint, on the CPU, in eval mode."""
    net = channels_last(build_model(recipe.model, checkpoint.record.net))
    kind = f"the {recipe.model.name} of config.json"
    load_strictly(net, checkpoint.model(), checkpoint.path / MODEL, kind=kind)
    return net.eval()


def write_whole(path: Path, text: str) -> None:
    """Replaces a small file in one step, so that a reader or a crash never meets half of it; on the disk when done."""
    part = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with part.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        sync_folder(path.parent)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def append_line(path: Path, line: str) -> None:
    """Adds a line to a file, which is on the disk when done; half a line that a kill left there ends before it."""
    begun = path.exists()
    torn = begun and path.read_bytes()[-1:] not in (b"", b"\n")
    with path.open("a") as file:
        file.write(("\n" if torn else "") + line + "\n")
        file.flush()
        os.fsync(file.fileno())
    if not begun:
        sync_folder(path.parent)


def _epoch_of(line: str) -> int:
    """The epoch of one line of log.jsonl; 0 for the half line that a full disk or a kill leaves."""
    try:
        return int(json.loads(line)["epoch"])
    except (ValueError, LookupError, TypeError):
        return 0


def _first_difference(old: Any, new: Any, name: str = "") -> tuple[str, Any, Any] | None:
    """(dotted name, old value, new value) of the first field that differs between two recipes of one method or two."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in old:
            if (name, key) in NOT_IDENTITY:
                continue
            found = _first_difference(old.get(key), new.get(key), f"{name}.{key}" if name else key)
            if found is not None:
                return found
        return None
    return None if old == new else (name, old, new)
