"""What a training step has to compute and to move at the least, phase by phase, and how fast a device can do it.

The floor of a phase is the sum, over its convolutions and matrix products, of the longer of two times: that of their
arithmetic at the rate of a large matrix product, and that of moving each operand and each result once, in the precision
of the run, at the speed of a large copy. Of our own kernels the latter counts. It is the time of a step whose every
other operation (BatchNorm, ReLU, sums, the optimiser) is fused into these calls and free: a convolution bounds fusion,
so its operands do pass through memory.

It is no law of nature: a convolution by fewer multiplications (Winograd's), one in half precision on a CPU that cannot
multiply its matrices, or a tensor that stays in a cache can be faster. And it is no promise: what cannot be fused, like
a BatchNorm that needs the mean of the whole batch first, moves bytes that are not counted here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from ..engine.execution import Execution
from ..engine.phases import PhaseName
from ..kernels.launch import bytes_of
from .timing import event_seconds, wall_seconds

BACKWARD = torch.ops.aten.convolution_backward
AUGMENT = torch.ops.hardfast.augment
LARGEST_PRODUCT, LONG = 8192, 0.05  # rows of a square matrix; seconds
COPIED = {"cuda": 1 << 30, "cpu": 1 << 28}  # bytes
CALLS, REPEATS = {"cuda": 10, "cpu": 1}, 5


@dataclass(frozen=True, slots=True)
class Call:
    """One convolution, its backward, one matrix product, or one of our kernels: operations, and bytes that it moves."""

    flops: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Machine:
    """What a device reaches in one precision: operations and bytes (read and written) per second."""

    flops: float
    bandwidth: float

    def floor(self, calls: Iterable[Call]) -> float:
        """Seconds that the calls need at the least, one after the other."""
        return sum(max(call.flops / self.flops, call.bytes / self.bandwidth) for call in calls)


class CallCounter(TorchDispatchMode):
    """Notes the calls of everything that runs eagerly inside it, by phase; to be made the observer of the phases, too.

    Attributes:
        calls: by phase; those outside of all phases under None.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[PhaseName | None, list[Call]] = {}
        self._phase: PhaseName | None = None

    def begin(self, name: PhaseName) -> None:
        """The phase begins."""
        self._phase = name

    def end(self, name: PhaseName) -> None:
        """The phase is over."""
        self._phase = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        flops = flop_registry.get(func.overloadpacket)
        if flops is not None or func.namespace == "hardfast":
            operations = 0 if flops is None else flops(*args, **kwargs, out_val=result)
            call = Call(operations, moved_bytes(func, (args, kwargs), result))
            self.calls.setdefault(self._phase, []).append(call)
        return result


def moved_bytes(func: Any, arguments: Any, results: Any) -> int:
    """Bytes of the tensors that one call of an operator has to read and to write, each once.

    Args:
        func: the operator.
        arguments, results: its tensors, in any nest; what else is among them does not count.
    """
    read, written = _tensors(arguments), _tensors(results)
    if func.overloadpacket is BACKWARD:  # the gradient of each operand needs the other one
        (d_out, x, weight), (d_x, d_weight, _) = read, results
        read = [d_out, *([weight] if d_x is not None else []), *([x] if d_weight is not None else [])]
    if func.overloadpacket is AUGMENT:  # of the data set it reads as many pixels as it writes
        images, *read = read
        return bytes_of(*read, *written) + written[0].numel() * images.element_size()
    return bytes_of(*read, *written)


def _tensors(nest: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(nest) if isinstance(leaf, Tensor)]


def count_forward(net: Callable[[Tensor], Tensor], x: Tensor, execution: Execution) -> int:
    """Operations of one forward pass: a unit. A net in train mode updates its statistics."""
    with CallCounter() as counter, torch.no_grad(), execution.autocast():
        net(x)
    return sum(call.flops for calls in counter.calls.values() for call in calls)


def measure_machine(execution: Execution) -> Machine:
    """The best of a few large matrix products and of a few large copies, in the precision of an execution."""
    device = execution.device
    dtype = torch.float32 if execution.half is None else execution.half
    source = torch.ones(COPIED[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    rows, seconds = 256, 0.0
    with torch.no_grad(), execution.numerics():
        while seconds < LONG and rows < LARGEST_PRODUCT:
            rows *= 2
            a, b = (torch.randn(rows, rows, device=device).to(dtype) for _ in range(2))
            out = torch.empty_like(a)
            seconds = _best_seconds(partial(torch.mm, a, b, out=out), device)
        return Machine(
            2 * rows**3 / seconds, 2 * bytes_of(source) / _best_seconds(lambda: target.copy_(source), device)
        )


def _best_seconds(call: Callable[[], object], device: torch.device) -> float:
    """Of one call, some of which are issued in a row on a GPU; after a first one, which is not timed."""
    count = CALLS[device.type]
    timed = event_seconds if device.type == "cuda" else wall_seconds

    def several() -> None:
        for _ in range(count):
            call()

    call()
    return min(timed(several, device) for _ in range(REPEATS)) / count
