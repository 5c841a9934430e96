"""The rows of a benchmark as CSV and JSON, each file written whole."""

from __future__ import annotations

import csv as csv_files
import io
import json as json_files
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import triton

from ..engine.run_folder import write_whole


def place_columns(environment: Mapping[str, Any], state: Mapping[str, Any]) -> dict[str, Any]:
    """The columns that say when, where and with what a row was measured.

    Args:
        environment: from `describe_environment`.
        state: of the GPU just after the timing, from `gpu_state`.
    """
    numerics = environment["numerics"]
    return {
        "date": environment["date"],
        "git": environment["git"],
        "device": numerics["device"],
        "threads": numerics["threads"],
        **state,
        "torch": numerics["torch"],
        "triton": triton.__version__,
        "cuda": numerics["cuda"],
        "cudnn": None if numerics["cuda"] is None else torch.backends.cudnn.version(),
    }


def write_rows(rows: Sequence[Mapping[str, Any]], *, csv: Path | None, json: Path | None) -> None:
    """Writes rows with equal columns to the files that are asked for."""
    if csv is not None:
        write_whole(csv, csv_text(rows))
    if json is not None:
        write_whole(json, json_files.dumps(list(rows), indent=2) + "\n")


def read_rows(files: Sequence[Path]) -> list[dict[str, Any]]:
    """The rows of CSV files that `write_rows` wrote, their values as text."""
    rows: list[dict[str, Any]] = []
    for path in files:
        with path.open(newline="") as file:
            rows += csv_files.DictReader(file)
    return rows


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """A header and a line for each row."""
    text = io.StringIO()
    writer = csv_files.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
