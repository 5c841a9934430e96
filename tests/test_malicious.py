"""Files made to attack who reads them, through the real entries: nothing of them runs, and each is refused in time."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

pytest.importorskip("safetensors")
pytest.importorskip("pydantic")
pytest.importorskip("tyro")
pytest.importorskip("sklearn")

from hardfast.engine.checkpoint import MODEL, CheckpointStore

from .engine.store_writer import content, record
from .malicious import BOMBS, PICKLES
from .night import figure, tries
from .readers import MEMORY, SECONDS, readers

AREA = "malicious pickles, archive bombs, header fuzz"
BATCH = 1000


@pytest.mark.parametrize("name", PICKLES)
def test_code_in_pickles_does_not_run(name: str, tmp_path: Path) -> None:
    """And it would: the same file, given to a reader that obeys it, makes the canary."""
    suffix, make = PICKLES[name]
    path, canary = tmp_path / f"weights{suffix}", tmp_path / "canary"
    make(path, canary)
    readers().run("obey", path)
    assert canary.exists(), "no danger"
    canary.unlink()
    for reader, kind in (("weights", "CheckpointError"), ("evaluate", "RuntimeError")):
        told = readers().run(reader, path)
        assert not canary.exists(), reader
        assert told["type"] == kind, told
        assert "\n" not in told["text"]
        assert str(path) in told["text"]
    assert told["text"].startswith("2: hardfast: ")
    figure(AREA, tried=1, held=1, fired=1, note="pickles")


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_in_time(name: str, tmp_path: Path) -> None:
    """Within five seconds of the processor, after which the reader is killed, and in little memory."""
    reader, make = BOMBS[name]
    told = readers().run(reader, make(tmp_path))
    assert told["ended"] == 0, told
    assert told["type"] in ("CheckpointError", "DataError"), told
    assert "\n" not in told["text"]
    assert told["grown"] < MEMORY // 2, told
    assert not (tmp_path / "canary").exists()
    figure(AREA, tried=1, held=1, note="bombs")


def test_a_reader_without_bounds_is_stopped(tmp_path: Path) -> None:
    """The control: the same bomb, obeyed, takes more memory than a reader may have; another, more time."""
    told = readers().run("unbounded", BOMBS["packed_zeroes"][1](tmp_path))
    assert told["grown"] > MEMORY // 2 or "alloc" in told["text"], told
    told = readers().run("unbounded", BOMBS["doubled"][1](tmp_path), seconds=0)
    assert told["ended"] < 0, told


def test_damaged_headers(tmp_path: Path) -> None:
    tried, refused = tries(2_000, 50_000), 0
    for seed in range(tried // BATCH):
        told = readers().run("fuzz", tmp_path / "w.safetensors", seed=seed, count=BATCH)
        assert told["ended"] == 0, told
        assert told["type"] == "", told
        assert told["refused"] + told["read"] == BATCH
        assert told["slowest"] < SECONDS, told
        refused += told["refused"]
    assert refused > tried * 0.8
    figure(AREA, tried=tried, held=tried, note="headers of .safetensors")


def test_a_whole_header_is_read(tmp_path: Path) -> None:
    """The control of the damaged ones."""
    store, tensors = CheckpointStore(tmp_path / "checkpoints"), content(1, 0)
    path = store.save(1, model=tensors, state=tensors, record=record(1))
    shutil.copy(path / MODEL, tmp_path / "w.safetensors")
    assert readers().run("tensors", tmp_path / "w.safetensors")["type"] == ""
