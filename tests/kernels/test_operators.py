"""The registered operators: opcheck, derivatives, and the same bits in eager, aot_eager and Inductor."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor

from hardfast.kernels import (
    Purpose,
    augment,
    generator_input,
    initial_point,
    pixel_bounds,
    project,
    random_key,
    random_start,
    signed_step,
    to_float,
)
from hardfast.kernels.crop import run_augment
from hardfast.kernels.initial import run_initial_point
from hardfast.kernels.layout import require_alike
from hardfast.kernels.noise import run_random_start
from hardfast.kernels.perturb import run_masked, run_signed_step
from hardfast.kernels.pixels import run_generator_input, run_to_float

from .guarded import same_bits

OPS = torch.ops.hardfast
EPSILON = Fraction(8, 255)
LAST, CONTIGUOUS = torch.channels_last, torch.contiguous_format


def drawn(memory: torch.memory_format = LAST, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """(x, eta, gradient) of 3 images."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (3, 3, 5, 7), dtype=torch.uint8, generator=draw).contiguous(memory_format=memory)
    floats = (torch.randn(x.shape, generator=draw).to(dtype).contiguous(memory_format=memory) for _ in range(2))
    eta, gradient = floats
    return x, eta * (8 / 255), gradient


def flag() -> Tensor:
    return torch.zeros(1, dtype=torch.int32)


def operator_calls(memory: torch.memory_format) -> dict[str, tuple[Any, ...]]:
    """Arguments for each registered operator."""
    x, eta, gradient = drawn(memory)
    table, index, key = pixel_bounds(EPSILON, box=True).table, torch.arange(3), random_key(1)
    inside = torch.randint(0, 256, ((x.numel() + 7) // 8,), dtype=torch.uint8)
    images = x.permute(0, 2, 3, 1).contiguous()
    step = (0.03, True, table, 0.03, True, torch.float32)
    return {
        "to_float": (x, torch.float16),
        "generator_input": (x, gradient, True, True, 8, torch.float32, flag()),
        "initial_point": (x, gradient, 0.03, torch.float32, flag()),
        "signed_step": (x, eta, gradient, *step, flag(), True, True),
        "masked": (inside, gradient),
        "random_start": (x, index, key, 0.03, int(Purpose.START), torch.float32),
        "augment": (images, index, key, 2, True, True, 4, torch.float32, False),
    }


@pytest.mark.parametrize("memory", [LAST, CONTIGUOUS])
@pytest.mark.parametrize("name", list(operator_calls(LAST)))
def test_opcheck(name: str, memory: torch.memory_format) -> None:
    arguments = operator_calls(memory)[name]
    torch.library.opcheck(getattr(OPS, name).default, arguments)
    if name == "signed_step":  # its other variant: neither gradient nor ball nor flag, nothing kept
        x, eta, _ = drawn(memory)
        torch.library.opcheck(
            OPS.signed_step.default, (x, eta, None, 0.0, False, None, 0.0, False, torch.float32, None, False, False)
        )
    if name == "augment":  # its other variant: the images of samples with other numbers
        images, _, *rest, _ = arguments
        torch.library.opcheck(OPS.augment.default, (images, torch.tensor([5, 2**31, 2**32 - 1]), *rest, True))


def test_every_operator_is_checked() -> None:
    names = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("hardfast::")}
    assert names == {f"hardfast::{name}" for name in operator_calls(LAST)}


@pytest.mark.parametrize("keep_delta", [False, True])
@pytest.mark.parametrize("box", [False, True])
def test_gradcheck(box: bool, keep_delta: bool) -> None:
    x, eta, gradient = drawn(dtype=torch.float64)
    bounds = pixel_bounds(EPSILON, box=box, dtype=torch.float64)
    alpha = Fraction(3, 255)

    def step(eta: Tensor) -> Any:
        if keep_delta:
            return signed_step(x, eta, gradient, alpha=alpha, bounds=bounds)
        return signed_step(x, eta, gradient, alpha=alpha, bounds=bounds, keep_delta=False)

    eta = eta.requires_grad_()
    assert torch.autograd.gradcheck(step, eta, eps=1e-8, atol=1e-6)
    assert torch.autograd.gradcheck(lambda eta: project(x, eta, bounds=bounds), eta, eps=1e-8, atol=1e-6)
    free = lambda eta: signed_step(x, eta, gradient, alpha=alpha, bounds=None)  # noqa: E731
    assert torch.autograd.gradcheck(free, eta)
    raw = (gradient * 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda raw: initial_point(x, raw, epsilon=EPSILON), raw)
    assert torch.autograd.gradcheck(lambda raw: initial_point(x, raw, epsilon=EPSILON)[0], raw)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_derivatives_in_the_dtype_of_the_input(dtype: torch.dtype) -> None:
    x, _, gradient = drawn()
    raw = gradient.to(dtype).requires_grad_()
    eta, start = initial_point(x, raw, epsilon=EPSILON)
    (eta.sum() + 2 * start.sum()).backward()
    assert raw.grad is not None
    assert raw.grad.dtype == dtype
    assert torch.allclose(raw.grad.float(), 3 * 8 / 255 * (1 - raw.detach().float().tanh() ** 2), atol=2e-4)
    assert eta.dtype == start.dtype == torch.float32


def test_no_gradient_reaches_the_images_or_the_gradient() -> None:
    x, eta, gradient = drawn()
    gradient, image = gradient.requires_grad_(), to_float(x).requires_grad_()
    bounds = pixel_bounds(EPSILON, box=True)
    x_adv, delta = signed_step(image, eta, gradient, alpha=EPSILON, bounds=bounds)
    seen = generator_input(image, gradient)
    assert not any(t.requires_grad for t in (x_adv, delta, seen))
    x_adv, delta = signed_step(image, eta.requires_grad_(), gradient, alpha=EPSILON, bounds=bounds)
    (x_adv.sum() + delta.sum()).backward()
    assert image.grad is None
    assert gradient.grad is None
    assert eta.grad is not None
    assert set(eta.grad.unique().tolist()) == {0.0, 2.0}


BOUNDS, KEY, INDEX = pixel_bounds(EPSILON, box=True), random_key(3), torch.arange(3)
CALLS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Any]] = {
    "to_float": lambda x, eta, gradient, flag: to_float(x),
    "generator_input": lambda x, eta, gradient, flag: generator_input(x, gradient, channels=8, flag=flag),
    "initial_point": lambda x, eta, gradient, flag: initial_point(x, gradient, epsilon=EPSILON, flag=flag),
    "signed_step": lambda x, eta, gradient, flag: signed_step(
        x, eta, gradient, alpha=EPSILON, bounds=BOUNDS, flag=flag
    ),
    "project": lambda x, eta, gradient, flag: project(x, eta, bounds=BOUNDS, flag=flag),
    "random_start": lambda x, eta, gradient, flag: random_start(x, INDEX, key=KEY, radius=EPSILON),
    "augment": lambda x, eta, gradient, flag: augment(
        x.permute(0, 2, 3, 1).contiguous(), INDEX[:2], key=KEY, padding=2, flip=True
    ),
    "augment, gathered": lambda x, eta, gradient, flag: augment(
        x.permute(0, 2, 3, 1).contiguous(), INDEX + 2**31, key=KEY, padding=2, flip=True, gathered=True
    ),
}


def outcome(call: Callable[..., Any], *, differentiate: bool) -> list[Tensor]:
    """Results, strides, the flag and the gradient of one call on fixed inputs with a NaN."""
    x, eta, gradient = drawn()
    gradient[0, 0, 0, 0] = torch.nan
    raised = flag()
    given = (x, eta.requires_grad_(), gradient.requires_grad_()) if differentiate else (x, eta, gradient)
    results = call(*given, raised)
    results = list(results) if isinstance(results, tuple) else [results]
    found = [*(t.detach() for t in results), *(torch.tensor(t.stride()) for t in results), raised]
    if differentiate:
        sum(t.nan_to_num().sum() for t in results).backward()
        found += [t.grad for t in (eta, gradient) if t.grad is not None]
    return found


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
@pytest.mark.parametrize("name", list(CALLS))
def test_compiled_is_eager_to_the_bit(name: str, backend: str) -> None:
    torch._dynamo.reset()
    differentiate = name in ("initial_point", "signed_step", "project")
    compiled = torch.compile(CALLS[name], backend=backend, fullgraph=True, dynamic=False)
    for found, wanted in zip(
        outcome(compiled, differentiate=differentiate), outcome(CALLS[name], differentiate=differentiate), strict=True
    ):
        assert same_bits(found, wanted)


def test_operators_refuse_what_they_cannot_index() -> None:
    """On a GPU the operators themselves check what the public functions have put right."""
    x, eta, gradient = drawn()
    require_alike(x, eta=eta, gradient=gradient, missing=None)
    with pytest.raises(ValueError, match="gradient has strides"):
        require_alike(x, eta=eta, gradient=gradient.contiguous())
    with pytest.raises(ValueError, match="x has strides"):
        require_alike(x.transpose(2, 3))
    turned, bounds = x.transpose(2, 3), pixel_bounds(EPSILON, box=True)
    start, index, key = eta.transpose(2, 3), torch.arange(3), random_key(0)
    images = x.permute(0, 2, 3, 1).contiguous()
    step = (0.03, True, bounds.table, 0.03, True, torch.float32, None, True, True)
    for refused in (
        lambda: run_to_float(turned, torch.float32),
        lambda: run_generator_input(turned, gradient, True, True, 8, torch.float32, None),
        lambda: run_generator_input(x, start, True, True, 8, torch.float32, None),
        lambda: run_initial_point(turned, start, 0.03, torch.float32, None),
        lambda: run_signed_step(x, start, gradient, *step),
        lambda: run_masked(torch.zeros(1, dtype=torch.uint8), gradient),
        lambda: run_masked(torch.zeros(999, dtype=torch.uint8), start),
        lambda: run_random_start(turned, index, key, 0.03, 3, torch.float32),
        lambda: run_augment(x.permute(0, 2, 3, 1)[:, :, ::2], index, key, 0, False, False, 3, torch.uint8),
        lambda: run_augment(images, torch.arange(4), key, 0, False, False, 3, torch.uint8, gathered=True),
        lambda: run_signed_step(x, eta, gradient, 0.03, False, None, 0.0, False, torch.float32, None, True, True),
        lambda: OPS.signed_step(x, eta, gradient, 0.03, False, None, 0.0, False, torch.float32, None, True, True),
    ):
        with pytest.raises(ValueError, match=r"strides|bit for each|without one|one for each"):
            refused()


def test_the_flag_is_raised_and_stays() -> None:
    x, eta, gradient = drawn()
    raised, bounds = flag(), pixel_bounds(EPSILON, box=True)
    signed_step(x, eta, gradient, alpha=EPSILON, bounds=bounds, flag=raised)
    assert raised.item() == 0
    gradient[1, 1, 1, 1] = torch.inf
    signed_step(x, eta, gradient, alpha=EPSILON, bounds=bounds, flag=raised)
    assert raised.item() == 1
    gradient[1, 1, 1, 1] = 0
    signed_step(x, eta, gradient, alpha=EPSILON, bounds=bounds, flag=raised)
    assert raised.item() == 1  # never lowered


def test_n_fgsm_has_a_box_and_no_ball() -> None:
    x, eta, gradient = drawn()
    x_adv, _ = signed_step(x, eta * 20, gradient, alpha=EPSILON, bounds=pixel_bounds(Fraction(1), box=True))
    assert x_adv.min() == 0
    assert x_adv.max() == 1
    assert ((x_adv - to_float(x)).abs() > 8 / 255).any()
    wanted = (to_float(x) + (eta * 20 + float(EPSILON) * gradient.sign())).clamp(0, 1)
    assert torch.equal(x_adv, wanted)
