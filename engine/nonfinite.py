"""The device's side of the non-finite policy: a step in which a NaN or an infinity appears changes nothing.

Every part of a step reports to one flag on the device, optimisers ask it before they write, and what must be written
before the step is known to be healthy is saved at its beginning and put back at its end. Nothing here waits for the
device, allocates in a step, or does other work in a bad step than in a good one, so that CUDA graphs include it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

POLL_STEPS = 50
"""The flags of so many steps are kept on the device: `StepWatch.read` is called at least that often."""

_KEPT = 62  # bits of a non-negative int64
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by the bytes of an element


class StepWatch:
    """What is known, on the device, of the step being made and of those made since the last `read`.

    With fp16 there are two kinds of bad step. One whose *scaled* weight gradients overflow is an everyday event that
    the next, smaller loss scale cures: it changes nothing either, but is not flagged.

    Args:
        device: where everything lies.

    Attributes:
        flag: int32 [1]: 1 if a NaN or an infinity was seen in this step. The kernels take it as `flag`.
        overflow: int32 [1]: 1 if scaled gradients overflowed in this step. From then on nothing raises the flag: NaN in
            later passes of the step follows from it.
        left_out: float32 []: 1.0 if the step is to change nothing, as far as is known: what fused optimisers take as
            `found_inf`.
    """

    def __init__(self, device: torch.device) -> None:
        # One memory for all that a step begins with at zero, so that one launch clears it.
        self._state = torch.zeros(5, dtype=torch.int32, device=device)
        self.flag, self.overflow = self._state[0:1], self._state[1:2]
        self.left_out, self._bad, self._bad_scaled = self._state[2:].view(torch.float32).unbind()
        self._record = torch.zeros(2, dtype=torch.int64, device=device)
        self._flags, self._steps = self._record[0:1], self._record[1:2]  # newest flag in the lowest bit; how many
        self._one = torch.ones((), device=device)

    @torch.no_grad()
    def begin(self) -> None:
        """Before a step: nothing bad has been seen in it."""
        self._state.zero_()

    @torch.no_grad()
    def end(self) -> None:
        """After a step: takes its flag into the history."""
        torch.add(self.flag, self._flags, alpha=2, out=self._flags)
        self._steps += 1

    @torch.no_grad()
    def observe(self, *tensors: Tensor) -> None:
        """Raises the flag if one of the tensors holds NaN or an infinity: in one launch for all of a dtype.

        It writes to them what they hold: not for those that autograd still needs.
        """
        self._look(tensors, self._bad)
        self.settle()

    @torch.no_grad()
    def observe_scaled(self, *gradients: Tensor) -> None:
        """Notes an overflow if one of the gradients of a scaled loss holds NaN or an infinity."""
        self._look(gradients, self._bad_scaled)
        self.overflow.logical_or_(self._bad_scaled)
        self.settle()

    @torch.no_grad()
    def settle(self) -> None:
        """Brings `flag` and `left_out` up to date with all that was observed, by kernels as well."""
        self.flag.logical_or_(self._bad > self.overflow)
        torch.maximum(self.flag[0], self.overflow[0], out=self.left_out)

    @torch.no_grad()
    def count_overflow(self, where: Tensor) -> None:
        """Flags a step that has overflowed where the condition (bool []) holds: no smaller scale will cure it."""
        self.flag.logical_or_(self.overflow.logical_and(where))

    def read(self) -> list[bool]:
        """Whether each step since the last reading was flagged, oldest first. Waits for the device.

        Raises:
            RuntimeError: it was not called for so many steps that their flags are lost.
        """
        flags, steps = self._record.tolist()
        self._record.zero_()
        if steps > _KEPT:
            raise RuntimeError(f"{steps} steps without a reading of their flags: one is due every {POLL_STEPS}")
        return [bool(flags >> age & 1) for age in reversed(range(steps))]

    def tensors(self) -> dict[str, Tensor]:
        """All that a step changes here, in place: for what makes steps on trial and takes them back."""
        return {"state": self._state, "record": self._record}

    def _look(self, tensors: Iterable[Tensor], found: Tensor) -> None:
        """Sets `found` to 1.0 if one of the tensors is not finite.

        With what torch's GradScaler looks for overflow, at a scale of 1. A norm of all gradients takes a CPU six times
        as long, and overflows before they do.
        """
        groups = defaultdict(list)
        for tensor in tensors:
            groups[tensor.dtype].append(tensor.detach())
        for group in groups.values():
            torch._amp_foreach_non_finite_check_and_unscale_(group, found, self._one)


class Saved:
    """Memory for what a step may have to put back: tensors that it moves before it is known to be healthy.

    They are handled as integers: bits + (saved - bits) * left_out is exact, also where the bits are a NaN's, and takes
    three launches for all tensors of one size of element. torch.where would take one for each tensor, and on a CPU a
    third longer.

    Args:
        tensors: in their final place.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        groups = defaultdict(list)
        for tensor in tensors:
            real = torch.view_as_real(tensor.detach()) if tensor.is_complex() else tensor.detach()
            groups[_BITS[real.element_size()]].append(real.view(_BITS[real.element_size()]))
        self._groups = [(bits, [torch.empty_like(t) for t in bits], dtype) for dtype, bits in groups.items()]

    @torch.no_grad()
    def take(self) -> None:
        """Saves what the tensors hold."""
        for bits, saved, _ in self._groups:
            torch._foreach_copy_(saved, bits)

    @torch.no_grad()
    def put_back(self, left_out: Tensor) -> None:
        """What `take` saved where `left_out` (float []) is 1, and what they hold now where it is 0; once."""
        for bits, saved, dtype in self._groups:
            torch._foreach_sub_(saved, bits)
            torch._foreach_mul_(saved, left_out.to(dtype))
            torch._foreach_add_(bits, saved)
