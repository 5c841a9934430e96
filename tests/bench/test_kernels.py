"""The benchmark of the kernels: real runs, tiny, of which no time is asserted; and what a GPU's table says."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hardfast.bench.kernel_cases import CASES, Case, Problem, Shape
from hardfast.bench.kernels import KernelRow, gpu_table, time_case
from hardfast.bench.timing import Rotation, Spread

pytest.importorskip("tyro")
from hardfast.engine import cli

COLUMNS = [
    *("kernel", "variant", "precision", "name", "batch", "image_size", "channels", "bytes", "sets"),
    *("median_us", "p20_us", "p80_us", "gb_per_s", "of_copy", "failure", "date", "git", "device", "threads"),
    *("power_limit_w", "sm_clock_mhz", "memory_clock_mhz", "driver", "torch", "triton", "cuda", "cudnn"),
]
MASKED = next(case for case in CASES if case.kernel == "masked")


def bench(*words: str) -> int:
    return cli.run(["bench", "kernels", *words])


def check_figures(rows: list[dict[str, Any]]) -> None:
    medians: dict[tuple[Any, ...], float] = {}  # of the faster copy
    for row in rows:
        if row["name"] in ("copy", "copy-kernel"):
            place = row["variant"], row["batch"], row["image_size"]
            medians[place] = min(row["median_us"], medians.get(place, row["median_us"]))
    for row in rows:
        assert list(row) == COLUMNS
        assert 0 < row["p20_us"] <= row["median_us"] <= row["p80_us"]
        copy = medians[row["variant"], row["batch"], row["image_size"]]
        assert row["of_copy"] == pytest.approx(copy / row["median_us"], rel=1e-3)
        assert row["failure"] == ""


def test_rows_of_two_kernels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))  # where no compiler is
    paths = tmp_path / "new/rows.csv", tmp_path / "rows.json"
    words = ["--kernels", "masked", "random_start", "--shapes", "2x4", "3x6", "--rounds", "3", "--device", "cpu"]
    assert bench(*words, "--csv", str(paths[0]), "--json", str(paths[1])) == 0
    rows = json.loads(paths[1].read_text())
    variants = [("masked", "fp32"), ("random_start", "channels-last"), ("random_start", "contiguous")]
    assert [(r["kernel"], r["variant"], r["name"], r["batch"], r["image_size"]) for r in rows] == [
        (*variant, name, *shape)
        for shape in ((2, 4), (3, 6))
        for variant in variants
        for name in ("cpu", "eager", "copy")
    ]
    check_figures(rows)
    for row in rows:
        elements = row["batch"] * row["image_size"] ** 2 * row["channels"]
        each = {"masked": 4 + 4 + 1 / 8, "random_start": 4}[row["kernel"]]
        assert row["bytes"] == pytest.approx(each * elements, abs=8 * row["batch"] + 8)  # and indices and keys
        assert row["gb_per_s"] is None  # of a GPU only
        assert row["device"].startswith("cpu ")
        assert row["torch"] == torch.__version__
    with paths[0].open() as file:
        assert list(csv.DictReader(file)) == [{k: "" if v is None else str(v) for k, v in row.items()} for row in rows]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["new", "rows.csv", "rows.json"]
    said = capsys.readouterr().out
    assert said.count("no compiler `g++`") == 1
    assert "cpu / copy" in said
    assert "not the Triton kernels" in said
    assert "GB/s" not in said


@pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs g++")
def test_rows_with_a_compiler(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    assert bench("--kernels", "masked", "--shapes", "2x4", "--rounds", "2", "--device", "cpu", "--json", str(path)) == 0
    rows = json.loads(path.read_text())
    assert [row["name"] for row in rows] == ["cpu", "eager", "compiled", "copy"]
    check_figures(rows)


def test_a_failed_compile_is_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    def build(shape: Shape, device: torch.device, seed: int) -> Problem:
        def usual(mask: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
            return gradient if mask.any() else -gradient  # no full graph has a branch on data

        return replace(MASKED.build(shape, device, seed), usual=usual)

    case = Case("masked", "branching", "fp32", build)
    rows = {row.name: row for row in time_case(case, Shape(2, 4), torch.device("cpu"), rounds=2, compiler=True)}
    assert list(rows) == ["cpu", "eager", "compiled", "copy"]
    assert (rows["compiled"].spread, rows["compiled"].of_copy) == (None, None)
    assert "\n" not in rows["compiled"].failure
    said = capsys.readouterr().out
    assert said == f"masked: branching, 2x4: compiled failed: {rows['compiled'].failure}\n"
    assert all(rows[name].spread and not rows[name].failure for name in ("cpu", "eager", "copy"))


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--kernels", "masked", "mask"], ["--kernels mask ", "signed_step"]),
        (["--shapes", "128"], ["--shapes 128 ", "128x32"]),
        (["--shapes", "0x32"], ["--shapes 0x32 "]),
        (["--shapes", "2x1"], ["--shapes 2x1 "]),
        (["--rounds", "1"], ["--rounds", "at least 2"]),
        (["--csv", "{folder}"], ["--csv {folder} is a folder"]),
        (["--json", "{folder}/file/rows.json"], ["--json {folder}/file/rows.json "]),
        (["--device", "gpu"], ["device 'gpu'"]),
    ],
)
def test_wrong_use(words: list[str], named: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert bench(*(word.format(folder=tmp_path) for word in words)) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    for part in named:
        assert part.format(folder=tmp_path) in said.err


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_op_and_usual_do_the_same_work(case: Case) -> None:
    """The same shapes and dtypes, and the same values but for the roundings of the usual code and its other noise."""
    problem = case.build(Shape(3, 5), torch.device("cpu"), 0)
    ours, usual = (
        [t.detach() for t in (found if isinstance(found, tuple) else (found,))]
        for found in (problem.op(), problem.usual(*problem.inputs))
    )
    if "clip mask" in case.variant:  # which the operation keeps for its derivative
        clipped = usual.pop()
        assert (clipped.shape, clipped.dtype) == ((3, 3, 5, 5), torch.bool)
    assert [(t.shape, t.dtype) for t in ours] == [(t.shape, t.dtype) for t in usual]
    if case.kernel not in ("random_start", "augment"):
        for a, b in zip(ours, usual, strict=True):
            assert torch.allclose(a.float(), b.float(), atol=2e-3, rtol=2e-2)


def test_rotation_takes_turns_and_holds_results() -> None:
    calls, alive = [], []

    class Result:
        def __init__(self, name: str) -> None:
            calls.append(name)
            alive.append(name)
            self.name = name

        def __del__(self) -> None:
            alive.remove(self.name)

    held: list[int] = []

    def last() -> Result:
        held.append(len(alive))
        return Result("b")

    rotation = Rotation([lambda: Result("a"), last], turns=2)
    rotation()
    assert calls == ["a", "b"] * 2
    assert len(rotation) == 4
    assert held == [1, 2]  # the second turn's `b` is made while the first's is there
    assert alive == []


def test_a_gpu_table_ends_with_the_target() -> None:
    def row(shape: Shape, name: str, microseconds: float | None) -> KernelRow:
        spread = None if microseconds is None else Spread(*[microseconds / 1e6] * 3)
        share = None if microseconds is None else 10 / microseconds
        failure = "RuntimeError: no" if spread is None else ""
        measured = {"sets": 2, "spread": spread, "of_copy": share, "failure": failure, "state": {}}
        return KernelRow(case=MASKED, shape=shape, name=name, bytes=10**7, **measured)

    times = {
        Shape(2, 4): {"kernel": 11.0, "eager": 44.0, "compiled": None, "copy": 10.0, "copy-kernel": 10.5},
        Shape(3, 4): {"kernel": 12.5, "eager": 50.0, "compiled": 25.0, "copy": 10.0, "copy-kernel": 10.5},
        Shape(4, 4): {"kernel": None, "eager": 50.0, "compiled": 25.0, "copy": 10.0, "copy-kernel": 10.5},
    }
    rows = [row(shape, name, us) for shape, found in times.items() for name, us in found.items()]
    lines = gpu_table(rows).splitlines()
    assert lines[2].split() == ["masked:", "fp32", "2x4", "11.0", "44.0", "failed", "10.0", "10.5", "909", "4.00", "-"]
    assert lines[3].split()[-3:] == ["800", "4.00", "2.00"]
    assert lines[-1] == "  masked: fp32: 91% at 2x4 (met), 80% at 3x4 (not met), not measured at 4x4 (not met)"


@pytest.mark.gpu
def test_rows_on_a_gpu(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    assert bench("--kernels", "masked", "augment", "--shapes", "128x32", "--device", "cuda", "--json", str(path)) == 0
    rows = json.loads(path.read_text())
    assert [row["name"] for row in rows] == ["kernel", "eager", "compiled", "copy", "copy-kernel"] * (len(rows) // 5)
    check_figures(rows)
    cache = torch.cuda.get_device_properties("cuda").L2_cache_size
    for row in rows:
        assert row["bytes"] * row["sets"] > cache
        assert row["gb_per_s"] == pytest.approx(row["bytes"] / row["median_us"] / 1e3, rel=1e-3)
