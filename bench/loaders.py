"""What the images cost: every loader's images per second, beside what the FGSM-SDI step that they are for eats."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from ..engine import console
from ..engine.environment import choose_device, describe_environment
from ..engine.errors import UsageError
from ..engine.execution import Precision
from ..engine.models import ModelName
from ..engine.output_files import check_places
from .loader_candidates import LOADERS, LoaderName, candidates, prepared_images, why_left_out
from .loader_rows import MOST_PADDED, LoaderRow, columns, table
from .loader_timing import time_loaders
from .photographs import why_no_photographs
from .rows import write_rows
from .variants import CHANNELS, Workload, check_workload

SIZES = (32, 64, 128, 224)
RUNS, RUN_SECONDS = 5, 1.0
BATCH = {"cpu": 16, "cuda": 128}
CPU_IMAGES, GPU_IMAGES = 512, 4096
MOST_BYTES = 1 << 30
"""Of random images, where no photographs can be cut."""
MOST_WORKERS = 16
CPU_STEP_PIXELS = 512
"""On a CPU the images of a step, side by side, are about so wide; there are at least two of them."""


def workload_of(
    image_size: int,
    device: torch.device,
    *,
    batch: int | None = None,
    model: ModelName | None = None,
    k: int = 20,
    generator_width: int = 64,
) -> Workload:
    """The step that loaders are compared with at one size.

    Args:
        image_size: side of an image in pixels.
        device: where the step is timed; a CPU's is given fewer images than a batch has.
        batch: of the loaders; None is 128 on a GPU, 16 on a CPU.
        model: by default resnet18 up to 64 pixels, resnet50 above.
        k, generator_width: of FGSM-SDI.
    """
    images = BATCH[device.type] if batch is None else batch
    if device.type == "cpu":
        images = min(images, max(2, CPU_STEP_PIXELS // max(1, image_size)))
    if model is None:
        model = "resnet18" if image_size <= MOST_PADDED else "resnet50"
    return Workload(model=model, batch=images, image_size=image_size, k=k, generator_width=generator_width)


def bench_loaders(
    workloads: Sequence[Workload],
    *,
    loaders: Sequence[LoaderName] = LOADERS,
    photographs: bool = True,
    batch: int | None = None,
    images: int | None = None,
    workers: int | None = None,
    precision: Precision = "fp32",
    device: torch.device | str = "auto",
    runs: int = RUNS,
    run_seconds: float = RUN_SECONDS,
    csv: Path | None = None,
    json: Path | None = None,
    png: Path | None = None,
) -> str:
    """Times the loaders and the steps that they feed, at each size in turn in one process, and returns a table.

    Args:
        workloads: the step at each size, from `workload_of`.
        loaders: their names; those that cannot be had here are left out, with a line that says why.
        photographs: to be read where they can be cut; otherwise resident loaders have random images.
        batch: images in a batch of the loaders; by default 128, 16 on a CPU.
        images: in the data set; by default 4,096 photographs, or as many random images as 1 GiB holds, at most 50,000;
            512 on a CPU.
        workers: threads or processes that decode; by default as many as there are cores, up to 16.
        precision: of the step.
        device: auto, cpu, cuda or cuda:N.
        runs: how often everything is timed, at least twice.
        run_seconds: about as long as a run of a loader takes, in whole epochs.
        csv, json: where the rows are also written, with device and versions.
        png: where a picture of them is also drawn.

    Raises:
        UsageError: an unknown model, numbers too small, no loader is left, no such device, or what it cannot do.
        DataError: a loader cannot read the images.
        LoaderDied: what decodes has died.
    """
    place, why = choose_device(str(device))
    if runs < 2:
        raise UsageError(f"--runs is {runs}: intervals need at least 2")
    if workers is not None and workers < 0:
        raise UsageError(f"--workers must not be negative, not {workers}")
    if not 0 < run_seconds < math.inf:
        raise UsageError(f"--run-seconds must be a positive number, not {run_seconds}")
    for workload in workloads:
        if workload.image_size < 1:
            raise UsageError(f"--sizes must be at least 1, not {workload.image_size}")
        check_workload(workload, runs)
    check_places(csv=csv, json=json, png=png)
    chosen = _available(loaders, photographs)
    if chosen == ["resident-padded"]:
        workloads = [workload for workload in workloads if workload.image_size <= MOST_PADDED]
    if not workloads:
        raise UsageError(f"--sizes names no size: choose some, up to {MOST_PADDED} for resident-padded alone")
    batch = BATCH[place.type] if batch is None else batch
    most = max(batch, *(workload.batch for workload in workloads))
    if images is None:
        images = _images(workloads, place, most, photographs and why_no_photographs() is None)
    if images < most:
        raise UsageError(f"--images {images} are less than a batch of {most}: choose at least that")
    workers = min(MOST_WORKERS, len(os.sched_getaffinity(0))) if workers is None else workers
    sizes = ", ".join(f"{workload.image_size}" for workload in workloads)
    console.line(
        f"timing {', '.join(chosen)} at {sizes} px: {images} images, {workers} workers, {runs} runs on {place} ({why})"
    )
    environment = describe_environment(place)
    rows: list[LoaderRow] = []
    with prepared_images(chosen, images, photographs=photographs) as found:
        for workload in workloads:
            began = time.perf_counter()
            rows += time_loaders(
                workload,
                candidates(chosen, found, workload, place, workers=workers),
                place,
                batch=batch,
                precision=precision,
                runs=runs,
                run_seconds=run_seconds,
            )
            lines = [columns(row, environment) for row in rows]
            write_rows(lines, csv=csv, json=json)  # what is measured is not lost with a later size
            console.line(f"{workload.image_size} px: timed in {time.perf_counter() - began:.0f} s")
    if png is not None:
        from .loaders_plot import draw_loaders

        draw_loaders(lines, png)
    return table(rows)


def _available(loaders: Sequence[LoaderName], photographs: bool) -> list[LoaderName]:
    """Those that can be had here, in the order of `LOADERS`; a line for each of the others."""
    chosen = []
    for name in LOADERS:
        if name not in loaders:
            continue
        why = why_left_out(name, photographs=photographs)
        if why is None:
            chosen.append(name)
        else:
            console.line(why)
    if not chosen:
        raise UsageError("none of these loaders can be had here: add resident to --loaders, which needs nothing")
    return chosen


def _images(workloads: Sequence[Workload], device: torch.device, least: int, photographs: bool) -> int:
    """Images in the data set, if the user does not say."""
    if device.type == "cpu":
        return max(least, CPU_IMAGES)
    if photographs:
        return max(least, GPU_IMAGES)
    largest = max(workload.image_size for workload in workloads)
    return max(least, min(50_000, MOST_BYTES // (CHANNELS * largest**2)))
