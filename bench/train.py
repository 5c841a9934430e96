"""Time to robustness: a whole training, what each part of it takes, and what the trained net withstands."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..engine import console
from ..engine.environment import choose_device, describe_environment, gpu_state, wait_for
from ..engine.errors import Diverged, UsageError
from ..engine.evaluation import ATTACKS, LIBRARY_ATTACKS, AttackName, evaluate_net
from ..engine.evaluation.autoattack import check_available
from ..engine.execution import Mode, choose_execution
from ..engine.output_files import check_places
from ..engine.recipes.recipe import Recipe
from ..engine.run import Preparation, Run
from ..engine.tables.compare import mean_and_deviation
from ..engine.trainer import train_epoch
from ..loaders import Dataset, in_memory
from .rows import place_columns, write_rows
from .training import Training, open_images, recipe_for

ATTACKED_WITH: tuple[AttackName, ...] = ("clean", "pgd-20")
GIB = 1 << 30
SHARES = ("warm-up / wall", "attacks / training")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainRow:
    """One training, in seconds.

    Attributes:
        recipe: what was trained.
        images: in its training set.
        mode: of the steps, after a capture that may have been refused.
        prepared: warm-up and capture.
        ready: until the first step begins: nets built, images on the device, steps compiled and captured.
        steps: training alone, batches included.
        wall: until the net is trained; the evaluation is not in it.
        evaluation: the attacks.
        images_per_second: of the training alone.
        loss: the last epoch's mean training loss.
        accuracy: percent by attack; none for random images.
        attacked: images by attack.
        peak: bytes of GPU memory at most, None on a CPU.
        state: of the GPU just after the training, from `gpu_state`.
    """

    recipe: Recipe
    images: int
    mode: Mode
    prepared: Preparation
    ready: float
    steps: float
    wall: float
    evaluation: float
    images_per_second: float
    loss: float
    accuracy: dict[str, float]
    attacked: dict[str, int]
    peak: int | None
    state: dict[str, str | float | None]


def bench_train(
    training: Training,
    *,
    seeds: Sequence[int] = (0,),
    attacks: Sequence[str] = ATTACKED_WITH,
    aa_samples: int | None = None,
    device: str = "auto",
    csv: Path | None = None,
    json: Path | None = None,
) -> str:
    """Trains once for each seed, attacks the last weights, and returns a table; no checkpoint is selected or written.

    Args:
        training: what is trained.
        seeds: a training for each.
        attacks: names out of `evaluation.ATTACKS`; none of them is run on random images.
        aa_samples: also AutoAttack, on the first so many test images.
        device: auto, cpu, cuda or cuda:N.
        csv, json: where the rows are also written, anew after each training.

    Raises:
        UsageError: wrong options, or an attack that needs a package which is not installed.
        DataError: the data set is missing or damaged.
        Diverged: the loss is not finite any more.
    """
    _check(training, seeds, attacks, aa_samples)
    check_places(csv=csv, json=json)
    attacks = list(dict.fromkeys([*attacks, *(["aa"] if aa_samples is not None else [])]))
    place, why = choose_device(device)
    choose_execution(training.execution, place)  # refuses what cannot be before the images are read
    name, data = open_images(training)
    if name == "synthetic":
        attacks = []
    for attack in attacks:
        if attack in LIBRARY_ATTACKS:  # before the training
            check_available(LIBRARY_ATTACKS[attack], classes=data.num_classes)
    base = recipe_for(training, name)
    height, width, _ = data.image_shape
    console.line(
        f"training {base.method.name}, {base.model.name}, {base.epochs} epochs of {len(data.train):,} images of "
        f"{height}x{width} ({name}, from {data.source}) at epsilon {base.epsilon}, on {place} ({why})"
    )
    samples_of = {} if aa_samples is None or "aa" not in attacks else {"aa": aa_samples}
    rows, columns = [], []
    for seed in seeds:
        rows.append(train_once(replace(base, seed=seed), data, place, attacks=attacks, samples_of=samples_of))
        columns.append(_columns(rows[-1], place))
        write_rows(columns, csv=csv, json=json)
    return table(rows, on_gpu=place.type == "cuda")


def _check(training: Training, seeds: Sequence[int], attacks: Sequence[str], aa_samples: int | None) -> None:
    smallest = {"epochs": (training.epochs, 1), "batch": (training.batch, 2), "aa-samples": (aa_samples, 1)}
    for option, (value, least) in smallest.items():
        if value is not None and value < least:
            raise UsageError(f"--{option} must be at least {least}, not {value}")
    if training.images is not None and training.images < training.batch:
        raise UsageError(f"--images {training.images} are less than a batch of {training.batch}: choose at least that")
    if not seeds or len(set(seeds)) < len(seeds):
        raise UsageError(f"--seeds must be one or more different numbers, not '{' '.join(map(str, seeds))}'")
    for name in attacks:
        if name not in ATTACKS:
            raise UsageError(f"--attacks {name} is not known: choose from {' '.join(ATTACKS)}")


def train_once(
    recipe: Recipe,
    data: Dataset,
    device: torch.device,
    *,
    attacks: Sequence[str],
    samples_of: Mapping[str, int],
) -> TrainRow:
    """One training by the trainer's own loop, and the attacks on its last weights.

    Raises:
        Diverged: the loss is not finite any more.
    """
    torch.compiler.reset()  # each seed compiles, as a run of its own would
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    began = time.perf_counter()
    run = Run(recipe, data, device)
    refused = run.prepare()
    if refused is not None:
        console.line(f"not captured as CUDA graphs ({refused}): {run.execution.mode} steps instead")
    wait_for(device)
    ready = time.perf_counter() - began
    loss = _train(run)
    wall = time.perf_counter() - began
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    state = gpu_state(device)
    began = time.perf_counter()
    reports = {}
    if attacks:
        run.net.eval()
        options: dict[str, Any] = {"attacks": attacks, "samples_of": samples_of, "seed": recipe.seed}
        step = recipe.parsed_attack_step()
        reports = evaluate_net(
            run.net, in_memory(data.test).to(device), epsilon=run.epsilon, step=step, **options
        ).attacks
    return TrainRow(
        recipe=recipe,
        images=len(data.train),
        mode=run.execution.mode,
        prepared=run.prepared or Preparation(0.0, 0.0),
        ready=ready,
        steps=run.at.step_seconds,
        wall=wall,
        evaluation=time.perf_counter() - began,
        images_per_second=run.at.total * recipe.batch_size / run.at.step_seconds,
        loss=loss,
        accuracy={name: report.accuracy for name, report in reports.items()},
        attacked={name: report.samples for name, report in reports.items()},
        peak=peak,
        state=state,
    )


def _train(run: Run) -> float:
    """All epochs; returns the last one's mean loss."""

    def check() -> None:
        if any(run.watch.read()):  # left out: the tally does not know of it
            raise Diverged(f"training diverged in epoch {run.at.epoch + 1}: try a larger --batch")

    loss = math.nan
    while run.at.epoch < run.recipe.epochs:
        with run.execution.numerics():
            train_epoch(run, poll=check, pause=lambda: False)  # a signal ends the benchmark at once
        loss, _ = run.tally.read()
        run.tally.clear()
        run.at.epoch, run.at.step = run.at.epoch + 1, 0
    return loss


def _columns(row: TrainRow, device: torch.device) -> dict[str, Any]:
    recipe, prepared = row.recipe, row.prepared
    seconds = {
        "warmup_s": prepared.warmup,
        "capture_s": prepared.capture,
        "ready_s": row.ready,
        "step_s": row.steps,
        "wall_s": row.wall,
        "evaluation_s": row.evaluation,
    }
    accuracies: dict[str, float | int] = {}
    for name, value in row.accuracy.items():
        accuracies |= {name: round(value, 3), f"{name}_images": row.attacked[name]}
    return {
        "seed": recipe.seed,
        "method": recipe.method.name,
        "model": recipe.model.name,
        "data": recipe.data.name,
        "batch": recipe.batch_size,
        "images": row.images,
        "epochs": recipe.epochs,
        "epsilon": recipe.epsilon,
        "mode": row.mode,
        "precision": recipe.execution.precision,
        **{name: float(f"{value:.5g}") for name, value in seconds.items()},
        "images_per_second": round(row.images_per_second),
        "peak_gib": None if row.peak is None else round(row.peak / GIB, 3),
        "loss": row.loss,
        **accuracies,
        **place_columns(describe_environment(device), row.state),
    }


def table(rows: Sequence[TrainRow], *, on_gpu: bool) -> str:
    """On a GPU seconds, on a CPU ratios of times; then the accuracies, and their mean over several seeds."""
    attacks = list(rows[0].accuracy)
    times = ["warm-up s", "capture s", "training s", "wall s", "images/s", "GiB"] if on_gpu else list(SHARES)
    lines = []
    for row in rows:
        if on_gpu:
            seconds = (row.prepared.warmup, row.prepared.capture, row.steps, row.wall)
            cells = [*(f"{value:.1f}" for value in seconds), f"{row.images_per_second:,.0f}"]
            cells.append(f"{(row.peak or 0) / GIB:.2f}")
        else:
            cells = [f"{row.prepared.warmup / row.wall:.1%}", f"{row.evaluation / row.steps:.2f}"]
        lines.append([str(row.recipe.seed), row.mode, *cells, *(f"{row.accuracy[name]:.2f} %" for name in attacks)])
    said = console.table(
        ["seed", "mode", *times, *(f"{name} ({rows[0].attacked[name]} images)" for name in attacks)], lines
    )
    if not on_gpu:
        said += "\nratios only: absolute times are meaningful on a GPU"
    if not attacks:
        said += "\nno accuracy: the images are random" if rows[0].recipe.data.name == "synthetic" else "\nno attacks"
    elif len(rows) > 1:
        means = (f"{name} {mean_and_deviation([row.accuracy[name] for row in rows])} %" for name in attacks)
        said += f"\nmean and deviation over {len(rows)} seeds: {', '.join(means)}"
    return said
