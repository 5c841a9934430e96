"""What a training step costs: ours, plain training, and FGSM-SDI as others run it, in turn in one process."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..engine import console
from ..engine.environment import choose_device, describe_environment, gpu_state
from ..engine.errors import UsageError
from ..engine.execution import Execution, ExecutionOptions, Mode, Precision, choose_execution
from ..engine.output_files import check_places
from .rows import place_columns, write_rows
from .timing import Spread, interleaved_steps
from .variants import BASELINES, DEFAULT_NAMES, NAMES, OURS, BuiltStep, Variant, Workload, build, check_workload

ROUNDS = {"cuda": 50, "cpu": 20}


@dataclass(frozen=True, slots=True)
class StepRow:
    """A step of one variant: seconds, averaged over the k steps of a cycle, round by round."""

    workload: Workload
    variant: Variant
    built: BuiltStep
    rounds: list[float]


def bench_step(
    workload: Workload,
    *,
    names: Sequence[str] = DEFAULT_NAMES,
    modes: Sequence[Mode] = (),
    precisions: Sequence[Precision] = (),
    device: str = "auto",
    rounds: int | None = None,
    csv: Path | None = None,
    json: Path | None = None,
) -> str:
    """Times the variants and returns a table of ratios to `plain` and to `fgsm-sdi`.

    An ordinary step and one that updates the generator are timed apart and weighed k - 1 to 1. A variant that the
    device cannot hold or capture is named and left out.

    Args:
        workload: model, batch and image size.
        names: variants out of `NAMES`; `plain` and `fgsm-sdi` are always among them.
        modes: how our steps are executed, the first one being what others are compared with; by default captured,
            compiled and eager on a GPU, eager on a CPU.
        precisions: of our steps, the first one likewise; by default half precision on a GPU, fp32 on a CPU. The
            released baselines are in fp32, the tuned ones in the first of these.
        device: auto, cpu, cuda or cuda:N.
        rounds: how often each step is timed, after two that are not; by default 50 times on a GPU, 20 on a CPU.
        csv, json: where the rows are also written.

    Raises:
        UsageError: an unknown variant, model, mode or precision, fewer than two rounds, or no such device.
    """
    place, why = choose_device(device)
    rounds = ROUNDS[place.type] if rounds is None else rounds
    _check(workload, names, rounds)
    check_places(csv=csv, json=json)
    modes = modes or (("captured", "compiled", "eager") if place.type == "cuda" else ("eager",))
    precisions = precisions or _precisions(place)
    for mode in modes:
        for precision in precisions:
            choose_execution(ExecutionOptions(mode=mode, precision=precision), place)  # refuses what cannot be
    wanted = _variants(names, modes, precisions)
    size = workload.image_size
    console.line(
        f"timing {len(wanted)} variants: {workload.model}, batch {workload.batch} at {size}x{size}, k = {workload.k}, "
        f"{rounds} rounds on {place} ({why})"
    )
    with _room_to_compile(), Execution(device=place, tf32=True).numerics():  # the baselines get the same switches
        steps = _built(wanted, workload, place)
        seconds = _timed(steps, rounds, place)
    rows = []
    for variant, built in steps.items():
        ordinary, kth = seconds[f"{variant}, 1"], seconds[f"{variant}, {built.kinds[-1]}"]
        averaged = [((workload.k - 1) * a + b) / workload.k for a, b in zip(ordinary, kth, strict=True)]
        rows.append(StepRow(workload, variant, built, averaged))
    write_rows(_columns(rows, place), csv=csv, json=json)
    return table(rows, absolute=place.type == "cuda")


def _check(workload: Workload, names: Sequence[str], rounds: int) -> None:
    for name in names:
        if name not in NAMES:
            raise UsageError(f"--names {name} is not a variant: choose from {', '.join(NAMES)}")
    check_workload(workload, rounds)


def _precisions(device: torch.device) -> tuple[Precision, ...]:
    if device.type == "cpu":
        return ("fp32",)
    return ("bf16",) if torch.cuda.get_device_capability(device) >= (8, 0) else ("fp16",)


def _variants(names: Sequence[str], modes: Sequence[Mode], precisions: Sequence[Precision]) -> list[Variant]:
    """`plain` and `fgsm-sdi` in all modes and precisions, everything else once."""
    chosen = [name for name in NAMES if name in ("plain", "fgsm-sdi", *names)]
    found = [
        Variant(name=name, mode=mode, precision=precision)
        for name in chosen
        if name in OURS
        for precision in (precisions if name in ("plain", "fgsm-sdi") else precisions[:1])
        for mode in (modes if name in ("plain", "fgsm-sdi") else modes[:1])
    ]
    of_baseline: dict[str, tuple[Mode, Precision]] = {
        "released": ("eager", "fp32"),
        "released-2022": ("eager", "fp32"),
        "tuned-eager": ("eager", precisions[0]),
        "tuned-compiled": ("compiled", precisions[0]),
    }
    for name in chosen:
        if name in BASELINES:
            mode, precision = of_baseline[name]
            found.append(Variant(name=name, mode=mode, precision=precision))
    return found


@contextmanager
def _room_to_compile() -> Iterator[None]:
    """Lets one function be compiled for every variant: each has nets of its own, a recompilation to torch."""
    torch.compiler.reset()
    with torch._dynamo.config.patch(recompile_limit=64):
        yield
    torch.compiler.reset()


def _built(wanted: Sequence[Variant], workload: Workload, device: torch.device) -> dict[Variant, BuiltStep]:
    steps: dict[Variant, BuiltStep] = {}
    with console.bar(len(wanted), "preparing", "variants") as bar:
        for variant in wanted:
            began = time.perf_counter()
            try:
                steps[variant] = build(variant, workload, device)
                for number in steps[variant].kinds:  # a step of each kind: what is too large or too new fails here
                    steps[variant].call(number)
            except (RuntimeError, UsageError) as error:  # out of memory, torch.compile's own, a missing package
                left_out = (str(error).strip().splitlines() or [type(error).__name__])[0]
            else:
                left_out = ""
                if variant.name in BASELINES:
                    steps[variant].warmup_seconds = time.perf_counter() - began
            if left_out:  # outside the handler, whose traceback holds the variant's tensors
                steps.pop(variant, None)
                gc.collect()
                torch.cuda.empty_cache()
                console.line(f"left out: {variant}: {left_out}")
            bar.update(1)
    if not {"plain", "fgsm-sdi"} <= {variant.name for variant in steps}:
        raise UsageError("neither plain training nor fgsm-sdi could be run: use a smaller --batch or another --modes")
    return steps


def _timed(steps: Mapping[Variant, BuiltStep], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of a step by `variant, number`, for both kinds of step."""

    calls = {f"{v}, {number}": partial(built.call, number) for v, built in steps.items() for number in built.kinds}
    return interleaved_steps(calls, repeats=rounds, warmup=2, device=device)


def reference_rows(rows: Sequence[StepRow], row: StepRow) -> dict[str, StepRow]:
    """What a row is compared with: plain training in its own mode and precision where we have it (else in the first
    ones), and our step in the first mode and precision."""
    plain = [other for other in rows if other.variant.name == "plain"]
    alike = [o for o in plain if (o.variant.mode, o.variant.precision) == (row.variant.mode, row.variant.precision)]
    ours = [other for other in rows if other.variant.name == "fgsm-sdi"]
    return {"plain": (alike or plain)[0], "fgsm-sdi": ours[0]}


def table(rows: Sequence[StepRow], *, absolute: bool) -> str:
    """Ratios, round by round: over plain training, and over our step; on a GPU also milliseconds and images/s."""
    header = ["step", "mode", "precision", "over plain", "over fgsm-sdi"]
    lines = []
    for row in rows:
        ratios = [_ratio(row.rounds, base.rounds) for base in reference_rows(rows, row).values()]
        cells = [f"{spread.median:.2f} ({spread.p20:.2f} to {spread.p80:.2f})" for spread in ratios]
        line = [row.variant.name, row.variant.mode, row.variant.precision, *cells]
        if absolute:
            median = Spread.of(row.rounds).median
            line += [f"{1000 * median:.3f}", f"{row.workload.batch / median:,.0f}"]
        lines.append(line)
    return console.table([*header, "ms", "images/s"] if absolute else header, lines)


def _ratio(rounds: Sequence[float], base: Sequence[float]) -> Spread:
    return Spread.of([a / b for a, b in zip(rounds, base, strict=True)])


def _columns(rows: Sequence[StepRow], device: torch.device) -> list[dict[str, Any]]:
    place = place_columns(describe_environment(device), gpu_state(device))
    return [{**_times(row, reference_rows(rows, row)), **place} for row in rows]


def _times(row: StepRow, base: Mapping[str, StepRow]) -> dict[str, Any]:
    spread, workload = Spread.of([1000 * seconds for seconds in row.rounds]), row.workload
    times = {"median_ms": spread.median, "p20_ms": spread.p20, "p80_ms": spread.p80}
    for name, other in base.items():
        ratio, over = _ratio(row.rounds, other.rounds), name.replace("-", "_")
        times |= {f"over_{over}": ratio.median, f"over_{over}_p20": ratio.p20, f"over_{over}_p80": ratio.p80}
    times |= {"warmup_s": row.built.warmup_seconds, "capture_s": row.built.capture_seconds}
    return {
        "model": workload.model,
        "batch": workload.batch,
        "image_size": workload.image_size,
        "precision": row.variant.precision,
        "mode": row.variant.mode,
        "name": row.variant.name,
        **{name: float(f"{value:.5g}") for name, value in times.items()},
        "images_per_second": round(1000 * workload.batch / spread.median),
        "k": workload.k,
        "generator_width": workload.generator_width,
        "rounds": len(row.rounds),
    }
