"""The rows of `hardfast bench loaders`: what was measured for each loader and size, as columns and as a table."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Self

from ..engine import console
from ..engine.execution import Mode, Precision
from ..loaders import Augmentation
from .rows import place_columns
from .variants import Workload

CONFIDENCE = 0.95
MOST_PADDED = 64
"""Pixels up to which recipes cut their crops out of a padded frame; above that, at random scales."""
TARGET_SHARE = 0.02
"""Of a step, for the resident loaders."""
PACKAGES = {"ffcv": "ffcv", "dali": "nvidia-dali-cuda130", "torchvision": "torchvision", "numba": "numba"}
"""Columns of versions, and the packages that they are of."""
TARGETS = {"resnet18": (30_000, 32), "resnet50": (1_600, 224)}
"""Images per second that FGSM-SDI is to train on one H100, and at how many pixels: 30 epochs of 50,000 images in 50 s,
and the target for ImageNet. Neither has been measured."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its confidence interval of 95 %."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Student's t interval for the mean of at least two independent runs."""
        from scipy.special import stdtrit  # type: ignore[import-untyped]  # comes with scikit-learn

        mean = statistics.fmean(values)
        quantile = float(stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2))
        half = quantile * statistics.stdev(values) / math.sqrt(len(values))
        return cls(mean, mean - half, mean + half)

    def columns(self, name: str) -> dict[str, float]:
        """The columns `name`, `name_low` and `name_high`, to five digits."""
        values = {name: self.mean, f"{name}_low": self.low, f"{name}_high": self.high}
        return {column: float(f"{value:.5g}") for column, value in values.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderRow:
    """One loader at one size, run by run.

    Attributes:
        name: of the loader.
        workload: the step that is fed: its model, the images in it, their size.
        batch: images in a batch of the loader.
        images: in the data set.
        data: where they come from.
        augmentation: crops and flips.
        workers: threads or processes that decode; None for a loader that decodes nothing.
        mode, precision: of the step.
        first_batch: seconds from making the loader to its first batch.
        rates: images per second, when nothing else is done.
        cores: CPU cores that were at work meanwhile, in this process and in those that it started.
        alone: seconds of a batch of as many images as the step's, when nothing else is done.
        step: seconds of a step on a batch that lies there already.
        fed: seconds of a step on batches from the loader; empty where that was not timed.
        state: of the GPU just after the timing, from `gpu_state`.
    """

    name: str
    workload: Workload
    batch: int
    images: int
    data: str
    augmentation: Augmentation
    workers: int | None
    mode: Mode
    precision: Precision
    first_batch: float
    rates: list[float]
    cores: list[float]
    alone: list[float]
    step: list[float]
    fed: list[float] = field(default_factory=list)
    state: dict[str, str | float | None] = field(default_factory=dict)

    @property
    def as_recipes(self) -> bool:
        """Whether it is a resident loader that augments like the recipes for images of this size."""
        padded = self.augmentation.scale is None
        return self.workers is None and padded == (self.workload.image_size <= MOST_PADDED)

    @property
    def per_core(self) -> Interval:
        """Images per second and CPU core at work."""
        return Interval.of([rate / cores for rate, cores in zip(self.rates, self.cores, strict=True)])

    @property
    def need(self) -> Interval:
        """Images per second that a step eats on the device at hand."""
        return Interval.of([self.workload.batch / seconds for seconds in self.step])

    @property
    def share(self) -> Interval:
        """Of the loader in a step, as if nothing of it happened during the step before."""
        return Interval.of([alone / step for alone, step in zip(self.alone, self.step, strict=True)])

    @property
    def added(self) -> Interval | None:
        """What the loader adds to a step, over that step."""
        if not self.fed:
            return None
        return Interval.of([fed / step - 1 for fed, step in zip(self.fed, self.step, strict=True)])


def target(workload: Workload) -> tuple[int, str] | None:
    """Images per second that an H100 is to train, and what that number is; None where there is no target."""
    if workload.model not in TARGETS:
        return None
    rate, size = TARGETS[workload.model]
    if workload.image_size == size:
        return rate, "target for an H100, not measured"
    if not 0.5 <= workload.image_size / size <= 2:
        return None
    rate = round(rate * (size / workload.image_size) ** 2)
    return rate, f"target for an H100 at {size} px by the number of pixels, not measured"


def columns(row: LoaderRow, environment: dict[str, Any]) -> dict[str, Any]:
    """One line of the CSV.

    Args:
        row: what was measured.
        environment: from `describe_environment`.
    """
    workload, how = row.workload, row.augmentation
    aim, about = target(workload) or (None, None)
    none = dict.fromkeys(("added", "added_low", "added_high"))
    return {
        "loader": row.name,
        "image_size": workload.image_size,
        **Interval.of(row.rates).columns("images_per_second"),
        **Interval.of(row.cores).columns("cpu_cores"),
        **row.per_core.columns("images_per_second_per_core"),
        "workers": row.workers,
        "first_batch_seconds": round(row.first_batch, 3),
        "batch": row.batch,
        "images": row.images,
        "data": row.data,
        "crop": f"padding {how.padding}" if how.scale is None else f"scale {how.scale[0]:g} to {how.scale[1]:g}",
        "runs": len(row.rates),
        "model": workload.model,
        **row.need.columns("step_images_per_second"),
        "target_images_per_second": aim,
        "target": about,
        **row.share.columns("share"),
        **(none if row.added is None else row.added.columns("added")),
        "step_batch": workload.batch,
        "mode": row.mode,
        "precision": row.precision,
        "k": workload.k,
        "generator_width": workload.generator_width,
        "machine": machine(),
        **place_columns(environment, row.state),
        **{column: version(package) for column, package in PACKAGES.items()},
    }


def version(package: str) -> str | None:
    """Of an installed package; None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def machine() -> str:
    """The CPU, as it calls itself, and how many of its cores may be used."""
    cores = len(os.sched_getaffinity(0))
    named = (line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    name = next(named, ": CPU of unknown name").partition(":")[2].strip()
    return f"{name}, {cores} cores"


def table(rows: Sequence[LoaderRow]) -> str:
    """A line for each loader and size, then what a step needs, and whether resident loaders meet their target."""
    header = ["loader", "px", "images/s (95 %)", "CPU cores", "images/s/core", "first batch s", "batch / step", "added"]
    lines = []
    for row in rows:
        rate, cores, added = Interval.of(row.rates), Interval.of(row.cores), row.added
        lines.append(
            [
                row.name,
                str(row.workload.image_size),
                f"{rate.mean:,.0f} ({rate.low:,.0f} to {rate.high:,.0f})",
                f"{cores.mean:.2f}",
                f"{row.per_core.mean:,.0f}",
                f"{row.first_batch:.1f}",
                _percent(row.share),
                "-" if added is None else _percent(added),
            ]
        )
    said = [console.table(header, lines)]
    for workload in dict.fromkeys(row.workload for row in rows):
        said.append(_need(next(row for row in rows if row.workload == workload)))
    for row in rows:
        if row.as_recipes:
            met = "met" if row.share.mean <= TARGET_SHARE else "not met"
            said.append(
                f"{row.name} at {row.workload.image_size} px: {row.share.mean:.2%} of a step "
                f"(target: at most {TARGET_SHARE:.0%}): {met}"
            )
    return "\n".join(said)


def _need(row: LoaderRow) -> str:
    """What a step needs: here, and by the target."""
    workload, need, aim = row.workload, row.need, target(row.workload)
    said = f"a step of {workload.model} at {workload.image_size} px needs {need.mean:,.3g} images/s here"
    said += f" ({need.low:,.3g} to {need.high:,.3g})"
    return said if aim is None else f"{said}; {aim[0]:,} images/s is the {aim[1]}"


def _percent(interval: Interval) -> str:
    return f"{interval.mean:.2%} ({interval.low:.2%} to {interval.high:.2%})"
