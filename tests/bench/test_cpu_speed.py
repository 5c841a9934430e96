"""The kernels' CPU implementations under pytest-benchmark: `make bench-cpu` compares with the last run on this machine.

In `make test` each runs once, untimed.
"""

from __future__ import annotations

import pytest
import torch

from hardfast.bench.kernel_cases import CASES, Case, Shape

pytest.importorskip("pytest_benchmark")
from pytest_benchmark.fixture import BenchmarkFixture

SHAPE = Shape(batch=128, size=32)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_cpu_implementation(case: Case, benchmark: BenchmarkFixture) -> None:
    problem = case.build(SHAPE, torch.device("cpu"), 0)
    benchmark.group = case.kernel
    benchmark.extra_info.update(bytes=problem.launch.bytes, torch=torch.__version__)
    result = benchmark(problem.op)
    first = result[0] if isinstance(result, tuple) else result
    assert first.numel() >= SHAPE.elements
