"""What each fused kernel must equal, in plain PyTorch; also what runs on a CPU, and on a GPU for float64 results.

Images are logical NCHW tensors in any memory format. Pixels are uint8, or float32 in [0, 1] (float64 in checks). These
functions compute forwards and check nothing: the public operations of the same names do, and have the derivatives. NaN
in a gradient comes out as NaN (`torch.sign(nan)` is 0, which would train on clean images in silence).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .philox import Purpose, philox, sample_words

# Constants of `tanh`: log2(e), and ln 2 as a float with 9 zero bits at its end (so that n * LN2_HIGH is exact) plus
# the rest. Adding and subtracting ROUND rounds a small float to an integer, which then stands in its lowest bits.
LOG2E, LN2_HIGH, LN2_LOW = 1.4426950408889634, 0.693145751953125, 1.428606820309417e-06
ROUND, ROUND_BITS = 12582912.0, 0x4B400000
SAMPLES = 1 << 32  # as many as a word of Philox's counter tells apart


def to_float(x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Pixels in [0, 1] units: bytes over 255, correctly rounded to float32 (float64 if asked) and then to `dtype`."""
    if x.dtype != torch.uint8:
        return x.to(dtype)
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    return (x.to(exact) / 255).to(dtype)


def sign(gradient: Tensor) -> Tensor:
    """-1, 0 or 1, and NaN where the gradient is NaN."""
    return torch.where(gradient.isnan(), gradient, gradient.sign())


def raise_flag(flag: Tensor | None, *values: Tensor) -> None:
    """Sets `flag` to 1 if any value is NaN or infinite."""
    if flag is not None:
        for value in values:
            flag.logical_or_((value * 0).sum() != 0)  # NaN if one is; in a seventh of the time of isfinite


def generator_input(
    x: Tensor, gradient: Tensor, benign: bool, signs: bool, channels: int, dtype: torch.dtype, flag: Tensor | None
) -> Tensor:
    """[x, sign(gradient), 0...] along the channels, in channels-last memory format."""
    if signs:
        raise_flag(flag, gradient)
    parts = [to_float(x, dtype)] * benign + [sign(gradient).to(dtype)] * signs
    n, _, h, w = x.shape
    filled = sum(part.shape[1] for part in parts)
    parts.append(torch.zeros(n, channels - filled, h, w, dtype=dtype, device=x.device))
    return torch.cat(parts, dim=1).contiguous(memory_format=torch.channels_last)


def tanh(x: Tensor) -> Tensor:
    """Hyperbolic tangent. In float32 expm1(2|x|) / (expm1(2|x|) + 2) by exactly the steps of `arithmetic.tanh`."""
    if x.dtype == torch.float64:
        return torch.tanh(x)
    doubled = x.abs() * 2
    doubled = torch.where(doubled > 20, 20.0, doubled)
    shifted = doubled * LOG2E + ROUND
    whole = shifted - ROUND
    power = ((shifted.view(torch.int32) - (ROUND_BITS - 127)) << 23).view(torch.float32)
    r = (doubled - whole * LN2_HIGH) - whole * LN2_LOW
    series = r * (1 / 5040) + 1 / 720
    for coefficient in (1 / 120, 1 / 24, 1 / 6, 1 / 2):
        series = series * r + coefficient
    series = series * (r * r) + r
    expm1 = series * power + (power - 1)
    ratio = expm1 / (expm1 + 2)
    return torch.where(x < 0, 0 - ratio, ratio)


def initial_point(
    x: Tensor, generated: Tensor, epsilon: float, start_dtype: torch.dtype, flag: Tensor | None
) -> tuple[Tensor, Tensor]:
    """eta = epsilon * tanh(generated), and x + eta in `start_dtype`."""
    raise_flag(flag, generated)
    eta = tanh(generated.to(exact_dtype(generated.dtype))) * epsilon
    return eta, (to_float(x, eta.dtype) + eta).to(start_dtype)


def signed_step(
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
    """(x_adv, delta, packed) of one step from x + eta; a bit of `packed` is 0 where x_adv was put onto a bound.

    Only the bound on the side of delta's sign can be reached, so only that one is looked at. delta and the bits are
    empty where they are not asked for.
    """
    if keep_inside and not ball:
        raise ValueError("keep_inside is for a step with a ball: without one nothing is clipped")
    delta = eta if gradient is None else eta + alpha * sign(gradient).to(eta.dtype)
    pixel = to_float(x, eta.dtype)
    point = pixel + delta
    if gradient is not None:
        raise_flag(flag, gradient)
    raise_flag(flag, point)
    x_adv, reached = point, torch.zeros_like(point, dtype=torch.bool)
    if ball:
        up = delta >= 0
        bound = outer_bound(pixel, up, radius, box) if table is None else looked_up(table, x, up)
        reached = (up & (point >= bound)) | (~up & (point <= bound))
        x_adv = torch.where(reached, bound, point)
    left = x_adv - pixel if keep_delta else x.new_empty(0, dtype=eta.dtype)
    packed = pack(~reached) if keep_inside else x.new_empty(0, dtype=torch.uint8)
    return x_adv.to(x_adv_dtype), left, packed


def looked_up(table: Tensor, x: Tensor, up: Tensor) -> Tensor:
    """table[1, x] where `up`, table[0, x] elsewhere. index_select is ten times as fast as indexing with a tensor."""
    place = x.int() + up.int() * 256
    last = place.is_contiguous(memory_format=torch.channels_last)
    place = place.permute(0, 2, 3, 1) if last else place
    bound = table.flatten().index_select(0, place.reshape(-1)).reshape(place.shape)
    return bound.permute(0, 3, 1, 2) if last else bound


def outer_bound(pixel: Tensor, up: Tensor, radius: float, box: bool) -> Tensor:
    """The last float inside the ball around a float pixel: above it where `up`, below it elsewhere.

    pixel + radius is rounded; where it was rounded outwards, which its exact rounding error shows (Knuth's two-sum),
    the float before it is taken. The lower bound is the upper one of the mirrored pixel.
    """
    mirrored = torch.where(up, pixel, 0 - pixel)
    added = torch.full_like(mirrored, radius)
    total = mirrored + added
    part = total - mirrored
    error = (mirrored - (total - part)) + (added - part)
    total = torch.where(error < 0, torch.nextafter(total, torch.full_like(total, -torch.inf)), total)
    bound = torch.where(up, total, 0 - total)  # never -0.0
    if box:
        bound = torch.where(up, torch.where(bound > 1, 1.0, bound), torch.where(bound < 0, 0.0, bound))
    return bound


def pack(inside: Tensor) -> Tensor:
    """A bit for each element in memory order, eight to a byte, the first one lowest: uint8 [ceil(elements / 8)]."""
    flat = in_memory_order(inside).to(torch.uint8)
    flat = torch.nn.functional.pad(flat, (0, -len(flat) % 8))
    return (flat.reshape(-1, 8) << torch.arange(8, dtype=torch.uint8, device=flat.device)).sum(1, dtype=torch.uint8)


def masked(packed: Tensor, gradient: Tensor) -> Tensor:
    """The gradient where its bit is set, 0 elsewhere; the inverse of `pack` says which bit."""
    bits = packed[:, None] >> torch.arange(8, dtype=torch.uint8, device=packed.device) & 1
    result = torch.empty_like(gradient)
    flat = in_memory_order(gradient)
    in_memory_order(result).copy_(torch.where(bits.flatten()[: len(flat)] == 1, flat, 0))
    return result


def in_memory_order(x: Tensor) -> Tensor:
    """A dense [N, C, H, W] tensor as a flat view."""
    last = x.is_contiguous(memory_format=torch.channels_last)
    return (x.permute(0, 2, 3, 1) if last else x).reshape(-1)


def random_start(x: Tensor, index: Tensor, key: Tensor, radius: float, purpose: int, dtype: torch.dtype) -> Tensor:
    """Uniform noise in (-radius, radius), by Philox(key, purpose, sample, element), elements numbered in NHWC order."""
    n, c, h, w = x.shape
    blocks = (c * h * w + 3) // 4
    seed, epoch, step = key.unbind()
    counter = (torch.arange(blocks, device=x.device), index[:, None], epoch, purpose + (step << 8))
    words = torch.stack(philox(counter, seed), dim=-1).reshape(n, blocks * 4)[:, : c * h * w]
    # An odd numerator below 2**24 over 2**24: exact in fp32, symmetric, never 0 and never +-1.
    unit = ((words >> 8) * 2 + 1 - (1 << 24)).to(exact_dtype(dtype)) * 2.0**-24
    noise = (unit * radius).reshape(n, h, w, c).permute(0, 3, 1, 2)
    return torch.empty_like(x, dtype=dtype).copy_(noise)


def augment(
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
    """Gather by index unless `gathered`, crop at random out of a padded frame, flip at random, convert."""
    samples = SAMPLES if gathered else len(images)
    if not images.is_cuda and len(index) and (index.min() < 0 or index.max() >= samples):
        raise IndexError(
            f"index reaches from {index.min()} to {index.max()}, but samples are numbered in [0, {samples})"
        )
    picked = images if gathered else images[index]
    n, h, w, c = picked.shape
    if padding or flip:
        seed, epoch, step = key.unbind()
        words = sample_words(index, seed=seed, purpose=Purpose.AUGMENT, epoch=epoch, step=step)
        top, left = ((word * (2 * padding + 1)) >> 32 for word in words[:2])
        rows = top[:, None] + torch.arange(h, device=images.device)
        columns = torch.arange(w, device=images.device).expand(n, w)
        if flip:
            columns = torch.where(words[2][:, None] >> 31 == 1, w - 1 - columns, columns)
        columns = left[:, None] + columns
        frame = _frame(picked, padding, reflect)
        sample = torch.arange(n, device=images.device)
        picked = frame[sample[:, None, None], rows[:, :, None], columns[:, None, :]]
    result = torch.zeros(n, h, w, channels, dtype=dtype, device=images.device)
    result[..., :c] = picked if dtype == torch.uint8 else to_float(picked, dtype)
    return result


def _frame(images: Tensor, padding: int, reflect: bool) -> Tensor:
    """The images with `padding` more pixels on each side: zeros, or mirrored at the border pixel."""
    if not reflect:
        return torch.nn.functional.pad(images, (0, 0, padding, padding, padding, padding))
    _, h, w, _ = images.shape
    rows, columns = (_mirrored(torch.arange(-padding, size + padding, device=images.device), size) for size in (h, w))
    return images[:, rows[:, None], columns]


def _mirrored(place: Tensor, size: int) -> Tensor:
    """Places outside [0, size) mirrored at the border pixel, which is not repeated."""
    place = place.abs()
    return torch.where(place >= size, 2 * (size - 1) - place, place)


def exact_dtype(dtype: torch.dtype) -> torch.dtype:
    """What a perturbation is computed and kept in: float64 for float64, float32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32
