"""The points of `bench growth`: which workloads lie on an axis, and what the steps there take."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, cast, get_args

import torch

from ..engine import console
from ..engine.errors import UsageError
from ..engine.models import ModelName
from .timing import interleaved_steps
from .variants import BuiltStep, Variant, Workload, build

Axis = Literal["model", "resolution", "batch", "k"]
AXES: tuple[Axis, ...] = get_args(Axis)
FIELDS = {"model": "model", "resolution": "image_size", "batch": "batch", "k": "k"}
OPTIONS = {"model": "models", "resolution": "resolutions", "batch": "batches", "k": "ks"}

RESOLUTIONS = {"cuda": (32, 64, 128, 224), "cpu": (16, 32, 48, 64)}
BATCH_FACTORS = {"cuda": (0.25, 0.5, 1, 2, 4), "cpu": (0.25, 0.5, 1, 2)}
KS = (1, 2, 4, 5, 10, 20, 30, 40, 50, 100)  # Table II's among them
LEAST = {"resolution": 1, "batch": 2, "k": 1}
COMPILATIONS = 64  # of one function: each point has nets of its own, a recompilation to torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Seconds of a step at one workload, round by round.

    Attributes:
        plain: plain training.
        ordinary: FGSM-SDI without an update of the generator.
        kth: FGSM-SDI with it.
        base: an ordinary step of the base workload, in the same rounds.
    """

    plain: list[float]
    ordinary: list[float]
    kth: list[float]
    base: list[float]

    def averaged(self, k: int) -> list[float]:
        """FGSM-SDI averaged over the k steps of a cycle, of which one updates the generator."""
        return [((k - 1) * one + other) / k for one, other in zip(self.ordinary, self.kth, strict=True)]


def points_of(
    base: Workload, axes: Sequence[Axis], values: Mapping[str, Sequence[int | str]], device: str
) -> list[tuple[Axis, int | str, Workload]]:
    """(axis, value, workload) for every point, each axis in order.

    Args:
        base: the workload around which one thing is varied at a time.
        axes: out of `AXES`.
        values: by axis, in place of the default ones of the device.
        device: cuda or cpu.

    Raises:
        UsageError: an unknown axis or model, or a number below 1.
    """
    for axis in axes:
        if axis not in AXES:
            raise UsageError(f"--axes {axis} is not an axis: choose from {', '.join(AXES)}")
    if not axes:
        raise UsageError(f"--axes needs at least one of {', '.join(AXES)}")
    for option in ("batch", "image_size", "k", "generator_width"):
        least = LEAST["batch"] if option == "batch" else 1
        if getattr(base, option) < least:
            raise UsageError(f"--{option.replace('_', '-')} must be at least {least}, not {getattr(base, option)}")
    sizes = [int(factor * base.batch) for factor in BATCH_FACTORS[device]]
    usual: dict[Axis, Sequence[int | str]] = {
        "model": get_args(ModelName),
        "resolution": RESOLUTIONS[device],
        "batch": [size for size in sizes if size >= LEAST["batch"]],
        "k": KS,
    }
    points = []
    for axis in dict.fromkeys(axes):
        own = getattr(base, FIELDS[axis])
        chosen = {*(values.get(axis) or usual[axis]), own}
        for value in chosen:
            if axis == "model" and value not in get_args(ModelName):
                raise UsageError(f"--models {value} is not a model: choose from {', '.join(get_args(ModelName))}")
            if axis != "model" and cast(int, value) < LEAST[axis]:
                raise UsageError(f"--{OPTIONS[axis]} must be at least {LEAST[axis]}, not {value}")
        order = [name for name in get_args(ModelName) if name in chosen] if axis == "model" else sorted(chosen)
        points += [(axis, value, replace(base, **{FIELDS[axis]: value})) for value in order]
    return points


def timed_as(workload: Workload) -> Workload:
    """The workload whose steps are timed: its step 1 is an ordinary one, whatever k is."""
    return replace(workload, k=2)


def time_workloads(
    base: Workload, workloads: Sequence[Workload], variant: Variant, rounds: int, device: torch.device
) -> dict[Workload, Times]:
    """The steps of every workload, each beside the base's; those that cannot be run are named and missing.

    Raises:
        UsageError: the base itself cannot be run.
    """
    first = timed_as(base)
    wanted = list(dict.fromkeys([first, *map(timed_as, workloads)]))
    found: dict[Workload, Times] = {}
    torch.compiler.reset()
    with torch._dynamo.config.patch(recompile_limit=COMPILATIONS), console.bar(len(wanted), "growth", "points") as bar:
        beside: BuiltStep | None = None
        for workload in wanted:
            try:
                built = _built(workload, variant, device)
                found[workload] = _timed(built, beside or built["fgsm-sdi"], rounds, device)
                beside = beside or built["fgsm-sdi"]
            except (RuntimeError, UsageError) as error:  # out of memory, torch.compile's own, or torchvision is missing
                reason = str(error).splitlines()[0]
                if workload == first:
                    raise UsageError(f"the base workload cannot be run ({reason}): choose a smaller one") from error
                size = f"{workload.batch}x{workload.image_size}"
                console.line(f"left out: {workload.model} {size}: {reason}")
            built = {}
            gc.collect()  # nets and graphs refer to each other
            if device.type == "cuda":
                torch.cuda.empty_cache()
            bar.update(1)
    torch.compiler.reset()
    return found


def _built(workload: Workload, variant: Variant, device: torch.device) -> dict[str, BuiltStep]:
    steps = {name: build(replace(variant, name=name), workload, device) for name in ("plain", "fgsm-sdi")}
    for built in steps.values():
        for number in built.kinds:  # what is too large fails here
            built.call(number)
    return steps


def _timed(built: Mapping[str, BuiltStep], base: BuiltStep, rounds: int, device: torch.device) -> Times:
    plain, sdi = built["plain"], built["fgsm-sdi"]
    calls = {"plain": partial(plain.call, 1), "ordinary": partial(sdi.call, 1), "kth": partial(sdi.call, 0)}
    if base is not sdi:
        calls["base"] = partial(base.call, 1)
    assert sdi.run is not None
    with sdi.run.execution.numerics():
        seconds = interleaved_steps(calls, repeats=rounds, warmup=1, device=device)
    return Times(**{"base": seconds["ordinary"], **seconds})
