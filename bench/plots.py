"""The picture of `bench growth`: a column for each axis, measured beside modelled. Needs matplotlib.

`python -m hardfast.bench.plots growth.png growth-model.csv growth-k.csv` draws it anew from CSV files.
"""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from ..engine import console
from .rows import read_rows

Row = Mapping[str, Any]
LABELS = {
    "model": "model",
    "resolution": "side of an image (pixels)",
    "batch": "batch (images)",
    "k": "k (generator updated every k-th step)",
}
MEASURED, MODELLED, PAPER = "#1f5fa8", "#d1495b", "#3c8d40"
PANEL = 3.6  # inches
LABEL = 0.07  # of a panel, for the number of a tick
PLAIN_NUMBERS = FuncFormatter(lambda value, _: f"{value:g}")


def draw_growth(rows: Sequence[Row], path: Path) -> None:
    """Writes a PNG: above, FGSM-SDI over plain training at each point; below, FGSM-SDI over itself at the base.

    Args:
        rows: of `bench growth`, as in its CSV, of one or several of its runs with the same base.
        path: the PNG file.
    """
    axes = [axis for axis in LABELS if any(row["axis"] == axis for row in rows)]
    figure = Figure(figsize=(1.2 + PANEL * len(axes), 7.4), layout="constrained")
    panels = figure.subplots(2, len(axes), squeeze=False)
    top = 1.08 * max(_most(rows, "plain"), 1)
    for axis, (above, below) in zip(axes, panels.T, strict=True):
        own = [row for row in rows if row["axis"] == axis]
        _panel(above, own, "plain")
        above.set_ylim(0, top)
        _panel(below, own, "base")
        if axis == "k":
            _paper(below, own)
            below.set_ylim(0, 1.08 * _most(own, "base"))
        else:
            below.set_yscale("log")
            below.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            below.yaxis.set_minor_formatter(NullFormatter())
            below.yaxis.set_major_formatter(PLAIN_NUMBERS)
        above.set_title(f"{axis}" + (" (arithmetic on two timed steps)" if axis == "k" else ""), fontsize=11)
        below.set_xlabel(LABELS[axis])
    panels[0, 0].set_ylabel("FGSM-SDI step / plain training step")
    panels[1, 0].set_ylabel(f"FGSM-SDI step / that of the base\n({_all(rows, 'base')})")
    figure.suptitle(_title(rows), fontsize=12)
    shown = {label: handle for panel in panels.flat for handle, label in _labelled(panel)}
    figure.legend(list(shown.values()), list(shown), loc="outside lower center", ncols=len(shown), fontsize=9)
    picture = io.BytesIO()
    FigureCanvasAgg(figure).print_png(picture)
    path.write_bytes(picture.getvalue())


def _panel(panel: Axes, rows: Sequence[Row], over: str) -> None:
    """Median with the band from the 20th to the 80th percentile, and the model as a dashed line."""
    names = rows[0]["axis"] == "model"
    x = list(range(len(rows))) if names else [float(row["value"]) for row in rows]
    median, low, high, model = (
        [float(row[name]) for row in rows]
        for name in (f"sdi_over_{over}", f"sdi_over_{over}_p20", f"sdi_over_{over}_p80", f"modelled_over_{over}")
    )
    if names:  # nothing lies between two models
        spread = [_less(median, low), _less(high, median)]
        panel.errorbar(x, median, spread, fmt="none", ecolor=MEASURED, alpha=0.45, elinewidth=9)
        panel.set_xticks(x, [str(row["value"]) for row in rows], rotation=15)
        panel.set_xlim(-0.5, len(x) - 0.5)
    else:
        panel.fill_between(x, low, high, color=MEASURED, alpha=0.25, linewidth=0, label="p20 to p80")
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_locator(FixedLocator(_apart(x)))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.xaxis.set_major_formatter(PLAIN_NUMBERS)
    panel.plot(x, median, "o" if names else "o-", color=MEASURED, markersize=5, label="measured (median)")
    panel.plot(x, model, "D--" if names else "--", color=MODELLED, markersize=4, label="model: operations alone")
    panel.grid(alpha=0.3)


def _labelled(panel: Axes) -> list[tuple[Any, str]]:
    return list(zip(*panel.get_legend_handles_labels(), strict=True))


def _apart(values: Sequence[float]) -> list[float]:
    """Those whose numbers do not run into each other on a logarithmic axis that all of them fill."""
    gap = LABEL * math.log(values[-1] / values[0])
    kept = [values[0]]
    for value in values[1:]:
        if math.log(value / kept[-1]) >= gap:
            kept.append(value)
    return kept


def _most(rows: Sequence[Row], over: str) -> float:
    return max(float(row[name]) for row in rows for name in (f"sdi_over_{over}_p80", f"modelled_over_{over}"))


def _less(upper: Sequence[float], lower: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(upper, lower, strict=True)]


def _paper(panel: Axes, rows: Sequence[Row]) -> None:
    """Table II's times, as multiples of what was measured at the paper's own k."""
    known = [row for row in rows if row["paper_over_k20"] not in (None, "")]
    at = [float(row["sdi_over_base"]) for row in known if float(row["paper_over_k20"]) == 1]
    if at:
        x = [float(row["value"]) for row in known]
        y = [at[0] * float(row["paper_over_k20"]) for row in known]
        panel.plot(x, y, "s:", color=PAPER, markersize=4, label="the paper's Table II, set equal at k = 20")


def _title(rows: Sequence[Row]) -> str:
    what, versions = _all(rows, "device"), [f"torch {_all(rows, 'torch')}"]
    if rows[0]["cuda"]:
        versions += [f"triton {_all(rows, 'triton')}", f"CUDA {_all(rows, 'cuda')}"]
    else:
        what += f", threads: {_all(rows, 'threads')}"
    return (
        f"What a step of FGSM-SDI costs, and how that grows\n{what}, {_all(rows, 'mode')}, "
        f"{_all(rows, 'precision')}, {', '.join(versions)}, git {_all(rows, 'git')}"
    )


def _all(rows: Sequence[Row], column: str) -> str:
    """The column's value, or all of them where rows differ."""
    return " and ".join(dict.fromkeys(str(row[column]) for row in rows))


def main(words: Sequence[str]) -> int:
    """Draws the picture FILE.png of the rows of all the CSV files; 2 for wrong use."""
    if len(words) < 2:
        console.error("python -m hardfast.bench.plots FILE.png ROWS.csv ...")
        return 2
    draw_growth(read_rows([Path(word) for word in words[1:]]), Path(words[0]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
