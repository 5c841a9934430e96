"""What the engine says on a terminal: lines on stdout, progress bars on stderr (none where it is not a terminal)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Self, TextIO, cast


class Bar:
    """The calls of tqdm's bars that the engine makes. This one, where tqdm is not installed, draws nothing."""

    desc = ""
    disable = True  # nothing is drawn

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def update(self, n: int = 1) -> None:
        """So much more is done."""

    def reset(self, total: int) -> None:
        """It begins anew."""

    def set_description(self, desc: str) -> None:
        """What stands before the bar."""

    def set_postfix_str(self, s: str) -> None:
        """What stands behind it."""


def line(text: str = "") -> None:
    """One line on stdout, above any bar that is being drawn; at once, also into a pipe."""
    _write(text, sys.stdout)
    sys.stdout.flush()


def error(text: str) -> None:
    """One line on stderr."""
    _write(" ".join(text.split()), sys.stderr)


def _write(text: str, file: TextIO) -> None:
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        file.write(f"{text}\n")
    else:
        tqdm.write(text, file=file)


def bar(total: int | None, label: str, unit: str, *, initial: int = 0, quiet: bool = False) -> Bar:
    """A progress bar with rate and time left, gone when it is done; none if quiet, if stderr is not a terminal, or
    without tqdm.
    """
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        return Bar()
    drawn = tqdm(
        total=total,
        desc=label,
        unit=unit,
        initial=initial,
        leave=False,
        dynamic_ncols=True,
        disable=True if quiet else None,
    )
    return cast("Bar", drawn)


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
