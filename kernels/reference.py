"""What each fused kernel must equal, in plain PyTorch; also what runs on a CPU.

Images are logical NCHW tensors in any memory format. Clean images are uint8 (`Pixels are bytes until a kernel turns
them into floats`), adversarial ones float32 or float64 in [0, 1] pixel units. NaN in a gradient comes out as NaN
(`torch.sign(nan)` is 0, which would train on clean images in silence).
"""

from __future__ import annotations

from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor

from .philox import Purpose, philox, sample_words
from .projection import PixelBounds

GeneratorInputs = Literal["benign", "grad", "benign+grad"]


def to_float(image: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Bytes to [0, 1] pixel units: image / 255, correctly rounded. Keeps shape and memory format.

    Raises:
        TypeError: image is not uint8.
    """
    _require_bytes(image)
    return image.to(dtype) / 255


def sign(gradient: Tensor) -> Tensor:
    """-1, 0 or 1, and NaN where the gradient is NaN."""
    return torch.where(gradient.isnan(), gradient, gradient.sign())


def generator_input(x: Tensor, gradient: Tensor, *, inputs: GeneratorInputs = "benign+grad") -> Tensor:
    """What FGSM-SDI's generator sees: [x, sign(gradient)] along the channels (eq. 6; Table III for the other two).

    Args:
        x: uint8 [N, C, H, W].
        gradient: float [N, C, H, W], the input gradient at x.
        inputs: which of the two the generator is given.

    Returns:
        [N, 2C, H, W] ([N, C, H, W] for one input) in the gradient's dtype.
    """
    _require_bytes(x)
    _require_same_shape(x, gradient, "gradient")
    if inputs == "benign":
        return to_float(x, gradient.dtype)
    if inputs == "grad":
        return sign(gradient)
    return torch.cat([to_float(x, gradient.dtype), sign(gradient)], dim=1)


def initial_point(x: Tensor, generated: Tensor, *, epsilon: Fraction) -> tuple[Tensor, Tensor]:
    """eta = epsilon * tanh(generated) and the point x + eta, differentiable in `generated` (eq. 6).

    Args:
        x: uint8 [N, C, H, W].
        generated: the generator's raw output, before its tanh, [N, C, H, W].

    Returns:
        (eta, x + eta), both in the dtype of `generated`. x + eta is not projected: |eta| <= epsilon by the tanh.
    """
    _require_same_shape(x, generated, "generated")
    eta = float(epsilon) * torch.tanh(generated)
    return eta, to_float(x, eta.dtype) + eta


def signed_step(
    x: Tensor, eta: Tensor, gradient: Tensor, *, alpha: Fraction, bounds: PixelBounds
) -> tuple[Tensor, Tensor]:
    """One signed gradient step from x + eta, projected onto the exact ball: eq. 7, and every step of PGD.

    x_adv = project(x + eta + alpha * sign(gradient)), delta = x_adv - x. Differentiable in eta: the derivative is 1
    where the step ended strictly inside the bounds and 0 where it was clipped; the sign is a constant.

    Args:
        x: uint8 [N, C, H, W], the clean image.
        eta: the current perturbation, float32 or float64 [N, C, H, W].
        gradient: the input gradient at x + eta, any float dtype.
        alpha: step size in [0, 1] pixel units.
        bounds: from `pixel_bounds`, on x's device and in eta's dtype.

    Returns:
        (x_adv, delta) in eta's dtype. x_adv is exactly inside the ball; delta is x_adv - x, rounded.
    """
    _require_same_shape(x, eta, "eta")
    _require_same_shape(x, gradient, "gradient")
    step = float(alpha) * sign(gradient.detach()).to(eta.dtype)
    return project(x, eta + step, bounds=bounds)


def project(x: Tensor, delta: Tensor, *, bounds: PixelBounds) -> tuple[Tensor, Tensor]:
    """(x_adv, delta): x + delta clipped to the bounds of each pixel of x (uint8), and what is left of delta."""
    _require_bytes(x)
    if bounds.lower.dtype != delta.dtype:
        raise TypeError(f"bounds are {bounds.lower.dtype} but delta is {delta.dtype}: make both the same")
    pixel = to_float(x, delta.dtype)
    level = x.int()
    lower, upper = bounds.lower[level], bounds.upper[level]
    point = pixel + delta
    x_adv = torch.where(point <= lower, lower, torch.where(point >= upper, upper, point))
    return x_adv, x_adv - pixel


def random_start(
    x: Tensor,
    index: Tensor,
    *,
    radius: Fraction,
    seed: int,
    epoch: int,
    purpose: Purpose = Purpose.START,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Uniform noise in (-radius, radius) for each element of x; a function of (seed, purpose, epoch, sample, element).

    Args:
        x: [N, C, H, W]; only its shape, device and memory format are used.
        index: int64 [N], the data-set index of each sample.
        radius: in [0, 1] pixel units.
        epoch: training epoch (or restart, in an evaluation).

    Returns:
        [N, C, H, W] of `dtype` in x's memory format. Elements are numbered in NHWC order, four to a counter, so the
        memory format changes nothing.
    """
    n, c, h, w = x.shape
    blocks = (c * h * w + 3) // 4
    zero = torch.zeros((), dtype=torch.int64, device=x.device)
    counter = (torch.arange(blocks, device=x.device), index[:, None], zero + epoch, zero + int(purpose))
    words = torch.stack(philox(counter, seed), dim=-1).reshape(n, blocks * 4)[:, : c * h * w]
    # An odd numerator below 2**24 over 2**24: exact in fp32, symmetric, never 0 and never +-1.
    unit = ((words >> 8) * 2 + 1 - (1 << 24)).to(dtype) * 2.0**-24
    noise = (unit * float(radius)).reshape(n, h, w, c).permute(0, 3, 1, 2)
    return torch.empty_like(x, dtype=dtype).copy_(noise)


def augment(images: Tensor, index: Tensor, *, padding: int, flip: bool, seed: int, epoch: int) -> Tensor:
    """Gather by index, crop at random out of a zero-padded frame, flip horizontally at random.

    Args:
        images: uint8 [M, H, W, C], the whole data set on the device.
        index: int64 [N], which samples.
        padding: zero padding on each side; the crop has the size of the image.
        flip: whether to mirror each sample with probability 1/2.

    Returns:
        uint8 [N, H, W, C]. Crop and flip are a function of (seed, epoch, sample), the same for every loader.
    """
    _require_bytes(images)
    picked = images[index]
    if padding == 0 and not flip:
        return picked
    n, h, w, _ = picked.shape
    words = sample_words(index, seed=seed, purpose=Purpose.AUGMENT, epoch=epoch)
    top, left = ((word * (2 * padding + 1)) >> 32 for word in words[:2])
    rows = top[:, None] + torch.arange(h, device=images.device)
    columns = torch.arange(w, device=images.device).expand(n, w)
    if flip:
        columns = torch.where(words[2][:, None] >> 31 == 1, w - 1 - columns, columns)
    columns = left[:, None] + columns
    padded = torch.nn.functional.pad(picked, (0, 0, padding, padding, padding, padding))
    sample = torch.arange(n, device=images.device)
    return padded[sample[:, None, None], rows[:, :, None], columns[:, None, :]]


def _require_bytes(x: Tensor) -> None:
    if x.dtype != torch.uint8:
        raise TypeError(f"x must be uint8 pixels, not {x.dtype}: pixels stay bytes until a kernel turns them to floats")


def _require_same_shape(x: Tensor, other: Tensor, name: str) -> None:
    if x.shape != other.shape:
        raise ValueError(f"{name} has shape {tuple(other.shape)} but x has {tuple(x.shape)}")
