"""Tensors between guard bands, comparison to the bit, and single programs of a launch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from triton.runtime import interpreter

from hardfast.kernels.launch import Launch

BAND = 256


class Guards:
    """Hands out tensors whose storage goes on before and behind them, filled with what must not be read or written."""

    def __init__(self) -> None:
        self.rooms: list[tuple[Tensor, int]] = []

    def holding(self, values: Tensor) -> Tensor:
        """A copy of dense values, with the same strides, between two bands."""
        size = values.numel()
        room = torch.empty(size + 2 * BAND, dtype=values.dtype).fill_(self._poison(values.dtype))
        tensor = room.as_strided(values.shape, values.stride(), BAND)
        tensor.copy_(values)
        self.rooms.append((room, size))
        return tensor

    def like(self, values: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Uninitialised memory of the shape and strides of `values`, filled with the poison too."""
        dtype = values.dtype if dtype is None else dtype
        return self.holding(torch.full_like(values, self._poison(dtype), dtype=dtype))

    def check(self) -> None:
        """Every band is as it was."""
        for room, size in self.rooms:
            for band in (room[:BAND], room[BAND + size :]):
                assert same_bits(band, torch.full_like(band, self._poison(room.dtype)))

    @staticmethod
    def _poison(dtype: torch.dtype) -> float:
        return float("nan") if dtype.is_floating_point else 0x5A


@contextmanager
def guards() -> Iterator[Guards]:
    """Guard bands that are checked at the end."""
    made = Guards()
    yield made
    made.check()


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal to the last bit, the sign of zero included; any NaN equals any other."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not a.dtype.is_floating_point:
        return torch.equal(a, b)
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    equal = a.contiguous().view(integer) == b.contiguous().view(integer)
    return bool((equal | (a.isnan() & b.isnan())).all())


def run_programs(launch: Launch, programs: range) -> None:
    """Runs only some programs of a launch under the interpreter: of one that is too large to run whole."""
    executor = interpreter.GridExecutor(launch.kernel.rewrite(), launch.kernel.arg_names, (launch.programs,))
    scope = interpreter._patch_lang(executor.fn)
    arguments = {
        name: value if name in launch.constants else interpreter._implicit_cvt(value)
        for name, value in {**launch.arguments, **launch.constants}.items()
    }
    try:
        interpreter.interpreter_builder.set_grid_dim(launch.programs, 1, 1)
        for program in programs:
            interpreter.interpreter_builder.set_grid_idx(program, 0, 0)
            executor.fn(**arguments)
    finally:
        scope.restore()
