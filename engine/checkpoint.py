"""Checkpoints on disk: one folder each, written whole or not at all, verified by sha256 before anything is loaded.

checkpoints/step-00001234/model.safetensors   the classifier's state dict, names unchanged
                          state.safetensors   the method's nets and memory, every optimiser's tensors, the tally; where
                                              weights are averaged, model is the average and this the trained net too
                          train.json          counters, and which checkpoint is the best so far
                          MANIFEST.json       size and sha256 of the three
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from .errors import CheckpointError, UsageError
from .record import Record

MODEL, STATE, RECORD, MANIFEST = "model.safetensors", "state.safetensors", "train.json", "MANIFEST.json"
Tensors = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One verified checkpoint."""

    path: Path
    record: Record
    model_sha256: str

    def model(self) -> Tensors:
        """The classifier's tensors, on the CPU."""
        return _load(self.path / MODEL)

    def state(self) -> Tensors:
        """All other tensors of the run, on the CPU."""
        return _load(self.path / STATE)


class CheckpointStore:
    """The checkpoints of one run.

    Raises:
        UsageError: safetensors is not installed.
    """

    def __init__(self, folder: Path) -> None:
        _safetensors()  # fails now rather than after an epoch
        self.folder = folder
        self.rejected: list[str] = []  # what was found damaged while looking for the latest

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step lies."""
        return self.folder / f"step-{step:08d}"

    def save(self, step: int, *, model: Tensors, state: Tensors, record: Record) -> Path:
        """Writes one checkpoint: temporary folder, fsync, rename. A reader sees all of it or nothing."""
        safetensors = _safetensors()
        target = self.path(step)
        temporary = self.folder / f"{target.name}.tmp-{os.getpid()}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            safetensors.torch.save_file(_packed(model), temporary / MODEL)
            safetensors.torch.save_file(_packed(state), temporary / STATE)
            (temporary / RECORD).write_text(record.to_json())
            files = {name: _fingerprint(temporary / name) for name in (MODEL, STATE, RECORD)}
            (temporary / MANIFEST).write_text(json.dumps(files, indent=2) + "\n")
            for name in (*files, MANIFEST):
                _sync(temporary / name)
            _sync(temporary)
            if target.exists():  # the same step again, after a resume: identical, or rejected as damaged
                shutil.rmtree(target)
            temporary.rename(target)
            _sync(self.folder)
        except safetensors.SafetensorError as error:  # a full disk comes as this
            raise OSError(errno.EIO, str(error), str(temporary)) from None
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return target

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint whose files are what its manifest says; None if there is none."""
        for path in sorted(self.folder.glob("step-????????"), reverse=True):
            try:
                return self.open(path)
            except CheckpointError as error:
                self.rejected.append(str(error))
        return None

    def open(self, path: Path) -> Checkpoint:
        """Verifies one checkpoint.

        Raises:
            CheckpointError: it is missing, or a file is not what the manifest says.
        """
        try:
            manifest = json.loads((path / MANIFEST).read_text())
            for name in (MODEL, STATE, RECORD):
                if _fingerprint(path / name) != manifest[name]:
                    raise CheckpointError(f"{path / name} is damaged: its sha256 is not the one of {MANIFEST}")
            record = Record.from_json((path / RECORD).read_text(), str(path / RECORD))
            return Checkpoint(path, record, manifest[MODEL]["sha256"])
        except FileNotFoundError as error:
            raise CheckpointError(f"{error.filename} is missing: the checkpoint is not complete") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise (error if isinstance(error, CheckpointError) else CheckpointError(f"{path}: {error}")) from None

    def prune(self, keep: set[int]) -> None:
        """Removes every checkpoint but those of the given steps, once the newest of these has been read back."""
        self.open(self.path(max(keep)))
        for path in self.folder.glob("step-*"):
            if path not in {self.path(step) for step in keep}:
                shutil.rmtree(path)


def load_strictly(
    net: nn.Module,
    tensors: Tensors,
    source: Path,
    *,
    kind: str = "the net of config.json",
    fix: str = "it is damaged, or of another net",
) -> None:
    """Copies tensors into a net whose names, shapes and dtypes must be exactly theirs.

    Args:
        net: left alone where something does not fit.
        tensors: on the CPU.
        source: of the tensors, for the message.
        kind: what the net is, for the message.
        fix: what may be wrong or what to do, for the message.

    Raises:
        CheckpointError: naming the first tensor that is missing, unknown, or of another shape or dtype.
    """
    wanted = net.state_dict()
    for name, tensor in wanted.items():
        if name not in tensors:
            raise CheckpointError(f"{source} has no tensor '{name}', which {kind} has: {fix}")
        found = tensors[name]
        if found.shape != tensor.shape or found.dtype != tensor.dtype:
            raise CheckpointError(
                f"{source}: '{name}' is {found.dtype} {tuple(found.shape)}, but {kind} has {tensor.dtype} "
                f"{tuple(tensor.shape)}: {fix}"
            )
    unknown = next((name for name in tensors if name not in wanted), None)
    if unknown is not None:
        raise CheckpointError(f"{source} has a tensor '{unknown}' that {kind} has not: {fix}")
    net.load_state_dict(tensors, strict=True)


def optimizer_tensors(optimizer: torch.optim.Optimizer, net: nn.Module, prefix: str) -> Tensors:
    """An optimiser's state (momentum; Adam's moments and step), named by the parameter it belongs to."""
    tensors = {}
    for name, parameter in net.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{prefix}/{name}/{key}"] = value
    return tensors


def load_optimizer(
    optimizer: torch.optim.Optimizer, net: nn.Module, prefix: str, tensors: Tensors, source: Path
) -> None:
    """The inverse of `optimizer_tensors`: every parameter of the net gets its state back, in place where it has one.

    Raises:
        CheckpointError: a tensor is missing, or of another shape or dtype than its parameter.
    """
    for name, parameter in net.named_parameters():
        state = optimizer.state[parameter]
        for key in _state_keys(optimizer):
            value = tensors.get(f"{prefix}/{name}/{key}")
            # Adam counts its steps on the CPU, or on the device if it is fused; moments lie where their parameter lies,
            # in its memory format.
            place = parameter.device if optimizer.param_groups[0].get("fused") else "cpu"
            like = torch.zeros((), device=place) if key == "step" else parameter.detach()
            if value is None or value.shape != like.shape or value.dtype != like.dtype:
                found = "no tensor" if value is None else f"{value.dtype} {tuple(value.shape)} as"
                raise CheckpointError(f"{source} has {found} '{prefix}/{name}/{key}': it is of another run or damaged")
            state.setdefault(key, torch.empty_like(like)).copy_(value)


def _state_keys(optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
    """The tensors an optimiser keeps for each parameter once it has stepped."""
    if isinstance(optimizer, torch.optim.Adam):
        return ("step", "exp_avg", "exp_avg_sq")
    return ("momentum_buffer",) if optimizer.param_groups[0]["momentum"] else ()


def _packed(tensors: Tensors) -> Tensors:
    """Contiguous copies on the CPU, as safetensors wants them: channels-last weights are stored in NCHW order."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _load(path: Path) -> Tensors:
    safetensors = _safetensors()
    try:
        return safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None


def _safetensors() -> ModuleType:
    """The library, imported where it is used: a run in memory needs none."""
    try:
        import safetensors.torch
    except ModuleNotFoundError:
        raise UsageError("reading and writing checkpoints needs safetensors: pip install safetensors") from None
    return safetensors


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
