"""What `hardfast recipes` prints: the presets like the paper's tables, and everything about one of them."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ...loaders import REGISTRY
from .. import console, recipes
from ..evaluation import ATTACKS
from ..methods import method_options
from ..recipes.presets import Group
from ..recipes.recipe import Recipe
from . import paper
from .differences import as_option, as_words, changed, fields_of

WIDTH = 120
HEADS = {"clean": "clean", "pgd-50": "PGD-50", "cw": "C&W", "aa": "AA"}
OWN_COLUMNS = {"name", "about", "method.name", "epsilon", "epochs"}
ALWAYS_SAID = {"method.replays"}
# The paper trained on all training images and took the checkpoint that was best on the test images.
AS_THE_PAPER_SELECTED = "--data.heldout 0 --select-on test"


def listing() -> str:
    """Every preset on a line, group by group, with the paper's figures of its best checkpoint beside it."""
    head = (
        "Beside a recipe: what the paper reports for its best checkpoint in percent, AutoAttack on the last one, and "
        "its training\ntime. `hardfast recipes NAME` tells all about one, and the commands that train and attack it."
    )
    return "\n\n".join([head, *(_group(group) for group in recipes.GROUPS)])


def _group(group: Group) -> str:
    special = _specials(group.recipes)
    rows = [
        [one.name, one.method.name, one.epsilon, str(one.epochs), said]
        for one, said in zip(group.recipes, special, strict=True)
    ]
    figures = _figure_columns(group.recipes)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    room = WIDTH - 2 - sum(width + 2 for width in [*widths[:-1], *map(len, figures[0])])
    for row in rows:
        row[-1] = textwrap.shorten(row[-1], room, placeholder=" ...")
    widths[-1] = max(len(row[-1]) for row in rows)
    lines = [
        "  " + "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=True)), *beside])
        for row, beside in zip(rows, figures[1:], strict=True)
    ]
    left = 2 + sum(widths) + 2 * (len(widths) - 1)
    title = f"{group.title}{_common(group.recipes)}"
    if not figures[0]:
        return "\n".join([title, *(line.rstrip() for line in lines)])
    names = "  ".join(figures[0])
    fits = len(title) < left
    first = [f"{title.ljust(left)}  {names}"] if fits else [title, f"{''.ljust(left)}  {names}"]
    return "\n".join([*first, *(line.rstrip() for line in lines)])


def _figure_columns(presets: Sequence[Recipe]) -> list[list[str]]:
    """The names of the figures that a group has, then those of each recipe, columns aligned; empty lists if none."""
    found = [paper.row_of(one.name) for one in presets]
    metrics = [name for name in HEADS if any(row is not None and name in row.headline for row in found)]
    if not metrics:
        return [[] for _ in range(len(presets) + 1)]
    lasts = any(row is not None and "aa" in row.figures.get("last", {}) for row in found)
    timed = any(row is not None and paper.duration(row.headline) for row in found)
    table = [[HEADS[name] for name in metrics] + ["last AA"] * lasts + ["time"] * timed]
    for row in found:
        best, last = ({}, {}) if row is None else (row.headline, row.figures.get("last", {}))
        cells = [_percent(best.get(name)) for name in metrics] + [_percent(last.get("aa"))] * lasts
        table.append(cells + [paper.duration(best)] * timed)
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    return [[cell.rjust(width) for cell, width in zip(row, widths, strict=True)] for row in table]


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _common(presets: Sequence[Recipe]) -> str:
    """The schedule and batch of a group, where it has one: `; lr 0.1, x0.1 at 100 105; batch 128`."""
    if len({one.data.name for one in presets}) > 1:
        return ""
    first = presets[0]
    return f"; {schedule_words(first)}; {_batch_words(first)}"


def schedule_words(recipe: Recipe) -> str:
    """The schedule of a recipe: `lr 0.1, x0.1 at 100 105`, where the last numbers are epochs."""
    schedule, lr = recipe.schedule, recipe.optimizer.lr
    if schedule.kind == "multistep":
        falls = f", x{schedule.gamma:g} at {as_words(schedule.milestones)}" if schedule.milestones else ""
        return f"lr {lr:g}{falls}"
    if schedule.kind == "linear":
        rates, epochs = zip(*((f"{lr * share:g}", f"{epoch:g}") for epoch, share in schedule.knots), strict=True)
        return f"lr {' '.join(rates)} at {' '.join(epochs)}"
    return f"{'cyclic' if schedule.kind == 'cyclic' else 'one cycle'} up to lr {lr:g}"


def _batch_words(recipe: Recipe) -> str:
    if recipe.stages:
        sizes = " ".join(str(stage.image_size) for stage in recipe.stages)
        return f"batch {' '.join(str(stage.batch_size) for stage in recipe.stages)} of {sizes} pixels"
    return f"batch {recipe.batch_size}"


def _specials(presets: Sequence[Recipe]) -> list[str]:
    """What sets each recipe of a group apart from the others; where nothing is alike, the first words of `about`."""
    if len({one.data.name for one in presets}) > 1:
        return [one.about.split(";")[0] for one in presets]
    fields = [fields_of(one) for one in presets]
    usual = {name: _majority([found[name] for found in fields if name in found]) for found in fields for name in found}
    defaults = [fields_of(Recipe(method=method_options(one.method.name))) for one in presets]
    said = []
    for one, found, default in zip(presets, fields, defaults, strict=True):
        shared = [name for name in found if name not in OWN_COLUMNS and sum(name in other for other in fields) > 1]
        apart = [name for name in shared if found[name] != usual[name]]
        own = [name for name in found if name.startswith("method.") and name not in OWN_COLUMNS and name not in shared]
        of_schedule = [name for name in found if name.startswith("schedule.") or name == "optimizer.lr"]
        another = any(name.startswith("schedule.") for name in apart)  # not only another learning rate
        apart += [name for name in own if found[name] != default[name] or name in ALWAYS_SAID]
        words = [_short(name, found[name]) for name in apart if not (another and name in of_schedule)]
        said.append(", ".join([schedule_words(one)] * another + words))
    return said


def _majority(values: Sequence[Any]) -> Any:
    """The value that most of them have, if more than half do; otherwise nothing equals it."""
    value, count = Counter(map(as_words, values)).most_common(1)[0]
    return next(one for one in values if as_words(one) == value) if 2 * count > len(values) else object()


def _short(name: str, value: Any) -> str:
    """`k 10`, `no box`, `label-smoothing 0.111`."""
    last = as_option(name.rpartition(".")[2] if name.startswith("method.") else name.removeprefix("optimizer."))
    if isinstance(value, bool):
        return last if value else f"no {last}"
    return f"{last} {value:.3g}" if isinstance(value, float) else f"{last} {as_words(value)}"


def description(recipe: Recipe) -> str:
    """Everything about one preset: its options, the paper's row, and the commands that train and attack it."""
    parts = [recipe.name, textwrap.fill(recipe.about, WIDTH), "", "It sets, where defaults differ:"]
    options = changed(recipe, Recipe(method=method_options(recipe.method.name)), leaving_out={"name", "about"})
    shown = {"method": recipe.method.name, "epsilon": recipe.epsilon, "epochs": recipe.epochs} | options
    shown |= {"data.name": recipe.data.name, "model.name": recipe.model.name}
    flags = dict(_flag(name, value) for name, value in _one_by_one(shown).items())
    width = max(map(len, flags))
    parts += [_option_line(f"  {flag:<{width}}  ", words) for flag, words in flags.items()]
    row = paper.row_of(recipe.name)
    if row is not None:
        parts += ["", f"The paper, Table {row.table} ({row.method}):", _paper_table(row)]
        parts += [f"To select as the paper did: {AS_THE_PAPER_SELECTED}"]
    return "\n".join([*parts, "", "Commands:", *_commands(recipe, row)])


def _one_by_one(options: dict[str, Any]) -> dict[str, Any]:
    """The options with a field of each stage in place of the stages, as the command line has them."""
    found: dict[str, Any] = {}
    for name, value in options.items():
        if isinstance(value, (tuple, list)) and value and isinstance(value[0], dict):
            found |= {f"{name}.{i}.{key}": item for i, part in enumerate(value) for key, item in part.items()}
        else:
            found[name] = value
    return found


def _flag(name: str, value: Any) -> tuple[str, str]:
    """An option and its value as typed: `--optimizer.lr 0.1`; `--no-box`, without a value."""
    if isinstance(value, bool):
        group, _, last = as_option(name).rpartition(".")
        return f"--{group}{'.' * bool(group)}{last if value else f'no-{last}'}", ""
    return f"--{as_option(name)}", as_words(value)


def _option_line(head: str, value: str) -> str:
    return textwrap.fill(value, WIDTH, initial_indent=head, subsequent_indent=" " * len(head)) or head.rstrip()


def _paper_table(row: paper.Row) -> str:
    metrics = [name for name in ATTACKS if any(name in found for found in row.figures.values())]
    rows = [
        [checkpoint, *(_percent(found.get(name)) for name in metrics), paper.duration(found)]
        for checkpoint, found in row.figures.items()
    ]
    return textwrap.indent(console.table(["checkpoint", *metrics, "time"], rows), "  ")


def _commands(recipe: Recipe, row: paper.Row | None) -> list[str]:
    """The exact commands for one seed; the attacks are those of the paper's row."""
    out = f"runs/{recipe.name}-0"
    attacks = ["clean", "pgd-10", "pgd-50", "aa"] if row is None else [name for name in ATTACKS if name in row.headline]
    evaluate = f"hardfast evaluate {out} --attacks {' '.join(attacks)}"
    evaluate += " --checkpoint best last" if row is not None and "last" in row.figures else ""
    train = f"hardfast train {recipe.name} --out {out} --seed 0"
    return [*_data_commands(recipe, train), evaluate, f"hardfast compare runs/{recipe.name}-[0-9]*"]


def _data_commands(recipe: Recipe, train: str) -> list[str]:
    """What makes the data ready, where anything can, and trains."""
    data = REGISTRY[recipe.data.name]
    if data.embedded:
        return [train]
    if data.fetch is not None:
        return [f"hardfast data prepare {recipe.data.name}", train]
    return [
        f"hardfast data prepare {recipe.data.name} --beton  # says where to get it; --beton is for FFCV",
        train,
        "(on random images: add --data.name synthetic --data.synthetic.num-classes 1000)",
    ]
