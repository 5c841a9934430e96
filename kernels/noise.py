"""`random_start`: uniform noise whose every element is a function of (seed, epoch, step, sample, element)."""

from __future__ import annotations

from fractions import Fraction

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import reference
from .checks import pixel_units, require_dtype, require_index, require_key, require_tensor
from .launch import Arguments, Launch, bytes_of, cdiv, operator
from .layout import format_of, require_alike
from .philox import Purpose

BLOCK = 256


@triton.jit
def _random_start_kernel(
    out_ptr,
    index_ptr,
    key_ptr,
    radius,
    elements,
    pixels,
    programs_per_image,
    PURPOSE: tl.constexpr,
    C: tl.constexpr,
    LAST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """BLOCK Philox counters, four elements each, of one sample. `elements` and `pixels` are those of one image."""
    image = tl.program_id(0) // programs_per_image
    counter = (tl.program_id(0) % programs_per_image) * BLOCK + tl.arange(0, BLOCK)
    sample = tl.load(index_ptr + image)
    seed, epoch, step = tl.load(key_ptr), tl.load(key_ptr + 1), tl.load(key_ptr + 2)
    purpose = PURPOSE + (step << 8)
    a, b, c, d = tl.philox(
        seed, counter.to(tl.uint32), sample.to(tl.uint32), epoch.to(tl.uint32), purpose.to(tl.uint32)
    )
    words = tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), [BLOCK * 4])
    # An odd numerator below 2**24 over 2**24: exact in fp32, symmetric, never 0 and never +-1.
    unit = ((words >> 8).to(tl.int32) * 2 + 1 - (1 << 24)).to(tl.float32) * 2.0**-24
    element = (tl.program_id(0) % programs_per_image) * (BLOCK * 4) + tl.arange(0, BLOCK * 4)
    place = element if LAST else (element % C) * pixels + element // C
    out = out_ptr + image.to(tl.int64) * elements + place
    tl.store(out, (unit * radius).to(out_ptr.dtype.element_ty), mask=element < elements)


def launch_random_start(
    out: Tensor, index: Tensor, key: Tensor, *, radius: float, purpose: int, block: int = BLOCK
) -> Launch:
    """The launch that fills `out` [N, C, H, W], dense."""
    n, c, h, w = out.shape
    programs_per_image = cdiv(c * h * w, 4 * block)
    arguments: Arguments = {
        "out_ptr": out,
        "index_ptr": index,
        "key_ptr": key,
        "radius": radius,
        "elements": c * h * w,
        "pixels": h * w,
        "programs_per_image": programs_per_image,
    }
    last = out.is_contiguous(memory_format=torch.channels_last)
    constants = {"PURPOSE": purpose, "C": c, "LAST": last, "BLOCK": block}
    return Launch(_random_start_kernel, n * programs_per_image, arguments, constants, bytes_of(out))


def run_random_start(x: Tensor, index: Tensor, key: Tensor, radius: float, purpose: int, dtype: torch.dtype) -> Tensor:
    """The operator on a GPU; arguments and results as in `reference.random_start`."""
    require_alike(x)
    if dtype == torch.float64:
        return reference.random_start(x, index, key, radius, purpose, dtype)
    out = torch.empty_like(x, dtype=dtype)
    launch_random_start(out, index, key, radius=radius, purpose=purpose).run()
    return out


def _fake_random_start(
    x: Tensor, index: Tensor, key: Tensor, radius: float, purpose: int, dtype: torch.dtype
) -> Tensor:
    return torch.empty_like(x, dtype=dtype)


_random_start_op = operator("random_start", run_random_start, cpu=reference.random_start, fake=_fake_random_start)


def random_start(
    x: Tensor,
    index: Tensor,
    *,
    key: Tensor,
    radius: Fraction | float,
    purpose: Purpose = Purpose.START,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Uniform noise in (-radius, radius) for each element of x.

    Args:
        x: [N, C, H, W]; only its shape, device and memory format are used.
        index: int64 [N], the data-set index of each sample, below 2**32.
        key: from `random_key`, on x's device: read there, so a replayed CUDA graph follows it.
        radius: in [0, 1] pixel units.
        purpose: separates draws of different use.
        dtype: float32; float16 and bfloat16 round it.

    Returns:
        [N, C, H, W] of `dtype` in x's memory format. Elements are numbered in NHWC order, four to a Philox counter, so
        the memory format and the other samples of the batch change nothing.

    Raises:
        TypeError, ValueError: an argument of the wrong dtype, shape, device or range.
    """
    require_tensor(x, "x")
    if x.dim() != 4:
        raise ValueError(f"x must be [N, C, H, W], not of shape {tuple(x.shape)}")
    require_index(x.device, index, len(x))
    require_key(x.device, key)
    require_dtype(dtype, "dtype")
    if not isinstance(purpose, Purpose):  # another number could reach into the bits of the key's step
        raise TypeError(f"purpose must be a Purpose, like Purpose.START, not {purpose!r}")
    if not x.is_contiguous(memory_format=format_of(x)):  # only its shape is used, so nothing is copied
        x = torch.empty_like(x, memory_format=torch.contiguous_format)
    amount = pixel_units(radius, "radius")
    return _random_start_op(x.detach(), index.contiguous(), key.contiguous(), amount, int(purpose), dtype)
