"""The exact table: no float outside the ball, none inside it lost, over every byte."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from hardfast.kernels import pixel_bounds, project

RADII = [Fraction(n, 255) for n in (1, 2, 4, 8, 16, 48, 255)] + [Fraction(1, 3), Fraction(1, 10**6), Fraction(0)]
NUMPY = {torch.float32: np.float32, torch.float64: np.float64}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("box", [False, True])
@pytest.mark.parametrize("epsilon", RADII)
def test_bounds_are_the_last_floats_inside(epsilon: Fraction, box: bool, dtype: torch.dtype) -> None:
    lower, upper = pixel_bounds(epsilon, box=box, dtype=dtype).table

    def inside(value: Fraction, k: int, pixel: Fraction) -> bool:
        ball = max(abs(value - pixel), abs(value - Fraction(k, 255))) <= epsilon
        return (ball and (not box or 0 <= value <= 1)) or value == pixel

    for k in range(256):
        pixel = Fraction(float(NUMPY[dtype](k) / NUMPY[dtype](255)))
        for bound, outwards in ((lower[k].numpy(), -np.inf), (upper[k].numpy(), np.inf)):
            assert inside(Fraction(float(bound)), k, pixel)
            beyond = np.nextafter(bound, NUMPY[dtype](outwards))
            assert not inside(Fraction(float(beyond)), k, pixel)


@pytest.mark.parametrize("box", [False, True])
@pytest.mark.parametrize("epsilon", RADII)
def test_every_byte_and_delta(epsilon: Fraction, box: bool) -> None:
    """256 pixels x 511 deltas: inside the ball, idempotent, and the identity at delta = 0."""
    bounds = pixel_bounds(epsilon, box=box)
    x = torch.arange(256, dtype=torch.uint8)[:, None].expand(1, 1, 256, 511)
    delta = (torch.arange(-255, 256).float() / 255).expand(1, 1, 256, 511)
    x_adv, left = project(x, delta, bounds=bounds)
    pixel = x.float() / 255
    assert (x_adv >= bounds.lower[x.int()]).all()
    assert (x_adv <= bounds.upper[x.int()]).all()
    assert torch.equal(left, x_adv - pixel)
    again, _ = project(x, left, bounds=bounds)
    assert (again - x_adv).abs().max() <= 2**-24  # left is rounded; the bounds hold all the same
    assert (again >= bounds.lower[x.int()]).all()
    assert (again <= bounds.upper[x.int()]).all()
    still, _ = project(x, torch.zeros(1, 1, 256, 511), bounds=bounds)
    assert torch.equal(still, pixel)


def test_little_radius_is_lost() -> None:
    """The exact cure costs at most 2e-5 grey levels of the radius in fp32."""
    lower, upper = pixel_bounds(Fraction(8, 255), box=False).table
    for k in range(256):
        for reach in (Fraction(float(upper[k])) - Fraction(k, 255), Fraction(k, 255) - Fraction(float(lower[k]))):
            assert 0 <= (Fraction(8, 255) - reach) * 255 <= Fraction(2, 10**5)


@pytest.mark.parametrize(("epsilon", "dtype"), [(Fraction(-1, 255), torch.float32), (Fraction(2), torch.float32)])
def test_bad_radius(epsilon: Fraction, dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match="epsilon"):
        pixel_bounds(epsilon, box=True, dtype=dtype)


@pytest.mark.parametrize("box", [False, True])
def test_float_pixels_keep_to_ball_and_box(box: bool) -> None:
    x = torch.linspace(0, 1, 3 * 7 * 11).reshape(1, 3, 7, 11)
    for delta in (torch.full_like(x, 0.2), torch.full_like(x, -0.2)):
        x_adv, _ = project(x, delta, bounds=pixel_bounds(Fraction(8, 255), box=box))
        assert Fraction((x_adv.double() - x.double()).abs().max().item()) <= Fraction(8, 255)
        assert ((x_adv < 0) | (x_adv > 1)).any() != box


@pytest.mark.parametrize("box", [False, True])
@pytest.mark.parametrize("epsilon", RADII)
def test_no_bound_is_minus_zero(epsilon: Fraction, box: bool) -> None:
    table = pixel_bounds(epsilon, box=box).table
    assert not (table.signbit() & (table == 0)).any()


def test_half_precision_cannot_hold_the_ball() -> None:
    with pytest.raises(ValueError, match="dtype"):
        pixel_bounds(Fraction(8, 255), box=True, dtype=torch.bfloat16)
