"""The exact L-infinity ball around byte pixels, as a table of 256 lower and 256 upper bounds.

`clamp(x + clamp(d, -eps, eps), 0, 1)` leaves about 7% of the elements outside the ball in fp32, because x, eps and
x + d are each rounded. A byte pixel has only 256 values, so the largest and the smallest float that lie inside the
ball can be found once, in exact rationals, and the projection becomes `min(max(x + d, lo[k]), hi[k])`.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

_NUMPY: dict[torch.dtype, type[np.floating[Any]]] = {torch.float32: np.float32, torch.float64: np.float64}


@dataclass(frozen=True, slots=True)
class PixelBounds:
    """Where an attacked pixel may lie; from `pixel_bounds`.

    Attributes:
        table: [2, 256] by the clean byte k: `table[0, k] <= x_adv <= table[1, k]`.
        radius: the largest float of the table's dtype that is not above epsilon, for pixels that are floats already.
        box: whether x_adv must also lie in [0, 1].
    """

    table: Tensor
    radius: float
    box: bool

    @property
    def lower(self) -> Tensor:
        """[256]: the smallest value that an attacked pixel may take."""
        return self.table[0]

    @property
    def upper(self) -> Tensor:
        """[256]: the largest."""
        return self.table[1]


def pixel_bounds(
    epsilon: Fraction, *, box: bool, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> PixelBounds:
    """The bounds of every byte pixel for one threat.

    Inside the bounds both |x_adv - k/255| <= epsilon and |x_adv - x| <= epsilon hold exactly, x being k/255 rounded to
    `dtype`; with `box` also 0 <= x_adv <= 1. The clean pixel itself is always inside, so epsilon = 0 is the identity.

    Args:
        epsilon: radius in [0, 1] pixel units, an exact rational (8/255 is `Fraction(8, 255)`).
        box: whether x_adv must also lie in [0, 1].
        dtype: float32 or float64, the dtype of x_adv.
        device: where the tables are put.

    Raises:
        TypeError: epsilon is a float, which is not the radius that was meant but the one nearest to it.
        ValueError: epsilon is negative or above 1, or dtype has no table.
    """
    if type(epsilon) not in (Fraction, int):
        raise TypeError(f"epsilon must be an exact rational like Fraction(8, 255), not {epsilon!r}")
    if not 0 <= epsilon <= 1:
        raise ValueError(f"epsilon must lie in [0, 1], not {epsilon}")
    if dtype not in _NUMPY:
        raise ValueError(f"dtype must be float32 or float64 to hold adversarial pixels, not {dtype}")
    # A copy: whoever writes new bounds into a table for a captured graph must not write them into the cached one.
    table = _table(Fraction(epsilon), box, dtype).to(device, copy=True)
    return PixelBounds(table, float(_round_down(Fraction(epsilon), dtype)), box)


@lru_cache(maxsize=64)
def _table(epsilon: Fraction, box: bool, dtype: torch.dtype) -> Tensor:
    lower, upper = [], []
    for k in range(256):
        exact = Fraction(k, 255)
        pixel = _NUMPY[dtype](k) / _NUMPY[dtype](255)
        stored = Fraction(float(pixel))
        low, high = max(exact, stored) - epsilon, min(exact, stored) + epsilon
        if box:
            low, high = max(low, Fraction(0)), min(high, Fraction(1))
        # Where epsilon is smaller than the rounding of the pixel itself, the clean pixel is the whole ball.
        lower.append(min(_round_up(low, dtype), pixel))
        upper.append(max(_round_down(high, dtype), pixel))
    # + 0.0: no bound is -0.0, so that a kernel's select and a reference's minimum agree to the bit.
    return torch.from_numpy(np.array([lower, upper]) + _NUMPY[dtype](0))


def _round_down(value: Fraction, dtype: torch.dtype) -> np.floating[Any]:
    """The largest float of `dtype` that is not above `value`."""
    nearest = _NUMPY[dtype](float(value))
    if Fraction(float(nearest)) <= value:
        return nearest
    below: np.floating[Any] = np.nextafter(nearest, _NUMPY[dtype](-np.inf))
    return below


def _round_up(value: Fraction, dtype: torch.dtype) -> np.floating[Any]:
    """The smallest float of `dtype` that is not below `value`."""
    return -_round_down(-value, dtype)
