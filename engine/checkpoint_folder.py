"""The folder of one checkpoint: what its files hold, how they are sealed, and what is refused.

MANIFEST.json seals a checkpoint: the size and the sha256 of each file, itself byte for byte as this engine writes it.
A file that is missing, of another size or content, or no plain file at all is refused with a line that names it. Other
files beside them are of no matter: nothing reads them, and a file manager or a network file system may put some there.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

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
        tensors = load_verified(self.path / MODEL, self.model_sha256)
        name = not_finite(tensors)
        if name is not None:
            raise CheckpointError(f"{self.path / MODEL}: '{name}' is not finite: such weights classify nothing")
        return tensors

    def state(self) -> Tensors:
        """All other tensors of the run, on the CPU.

        Raises:
            CheckpointError: the file is not the verified one any more.
        """
        return load_verified(self.path / STATE, self.state_sha256)


def sealed(model: Tensors, state: Tensors, record: Record) -> dict[str, bytes]:
    """The files of a checkpoint by name, the manifest last; the tensors as they are now, wherever they lie."""
    files = {MODEL: _packed(model), STATE: _packed(state), RECORD: record.to_json().encode()}
    return files | {MANIFEST: _manifest({name: (len(data), _sha256(data)) for name, data in files.items()})}


def verified(path: Path) -> Checkpoint:
    """The checkpoint of a folder, each byte of which is what was written.

    Raises:
        CheckpointError: in one line, which file it is and what is wrong.
    """
    try:
        if not os.path.lexists(path):
            raise CheckpointError(f"{path} is missing")
        name = NAME.fullmatch(path.name)
        if name is None or path.is_symlink() or not path.is_dir():
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
        raise CheckpointError(f"{error.filename} is missing: the checkpoint is not complete") from None
    except OSError as error:
        raise CheckpointError(f"{error.filename} cannot be read: {error.strerror}") from None
    except disk.OddFile as error:
        raise CheckpointError(str(error)) from None


def load_verified(path: Path, sha256: str | None) -> Tensors:
    """The tensors of a .safetensors file, from the very bytes whose sha256 is compared.

    Raises:
        CheckpointError: they have another sha256, if one is given, or are no such file.
    """
    try:
        content = disk.read(path, largest=disk.size_of(path))
        if sha256 is not None and _sha256(content) != sha256:
            raise CheckpointError(f"{path} has changed since it was verified: repeat the command")
        tensors: Tensors = safetensors().load(content)
        return tensors
    except UsageError:
        raise
    except Exception as error:  # safetensors' own; and what torch says to a type or a shape that it has not
        raise CheckpointError(f"{path} cannot be read: {_one_line(error)}") from None


def not_finite(tensors: Tensors) -> str | None:
    """The name of the first tensor that holds NaN or infinity; None if all are finite."""
    return next((name for name, value in tensors.items() if not bool(value.isfinite().all())), None)


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
