"""The picture of `hardfast profile`: a bar for the time of each phase, with its floor marked. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .ledger import STEP, Entry

if TYPE_CHECKING:  # what only computes does without matplotlib
    from matplotlib.figure import Figure

BAR, FLOOR = "#1f5fa8", "#d1495b"
INCHES, DOTS = 8.0, 150


def draw(entries: Sequence[Entry], path: Path, *, title: str) -> None:
    """Writes the picture of the average step as a PNG file.

    Args:
        entries: from `ledger`.
        path: of the file.
        title: above the bars.
    """
    picture(entries, title).savefig(path, format="png", dpi=DOTS)


def picture(entries: Sequence[Entry], title: str) -> Figure:
    """The picture itself, with the phases from above in the order in which they run."""
    from matplotlib.figure import Figure

    shown = [entry for entry in entries if entry.kind == "average" and entry.phase != STEP]
    (whole,) = (entry for entry in entries if entry.kind == "average" and entry.phase == STEP)
    figure = Figure(figsize=(INCHES, 1.4 + 0.42 * len(shown)), layout="constrained")
    axes = figure.subplots()
    milliseconds = [1000 * entry.seconds.median for entry in shown]
    floors = [1000 * entry.floor for entry in shown]
    axes.barh(range(len(shown)), milliseconds, height=0.62, color=BAR, label="measured (median)")
    marked = [place for place, floor in enumerate(floors) if floor]
    below, above = [place - 0.4 for place in marked], [place + 0.4 for place in marked]
    axes.vlines([floors[place] for place in marked], below, above, color=FLOOR, linewidth=2.5, label="floor")
    for place, entry in enumerate(shown):
        words = f"{entry.share:.1%}" + ("" if entry.times_floor is None else f", {entry.times_floor:.3g} x floor")
        right = max(milliseconds[place], floors[place])
        axes.annotate(words, (right, place), xytext=(6, 0), textcoords="offset points", va="center", fontsize=9)
    axes.set_yticks(range(len(shown)), [f"{entry.phase} ({entry.units:.2f})" for entry in shown])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.3 * max(milliseconds + floors))
    axes.set_xlabel(f"ms of a step of {1000 * whole.seconds.median:.4g} ms; in brackets, units (classifier forwards)")
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", frameon=False)
    return figure
