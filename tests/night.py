"""How often a test tries something, by day and by night, and what came of it.

`make test` tries each thing often enough to see it break, `make test-night` (HARDFAST_NIGHT=1) often enough for a
figure that can be promised. Where HARDFAST_FIGURES names a file, every campaign adds a line to it, and `python -m
tests.night FILE COMMAND` puts them into the table of tests/README.md. A campaign that breaks off has no line.
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
HEADER = "| area | tried | fault seen to fire | held | what | when, by which command, where |"
RULE = "|---|---:|---:|---:|---|---|"


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


def table(lines: Sequence[dict[str, Any]]) -> dict[str, str]:
    """The rows of a Markdown table by area, the lines of each added up; without the last column, when."""
    areas: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        areas[line["area"]].append(line)
    rows = {}
    for area, found in areas.items():
        tried, held = (sum(line[name] for line in found) for name in ("tried", "held"))
        fired = [line["fired"] for line in found if line["fired"] is not None]
        notes = "; ".join(dict.fromkeys(line["note"] for line in found if line["note"]))
        rows[area] = f"| {area} | {tried:,} | {f'{sum(fired):,}' if fired else ''} | {held:,} | {notes} |"
    return rows


def main(path: str, *words: str) -> None:
    """Puts the figures of a night into README.md between its marks, area by area: others stay as they are.

    Args:
        path: the lines of `figure`.
        words: the command that made them, for the column beside the date.
    """
    lines = [line for line in map(json.loads, Path(path).read_text().splitlines()) if line["night"]]
    before, rest = README.read_text().split(BEGIN)
    old, after = rest.split(END)
    rows = {row.split("|")[1].strip(): row for row in old.splitlines() if row.startswith("| ") and row != HEADER}
    when = (
        f"{datetime.now(UTC):%Y-%m-%d}, `{' '.join(words)}`, {os.cpu_count()} cores, torch {metadata.version('torch')}"
    )
    rows |= {area: row + f" {when} |" for area, row in table(lines).items()}
    told = "\n".join([HEADER, RULE, *(rows[area] for area in sorted(rows))])
    README.write_text(f"{before}{BEGIN}\n{told}\n{END}{after}")


if __name__ == "__main__":
    main(*sys.argv[1:])
