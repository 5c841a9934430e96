"""What saves and guards cost: the shares of a real, small training."""

from __future__ import annotations

import csv
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("safetensors")
pytest.importorskip("pydantic")
pytest.importorskip("tyro")
from hardfast.bench.safety import PARTS, bench_safety
from hardfast.engine import UsageError, cli, recipes
from hardfast.engine.checkpoint import CheckpointStore
from hardfast.engine.run_guard import RunGuard
from hardfast.loaders import DataOptions
from hardfast.loaders.synthetic import SyntheticShape

SHAPE = SyntheticShape(train_images=40, test_images=8)
TINY = replace(
    recipes.get("digits"),
    batch_size=8,
    data=DataOptions(name="synthetic", image_size=8, heldout=8, synthetic=SHAPE),
)


def rows_of(tmp_path: Path) -> dict[str, dict[str, str]]:
    said = bench_safety(TINY, epochs=1, rounds=2, csv=tmp_path / "rows.csv")
    assert all(part in said for part in PARTS)
    with (tmp_path / "rows.csv").open(newline="") as file:
        return {row["part"]: row for row in csv.DictReader(file)}


def test_time_is_charged_to_what_took_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A save that sleeps, and then a guard that does."""
    before = {part: float(row["part_ms"]) for part, row in rows_of(tmp_path).items()}
    assert 0 < before["saves"] < 1000
    for part, kind, name in (("saves", CheckpointStore, "save"), ("guards", RunGuard, "_trained_since")):
        work = getattr(kind, name)

        def slow(*words: Any, work: Any = work, **options: Any) -> Any:
            time.sleep(1)
            return work(*words, **options)

        with monkeypatch.context() as patch:
            patch.setattr(kind, name, slow)
            after = {row: float(found["part_ms"]) for row, found in rows_of(tmp_path).items()}
        assert {row: after[row] > before[row] + 900 for row in PARTS} == {row: row == part for row in PARTS}


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["digits", "--epochs", "0"], "--epochs must be at least 1"),
        (["digits", "--rounds", "1"], "--rounds at least 2"),
        (["digits", "--csv", "/dev/null/x"], "--csv /dev/null/x cannot be written"),
        (["digit"], "digits"),
    ],
)
def test_wrong_words(words: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["bench", "safety", *words]) == 2
    said = capsys.readouterr().err
    assert part in said
    assert said.count("\n") == 1


def test_wrong_numbers() -> None:
    with pytest.raises(UsageError, match="not 0 and 2"):
        bench_safety(TINY, epochs=0, rounds=2)
