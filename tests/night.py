"""How often a test tries something, by day and by night, and what came of it.

`make test` tries each thing often enough to see it break, `make test-night` (HARDFAST_NIGHT=1) often enough for a
figure that can be promised. Where HARDFAST_FIGURES names a file, every campaign adds a line to it, and `python -m
tests.night FILE` writes them into tests/README.md as a table.
"""

from __future__ import annotations

import json
import os
import sys
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

NIGHT = os.environ.get("HARDFAST_NIGHT", "0") not in ("", "0")
README = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- figures of the night -->", "<!-- end of figures -->"


def tries(day: int, night: int) -> int:
    """How often something is tried: `day` in `make test`, `night` in `make test-night`."""
    return night if NIGHT else day


def figure(area: str, *, tried: int, held: int, fired: int | None = None, note: str = "") -> None:
    """Notes what a campaign found; several lines of one area are added up in the table.

    Args:
        area: what was tried, in words that the table's first column shows.
        tried: faults, runs or inputs.
        held: how many of them ended as promised.
        fired: at how many of them the planted fault was seen to happen, where one was planted.
        note: anything else, in a few words.
    """
    path = os.environ.get("HARDFAST_FIGURES")
    if path:
        line = {"area": area, "tried": tried, "held": held, "fired": fired, "note": note, "night": NIGHT}
        with Path(path).open("a") as file:  # one short write: processes that test side by side do not mix their lines
            file.write(json.dumps(line) + "\n")


def table(lines: Sequence[dict[str, Any]]) -> str:
    """The lines of `figure` as a Markdown table, one row for each area, in alphabetical order."""
    areas: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        areas[line["area"]].append(line)
    rows = ["| area | tried | fault seen to fire | held | |", "|---|---:|---:|---:|---|"]
    for area, found in sorted(areas.items()):
        tried, held = (sum(line[name] for line in found) for name in ("tried", "held"))
        fired = [line["fired"] for line in found if line["fired"] is not None]
        notes = "; ".join(dict.fromkeys(line["note"] for line in found if line["note"]))
        rows.append(f"| {area} | {tried:,} | {f'{sum(fired):,}' if fired else ''} | {held:,} | {notes} |")
    return "\n".join(rows)


def main(path: str) -> None:
    """Writes the figures of one night into README.md, between its marks."""
    lines = [json.loads(line) for line in Path(path).read_text().splitlines()]
    text = README.read_text()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    versions = f"{os.cpu_count()} cores, torch {metadata.version('torch')}"
    when = f"`make test-night` on {datetime.now(UTC):%Y-%m-%d}, {versions}:"
    README.write_text(f"{before}{BEGIN}\n{when}\n\n{table(lines)}\n{END}{after}")


if __name__ == "__main__":
    main(sys.argv[1])
