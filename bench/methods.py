"""Several methods over several seeds from one recipe: what each reaches, and what a step of each costs."""

from __future__ import annotations

import csv as csv_files
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from ..engine import console
from ..engine.environment import choose_device, describe_environment
from ..engine.errors import Stopped, UsageError
from ..engine.evaluation import LIBRARY_ATTACKS, evaluate, identity
from ..engine.evaluation.autoattack import check_available
from ..engine.evaluation.files import run_files
from ..engine.methods import FgsmSdiOptions, Position, method_options
from ..engine.output_files import check_places
from ..engine.recipes.recipe import Recipe
from ..engine.run import Run
from ..engine.run_folder import RunFolder, Which
from ..engine.tables.compare import mean_and_deviation
from ..engine.trainer import train
from ..loaders import open_dataset
from .timing import Spread, interleaved_seconds, paired_ratio

ROUNDS, WARMUP = 20, 3


@dataclass(frozen=True, slots=True)
class MethodRow:
    """One method's line of the table, for one of its checkpoints."""

    method: str
    checkpoint: Which
    seeds: int
    accuracy: dict[str, list[float]]  # percent, by attack, one value a seed
    images: dict[str, int]
    step: Spread  # step time over that of the first method


def compare_methods(
    recipe: Recipe,
    out: Path,
    *,
    methods: Sequence[str],
    seeds: Sequence[int],
    attacks: Sequence[str],
    checkpoints: Sequence[Which] = ("best",),
    samples_of: Mapping[str, int] | None = None,
    device: str = "auto",
    csv: Path | None = None,
) -> str:
    """Trains and attacks each method for each seed, times their steps in turn, and returns a Markdown table.

    Runs lie in out/METHOD-SEED; those that are there already are not trained or attacked again.

    Args:
        recipe: the common recipe; its own method keeps its options, the others get their defaults.
        out: folder of the runs.
        methods: names; the first is the unit of the step times.
        seeds: one run of each method for each.
        attacks: names out of `evaluation.ATTACKS`.
        checkpoints: which ones are attacked, a row for each.
        samples_of: for single attacks, how many of the first test images they see.
        device: auto, cpu, cuda or cuda:N.
        csv: where the rows are also written, with device and versions.

    Raises:
        UsageError: an unknown method, fewer than two methods, or no seed.
    """
    if len(set(methods)) < max(2, len(methods)) or len(set(seeds)) < max(1, len(seeds)):
        raise UsageError("bench methods compares at least two different --methods over one or more different --seeds")
    check_places(csv=csv)
    variants = {name: _with_method(recipe, name) for name in methods}
    classes = open_dataset(recipe.data).num_classes
    for name in attacks:
        if name in LIBRARY_ATTACKS:  # before hours of training
            check_available(LIBRARY_ATTACKS[name], classes=classes)
    runs = {name: [replace(variant, seed=seed) for seed in seeds] for name, variant in variants.items()}
    ratios = _step_ratios(variants, choose_device(device)[0])
    rows = []
    for name, recipes_of_seeds in runs.items():
        folders = {_trained(one, out / f"{name}-{one.seed}", device): one for one in recipes_of_seeds}
        for which in checkpoints:
            found = [_attacked(one, path, which, attacks, samples_of or {}, device) for path, one in folders.items()]
            accuracy = {attack: [report[attack]["accuracy"] for report in found] for attack in attacks}
            images = {attack: found[0][attack]["samples"] for attack in attacks}
            rows.append(MethodRow(name, which, len(seeds), accuracy, images, ratios[name]))
    if csv is not None:
        _write_csv(csv, recipe, rows, describe_environment(choose_device(device)[0]))
    return markdown(rows, base=methods[0])


def _with_method(recipe: Recipe, name: str) -> Recipe:
    return recipe if name == recipe.method.name else replace(recipe, method=method_options(name))


def _trained(recipe: Recipe, path: Path, device: str) -> Path:
    """Trains one run if it is not finished."""
    if train(recipe, path, device=device).stopped:
        raise Stopped(f"stopped on request; {path} is saved, the same command goes on")
    return path


def _attacked(
    recipe: Recipe, path: Path, which: Which, attacks: Sequence[str], samples_of: Mapping[str, int], device: str
) -> dict[str, dict[str, Any]]:
    """Attacks one checkpoint with what it was not attacked with, and returns the reports."""
    folder = RunFolder(path)
    images = len(open_dataset(recipe.data).test)
    wanted = {attack: min(samples_of.get(attack, images), images) for attack in attacks}
    done = run_files(folder, identity(which, folder.checkpoint(which), recipe, seed=0)).known()
    missing = [attack for attack, count in wanted.items() if done.get(attack, {}).get("samples") != count]
    if missing:
        root = recipe.data.root
        found = evaluate(path, attacks=missing, checkpoint=which, samples_of=samples_of, device=device, data_root=root)
        done |= found["attacks"]
    return {attack: done[attack] for attack in attacks}


def _step_ratios(variants: dict[str, Recipe], device: torch.device) -> dict[str, Spread]:
    """Step time of each method over the first one's; FGSM-SDI's of a whole cycle of the generator's interval."""
    counts = {name: r.method.k if isinstance(r.method, FgsmSdiOptions) else 1 for name, r in variants.items()}
    calls = {name: _steps(recipe, counts[name], device) for name, recipe in variants.items()}
    console.line(f"timing steps of {', '.join(variants)}, in turn, {ROUNDS} times")
    seconds = interleaved_seconds(calls, repeats=ROUNDS, warmup=WARMUP, device=device)
    of_one = {name: [value / counts[name] for value in values] for name, values in seconds.items()}
    base = next(iter(variants))
    return {name: paired_ratio(of_one, name, base) for name in variants}


def _steps(recipe: Recipe, count: int, device: torch.device) -> Callable[[], None]:
    """`count` whole training steps (without the loader) on batches of the recipe's data."""
    run = Run(recipe, open_dataset(recipe.data), device)
    run.prepare()
    run.method.begin_epoch(0, recipe.seed)
    batches = list(islice(run.loader.epoch(0), count))

    def call() -> None:
        with run.execution.numerics():
            for step in range(count):
                run.step(batches[step % len(batches)], Position(0, step))

    return call


def markdown(rows: Sequence[MethodRow], *, base: str) -> str:
    """The table as README shows it: mean and sample deviation over the seeds in percent, and step times as ratios."""
    attacks = list(rows[0].accuracy)
    checkpoints = len({row.checkpoint for row in rows}) > 1
    header = [
        "method",
        *(["checkpoint"] if checkpoints else []),
        *(f"{attack} ({rows[0].images[attack]} images)" for attack in attacks),
        f"step / {base}",
    ]
    lines = ["| " + " | ".join(header) + " |", "|---|" + "---:|" * (len(header) - 1)]
    for row in rows:
        cells = [mean_and_deviation(row.accuracy[attack]) for attack in attacks]
        step = f"{row.step.median:.2f} ({row.step.p20:.2f} to {row.step.p80:.2f})"
        names = [f"`{row.method}`", *([row.checkpoint] if checkpoints else [])]
        lines.append("| " + " | ".join([*names, *cells, step]) + " |")
    return "\n".join(lines)


def _write_csv(path: Path, recipe: Recipe, rows: Sequence[MethodRow], environment: dict[str, Any]) -> None:
    common = {
        "date": environment["date"],
        "git": environment["git"],
        "recipe": recipe.name,
        "epsilon": recipe.epsilon,
        "epochs": recipe.epochs,
        "batch": recipe.batch_size,
        **{f"numerics_{key}": value for key, value in environment["numerics"].items()},
    }
    with path.open("w", newline="") as file:
        writer = None
        for row in rows:
            line = {"method": row.method, "checkpoint": row.checkpoint, "seeds": row.seeds}
            for attack, values in row.accuracy.items():
                line[f"{attack}_mean"] = round(statistics.mean(values), 3)
                line[f"{attack}_deviation"] = round(statistics.stdev(values), 3) if len(values) > 1 else ""
                line[f"{attack}_each_seed"] = " ".join(f"{value:.2f}" for value in values)
                line[f"{attack}_images"] = row.images[attack]
            line |= {"step_ratio": row.step.median, "step_ratio_p20": row.step.p20, "step_ratio_p80": row.step.p80}
            line |= {"step_ratio_base": rows[0].method, **common}
            if writer is None:
                writer = csv_files.DictWriter(file, list(line))
                writer.writeheader()
            writer.writerow(line)
