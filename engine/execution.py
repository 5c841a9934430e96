"""How a step is executed: eager, compiled or captured, in which precision, and why."""

from __future__ import annotations

import inspect
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, ParamSpec, TypeVar, cast

import torch

from ..loaders.option_types import check_options
from .errors import UsageError

Mode = Literal["auto", "eager", "compiled", "captured", "captured-eager"]
Precision = Literal["fp32", "bf16", "fp16"]
Padding = Literal["auto", "on", "off"]
Backend = str | Callable[..., Any]
P = ParamSpec("P")
R = TypeVar("R")

# Every net counts its own recompilations, where torch can: by default all functions of one code share a limit, which a
# program that trains several nets would reach.
_OWN_LIMIT: dict[str, Any] = (
    {"isolate_recompiles": True} if "isolate_recompiles" in inspect.signature(torch.compile).parameters else {}
)
# Every net and image here is channels-last. Left to itself Inductor turns a net to NCHW that has a convolution from
# many channels to few, as the generator: copies in each pass, and convolutions that tensor cores do not like.
_CHANNELS_LAST: dict[str, Any] = {"options": {"force_layout_optimization": True}}
HALVES: dict[Precision, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True, slots=True)
class ExecutionOptions:
    """How the steps are executed. Mode and padding change no result beyond rounding; the precision may."""

    mode: Mode = "auto"
    """eager: plain PyTorch. compiled: torch.compile around every pass through a net. captured: compiled, and the whole
    step replayed as a CUDA graph. captured-eager: the graph without torch.compile. auto: captured on a GPU, eager on a
    CPU."""

    precision: Precision = "fp32"
    """fp32; bf16 (A100, H100 and later) or fp16 (V100 too, with loss scaling): convolutions and linear layers in half
    precision, in the attacks as well, weights and perturbations kept in fp32."""

    tf32: bool = True
    """In fp32 on an A100 or later: let tensor cores round the factors of products to 10 bits of mantissa. Evaluations
    never do."""

    pad_channels: Padding = "auto"
    """Add zero channels to what the first convolution reads, 4 for images and 8 for the generator, which tensor cores
    want. auto: in half precision on a GPU."""

    deterministic: bool = False
    """On a GPU: sums in one order, slower, so that a run that was stopped ends in the same bits as one that was not. A
    CPU does so anyway."""

    def __post_init__(self) -> None:
        check_options(self, "execution", UsageError)


@dataclass(frozen=True, kw_only=True, slots=True)
class Execution:
    """What `ExecutionOptions` come to on one device.

    Attributes:
        compile: passes through nets are compiled.
        capture: whole steps are CUDA graphs.
        precision: of convolutions and linear layers.
        tf32: tensor cores may round the factors of fp32 products.
        pad_channels: zero channels are added to what the first convolutions read.
        deterministic: sums on a GPU are in one order.
        device: where everything lies.
        why: the reason for the mode, for the line at the start.
        backend: of torch.compile; tests put counters there.
    """

    compile: bool = False
    capture: bool = False
    precision: Precision = "fp32"
    tf32: bool = False
    pad_channels: bool = False
    deterministic: bool = False
    device: torch.device = field(default_factory=partial(torch.device, "cpu"))
    why: str = "as asked"
    backend: Backend = "inductor"

    @property
    def mode(self) -> Mode:
        """By the name users know it by."""
        if self.capture:
            return "captured" if self.compile else "captured-eager"
        return "compiled" if self.compile else "eager"

    @property
    def half(self) -> torch.dtype | None:
        """The dtype of convolutions and linear layers in half precision; None in fp32."""
        return HALVES[self.precision]

    def autocast(self) -> torch.autocast:
        """A context for the forward passes; off in fp32.

        Its cache is off: weights cast in a warm-up would be found again while a graph is captured, and the graph would
        then train on the weights of that day for ever.
        """
        return torch.autocast(
            self.device.type, dtype=self.half or torch.bfloat16, enabled=self.half is not None, cache_enabled=False
        )

    def compiled(self, function: Callable[P, R]) -> Callable[P, R]:
        """`function` under torch.compile where passes are compiled, itself elsewhere.

        As one graph, so that a recompilation beyond torch's limit is an error instead of eager execution in silence.
        CUDA graphs of torch.compile's own stay off: their outputs are overwritten by the next call of the same pass.
        """
        if not self.compile:
            return function
        layout = _CHANNELS_LAST if self.backend == "inductor" else {}
        return cast(
            Callable[P, R],
            torch.compile(function, fullgraph=True, dynamic=False, backend=self.backend, **_OWN_LIMIT, **layout),
        )

    @contextmanager
    def numerics(self) -> Iterator[None]:
        """torch's global switches as this execution wants them, and back: TF32, the order of sums, cuDNN's choice by
        timing."""
        cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
        before = cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark
        ordered = torch.are_deterministic_algorithms_enabled()
        cudnn.allow_tf32 = matmul.allow_tf32 = self.tf32
        torch.use_deterministic_algorithms(ordered or self.deterministic)
        cudnn.benchmark = not (ordered or self.deterministic)
        try:
            yield
        finally:
            cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark = before
            torch.use_deterministic_algorithms(ordered)

    def describe(self) -> str:
        """Mode, reason and precision, for the line at the start."""
        tf32 = " with products in TF32" if self.precision == "fp32" and self.tf32 else ""
        ordered = ", deterministic" if self.deterministic else ""
        return f"{self.mode} ({self.why}), {self.precision}{tf32}{ordered}"


def choose_execution(options: ExecutionOptions, device: torch.device, *, uncapturable: str | None = None) -> Execution:
    """The execution of a run on a device.

    Args:
        options: what the user wants.
        device: from `choose_device`.
        uncapturable: why this run's step cannot be captured, if it cannot; then it is compiled.

    Raises:
        UsageError: the device cannot do what was asked for.
    """
    mode, why = options.mode, "as asked"
    if mode == "auto":
        mode, why = ("captured", "the default on a GPU") if device.type == "cuda" else ("eager", "the default on a CPU")
    if mode in ("captured", "captured-eager"):
        if device.type != "cuda":
            raise UsageError(f"execution.mode {mode} needs a CUDA device, not {device}: use eager or compiled")
        if uncapturable is not None:
            why = f"not captured: {uncapturable}"
            mode = "compiled" if mode == "captured" else "eager"
    if mode == "compiled" and device.type == "cpu" and not any(map(shutil.which, ("g++", "clang++"))):
        raise UsageError("execution.mode compiled needs a C++ compiler on a CPU: install g++, or use eager")
    _check_half(options.precision, device)
    deterministic = options.deterministic and device.type == "cuda"
    if deterministic:  # cuBLAS reads it when it is first used
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    padding = options.pad_channels
    return Execution(
        compile=mode in ("compiled", "captured"),
        capture=mode in ("captured", "captured-eager"),
        precision=options.precision,
        tf32=options.tf32 and tensor_cores(device),
        pad_channels=padding == "on" or (padding == "auto" and options.precision != "fp32" and device.type == "cuda"),
        deterministic=deterministic,
        device=device,
        why=why,
    )


def tensor_cores(device: torch.device) -> bool:
    """Whether a device multiplies in TF32 and bf16: NVIDIA GPUs since the A100."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def _check_half(precision: Precision, device: torch.device) -> None:
    if precision == "bf16" and device.type == "cuda" and not tensor_cores(device):
        name = torch.cuda.get_device_name(device)
        raise UsageError(f"execution.precision bf16 has no tensor cores on {name}: use fp16")
