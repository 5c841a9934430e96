"""A progress bar on a terminal; a single line where tqdm is not installed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(total: int, label: str, *, unit: str, plain: str) -> Iterator[Callable[[int], object]]:
    """What is told of every piece that is done.

    Args:
        total: pieces; 0 is unknown.
        label: stands before the bar.
        unit: of a piece, `B` for bytes.
        plain: the line that is written instead of a bar without tqdm.
    """
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        sys.stderr.write(f"{plain}\n")
        yield lambda done: None
        return
    with tqdm(total=total or None, desc=label, unit=unit, unit_scale=unit == "B", disable=None) as bar:
        yield bar.update
