"""Memory formats: every kernel works on dense images, channels-last or contiguous."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor


def format_of(x: Tensor) -> torch.memory_format:
    """channels_last for dense [N, C, H, W] in NHWC order, contiguous for everything else."""
    return torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format


def alike(x: Tensor, *others: Tensor, stacklevel: int = 3) -> tuple[Tensor, ...]:
    """x and the others, dense and in x's memory format, so that one flat index finds the same element in all.

    A tensor in another format is copied, which costs as much as the kernel itself; on a GPU that is said once, at the
    call that is `stacklevel` frames up.
    """
    wanted = format_of(x)
    for tensor in (x, *others):
        if tensor.is_cuda and not tensor.is_contiguous(memory_format=wanted) and not torch.compiler.is_compiling():
            warnings.warn(
                f"hardfast: a tensor with strides {tensor.stride()} is copied to x's memory format ({wanted}) before "
                "each fused kernel: keep images, nets and perturbations in one memory format",
                stacklevel=stacklevel,
            )
    return tuple(tensor.contiguous(memory_format=wanted) for tensor in (x, *others))


def require_alike(x: Tensor, **others: Tensor | None) -> None:
    """For callers of the registered operators themselves: the public functions have seen to it."""
    wanted = format_of(x)
    for name, other in {"x": x, **others}.items():
        if other is not None and not other.is_contiguous(memory_format=wanted):
            raise ValueError(f"{name} has strides {other.stride()}: it must be dense, in x's memory format")
