"""Times loaders at one size, and the FGSM-SDI step that they are for: all in turn in one process, run by run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, count, islice, repeat

import torch

from ..engine import console
from ..engine.environment import gpu_state, wait_for
from ..engine.execution import ExecutionOptions, Precision
from ..engine.methods import Position
from ..engine.run import Run
from ..loaders import Augmentation, Batch, DataOptions, Loader, open_dataset
from ..loaders.synthetic import SyntheticShape
from .cpu_seconds import cpu_seconds
from .loader_rows import LoaderRow
from .timing import wall_seconds
from .variants import CHANNELS, Workload, recipe_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A loader that can be made.

    Attributes:
        make: the loader, for batches of so many images.
        augmentation: crops and flips.
        images: in its data set.
        data: where they come from.
        workers: threads or processes that decode; None for a loader that decodes nothing.
    """

    make: Callable[[int], Loader]
    augmentation: Augmentation
    images: int
    data: str
    workers: int | None = None


@dataclass(slots=True)
class Opened:
    """A loader that has delivered its first epoch.

    Attributes:
        loader: of batches of `batch` images.
        first_batch: seconds from making it to its first batch.
        repeats: epochs in a run.
        epochs: numbers of those that come.
    """

    loader: Loader
    batch: int
    first_batch: float
    repeats: int = 1
    epochs: Iterator[int] = field(default_factory=lambda: count(1))

    def walk(self) -> None:
        """The epochs of a run, of whose batches nothing is done."""
        for epoch in islice(self.epochs, self.repeats):
            for _ in self.loader.epoch(epoch):
                pass

    def batches(self) -> Iterator[Batch]:
        """Of new epochs, without end."""
        return chain.from_iterable(self.loader.epoch(epoch) for epoch in self.epochs)


@dataclass(slots=True)
class Found:
    """What the runs of one loader came to, as in `LoaderRow`."""

    rates: list[float] = field(default_factory=list)
    cores: list[float] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)
    fed: list[float] = field(default_factory=list)


def time_loaders(
    workload: Workload,
    candidates: Mapping[str, Candidate],
    device: torch.device,
    *,
    batch: int,
    precision: Precision,
    runs: int,
    run_seconds: float,
) -> list[LoaderRow]:
    """A row for each loader.

    The step's own batch is `workload.batch`. On a GPU every loader also feeds the step. On a CPU only those that decode
    nothing do, since decoding and training would share its cores.

    Args:
        workload: the step.
        candidates: the loaders, by name.
        device: where batches and step are.
        batch: images in a batch of the loaders.
        precision: of the step.
        runs: how often everything is timed.
        run_seconds: a run of a loader has as many epochs, one at least, as take about that long.
    """
    run, resting = _prepared(workload, device, precision)
    found = {name: Found() for name in candidates}
    steps: list[float] = []
    with ExitStack() as stack, console.bar(runs, "", "runs") as bar:
        opened, feeding = {}, {}
        for name, candidate in candidates.items():
            bar.set_description(f"first epoch of {name} at {workload.image_size} px")
            opened[name] = _open(candidate, batch, device, run_seconds, stack)
            if device.type == "cuda" or candidate.workers is None:
                same = batch == workload.batch
                feeding[name] = opened[name] if same else _open(candidate, workload.batch, device, run_seconds, stack)
        bar.set_description(f"timing at {workload.image_size} px")
        stack.enter_context(run.execution.numerics())
        _step_seconds(run, resting, workload.k, device)
        for _ in range(runs):
            for name, loader in opened.items():
                rate, cores = _rate(loader, device)
                found[name].rates.append(rate)
                found[name].cores.append(cores)
                if feeding.get(name, loader) is not loader:
                    rate, _ = _rate(feeding[name], device)
                found[name].alone.append(workload.batch / rate)
            for name, loader in feeding.items():
                found[name].fed.append(_step_seconds(run, loader.batches(), workload.k, device))
            steps.append(_step_seconds(run, resting, workload.k, device))
            bar.update(1)
    return [
        LoaderRow(
            name=name,
            workload=workload,
            batch=batch,
            images=candidate.images,
            data=candidate.data,
            augmentation=candidate.augmentation,
            workers=candidate.workers,
            mode=run.execution.mode,
            precision=precision,
            first_batch=opened[name].first_batch,
            rates=found[name].rates,
            cores=found[name].cores,
            alone=found[name].alone,
            step=steps,
            fed=found[name].fed,
            state=gpu_state(device),
        )
        for name, candidate in candidates.items()
    ]


def _prepared(workload: Workload, device: torch.device, precision: Precision) -> tuple[Run, Iterator[Batch]]:
    """A run on random images, ready to step, and one batch of it, again and again."""
    recipe = recipe_of(workload, "fgsm-sdi", ExecutionOptions(precision=precision))
    shape = SyntheticShape(
        train_images=workload.batch + 1, test_images=1, channels=CHANNELS, num_classes=workload.classes
    )
    options = DataOptions(name="synthetic", image_size=workload.image_size, heldout=1, synthetic=shape)
    run = Run(replace(recipe, data=options), open_dataset(options), device)
    refused = run.prepare([Position(0, 0), Position(0, 1)])
    if refused is not None:
        console.line(f"the step is not captured as a CUDA graph: {refused}")
    return run, repeat(next(run.loader.epoch(0)))


def _open(candidate: Candidate, batch: int, device: torch.device, run_seconds: float, stack: ExitStack) -> Opened:
    """Makes a loader and lets it deliver one epoch; `stack` closes it."""
    wait_for(device)
    began = time.perf_counter()
    loader = stack.enter_context(closing(candidate.make(batch)))
    epoch = loader.epoch(0)
    next(epoch)
    wait_for(device)
    opened = Opened(loader, batch, time.perf_counter() - began)
    for _ in epoch:
        pass
    seconds = wall_seconds(opened.walk, device)
    opened.repeats = max(1, round(run_seconds / seconds))
    return opened


def _rate(opened: Opened, device: torch.device) -> tuple[float, float]:
    """(images per second, CPU cores at work) of a run."""
    before = cpu_seconds()
    seconds = wall_seconds(opened.walk, device)
    used = cpu_seconds() - before
    return opened.repeats * len(opened.loader) * opened.batch / seconds, used / seconds


def _step_seconds(run: Run, batches: Iterable[Batch], k: int, device: torch.device) -> float:
    """Seconds of a step on average, the generator's update in every k-th of them.

    On a GPU k steps in a row; on a CPU, where a step may take seconds, one of each kind.
    """
    batches = iter(batches)
    if device.type == "cuda":
        return wall_seconds(partial(_train, run, batches, range(k)), device) / k
    updating = wall_seconds(partial(_train, run, batches, [0]), device)
    if k == 1:
        return updating
    return (updating + (k - 1) * wall_seconds(partial(_train, run, batches, [1]), device)) / k


def _train(run: Run, batches: Iterator[Batch], steps: Iterable[int]) -> None:
    """The steps of these numbers, each on the next batch."""
    for number in steps:
        run.step(next(batches), Position(0, number))
