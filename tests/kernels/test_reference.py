"""The references that every kernel must equal, against what they say in words."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import Tensor

from hardfast.kernels import (
    augment,
    generator_input,
    initial_point,
    pixel_bounds,
    random_key,
    random_start,
    signed_step,
    to_float,
)

pytest.importorskip("hypothesis")
from hypothesis import given, settings
from hypothesis import strategies as st

EPSILON = Fraction(8, 255)
LAST = torch.channels_last


def images(n: int = 5, c: int = 3, h: int = 7, w: int = 9, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (n, c, h, w), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def noise(shape: torch.Size, scale: float = 1.0, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def test_to_float_is_correctly_rounded() -> None:
    x = torch.arange(256, dtype=torch.uint8)
    for dtype in (torch.float32, torch.float64):
        exact = [Fraction(k, 255) for k in range(256)]
        for value, wanted in zip(to_float(x, dtype), exact, strict=True):
            unit = torch.finfo(dtype).eps * float(wanted) / 2
            assert abs(Fraction(value.item()) - wanted) <= Fraction(unit)


@pytest.mark.parametrize("inputs", ["benign", "grad", "benign+grad"])
def test_generator_input(inputs: str) -> None:
    x, gradient = images(), noise(images().shape)
    gradient[0, 0, 0] = 0
    seen = generator_input(x, gradient, inputs=inputs)
    parts = {"benign": [x.float() / 255], "grad": [gradient.sign()]}
    wanted = parts["benign"] + parts["grad"] if inputs == "benign+grad" else parts[inputs]
    assert torch.equal(seen, torch.cat(wanted, dim=1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_generators_input_has_the_gradients_dtype_and_room_on_request(dtype: torch.dtype) -> None:
    x, gradient = images(), noise(images().shape).to(dtype)
    seen = generator_input(x, gradient)
    assert seen.dtype == dtype
    padded = generator_input(x, gradient, channels=8, dtype=torch.float32)
    assert padded.dtype == torch.float32
    assert padded.shape[1] == 8
    assert torch.equal(padded[:, 3:6], gradient.sign().float())
    assert not padded[:, 6:].any()
    assert padded.is_contiguous(memory_format=LAST)


def test_nan_in_a_gradient_comes_out_as_nan() -> None:
    x, gradient = images(), noise(images().shape)
    gradient[1, 2, 3, 4] = torch.nan
    eta, bounds = torch.zeros_like(gradient), pixel_bounds(EPSILON, box=True)
    x_adv, delta = signed_step(x, eta, gradient, alpha=EPSILON, bounds=bounds)
    seen = generator_input(x, gradient)
    for result, channel in ((x_adv, 2), (delta, 2), (seen, 5)):
        assert result[1, channel, 3, 4].isnan()
        assert result.isnan().sum() == 1


def test_initial_point_and_its_gradient() -> None:
    x = images()
    raw = noise(x.shape).double().requires_grad_()
    eta, start = initial_point(x, raw, epsilon=EPSILON)
    assert torch.equal(start, x.double() / 255 + eta)
    assert torch.allclose(eta, 8 / 255 * torch.tanh(raw), rtol=1e-15)
    assert torch.autograd.gradcheck(lambda r: initial_point(x, r, epsilon=EPSILON), raw)


def test_signed_step_gradient_is_the_analytic_mask() -> None:
    x = images(n=20)
    x[:5], x[5:10] = 0, 255
    eta = (noise(x.shape, 8 / 255).clamp(-8 / 255, 8 / 255)).double().requires_grad_()
    gradient, weight = noise(x.shape, seed=2), noise(x.shape, seed=3).double()
    for box in (False, True):
        bounds = pixel_bounds(EPSILON, box=box, dtype=torch.float64)
        x_adv, _ = signed_step(x, eta, gradient, alpha=Fraction(6, 255), bounds=bounds)
        (d_eta,) = torch.autograd.grad(x_adv, eta, weight)
        free = eta.detach() + 6 / 255 * gradient.sign()
        inside = free.abs() < 8 / 255
        if box:
            point = x.double() / 255 + free
            inside &= (point > 0) & (point < 1)
        assert torch.equal(d_eta, weight * inside)
        assert 0 < inside.float().mean() < 1


def test_eta_zero_is_fgsm_bit_for_bit() -> None:
    x, gradient, bounds = images(), noise(images().shape), pixel_bounds(EPSILON, box=True)
    x_adv, _ = signed_step(x, torch.zeros(x.shape), gradient, alpha=EPSILON, bounds=bounds)
    wanted = torch.where(gradient > 0, bounds.upper[x.int()], bounds.lower[x.int()])
    assert torch.equal(x_adv, wanted)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**31), st.integers(-60, 60), st.booleans(), st.sampled_from([1, 2, 8, 48, 255]))
def test_properties_of_a_signed_step(seed: int, exponent: int, box: bool, levels: int) -> None:
    epsilon = Fraction(levels, 255)
    x = images(n=3, c=2, h=3, w=5, seed=seed)
    eta = noise(x.shape, 2 * float(epsilon), seed=seed + 1)
    gradient, bounds = noise(x.shape, seed=seed + 2), pixel_bounds(epsilon, box=box)
    x_adv, delta = signed_step(x, eta, gradient, alpha=epsilon, bounds=bounds)
    assert (x_adv >= bounds.lower[x.int()]).all()
    assert (x_adv <= bounds.upper[x.int()]).all()
    # Scaling the gradient by a power of two changes nothing; nor do memory format, and which batch a sample is in.
    for other in (
        signed_step(x, eta, gradient * 2.0**exponent, alpha=epsilon, bounds=bounds),
        signed_step(*(t.to(memory_format=LAST) for t in (x, eta, gradient)), alpha=epsilon, bounds=bounds),
    ):
        assert torch.equal(other[0], x_adv)
        assert torch.equal(other[1], delta)
    part, _ = signed_step(x[1:], eta[1:], gradient[1:], alpha=epsilon, bounds=bounds)
    assert torch.equal(part, x_adv[1:])


def test_memory_format_is_kept() -> None:
    x, bounds = images().to(memory_format=LAST), pixel_bounds(EPSILON, box=True)
    eta = random_start(x, torch.arange(5), key=random_key(0, epoch=0), radius=EPSILON)
    gradient = noise(x.shape).to(memory_format=LAST)
    results = [eta, *signed_step(x, eta, gradient, alpha=EPSILON, bounds=bounds), generator_input(x, gradient)]
    assert all(result.is_contiguous(memory_format=LAST) for result in results)


def test_random_start_is_a_function_of_seed_epoch_sample_and_element() -> None:
    x, index = images(n=6), torch.tensor([4, 9, 0, 7, 7000, 1])
    whole = random_start(x, index, key=random_key(1, epoch=2), radius=EPSILON)
    shuffled = torch.tensor([5, 3, 0, 1, 2, 4])
    assert torch.equal(random_start(x, index[shuffled], key=random_key(1, epoch=2), radius=EPSILON), whole[shuffled])
    last = random_start(x.to(memory_format=LAST), index, key=random_key(1, epoch=2), radius=EPSILON)
    assert torch.equal(last, whole)
    for seed, epoch in ((2, 2), (1, 3)):
        assert (
            random_start(x, index, key=random_key(seed, epoch=epoch), radius=EPSILON) != whole
        ).float().mean() > 0.99
    assert len(whole.unique()) > 0.99 * whole.numel()  # no counter is used twice


def test_random_start_is_uniform_inside_the_open_ball() -> None:
    draws = random_start(images(n=200, h=32, w=32), torch.arange(200), key=random_key(0, epoch=0), radius=EPSILON)
    unit = draws.double() * 255 / 8
    assert unit.abs().max() <= 1
    assert abs(unit.mean()) < 0.005
    counts = torch.histc(unit.float(), bins=20, min=-1, max=1) / unit.numel()
    assert (counts - 0.05).abs().max() < 0.002


def test_augment_is_a_zero_padded_crop_then_a_flip() -> None:
    """Every sample is one of the crops of the padded image, mirrored or not; all of them occur."""
    data, padding = images(n=1, h=6, w=6).permute(0, 2, 3, 1).contiguous(), 2
    index = torch.zeros(1, dtype=torch.int64)
    padded = torch.zeros(1, 10, 10, 3, dtype=torch.uint8)
    padded[:, 2:8, 2:8] = data
    crops = {}
    for top in range(5):
        for left in range(5):
            crop = padded[:, top : top + 6, left : left + 6]
            crops[crop.numpy().tobytes()] = (top, left, False)
            crops[crop.flip(2).contiguous().numpy().tobytes()] = (top, left, True)
    assert len(crops) == 50

    def place_of(crop: Tensor) -> tuple[int, int, bool]:
        return crops[crop.numpy().tobytes()]

    seen = [
        place_of(augment(data, index, key=random_key(0, epoch=epoch), padding=padding, flip=True))
        for epoch in range(600)
    ]
    assert set(seen) == set(crops.values())
    unflipped = [
        place_of(augment(data, index, key=random_key(0, epoch=epoch), padding=padding, flip=False))
        for epoch in range(50)
    ]
    assert [place[:2] for place in unflipped] == [place[:2] for place in seen[:50]]
    assert not any(flipped for _, _, flipped in unflipped)


def test_augment_depends_on_the_sample_not_on_the_batch() -> None:
    data = images(n=30).permute(0, 2, 3, 1).contiguous()
    index = torch.tensor([3, 17, 29, 0])
    whole = augment(data, index, key=random_key(3, epoch=1), padding=4, flip=True)
    assert torch.equal(augment(data, index[[2, 0]], key=random_key(3, epoch=1), padding=4, flip=True), whole[[2, 0]])


@pytest.mark.parametrize("channels", [3, 5])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("padding", "mode"), [(0, "zeros"), (1, "zeros"), (40, "zeros"), (3, "reflect")])
def test_a_gathered_batch_is_augmented_like_the_data_set(
    padding: int, mode: str, flip: bool, dtype: torch.dtype, channels: int
) -> None:
    data = images(n=30).permute(0, 2, 3, 1).contiguous()
    index = torch.tensor([3, 17, 29, 0, 17])
    options = {"key": random_key(3, epoch=1, step=2), "padding": padding, "mode": mode, "flip": flip, "dtype": dtype}
    whole = augment(data, index, channels=channels, **options)
    picked = data[index]
    streamed = augment(picked, index, channels=channels, gathered=True, **options)
    assert torch.equal(streamed, whole)
    assert torch.equal(picked, data[index])  # left as it was
    assert streamed.data_ptr() != picked.data_ptr()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, f, b: signed_step(x.int(), f, f, alpha=EPSILON, bounds=b), "x must be uint8"),
        (lambda x, f, b: signed_step(x, f[:1], f, alpha=EPSILON, bounds=b), "eta has shape"),
        (lambda x, f, b: signed_step(x, f, f[:, :1], alpha=EPSILON, bounds=b), "gradient has shape"),
        (lambda x, f, b: signed_step(x, f.double(), f, alpha=EPSILON, bounds=b), "bounds are"),
        (lambda x, f, b: generator_input(x.int(), f), "x must be uint8"),
        (lambda x, f, b: initial_point(x, f[:1], epsilon=EPSILON), "generated has shape"),
        (lambda x, f, b: to_float(f), "x must be uint8"),
    ],
)
def test_bad_arguments_are_named(call: object, message: str) -> None:
    x = images()
    with pytest.raises((TypeError, ValueError), match=message):
        call(x, noise(x.shape), pixel_bounds(EPSILON, box=True))
