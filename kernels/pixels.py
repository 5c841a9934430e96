"""From pixels to a net's input: `to_float`, and FGSM-SDI's `generator_input` with the gradient's sign beside them."""

from __future__ import annotations

from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import reference
from .arithmetic import block_offsets, is_not_finite, neighbours, pixel_value, raise_flag, sign_of
from .checks import require_channels, require_dtype, require_flag, require_like, require_pixels, require_tensor
from .launch import Arguments, Launch, bytes_of, cdiv, operator
from .layout import format_of, require_alike

GeneratorInputs = Literal["benign", "grad", "benign+grad"]
BLOCK = 1024


@triton.jit
def _to_float_kernel(x_ptr, out_ptr, elements, BLOCK: tl.constexpr):
    start, offsets, live = block_offsets(elements, BLOCK, out_ptr)
    x = tl.load(x_ptr + start + offsets, mask=live, other=0)
    tl.store(out_ptr + start + offsets, pixel_value(x).to(out_ptr.dtype.element_ty), mask=live)


def launch_to_float(x: Tensor, out: Tensor, block: int = BLOCK) -> Launch:
    """The launch that fills `out` from the bytes x, both dense in one memory format."""
    arguments: Arguments = {"x_ptr": x, "out_ptr": out, "elements": x.numel()}
    return Launch(_to_float_kernel, cdiv(x.numel(), block), arguments, {"BLOCK": block}, bytes_of(x, out))


def run_to_float(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The operator on a GPU; arguments and results as in `reference.to_float`."""
    require_alike(x)
    if dtype == torch.float64:
        return reference.to_float(x, dtype)
    out = torch.empty_like(x, dtype=dtype)
    launch_to_float(x, out).run()
    return out


def _fake_to_float(x: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(x, dtype=dtype)


_to_float_op = operator("to_float", run_to_float, cpu=reference.to_float, fake=_fake_to_float)


def to_float(x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Bytes to [0, 1] pixel units, in one pass.

    Args:
        x: uint8, of any shape and memory format.
        dtype: float32, float16, bfloat16 or float64.

    Returns:
        x / 255, correctly rounded to float32 and from there to `dtype` (to float64 at once), in x's memory format.

    Raises:
        TypeError: x is not uint8, or dtype not a float.
    """
    require_tensor(x, "x")
    if x.dtype != torch.uint8:
        raise TypeError(f"x must be uint8 pixels, not {x.dtype}")
    require_dtype(dtype, "dtype")
    return _to_float_op(x.contiguous(memory_format=format_of(x)), dtype)


@triton.jit
def _generator_input_kernel(
    x_ptr,
    gradient_ptr,
    out_ptr,
    flag_ptr,
    x_image,
    x_channel,
    x_pixel,
    gradient_image,
    gradient_channel,
    gradient_pixel,
    pixels,
    programs_per_image,
    C: tl.constexpr,
    CHANNELS: tl.constexpr,
    BENIGN: tl.constexpr,
    SIGNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """BLOCK neighbouring elements of one image of the result, so that the stores are wide.

    Every element asks for a pixel and for a gradient, and gets one of them at most: what the other mask
    switches off costs no memory traffic. `pixels` are those of one image; strides are in elements.
    """
    image = (tl.program_id(0) // programs_per_image).to(tl.int64)
    begin = (tl.program_id(0) % programs_per_image).to(tl.int64) * BLOCK
    offsets = neighbours(BLOCK, out_ptr)
    live = offsets < tl.minimum(pixels * CHANNELS - begin, BLOCK).to(tl.int32)
    first = begin // CHANNELS  # pixel in which this block begins
    pixel = (offsets + (begin % CHANNELS).to(tl.int32)) // CHANNELS
    channel = (offsets + (begin % CHANNELS).to(tl.int32)) % CHANNELS
    out = tl.zeros([BLOCK], tl.float32)
    if BENIGN:
        start = x_ptr + image * x_image + first * x_pixel
        x = tl.load(start + pixel * x_pixel + channel * x_channel, mask=live & (channel < C), other=0)
        out = pixel_value(x)
    if SIGNS:
        before: tl.constexpr = C if BENIGN else 0
        start = gradient_ptr + image * gradient_image + first * gradient_pixel
        of_sign = (channel >= before) & (channel < before + C)
        place = pixel * gradient_pixel + (channel - before) * gradient_channel
        gradient = tl.load(start + place, mask=live & of_sign, other=0.0)
        out = tl.where(of_sign, sign_of(gradient), out)
        if flag_ptr is not None:
            raise_flag(flag_ptr, is_not_finite(gradient), BLOCK, out_ptr)
    begin_out = out_ptr + image * pixels * CHANNELS + begin
    tl.store(begin_out + offsets, out.to(out_ptr.dtype.element_ty), mask=live)


def launch_generator_input(
    x: Tensor, gradient: Tensor, out: Tensor, flag: Tensor | None, *, benign: bool, signs: bool, block: int = BLOCK
) -> Launch:
    """The launch that fills `out` [N, channels, H, W] (channels-last); x and gradient dense, each in its own format."""
    n, c, h, w = x.shape
    images, pixels = n, h * w
    if all(t.is_contiguous(memory_format=torch.channels_last) for t in (x, gradient)):
        images, pixels = 1, n * h * w  # one long image, so that small images do not leave programs half empty
    programs_per_image = cdiv(pixels * out.shape[1], block)
    arguments: Arguments = {
        "x_ptr": x,
        "gradient_ptr": gradient,
        "out_ptr": out,
        "flag_ptr": flag if signs else None,
        **_strides("x", x),
        **_strides("gradient", gradient),
        "pixels": pixels,
        "programs_per_image": programs_per_image,
    }
    constants = {"C": c, "CHANNELS": out.shape[1], "BENIGN": benign, "SIGNS": signs, "BLOCK": block}
    moved = bytes_of(x if benign else None, gradient if signs else None, out)
    return Launch(_generator_input_kernel, images * programs_per_image, arguments, constants, moved)


def _strides(name: str, x: Tensor) -> dict[str, int]:
    """Elements from image to image, channel to channel and pixel to pixel of dense images."""
    _, c, h, w = x.shape
    last = x.is_contiguous(memory_format=torch.channels_last)
    channel, pixel = (1, c) if last else (h * w, 1)
    return {f"{name}_image": c * h * w, f"{name}_channel": channel, f"{name}_pixel": pixel}


def run_generator_input(
    x: Tensor, gradient: Tensor, benign: bool, signs: bool, channels: int, dtype: torch.dtype, flag: Tensor | None
) -> Tensor:
    """The operator on a GPU; arguments and results as in `reference.generator_input`."""
    require_alike(x)
    require_alike(gradient)  # in a format of its own
    if torch.float64 in (dtype, x.dtype):
        return reference.generator_input(x, gradient, benign, signs, channels, dtype, flag)
    out = _empty_last(x, channels, dtype)
    launch_generator_input(x, gradient, out, flag, benign=benign, signs=signs).run()
    return out


def _fake_generator_input(
    x: Tensor, gradient: Tensor, benign: bool, signs: bool, channels: int, dtype: torch.dtype, flag: Tensor | None
) -> Tensor:
    return _empty_last(x, channels, dtype)


_generator_input_op = operator(
    "generator_input", run_generator_input, cpu=reference.generator_input, fake=_fake_generator_input, mutates=("flag",)
)


def _empty_last(x: Tensor, channels: int, dtype: torch.dtype) -> Tensor:
    n, _, h, w = x.shape
    return x.new_empty(n, h, w, channels, dtype=dtype).permute(0, 3, 1, 2)


def generator_input(
    x: Tensor,
    gradient: Tensor,
    *,
    inputs: GeneratorInputs = "benign+grad",
    channels: int | None = None,
    dtype: torch.dtype | None = None,
    flag: Tensor | None = None,
) -> Tensor:
    """What FGSM-SDI's generator sees: [x, sign(gradient)] along the channels (eq. 6; Table III for the other two).

    Args:
        x: uint8 [N, C, H, W], or float32 in [0, 1]; any memory format.
        gradient: float [N, C, H, W], the input gradient at x; any memory format. sign(0) = 0; NaN stays NaN.
        inputs: which of the two the generator is given.
        channels: of the result; more than 2C (C for one input) are zeros, 8 let tensor cores take colour images.
        dtype: of the result; by default the gradient's.
        flag: int32 [1], set to 1 if the gradient holds NaN or an infinity.

    Returns:
        [N, channels, H, W] in channels-last memory format.

    Raises:
        TypeError, ValueError: an argument of the wrong dtype, shape or device, or too few channels.
    """
    if inputs not in ("benign", "grad", "benign+grad"):
        raise ValueError(f"inputs must be benign, grad or benign+grad, not {inputs!r}")
    require_pixels(x)
    require_like(x, gradient, "gradient")
    require_flag(x, flag)
    benign, signs = "benign" in inputs, "grad" in inputs
    needed = x.shape[1] * (benign + signs)
    channels = needed if channels is None else channels
    require_channels(channels, needed, "the generator's inputs have")
    dtype = gradient.dtype if dtype is None else dtype
    require_dtype(dtype, "dtype")
    x, gradient = (t.detach().contiguous(memory_format=format_of(t)) for t in (x, gradient))
    return _generator_input_op(x, gradient, benign, signs, channels, dtype, flag)
