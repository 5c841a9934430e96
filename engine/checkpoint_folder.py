"""The folder of one checkpoint: what its files hold, how they are sealed, and what is refused.

MANIFEST.json seals a checkpoint: the size and the sha256 of each file, itself byte for byte as this engine writes it.
A file that is missing, of another size or content, or no plain file at all is refused with a line that names it. Other
files beside them are of no matter: nothing reads them, and a file manager or a network file system may put some there.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from . import disk, strict_json
from .errors import CheckpointError, UsageError
from .named_tensors import Tensors
from .record import Record

MODEL, STATE, RECORD, MANIFEST = "model.safetensors", "state.safetensors", "train.json", "MANIFEST.json"
LARGEST_MANIFEST = 4096  # bytes; it has some 400
LARGEST_RECORD = 64 << 20  # bytes; a long run with all its history has some 100,000
NAME = re.compile(r"step-(\d{8,})(\.old)?")
SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One verified checkpoint."""

    path: Path
    record: Record
    model_sha256: str
    state_sha256: str

    def model(self) -> Tensors:
        """The classifier's tensors, on the CPU.

        Raises:
            CheckpointError: the file is not the verified one any more, or holds a value that is not finite.
        """
        return _finite(load_verified(self.path / MODEL, self.model_sha256), self.path / MODEL)

    def state(self) -> Tensors:
        """All other tensors of the run, on the CPU.

        Raises:
            CheckpointError: as `model`.
        """
        return _finite(load_verified(self.path / STATE, self.state_sha256), self.path / STATE)


def sealed(model: Tensors, state: Tensors, record: Record) -> Iterator[tuple[str, bytes]]:
    """The files of a checkpoint by name, the manifest last; the tensors as they are when their file's turn has come.

    Each is made when it is asked for, and let go before the next: a method's memory may have more than a gigabyte.
    """
    made: tuple[tuple[str, Callable[[], bytes]], ...] = (
        (MODEL, partial(_packed, model)),
        (STATE, partial(_packed, state)),
        (RECORD, lambda: record.to_json().encode()),
    )
    entries = {}
    for name, make in made:
        content = make()
        entries[name] = (len(content), _sha256(content))
        yield name, content
        del content
    yield MANIFEST, _manifest(entries)


def verified(path: Path) -> Checkpoint:
    """The checkpoint of a folder, each byte of which is what was written.

    Raises:
        CheckpointError: in one line, which file it is and what is wrong.
        OSError: it cannot be read now, which says nothing about what it holds.
    """
    try:
        name = NAME.fullmatch(path.name)
        if name is None or not stat.S_ISDIR(os.lstat(path).st_mode):
            raise CheckpointError(f"{path} is no checkpoint: it must be a folder of its own, called step-NNNNNNNN")
        wanted = _entries(_text(path / MANIFEST, LARGEST_MANIFEST), path / MANIFEST)
        for file, (size, sha256) in wanted.items():
            found = disk.size_of(path / file)
            if found != size:  # looked at first: a file of another size is not read
                raise CheckpointError(f"{path / file} is damaged: it has {found} bytes, {MANIFEST} says {size}")
            if disk.digest(path / file) != (size, sha256):
                raise CheckpointError(f"{path / file} is damaged: its sha256 is not the one of {MANIFEST}")
        record = Record.from_json(_text(path / RECORD, LARGEST_RECORD), str(path / RECORD))
        if record.at.total != int(name[1]):
            raise CheckpointError(f"{path} holds the checkpoint of step {record.at.total}: it was renamed or copied")
        return Checkpoint(path, record, wanted[MODEL][1], wanted[STATE][1])
    except CheckpointError as error:
        raise CheckpointError(_one_line(error)) from None
    except FileNotFoundError as error:
        part = "" if str(error.filename) == str(path) else ": the checkpoint is not complete"
        raise CheckpointError(f"{error.filename} is missing{part}") from None
    except disk.OddFile as error:
        raise CheckpointError(str(error)) from None


def load_verified(path: Path, sha256: str | None) -> Tensors:
    """The tensors of a .safetensors file, from the very bytes whose sha256 is compared.

    Raises:
        CheckpointError: they have another sha256, if one is given, or are no such file.
    """
    try:
        content = disk.read(path)
        if sha256 is not None and _sha256(content) != sha256:
            raise CheckpointError(f"{path} has changed since it was verified: repeat the command")
        tensors: Tensors = safetensors().load(content)
        return tensors
    except UsageError:
        raise
    except Exception as error:  # safetensors' own; and what torch says to a type or a shape that it has not
        raise CheckpointError(f"{path} cannot be read: {_one_line(error)}") from None


def not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor that holds NaN or infinity; None if all are finite.

    One pass over each without a copy, and one wait for a device however many there are.
    """
    groups: dict[tuple[torch.device, torch.dtype], dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if value.is_floating_point() and value.numel():
            # The largest magnitude: neither NaN nor infinity is lost in a maximum, and no finite value overflows.
            largest = torch.linalg.vector_norm(value.detach(), ord=math.inf)
            groups.setdefault((value.device, value.dtype), {})[name] = largest
    finite: dict[torch.device, list[Tensor]] = {}
    names: dict[torch.device, list[str]] = {}
    for (device, _), group in groups.items():
        finite.setdefault(device, []).append(torch.stack(list(group.values())).isfinite())
        names.setdefault(device, []).extend(group)
    bad = {
        name
        for device, parts in finite.items()
        for name, good in zip(names[device], torch.cat(parts).tolist(), strict=True)
        if not good
    }
    return next((name for name in tensors if name in bad), None)


def safetensors() -> ModuleType:
    """The library, imported where it is used: a run in memory needs none.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import safetensors.torch as library
    except ModuleNotFoundError:
        raise UsageError("reading and writing checkpoints needs safetensors: pip install safetensors") from None
    return library


def _finite(tensors: Tensors, source: Path) -> Tensors:
    name = not_finite(tensors)
    if name is not None:
        raise CheckpointError(f"{source}: '{name}' is not finite: nothing can be computed with it")
    return tensors


def _manifest(files: dict[str, tuple[int, str]]) -> bytes:
    entries = {name: {"size": size, "sha256": sha256} for name, (size, sha256) in files.items()}
    return (json.dumps(entries, indent=2) + "\n").encode()


def _text(path: Path, largest: int) -> str:
    try:
        return disk.read(path, largest=largest).decode()
    except UnicodeDecodeError:
        raise CheckpointError(f"{path} is damaged: it is not text") from None


def _entries(text: str, path: Path) -> dict[str, tuple[int, str]]:
    """Size and sha256 of each file, from a manifest that is byte for byte as this engine writes it.

    Raises:
        CheckpointError: it is not.
    """
    entries: Any = strict_json.plain(text, str(path), error=CheckpointError)
    if not isinstance(entries, dict) or list(entries) != [MODEL, STATE, RECORD]:
        raise CheckpointError(f"{path} is damaged: it does not list {MODEL}, {STATE} and {RECORD}")
    for name, entry in entries.items():
        if not isinstance(entry, dict) or list(entry) != ["size", "sha256"]:
            raise CheckpointError(f"{path} is damaged: '{name}' has not just a size and a sha256")
        size, sha256 = entry["size"], entry["sha256"]
        if (
            type(size) is not int
            or not 0 <= size < 1 << 63
            or not isinstance(sha256, str)
            or not SHA256.fullmatch(sha256)
        ):
            raise CheckpointError(f"{path} is damaged: '{name}' has a size or sha256 that no file can have")
    found = {name: (entry["size"], entry["sha256"]) for name, entry in entries.items()}
    if _manifest(found) != text.encode():
        raise CheckpointError(f"{path} is damaged: it is not as it was written")
    return found


def _packed(tensors: Tensors) -> bytes:
    """As a .safetensors file holds them: contiguous on the CPU, so that channels-last weights are in NCHW order."""
    return bytes(safetensors().save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}))


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
