"""The sha256 that is reported of a weight file is that of the bytes its tensors are of."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("safetensors")

import safetensors.torch

from hardfast.engine.weight_file import read_weight_file


def written(path: Path, value: float) -> bytes:
    """What a file of one tensor holds."""
    tensors = {"w": torch.full((3,), value)}
    safetensors.torch.save_file(tensors, path) if path.suffix == ".safetensors" else torch.save(tensors, path)
    return path.read_bytes()


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_a_file_that_another_takes_the_place_of_while_it_is_read(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = written(tmp_path / f"other-{name}", 2.0)
    content = written(tmp_path / f"real-{name}", 1.0)
    path, fired = tmp_path / name, []
    path.symlink_to(tmp_path / f"real-{name}")  # as caches of downloads have it

    def replacing(read: Callable[..., Any]) -> Callable[..., Any]:
        def replaced(*words: Any, **options: Any) -> Any:
            found = read(*words, **options)
            fired.append(path.write_bytes(other))
            return found

        return replaced

    for module, reader in ((torch, "load"), (safetensors.torch, "load"), (safetensors.torch, "load_file")):
        monkeypatch.setattr(module, reader, replacing(getattr(module, reader)))
    first = read_weight_file(path)
    assert len(fired) == 1
    assert (first.tensors["w"][0], first.sha256) == (1.0, hashlib.sha256(content).hexdigest())
    second = read_weight_file(path)  # the control: it is the other one now
    assert (second.tensors["w"][0], second.sha256) == (2.0, hashlib.sha256(other).hexdigest())
