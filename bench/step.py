"""What a training step costs: ours, plain training, and FGSM-SDI as others run it, in turn in one process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..engine import console
from ..engine.environment import choose_device, describe_environment, gpu_state
from ..engine.errors import UsageError
from ..engine.methods import FgsmSdiOptions, MethodOptions, Position, Setting, StandardOptions
from ..engine.models import ModelName, ModelOptions, NetShape, build_generator, build_model, channels_last
from ..engine.step import descend
from ..kernels import random_key
from ..loaders import Batch
from .baselines import Parts, Released, Tuned
from .rows import write_rows
from .timing import Spread, interleaved_seconds

EPSILON = Fraction(8, 255)
CLASSES, CHANNELS = 10, 3
SMOOTHING = 0.1
NAMES = ("plain", "fgsm-sdi", "released", "released-2022", "tuned-eager", "tuned-compiled")
Step = Callable[[int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What one table is measured on.

    Attributes:
        model: a name that `build_model` knows.
        batch: images in a step.
        image_size: side of an image in pixels.
        k: every k-th step updates the generator.
        generator_width: its hidden channels.
    """

    model: ModelName
    batch: int
    image_size: int
    k: int = 20
    generator_width: int = 64


@dataclass(frozen=True, slots=True)
class StepRow:
    """A step of one variant: seconds, averaged over the k steps of a cycle, round by round."""

    workload: Workload
    name: str
    mode: str
    precision: str
    rounds: list[float]


def bench_step(
    workload: Workload,
    *,
    names: Sequence[str] = NAMES,
    device: str = "auto",
    rounds: int = 20,
    csv: Path | None = None,
    json: Path | None = None,
) -> str:
    """Times the variants and returns a table of ratios to `plain` and to `fgsm-sdi`.

    An ordinary step and one that updates the generator are timed apart and weighed k - 1 to 1. Images lie on the device
    already, as bytes for our steps and as the floats that they want for the others.

    Args:
        workload: model, batch and image size.
        names: variants out of `NAMES`; `plain` and `fgsm-sdi` are always among them.
        device: auto, cpu, cuda or cuda:N.
        rounds: how often each step is timed, after two that are not.
        csv, json: where the rows are also written.

    Raises:
        UsageError: an unknown variant or model, fewer than two rounds, or no such device.
    """
    for name in names:
        if name not in NAMES:
            raise UsageError(f"--names {name} is not a variant: choose from {', '.join(NAMES)}")
    for option in ("batch", "image_size", "k", "generator_width"):
        if getattr(workload, option) < 1:
            raise UsageError(f"--{option.replace('_', '-')} must be at least 1, not {getattr(workload, option)}")
    if rounds < 2:
        raise UsageError(f"--rounds is {rounds}: percentiles need at least 2")
    place, why = choose_device(device)
    chosen = [name for name in NAMES if name in ("plain", "fgsm-sdi", *names)]
    size = workload.image_size
    console.line(
        f"timing {', '.join(chosen)}: {workload.model}, batch {workload.batch} at {size}x{size}, k = {workload.k}, "
        f"{rounds} rounds on {place} ({why})"
    )
    steps = {name: variant(name, workload, place) for name in chosen}
    # Step 1 is an ordinary one, step 0 updates the generator; plain training has no such step.
    calls: dict[str, Callable[[], object]] = {name: _at(step, 1) for name, step in steps.items()}
    calls |= {f"{name}, k-th": _at(step, 0) for name, step in steps.items() if name != "plain"}
    seconds = interleaved_seconds(calls, repeats=rounds, warmup=2, device=place)
    rows = []
    for name in chosen:
        ordinary, kth = seconds[name], seconds.get(f"{name}, k-th", seconds[name])
        averaged = [((workload.k - 1) * a + b) / workload.k for a, b in zip(ordinary, kth, strict=True)]
        mode = "compiled" if name == "tuned-compiled" else "eager"
        precision = "bf16" if name.startswith("tuned") and place.type == "cuda" else "fp32"
        rows.append(StepRow(workload, name, mode, precision, averaged))
    columns = _columns(rows, place)
    write_rows(columns, csv=csv, json=json)
    return table(rows)


def _at(step: Step, number: int) -> Callable[[], object]:
    return lambda: step(number)


def variant(name: str, workload: Workload, device: torch.device) -> Step:
    """A whole step (attack and update) of one variant on a batch of its own, with nets that start alike."""
    draw = torch.Generator().manual_seed(0)
    size = workload.image_size
    image = torch.randint(0, 256, (workload.batch, size, size, CHANNELS), dtype=torch.uint8, generator=draw).to(device)
    label = torch.randint(0, CLASSES, (workload.batch,), generator=draw).to(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = build_model(ModelOptions(name=workload.model), NetShape(num_classes=CLASSES, in_channels=CHANNELS))
        generator = build_generator("released", 2 * CHANNELS, CHANNELS, workload.generator_width)
    net, generator = net.to(device).train(), generator.to(device).eval()
    if name in ("plain", "fgsm-sdi"):
        options: MethodOptions = (
            StandardOptions()
            if name == "plain"
            else FgsmSdiOptions(k=workload.k, generator_width=workload.generator_width)
        )
        return _ours(options, net, Batch(torch.arange(workload.batch, device=device), image, label, _key(device)))
    x = (image.permute(0, 3, 1, 2).float() / 255).contiguous()
    if name.startswith("released"):
        step: Released | Tuned = Released(_parts(net, generator, workload), weight_gradients=name == "released-2022")
    else:
        x = x.contiguous(memory_format=torch.channels_last)
        parts = _parts(channels_last(net), channels_last(generator), workload)
        if name == "tuned-compiled":
            parts.net.compile(dynamic=False)
            parts.generator.compile(dynamic=False)
        step = Tuned(parts, lambda: _autocast(device))
    return lambda number: step(x, label, number)


def _key(device: torch.device) -> Tensor:
    return random_key(0, device=device)


def _ours(options: MethodOptions, net: nn.Module, batch: Batch) -> Step:
    """The engine's own step, as the trainer runs it."""
    net = channels_last(net)
    setting = Setting(
        net=net,
        epsilon=EPSILON,
        box=False,
        attack_bn="train",
        label_smoothing=SMOOTHING,
        seed=0,
        channels=CHANNELS,
        device=batch.label.device,
    )
    method, optimizer = options.build(setting), _sgd(net)

    def step(number: int) -> None:
        x_adv = method.craft(batch, Position(0, number))
        descend(net, optimizer, x_adv, batch.label, label_smoothing=SMOOTHING)

    return step


def _sgd(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)


def _parts(net: nn.Module, generator: nn.Module, workload: Workload) -> Parts:
    adam = torch.optim.Adam(generator.parameters(), lr=1e-3, weight_decay=5e-4)
    return Parts(
        net=net,
        generator=generator,
        optimizer=_sgd(net),
        generator_optimizer=adam,
        epsilon=float(EPSILON),
        smoothing=SMOOTHING,
        k=workload.k,
    )


def _autocast(device: torch.device) -> Any:
    """bfloat16 on a GPU; on a CPU without matrix units for it float32 is faster."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()


def table(rows: Sequence[StepRow]) -> str:
    """Ratios, round by round: over plain training, and over our step."""
    by_name = {row.name: row.rounds for row in rows}
    lines = [
        [row.name, row.mode, row.precision, *(_ratio(row.rounds, by_name[base]) for base in ("plain", "fgsm-sdi"))]
        for row in rows
    ]
    return console.table(["step", "mode", "precision", "over plain", "over fgsm-sdi"], lines)


def _ratio(rounds: Sequence[float], base: Sequence[float]) -> str:
    spread = Spread.of([a / b for a, b in zip(rounds, base, strict=True)])
    return f"{spread.median:.2f} ({spread.p20:.2f} to {spread.p80:.2f})"


def _columns(rows: Sequence[StepRow], device: torch.device) -> list[dict[str, Any]]:
    environment, state = describe_environment(device), gpu_state(device)
    by_name = {row.name: row.rounds for row in rows}
    return [{**_times(row, by_name), **_place(environment, state)} for row in rows]


def _times(row: StepRow, by_name: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    spread, workload = Spread.of([1000 * seconds for seconds in row.rounds]), row.workload
    times = {"median_ms": spread.median, "p20_ms": spread.p20, "p80_ms": spread.p80}
    for base in ("plain", "fgsm-sdi"):
        ratio = Spread.of([a / b for a, b in zip(row.rounds, by_name[base], strict=True)])
        over = base.replace("-", "_")
        times |= {f"over_{over}": ratio.median, f"over_{over}_p20": ratio.p20, f"over_{over}_p80": ratio.p80}
    return {
        "model": workload.model,
        "batch": workload.batch,
        "image_size": workload.image_size,
        "precision": row.precision,
        "mode": row.mode,
        "name": row.name,
        **{name: float(f"{value:.5g}") for name, value in times.items()},
        "k": workload.k,
        "generator_width": workload.generator_width,
        "rounds": len(row.rounds),
    }


def _place(environment: Mapping[str, Any], state: Mapping[str, Any]) -> dict[str, Any]:
    numerics = environment["numerics"]
    return {
        "date": environment["date"],
        "git": environment["git"],
        "device": numerics["device"],
        "threads": numerics["threads"],
        **state,
        "torch": numerics["torch"],
        "cuda": numerics["cuda"],
    }
