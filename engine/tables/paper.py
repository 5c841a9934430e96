"""The figures of the paper's Tables II to X, by the recipe that stands for each row.

Source: Jia, Zhang, Wu, Wang, Cao, "Boosting fast adversarial training with learnable adversarial initialization"
(2022). paper_tables.csv holds them as printed: percent, and minutes (hours in Table X) on one V100.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib import resources

from .. import recipes
from ..recipes.presets import ALIASES
from ..recipes.recipe import Recipe
from .differences import NOT_DECIDING, changed

TABLES = ("II", "III", "IV", "V", "VI", "VII", "VIII", "IX", "X")
FIRST_TABLE = 2
# What the tables call an attack, and what we do. Their training time leaves out loading and evaluation.
MINUTES = "minutes"
METRICS = {
    "clean": "clean",
    "pgd10": "pgd-10",
    "pgd20": "pgd-20",
    "pgd50": "pgd-50",
    "cw": "cw",
    "apgd": "apgd",
    "aa": "aa",
    "time": MINUTES,
}
UNITS = {"%": 1.0, "min": 1.0, "h": 60.0}
HOURS_FROM = 2000  # minutes, above which a time is told in hours, as Table X does
# What may differ from the preset beside a row of the paper: the seed; the images that choose the best checkpoint, for
# which the paper took the test set; and the precision, which the paper does not give.
FREE = NOT_DECIDING | {"seed", "select_on", "data.heldout", "execution.precision", "execution.tf32"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One row of the tables."""

    name: str  # of the recipe that stands for it
    table: str  # its number, like V
    dataset: str
    model: str
    schedule: str
    method: str  # as the table calls it, like `free-at m=8`
    epsilon: str  # like 8/255
    figures: dict[str, dict[str, float]]  # checkpoint (best, last or reported) -> metric -> percent, or minutes

    @property
    def headline(self) -> dict[str, float]:
        """The figures of the best checkpoint; in Table X of the one that is reported."""
        return self.figures["best"] if "best" in self.figures else self.figures["reported"]


@cache
def rows() -> dict[str, Row]:
    """Every row of the tables by the name of its recipe, in the tables' order."""
    text = resources.files(__package__).joinpath("paper_tables.csv").read_text(encoding="utf-8")
    found: dict[str, Row] = {}
    for line in csv.DictReader(text.splitlines()):
        name = recipe_name(line["table"], line["method"], line["eps"])
        if name not in found:
            found[name] = Row(
                name=name,
                table=line["table"],
                dataset=line["dataset"],
                model=line["model"],
                schedule=line["schedule"],
                method=line["method"],
                epsilon=line["eps"],
                figures={},
            )
        of_checkpoint = found[name].figures.setdefault(line["checkpoint"], {})
        of_checkpoint[METRICS[line["metric"]]] = float(line["value"]) * UNITS[line["unit"]]
    return found


def recipe_name(table: str, method: str, epsilon: str) -> str:
    """What the recipe of a row is called: `table5-fgsm-rs`, `table2-k10`, `table3-benign-grad`, `table10-pgd-at-eps4`.

    Args:
        table: the table's number, like V.
        method: the method as paper_tables.csv has it, like `fgsm-sdi k=10`.
        epsilon: like 8/255.
    """
    family, _, setting = method.partition(" ")
    if table == "II":
        what = setting.replace("=", "")
    elif table == "III":
        what = setting.removeprefix("input=").replace("+", "-")
    else:
        what = family
    radius = f"-eps{epsilon.removesuffix('/255')}" if table == "X" else ""
    return f"table{FIRST_TABLE + TABLES.index(table)}-{what}{radius}"


def row_of(name: str) -> Row | None:
    """The row that the recipe of that name stands for; None if it stands for none."""
    return rows().get(ALIASES.get(name, name))


def row_beside(recipe: Recipe) -> Row | None:
    """The row that a recipe's result may stand beside: None if it stands for none, or has been changed.

    A recipe keeps its row while it is its preset in everything that decides its result but `FREE`.
    """
    return None if differing(recipe) else row_of(recipe.name)


def differing(recipe: Recipe) -> list[str]:
    """The fields, by dotted name, that keep a recipe from its row of the paper; none where it has no row."""
    if row_of(recipe.name) is None:
        return []
    preset = recipes.get(recipe.name)
    mine, theirs = changed(recipe, preset, leaving_out=FREE), changed(preset, recipe, leaving_out=FREE)
    if "method.name" in mine:  # whose options are others, then
        return [name for name in mine if not name.startswith("method.")] + ["method"]
    return list(mine | theirs)


def beside(recipe: Recipe) -> str | None:
    """One line on what the paper reports for a recipe, like `paper, Table V: clean 84.86, pgd-50 52.18, aa 48.50, 83
    min`; None where `row_beside` finds no row.
    """
    row = row_beside(recipe)
    if row is None:
        return None
    figures = row.headline
    parts = [f"{name} {figures[name]:.2f}" for name in ("clean", "pgd-50", "aa") if name in figures]
    return f"paper, Table {row.table}: {', '.join([*parts, *filter(None, [duration(figures)])])}"


def duration(figures: dict[str, float]) -> str:
    """The training time among a row's figures, `83 min` or `66.8 h`; empty where there is none."""
    if MINUTES not in figures:
        return ""
    minutes = figures[MINUTES]
    return f"{minutes:.0f} min" if minutes < HOURS_FROM else f"{minutes / 60:.1f} h"
