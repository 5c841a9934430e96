"""The perturbation itself: `initial_point`, and `signed_step` with its exact projection, each in one pass.

FGSM, PGD, FGSM-RS, FGSM-SDI, N-FGSM (no ball), Free-AT and the methods with stored perturbations all step with the one
kernel `_signed_step_kernel`; they differ in its arguments.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any, Literal, overload

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import reference
from .arithmetic import block_offsets, is_not_finite, outer_bound, pixel_value, raise_flag, sign_of, tanh
from .checks import pixel_units, require_dtype, require_flag, require_like, require_on, require_pixels
from .launch import Arguments, Launch, bytes_of, cdiv
from .layout import alike, format_of, require_alike
from .projection import PixelBounds

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


@torch.library.custom_op("hardfast::initial_point", mutates_args=("flag",), device_types="cuda")
def _initial_point_op(
    x: Tensor, generated: Tensor, epsilon: float, start_dtype: torch.dtype, flag: Tensor | None
) -> tuple[Tensor, Tensor]:
    require_alike(x, generated=generated)
    if torch.float64 in (x.dtype, generated.dtype, start_dtype):
        return reference.initial_point(x, generated, epsilon, start_dtype, flag)
    eta, start = torch.empty_like(x, dtype=torch.float32), torch.empty_like(x, dtype=start_dtype)
    launch_initial_point(x, generated, eta, start, flag, epsilon=epsilon).run()
    return eta, start


_initial_point_op.register_kernel("cpu")(reference.initial_point)


@_initial_point_op.register_fake
def _(
    x: Tensor, generated: Tensor, epsilon: float, start_dtype: torch.dtype, flag: Tensor | None
) -> tuple[Tensor, Tensor]:
    eta_dtype = reference.exact_dtype(generated.dtype)
    return torch.empty_like(x, dtype=eta_dtype), torch.empty_like(x, dtype=start_dtype)


class _InitialPoint(torch.autograd.Function):
    """d generated = (d eta + d start) * epsilon * (1 - tanh(generated)**2)."""

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
        projected: |eta| <= epsilon by the tanh.

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


@triton.jit
def _signed_step_kernel(
    x_ptr,
    eta_ptr,
    gradient_ptr,
    table_ptr,
    x_adv_ptr,
    delta_ptr,
    inside_ptr,
    flag_ptr,
    alpha,
    radius,
    elements,
    BALL: tl.constexpr,
    BOX: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Pointers that are None leave their part out: no gradient is a projection, no table a float pixel."""
    start, offsets, live = block_offsets(elements, BLOCK, eta_ptr)
    x = tl.load(x_ptr + start + offsets, mask=live, other=0)
    delta = tl.load(eta_ptr + start + offsets, mask=live, other=0.0)
    if gradient_ptr is not None:
        gradient = tl.load(gradient_ptr + start + offsets, mask=live, other=0.0)
        delta = delta + alpha * sign_of(gradient)
    pixel = pixel_value(x)
    point = pixel + delta
    if flag_ptr is not None:
        bad = is_not_finite(point)
        if gradient_ptr is not None:
            bad = bad | is_not_finite(gradient)
        raise_flag(flag_ptr, bad & live, BLOCK, eta_ptr)
    x_adv = point
    if BALL:
        # Only the bound on the side of delta's sign can be reached: one gather from the table, not two.
        up = delta >= 0
        if table_ptr is not None:
            bound = tl.load(table_ptr + x.to(tl.int32) + tl.where(up, 256, 0))
        else:
            bound = outer_bound(pixel, up, radius, BOX)
        reached = tl.where(up, point >= bound, point <= bound)
        x_adv = tl.where(reached, bound, point)
        if inside_ptr is not None:
            bits = tl.reshape((reached == 0).to(tl.int32) * live.to(tl.int32), [BLOCK // 8, 8])
            packed = tl.sum(bits << tl.arange(0, 8)[None, :], axis=1).to(tl.uint8)
            byte = tl.arange(0, BLOCK // 8)
            bytes_left = (tl.minimum(elements - start, BLOCK).to(tl.int32) + 7) // 8
            tl.store(inside_ptr + start // 8 + byte, packed, mask=byte < bytes_left)
    tl.store(x_adv_ptr + start + offsets, x_adv.to(x_adv_ptr.dtype.element_ty), mask=live)
    if delta_ptr is not None:
        tl.store(delta_ptr + start + offsets, x_adv - pixel, mask=live)


def launch_signed_step(
    x: Tensor,
    eta: Tensor,
    gradient: Tensor | None,
    x_adv: Tensor,
    delta: Tensor | None,
    inside: Tensor | None,
    flag: Tensor | None,
    *,
    alpha: float,
    ball: bool,
    table: Tensor | None,
    radius: float,
    box: bool,
    block: int = BLOCK,
) -> Launch:
    """The launch that fills x_adv, and delta and the packed clip mask where given; images dense in one format."""
    arguments: Arguments = {
        "x_ptr": x,
        "eta_ptr": eta,
        "gradient_ptr": gradient,
        "table_ptr": table if ball else None,
        "x_adv_ptr": x_adv,
        "delta_ptr": delta,
        "inside_ptr": inside,
        "flag_ptr": flag,
        "alpha": alpha,
        "radius": radius,
        "elements": x.numel(),
    }
    constants = {"BALL": ball, "BOX": box, "BLOCK": block}
    moved = bytes_of(x, eta, gradient, x_adv, delta, inside)
    return Launch(_signed_step_kernel, cdiv(x.numel(), block), arguments, constants, moved)


@torch.library.custom_op("hardfast::signed_step", mutates_args=("flag",), device_types="cuda")
def _signed_step_op(
    x: Tensor,
    eta: Tensor,
    gradient: Tensor | None,
    alpha: float,
    ball: bool,
    table: Tensor | None,
    radius: float,
    box: bool,
    x_adv_dtype: torch.dtype,
    flag: Tensor | None,
    keep_delta: bool,
    keep_inside: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    require_alike(x, eta=eta, gradient=gradient)
    if torch.float64 in (x.dtype, eta.dtype, x_adv_dtype):
        return reference.signed_step(
            x, eta, gradient, alpha, ball, table, radius, box, x_adv_dtype, flag, keep_delta, keep_inside
        )
    x_adv, delta, inside = _empty_step(x, eta.dtype, x_adv_dtype, keep_delta, keep_inside)
    launch_signed_step(
        x,
        eta,
        gradient,
        x_adv,
        delta if keep_delta else None,
        inside if keep_inside else None,
        flag,
        alpha=alpha,
        ball=ball,
        table=table,
        radius=radius,
        box=box,
    ).run()
    return x_adv, delta, inside


_signed_step_op.register_kernel("cpu")(reference.signed_step)


@_signed_step_op.register_fake
def _(
    x: Tensor,
    eta: Tensor,
    gradient: Tensor | None,
    alpha: float,
    ball: bool,
    table: Tensor | None,
    radius: float,
    box: bool,
    x_adv_dtype: torch.dtype,
    flag: Tensor | None,
    keep_delta: bool,
    keep_inside: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_step(x, eta.dtype, x_adv_dtype, keep_delta, keep_inside)


def _empty_step(
    x: Tensor, dtype: torch.dtype, x_adv_dtype: torch.dtype, keep_delta: bool, keep_inside: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Memory for (x_adv, delta, packed mask); the last two are empty where they are not asked for."""
    x_adv = torch.empty_like(x, dtype=x_adv_dtype)
    delta = torch.empty_like(x, dtype=dtype) if keep_delta else x.new_empty(0, dtype=dtype)
    inside = x.new_empty((x.numel() + 7) // 8 if keep_inside else 0, dtype=torch.uint8)
    return x_adv, delta, inside


@triton.jit
def _masked_kernel(inside_ptr, gradient_ptr, out_ptr, elements, BLOCK: tl.constexpr):
    start, offsets, live = block_offsets(elements, BLOCK, out_ptr)
    gradient = tl.load(gradient_ptr + start + offsets, mask=live, other=0.0)
    quad = tl.arange(0, BLOCK // 4)  # the four elements of a thread share half a byte
    there = quad * 4 < tl.minimum(elements - start, BLOCK).to(tl.int32)
    packed = tl.load(inside_ptr + start // 8 + quad // 2, mask=there, other=0).to(tl.int32) >> (quad % 2 * 4)
    bits = tl.reshape(packed[:, None] >> tl.arange(0, 4)[None, :], [BLOCK]) & 1
    tl.store(out_ptr + start + offsets, tl.where(bits == 1, gradient, 0.0), mask=live)


def launch_masked(inside: Tensor, gradient: Tensor, out: Tensor, block: int = BLOCK) -> Launch:
    """The launch that copies a dense gradient to `out` where its bit of the packed mask is set, 0 elsewhere."""
    arguments: Arguments = {
        "inside_ptr": inside,
        "gradient_ptr": gradient,
        "out_ptr": out,
        "elements": gradient.numel(),
    }
    moved = bytes_of(inside, gradient, out)
    return Launch(_masked_kernel, cdiv(gradient.numel(), block), arguments, {"BLOCK": block}, moved)


@torch.library.custom_op("hardfast::masked", mutates_args=(), device_types="cuda")
def _masked_op(inside: Tensor, gradient: Tensor) -> Tensor:
    require_alike(gradient)
    out = torch.empty_like(gradient)
    launch_masked(inside, gradient, out).run()
    return out


_masked_op.register_kernel("cpu")(reference.masked)


@_masked_op.register_fake
def _(inside: Tensor, gradient: Tensor) -> Tensor:
    return torch.empty_like(gradient)


class _SignedStep(torch.autograd.Function):
    """d eta = d x_adv + d delta where the step ended inside the bounds, 0 where it was clipped."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        eta: Tensor,
        gradient: Tensor | None,
        alpha: float,
        ball: bool,
        table: Tensor | None,
        radius: float,
        box: bool,
        x_adv_dtype: torch.dtype,
        flag: Tensor | None,
        keep_delta: bool,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        x_adv, delta, inside = _signed_step_op(
            x, eta, gradient, alpha, ball, table, radius, box, x_adv_dtype, flag, keep_delta, ball
        )
        ctx.save_for_backward(inside)
        ctx.ball, ctx.dtype, ctx.format, ctx.keep_delta = ball, eta.dtype, format_of(x), keep_delta
        if not keep_delta:
            ctx.mark_non_differentiable(delta)
        return x_adv, delta

    @staticmethod
    def backward(ctx: Any, d_x_adv: Tensor | None, d_delta: Tensor | None) -> tuple[Tensor | None, ...]:
        (inside,) = ctx.saved_tensors
        if not ctx.keep_delta:  # torch.compile hands over zeros of its shape, which is empty
            d_delta = None
        arrived = [d.to(ctx.dtype) for d in (d_x_adv, d_delta) if d is not None]
        d_eta = sum(arrived[1:], arrived[0]) if arrived else None
        if d_eta is not None and ctx.ball:
            d_eta = _masked_op(inside, d_eta.contiguous(memory_format=ctx.format))
        return None, d_eta, *(None,) * 9


@overload
def signed_step(
    x: Tensor,
    eta: Tensor,
    gradient: Tensor,
    *,
    alpha: Fraction | float,
    bounds: PixelBounds | None,
    x_adv_dtype: torch.dtype | None = ...,
    flag: Tensor | None = ...,
    keep_delta: Literal[True] = ...,
) -> tuple[Tensor, Tensor]: ...


@overload
def signed_step(
    x: Tensor,
    eta: Tensor,
    gradient: Tensor,
    *,
    alpha: Fraction | float,
    bounds: PixelBounds | None,
    x_adv_dtype: torch.dtype | None = ...,
    flag: Tensor | None = ...,
    keep_delta: Literal[False],
) -> Tensor: ...


def signed_step(
    x: Tensor,
    eta: Tensor,
    gradient: Tensor,
    *,
    alpha: Fraction | float,
    bounds: PixelBounds | None,
    x_adv_dtype: torch.dtype | None = None,
    flag: Tensor | None = None,
    keep_delta: bool = True,
) -> tuple[Tensor, Tensor] | Tensor:
    """One signed gradient step from x + eta, projected onto the exact ball: eq. 7, and every step of PGD.

    x_adv = project(x + eta + alpha * sign(gradient)), delta = x_adv - x. Differentiable in eta: the derivative is 1
    where the step ended inside the bounds and 0 where it was clipped; the sign is a constant.

    Args:
        x: the clean image, uint8 [N, C, H, W], or float32 in [0, 1].
        eta: the current perturbation, float32 [N, C, H, W] (float64 in checks).
        gradient: the input gradient at x + eta, any float dtype.
        alpha: step size in [0, 1] pixel units.
        bounds: from `pixel_bounds`, on x's device and in eta's dtype; None for no projection at all. N-FGSM, which has
            a box and no ball, passes `pixel_bounds(Fraction(1), box=True)`.
        x_adv_dtype: of x_adv; by default eta's. Anything narrower rounds x_adv out of the ball.
        flag: int32 [1], set to 1 if the gradient or x + eta holds NaN or an infinity.
        keep_delta: False leaves delta out: a quarter of the traffic less.

    Returns:
        (x_adv, delta) in x's memory format, or x_adv alone. x_adv is exactly inside the ball; delta is x_adv - x,
        rounded, in eta's dtype.

    Raises:
        TypeError, ValueError: an argument of the wrong dtype, shape, device or range.
    """
    require_pixels(x)
    require_like(x, eta, "eta", (torch.float32, torch.float64))
    require_like(x, gradient, "gradient")
    return _step(x, eta, gradient, pixel_units(alpha, "alpha"), bounds, x_adv_dtype, flag, keep_delta)


def project(x: Tensor, delta: Tensor, *, bounds: PixelBounds, flag: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(x_adv, delta): x + delta clipped to the bounds of each pixel of x, and what is left of delta.

    Arguments, results and derivative as in `signed_step`, whose kernel this is, without a gradient.
    """
    require_pixels(x)
    require_like(x, delta, "delta", (torch.float32, torch.float64))
    if not isinstance(bounds, PixelBounds):
        raise TypeError(f"bounds must be made with pixel_bounds(epsilon, box=...), not {type(bounds).__name__}")
    return _step(x, delta, None, 0.0, bounds, None, flag, True)


def _step(
    x: Tensor,
    eta: Tensor,
    gradient: Tensor | None,
    alpha: float,
    bounds: PixelBounds | None,
    x_adv_dtype: torch.dtype | None,
    flag: Tensor | None,
    keep_delta: bool,
) -> Any:
    require_flag(x, flag)
    x_adv_dtype = eta.dtype if x_adv_dtype is None else x_adv_dtype
    require_dtype(x_adv_dtype, "x_adv_dtype")
    if x.dtype not in (torch.uint8, eta.dtype):
        raise TypeError(f"x is {x.dtype} but eta is {eta.dtype}: make both the same, or give x as uint8")
    table, radius, box = None, 0.0, False
    if bounds is not None:
        if not isinstance(bounds, PixelBounds):
            raise TypeError(f"bounds must be made with pixel_bounds(epsilon, box=...), not {type(bounds).__name__}")
        if bounds.table.dtype != eta.dtype:
            raise TypeError(f"bounds are {bounds.table.dtype} but eta is {eta.dtype}: make both the same")
        require_on(x, bounds.table, "bounds")
        table, radius, box = (bounds.table if x.dtype == torch.uint8 else None), bounds.radius, bounds.box
    ball = bounds is not None
    if gradient is None:
        x, eta = alike(x.detach(), eta)
    else:
        x, eta, gradient = alike(x.detach(), eta, gradient.detach())
    arguments = (x, eta, gradient, alpha, ball, table, radius, box, x_adv_dtype, flag, keep_delta)
    if eta.requires_grad and torch.is_grad_enabled():
        x_adv, delta = _SignedStep.apply(*arguments)
    else:
        x_adv, delta, _ = _signed_step_op(*arguments, False)
    return (x_adv, delta) if keep_delta else x_adv
