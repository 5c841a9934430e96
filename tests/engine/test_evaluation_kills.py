"""`kill -9` inside the full AutoAttack of a real `hardfast evaluate`, in one of its attacks after the other."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from .processes import Process, finished, forked, kill_started, send, wait_until

pytest.importorskip("tyro")
pytest.importorskip("sklearn")
pytest.importorskip("pyautoattack")

STAGES = ("clean", "apgd-ce", "apgd-t", "fab-t", "square")


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    yield
    kill_started()


def attacked(run: Path) -> Process:
    """AutoAttack, standard version, on four images, each a batch of its own."""
    words = ["evaluate", str(run), "--attacks", "aa", "--samples", "4", "--batch-size", "1", "--device", "cpu"]
    return forked(words, run.with_suffix(".txt"))


def progress(run: Path) -> dict[str, Any]:
    """What lies on disk of it; nothing done where nothing does."""
    for path in (run / "evaluations").glob("partial-aa-*.json"):
        with suppress(FileNotFoundError):  # the attack has ended meanwhile
            found: dict[str, Any] = json.loads(path.read_text())["progress"]
            return found
    return {"stage": 0, "done": 0, "seconds": 0.0}


@pytest.mark.slow
def test_kill_9_inside_autoattack(quick_run: Path, tmp_path: Path) -> None:
    whole, run = (Path(shutil.copytree(quick_run, tmp_path / name)) for name in ("whole", "run"))
    for folder in (whole, run):
        for path in folder.glob("evaluation*.json*"):
            path.unlink()
        shutil.rmtree(folder / "evaluations", ignore_errors=True)
    finished(attacked(whole))
    one_go = json.loads((whole / "evaluation.json").read_text())["attacks"]["aa"]
    assert 0 < one_go["accuracy"] < 100

    killed = []
    for stage in (1, 2, 3):
        process = attacked(run)
        if wait_until(lambda: progress(run)["stage"] >= stage, process):  # noqa: B023
            send(process, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        killed.append(STAGES[progress(run)["stage"]])
    said = finished(attacked(run))
    assert "aa      goes on at image" in said
    found = json.loads((run / "evaluation.json").read_text())["attacks"]["aa"]
    assert {key: found[key] for key in found if key != "seconds"} == {
        key: one_go[key] for key in one_go if key != "seconds"
    }
    assert len(set(killed)) > 1, killed
    assert not list((run / "evaluations").glob("partial-*"))
