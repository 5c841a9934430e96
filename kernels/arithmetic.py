"""Device functions that the kernels share. Each is exact, or equals its reference bit for bit.

The kernels are launched with `enable_fp_fusion=False`, so that `a * b + c` is rounded twice, as in the references.
"""

from __future__ import annotations

import triton
import triton.language as tl

from . import reference

LOG2E = tl.constexpr(reference.LOG2E)
LN2_HIGH = tl.constexpr(reference.LN2_HIGH)
LN2_LOW = tl.constexpr(reference.LN2_LOW)
ROUND = tl.constexpr(reference.ROUND)
ROUND_BITS = tl.constexpr(reference.ROUND_BITS)


@triton.jit
def unit_from_byte(level):
    """k / 255 as the nearest float32, for bytes k.

    65793 / 2**24 = 0x010101 / 2**24 is 1 / 255 cut off after 24 bits, and k * 65793 fits into a float's 24 bits; what
    was cut off is k / 255 units, between half a last place and a whole one. So the nearest float is the next one up.
    """
    k = level.to(tl.int32)
    below = k.to(tl.float32) * (65793 * 2.0**-24)
    return (below.to(tl.int32, bitcast=True) + tl.minimum(k, 1)).to(tl.float32, bitcast=True)


@triton.jit
def pixel_value(x):
    """A pixel in [0, 1] units as float32: a byte over 255, or the float32 itself."""
    if x.dtype == tl.uint8:
        return unit_from_byte(x)
    else:
        return x


@triton.jit
def sign_of(gradient):
    """-1, 0 or 1 as float32, and NaN where the gradient is NaN; subnormals have a sign, -0.0 has none."""
    if gradient.dtype == tl.bfloat16:
        gradient = gradient.to(tl.float32)  # Triton's interpreter compares bfloat16 as integers
    signed = (gradient > 0).to(tl.float32) - (gradient < 0).to(tl.float32)
    return tl.where(gradient != gradient, float("nan"), signed)


@triton.jit
def is_not_finite(value):
    """True for NaN and both infinities."""
    if value.dtype == tl.bfloat16:
        value = value.to(tl.float32)
    return (tl.abs(value) < float("inf")) == 0


@triton.jit
def raise_flag(flag_ptr, bad, BLOCK: tl.constexpr, widest_ptr):
    """Stores 1 to the flag where any of the block's `bad` is set; nothing is written otherwise.

    The neighbours of one thread share a predicated store: no barrier, no atomic. Every store writes the same value, so
    their order does not matter.
    """
    VECTOR: tl.constexpr = 128 // widest_ptr.dtype.element_ty.primitive_bitwidth
    any_bad = tl.max(tl.reshape(bad.to(tl.int32), [BLOCK // VECTOR, VECTOR]), axis=1)
    tl.store(flag_ptr + tl.zeros([BLOCK // VECTOR], tl.int32), 1, mask=any_bad > 0)


@triton.jit
def neighbours(BLOCK: tl.constexpr, widest_ptr):
    """0, 1, ..., BLOCK - 1, as many of them with one thread as fill 16 bytes of the widest tensor.

    Without this hint a thread takes 16 bytes of the narrowest tensor, say 16 pixels, and neighbouring threads read
    their floats with gaps of 48 bytes between them.
    """
    VECTOR: tl.constexpr = 128 // widest_ptr.dtype.element_ty.primitive_bitwidth
    return tl.max_contiguous(tl.arange(0, BLOCK), VECTOR)


@triton.jit
def block_offsets(elements, BLOCK: tl.constexpr, widest_ptr):
    """(first element of this program as int64, offsets in its block as int32, which of them exist)."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    offsets = neighbours(BLOCK, widest_ptr)
    return start, offsets, offsets < tl.minimum(elements - start, BLOCK).to(tl.int32)


@triton.jit
def tanh(x):
    """Hyperbolic tangent as expm1(2|x|) / (expm1(2|x|) + 2), from additions, products and one division.

    Equals `reference.tanh` bit for bit on every device, which no library's tanh does; within 2.5 last places of
    the true value, odd, never above 1, and exactly 1 from |x| = 9.02 on. NaN stays NaN.
    """
    doubled = tl.abs(x) * 2.0
    doubled = tl.where(doubled > 20.0, 20.0, doubled)
    shifted = doubled * LOG2E + ROUND
    whole = shifted - ROUND
    power = ((shifted.to(tl.int32, bitcast=True) - ROUND_BITS + 127) << 23).to(tl.float32, bitcast=True)
    r = (doubled - whole * LN2_HIGH) - whole * LN2_LOW
    series = r * (1.0 / 5040.0) + (1.0 / 720.0)  # expm1(r) by its series to r**7 / 7!, |r| <= ln(2) / 2
    series = series * r + (1.0 / 120.0)
    series = series * r + (1.0 / 24.0)
    series = series * r + (1.0 / 6.0)
    series = series * r + 0.5
    series = series * (r * r) + r
    expm1 = series * power + (power - 1.0)
    ratio = tl.div_rn(expm1, expm1 + 2.0)
    return tl.where(x < 0, 0.0 - ratio, ratio)


@triton.jit
def outer_bound(pixel, up, radius, BOX: tl.constexpr):
    """The last float inside the ball around a float32 pixel: above it where `up`, below it elsewhere.

    pixel + radius is rounded; where it was rounded outwards, which its exact rounding error shows (Knuth's two-sum),
    the float before it is taken. The lower bound is the upper one of the mirrored pixel.
    """
    mirrored = tl.where(up, pixel, 0.0 - pixel)
    total = mirrored + radius
    part = total - mirrored
    error = (mirrored - (total - part)) + (radius - part)
    bits = total.to(tl.int32, bitcast=True)
    before = tl.where(total > 0, bits - 1, bits + 1).to(tl.float32, bitcast=True)
    total = tl.where(error < 0, before, total)
    bound = tl.where(up, total, 0.0 - total)  # never -0.0
    if BOX:
        bound = tl.where(up, tl.where(bound > 1.0, 1.0, bound), tl.where(bound < 0.0, 0.0, bound))
    return bound
