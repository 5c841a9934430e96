"""Triton's interpreter runs the kernels on CPU tensors; it has to be asked for before they are defined."""

from __future__ import annotations

import os

import pytest


def pytest_configure(config: pytest.Config) -> None:
    if config.option.markexpr == "gpu":  # `make test-gpu` runs the compiled kernels
        os.environ.pop("TRITON_INTERPRET", None)
    else:
        os.environ["TRITON_INTERPRET"] = "1"
