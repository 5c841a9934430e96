"""`hardfast profile`: where the time of one training step goes, phase by phase, and how far from its floor that is."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity
from torch.profiler import profile as torch_profile

from ..engine import console
from ..engine.environment import choose_device, describe_environment, gpu_state, wait_for
from ..engine.errors import UsageError
from ..engine.execution import Mode
from ..engine.methods import FgsmSdiOptions, Position
from ..engine.output_files import check_places
from ..engine.phases import observed_by, phase
from ..engine.recipes.recipe import Recipe
from ..engine.run import Run
from ..kernels import to_float
from ..loaders import Dataset, open_dataset
from .ledger import Calls, Entry, Kind, KindName, Rounds, ledger, rows, table
from .phase_timers import OTHER, EventTimer, PhaseTimer, WallTimer, external_events
from .profile_plot import draw
from .roofline import Call, CallCounter, Machine, count_forward, measure_machine
from .rows import place_columns, write_rows

STEPS = {"cuda": 50, "cpu": 20}
WARMUP, TRACED = 2, 2
"""Of every kind of step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What was measured.

    Attributes:
        entries: of the average step, then of each kind of step.
        kinds: of steps.
        machine: what the floors are measured by.
        run: whose steps they are.
    """

    entries: list[Entry]
    kinds: list[Kind]
    machine: Machine
    run: Run


def profile_step(
    recipe: Recipe,
    *,
    device: str = "auto",
    steps: int | None = None,
    trace: Path | None = None,
    csv: Path | None = None,
    json: Path | None = None,
    png: Path | None = None,
) -> str:
    """Times the phases of a recipe's training step, its loader included, and returns a table.

    An ordinary step and one that updates the generator are timed in turn; the table shows their average over training.
    The share of a phase is that of its median among the medians of all.

    Args:
        recipe: whose step; its data set is opened.
        device: auto, cpu, cuda or cuda:N.
        steps: of each kind that are timed; by default 50 on a GPU, 20 on a CPU.
        trace: where a Chrome trace of a few more steps is written, in which the phases are named ranges; a CUDA graph
            has none.
        csv, json: where the rows of the table and those of each kind of step are written.
        png: where a picture of the table is written.

    Raises:
        UsageError: fewer than two steps, no such device or what it cannot do, or a file that cannot be written.
        DataError: the data set is missing or damaged.
    """
    place, why = choose_device(device)
    steps = STEPS[place.type] if steps is None else steps
    if steps < 2:
        raise UsageError(f"--steps is {steps}: percentiles need at least 2")
    check_places(trace=trace, csv=csv, json=json, png=png)
    if png is not None and importlib.util.find_spec("matplotlib") is None:
        raise UsageError("--png needs matplotlib, which is not installed: pip install matplotlib, or leave it out")
    profile = measure(recipe, place, steps=steps, trace=trace)
    run, machine = profile.run, profile.machine
    height, width, _ = run.data.image_shape
    title = f"{recipe.name}: {recipe.method.name}, {recipe.model.name}, batch {recipe.batch_size} at {height}x{width}"
    environment = describe_environment(place, run.execution)
    where = place_columns(environment, gpu_state(place))
    found = rows(profile.entries, machine)
    write_rows([{**_workload(run), **row, **where} for row in found], csv=csv, json=json)
    if png is not None:
        draw(profile.entries, png, title=f"{title}\n{run.execution.mode}, {run.execution.precision}, {where['device']}")
    return "\n".join(
        [
            title,
            f"device {place} ({why}), {run.execution.describe()}, {steps} steps of each kind",
            f"floors: {machine.flops / 1e12:.3g} TFLOP/s in a large matrix product, {machine.bandwidth / 1e9:.4g} GB/s "
            "read and written in a large copy",
            "",
            table(profile.entries, profile.kinds),
        ]
    )


def measure(recipe: Recipe, device: torch.device, *, steps: int, trace: Path | None = None) -> Profile:
    """The ledger of a recipe's step; arguments as in `profile_step`."""
    data = open_dataset(recipe.data)
    kinds = kinds_of(recipe)
    calls, unit = count_calls(recipe, data, device, kinds)
    torch.cuda.empty_cache()  # what the eager run held would be missing while the step is captured
    run = Run(_timeable(recipe, device), data, device)
    timer: PhaseTimer = EventTimer() if device.type == "cuda" else WallTimer()
    machine = measure_machine(run.execution)
    step = _whole_step(run)
    with _on(device), run.execution.numerics():
        with observed_by(timer):
            for kind in kinds:
                refused = run.prepare([kind.position])
                if refused is not None:
                    raise UsageError(f"the step is not capturable ({refused}): profile --execution.mode compiled")
                timer.captured(kind)
            rounds = _timed(step, kinds, timer, steps)
        if trace is not None:
            _write_trace(step, kinds, device, trace)
    entries = ledger(kinds, rounds, calls, unit=unit, machine=machine)
    return Profile(entries=entries, kinds=kinds, machine=machine, run=run)


def kinds_of(recipe: Recipe) -> list[Kind]:
    """The kinds of a recipe's steps: ordinary ones, and with FGSM-SDI every k-th, which updates the generator."""
    if not isinstance(recipe.method, FgsmSdiOptions):
        return [Kind("ordinary", Position(0, 0), 1.0)]
    k = recipe.method.k
    kth = Kind("k-th", Position(0, 0), 1 / k)
    return [kth] if k == 1 else [Kind("ordinary", Position(0, 1), 1 - 1 / k), kth]


def count_calls(recipe: Recipe, data: Dataset, device: torch.device, kinds: Sequence[Kind]) -> tuple[Calls, int]:
    """(the calls of a step of each kind, operations of the classifier's forward), of a run of its own that is eager."""
    run = Run(_in_mode(recipe, "eager"), data, device)
    step = _whole_step(run)
    calls: dict[KindName, Mapping[str, Sequence[Call]]] = {}
    with run.execution.numerics():
        for kind in kinds:
            with CallCounter() as counter, observed_by(counter):
                step(kind.position)
            calls[kind.name] = {name or OTHER: found for name, found in counter.calls.items()}
        x = to_float(next(run.loader.epoch(0)).x)
        return calls, count_forward(run.net, x, run.execution)


def _timeable(recipe: Recipe, device: torch.device) -> Recipe:
    """The recipe in a mode whose phases can be timed."""
    if device.type == "cpu" or external_events() or recipe.execution.mode in ("eager", "compiled"):
        return recipe
    console.line(f"torch {torch.__version__} cannot time phases in CUDA graphs (2.9 can): compiled steps instead")
    return _in_mode(recipe, "compiled")


def _in_mode(recipe: Recipe, mode: Mode) -> Recipe:
    return replace(recipe, execution=replace(recipe.execution, mode=mode))


def _on(device: torch.device) -> AbstractContextManager[object]:
    """Makes a GPU the current one: events are recorded there."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _whole_step(run: Run) -> Callable[[Position], None]:
    """What training does in a step, on the run's batches, one epoch after the other."""
    batches = (batch for epoch in count() for batch in run.loader.epoch(epoch))

    def step(position: Position) -> None:
        with phase("data"):
            batch = next(batches)
        run.follow_schedule()
        run.step(batch, position)

    return step


def _timed(step: Callable[[Position], None], kinds: Sequence[Kind], timer: PhaseTimer, steps: int) -> Rounds:
    """Seconds of each phase of so many steps of each kind, in turn, after `WARMUP` that do not count."""
    rounds: dict[KindName, list[dict[str, float]]] = {kind.name: [] for kind in kinds}
    with console.bar(WARMUP + steps, "timing", "rounds") as bar:
        for number in range(WARMUP + steps):
            for kind in kinds:
                seconds = timer.timed(partial(step, kind.position), kind)
                if number >= WARMUP:
                    rounds[kind.name].append(seconds)
            bar.update(1)
    return rounds


def _write_trace(step: Callable[[Position], None], kinds: Sequence[Kind], device: torch.device, path: Path) -> None:
    """A Chrome trace of `TRACED` steps of each kind."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with torch_profile(activities=activities) as profiler:
        for kind in kinds:
            for _ in range(TRACED):
                step(kind.position)
        wait_for(device)
    profiler.export_chrome_trace(str(path))


def _workload(run: Run) -> dict[str, Any]:
    """The columns that say what was profiled."""
    recipe = run.recipe
    return {
        "recipe": recipe.name,
        "method": recipe.method.name,
        "model": recipe.model.name,
        "batch": recipe.batch_size,
        "image_size": run.data.image_shape[0],
        "precision": run.execution.precision,
        "mode": run.execution.mode,
    }
