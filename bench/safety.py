"""What saving and the guards cost: the share of a real training that goes into them, on a CPU.

A training is run under Python's profiler, whose sums over whole functions say where its time went. Not on a GPU: there
the guards' readings wait for the steps before them, and would be charged with those.
"""

from __future__ import annotations

import cProfile
import pstats
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..engine import console, train
from ..engine.environment import describe_environment, gpu_state
from ..engine.errors import UsageError
from ..engine.output_files import check_places
from ..engine.recipes.recipe import Recipe
from .rows import place_columns, write_rows
from .timing import Spread

# Functions by file and name, whose times with all that they call are added up.
LOOP = {"trainer.py": ("train_epoch", "end_epoch"), "mid_epoch.py": ("break_off",)}
PARTS: dict[str, Mapping[str, Sequence[str]]] = {
    "saves": {"run.py": ("save",)},
    "guards": {"run_guard.py": ("poll", "check_weights", "held_out", "trip_wire")},
}
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Shares:
    """Of one training.

    Attributes:
        epoch: seconds of an epoch, with its held-out check and its save.
        parts: the share of each of `PARTS` in that, from 0 to 1.
        seconds: of each of them in an epoch.
    """

    epoch: float
    parts: dict[str, float]
    seconds: dict[str, float]


def bench_safety(recipe: Recipe, *, epochs: int = 8, rounds: int = 3, csv: Path | None = None) -> str:
    """Trains a recipe several times and returns a table of what saves and guards took.

    Args:
        recipe: is trained on the CPU, with another folder each time.
        epochs: of a training; the first one holds what is imported when it is first used.
        rounds: trainings.
        csv: where the rows are also written.

    Raises:
        UsageError: no epoch, fewer than two rounds, or a file that cannot be written.
    """
    if epochs < 1 or rounds < 2:
        raise UsageError(f"--epochs must be at least 1 and --rounds at least 2, not {epochs} and {rounds}")
    check_places(csv=csv)
    found = []
    with console.bar(rounds, "training", "times") as bar:
        for seed in range(rounds):
            found.append(shares_of(replace(recipe, epochs=epochs, seed=seed)))
            bar.update(1)
    place = place_columns(describe_environment(CPU), gpu_state(CPU))
    rows, lines = [], []
    for part in PARTS:
        share = Spread.of([one.parts[part] for one in found])
        seconds, epoch = Spread.of([one.seconds[part] for one in found]), Spread.of([one.epoch for one in found])
        lines.append([part, f"{share.median:.2%} ({share.p20:.2%} to {share.p80:.2%})"])
        rows.append(_row(recipe, part, epochs, rounds, share, seconds, epoch) | place)
    write_rows(rows, csv=csv, json=None)
    return console.table(["part", "of an epoch"], lines)


def shares_of(recipe: Recipe) -> Shares:
    """One training, in a folder that is gone afterwards."""
    profile = cProfile.Profile(builtins=False)  # whose every call would cost as much again
    with tempfile.TemporaryDirectory() as folder:
        profile.enable()
        try:
            train(recipe, Path(folder) / "run", device="cpu")
        finally:
            profile.disable()
    stats = pstats.Stats(profile)
    loop = _seconds(stats, LOOP)
    seconds = {part: _seconds(stats, names) for part, names in PARTS.items()}
    return Shares(
        epoch=loop / recipe.epochs,
        parts={part: spent / loop for part, spent in seconds.items()},
        seconds={part: spent / recipe.epochs for part, spent in seconds.items()},
    )


def _seconds(stats: pstats.Stats, names: Mapping[str, Sequence[str]]) -> float:
    """The time of these functions of the engine, with all that they call."""
    entries: dict[tuple[str, int, str], Any] = stats.stats  # type: ignore[attr-defined]  # missing in its stub
    return sum(
        cumulative
        for (file, _, name), (_, _, _, cumulative, _) in entries.items()
        if Path(file).parent.name == "engine" and name in names.get(Path(file).name, ())
    )


def _row(
    recipe: Recipe, part: str, epochs: int, rounds: int, share: Spread, seconds: Spread, epoch: Spread
) -> dict[str, Any]:
    return {
        "recipe": recipe.name,
        "guard": recipe.guard,
        "part": part,
        "epochs": epochs,
        "rounds": rounds,
        "share": float(f"{share.median:.4g}"),
        "share_p20": float(f"{share.p20:.4g}"),
        "share_p80": float(f"{share.p80:.4g}"),
        "part_ms": float(f"{1000 * seconds.median:.4g}"),
        "epoch_ms": float(f"{1000 * epoch.median:.4g}"),
    }
