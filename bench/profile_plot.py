"""The picture of `hardfast profile`: a bar for the time of each phase, with its floor marked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .ledger import STEP, Entry

BAR, FLOOR = "#4878a8", "#c44e52"
INCHES, DOTS = 8.0, 150


def draw(entries: Sequence[Entry], path: Path, *, title: str) -> None:
    """Draws the average step into a PNG file; needs matplotlib.

    Args:
        entries: from `ledger`.
        path: of the file.
        title: above the bars.
    """
    from matplotlib.figure import Figure

    shown = [entry for entry in entries if entry.kind == "average" and entry.phase != STEP]
    (whole,) = (entry for entry in entries if entry.kind == "average" and entry.phase == STEP)
    figure = Figure(figsize=(INCHES, 1.4 + 0.42 * len(shown)), layout="constrained")
    axes = figure.subplots()
    places = range(len(shown))
    milliseconds = [1000 * entry.seconds.median for entry in shown]
    floors = [1000 * entry.floor for entry in shown]
    axes.barh(places, milliseconds, height=0.62, color=BAR, label="measured, median")
    axes.vlines(floors, [p - 0.4 for p in places], [p + 0.4 for p in places], color=FLOOR, linewidth=2.5, label="floor")
    for place, entry in zip(places, shown, strict=True):
        words = f"{entry.share:.1%}" + ("" if entry.times_floor is None else f", {entry.times_floor:.1f} x floor")
        axes.annotate(
            words,
            (max(milliseconds[place], floors[place]), place),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
    axes.set_yticks(places, [f"{entry.phase} ({entry.units:.2f})" for entry in shown])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.3 * max(milliseconds + floors))
    axes.set_xlabel(f"ms of a step of {1000 * whole.seconds.median:.4g} ms; in brackets, units (classifier forwards)")
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", frameon=False)
    figure.savefig(path, dpi=DOTS)
