"""The picture of `hardfast bench loaders`: images per second of each loader at each size, beside what a step needs.

Needs matplotlib. `python -m hardfast.bench.loaders_plot PICTURE.png ROWS.csv ...` draws it anew from CSV files.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..engine import console
from .rows import read_rows

if TYPE_CHECKING:  # what only computes does without matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
STYLES = {
    "resident": ("#1f5fa8", "o"),
    "resident-padded": ("#6aa5d9", "s"),
    "ffcv": ("#3c8d40", "^"),
    "dali": ("#8a5aa8", "D"),
    "torch": ("#d98324", "v"),
}
NEED, TARGET = "#222222", "#d1495b"
APART = 0.16  # of two loaders at one size, where two sizes are 1 apart
BEHIND = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none"}  # keeps numbers off the lines
INCHES, DOTS = (9.5, 5.6), 150


def draw_loaders(rows: Sequence[Row], path: Path) -> None:
    """Writes a PNG.

    Args:
        rows: of `bench loaders`, as in its CSV.
        path: the PNG file.
    """
    picture(rows).savefig(path, format="png", dpi=DOTS)


def picture(rows: Sequence[Row]) -> Figure:
    """The picture itself: loaders side by side at each size, each with its interval."""
    from matplotlib.figure import Figure

    sizes = sorted({int(row["image_size"]) for row in rows})
    figure = Figure(figsize=INCHES, layout="constrained")
    axes = figure.subplots()
    for name, (colour, marker) in STYLES.items():
        own = [row for row in rows if row["loader"] == name]
        if own:
            _loader(axes, own, sizes, colour, marker)
    for place, size in enumerate(sizes):
        _needs(axes, next(row for row in rows if int(row["image_size"]) == size), place)
    models = {int(row["image_size"]): row["model"] for row in rows}
    axes.set_xticks(range(len(sizes)), [f"{size} px\nstep: {models[size]}" for size in sizes])
    axes.set_xlim(-0.5, len(sizes) - 0.5)
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.set_ylim(low / 1.3, high * 1.6)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axes.set_ylabel("images/s")
    axes.grid(axis="y", alpha=0.3)
    axes.set_title(_title(rows), fontsize=10)
    labelled = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))  # one for each label
    figure.legend(list(labelled.values()), list(labelled), loc="outside lower center", ncols=3, fontsize=9)
    return figure


def _loader(axes: Axes, rows: Sequence[Row], sizes: Sequence[int], colour: str, marker: str) -> None:
    """One loader's points, each with its interval and its number."""
    name = str(rows[0]["loader"])
    offset = APART * (list(STYLES).index(name) - (len(STYLES) - 1) / 2)
    x = [sizes.index(int(row["image_size"])) + offset for row in rows]
    mean = [float(row["images_per_second"]) for row in rows]
    # Of few and unequal runs an interval may reach below zero, which a logarithmic axis cannot show.
    below = [min(y - float(row["images_per_second_low"]), 0.9 * y) for y, row in zip(mean, rows, strict=True)]
    above = [float(row["images_per_second_high"]) - y for y, row in zip(mean, rows, strict=True)]
    axes.errorbar(x, mean, [below, above], fmt=marker, color=colour, markersize=6, capsize=4, label=name)
    for place, rate, up in zip(x, mean, above, strict=True):
        number = axes.annotate(f"{rate:,.0f}", (place, rate + up), (0, 5), textcoords="offset points", ha="center")
        number.set(fontsize=8, color=colour, bbox=BEHIND, zorder=4)


def _needs(axes: Axes, row: Row, place: int) -> None:
    """What a step of one size needs: as measured here, and as an H100 is to need it."""
    where = "on this GPU" if row["cuda"] else "on this CPU"
    marks = [("step_images_per_second", NEED, "-", f"a step needs, measured {where}")]
    if row["target_images_per_second"]:
        marks.append(("target_images_per_second", TARGET, "--", "a step needs on an H100: a target, not measured"))
    for column, colour, style, label in marks:
        rate = float(row[column])
        axes.hlines(rate, place - 0.45, place + 0.45, color=colour, linestyle=style, linewidth=1.8, label=label)
        axes.annotate(
            f"{rate:,.3g}" if rate < 100 else f"{rate:,.0f}",
            (place + 0.45, rate),
            (0, 3),
            textcoords="offset points",
            ha="right",
            fontsize=8,
            color=colour,
        )


def _title(rows: Sequence[Row]) -> str:
    def all_of(column: str) -> str:
        return " and ".join(dict.fromkeys(str(row[column]) for row in rows if row[column] not in (None, "")))

    versions = [f"{name} {all_of(name)}" for name in ("ffcv", "dali", "torchvision", "torch") if all_of(name)]
    data = all_of("data").partition(", decoded")[0].partition(" and ")[0]
    return (
        f"Loaders: images/s with intervals of 95 % over {all_of('runs')} runs, beside what a step of FGSM-SDI needs\n"
        f"{data}, crops of 8 to 100 % of the area (resident-padded: padded crops), batch {all_of('batch')}\n"
        f"{all_of('device')}, {all_of('machine')}, workers: {all_of('workers') or 'none'}, {', '.join(versions)}"
    )


def main(words: Sequence[str]) -> int:
    """Draws PICTURE.png of the rows of all the CSV files; 2 for wrong use."""
    if len(words) < 2:
        console.error("python -m hardfast.bench.loaders_plot PICTURE.png ROWS.csv ...")
        return 2
    draw_loaders(read_rows([Path(word) for word in words[1:]]), Path(words[0]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
