"""The kernels as machine code for V100, A100 and H100, compiled ahead of time: no GPU is needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import triton

from hardfast.bench.kernel_cases import CASES, Shape
from hardfast.bench.machine_code import BEGIN, END
from hardfast.kernels.launch import WARPS

README = Path(__file__).parents[2] / "bench" / "README.md"
THREADS = 32 * WARPS
REGISTERS = 64
"""The most that leaves room for 1,024 threads, half of what a multiprocessor holds, at 65,536 registers."""
FLAT = ("to_float", "initial_point", "signed_step", "masked")
WRITTEN = {
    "to_float": {"out_ptr"},
    "initial_point": {"eta_ptr", "start_ptr"},
    "signed_step": {"x_adv_ptr", "delta_ptr"},
    "masked": {"out_ptr"},
}
SHAPE = Shape(batch=128, size=32)
COMPILER = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
"""The environment of a process with Triton's compiler: this one has its interpreter instead."""
ODD = """
import torch
from hardfast.bench.kernel_cases import CASES, Shape
from hardfast.bench.machine_code import compile_launch
from hardfast.kernels.crop import launch_augment

for shape in (Shape(1, 1, 1), Shape(1, 2, 1), Shape(3, 5, 3), Shape(2, 17, 4)):
    for case in CASES:
        if case.kernel != "augment" or shape.size > 1:  # its cases pad by a pixel, reflected
            launch = case.build(shape, torch.device("cpu"), 0).launch
            assert compile_launch(launch, 90).asm["cubin"]
            if case.kernel == "augment":  # a streamed batch
                given = [launch.arguments[f"{name}_ptr"] for name in ("images", "index", "key", "out")]
                streamed = launch_augment(*given, padding=1, reflect=False, flip=True, gathered=True)
                assert compile_launch(streamed, 90).asm["cubin"]
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the command finds."""
    out = tmp_path_factory.mktemp("machine-code")
    command = [Path(sys.executable).with_name("hardfast"), "bench", "machine-code", "--json", out / "rows.json"]
    done = subprocess.run(command, env=COMPILER, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {"rows": json.loads((out / "rows.json").read_text()), "table": done.stdout}


def test_every_kernel_for_every_architecture(compiled: dict[str, Any]) -> None:
    found = {(row["case"], row["architecture"]) for row in compiled["rows"]}
    assert found == {(case.name, architecture) for case in CASES for architecture in (70, 80, 90)}


def test_sizes_that_triton_specialises_on() -> None:
    """Strides and sizes of 1 become constants, sizes that 16 does not divide lose the wide accesses: all compile."""
    done = subprocess.run([sys.executable, "-c", ODD], env=COMPILER, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_no_spills_and_few_registers(compiled: dict[str, Any]) -> None:
    for row in compiled["rows"]:
        assert row["stack"] == row["local"] == 0, row
        assert 0 < row["registers"] <= REGISTERS, row


def test_it_rounds_as_the_references_do(compiled: dict[str, Any]) -> None:
    """No fused multiply-add, no approximate division: the interpreter would not see either."""
    assert [row for row in compiled["rows"] if row["inexact"]] == []


def test_accesses_are_as_wide_as_the_layout_allows(compiled: dict[str, Any]) -> None:
    """Exactly, in the flat kernels: a thread has as many neighbours as fill 128 bits of the widest image, and reads or
    writes that many elements of every image at once. Beyond that: the gathers from the table of bounds, a byte of the
    clip mask for each 8 elements, and the predicated stores to the flag."""
    launches = {case.name: case.build(SHAPE, torch.device("cpu"), 0).launch for case in CASES}
    for row in compiled["rows"]:
        launch, kernel = launches[row["case"]], row["case"].split(":")[0]
        tensors = {name: t for name, t in launch.arguments.items() if isinstance(t, torch.Tensor)}
        elements = launch.constants["BLOCK"] // THREADS
        if kernel in FLAT:
            images = {name: t for name, t in tensors.items() if t.dim() == 4}
            vector = 16 // max(t.element_size() for t in images.values())
            wanted: dict[str, Counter[str]] = {"loads": Counter(), "stores": Counter()}
            for name, image in images.items():
                direction = "stores" if name in WRITTEN[kernel] else "loads"
                wanted[direction][str(8 * image.element_size() * vector)] += elements // vector
            if "table_ptr" in tensors:
                wanted["loads"]["32"] += elements
            if "flag_ptr" in tensors:
                wanted["stores"]["32"] += elements // vector
            if kernel == "masked":
                wanted["loads"]["8"] += elements // 4  # half a byte for the four elements of a vector
            elif "inside_ptr" in tensors:
                wanted["stores"]["8"] += elements // 8
            assert {"loads": row["loads"], "stores": row["stores"]} == wanted, row
        elif row["case"] != "random_start: contiguous":
            out = tensors["out_ptr"]
            elements *= 4 if kernel == "random_start" else 1
            assert row["stores"]["128"] == elements * out.element_size() // 16, row


def test_no_barriers_where_none_are_needed(compiled: dict[str, Any]) -> None:
    """Threads meet in shared memory only to pack the clip mask, and to write noise in another order than drawn."""
    shared = {row["case"] for row in compiled["rows"] if row["shared"]}
    assert shared == {"signed_step: fp32, x_adv and clip mask", "random_start: contiguous"}


def test_the_table_in_the_readme_is_what_the_command_writes(compiled: dict[str, Any]) -> None:
    shown = README.read_text().partition(BEGIN)[2].partition(END)[0].strip()
    if f"Triton {triton.__version__}" not in README.read_text():
        pytest.skip(f"the table was made with another Triton than {triton.__version__}")
    assert shown in compiled["table"]
