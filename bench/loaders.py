"""What the images cost: every loader's epoch beside the FGSM-SDI step that they are for, in turn in one process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, count, repeat
from pathlib import Path
from typing import Any

import torch

from ..engine import console
from ..engine.environment import choose_device, describe_environment, gpu_state
from ..engine.errors import UsageError
from ..engine.execution import ExecutionOptions, Mode, Precision
from ..engine.methods import Position
from ..engine.recipes.recipe import Recipe
from ..engine.run import Run
from ..loaders import Batch, DataOptions, Dataset, Loader, ResidentLoader, open_dataset
from ..loaders.synthetic import SyntheticShape
from .rows import place_columns, write_rows
from .timing import Spread, interleaved, wall_seconds
from .variants import CHANNELS, Workload, check_workload, recipe_of

MOST_IMAGES, MOST_BYTES, CPU_BATCHES = 50_000, 1 << 30, 4
ROUNDS, WARMUP = 10, 2
TARGET = 0.02
"""Of a step, for the resident loader."""


def resident(recipe: Recipe, data: Dataset, device: torch.device) -> Loader:
    """Bytes on the device, shuffled, cropped and flipped there."""
    return ResidentLoader(
        data.train,
        batch_size=recipe.batch_size,
        padding=recipe.crop_padding,
        flip=recipe.flip,
        seed=recipe.seed,
        device=device,
    )


LOADERS: dict[str, Callable[[Recipe, Dataset, torch.device], Loader]] = {"resident": resident}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderRow:
    """One loader, round by round, in seconds.

    Attributes:
        workload: model, batch and image size.
        name: of the loader.
        images: in its data set.
        mode, precision: of the step.
        batch: an epoch is walked and nothing else is done; for each of its batches.
        step: a step, on a batch that lies there already.
        fed: a step, on batches from the loader; its epoch, whose order is then drawn, begins anew with every k steps.
        state: of the GPU just after the timing, from `gpu_state`.
    """

    workload: Workload
    name: str
    images: int
    mode: Mode
    precision: Precision
    batch: list[float]
    step: list[float]
    fed: list[float]
    state: dict[str, str | float | None]

    @property
    def share(self) -> Spread:
        """Of a batch in a step, as if nothing of it happened during the step before."""
        return Spread.of([batch / step for batch, step in zip(self.batch, self.step, strict=True)])

    @property
    def added(self) -> Spread:
        """What the loader adds to a step, over that step."""
        return Spread.of([fed / step - 1 for fed, step in zip(self.fed, self.step, strict=True)])


def bench_loaders(
    workload: Workload,
    *,
    loaders: Sequence[str] = (),
    images: int | None = None,
    precision: Precision = "fp32",
    device: str = "auto",
    rounds: int = ROUNDS,
    csv: Path | None = None,
    json: Path | None = None,
) -> str:
    """Times the loaders and the step that they feed, in turn in one process, and returns a table.

    Args:
        workload: model, batch and image size; k steps are timed at once.
        loaders: names out of `LOADERS`; all of them if there are none.
        images: in the data set; by default as many as 1 GiB holds, at most 50,000, on a CPU four batches.
        precision: of the step.
        device: auto, cpu, cuda or cuda:N.
        rounds: how often everything is timed, after two rounds that are not.
        csv, json: where the rows are also written, with device, clocks and versions.

    Raises:
        UsageError: an unknown loader or model, numbers too small, no such device, or what it cannot do.
    """
    for name in loaders:
        if name not in LOADERS:
            raise UsageError(f"--loaders {name} is not a loader: choose from {', '.join(LOADERS)}")
    check_workload(workload, rounds)
    place, why = choose_device(device)
    images = default_images(workload, place) if images is None else images
    if images < workload.batch:
        raise UsageError(f"--images {images} are less than a batch of {workload.batch}: choose at least that")
    chosen = [name for name in LOADERS if name in loaders or not loaders]
    console.line(
        f"timing {', '.join(chosen)}: batch {workload.batch} at {workload.image_size}x{workload.image_size} of "
        f"{images} images, steps of {workload.model}, {rounds} rounds on {place} ({why})"
    )
    rows = time_loaders(workload, chosen, place, images=images, precision=precision, rounds=rounds)
    environment = describe_environment(place)
    write_rows([_columns(row, environment) for row in rows], csv=csv, json=json)
    return table(rows, on_gpu=place.type == "cuda")


def default_images(workload: Workload, device: torch.device) -> int:
    """Images in the data set, if the user does not say."""
    if device.type == "cpu":
        return CPU_BATCHES * workload.batch
    return max(workload.batch, min(MOST_IMAGES, MOST_BYTES // (CHANNELS * workload.image_size**2)))


def time_loaders(
    workload: Workload, names: Sequence[str], device: torch.device, *, images: int, precision: Precision, rounds: int
) -> list[LoaderRow]:
    """The loaders of these names, and the step, all in turn."""
    recipe = recipe_of(workload, "fgsm-sdi", ExecutionOptions(precision=precision))
    shape = SyntheticShape(train_images=images + 1, test_images=1, channels=CHANNELS, num_classes=workload.classes)
    options = DataOptions(name="synthetic", image_size=workload.image_size, heldout=1, synthetic=shape)
    recipe = replace(recipe, data=options)
    data = open_dataset(options)
    run = Run(recipe, data, device)
    refused = run.prepare([Position(0, 0), Position(0, 1)])
    if refused is not None:
        console.line(f"the step is not captured as a CUDA graph: {refused}")
    first, epochs = next(run.loader.epoch(0)), count()
    timers = {"step": _timer(lambda: _train(run, repeat(first), workload.k), workload.k, device)}
    for name in names:
        loader = LOADERS[name](recipe, data, device)
        timers[f"{name} alone"] = _timer(partial(_walk, loader, epochs), len(loader), device)
        timers[f"{name} fed"] = _timer(partial(_feed, run, loader, epochs, workload.k), workload.k, device)
    with run.execution.numerics():
        seconds = interleaved(timers, repeats=rounds, warmup=WARMUP)
    state = gpu_state(device)
    return [
        LoaderRow(
            workload=workload,
            name=name,
            images=images,
            mode=run.execution.mode,
            precision=precision,
            batch=seconds[f"{name} alone"],
            step=seconds["step"],
            fed=seconds[f"{name} fed"],
            state=state,
        )
        for name in names
    ]


def _timer(call: Callable[[], object], parts: int, device: torch.device) -> Callable[[], float]:
    """Seconds of each of the equal parts of a call."""
    return lambda: wall_seconds(call, device) / parts


def _walk(loader: Loader, epochs: Iterator[int]) -> None:
    """An epoch, of whose batches nothing is done."""
    for _ in loader.epoch(next(epochs)):
        pass


def _feed(run: Run, loader: Loader, epochs: Iterator[int], steps: int) -> None:
    """Steps on batches of a new epoch, and of more if it has too few."""
    _train(run, chain.from_iterable(loader.epoch(epoch) for epoch in epochs), steps)


def _train(run: Run, batches: Iterable[Batch], steps: int) -> None:
    for number, batch in zip(range(steps), batches, strict=False):
        run.step(batch, Position(0, number))


def _columns(row: LoaderRow, environment: dict[str, Any]) -> dict[str, Any]:
    workload, batch = row.workload, Spread.of([1000 * seconds for seconds in row.batch])
    figures = {"median_ms": batch.median, "p20_ms": batch.p20, "p80_ms": batch.p80}
    figures["step_ms"] = 1000 * Spread.of(row.step).median
    for name, spread in (("share", row.share), ("added", row.added)):
        figures |= {name: spread.median, f"{name}_p20": spread.p20, f"{name}_p80": spread.p80}
    return {
        "loader": row.name,
        "model": workload.model,
        "batch": workload.batch,
        "image_size": workload.image_size,
        "images": row.images,
        "images_per_second": round(workload.batch / Spread.of(row.batch).median),
        **{name: float(f"{value:.5g}") for name, value in figures.items()},
        "mode": row.mode,
        "precision": row.precision,
        "k": workload.k,
        "generator_width": workload.generator_width,
        "rounds": len(row.step),
        **place_columns(environment, row.state),
    }


def table(rows: Sequence[LoaderRow], *, on_gpu: bool) -> str:
    """Shares of a step; on a GPU also times, images per second and whether the target is met."""
    lines = []
    for row in rows:
        batch, step = Spread.of(row.batch).median, Spread.of(row.step).median
        times = [f"{row.workload.batch / batch:,.0f}", f"{1e6 * batch:.1f}", f"{1e3 * step:.2f}"] if on_gpu else []
        lines.append([row.name, *times, _percent(row.share), _percent(row.added)])
    header = ["loader", *(["images/s", "batch us", "step ms"] if on_gpu else []), "batch / step", "added to a step"]
    said = console.table(header, lines)
    for row in rows:
        if row.name == "resident" and on_gpu:
            met = "met" if row.share.median <= TARGET else "not met"
            said += f"\nresident: {row.share.median:.2%} of a step (target: at most {TARGET:.0%}): {met}"
    return said


def _percent(spread: Spread) -> str:
    return f"{spread.median:.1%} ({spread.p20:.1%} to {spread.p80:.1%})"
