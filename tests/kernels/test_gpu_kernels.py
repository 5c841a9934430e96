"""The compiled kernels on a GPU against the CPU references: to the bit, bfloat16 included. `make test-gpu`."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor

from hardfast.bench.kernel_cases import CASES, Shape
from hardfast.kernels import (
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

from .guarded import same_bits

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the compiled kernels need `make test-gpu`"),
]
FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16
LAST, CONTIGUOUS = torch.channels_last, torch.contiguous_format
SHAPES = [(128, 3, 32, 32), (5, 3, 7, 9), (3, 1, 17, 5), (2, 4, 64, 64)]
EPSILON = Fraction(8, 255)
SPECIAL = torch.tensor([0.0, -0.0, 1e-45, -6e-8, torch.inf, -torch.inf, torch.nan])


def drawn(shape: tuple[int, ...], dtype: torch.dtype, memory: torch.memory_format, seed: int) -> Tensor:
    """Normal draws, every tenth of them special."""
    draw = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=draw)
    special = SPECIAL[torch.randint(0, len(SPECIAL), shape, generator=draw)]
    mixed = torch.where(torch.rand(shape, generator=draw) < 0.1, special, values)
    return mixed.to(dtype).contiguous(memory_format=memory)


def calls(shape: tuple[int, ...], dtype: torch.dtype, memory: torch.memory_format) -> dict[str, Callable[[str], Any]]:
    """Each operation on one problem, by device; every call ends with the flag."""
    x = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    x = x.contiguous(memory_format=memory)
    gradient, eta = drawn(shape, dtype, memory, 1), drawn(shape, FP32, memory, 2) * (8 / 255)
    index, key = torch.arange(len(x)).flip(0) + 7, random_key(2**63 + 1, epoch=3, step=5)
    images = x.permute(0, 2, 3, 1).contiguous()

    def step(device: str, x: Tensor, **options: Any) -> Any:
        flag = torch.zeros(1, dtype=torch.int32, device=device)
        bounds = pixel_bounds(EPSILON, box=options.pop("box", True), device=device)
        given = (t.to(device) for t in (x, eta, gradient))
        return *signed_step(*given, alpha=Fraction(6, 255), bounds=bounds, flag=flag, **options), flag

    def seen(device: str, **options: Any) -> Any:
        flag = torch.zeros(1, dtype=torch.int32, device=device)
        return generator_input(x.to(device), gradient.to(device), flag=flag, **options), flag

    def point(device: str) -> Any:
        flag = torch.zeros(1, dtype=torch.int32, device=device)
        return *initial_point(x.to(device), gradient.to(device), epsilon=EPSILON, flag=flag), flag

    def cut(device: str, mode: Any, out: torch.dtype, samples: Tensor, gathered: bool = False) -> Any:
        options = {"padding": 2, "mode": mode, "flip": True, "channels": 4, "dtype": out, "gathered": gathered}
        return augment(images.to(device), samples.to(device), key=key.to(device), **options)

    reverse = torch.arange(len(x)).flip(0)

    return {
        "to_float": lambda device: to_float(x.to(device), dtype),
        "generator_input": lambda device: seen(device),
        "generator_input, 8 channels": lambda device: seen(device, channels=8),
        "initial_point": point,
        "signed_step": lambda device: step(device, x),
        "signed_step, no box": lambda device: step(device, x, box=False),
        "signed_step, float pixels": lambda device: step(device, to_float(x)),
        "signed_step, narrow": lambda device: step(device, x, x_adv_dtype=dtype),
        "project": lambda device: project(
            x.to(device), eta.to(device), bounds=pixel_bounds(EPSILON, box=True, device=device)
        ),
        "random_start": lambda device: random_start(
            x.to(device), index.to(device), key=key.to(device), radius=EPSILON, dtype=dtype
        ),
        "augment, zeros": lambda device: cut(device, "zeros", dtype, reverse),
        "augment, reflect": lambda device: cut(device, "reflect", torch.uint8, reverse),
        "augment, gathered": lambda device: cut(device, "zeros", torch.uint8, 2**32 - 1 - reverse, gathered=True),
    }


@pytest.mark.parametrize("memory", [LAST, CONTIGUOUS], ids=["channels-last", "contiguous"])
@pytest.mark.parametrize("dtype", [FP32, FP16, BF16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", list(calls(SHAPES[1], FP32, LAST)))
def test_bit_equal_to_the_cpu(
    name: str, shape: tuple[int, ...], dtype: torch.dtype, memory: torch.memory_format
) -> None:
    call = calls(shape, dtype, memory)[name]
    for found, wanted in zip(_tensors(call("cuda")), _tensors(call("cpu")), strict=True):
        assert found.stride() == wanted.stride()
        assert same_bits(found.cpu(), wanted)


def _tensors(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def test_the_derivative_of_a_clipped_step() -> None:
    gradients = []
    for device in ("cpu", "cuda"):
        x = torch.randint(0, 256, SHAPES[0], dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).to(device)
        eta = (torch.randn(SHAPES[0], generator=torch.Generator().manual_seed(1)) * 0.03).to(device).requires_grad_()
        gradient = torch.randn(SHAPES[0], generator=torch.Generator().manual_seed(2)).to(device)
        bounds = pixel_bounds(EPSILON, box=True, device=device)
        x_adv, delta = signed_step(x, eta, gradient, alpha=EPSILON, bounds=bounds)
        (x_adv * gradient + delta).sum().backward()
        assert eta.grad is not None
        gradients.append(eta.grad.cpu())
    assert same_bits(*gradients)


def test_a_replayed_graph_draws_fresh_noise() -> None:
    """The key is read from device memory, so writing it anew is all a captured step needs."""
    x = torch.zeros(SHAPES[0], dtype=torch.uint8, device="cuda")
    index, key = torch.arange(len(x), device="cuda"), random_key(1, epoch=0, device="cuda")
    random_start(x, index, key=key, radius=EPSILON)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        noise = random_start(x, index, key=key, radius=EPSILON)
    for epoch in range(3):
        key[1].fill_(epoch)
        graph.replay()
        wanted = random_start(x.cpu(), index.cpu(), key=random_key(1, epoch=epoch), radius=EPSILON)
        assert same_bits(noise.cpu(), wanted)


def test_warps_change_nothing() -> None:
    for case in CASES:
        if case.kernel in ("initial_point", "signed_step", "generator_input", "augment", "random_start"):
            results = []
            for warps in (1, 4, 8):
                launch = replace(case.build(Shape(5, 7), torch.device("cuda"), 0).launch, warps=warps)
                launch.run()
                out = next(launch.arguments[n] for n in ("x_adv_ptr", "eta_ptr", "out_ptr") if n in launch.arguments)
                results.append(out)
            assert all(same_bits(results[0].cpu(), other.cpu()) for other in results[1:]), case.name


@pytest.mark.parametrize("mode", ["captured", "inductor"])
def test_a_chain_captured_or_compiled(mode: str) -> None:
    """An SDI step without its nets, with the flag, in the two ways that the engine will run it."""
    x = torch.randint(0, 256, SHAPES[0], dtype=torch.uint8, device="cuda").contiguous(memory_format=LAST)
    gradient = torch.randn(SHAPES[0], device="cuda").contiguous(memory_format=LAST)
    flag, bounds = torch.zeros(1, dtype=torch.int32, device="cuda"), pixel_bounds(EPSILON, box=True, device="cuda")

    def chain() -> Tensor:
        seen = generator_input(x, gradient, channels=8, flag=flag)
        eta, start = initial_point(x, seen[:, 3:6].contiguous(memory_format=LAST) * 0.3, epsilon=EPSILON, flag=flag)
        return signed_step(x, eta, gradient + start, alpha=EPSILON, bounds=bounds, flag=flag, keep_delta=False)

    wanted = chain()
    if mode == "captured":
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = chain()
        graph.replay()
    else:
        found = torch.compile(chain, fullgraph=True, dynamic=False)()
    assert same_bits(found.cpu(), wanted.cpu())
    assert flag.item() == 0
    if mode == "captured":
        gradient[0, 0, 0, 0] = torch.nan
        graph.replay()
        assert flag.item() == 1
        assert found[0, 0, 0, 0].isnan()


def test_more_than_2_to_31_elements() -> None:
    """A whole launch, not only its last programs; 40 GB of memory."""
    if torch.cuda.mem_get_info()[0] < 44 * 2**30:
        pytest.skip("needs 44 GB of free GPU memory")
    shape = (2**31 // (3 * 32 * 32) + 100, 3, 32, 32)
    x = torch.randint(0, 256, shape, dtype=torch.uint8, device="cuda")
    eta = torch.full(shape, 0.01, device="cuda")
    gradient = torch.randn(shape, dtype=FP16, device="cuda")
    bounds = pixel_bounds(EPSILON, box=True, device="cuda")
    x_adv = signed_step(x, eta, gradient, alpha=EPSILON, bounds=bounds, keep_delta=False)
    for part in (slice(0, 50), slice(-50, None)):
        given = (t[part].cpu() for t in (x, eta, gradient))
        wanted = signed_step(*given, alpha=EPSILON, bounds=pixel_bounds(EPSILON, box=True), keep_delta=False)
        assert same_bits(x_adv[part].cpu(), wanted)
