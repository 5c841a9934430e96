"""The comparison of runs as a table on the terminal, as Markdown, and as CSV."""

from __future__ import annotations

import csv
import statistics
import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from .. import console
from ..evaluation import ATTACKS
from . import paper
from .compare import Row, Unready, mean_and_deviation
from .differences import as_option

WIDTH = 120
TIMES = ("ms/step", "train min", "wall min")
PAPER_NOTE = (
    "paper: its best checkpoint is the best on the test images; its minutes are of one V100, without loading and "
    "evaluation"
)
Table = Callable[[Sequence[str], Sequence[Sequence[str]]], str]


def terminal(rows: Sequence[Row], unready: Sequence[Unready]) -> str:
    """Tables with what stands in them and what to know about it, and the runs that could not be put there."""
    return "\n".join(
        _filled(line) if line.startswith("  ") else line
        for block in _blocks(rows, unready, console.table, item="  ", title="{}")
        for line in block.split("\n")
    )


def markdown(rows: Sequence[Row], unready: Sequence[Unready]) -> str:
    """The same for a README."""
    return "\n".join(_blocks(rows, unready, _markdown_table, item="* ", title="### {}")) + "\n"


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """A line for each row: what was trained, each attack's mean, deviation and every seed's figure, the paper's beside
    it, and the times.
    """
    lines = [_csv_line(row) for row in rows]
    columns = list(dict.fromkeys(name for line in lines for name in line))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(lines)


def _filled(line: str) -> str:
    """Over several lines, with paths and commands whole."""
    return textwrap.fill(line, WIDTH, subsequent_indent="     ", break_long_words=False, break_on_hyphens=False)


def _blocks(rows: Sequence[Row], unready: Sequence[Unready], table: Table, *, item: str, title: str) -> list[str]:
    """Everything that is printed, block by block."""
    sections = [list(alike) for _, alike in groupby(rows, key=lambda row: row.conditions)]
    blocks = []
    if len(sections) > 1:
        differing = _differing(sections)
        blocks += [f"{len(sections)} tables that differ in {differing}: not comparable with one another.", ""]
    number = 1
    for section in sections:
        numbers = range(number, number + len(section))
        number += len(section)
        attacks = [name for name in ATTACKS if any(name in row.attacks for row in section)]
        header = ["", "seeds", *attacks, *TIMES]
        lines = [line for at, row in zip(numbers, section, strict=True) for line in _lines(at, row, attacks)]
        blocks += [
            title.format(_title(section)),
            "",
            table(header, lines),
            "",
        ]
        blocks += [f"{item}{at}: {_legend(row)}" for at, row in zip(numbers, section, strict=True)]
        blocks += [f"{item}{note}" for note in _notes(numbers, section, attacks)]
        blocks.append("")
    if not rows:
        blocks += ["No run is trained and evaluated yet.", ""]
    if unready:
        blocks += [title.format("Not in the tables"), "", *(f"{item}{one.path}: {one.missing}" for one in unready), ""]
    return blocks[:-1]


def _title(section: Sequence[Row]) -> str:
    total = max(row.test_images for row in section)
    return f"{section[0].conditions}{f', {total:,} test images' if total else ''}"


def _differing(sections: Sequence[Sequence[Row]]) -> str:
    conditions = [section[0].conditions for section in sections]
    names = [name for name in conditions[0].__slots__ if len({getattr(one, name) for one in conditions}) > 1]
    return ", ".join(name.replace("_", " ") for name in names)


def _lines(number: int, row: Row, attacks: Sequence[str]) -> list[list[str]]:
    """A row, and under it what the paper reports and by how much ours is above."""
    cells = [_cell(row, name) for name in attacks]
    own = [f"{number} {row.recipe.method.name}", str(len(row.runs)), *cells, *_times(row)]
    figures = row.figures
    if row.beside is None or not figures:
        return [own]
    reported = [f"{figures[name]:.2f}" if name in figures else "" for name in attacks]
    minutes = f"{figures[paper.MINUTES]:.0f}" if paper.MINUTES in figures else ""
    return [
        own,
        [f"  paper, Table {row.beside.table}", "", *reported, "", minutes, ""],
        ["  ours above it by", "", *(_delta(row, name) for name in attacks), "", "", ""],
    ]


def _cell(row: Row, attack: str) -> str:
    """`71.2 ± 0.8`, and the number of images where they were not all test images."""
    if attack not in row.attacks:
        return "-"
    images = row.images(attack)
    part = "" if images == [row.test_images] else f" ({'/'.join(map(str, images))})"
    return mean_and_deviation(row.accuracies(attack)) + part


def _delta(row: Row, attack: str) -> str:
    if attack not in row.attacks or attack not in row.figures:
        return ""
    return f"{statistics.mean(row.accuracies(attack)) - row.figures[attack]:+.1f}"


def _times(row: Row) -> list[str]:
    steps = statistics.mean(run.step_ms for run in row.runs)
    trained = statistics.mean(run.train_minutes for run in row.runs)
    wall = statistics.mean(run.wall_minutes for run in row.runs)
    return [f"{value:.3g}" if value < 100 else f"{value:.0f}" for value in (steps, trained, wall)]


def _legend(row: Row) -> str:
    recipe = row.recipe
    seeds = " ".join(str(run.recipe.seed) for run in row.runs)
    machines = " and ".join(dict.fromkeys(run.machine for run in row.runs))
    batch = "" if recipe.stages else f", batch {recipe.batch_size}"
    return (
        f"{row.method}; recipe {row.recipe_words}; {recipe.model.name}, {recipe.epochs} epochs{batch}, selected on "
        f"{recipe.select_on}; seeds {seeds}; rollbacks: {_rollbacks(row)}; on {machines}"
    )


def _rollbacks(row: Row) -> str:
    """How often the guard took the runs back, seed by seed; one number where it is the same for all."""
    counts = [run.rollbacks for run in row.runs]
    return str(counts[0]) if len(set(counts)) == 1 else " ".join(map(str, counts))


def _notes(numbers: Sequence[int], section: Sequence[Row], attacks: Sequence[str]) -> list[str]:
    """What a reader must know before comparing the rows of a section."""
    found = [f"{at}: {note}" for at, row in zip(numbers, section, strict=True) for note in _row_notes(row)]
    counts: dict[str, list[str]] = {}
    for attack in attacks:
        images = {at: row.images(attack) for at, row in zip(numbers, section, strict=True) if attack in row.attacks}
        if len({tuple(each) for each in images.values()}) > 1:
            each = ", ".join(f"{' and '.join(map(str, seen))} in {at}" for at, seen in images.items())
            counts.setdefault(f"not comparable between rows, measured on other numbers of images ({each})", []).append(
                attack
            )
    found += [f"{', '.join(names)}: {note}" for note, names in counts.items()]
    machines = {tuple(dict.fromkeys(run.machine for run in row.runs)) for row in section}
    if len(machines) > 1 or any(len(one) > 1 for one in machines):
        found.append("times: not comparable, the runs were on other devices, in other modes or precisions")
    if any(row.figures for row in section):
        found.append(PAPER_NOTE)
    return found


def _row_notes(row: Row) -> list[str]:
    """What is not as it should be about a row's own figures."""
    about: dict[str, list[str]] = {}
    total = row.test_images or "an unknown number of"
    for attack in row.attacks:
        images, runs = row.images(attack), len(row.attacks[attack])
        if len(images) > 1:
            seen = f"measured on {' and '.join(map(str, images))} of {total} test images, by seed"
            about.setdefault(seen, []).append(attack)
        elif images[0] != row.test_images:
            about.setdefault(f"measured on the first {images[0]} of {total} test images only", []).append(attack)
        if runs < len(row.runs):
            about.setdefault(f"measured for {runs} of {len(row.runs)} seeds only", []).append(attack)
    found = [f"{', '.join(names)} {note}" for note, names in about.items()]
    found += [f"{attack} is doubtful: {warning}" for attack in row.attacks for warning in row.warnings(attack)]
    if row.apart:
        names = " and ".join(map(as_option, row.apart))
        found.append(f"the paper's row is left out: {names} {'differs' if len(row.apart) == 1 else 'differ'}")
    if any(run.rollbacks for run in row.runs):
        found.append(
            f"rollbacks: {_rollbacks(row)}: these runs overfitted catastrophically, went back and on with other random "
            "numbers; the method by itself would not have come here"
        )
    precision = row.recipe.execution.precision
    if row.figures and precision != "fp32":
        found.append(f"ours in {precision}; the paper gives no precision")
    repeated = [seed for seed, count in Counter(run.recipe.seed for run in row.runs).items() if count > 1]
    if repeated:
        seeds = " and ".join(map(str, repeated))
        found.append(f"seed {seeds} stands there more than once, so the deviation is not one over seeds")
    return found


def _csv_line(row: Row) -> dict[str, Any]:
    recipe, conditions = row.recipe, row.conditions
    line: dict[str, Any] = {
        "method": row.method,
        "recipe": row.recipe_words,
        "model": recipe.model.name,
        "dataset": conditions.dataset,
        "image_size": "" if conditions.image_size is None else conditions.image_size,
        "epsilon": conditions.epsilon,
        "attack_step": conditions.attack_step,
        "checkpoint": conditions.checkpoint,
        "selected_on": recipe.select_on,
        "epochs": recipe.epochs,
        "batch": recipe.batch_size,
        "runs": " ".join(str(run.path) for run in row.runs),
        "seeds": " ".join(str(run.recipe.seed) for run in row.runs),
        "rollbacks": " ".join(str(run.rollbacks) for run in row.runs),
        "paper_table": "" if row.beside is None else row.beside.table,
    }
    for attack in row.attacks:
        values = row.accuracies(attack)
        line[f"{attack}_mean"] = round(statistics.mean(values), 3)
        line[f"{attack}_deviation"] = round(statistics.stdev(values), 3) if len(values) > 1 else ""
        line[f"{attack}_each_seed"] = " ".join(f"{value:.2f}" for value in values)
        line[f"{attack}_images"] = " ".join(map(str, row.images(attack)))
        line[f"{attack}_paper"] = row.figures.get(attack, "")
        line[f"{attack}_above_paper"] = _delta(row, attack)
    times = {
        "step_ms": [run.step_ms for run in row.runs],
        "train_minutes": [run.train_minutes for run in row.runs],
        "wall_minutes": [run.wall_minutes for run in row.runs],
    }
    line |= {name: round(statistics.mean(values), 3) for name, values in times.items()}
    line["paper_minutes"] = row.figures.get(paper.MINUTES, "")
    line["machine"] = " and ".join(dict.fromkeys(run.machine for run in row.runs))
    line["notes"] = "; ".join(_row_notes(row))
    return line


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|---|" + "---:|" * (len(header) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])
