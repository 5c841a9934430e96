"""A kernel with all its arguments, ready to run on a device, or to be compiled for a chip that is not there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

Arguments = Mapping[str, Tensor | int | float | None]
WARPS = 4
OPTIONS = {"num_warps": WARPS, "enable_fp_fusion": False}
"""A fused multiply-add rounds once where the references round twice."""


@dataclass(frozen=True, slots=True)
class Launch:
    """One launch: `run` executes it; `hardfast.bench.machine_code` compiles the same thing without a GPU.

    Attributes:
        kernel: the function under `triton.jit`.
        programs: size of its one-dimensional grid.
        arguments: by name: tensors, integers, floats, and None for a tensor that this variant does not have.
        constants: its `tl.constexpr` arguments.
        bytes: device memory that it has to read and write, in all.
    """

    kernel: Any
    programs: int
    arguments: Arguments
    constants: Mapping[str, Any]
    bytes: int

    def run(self) -> None:
        """Launches on the device of the tensors; on CPU tensors under `TRITON_INTERPRET=1` only."""
        if self.programs == 0:
            return
        device = next(t.device for t in self.arguments.values() if isinstance(t, Tensor))
        with torch.cuda.device(device if device.type == "cuda" else -1):
            self.kernel[(self.programs,)](**self.arguments, **self.constants, **OPTIONS)


def bytes_of(*tensors: Tensor | None) -> int:
    """Size of all elements of the tensors that are there."""
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


cdiv = triton.cdiv
