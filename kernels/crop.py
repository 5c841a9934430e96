"""`augment`: from bytes on the device to a cropped, flipped, converted batch, in one pass.

The bytes are a whole data set, of which the kernel gathers the batch, or a batch that a streaming loader has gathered.
"""

from __future__ import annotations

from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import reference
from .arithmetic import neighbours, pixel_value
from .checks import (
    require_bool,
    require_channels,
    require_dtype,
    require_index,
    require_integer,
    require_key,
    require_tensor,
)
from .launch import Arguments, Launch, bytes_of, cdiv, operator
from .philox import Purpose

Padding = Literal["zeros", "reflect"]
BLOCK = 2048


@triton.jit
def _augment_kernel(
    images_ptr,
    index_ptr,
    key_ptr,
    out_ptr,
    samples,
    programs_per_image,
    H: tl.constexpr,
    W: tl.constexpr,
    C: tl.constexpr,
    CHANNELS: tl.constexpr,
    PADDING: tl.constexpr,
    REFLECT: tl.constexpr,
    FLIP: tl.constexpr,
    GATHERED: tl.constexpr,
    PURPOSE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """BLOCK neighbouring elements of one image of the result, so that the stores are wide; the bytes are gathered."""
    image = tl.program_id(0) // programs_per_image
    element = (tl.program_id(0) % programs_per_image) * BLOCK + neighbours(BLOCK, out_ptr)
    live = element < H * W * CHANNELS
    channel, column, row = element % CHANNELS, (element // CHANNELS) % W, element // (CHANNELS * W)
    sample = tl.load(index_ptr + image)
    place = image.to(tl.int64) if GATHERED else sample
    if PADDING > 0 or FLIP:
        seed, epoch, step = tl.load(key_ptr), tl.load(key_ptr + 1), tl.load(key_ptr + 2)
        purpose = PURPOSE + (step << 8)
        zero, places = tl.full([], 0, tl.uint32), tl.full([], 2 * PADDING + 1, tl.uint32)
        top, left, mirror, _ = tl.philox(seed, zero, sample.to(tl.uint32), epoch.to(tl.uint32), purpose.to(tl.uint32))
        if FLIP:
            column = tl.where((mirror >> 31) == 1, W - 1 - column, column)
        row += tl.umulhi(top, places).to(tl.int32) - PADDING
        column += tl.umulhi(left, places).to(tl.int32) - PADDING
    if REFLECT:
        row, column = tl.abs(row), tl.abs(column)
        row = tl.where(row >= H, 2 * (H - 1) - row, row)
        column = tl.where(column >= W, 2 * (W - 1) - column, column)
    known = (sample >= 0) & (sample < samples)  # a wrong index gives zeros, never another tensor's memory
    there = live & known & (channel < C) & (row >= 0) & (row < H) & (column >= 0) & (column < W)
    source = images_ptr + place * (H * W * C) + ((row * W + column) * C + channel)
    x = tl.load(source, mask=there, other=0)
    if out_ptr.dtype.element_ty != tl.uint8:
        x = pixel_value(x).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + image.to(tl.int64) * (H * W * CHANNELS) + element, x, mask=live)


def launch_augment(
    images: Tensor,
    index: Tensor,
    key: Tensor,
    out: Tensor,
    *,
    padding: int,
    reflect: bool,
    flip: bool,
    gathered: bool = False,
    block: int = BLOCK,
) -> Launch:
    """The launch that fills `out` [N, H, W, channels], contiguous, from `images` [M, H, W, C], contiguous.

    If `gathered`, images[i] belongs to out[i], and M is N: the caller's promise.
    """
    n, h, w, channels = out.shape
    c = images.shape[3]
    programs_per_image = cdiv(h * w * channels, block)
    arguments: Arguments = {
        "images_ptr": images,
        "index_ptr": index,
        "key_ptr": key,
        "out_ptr": out,
        "samples": reference.SAMPLES if gathered else len(images),
        "programs_per_image": programs_per_image,
    }
    constants = {
        "H": h,
        "W": w,
        "C": c,
        "CHANNELS": channels,
        "PADDING": padding,
        "REFLECT": reflect,
        "FLIP": flip,
        "GATHERED": gathered,
        "PURPOSE": int(Purpose.AUGMENT),
        "BLOCK": block,
    }
    return Launch(_augment_kernel, n * programs_per_image, arguments, constants, n * h * w * c + bytes_of(index, out))


def run_augment(
    images: Tensor,
    index: Tensor,
    key: Tensor,
    padding: int,
    reflect: bool,
    flip: bool,
    channels: int,
    dtype: torch.dtype,
    gathered: bool = False,
) -> Tensor:
    """The operator on a GPU; arguments and results as in `reference.augment`."""
    if not images.is_contiguous():
        raise ValueError(f"images have strides {images.stride()}: they must be contiguous [M, H, W, C]")
    if gathered:
        _require_one_for_each(images, index)
    out = images.new_empty(len(index), *images.shape[1:3], channels, dtype=dtype)
    launch_augment(images, index, key, out, padding=padding, reflect=reflect, flip=flip, gathered=gathered).run()
    return out


def _require_one_for_each(images: Tensor, index: Tensor) -> None:
    if len(images) != len(index):
        raise ValueError(f"index names {len(index)} samples, but there are {len(images)} gathered images: one for each")


def _fake_augment(
    images: Tensor,
    index: Tensor,
    key: Tensor,
    padding: int,
    reflect: bool,
    flip: bool,
    channels: int,
    dtype: torch.dtype,
    gathered: bool = False,
) -> Tensor:
    return images.new_empty(len(index), *images.shape[1:3], channels, dtype=dtype)


_augment_op = operator("augment", run_augment, cpu=reference.augment, fake=_fake_augment)


def augment(
    images: Tensor,
    index: Tensor,
    *,
    key: Tensor,
    padding: int = 0,
    mode: Padding = "zeros",
    flip: bool = False,
    channels: int | None = None,
    dtype: torch.dtype = torch.uint8,
    gathered: bool = False,
) -> Tensor:
    """Gather by index, crop at random out of a padded frame, flip horizontally at random, convert.

    Args:
        images: uint8 [M, H, W, C], contiguous: the whole data set on the device, or the batch if `gathered`.
        index: int64 [N], which samples, each in [0, M), or in [0, 2**32) if `gathered`. Outside it a CPU raises
            IndexError; a GPU, which could not say so without waiting, returns zeros.
        key: from `random_key`, on the images' device.
        padding: pixels added on each side before the crop, which has the size of the image; below both sides for
            `reflect`.
        mode: what the added pixels are: zeros, or the image mirrored at its border pixel.
        flip: whether to mirror each sample with probability 1/2.
        channels: of the result; more than C are zeros, 4 let tensor cores take colour images.
        dtype: uint8, or float32, float16 or bfloat16 for pixels in [0, 1].
        gathered: whether images[i] is sample index[i] already, so M = N, as a streaming loader has it: what is drawn,
            and the result to the bit, are those of the whole data set.

    Returns:
        [N, H, W, channels], contiguous. Crop and flip are a function of (seed, epoch, step, sample), the same for every
        loader.

    Raises:
        TypeError, ValueError: an argument of the wrong dtype, shape, device or range.
    """
    require_tensor(images, "images")
    if images.dtype != torch.uint8:
        raise TypeError(f"images must be uint8, not {images.dtype}")
    if images.dim() != 4 or not images.is_contiguous():
        raise ValueError(f"images must be contiguous [M, H, W, C], not {tuple(images.shape)}, {images.stride()}")
    require_index(images.device, index)
    require_key(images.device, key)
    require_integer(padding, "padding")
    require_bool(flip, "flip")
    require_bool(gathered, "gathered")
    require_dtype(dtype, "dtype", (torch.uint8, torch.float32, torch.float16, torch.bfloat16))
    if gathered:
        _require_one_for_each(images, index)
    _, h, w, c = images.shape
    channels = c if channels is None else channels
    require_channels(channels, c, "the images have")
    if mode not in ("zeros", "reflect"):
        raise ValueError(f"mode must be zeros or reflect, not {mode!r}")
    reflect = mode == "reflect"
    limit = min(h, w) if reflect else 1 << 12
    if not 0 <= padding < limit:
        raise ValueError(f"padding must lie in [0, {limit}) for images of {h}x{w} and {mode}, not {padding}")
    return _augment_op(images, index.contiguous(), key.contiguous(), padding, reflect, flip, channels, dtype, gathered)
