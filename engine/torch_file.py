"""What torch.save wrote, read as plain data: no code in it runs, and it becomes no larger than it is.

torch's own reader of plain data executes nothing, but unpacks whatever is packed, and builds whatever is described. So
a file is looked over before it is read.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch

from . import disk
from .errors import CheckpointError

MOST_VALUES = 10_000_000  # that one value of a pickle may consist of, each counted as often as it is meant
OLD_FORMAT = 5  # pickles that a file of the old format begins with
_PUTS, _GETS = ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), ("GET", "BINGET", "LONG_BINGET")
_MARK = 0  # on the stack of sizes


def read_torch_file(path: Path) -> tuple[Any, str]:
    """The plain data of a file, on the CPU, and the sha256 of the bytes that they were read from.

    Raises:
        CheckpointError: it is damaged, holds more than plain data, or would become larger than it is.
    """
    try:
        with path.open("rb") as file:
            _look_over(path, file)  # one that claims to be large, and is none, is refused before it is read
        content = disk.read(path.resolve())
        _look_over(path, io.BytesIO(content))  # it may be another by now
        with warnings.catch_warnings():  # of formats that are then refused
            warnings.simplefilter("ignore")
            data = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        return data, hashlib.sha256(content).hexdigest()
    except CheckpointError:
        raise
    except Exception as error:  # the reader of a damaged or malicious file raises whatever it stumbles over
        refused = re.search(r"[Uu]nsupported (?:global: )?GLOBAL (\S+)", str(error))
        if refused is None:
            raise CheckpointError(
                f"{path} cannot be read as plain data of torch.save, and nothing in it was executed: it is damaged or "
                "another kind of file; fetch it again, or save torch.save(net.state_dict(), FILE)"
            ) from None
        raise CheckpointError(
            f"{path} holds {refused[1]}, which is no plain data and was not executed: where you trust the file, save "
            "its net's weights alone with torch.save(net.state_dict(), FILE)"
        ) from None


def first_line(error: Exception) -> str:
    """What a reader says, without its last dot."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def _look_over(path: Path, stream: IO[bytes]) -> None:
    """Refuses a file that would become larger than it is; one that cannot be looked over raises what it may."""
    size = stream.seek(0, os.SEEK_END)
    if zipfile.is_zipfile(stream):
        with zipfile.ZipFile(stream) as file:
            members = file.infolist()
            packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
            if packed or sum(member.file_size for member in members) > size:
                raise CheckpointError(
                    f"{path} would become larger than it is, as no file of torch.save does: fetch it again"
                )
            for member in members:
                if member.filename.endswith(".pkl"):
                    with file.open(member) as pickled:
                        _refuse_repeated(path, pickled)
        return
    stream.seek(0)
    for _ in range(OLD_FORMAT):  # the old format, or none
        _refuse_repeated(path, stream)
        if stream.tell() == size:
            return


def _refuse_repeated(path: Path, stream: IO[bytes]) -> None:
    """A pair of pairs of pairs needs few bytes, and each level doubles what it means: to hash it would take hours."""
    if any(size > MOST_VALUES for size in _sizes(stream)):
        raise CheckpointError(f"{path} repeats itself without end, as no file of torch.save does: fetch it again")


def _sizes(stream: IO[bytes]) -> Iterator[int]:
    """Of how many values each value of a pickle consists, without making any; follows `pickletools.dis`.

    Raises:
        ValueError, IndexError, KeyError: it is no pickle.
    """
    stack: list[int] = []
    memo: dict[Any, int] = {}
    for opcode, word, _ in pickletools.genops(stream):
        if opcode.name in _PUTS:
            memo[len(memo) if word is None else word] = stack[-1]
            continue
        if opcode.name in _GETS:
            stack.append(memo[word])
            continue
        before, popped = opcode.stack_before, 0
        count = len(before)
        if pickletools.markobject in before or (opcode.name == "POP" and stack and stack[-1] == _MARK):
            while (size := stack.pop()) != _MARK:
                popped += size
            count = before.index(pickletools.markobject) if pickletools.markobject in before else 0
        for _ in range(count):
            popped += stack.pop()
        stack.extend(_MARK if after is pickletools.markobject else popped + 1 for after in opcode.stack_after)
        yield popped + 1
