"""`initial_point`: the perturbation that FGSM-SDI's generator proposes, and the image with it, in one pass."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import reference
from .arithmetic import block_offsets, is_not_finite, pixel_value, raise_flag, tanh
from .checks import pixel_units, require_dtype, require_flag, require_like, require_pixels
from .launch import Arguments, Launch, bytes_of, cdiv, operator
from .layout import alike, require_alike

BLOCK = 1024


@triton.jit
def _initial_point_kernel(x_ptr, generated_ptr, eta_ptr, start_ptr, flag_ptr, epsilon, elements, BLOCK: tl.constexpr):
    start, offsets, live = block_offsets(elements, BLOCK, eta_ptr)
    x = tl.load(x_ptr + start + offsets, mask=live, other=0)
    generated = tl.load(generated_ptr + start + offsets, mask=live, other=0.0).to(tl.float32)
    eta = tanh(generated) * epsilon
    tl.store(eta_ptr + start + offsets, eta, mask=live)
    tl.store(start_ptr + start + offsets, (pixel_value(x) + eta).to(start_ptr.dtype.element_ty), mask=live)
    if flag_ptr is not None:
        raise_flag(flag_ptr, is_not_finite(generated), BLOCK, eta_ptr)


def launch_initial_point(
    x: Tensor, generated: Tensor, eta: Tensor, start: Tensor, flag: Tensor | None, *, epsilon: float, block: int = BLOCK
) -> Launch:
    """The launch that fills `eta` and `start`; all images dense in one memory format."""
    arguments: Arguments = {
        "x_ptr": x,
        "generated_ptr": generated,
        "eta_ptr": eta,
        "start_ptr": start,
        "flag_ptr": flag,
        "epsilon": epsilon,
        "elements": x.numel(),
    }
    moved = bytes_of(x, generated, eta, start)
    return Launch(_initial_point_kernel, cdiv(x.numel(), block), arguments, {"BLOCK": block}, moved)


def run_initial_point(
    x: Tensor, generated: Tensor, epsilon: float, start_dtype: torch.dtype, flag: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The operator on a GPU; arguments and results as in `reference.initial_point`."""
    require_alike(x, generated=generated)
    if torch.float64 in (x.dtype, generated.dtype, start_dtype):
        return reference.initial_point(x, generated, epsilon, start_dtype, flag)
    eta, start = torch.empty_like(x, dtype=torch.float32), torch.empty_like(x, dtype=start_dtype)
    launch_initial_point(x, generated, eta, start, flag, epsilon=epsilon).run()
    return eta, start


def _fake_initial_point(
    x: Tensor, generated: Tensor, epsilon: float, start_dtype: torch.dtype, flag: Tensor | None
) -> tuple[Tensor, Tensor]:
    eta_dtype = reference.exact_dtype(generated.dtype)
    return torch.empty_like(x, dtype=eta_dtype), torch.empty_like(x, dtype=start_dtype)


_initial_point_op = operator(
    "initial_point", run_initial_point, cpu=reference.initial_point, fake=_fake_initial_point, mutates=("flag",)
)


class _InitialPoint(torch.autograd.Function):
    """d generated = (d eta + d start) * epsilon * (1 - tanh(generated)**2).

    The backward pass is plain PyTorch, a few passes over memory: only the generator's own update takes it, once in k
    steps.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, generated: Tensor, epsilon: float, start_dtype: torch.dtype, flag: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(generated)
        ctx.epsilon = epsilon
        return _initial_point_op(x, generated, epsilon, start_dtype, flag)

    @staticmethod
    def backward(ctx: Any, d_eta: Tensor | None, d_start: Tensor | None) -> tuple[Tensor | None, ...]:
        (generated,) = ctx.saved_tensors
        t = torch.tanh(generated.to(reference.exact_dtype(generated.dtype)))
        d = [g.to(t.dtype) for g in (d_eta, d_start) if g is not None]
        d_generated = sum(d[1:], d[0]) * (ctx.epsilon * (1 - t * t)) if d else None
        return None, None if d_generated is None else d_generated.to(generated.dtype), None, None, None


def initial_point(
    x: Tensor,
    generated: Tensor,
    *,
    epsilon: Fraction | float,
    start_dtype: torch.dtype | None = None,
    flag: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """eta = epsilon * tanh(generated) and the point x + eta (eq. 6), differentiable in `generated`.

    Args:
        x: uint8 [N, C, H, W], or float32 in [0, 1].
        generated: the generator's raw output, before its tanh, float [N, C, H, W].
        epsilon: radius in [0, 1] pixel units.
        start_dtype: of x + eta; by default eta's.
        flag: int32 [1], set to 1 if `generated` holds NaN or an infinity.

    Returns:
        (eta, x + eta) in x's memory format, eta in float32 (float64 for a float64 `generated`). x + eta is not
        projected: |eta| is at most epsilon rounded to eta's dtype, by the tanh.

    Raises:
        TypeError, ValueError: an argument of the wrong dtype, shape, device or range.
    """
    require_pixels(x)
    require_like(x, generated, "generated")
    require_flag(x, flag)
    start_dtype = reference.exact_dtype(generated.dtype) if start_dtype is None else start_dtype
    require_dtype(start_dtype, "start_dtype")
    x, generated = alike(x.detach(), generated)
    arguments = (x, generated, pixel_units(epsilon, "epsilon"), start_dtype, flag)
    if generated.requires_grad and torch.is_grad_enabled():
        return _InitialPoint.apply(*arguments)
    return _initial_point_op(*arguments)
