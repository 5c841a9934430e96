"""A kernel with all its arguments, ready to run or to be compiled for a chip that is not there; and its operator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

Arguments = Mapping[str, Tensor | int | float | None]
WARPS = 4


@dataclass(frozen=True, slots=True)
class Launch:
    """One launch: `run` executes it; `hardfast.bench.machine_code` compiles the same thing without a GPU.

    Attributes:
        kernel: the function under `triton.jit`.
        programs: size of its one-dimensional grid.
        arguments: by name: tensors, integers, floats, and None for a tensor that this variant does not have.
        constants: its `tl.constexpr` arguments.
        bytes: device memory that it has to read and write, in all.
        warps: of a program.
    """

    kernel: Any
    programs: int
    arguments: Arguments
    constants: Mapping[str, Any]
    bytes: int
    warps: int = WARPS

    @property
    def options(self) -> dict[str, Any]:
        """For the compiler. A fused multiply-add would round once where the references round twice."""
        return {"num_warps": self.warps, "enable_fp_fusion": False}

    def run(self) -> None:
        """Launches on the device of the tensors; on CPU tensors under `TRITON_INTERPRET=1` only."""
        if self.programs == 0:
            return
        device = next(t.device for t in self.arguments.values() if isinstance(t, Tensor))
        with torch.cuda.device(device if device.type == "cuda" else -1):
            self.kernel[(self.programs,)](**self.arguments, **self.constants, **self.options)


def operator(
    name: str,
    run: Callable[..., Any],
    *,
    cpu: Callable[..., Any],
    fake: Callable[..., Any],
    mutates: tuple[str, ...] = (),
) -> Any:
    """Registers `torch.ops.hardfast.NAME`, for eager and compiled use.

    Args:
        name: of the operator.
        run: what it does on a GPU; its annotations are the operator's schema.
        cpu: what it does on a CPU, with the same arguments.
        fake: its results without their values.
        mutates: arguments that it writes to.
    """
    made = torch.library.custom_op(f"hardfast::{name}", run, mutates_args=mutates, device_types="cuda")
    made.register_kernel("cpu")(cpu)
    made.register_fake(fake)
    return made


def bytes_of(*tensors: Tensor | None) -> int:
    """Size of all elements of the tensors that are there."""
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


cdiv = triton.cdiv
