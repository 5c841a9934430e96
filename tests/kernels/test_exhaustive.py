"""All there is: every byte, every change by whole grey levels, every sign; every float16."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

from hardfast.kernels import pixel_bounds, reference
from hardfast.kernels.initial import launch_initial_point
from hardfast.kernels.perturb import launch_signed_step
from hardfast.kernels.pixels import launch_generator_input, launch_to_float

from .guarded import same_bits

BLOCK = 16384
HALVES = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.float16).reshape(1, 1, 256, 256)
"""Every float16: zeros, subnormals, infinities and all NaNs among them."""


def stepped(x: Tensor, eta: Tensor, gradient: Tensor, *, alpha: float, epsilon: Fraction, box: bool) -> Tensor:
    """x_adv of the kernel, around float pixels if x has them."""
    bounds, x_adv = pixel_bounds(epsilon, box=box), torch.empty_like(eta)
    table = bounds.table if x.dtype == torch.uint8 else None
    options = {"ball": True, "table": table, "radius": bounds.radius, "box": box, "block": BLOCK}
    launch_signed_step(x, eta, gradient, x_adv, None, None, None, alpha=alpha, **options).run()
    return x_adv


def violations(x: Tensor, x_adv: Tensor, epsilon: Fraction, box: bool) -> int:
    """Elements outside ball or box, in exact rationals: around k/255 for bytes, and around the stored float."""
    count = 0
    pixel = x.float() / 255 if x.dtype == torch.uint8 else x
    for value in x.unique():
        centres = {Fraction(pixel[x == value][0].item())}
        centres |= {Fraction(value.item(), 255)} if x.dtype == torch.uint8 else set()
        reached = [Fraction(point.item()) for point in x_adv[x == value].unique()]
        count += sum(abs(point - centre) > epsilon for point in reached for centre in centres)
        count += sum(box and not 0 <= point <= 1 for point in reached)
    return count


@pytest.mark.parametrize("float_pixels", [False, True])
@pytest.mark.parametrize("box", [False, True])
@pytest.mark.parametrize("alpha", [2, 8])
def test_every_byte_delta_and_sign(alpha: int, box: bool, float_pixels: bool) -> None:
    """256 pixels x 511 deltas x 3 signs: no violation, tolerance 0."""
    shape, epsilon = (1, 256, 511, 3), Fraction(8, 255)
    x = torch.arange(256, dtype=torch.uint8)[None, :, None, None].expand(shape).contiguous()
    eta = (torch.arange(-255, 256).float() / 255)[None, None, :, None].expand(shape).contiguous()
    gradient = torch.tensor([-1.0, 0.0, 1.0]).expand(shape).contiguous()
    x = x.float() / 255 if float_pixels else x
    x_adv = stepped(x, eta, gradient, alpha=alpha / 255, epsilon=epsilon, box=box)
    assert violations(x, x_adv, epsilon, box) == 0
    # No radius is wasted either: the next float outwards of the furthest point is outside.
    middle = x_adv[x == x[0, 100, 0, 0]]
    assert violations(x[0, 100, 0, :1], torch.nextafter(middle.max(), torch.tensor(2.0))[None], epsilon, box) == 1
    pixel = x if float_pixels else x.float() / 255
    assert same_bits(x_adv[:, :, 255, 1], pixel[:, :, 255, 1])  # delta 0, sign 0: the clean pixel


def test_the_usual_clamp_violates() -> None:
    """The negative control: the projection that everyone writes, on the same bytes and deltas."""
    x = torch.arange(256, dtype=torch.uint8)[:, None].expand(256, 511).contiguous()
    delta = (torch.arange(-255, 256).float() / 255).expand(256, 511)
    usual = torch.clamp(x.float() / 255 + torch.clamp(delta, -8 / 255, 8 / 255), 0, 1)
    assert violations(x, usual, Fraction(8, 255), True) > 100


def test_every_byte_as_a_float() -> None:
    x = torch.arange(256, dtype=torch.uint8)
    out = torch.empty(256)
    launch_to_float(x, out, 256).run()
    assert same_bits(out, torch.from_numpy((np.arange(256) / 255).astype(np.float32)))


def test_the_sign_of_every_half() -> None:
    """As the gradient of a step and of the generator's input: all 65,536 patterns."""
    x, eta = torch.full_like(HALVES, 128, dtype=torch.uint8), torch.zeros_like(HALVES, dtype=torch.float32)
    wanted = np.sign(HALVES.double().numpy())
    seen, flag = torch.empty_like(HALVES), torch.zeros(1, dtype=torch.int32)
    launch_generator_input(x, HALVES, seen, flag, benign=False, signs=True, block=BLOCK).run()
    assert np.array_equal(seen.double().numpy(), wanted, equal_nan=True)
    assert flag.item() == 1
    x_adv = stepped(x, eta, HALVES, alpha=4 / 255, epsilon=Fraction(8, 255), box=True)
    moved = np.sign((x_adv - torch.tensor(128.0) / 255).numpy())
    assert np.array_equal(moved, wanted, equal_nan=True)


@pytest.mark.parametrize(("least", "most"), [(1e-6, 1e-3), (1e-3, 0.01), (0.01, 0.1), (0.1, 0.35), (0.35, 2), (2, 10)])
def test_tanh_between(least: float, most: float) -> None:
    """A million floats of each range: within 2.5 last places of tanh in float64."""
    x = torch.linspace(least, most, 1_000_001)
    found, exact = reference.tanh(x), torch.tanh(x.double())
    step = torch.from_numpy(np.spacing(exact.float().numpy())).double()
    assert ((found.double() - exact).abs() <= 2.5 * step).all()
    assert found.max() <= 1
    assert same_bits(reference.tanh(-x), -found)


def test_tanh_of_every_half() -> None:
    """eta over epsilon against tanh in float64: within 2.5 last places, inside [-1, 1], exact where it saturates."""
    x = torch.zeros_like(HALVES, dtype=torch.uint8)
    eta, start = torch.empty(HALVES.shape), torch.empty(HALVES.shape)
    launch_initial_point(x, HALVES, eta, start, None, epsilon=1.0, block=BLOCK).run()
    assert same_bits(eta, reference.initial_point(x, HALVES, 1.0, torch.float32, None)[0])
    exact = torch.tanh(HALVES.double())
    there = ~HALVES.isnan()
    assert torch.equal(eta.isnan(), ~there)
    step = torch.from_numpy(np.spacing(exact.float().abs().numpy())).double()
    assert ((eta.double() - exact).abs() <= 2.5 * step)[there].all()
    assert (eta.abs() <= 1)[there].all()
    assert (eta.abs() == 1)[there & (HALVES.abs() >= 9.02)].all()
