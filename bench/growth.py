"""How the cost of a step grows with the model, the resolution, the batch and k, each varied alone around one workload.

At every point FGSM-SDI and plain training are timed in turn with the base workload's step, in one process. An ordinary
step and one that updates the generator are timed apart, so the axis k needs no timing of its own: it is arithmetic on
those two steps of the base.

bench/results/cpu_growth.csv and .png are by `OMP_NUM_THREADS=1 hardfast bench growth --device cpu --csv
bench/results/cpu_growth.csv --png bench/results/cpu_growth.png`, one thread because that machine was shared.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..engine import console
from ..engine.environment import choose_device, describe_environment, gpu_state
from ..engine.execution import ExecutionOptions, Mode, Precision, choose_execution
from ..engine.models import ModelName
from ..engine.output_files import check_places
from .growth_points import AXES, Axis, Times, points_of, time_workloads, timed_as
from .rows import place_columns, write_rows
from .timing import Spread, check_rounds
from .units import TABLE_II_K, TABLE_II_MINUTES, generator_share, modelled_over, modelled_over_plain
from .variants import Variant, Workload

BASES = {
    "cuda": Workload(model="resnet18", batch=128, image_size=32),
    "cpu": Workload(model="resnet18", batch=8, image_size=32),
}
ROUNDS = {"cuda": 20, "cpu": 5}


@dataclass(frozen=True, slots=True, kw_only=True)
class GrowthRow:
    """A point of an axis.

    Attributes:
        axis, value: what is varied.
        workload: there.
        rounds: seconds of a step of FGSM-SDI.
        over_plain, over_base: that step over plain training there, and over itself at the base workload.
    """

    axis: Axis
    value: int | str
    workload: Workload
    rounds: list[float]
    over_plain: Spread
    over_base: Spread


def bench_growth(
    *,
    model: ModelName | None = None,
    batch: int | None = None,
    image_size: int | None = None,
    k: int = TABLE_II_K,
    generator_width: int = 64,
    axes: Sequence[Axis] = AXES,
    values: Mapping[str, Sequence[int | str]] | None = None,
    mode: Mode = "auto",
    precision: Precision | None = None,
    device: str = "auto",
    rounds: int | None = None,
    csv: Path | None = None,
    json: Path | None = None,
    png: Path | None = None,
) -> str:
    """Times every point of the axes and returns a table of ratios. Points that the device cannot hold are left out.

    Args:
        model, batch, image_size, k, generator_width: the base workload; by default ResNet18 at 32 pixels, with a batch
            of 128 on a GPU and of 8 on a CPU.
        axes: out of `AXES`.
        values: by axis, in place of the default ones; the base workload's own is always among them.
        mode: how steps are executed; by default captured on a GPU, eager on a CPU.
        precision: by default half precision on a GPU, fp32 on a CPU.
        device: auto, cpu, cuda or cuda:N.
        rounds: how often each step is timed, after one that is not; by default 20 times on a GPU, 5 on a CPU.
        csv, json, png: where the rows, and a picture of them, are also written.

    Raises:
        UsageError: an unknown axis or model, numbers too small, no such device, or what it cannot do.
    """
    place, why = choose_device(device)
    base = BASES[place.type]
    base = Workload(
        model=model or base.model,
        batch=base.batch if batch is None else batch,
        image_size=base.image_size if image_size is None else image_size,
        k=k,
        generator_width=generator_width,
    )
    rounds = ROUNDS[place.type] if rounds is None else rounds
    points = points_of(base, axes, values or {}, place.type)
    check_rounds(rounds)
    check_places(csv=csv, json=json, png=png)
    options = ExecutionOptions(mode=mode, precision=precision or _precision(place))
    variant = Variant(name="fgsm-sdi", mode=choose_execution(options, place).mode, precision=options.precision)
    workloads = [workload for *_, workload in points]
    console.line(
        f"timing {len({*map(timed_as, workloads)})} workloads around {base.model}, batch {base.batch} at "
        f"{base.image_size}x{base.image_size}, {variant.mode}, {variant.precision}, {rounds} rounds on {place} ({why})"
    )
    times = time_workloads(base, workloads, variant, rounds, place)
    rows = growth_rows(base, points, times)
    environment, state = describe_environment(place), gpu_state(place)
    columns = [_columns(row, base, variant, place_columns(environment, state)) for row in rows]
    write_rows(columns, csv=csv, json=json)
    if png is not None:
        draw(columns, png)
    return table(rows, base, absolute=place.type == "cuda")


def _precision(device: torch.device) -> Precision:
    if device.type == "cpu":
        return "fp32"
    return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"


def growth_rows(
    base: Workload, points: Sequence[tuple[Axis, int | str, Workload]], times: Mapping[Workload, Times]
) -> list[GrowthRow]:
    """The rows of all points that were timed.

    Beside other workloads only ordinary steps of the base are timed. What the generator's updates add is taken
    from the base's own timing: one factor for all of them.
    """
    own = times[timed_as(base)]
    update = statistics.median(own.averaged(base.k)) / statistics.median(own.ordinary)
    rows = []
    for axis, value, workload in points:
        found = times.get(timed_as(workload))
        if found is None:
            continue
        rounds = found.averaged(workload.k)
        beside = own.averaged(base.k) if found is own else [update * seconds for seconds in found.base]
        row = GrowthRow(
            axis=axis,
            value=value,
            workload=workload,
            rounds=rounds,
            over_plain=_ratio(rounds, found.plain),
            over_base=_ratio(rounds, beside),
        )
        rows.append(row)
    return rows


def _ratio(rounds: Sequence[float], base: Sequence[float]) -> Spread:
    return Spread.of([a / b for a, b in zip(rounds, base, strict=True)])


def paper_over_k20(row: GrowthRow) -> float | None:
    """Table II's time at this k over that at k = 20; None on other axes and where the paper has no such k."""
    minutes = TABLE_II_MINUTES.get(row.workload.k) if row.axis == "k" else None
    return None if minutes is None else minutes / TABLE_II_MINUTES[TABLE_II_K]


def _columns(row: GrowthRow, base: Workload, variant: Variant, place: Mapping[str, Any]) -> dict[str, Any]:
    workload, median = row.workload, statistics.median(row.rounds)
    ratios = {"g": generator_share(workload)}
    for name, spread, modelled in (
        ("plain", row.over_plain, modelled_over_plain(workload)),
        ("base", row.over_base, modelled_over(workload, base)),
    ):
        ratios |= {f"sdi_over_{name}": spread.median, f"sdi_over_{name}_p20": spread.p20}
        ratios |= {f"sdi_over_{name}_p80": spread.p80, f"modelled_over_{name}": modelled}
    paper, on_gpu = paper_over_k20(row), place["cuda"] is not None
    return {
        "axis": row.axis,
        "value": row.value,
        "model": workload.model,
        "batch": workload.batch,
        "image_size": workload.image_size,
        "k": workload.k,
        "generator_width": workload.generator_width,
        "base": f"{base.model} {base.batch}x{base.image_size} k={base.k}",
        **{name: float(f"{value:.5g}") for name, value in ratios.items()},
        "paper_minutes": None if paper is None else TABLE_II_MINUTES[workload.k],
        "paper_over_k20": None if paper is None else float(f"{paper:.5g}"),
        "ms": float(f"{1000 * median:.5g}") if on_gpu else None,
        "images_per_second": round(workload.batch / median) if on_gpu else None,
        "mode": variant.mode,
        "precision": variant.precision,
        "rounds": len(row.rounds),
        **place,
    }


def table(rows: Sequence[GrowthRow], base: Workload, *, absolute: bool) -> str:
    """Measured and modelled ratios; on a GPU also milliseconds and images per second."""
    header = ["axis", "value", "over plain", "modelled", "over base", "modelled", "paper / k = 20"]
    lines = []
    for row in rows:
        cells = [row.axis, str(row.value)]
        modelled = modelled_over_plain(row.workload), modelled_over(row.workload, base)
        for spread, model in zip((row.over_plain, row.over_base), modelled, strict=True):
            cells += [f"{spread.median:.2f} ({spread.p20:.2f} to {spread.p80:.2f})", f"{model:.2f}"]
        paper, median = paper_over_k20(row), statistics.median(row.rounds)
        cells.append("" if paper is None else f"{paper:.2f}")
        lines.append([*cells, f"{1000 * median:.3f}", f"{row.workload.batch / median:,.0f}"] if absolute else cells)
    said = console.table([*header, "ms", "images/s"] if absolute else header, lines)
    if any(row.axis == "k" for row in rows):
        said += "\nk: arithmetic on the base's two kinds of step, each timed once; the paper's step does other work"
    return said if absolute else f"{said}\nratios only: absolute times are meaningful on a GPU"


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """The picture of the rows, where matplotlib is installed; a line says so where it is not."""
    try:
        from .plots import draw_growth
    except ModuleNotFoundError as error:
        console.line(f"no picture {path}: {(error.name or '').partition('.')[0]} is not installed")
    else:
        draw_growth(rows, path)
