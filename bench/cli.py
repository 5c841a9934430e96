"""`hardfast bench`: each benchmark is a dataclass whose docstrings are its help, and a function that runs it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from ..engine import console, recipes
from ..engine.environment import choose_device
from ..engine.errors import UsageError
from ..engine.evaluation import AttackName
from ..engine.execution import ExecutionOptions, Mode, Precision
from ..engine.models import ModelName
from ..engine.parsing import parse, recipe_name
from ..engine.recipes.recipe import Recipe
from ..engine.run_folder import Which, write_whole
from . import machine_code
from .growth import bench_growth
from .growth_points import AXES, Axis
from .kernels import bench_kernels
from .loader_candidates import LOADERS, LoaderName
from .loaders import RUN_SECONDS, RUNS, SIZES, bench_loaders, workload_of
from .methods import compare_methods
from .safety import bench_safety
from .step import bench_step
from .train import ATTACKED_WITH, bench_train
from .training import TrainData, Training
from .variants import DEFAULT_NAMES, Workload


@dataclass(frozen=True, kw_only=True)
class BenchMethodsArguments:
    """Trains several methods over several seeds from one recipe, attacks each, and times their steps side by side."""

    out: str
    """Folder for the runs; a second call goes on where the first one stopped."""

    methods: tuple[str, ...] = ("standard", "fgsm-sdi", "pgd-at")
    """Methods to compare."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """A run of each method for each of these seeds."""

    attacks: tuple[AttackName, ...] = ("clean", "pgd-20", "aa")
    """Attacks on every run."""

    checkpoints: tuple[Which, ...] = ("best",)
    """Which checkpoints are attacked, a row for each: best on the held-out images, or last."""

    samples: int | None = None
    """Only the first so many test images; the number stands in the table."""

    aa_samples: int | None = None
    """Only the first so many test images for aa, which is the longest attack."""

    csv: str | None = None
    """Also write the rows to this file."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    recipe: Annotated[Recipe, tyro.conf.arg(name="")] = field(default_factory=Recipe)


def run_bench_methods(argv: Sequence[str]) -> None:
    """hardfast bench methods RECIPE --out DIR [overrides]"""
    name, rest = recipe_name("bench methods", argv)
    default = BenchMethodsArguments(out=tyro.MISSING, recipe=recipes.get(name))
    asked = parse(BenchMethodsArguments, rest, f"hardfast bench methods {name}", default=default)
    table = compare_methods(
        asked.recipe,
        Path(asked.out),
        methods=asked.methods,
        seeds=asked.seeds,
        attacks=asked.attacks,
        checkpoints=asked.checkpoints,
        samples_of=_samples_of(asked),
        device=asked.device,
        csv=None if asked.csv is None else Path(asked.csv),
    )
    console.line()
    console.line(table)


def _samples_of(asked: BenchMethodsArguments) -> dict[str, int]:
    common: dict[str, int] = {}
    if asked.samples is not None:
        common = dict.fromkeys(asked.attacks, asked.samples)
    return common if asked.aa_samples is None else common | {"aa": asked.aa_samples}


@dataclass(frozen=True, kw_only=True)
class BenchKernelsArguments:
    """Times every kernel in its variants beside the same in plain PyTorch (eager), that under torch.compile (compiled),
    and a device copy of as many bytes (copy), in turn in one process.

    On a GPU: CUDA graphs, replayed over inputs larger than the L2, and for each kernel how much of the copy's speed it
    reaches. On a CPU: the CPU implementations, and ratios only.
    """

    kernels: Annotated[tuple[str, ...], tyro.conf.arg(metavar="[NAME ...]")] = ()
    """Only some of to_float, generator_input, initial_point, signed_step, masked, random_start and augment; all of them
    if none is named."""

    shapes: Annotated[tuple[str, ...], tyro.conf.arg(metavar="[BATCHxSIZE ...]")] = ()
    """Batch and side of the colour images, for example 128x32 64x224. If none is named: 128x32 512x32 1024x32 128x64
    64x224 on a GPU, 16x32 on a CPU."""

    rounds: int | None = None
    """How often each variant is timed, for the median and the 20th and 80th percentile; by default 50 times on a GPU,
    20 times on a CPU."""

    csv: str | None = None
    """Also write the rows to this file: times, bytes, GB/s on a GPU, device, clocks and versions."""

    json: str | None = None
    """Also write the rows to this file, as a list of objects with the columns of the CSV."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


def run_bench_kernels(argv: Sequence[str]) -> None:
    """hardfast bench kernels [options]"""
    asked = parse(BenchKernelsArguments, argv, "hardfast bench kernels")
    table = bench_kernels(
        kernels=asked.kernels,
        shapes=asked.shapes,
        device=asked.device,
        rounds=asked.rounds,
        csv=None if asked.csv is None else Path(asked.csv),
        json=None if asked.json is None else Path(asked.json),
    )
    console.line()
    console.line(table)


@dataclass(frozen=True, kw_only=True)
class BenchStepArguments:
    """Times a training step of FGSM-SDI (ours), plain training (plain), and FGSM-SDI as others run it: the released
    algorithm on today's torch (released), with the weight gradients of its day (released-2022), and as good plain
    PyTorch (tuned-eager, tuned-compiled). In turn in one process; prints ratios.
    """

    model: ModelName = "resnet18"
    """Classifier."""

    batch: int = 128
    """Images in a step."""

    image_size: int = 32
    """Side of an image in pixels."""

    k: int = 20
    """Every k-th step updates the generator."""

    generator_width: int = 64
    """Hidden channels of the generator."""

    names: Annotated[tuple[str, ...], tyro.conf.arg(metavar="[NAME ...]")] = DEFAULT_NAMES
    """Which steps; plain and fgsm-sdi are always among them. Two more of ours, which train another way:
    fgsm-sdi-bn-eval (running BatchNorm statistics in the attacks, merged into the convolutions) and
    fgsm-sdi-half-generator (the generator at half the resolution)."""

    modes: Annotated[tuple[Mode, ...], tyro.conf.arg(metavar="[MODE ...]")] = ()
    """How our steps are executed: captured, captured-eager, compiled, eager. The others are compared with the first. If
    none is named: captured compiled eager on a GPU, eager on a CPU."""

    precisions: Annotated[tuple[Precision, ...], tyro.conf.arg(metavar="[PRECISION ...]")] = ()
    """Of our steps: bf16, fp16, fp32. If none is named: bf16 on a GPU (fp16 on a V100), fp32 on a CPU. The tuned
    baselines take the first, the released ones fp32."""

    rounds: int | None = None
    """How often each step is timed, for the median and the 20th and 80th percentile; by default 50 times on a GPU, 20
    on a CPU."""

    csv: str | None = None
    """Also write the rows to this file."""

    json: str | None = None
    """Also write the rows to this file, as a list of objects with the columns of the CSV."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


def run_bench_step(argv: Sequence[str]) -> None:
    """hardfast bench step [options]"""
    asked = parse(BenchStepArguments, argv, "hardfast bench step")
    workload = Workload(
        model=asked.model,
        batch=asked.batch,
        image_size=asked.image_size,
        k=asked.k,
        generator_width=asked.generator_width,
    )
    table = bench_step(
        workload,
        names=asked.names,
        modes=asked.modes,
        precisions=asked.precisions,
        device=asked.device,
        rounds=asked.rounds,
        csv=None if asked.csv is None else Path(asked.csv),
        json=None if asked.json is None else Path(asked.json),
    )
    console.line()
    console.line(table)


@dataclass(frozen=True, kw_only=True)
class BenchLoadersArguments:
    """How many images per second each loader delivers, with how many CPU cores, beside what a training step of FGSM-SDI
    eats. On photographs: JPEGs of 500x375 pixels and about 107 kB, cut from those that scikit-learn and scikit-image
    carry. Random resized crops (8 to 100 % of the area) and flips; decoding included, from files that the operating
    system holds in memory.

    resident: all photographs decoded on the device. resident-padded: the same at the size that is trained on, crops out
    of a frame padded with 4 pixels, as the recipes of up to 64 pixels have it. ffcv: from a .beton file with the same
    JPEGs. dali and torch: from the image folder.

    In turn in one process, run by run; intervals of 95 % (Student's t over the runs). A loader's first batch, with
    whatever is compiled for it, is apart. `batch / step`: a batch as large as the step's, over the step. `added`: a
    step on fresh batches over one on a batch that lies there, minus one.
    """

    sizes: Annotated[tuple[int, ...], tyro.conf.arg(metavar="[PIXELS ...]")] = SIZES
    """Sides of the images that are delivered."""

    loaders: Annotated[tuple[LoaderName, ...], tyro.conf.arg(metavar="[NAME ...]")] = LOADERS
    """Which loaders. Those that are not installed are left out."""

    images: int | None = None
    """Photographs that are cut; by default 4,096 on a GPU, 512 on a CPU."""

    batch: int | None = None
    """Images in a batch; by default 128 on a GPU, 16 on a CPU, where a step has fewer: 512 pixels side by side."""

    runs: int = RUNS
    """How often everything is timed."""

    run_seconds: float = RUN_SECONDS
    """A run of a loader has as many epochs, one at least, as take about that long."""

    workers: int | None = None
    """Threads (torch: processes) that decode; by default one for each CPU core, up to 16."""

    model: ModelName | None = None
    """Classifier of the step; by default resnet18 up to 64 pixels, resnet50 above."""

    precision: Precision = "fp32"
    """Of the step, as in training."""

    k: int = 20
    """Every k-th step updates the generator."""

    generator_width: int = 64
    """Hidden channels of the generator."""

    csv: str | None = None
    """Also write the rows to this file: rates, cores, shares, device and versions."""

    json: str | None = None
    """Also write the rows to this file, as a list of objects with the columns of the CSV."""

    png: str | None = None
    """Also draw the rates and what a step needs into this file."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:N: where batches go and steps run."""


def run_bench_loaders(argv: Sequence[str]) -> None:
    """hardfast bench loaders [options]"""
    asked = parse(BenchLoadersArguments, argv, "hardfast bench loaders")
    place, _ = choose_device(asked.device)
    workloads = [
        workload_of(size, place, batch=asked.batch, model=asked.model, k=asked.k, generator_width=asked.generator_width)
        for size in dict.fromkeys(asked.sizes)
    ]
    table = bench_loaders(
        workloads,
        loaders=asked.loaders,
        batch=asked.batch,
        images=asked.images,
        workers=asked.workers,
        precision=asked.precision,
        device=asked.device,
        runs=asked.runs,
        run_seconds=asked.run_seconds,
        csv=None if asked.csv is None else Path(asked.csv),
        json=None if asked.json is None else Path(asked.json),
        png=None if asked.png is None else Path(asked.png),
    )
    console.line()
    console.line(table)


@dataclass(frozen=True, kw_only=True)
class BenchTrainArguments:
    """Time to robustness: a whole training with a cyclic learning rate, warm-up (with compilation) and capture apart,
    then attacks on the last weights. No run folder is written. On a CPU ratios and accuracies only.
    """

    data: TrainData = "auto"
    """fashion-mnist (made 32x32 with three channels), cifar10, digits, or synthetic: random images, whose accuracy is
    not reported. auto: fashion-mnist where its files are found, else synthetic."""

    data_root: str = "data"
    """Folder that holds the data sets."""

    epochs: int = 30
    """Of the one cycle of the learning rate."""

    images: int | None = None
    """Train on the first so many images; by default 50,000, or all of a smaller set."""

    model: ModelName = "resnet18"
    """Classifier."""

    batch: int = 128
    """Images in a step."""

    method: str = "fgsm-sdi"
    """How adversarial images are made: fgsm-sdi, fgsm-rs, pgd-at, standard."""

    epsilon: str | None = None
    """Radius; by default the data set's: 8/255 for photographs and random images, 16/255 for fashion-mnist, 32/255 for
    the digits."""

    attacks: Annotated[tuple[AttackName, ...], tyro.conf.arg(metavar="[ATTACK ...]")] = ATTACKED_WITH
    """Attacks on the last weights."""

    aa_samples: int | None = None
    """Also AutoAttack, on the first so many test images; needs pyautoattack."""

    seeds: tuple[int, ...] = (0,)
    """A training for each of these seeds."""

    csv: str | None = None
    """Also write the rows to this file."""

    json: str | None = None
    """Also write the rows to this file, as a list of objects with the columns of the CSV."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    execution: ExecutionOptions = field(default_factory=ExecutionOptions)


def run_bench_train(argv: Sequence[str]) -> None:
    """hardfast bench train [options]"""
    asked = parse(BenchTrainArguments, argv, "hardfast bench train")
    training = Training(
        data=asked.data,
        data_root=asked.data_root,
        epochs=asked.epochs,
        images=asked.images,
        model=asked.model,
        batch=asked.batch,
        method=asked.method,
        epsilon=asked.epsilon,
        execution=asked.execution,
    )
    table = bench_train(
        training,
        seeds=asked.seeds,
        attacks=asked.attacks,
        aa_samples=asked.aa_samples,
        device=asked.device,
        csv=None if asked.csv is None else Path(asked.csv),
        json=None if asked.json is None else Path(asked.json),
    )
    console.line()
    console.line(table)


@dataclass(frozen=True, kw_only=True)
class BenchGrowthArguments:
    """How the cost of a step grows: FGSM-SDI over plain training, and over FGSM-SDI at a base workload, along four axes
    that are varied one at a time, beside what counted operations predict. In turn in one process; prints ratios.
    """

    model: ModelName | None = None
    """Classifier of the base workload; by default resnet18."""

    batch: int | None = None
    """Its images in a step; by default 128 on a GPU, 8 on a CPU."""

    image_size: int | None = None
    """Side of its images in pixels; by default 32."""

    k: int = 20
    """Every k-th step updates the generator."""

    generator_width: int = 64
    """Hidden channels of the generator."""

    axes: Annotated[tuple[Axis, ...], tyro.conf.arg(metavar="[AXIS ...]")] = AXES
    """What is varied: model, resolution, batch, k. The last is arithmetic on the base's two kinds of step."""

    models: Annotated[tuple[ModelName, ...], tyro.conf.arg(metavar="[NAME ...]")] = ()
    """On the axis model; by default all. The base workload's own value is always on an axis."""

    resolutions: Annotated[tuple[int, ...], tyro.conf.arg(metavar="[PIXELS ...]")] = ()
    """On the axis resolution; by default 32 64 128 224 on a GPU, 16 32 48 64 on a CPU."""

    batches: Annotated[tuple[int, ...], tyro.conf.arg(metavar="[IMAGES ...]")] = ()
    """On the axis batch; by default from a quarter to four times the base's, on a CPU twice."""

    ks: Annotated[tuple[int, ...], tyro.conf.arg(metavar="[K ...]")] = ()
    """On the axis k; by default 1 2 4 5 10 20 30 40 50 100. The paper's Table II has 1 2 10 20 30 40."""

    mode: Mode = "auto"
    """How steps are executed: captured, captured-eager, compiled, eager. auto: captured on a GPU, eager on a CPU."""

    precision: Precision | None = None
    """bf16, fp16 or fp32; by default bf16 on a GPU (fp16 on a V100), fp32 on a CPU."""

    rounds: int | None = None
    """How often each step is timed, for the median and the 20th and 80th percentile; by default 20 times on a GPU, 5
    on a CPU."""

    csv: str | None = None
    """Also write the rows to this file."""

    json: str | None = None
    """Also write the rows to this file, as a list of objects with the columns of the CSV."""

    png: str | None = None
    """Also draw them into this file; needs matplotlib."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


def run_bench_growth(argv: Sequence[str]) -> None:
    """hardfast bench growth [options]"""
    asked = parse(BenchGrowthArguments, argv, "hardfast bench growth")
    table = bench_growth(
        model=asked.model,
        batch=asked.batch,
        image_size=asked.image_size,
        k=asked.k,
        generator_width=asked.generator_width,
        axes=asked.axes,
        values={"model": asked.models, "resolution": asked.resolutions, "batch": asked.batches, "k": asked.ks},
        mode=asked.mode,
        precision=asked.precision,
        device=asked.device,
        rounds=asked.rounds,
        csv=None if asked.csv is None else Path(asked.csv),
        json=None if asked.json is None else Path(asked.json),
        png=None if asked.png is None else Path(asked.png),
    )
    console.line()
    console.line(table)


@dataclass(frozen=True, kw_only=True)
class BenchSafetyArguments:
    """Trains a recipe several times on the CPU, and says which share of that went into saves and guards."""

    epochs: int = 8
    """Of each training."""

    rounds: int = 3
    """Trainings, each with another seed."""

    csv: str | None = None
    """Also write the rows to this file."""


def run_bench_safety(argv: Sequence[str]) -> None:
    """hardfast bench safety RECIPE [options]"""
    name, rest = recipe_name("bench safety", argv)
    asked = parse(BenchSafetyArguments, rest, f"hardfast bench safety {name}")
    csv = None if asked.csv is None else Path(asked.csv)
    table = bench_safety(recipes.get(name), epochs=asked.epochs, rounds=asked.rounds, csv=csv)
    console.line()
    console.line(table)


@dataclass(frozen=True, kw_only=True)
class BenchMachineCodeArguments:
    """Compiles every kernel for V100, A100 and H100 (sm_70, sm_80, sm_90) and reads registers, spills and the widths of
    its memory accesses from the machine code. Needs no GPU.
    """

    readme: str | None = None
    """Also put the table between its two marks in this Markdown file, like bench/README.md."""

    json: str | None = None
    """Also write the findings to this file, an object for each kernel and architecture."""


def run_bench_machine_code(argv: Sequence[str]) -> None:
    """hardfast bench machine-code [--readme FILE] [--json FILE]"""
    asked = parse(BenchMachineCodeArguments, argv, "hardfast bench machine-code")
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise UsageError("TRITON_INTERPRET=1 puts Triton's interpreter in place of its compiler: unset it")
    found = machine_code.inspect_all()
    table = machine_code.markdown(found)
    if asked.json is not None:
        write_whole(Path(asked.json), json.dumps(machine_code.rows(found), indent=2) + "\n")
    if asked.readme is not None:
        machine_code.write_into(Path(asked.readme), table)
    console.line(table)


BENCHMARKS: dict[str, Callable[[Sequence[str]], None]] = {
    "methods": run_bench_methods,
    "kernels": run_bench_kernels,
    "step": run_bench_step,
    "loaders": run_bench_loaders,
    "train": run_bench_train,
    "growth": run_bench_growth,
    "safety": run_bench_safety,
    "machine-code": run_bench_machine_code,
}


def run_bench(argv: Sequence[str]) -> None:
    """hardfast bench NAME [options]"""
    if argv[:1] in (["-h"], ["--help"]):
        console.line(
            f"hardfast bench {' | '.join(BENCHMARKS)}; each has a --help, methods needs RECIPE --out DIR, safety RECIPE"
        )
        return
    if not argv or argv[0] not in BENCHMARKS:
        raise UsageError(
            f"bench needs {', '.join(f'`{name}`' for name in BENCHMARKS)}: for example `hardfast bench kernels`"
        )
    BENCHMARKS[argv[0]](argv[1:])
