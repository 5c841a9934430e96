"""Every kernel timed beside what a user would write without it, and beside a plain copy of as many bytes.

On a GPU each figure is the replay of a CUDA graph over inputs that are together larger than its L2. On a CPU there are
no Triton kernels: the CPU implementations take their place, and only ratios are printed.
"""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..engine import console
from ..engine.environment import choose_device, describe_environment, gpu_state
from ..engine.errors import UsageError
from ..engine.output_files import check_places
from .kernel_cases import CASES, Case, Problem, Shape
from .rows import place_columns, write_rows
from .timing import GraphTimer, Rotation, Spread, check_rounds, interleaved, wall_seconds

GPU_SHAPES, CPU_SHAPES = ("128x32", "512x32", "1024x32", "128x64", "64x224"), ("16x32",)
GPU_ROUNDS, CPU_ROUNDS, WARMUP = 50, 20, 3
TARGET = 0.9
"""Of a copy's speed."""
CPU_SETS, MOST_SETS = 3, 256
CACHES = 3
"""How often the inputs of all sets together fill the L2: at once it would still find some of them there."""
REPLAY, SHORTEST, FASTEST = 3e-4, 1e-6, 8e12
"""Seconds of a replay, at least; seconds of any kernel and bytes a second of any memory that no GPU surpasses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelRow:
    """One variant of one case at one shape.

    Attributes:
        case, shape: which.
        name: kernel (on a CPU: cpu), eager, compiled, copy, and on a GPU copy-kernel.
        bytes: device memory that the kernel has to read and write; the others are held against the same.
        sets: how many sets of inputs were rotated over.
        spread: seconds of one run; None if it failed.
        of_copy: speed over that of the faster copy; None if either failed.
        failure: why there is no time, in one line.
        state: of the GPU just after the timing, from `gpu_state`.
    """

    case: Case
    shape: Shape
    name: str
    bytes: int
    sets: int
    spread: Spread | None
    of_copy: float | None
    failure: str
    state: dict[str, str | float | None]


def bench_kernels(
    *,
    kernels: Sequence[str] = (),
    shapes: Sequence[str] = (),
    device: str = "auto",
    rounds: int | None = None,
    csv: Path | None = None,
    json: Path | None = None,
) -> str:
    """Times every variant of the kernels at every shape, in turn in one process, and returns a table.

    Args:
        kernels: names out of `CASES`; all of them if there are none.
        shapes: like 128x32, batch x size, of images with three channels; if there are none, those usual on the device.
        device: auto, cpu, cuda or cuda:N.
        rounds: how often each variant is timed; by default 50 times on a GPU, 20 times on a CPU.
        csv, json: where the rows are also written, with device, clocks and versions.

    Raises:
        UsageError: an unknown kernel, a shape that is none or does not fit, too few rounds, no such device, or a file
            that cannot be written.
    """
    place, why = choose_device(device)
    on_gpu = place.type == "cuda"
    if on_gpu and os.environ.get("TRITON_INTERPRET") == "1":
        raise UsageError("TRITON_INTERPRET=1 puts Triton's interpreter in place of its compiler: unset it")
    rounds = (GPU_ROUNDS if on_gpu else CPU_ROUNDS) if rounds is None else rounds
    check_rounds(rounds)
    cases = _cases(kernels)
    wanted = [_shape(word) for word in dict.fromkeys(shapes or (GPU_SHAPES if on_gpu else CPU_SHAPES))]
    check_places(csv=csv, json=json)
    environment = describe_environment(place)
    console.line(f"timing {len(cases)} cases at {' '.join(map(_words, wanted))} on {place} ({why}), {rounds} rounds")
    compiler = on_gpu or _has_compiler()
    rows: list[KernelRow] = []
    with console.bar(len(cases) * len(wanted), "timing", "case") as bar, torch.cuda.device(place if on_gpu else -1):
        for shape in wanted:
            for case in cases:
                bar.set_postfix_str(f"{case.name}, {_words(shape)}")
                rows += time_case(case, shape, place, rounds, compiler)
                bar.update()
    columns = [_columns(row, environment, on_gpu) for row in rows]
    write_rows(columns, csv=csv, json=json)
    return gpu_table(rows) if on_gpu else cpu_table(rows)


def _cases(kernels: Sequence[str]) -> list[Case]:
    known = list(dict.fromkeys(case.kernel for case in CASES))
    for name in kernels:
        if name not in known:
            raise UsageError(f"--kernels {name} is not a kernel: choose from {', '.join(known)}")
    return [case for case in CASES if not kernels or case.kernel in kernels]


def _shape(word: str) -> Shape:
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", word)
    if found is None or int(found[2]) < 2:  # no crop can mirror the border of a single pixel
        raise UsageError(f"--shapes {word} is not a shape: write BATCHxSIZE like 128x32, with a SIZE of at least 2")
    return Shape(int(found[1]), int(found[2]))


def _words(shape: Shape) -> str:
    return f"{shape.batch}x{shape.size}"


def _has_compiler() -> bool:
    """Whether Inductor finds the C++ compiler that it needs for a CPU; says so if not."""
    name = os.environ.get("CXX", "g++")
    if shutil.which(name) is not None:
        return True
    console.line(f"no compiler `{name}` here, so there are no `compiled` rows: install g++, or name one in CXX")
    return False


def time_case(case: Case, shape: Shape, device: torch.device, rounds: int, compiler: bool) -> list[KernelRow]:
    """The rows of one case at one shape; `compiler` says whether there is to be a compiled one.

    Raises:
        UsageError: the inputs do not fit into the memory.
    """
    try:
        problems = _problems(case, shape, device)
        variants = _variants(problems, device, compiler)
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        raise UsageError(f"--shapes {_words(shape)} does not fit into the memory of {device}: choose less") from None
    moved, sets = problems[0].launch.bytes, len(problems)
    turns = 1
    if device.type == "cuda":  # of unknown speed, so by what no GPU surpasses
        turns = math.ceil(REPLAY / (sets * max(SHORTEST, moved / FASTEST)))
    timers: dict[str, Callable[[], float]] = {}
    failures = dict.fromkeys(variants, "")
    for name, runs in variants.items():
        try:
            timers[name] = _timer(Rotation(runs, turns=turns), device)
        except Exception as error:  # whatever a compiler or a capture stumbles over, the other rows are good
            failures[name] = f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"
            console.line(f"{case.name}, {_words(shape)}: {name} failed: {failures[name]}")
    seconds = interleaved(timers, repeats=rounds, warmup=WARMUP)
    state = gpu_state(device)  # before its clocks fall
    spreads = {name: Spread.of([value / (sets * turns) for value in values]) for name, values in seconds.items()}
    copies = [spreads[name] for name in ("copy", "copy-kernel") if name in spreads]
    copy = min(copies, key=lambda spread: spread.median, default=None)
    return [
        KernelRow(
            case=case,
            shape=shape,
            name=name,
            bytes=moved,
            sets=sets,
            spread=spreads.get(name),
            of_copy=copy.median / spreads[name].median if copy and name in spreads else None,
            failure=failure,
            state=state,
        )
        for name, failure in failures.items()
    ]


def _timer(rotation: Rotation, device: torch.device) -> Callable[[], float]:
    if device.type == "cuda":
        return GraphTimer(rotation)
    rotation()  # compiles
    return partial(wall_seconds, rotation, device)


def _problems(case: Case, shape: Shape, device: torch.device) -> list[Problem]:
    """The case on as many sets of inputs as it takes to leave the L2; fewer only for shapes that nobody trains on."""
    first = case.build(shape, device, 0)
    sets = CPU_SETS
    if device.type == "cuda":
        cache = torch.cuda.get_device_properties(device).L2_cache_size
        sets = min(max(2, math.ceil(CACHES * cache / first.launch.bytes)), MOST_SETS)
    return [first, *(case.build(shape, device, seed) for seed in range(1, sets))]


def _variants(
    problems: Sequence[Problem], device: torch.device, compiler: bool
) -> dict[str, list[Callable[[], object]]]:
    """For each variant a run on every set of inputs."""
    usual = problems[0].usual  # holds no input of its own, so it serves all sets, and is compiled once
    variants: dict[str, list[Callable[[], object]]] = {}
    if device.type == "cuda":
        variants["kernel"] = [problem.launch.run for problem in problems]
    else:
        variants["cpu"] = [problem.op for problem in problems]
    variants["eager"] = [partial(usual, *problem.inputs) for problem in problems]
    if compiler:
        torch.compiler.reset()  # the cases share their functions' code, and Dynamo limits how often that is compiled
        compiled = torch.compile(usual, dynamic=False, fullgraph=True)
        variants["compiled"] = [partial(compiled, *problem.inputs) for problem in problems]
    variants["copy"] = [_copy(problem.launch.bytes, device) for problem in problems]
    if device.type == "cuda":
        variants["copy-kernel"] = [_copy_kernel(problem.launch.bytes, device) for problem in problems]
    return variants


def _copy(moved: int, device: torch.device) -> Callable[[], object]:
    """A copy that reads one half of the bytes and writes the other."""
    source = torch.randint(0, 256, (moved // 2,), dtype=torch.uint8, device=device)
    return partial(torch.empty_like(source).copy_, source)


def _copy_kernel(moved: int, device: torch.device) -> Callable[[], object]:
    """The same by an elementwise kernel of PyTorch: in a graph a copy is the driver's, and may start more slowly."""
    source = torch.randint(0, 256, (moved // 8,), dtype=torch.int32, device=device)
    return partial(torch.bitwise_not, source, out=torch.empty_like(source))


def _columns(row: KernelRow, environment: dict[str, Any], on_gpu: bool) -> dict[str, Any]:
    spread = row.spread
    times = {} if spread is None else {"median_us": spread.median, "p20_us": spread.p20, "p80_us": spread.p80}
    return {
        "kernel": row.case.kernel,
        "variant": row.case.variant,
        "precision": row.case.precision,
        "name": row.name,
        "batch": row.shape.batch,
        "image_size": row.shape.size,
        "channels": row.shape.channels,
        "bytes": row.bytes,
        "sets": row.sets,
        **{name: _rounded(times[name] * 1e6) if times else None for name in ("median_us", "p20_us", "p80_us")},
        "gb_per_s": _rounded(row.bytes / spread.median / 1e9) if spread and on_gpu else None,
        "of_copy": None if row.of_copy is None else _rounded(row.of_copy),
        "failure": row.failure,
        **place_columns(environment, row.state),
    }


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")


def _by_case(rows: Sequence[KernelRow]) -> list[dict[str, KernelRow]]:
    """The variants of each case at each shape, by name."""
    found: dict[tuple[str, Shape], dict[str, KernelRow]] = {}
    for row in rows:
        found.setdefault((row.case.name, row.shape), {})[row.name] = row
    return list(found.values())


def cpu_table(rows: Sequence[KernelRow]) -> str:
    """Ratios alone: a CPU's times say nothing of a GPU's."""
    pairs = [("cpu", "copy"), ("eager", "copy"), ("compiled", "copy"), ("cpu", "eager")]
    lines = []
    for variants in _by_case(rows):
        row = variants["copy"]
        lines.append([row.case.name, _words(row.shape), *(_ratio(variants, *pair) for pair in pairs)])
    header = ["kernel", "shape", *(f"{above} / {below}" for above, below in pairs)]
    about = "times as ratios; cpu: the CPU implementations (plain PyTorch references, not the Triton kernels)"
    return f"{console.table(header, lines)}\n{about}"


def gpu_table(rows: Sequence[KernelRow]) -> str:
    """Medians, GB/s of the kernel, ratios; then for each case the share of the copy's speed against `TARGET`."""
    names = ["kernel", "eager", "compiled", "copy", "copy-kernel"]
    lines = []
    shares: dict[str, list[str]] = {}
    for variants in _by_case(rows):
        row, shape = variants["kernel"], _words(variants["kernel"].shape)
        times = [f"{found.spread.median * 1e6:.1f}" if (found := variants[n]).spread else "failed" for n in names]
        speed = f"{row.bytes / row.spread.median / 1e9:.0f}" if row.spread else ""
        ratios = [_ratio(variants, name, "kernel") for name in ("eager", "compiled")]
        lines.append([row.case.name, shape, *times, speed, *ratios])
        share = "not measured" if row.of_copy is None else f"{row.of_copy:.0%}"
        met = row.of_copy is not None and row.of_copy >= TARGET
        shares.setdefault(row.case.name, []).append(f"{share} at {shape} ({'met' if met else 'not met'})")
    header = ["kernel", "shape", *(f"{name} us" for name in names), "kernel GB/s"]
    header += ["eager / kernel", "compiled / kernel"]
    summary = [f"  {name}: {', '.join(found)}" for name, found in shares.items()]
    return "\n".join([console.table(header, lines), "", f"of the copy's speed (target: {TARGET:.0%})", *summary])


def _ratio(variants: dict[str, KernelRow], above: str, below: str) -> str:
    """Of two medians."""
    pair = [variants[name].spread if name in variants else None for name in (above, below)]
    return "-" if pair[0] is None or pair[1] is None else f"{pair[0].median / pair[1].median:.2f}"
