"""`make gpu`: the GPU tests, every benchmark and a short training, from a source tree in which nothing is installed.

Each part is a process of its own with a limit, so that the crash or the hang of one loses nothing of the others. What a
part says lies in runs/gpu/PART.log, its CSV and PNG files in bench/results/DEVICE/. The parts need torch, triton, numpy
and scikit-learn; what cannot be done without another package is named and skipped.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..engine import console
from ..engine.errors import UsageError
from ..engine.execution import Mode, Precision
from ..engine.models import ModelName

if TYPE_CHECKING:
    from .growth_points import Axis
    from .variants import Workload

OK, FAILED, WRONG_USE, SKIPPED = 0, 1, 2, 77
LIMIT = 600.0
RESULTS, QUICK_RESULTS, LOGS = "bench/results", "runs/gpu/quick", "runs/gpu"
SKIP_MARK = "skipped: "
WORKLOADS: dict[str, tuple[ModelName, int, int]] = {
    "resnet18-128x32": ("resnet18", 128, 32),
    "resnet18-512x32": ("resnet18", 512, 32),
    "resnet18-1024x32": ("resnet18", 1024, 32),
    "preact_resnet18-128x64": ("preact_resnet18", 128, 64),
    "preact_resnet18-512x64": ("preact_resnet18", 512, 64),
    "resnet50-128x224": ("resnet50", 128, 224),
}
"""Model, batch, and side of the images in pixels."""
PHOTOGRAPH_SIZES = (32, 64, 128, 224)
GROWTH_AXES: tuple[Axis, ...] = ("model", "resolution", "batch", "k")
SHOWN_LINES = 12
"""Of the log of a part that failed."""


class Skipped(Exception):
    """What cannot be done here, and why in one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a part is given.

    Attributes:
        device: cuda, or cpu to try whether everything runs.
        quick: tiny sizes, whose times mean nothing.
        results: the folder for CSV and PNG files.
        logs: the folder for what is too large to be kept.
    """

    device: str
    quick: bool
    results: Path
    logs: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a part.

    Attributes:
        part: its name.
        code: OK, FAILED or SKIPPED.
        result: the same in words, with the reason.
        seconds: it took.
        files: that it wrote into the results.
    """

    part: str
    code: int
    result: str
    seconds: float
    files: list[str] = field(default_factory=list)


def run_tests(job: Job) -> None:
    """The tests marked `gpu`; on a CPU they are only collected."""
    if not Path("tests").is_dir():
        raise Skipped("no folder tests here: run it from the root of the source tree")
    if importlib.util.find_spec("pytest") is None:
        raise Skipped("pytest is not installed")
    import pytest

    words = ["-m", "gpu", "--continue-on-collection-errors", *(["--collect-only", "-q"] if job.device == "cpu" else [])]
    code = pytest.main(words)
    if code != pytest.ExitCode.OK:
        raise SystemExit(FAILED)  # pytest's own last line says enough


def run_kernels(job: Job) -> None:
    """`hardfast bench kernels`."""
    from .kernels import bench_kernels

    csv = job.results / "kernels.csv"
    if job.quick:
        table = bench_kernels(kernels=["masked"], shapes=["2x4"], rounds=2, device=job.device, csv=csv)
    else:
        table = bench_kernels(device=job.device, csv=csv)
    console.line(table)


def run_step(name: str, job: Job) -> None:
    """`hardfast bench step` for one of `WORKLOADS`."""
    from .step import bench_step
    from .variants import DEFAULT_NAMES

    model, batch, size = WORKLOADS[name]
    names: Sequence[str] = ["tuned-eager"] if job.quick else DEFAULT_NAMES
    if not job.quick and batch == 128 and size != 64:
        names = [*names, "fgsm-sdi-bn-eval", "fgsm-sdi-half-generator"]
    # Where a step of the slowest baseline takes the better part of a second, 50 rounds would outlast the limit.
    rounds = 2 if job.quick else 20 if model == "resnet50" or batch > 128 else None
    csv = job.results / f"step-{name}.csv"
    console.line(bench_step(workload(name, job), names=names, device=job.device, rounds=rounds, csv=csv))


def run_loaders(name: str, job: Job) -> None:
    """The resident loaders of `hardfast bench loaders` for one of `WORKLOADS`, beside a step in half precision."""
    from .loaders import RUN_SECONDS, RUNS, bench_loaders

    step = workload(name, job)
    console.line("resident loaders alone, on random images: the parts loaders-photographs-SIZE time those that decode")
    table = bench_loaders(
        [step],
        loaders=["resident", "resident-padded"],
        photographs=False,
        batch=step.batch,
        images=8 if job.quick else None,
        precision=half(job),
        device=job.device,
        runs=2 if job.quick else RUNS,
        run_seconds=0.01 if job.quick else RUN_SECONDS,
        csv=job.results / f"loaders-{name}.csv",
    )
    console.line(table)


def run_photographs(image_size: int, job: Job) -> None:
    """`hardfast bench loaders` at one size, with the loaders that are installed.

    Raises:
        Skipped: photographs cannot be cut, or the step's model needs torchvision.
    """
    import torch

    from .loaders import RUN_SECONDS, RUNS, bench_loaders, workload_of
    from .photographs import why_no_photographs

    why = why_no_photographs()
    if why is not None:
        raise Skipped(why)
    step = workload_of(image_size, torch.device(job.device))
    if step.model == "resnet50" and importlib.util.find_spec("torchvision") is None:
        raise Skipped("torchvision is not installed")
    if job.quick:
        step = workload_of(16, torch.device(job.device), batch=2, model=step.model, k=2, generator_width=4)
    table = bench_loaders(
        [step],
        batch=2 if job.quick else None,
        images=8 if job.quick else None,
        precision=half(job),
        device=job.device,
        runs=2 if job.quick else RUNS,
        run_seconds=0.01 if job.quick else RUN_SECONDS,
        csv=job.results / f"loaders-photographs-{image_size}.csv",
    )
    console.line(table)
    png = picture(job.results / "loaders-photographs.png")
    if png is not None:
        from .loaders_plot import draw_loaders
        from .rows import read_rows

        draw_loaders(read_rows(sorted(job.results.glob("loaders-photographs-*.csv"))), png)


def run_profile(mode: Mode, job: Job) -> None:
    """`hardfast profile` of the paper's ResNet18 on random images, in half precision; the trace goes to the logs."""
    from ..engine import recipes
    from ..engine.execution import ExecutionOptions
    from ..engine.methods import FgsmSdiOptions
    from ..loaders import DataOptions
    from .profile import profile_step

    execution = ExecutionOptions(mode="eager" if job.device == "cpu" else mode, precision=half(job))
    recipe = replace(recipes.get("cifar10-resnet18"), data=DataOptions(name="synthetic"), execution=execution)
    if job.quick:
        tiny = DataOptions(name="synthetic", image_size=16)
        recipe = replace(recipe, data=tiny, batch_size=2, method=FgsmSdiOptions(k=2, generator_width=4))
    report = profile_step(
        recipe,
        device=job.device,
        steps=2 if job.quick else None,
        trace=job.logs / f"profile-{mode}.trace.json",
        csv=job.results / f"profile-{mode}.csv",
        png=picture(job.results / f"profile-{mode}.png"),
    )
    console.line(report)


def run_train(job: Job) -> None:
    """`hardfast bench train` in half precision: on Fashion-MNIST where its files are found, else on random images."""
    from ..engine.execution import ExecutionOptions
    from .train import bench_train
    from .training import Training

    training = Training(execution=ExecutionOptions(precision=half(job)))
    if job.quick:
        training = replace(training, data="synthetic", images=8, epochs=1, model="resnet8", batch=4)
    console.line(bench_train(training, device=job.device, csv=job.results / "train.csv"))


def run_growth(axis: Axis, job: Job) -> None:
    """`hardfast bench growth` along one axis; the picture is drawn anew with all axes that are there by now."""
    from .growth import bench_growth, draw
    from .rows import read_rows

    csv = job.results / f"growth-{axis}.csv"
    if job.quick:
        values: dict[str, Sequence[int | str]] = {"model": ["resnet8"], "resolution": [8, 16], "batch": [2, 4]}
        tiny: dict[str, Any] = {"model": "resnet8", "batch": 2, "image_size": 8, "generator_width": 4}
        table = bench_growth(**tiny, axes=[axis], values=values, device=job.device, rounds=2, csv=csv)
    else:
        table = bench_growth(axes=[axis], device=job.device, csv=csv)
    console.line(table)
    png = picture(job.results / "growth.png")
    if png is not None:
        draw(read_rows(sorted(job.results.glob("growth-*.csv"))), png)


def picture(path: Path) -> Path | None:
    """The same path; None, and a line about it, where pictures cannot be drawn."""
    if importlib.util.find_spec("matplotlib") is None:
        console.line(f"{SKIP_MARK}{path.name}: matplotlib is not installed")
        return None
    return path


def half(job: Job) -> Precision:
    """What tensor cores multiply; on a CPU fp32."""
    import torch

    if job.device == "cpu":
        return "fp32"
    return "bf16" if torch.cuda.get_device_capability() >= (8, 0) else "fp16"


def workload(name: str, job: Job) -> Workload:
    """One of `WORKLOADS`, made small where the job is to be quick.

    Raises:
        Skipped: its model needs torchvision, which is not installed.
    """
    from .variants import Workload

    model, batch, size = WORKLOADS[name]
    if model == "resnet50" and importlib.util.find_spec("torchvision") is None:
        raise Skipped("torchvision is not installed")
    if job.quick:
        return Workload(model=model, batch=2, image_size=16, k=2, generator_width=4)
    return Workload(model=model, batch=batch, image_size=size)


PARTS: dict[str, Callable[[Job], None]] = {
    "tests": run_tests,
    "kernels": run_kernels,
    **{f"step-{name}": partial(run_step, name) for name in WORKLOADS},
    **{f"loaders-{name}": partial(run_loaders, name) for name in WORKLOADS},
    **{f"loaders-photographs-{size}": partial(run_photographs, size) for size in PHOTOGRAPH_SIZES},
    "profile-captured": partial(run_profile, "captured"),
    "profile-compiled": partial(run_profile, "compiled"),
    "train": run_train,
    **{f"growth-{axis}": partial(run_growth, axis) for axis in GROWTH_AXES},
}


def chosen(words: Sequence[str]) -> list[str]:
    """The parts of these names, in the order of `PARTS`; `step` names all that begin with it, no word names all parts.

    Raises:
        UsageError: a word names no part.
    """
    for word in words:
        if not any(_named(part, word) for part in PARTS):
            raise UsageError(f"'{word}' is not a part: choose from {', '.join(PARTS)}, or how several of them begin")
    return [part for part in PARTS if not words or any(_named(part, word) for word in words)]


def _named(part: str, word: str) -> bool:
    return part == word or part.startswith(f"{word}-")


def run_here(part: str, job: Job, limit: float) -> int:
    """One part in this process.

    Returns:
        OK, FAILED or SKIPPED; the last line on stdout or stderr says why.
    """
    faulthandler.enable()
    faulthandler.dump_traceback_later(0.95 * limit, file=os.dup(2))  # where it hangs; pytest puts another file at 2
    job.results.mkdir(parents=True, exist_ok=True)
    try:
        PARTS[part](job)
    except Skipped as why:
        console.line(f"{SKIP_MARK}{why}")
        return SKIPPED
    except UsageError as error:
        console.error(str(error))
        return FAILED
    return OK


def run_apart(part: str, command: Sequence[str], *, results: Path, log: Path, limit: float) -> Outcome:
    """One part in a process of its own, of which nothing is left once the limit is over.

    Args:
        part: its name, for the outcome.
        command: what is run.
        results: the folder in which files that it writes or replaces are its results.
        log: where its stdout and stderr go.
        limit: seconds it may take.
    """
    before, began = _files(results), time.perf_counter()
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "TRITON_INTERPRET": "0"}
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            code: int | None = process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.poll() is None:  # also where we are interrupted
                os.killpg(process.pid, signal.SIGKILL)  # with what it started
                process.wait()
    seconds = time.perf_counter() - began
    files = [name for name, changed in _files(results).items() if before.get(name) != changed]
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    last = lines[-1] if lines else "it said nothing"
    notes = [line.removeprefix(SKIP_MARK) for line in lines if line.startswith(SKIP_MARK)]
    if code is None:
        code, result = FAILED, f"over the limit of {limit:g} s"
    elif code == SKIPPED:
        result = last
    elif code == OK:
        result = "; ".join(["ok", *(f"{SKIP_MARK}{note}" for note in notes)])
    else:
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        code, result = FAILED, f"failed ({how}): {last}"
    return Outcome(part=part, code=code, result=result, seconds=seconds, files=files)


def _files(folder: Path) -> dict[str, int]:
    """The files in a folder, with the time of their last change."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in found}


def device_name(device: str) -> str | None:
    """What the GPU calls itself, `cpu` if that was asked for, None if there is no GPU.

    Asked in another process: this one must not hold memory of the GPU on which the others measure.
    """
    if device == "cpu":
        return "cpu"
    program = "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    return done.stdout.strip() or None


def slug(name: str) -> str:
    """`NVIDIA H100 80GB HBM3` as a folder's name: `h100-80gb-hbm3`."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-").removeprefix("nvidia-")


def main(argv: Sequence[str]) -> int:
    """Runs the parts and prints what became of each.

    Returns:
        0 if all parts are done or skipped, 1 if one failed or took too long, 2 for wrong use.
    """
    asked = _arguments(argv)
    results = asked.results or (QUICK_RESULTS if asked.quick else RESULTS)
    job = Job(device=asked.device, quick=asked.quick, results=Path(results), logs=Path(asked.logs))
    try:
        parts = chosen([*asked.only, *asked.parts])
    except UsageError as error:
        return _wrong(str(error))
    if asked.limit <= 0:
        return _wrong(f"--limit must be a positive number of seconds, not {asked.limit:g}")
    if asked.only:
        return run_here(parts[0], job, asked.limit)
    if job.device == "cpu" and not job.quick:
        return _wrong("--device cpu needs --quick: only a GPU's times mean something")
    name = device_name(job.device)
    if name is None:
        return _wrong("no CUDA device found: run it on a machine with a GPU, or try it with --device cpu --quick")
    return _run_all(parts, job, name, limit=asked.limit)


def _run_all(parts: Sequence[str], job: Job, device: str, *, limit: float) -> int:
    results, logs = job.results / slug(device), job.logs
    logs.mkdir(parents=True, exist_ok=True)
    console.line(f"{', '.join(parts)} on {device}: files in {results}, logs in {logs}, {limit:g} s for each part")
    common = ["--device", job.device, "--results", str(results), "--logs", str(logs), "--limit", f"{limit:g}"]
    common += ["--quick"] if job.quick else []
    outcomes = []
    for part in parts:
        log = logs / f"{part}.log"
        command = [sys.executable, "-m", "hardfast.bench.gpu", "--only", part, *common]
        console.line(f"{part}: begins, log in {log}")
        outcome = run_apart(part, command, results=results, log=log, limit=limit)
        console.line(f"{part}: {outcome.result}, {outcome.seconds:.0f} s")
        if outcome.code == FAILED:
            for line in log.read_text(errors="replace").splitlines()[-SHOWN_LINES:]:
                console.line(f"  | {line}")
        outcomes.append(outcome)
    rows = [[found.part, f"{found.seconds:.0f}", found.result, " ".join(found.files)] for found in outcomes]
    console.line()
    console.line("\n".join(_aligned([["part", "s", "result", "files"], *rows])))
    return FAILED if any(outcome.code == FAILED for outcome in outcomes) else OK


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns of words, all left-aligned."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _wrong(text: str) -> int:
    console.error(f"hardfast.bench.gpu: {text}")
    return WRONG_USE


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m hardfast.bench.gpu", description=__doc__)
    parser.add_argument(
        "--parts", nargs="*", default=[], metavar="PART", help=f"some of {' '.join(PARTS)}; all by default"
    )
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds that a part may take (%(default)g)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu tries out whether all parts run")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, whose times mean nothing")
    about = f"CSV and PNG files go to RESULTS/DEVICE/ ({RESULTS}; {QUICK_RESULTS} with --quick)"
    parser.add_argument("--results", help=about)
    parser.add_argument("--logs", default=LOGS, help="folder of the parts' logs")
    parser.add_argument("--only", nargs=1, default=[], metavar="PART", help="that part alone, in this process")
    return parser.parse_args(argv)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # ends the part that runs as well
    sys.exit(main(sys.argv[1:]))
