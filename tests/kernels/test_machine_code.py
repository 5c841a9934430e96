"""The kernels as machine code for V100, A100 and H100, compiled ahead of time: no GPU is needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
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
SHAPE = Shape(batch=128, size=32)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the command finds, in a process of its own: this one has Triton's interpreter instead of its compiler."""
    out = tmp_path_factory.mktemp("machine-code")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [Path(sys.executable).with_name("hardfast"), "bench", "machine-code", "--json", out / "rows.json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {"rows": json.loads((out / "rows.json").read_text()), "table": done.stdout}


def test_every_kernel_for_every_architecture(compiled: dict[str, Any]) -> None:
    found = {(row["case"], row["architecture"]) for row in compiled["rows"]}
    assert found == {(case.name, architecture) for case in CASES for architecture in (70, 80, 90)}


def test_no_spills_and_few_registers(compiled: dict[str, Any]) -> None:
    for row in compiled["rows"]:
        assert row["stack"] == row["local"] == 0, row
        assert 0 < row["registers"] <= REGISTERS, row


def test_it_rounds_as_the_references_do(compiled: dict[str, Any]) -> None:
    """No fused multiply-add, no approximate division: the interpreter would not see either."""
    assert [row for row in compiled["rows"] if row["inexact"]] == []


def test_float_arrays_move_in_16_byte_accesses(compiled: dict[str, Any]) -> None:
    """In the flat kernels every float32 array, in the others every result in channels-last memory format."""
    launches = {case.name: case.build(SHAPE, torch.device("cpu"), 0).launch for case in CASES}
    for row in compiled["rows"]:
        launch = launches[row["case"]]
        kernel = row["case"].split(":")[0]
        per_thread = launch.constants["BLOCK"] // THREADS
        tensors = {name: t for name, t in launch.arguments.items() if isinstance(t, torch.Tensor)}
        if kernel in FLAT:
            floats = {name: t for name, t in tensors.items() if t.dtype == torch.float32 and name != "table_ptr"}
            inputs = [name for name in floats if name in ("x_ptr", "eta_ptr", "gradient_ptr", "generated_ptr")]
            if kernel == "initial_point":
                inputs = [name for name in inputs if name != "eta_ptr"]
            outputs = [name for name in floats if name not in inputs]
            assert row["loads"].get("128", 0) == len(inputs) * per_thread // 4, row
            if all(t.dtype == torch.float32 for name, t in tensors.items() if name in ("x_adv_ptr", "out_ptr")):
                assert row["stores"].get("128", 0) == len(outputs) * per_thread // 4, row
        elif "contiguous" not in row["case"]:
            out = tensors["out_ptr"]
            elements = per_thread * (4 if kernel == "random_start" else 1)
            assert row["stores"]["128"] == elements * out.element_size() // 16, row


def test_the_table_in_the_readme_is_what_the_command_writes(compiled: dict[str, Any]) -> None:
    shown = README.read_text().partition(BEGIN)[2].partition(END)[0].strip()
    if f"Triton {triton.__version__}" not in README.read_text():
        pytest.skip(f"the table was made with another Triton than {triton.__version__}")
    assert shown in compiled["table"]
