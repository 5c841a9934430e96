"""`signed_step` with its exact projection, in one pass: the perturbation itself.

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
from .arithmetic import block_offsets, is_not_finite, outer_bound, pixel_value, raise_flag, sign_of
from .checks import pixel_units, require_bool, require_dtype, require_flag, require_like, require_on, require_pixels
from .launch import Arguments, Launch, bytes_of, cdiv, operator
from .layout import alike, format_of, require_alike
from .projection import PixelBounds

BLOCK = 1024


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


def run_signed_step(
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
    """The operator on a GPU; arguments and results as in `reference.signed_step`."""
    require_alike(x, eta=eta, gradient=gradient)
    if keep_inside and not ball:
        raise ValueError("keep_inside is for a step with a ball: without one nothing is clipped")
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


def _fake_signed_step(
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


_signed_step_op = operator(
    "signed_step", run_signed_step, cpu=reference.signed_step, fake=_fake_signed_step, mutates=("flag",)
)


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


def run_masked(inside: Tensor, gradient: Tensor) -> Tensor:
    """The operator on a GPU; arguments and results as in `reference.masked`."""
    require_alike(gradient)
    if len(inside) != (gradient.numel() + 7) // 8:
        raise ValueError(f"inside has {len(inside)} bytes for {gradient.numel()} elements: it must have a bit for each")
    out = torch.empty_like(gradient)
    launch_masked(inside, gradient, out).run()
    return out


def _fake_masked(inside: Tensor, gradient: Tensor) -> Tensor:
    return torch.empty_like(gradient)


_masked_op = operator("masked", run_masked, cpu=reference.masked, fake=_fake_masked)


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
    require_bool(keep_delta, "keep_delta")
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
        x, eta = alike(x.detach(), eta, stacklevel=4)
    else:
        x, eta, gradient = alike(x.detach(), eta, gradient.detach(), stacklevel=4)
    arguments = (x, eta, gradient, alpha, ball, table, radius, box, x_adv_dtype, flag, keep_delta)
    if eta.requires_grad and torch.is_grad_enabled():
        x_adv, delta = _SignedStep.apply(*arguments)
    else:
        x_adv, delta, _ = _signed_step_op(*arguments, False)
    return (x_adv, delta) if keep_delta else x_adv
