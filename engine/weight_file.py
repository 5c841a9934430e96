"""A weight file from elsewhere as plain tensors, whatever its author wrapped them in; nothing in it is executed.

Published files put the state dict into a dictionary beside an optimiser's, put a prefix before every name
(DataParallel's `module.`, torch.compile's `_orig_mod.`), and hold the normalisation of the images as two tensors of
their own (RobustBench's `mu` and `sigma`). All of that is undone here, each with a line that says so.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import disk
from .errors import CheckpointError, UsageError
from .torch_file import first_line, read_torch_file

SAFETENSORS = (".safetensors",)
PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".tar")  # what torch.save's files are called
# The key of the state dict in a checkpoint. Where there are a `last` and a `best`, RobustBench reads `last`.
CONTAINERS = ("state_dict", "model_state_dict", "net", "model", "last", "best")
# What wrappers put before every name: DataParallel, torch.compile, a net in a net, nn.Sequential(normalisation, net).
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "1.")
NORMALISATIONS = (
    ("mu", "sigma"),
    ("mean", "std"),
    ("normalize.mean", "normalize.std"),  # RobustBench's normalize_model, whose net is `model`
    ("0.mean", "0.std"),  # nn.Sequential(normalisation, net), whose net is `1`
)
HALVES = (torch.float16, torch.bfloat16)
LARGER = 8  # times the file's bytes that its tensors may have together: several names may share what they are of


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightFile:
    """What one file holds.

    Attributes:
        path: the file.
        tensors: by the net's own names, on the CPU, in the file's order.
        mean, std: the normalisation that lay beside them, per channel; None where there is none.
        sha256: of the very bytes that the tensors are of, in hexadecimal.
        notes: what was undone, a line each.
    """

    path: Path
    tensors: dict[str, Tensor]
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    sha256: str
    notes: tuple[str, ...]


def is_weight_file(path: Path) -> bool:
    """Whether a path means a weight file, there or not, rather than a run's folder."""
    return path.is_file() or (not path.is_dir() and path.suffix in SAFETENSORS + PICKLES)


def read_weight_file(path: Path, *, own_names: Collection[str] = ()) -> WeightFile:
    """Reads a .safetensors file, or what torch.save wrote, by PyTorch's reader of plain data alone.

    Args:
        path: the file.
        own_names: of the net's tensors, where they may look like a wrapping: a file that has them all is left as it is.

    Raises:
        UsageError: there is no such file, or its name has another ending.
        CheckpointError: it is damaged, holds more than plain data (which is not executed), or no state dict.
    """
    if not path.is_file():
        raise UsageError(f"{path}: there is no such file, check the path")
    if path.suffix not in SAFETENSORS + PICKLES:
        endings = " ".join(SAFETENSORS + PICKLES)
        raise UsageError(f"{path} is not named like a weight file: its name must end in one of {endings}")
    notes: list[str] = []
    content, sha256 = _read_safetensors(path) if path.suffix in SAFETENSORS else read_torch_file(path)
    tensors = _state_dict(path, content, notes)
    tensors, normalisation = _unwrapped(path, tensors, own_names, notes)
    return WeightFile(
        path=path,
        tensors=_at_full_precision(tensors, notes),
        mean=None if normalisation is None else normalisation[0],
        std=None if normalisation is None else normalisation[1],
        sha256=sha256,
        notes=tuple(notes),
    )


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors, and the sha256 of the bytes that they are of."""
    import safetensors.torch

    try:
        with safetensors.safe_open(path, framework="pt"):
            pass  # a file that claims to be large, and is none, is refused before it is read
        content = disk.read(path.resolve())
        return safetensors.torch.load(content), hashlib.sha256(content).hexdigest()
    except Exception as error:  # safetensors' own; and what torch says to a type or a shape that it has not
        raise CheckpointError(f"{path} cannot be read as safetensors ({first_line(error)}): fetch it again") from None


def _state_dict(path: Path, content: Any, notes: list[str]) -> dict[str, Tensor]:
    """The tensors by name, out of the dictionaries they lie in."""
    found: list[str] = []
    outer: list[Any] = []  # plain data may hold itself: to follow it would never end
    while isinstance(content, Mapping):
        if any(content is one for one in outer):
            raise CheckpointError(
                f"{path} holds dictionaries that hold themselves, and no state dict: save one with "
                "torch.save(net.state_dict(), FILE)"
            )
        outer.append(content)
        key = next((key for key in CONTAINERS if isinstance(content.get(key), Mapping)), None)
        if key is None:
            break
        found.append(key)
        content = content[key]
    if found:
        notes.append(f"weights under '{'.'.join(found)}'")
    if not isinstance(content, Mapping) or not content:
        what = "is empty" if isinstance(content, Mapping) else f"holds a {type(content).__name__}"
        raise CheckpointError(f"{path} {what}, not a state dict: save one with torch.save(net.state_dict(), FILE)")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"{path}: '{name}' is a {type(value).__name__}, not a tensor, and no key of {', '.join(CONTAINERS)} "
                "holds a state dict: save the net's alone"
            )
        if value.layout is not torch.strided or value.is_quantized or value.device.type != "cpu":
            raise CheckpointError(f"{path}: '{name}' is no plain dense tensor: save the net's own state dict")
    size, room = sum(value.nbytes for value in content.values()), LARGER * path.stat().st_size
    if size > room:  # one number may stand for a tensor of any size
        raise CheckpointError(f"{path}: its tensors have {size:,} bytes, the file {room // LARGER:,}: fetch it again")
    return {name: value.detach() for name, value in content.items()}


def _unwrapped(
    path: Path, tensors: dict[str, Tensor], own_names: Collection[str], notes: list[str]
) -> tuple[dict[str, Tensor], tuple[tuple[float, ...], tuple[float, ...]] | None]:
    """The tensors without the prefixes that all of them have, and without the normalisation of the images."""
    normalisation = None
    stripped = ""
    while not own_names or not tensors.keys() >= set(own_names):
        pair = next((pair for pair in NORMALISATIONS if pair[0] in tensors and pair[1] in tensors), None)
        if pair is not None and normalisation is None:
            mean, std = (_constants(path, name, tensors.pop(name)) for name in pair)
            if min(std) <= 0:
                raise CheckpointError(
                    f"{path}: '{pair[1]}' is {_rounded(std)}, and images cannot be divided by what is not positive: it "
                    "is damaged, fetch it again"
                )
            normalisation = (mean, std)
            notes.append(
                f"images normalised by the file's own {pair[0]} {_rounded(mean)} and {pair[1]} {_rounded(std)}"
            )
            continue
        prefix = next((prefix for prefix in PREFIXES if all(name.startswith(prefix) for name in tensors)), None)
        if prefix is None or not tensors:
            break
        stripped += prefix
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    if stripped:
        notes.append(f"names without their prefix '{stripped}'")
    return tensors, normalisation


def _constants(path: Path, name: str, value: Tensor) -> tuple[float, ...]:
    """A constant per channel; a tensor like [1, C, 1, 1]."""
    if value.numel() > max(value.shape, default=1) or not value.numel() or not value.is_floating_point():
        raise CheckpointError(f"{path}: '{name}' is {value.dtype} {tuple(value.shape)}, not a constant per channel")
    constants = tuple(value.double().flatten().tolist())
    if not all(map(math.isfinite, constants)):
        raise CheckpointError(f"{path}: '{name}' is {_rounded(constants)}, not finite: it is damaged, fetch it again")
    return constants


def _at_full_precision(tensors: dict[str, Tensor], notes: list[str]) -> dict[str, Tensor]:
    halves = [name for name, value in tensors.items() if value.dtype in HALVES]
    if halves:
        kind = str(tensors[halves[0]].dtype).removeprefix("torch.")
        notes.append(f"{len(halves)} tensors are {kind}: computed with in float32, as every attack is")
    return {name: value.float() if value.dtype in HALVES else value for name, value in tensors.items()}


def _rounded(values: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"
