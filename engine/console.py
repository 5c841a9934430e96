"""What the engine says on a terminal: lines on stdout, progress bars on stderr (none where it is not a terminal)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm


def line(text: str = "") -> None:
    """One line on stdout, above any bar that is being drawn; at once, also into a pipe."""
    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


def error(text: str) -> None:
    """One line on stderr."""
    tqdm.write(" ".join(text.split()), file=sys.stderr)


def bar(total: int | None, label: str, unit: str, *, initial: int = 0, quiet: bool = False) -> tqdm[Any]:
    """A progress bar with rate and time left, gone when it is done; none if quiet or if stderr is not a terminal."""
    return tqdm(
        total=total,
        desc=label,
        unit=unit,
        initial=initial,
        leave=False,
        dynamic_ncols=True,
        disable=True if quiet else None,
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell; the first left-aligned, the others right-aligned."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = []
    for row in (header, ["-" * width for width in widths], *rows):
        cells = [
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
