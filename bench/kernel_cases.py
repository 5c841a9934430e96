"""Every kernel in the variants that the engine launches, beside what a user would write without it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels import (
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
from ..kernels.crop import Padding, launch_augment
from ..kernels.initial import launch_initial_point
from ..kernels.launch import Launch
from ..kernels.noise import launch_random_start
from ..kernels.perturb import launch_masked, launch_signed_step
from ..kernels.pixels import launch_generator_input, launch_to_float
from ..kernels.reference import pack

EPSILON = Fraction(8, 255)


class Shape(NamedTuple):
    """Of a batch of square images."""

    batch: int
    size: int
    channels: int = 3

    @property
    def elements(self) -> int:
        """Pixels times channels of the whole batch."""
        return self.batch * self.size * self.size * self.channels


@dataclass(frozen=True, slots=True)
class Problem:
    """One case on one set of inputs.

    Attributes:
        launch: the kernel's launch, into memory that is already there.
        op: the public operation, which allocates its results.
        usual: the same in plain PyTorch, as published code has it: to be called with `inputs`, eagerly or compiled. It
            is not exact: its ball is the usual clamp, its noise torch's own.
        inputs: tensors of `usual`.
    """

    launch: Launch
    op: Callable[[], Any]
    usual: Callable[..., Any]
    inputs: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class Case:
    """A kernel in one variant; `build(shape, device, seed)` makes inputs for it.

    Attributes:
        kernel: name of the operation.
        variant: what sets it apart from the kernel's other cases.
        precision: of the net around it, which is that of gradients and of the generator's tensors.
        build: makes one problem.
    """

    kernel: str
    variant: str
    precision: str
    build: Callable[[Shape, torch.device, int], Problem]

    @property
    def name(self) -> str:
        """Like `signed_step: fp32, x_adv and delta`."""
        return f"{self.kernel}: {self.variant}"


class _Inputs:
    """Random inputs of one batch, in channels-last memory format."""

    def __init__(self, shape: Shape, device: torch.device, seed: int) -> None:
        self.draw = torch.Generator(device).manual_seed(seed)
        self.shape, self.device = shape, device
        self.x = self.bytes().permute(0, 3, 1, 2)
        self.index = torch.arange(shape.batch, device=device)
        self.key = random_key(seed, device=device)
        self.flag = torch.zeros(1, dtype=torch.int32, device=device)
        self.bounds = pixel_bounds(EPSILON, box=True, device=device)

    def bytes(self) -> Tensor:
        n, size, channels = self.shape
        return torch.randint(
            0, 256, (n, size, size, channels), dtype=torch.uint8, device=self.device, generator=self.draw
        )

    def floats(self, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
        n, size, channels = self.shape
        draws = torch.randn(n, size, size, channels, device=self.device, generator=self.draw) * scale
        return draws.to(dtype).permute(0, 3, 1, 2)

    def empty(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty_like(self.x, dtype=dtype)

    def bits(self) -> Tensor:
        """Memory for the packed clip mask."""
        return torch.zeros((self.x.numel() + 7) // 8, dtype=torch.uint8, device=self.device)


def _to_float(dtype: torch.dtype) -> Callable[[Shape, torch.device, int], Problem]:
    def build(shape: Shape, device: torch.device, seed: int) -> Problem:
        made = _Inputs(shape, device, seed)
        return Problem(
            launch_to_float(made.x, made.empty(dtype)),
            lambda: to_float(made.x, dtype),
            lambda x: x.to(dtype) / 255,
            (made.x,),
        )

    return build


def _generator_input(
    gradient_dtype: torch.dtype, dtype: torch.dtype, channels: int, contiguous: bool = False
) -> Callable[[Shape, torch.device, int], Problem]:
    def build(shape: Shape, device: torch.device, seed: int) -> Problem:
        made = _Inputs(shape, device, seed)
        x, gradient = made.x, made.floats(dtype=gradient_dtype)
        if contiguous:
            x, gradient = x.contiguous(), gradient.contiguous()
        out = torch.empty(shape.batch, shape.size, shape.size, channels, dtype=dtype, device=device)
        launch = launch_generator_input(x, gradient, out.permute(0, 3, 1, 2), made.flag, benign=True, signs=True)

        def usual(x: Tensor, gradient: Tensor) -> Tensor:
            seen = torch.cat([x.to(dtype) / 255, gradient.sign().to(dtype)], dim=1)
            padded = F.pad(seen, (0, 0, 0, 0, 0, channels - seen.shape[1]))
            return padded.contiguous(memory_format=torch.channels_last)

        def op() -> Tensor:
            return generator_input(x, gradient, channels=channels, dtype=dtype, flag=made.flag)

        return Problem(launch, op, usual, (x, gradient))

    return build


def _initial_point(generated_dtype: torch.dtype) -> Callable[[Shape, torch.device, int], Problem]:
    def build(shape: Shape, device: torch.device, seed: int) -> Problem:
        made = _Inputs(shape, device, seed)
        generated = made.floats(dtype=generated_dtype)

        def usual(x: Tensor, generated: Tensor) -> tuple[Tensor, Tensor]:
            eta = float(EPSILON) * torch.tanh(generated.float())
            return eta, x.float() / 255 + eta

        return Problem(
            launch_initial_point(made.x, generated, made.empty(), made.empty(), made.flag, epsilon=float(EPSILON)),
            lambda: initial_point(made.x, generated, epsilon=EPSILON, flag=made.flag),
            usual,
            (made.x, generated),
        )

    return build


def _signed_step(
    gradient_dtype: torch.dtype | None = torch.float32,
    *,
    float_pixels: bool = False,
    delta: bool = False,
    inside: bool = False,
    ball: bool = True,
    x_adv_dtype: torch.dtype = torch.float32,
) -> Callable[[Shape, torch.device, int], Problem]:
    def build(shape: Shape, device: torch.device, seed: int) -> Problem:
        made = _Inputs(shape, device, seed)
        x = to_float(made.x) if float_pixels else made.x
        eta = made.floats(scale=float(EPSILON))
        gradient = None if gradient_dtype is None else made.floats(dtype=gradient_dtype)
        launch = launch_signed_step(
            x,
            eta,
            gradient,
            made.empty(x_adv_dtype),
            made.empty() if delta else None,
            made.bits() if inside else None,
            made.flag,
            alpha=float(EPSILON),
            ball=ball,
            table=None if float_pixels or not ball else made.bounds.table,
            radius=made.bounds.radius,
            box=True,
        )

        def usual(x: Tensor, eta: Tensor, *gradients: Tensor) -> Any:
            epsilon = float(EPSILON)
            pixel = x if float_pixels else x.float() / 255
            for given in gradients:
                eta = eta + epsilon * given.sign()
            step = torch.clamp(eta, -epsilon, epsilon) if ball else eta
            x_adv = torch.clamp(pixel + step, 0, 1) if ball else pixel + step
            results = (x_adv.to(x_adv_dtype), *((x_adv - pixel,) if delta else ()))
            return (*results, eta.abs() < epsilon) if inside else results

        def op() -> Any:
            if gradient is None:
                return project(x, eta, bounds=made.bounds, flag=made.flag)
            step = partial(signed_step, alpha=EPSILON, bounds=made.bounds if ball else None, x_adv_dtype=x_adv_dtype)
            return step(x, eta.detach().requires_grad_(inside), gradient, flag=made.flag, keep_delta=delta)

        return Problem(launch, op, usual, (x, eta) if gradient is None else (x, eta, gradient))

    return build


def _masked(shape: Shape, device: torch.device, seed: int) -> Problem:
    made = _Inputs(shape, device, seed)
    gradient, inside = made.floats(), made.bytes().permute(0, 3, 1, 2) > 127
    bits = pack(inside)
    launch = launch_masked(bits, gradient, made.empty())
    return Problem(
        launch, lambda: torch.ops.hardfast.masked(bits, gradient), lambda m, g: torch.where(m, g, 0), (inside, gradient)
    )


def _random_start(contiguous: bool) -> Callable[[Shape, torch.device, int], Problem]:
    def build(shape: Shape, device: torch.device, seed: int) -> Problem:
        made = _Inputs(shape, device, seed)
        x = made.x.contiguous() if contiguous else made.x
        out, radius = torch.empty_like(x, dtype=torch.float32), float(EPSILON)
        return Problem(
            launch_random_start(out, made.index, made.key, radius=radius, purpose=Purpose.START),
            lambda: random_start(x, made.index, key=made.key, radius=EPSILON),
            lambda x: torch.empty_like(x, dtype=torch.float32).uniform_(-radius, radius),
            (x,),
        )

    return build


def _augment(dtype: torch.dtype, channels: int, reflect: bool = False) -> Callable[[Shape, torch.device, int], Problem]:
    def build(shape: Shape, device: torch.device, seed: int) -> Problem:
        made = _Inputs(shape, device, seed)
        images, padding, n, size = made.bytes(), max(shape.size // 8, 1), shape.batch, shape.size
        index = torch.randperm(n, device=device, generator=made.draw)
        out = torch.empty(n, size, size, channels, dtype=dtype, device=device)
        mode: Padding = "reflect" if reflect else "zeros"

        def usual(images: Tensor, index: Tensor) -> Tensor:
            picked = images[index].permute(0, 3, 1, 2).float()
            frame = F.pad(picked, (padding,) * 4, mode="reflect" if reflect else "constant")
            top, left = torch.randint(0, 2 * padding + 1, (2, n, 1), device=images.device)
            along = torch.arange(size, device=images.device)
            flip = torch.rand(n, 1, device=images.device) < 0.5
            columns = left + torch.where(flip, size - 1 - along, along)
            cut = frame.gather(2, (top + along)[:, None, :, None].expand(-1, frame.shape[1], -1, frame.shape[3]))
            cut = cut.gather(3, columns[:, None, None, :].expand(-1, frame.shape[1], size, -1))
            result = cut if dtype == torch.uint8 else cut / 255
            return F.pad(result, (0, 0, 0, 0, 0, channels - result.shape[1])).permute(0, 2, 3, 1).to(dtype).contiguous()

        return Problem(
            launch_augment(images, index, made.key, out, padding=padding, reflect=reflect, flip=True),
            lambda: augment(
                images, index, key=made.key, padding=padding, mode=mode, flip=True, channels=channels, dtype=dtype
            ),
            usual,
            (images, index),
        )

    return build


FP32, FP16, BF16, U8 = torch.float32, torch.float16, torch.bfloat16, torch.uint8
CASES: tuple[Case, ...] = (
    Case("to_float", "fp32", "fp32", _to_float(FP32)),
    Case("to_float", "bf16", "bf16", _to_float(BF16)),
    Case("generator_input", "fp32 to 6 channels", "fp32", _generator_input(FP32, FP32, 6)),
    Case("generator_input", "fp32 to 8 channels", "fp32", _generator_input(FP32, FP32, 8)),
    Case("generator_input", "bf16 to 8 channels", "bf16", _generator_input(BF16, BF16, 8)),
    Case("generator_input", "fp16 to 8 channels", "fp16", _generator_input(FP16, FP16, 8)),
    Case("generator_input", "fp32 to 8 of bf16, NCHW inputs", "bf16", _generator_input(FP32, BF16, 8, contiguous=True)),
    Case("initial_point", "fp32", "fp32", _initial_point(FP32)),
    Case("initial_point", "fp16", "fp16", _initial_point(FP16)),
    Case("initial_point", "bf16", "bf16", _initial_point(BF16)),
    Case("signed_step", "fp32, x_adv", "fp32", _signed_step()),
    Case("signed_step", "fp32, x_adv and delta", "fp32", _signed_step(delta=True)),
    Case("signed_step", "fp32, x_adv and clip mask", "fp32", _signed_step(inside=True)),
    Case("signed_step", "fp16, x_adv", "fp16", _signed_step(FP16)),
    Case("signed_step", "bf16, x_adv", "bf16", _signed_step(BF16)),
    Case("signed_step", "bf16, x_adv in bf16", "bf16", _signed_step(BF16, x_adv_dtype=BF16)),
    Case("signed_step", "fp32, no ball, x_adv and delta", "fp32", _signed_step(ball=False, delta=True)),
    Case("signed_step", "fp32 pixels, x_adv and delta", "fp32", _signed_step(float_pixels=True, delta=True)),
    Case("signed_step", "projection, x_adv and delta", "fp32", _signed_step(None, delta=True)),
    Case("masked", "fp32", "fp32", _masked),
    Case("random_start", "channels-last", "fp32", _random_start(contiguous=False)),
    Case("random_start", "contiguous", "fp32", _random_start(contiguous=True)),
    Case("augment", "bytes, zeros", "uint8", _augment(U8, 3)),
    Case("augment", "bytes, reflect", "uint8", _augment(U8, 3, reflect=True)),
    Case("augment", "fp32, zeros", "fp32", _augment(FP32, 3)),
    Case("augment", "bf16 in 4 channels, zeros", "bf16", _augment(BF16, 4)),
)
