"""Every Triton kernel, run by Triton's interpreter on random problems: bit-equal to its reference, within its buffers.

bfloat16 is left to `make test-gpu`: the interpreter truncates where hardware rounds.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from hardfast.kernels import Purpose, pixel_bounds, random_key, reference
from hardfast.kernels.crop import launch_augment
from hardfast.kernels.initial import launch_initial_point
from hardfast.kernels.launch import Launch
from hardfast.kernels.noise import launch_random_start
from hardfast.kernels.perturb import launch_masked, launch_signed_step
from hardfast.kernels.pixels import launch_generator_input, launch_to_float

from .guarded import guards, run_programs, same_bits

pytest.importorskip("hypothesis")
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("HARDFAST_EXAMPLES", "300"))
"""Hypothesis examples per kernel; `make test-night` asks for 10,000."""
SHRINKS = os.environ.get("HARDFAST_SHRINK", "1") == "1"
"""Whether a failing example is made smaller before it is shown: a mutant's killer need not be."""
many = settings(max_examples=EXAMPLES, deadline=None, phases=[p for p in Phase if SHRINKS or p.name == "generate"])
LAST, CONTIGUOUS = torch.channels_last, torch.contiguous_format
SPECIAL = [0.0, -0.0, 1e-45, -1e-45, 6e-8, -1e-38, 1e-4, -1.0, 9.01, -30.0, 3e38, torch.inf, -torch.inf, torch.nan]
FLOATS = [torch.float32, torch.float16]


@dataclass(frozen=True)
class Draw:
    """A random problem; everything else follows from the seed."""

    seed: int
    shape: tuple[int, int, int, int]
    memory: torch.memory_format
    special: bool

    @property
    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)

    def bytes(self) -> Tensor:
        pixels = torch.randint(0, 256, self.shape, dtype=torch.uint8, generator=self.generator)
        return pixels.contiguous(memory_format=self.memory)

    def pixels(self, float_pixels: bool) -> Tensor:
        """Bytes, or floats in [0, 1] that are no bytes."""
        if not float_pixels:
            return self.bytes()
        draws = torch.rand(self.shape, generator=self.generator).mul(1.2).sub(0.1).clamp(0, 1)
        return draws.contiguous(memory_format=self.memory)

    def floats(self, salt: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
        """Normal draws; where `special`, a third of them are zeros, subnormals, infinities and NaN."""
        draw = torch.Generator().manual_seed(self.seed + salt)
        values = torch.randn(self.shape, generator=draw) * scale
        if self.special:
            chosen = torch.tensor(SPECIAL)[torch.randint(0, len(SPECIAL), self.shape, generator=draw)]
            values = torch.where(torch.rand(self.shape, generator=draw) < 1 / 3, chosen, values)
        if self.special and dtype == torch.float64:  # finite, and no float32
            values = torch.where(torch.rand(self.shape, generator=draw) < 0.1, 1e300, values.double())
        return values.to(dtype).contiguous(memory_format=self.memory)


side = st.sampled_from([1, 2, 3, 5, 7, 8, 16, 17])
draws = st.builds(
    Draw,
    seed=st.integers(0, 2**31),
    shape=st.tuples(st.integers(1, 5), st.integers(1, 4), side, side),
    memory=st.sampled_from([LAST, CONTIGUOUS]),
    special=st.booleans(),
)
blocks = st.sampled_from([256, 1024, 4096])
radii = st.sampled_from([Fraction(n, 255) for n in (0, 1, 2, 8, 48, 255)] + [Fraction(3, 510), Fraction(1, 10**6)])


def flags() -> tuple[Tensor, Tensor]:
    return torch.zeros(1, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)


@many
@given(draws, st.sampled_from(FLOATS), blocks)
def test_to_float(draw: Draw, dtype: torch.dtype, block: int) -> None:
    with guards() as guard:
        x = guard.holding(draw.bytes())
        out = guard.like(x, dtype)
        launch_to_float(x, out, block).run()
    assert same_bits(out, reference.to_float(x, dtype))


@many
@given(
    draws,
    st.sampled_from([LAST, CONTIGUOUS]),
    st.sampled_from([*FLOATS, torch.float64]),
    st.sampled_from(FLOATS),
    st.sampled_from([(True, True), (True, False), (False, True)]),
    st.integers(0, 3),
    st.booleans(),
    blocks,
)
def test_generator_input(
    draw: Draw,
    memory: torch.memory_format,
    gradient_dtype: torch.dtype,
    dtype: torch.dtype,
    inputs: tuple[bool, bool],
    more: int,
    float_pixels: bool,
    block: int,
) -> None:
    benign, signs = inputs
    n, c, h, w = draw.shape
    channels = c * sum(inputs) + more
    flag, wanted_flag = flags()
    with guards() as guard:
        x = guard.holding(draw.pixels(float_pixels))
        gradient = guard.holding(draw.floats(1, gradient_dtype).contiguous(memory_format=memory))
        out = guard.like(torch.empty(n, h, w, channels, dtype=dtype)).permute(0, 3, 1, 2)
        launch_generator_input(x, gradient, out, guard_flag := guard.holding(flag), benign=benign, signs=signs).run()
        again = guard.like(out)
        launch_generator_input(x, gradient, again, None, benign=benign, signs=signs, block=block).run()
    assert same_bits(out, reference.generator_input(x, gradient, benign, signs, channels, dtype, wanted_flag))
    assert same_bits(again, out)
    assert torch.equal(guard_flag, wanted_flag)
    assert wanted_flag.item() == (signs and not gradient.isfinite().all())


@many
@given(draws, st.sampled_from(FLOATS), st.sampled_from(FLOATS), radii, st.booleans(), blocks)
def test_initial_point(
    draw: Draw, dtype: torch.dtype, start_dtype: torch.dtype, epsilon: Fraction, float_pixels: bool, block: int
) -> None:
    flag, wanted_flag = flags()
    with guards() as guard:
        x, flag = guard.holding(draw.pixels(float_pixels)), guard.holding(flag)
        generated = guard.holding(draw.floats(1, dtype, scale=3))
        eta, start = guard.like(x, torch.float32), guard.like(x, start_dtype)
        launch_initial_point(x, generated, eta, start, flag, epsilon=float(epsilon), block=block).run()
    wanted_eta, wanted_start = reference.initial_point(x, generated, float(epsilon), start_dtype, wanted_flag)
    assert same_bits(eta, wanted_eta)
    assert same_bits(start, wanted_start)
    assert torch.equal(flag, wanted_flag)
    assert torch.equal(eta.isnan(), generated.isnan())
    there = eta[~eta.isnan()]
    assert (there.abs() <= torch.tensor(float(epsilon))).all()


@dataclass(frozen=True)
class Step:
    """A signed step with everything that changes its kernel."""

    draw: Draw
    epsilon: Fraction
    alpha: Fraction
    box: bool
    ball: bool
    float_pixels: bool
    gradient_dtype: torch.dtype | None
    x_adv_dtype: torch.dtype
    keep_delta: bool
    keep_inside: bool

    def tensors(self) -> tuple[Tensor, Tensor, Tensor | None]:
        gradient = None if self.gradient_dtype is None else self.draw.floats(2, self.gradient_dtype)
        eta = self.draw.floats(1, scale=float(self.epsilon))
        return self.draw.pixels(self.float_pixels), eta, gradient

    def by_reference(self, x: Tensor, eta: Tensor, gradient: Tensor | None, flag: Tensor) -> tuple[Tensor, ...]:
        bounds = pixel_bounds(self.epsilon, box=self.box)
        table = None if self.float_pixels else bounds.table
        rest = self.x_adv_dtype, flag, self.keep_delta, self.keep_inside and self.ball
        return reference.signed_step(
            x, eta, gradient, float(self.alpha), self.ball, table, bounds.radius, self.box, *rest
        )

    def by_kernel(
        self, x: Tensor, eta: Tensor, gradient: Tensor | None, flag: Tensor | None, block: int
    ) -> tuple[Tensor, ...]:
        """(x_adv, delta, packed), empty where they are not asked for; all buffers between guards."""
        bounds = pixel_bounds(self.epsilon, box=self.box)
        with guards() as guard:
            x, eta = guard.holding(x), guard.holding(eta)
            gradient = None if gradient is None else guard.holding(gradient)
            table = None if self.float_pixels else guard.holding(bounds.table)
            x_adv, delta = guard.like(x, self.x_adv_dtype), guard.like(x, torch.float32)
            inside = guard.like(torch.empty((x.numel() + 7) // 8, dtype=torch.uint8))
            keep_inside = self.keep_inside and self.ball
            launch_signed_step(
                x,
                eta,
                gradient,
                x_adv,
                delta if self.keep_delta else None,
                inside if keep_inside else None,
                flag,
                alpha=float(self.alpha),
                ball=self.ball,
                table=table,
                radius=bounds.radius,
                box=self.box,
                block=block,
            ).run()
        return x_adv, delta if self.keep_delta else delta.new_empty(0), inside if keep_inside else inside[:0]


steps = st.builds(
    Step,
    draw=draws,
    epsilon=radii,
    alpha=radii,
    box=st.booleans(),
    ball=st.sampled_from([True, True, True, False]),
    float_pixels=st.booleans(),
    gradient_dtype=st.sampled_from([torch.float32, torch.float16, torch.float64, None]),
    x_adv_dtype=st.sampled_from([torch.float32, torch.float32, torch.float16]),
    keep_delta=st.booleans(),
    keep_inside=st.booleans(),
)


@many
@given(steps, blocks)
def test_signed_step(step: Step, block: int) -> None:
    tensors = step.tensors()
    flag, wanted_flag = flags()
    results = step.by_kernel(*tensors, flag, block)
    for found, wanted in zip(results, step.by_reference(*tensors, wanted_flag), strict=True):
        assert same_bits(found, wanted)
    assert torch.equal(flag, wanted_flag)
    _, eta, gradient = tensors
    sick = ~eta.isfinite() if gradient is None else ~(eta.isfinite() & gradient.isfinite())
    assert flag.item() == sick.any().item()
    nan = eta.isnan() if gradient is None else eta.isnan() | gradient.isnan()
    assert results[0].isnan()[nan].all()  # NaN in, NaN out
    assert same_bits(results[0], step.by_kernel(*tensors, None, 1024)[0])  # neither block nor flag changes a bit


@many
@given(steps, st.integers(-12, 12))
def test_properties_of_a_signed_step(step: Step, exponent: int) -> None:
    """What must hold whatever the reference says: ball and box in exact rationals, and the symmetries."""
    x, eta, gradient = step.tensors()
    x_adv, delta, _ = step.by_kernel(x, eta, gradient, None, 1024)
    pixel = x if step.float_pixels else x.float() / 255
    if step.ball and step.x_adv_dtype == torch.float32:
        there = ~x_adv.isnan()
        moved = (x_adv.double() - pixel.double()).abs()[there]
        if len(moved):
            assert Fraction(moved.max().item()) <= step.epsilon
        if step.box:
            assert ((x_adv >= 0) & (x_adv <= 1))[there].all()
        if not step.float_pixels and step.epsilon > 0:  # the clean pixel is the whole ball of radius 0
            k = x.double()[there]  # |x_adv - k/255| <= epsilon, times 255, without a rounding: x_adv has 24 bits
            grey = (x_adv.double()[there] * 255 - k).abs()
            if len(grey):
                assert Fraction(grey.max().item()) <= step.epsilon * 255
    if step.keep_delta and step.x_adv_dtype == torch.float32:
        assert same_bits(delta, x_adv - pixel)
    if gradient is not None and gradient.dtype == torch.float32:
        bounded = gradient.clamp(-1e30, 1e30)
        bounded = torch.where(bounded.abs() < 1e-30, torch.zeros(()), bounded)
        scaled = step.by_kernel(x, eta, bounded * 2.0**exponent, None, 1024)
        assert same_bits(scaled[0], step.by_kernel(x, eta, bounded, None, 1024)[0])
    for other in (LAST, CONTIGUOUS):
        turned = (None if t is None else t.contiguous(memory_format=other) for t in (x, eta, gradient))
        assert same_bits(step.by_kernel(*turned, None, 1024)[0], x_adv)
    if len(x) > 1:
        part = (None if t is None else t[1:].clone(memory_format=torch.preserve_format) for t in (x, eta, gradient))
        assert same_bits(step.by_kernel(*part, None, 1024)[0], x_adv[1:])
    swapped = (None if t is None else t.flip(1).contiguous(memory_format=step.draw.memory) for t in (x, eta, gradient))
    assert same_bits(step.by_kernel(*swapped, None, 1024)[0], x_adv.flip(1))


@many
@given(draws, radii, radii, st.booleans(), st.booleans())
def test_special_cases_are_the_published_attacks(
    draw: Draw, epsilon: Fraction, alpha: Fraction, box: bool, float_pixels: bool
) -> None:
    """The same kernel is FGSM at eta = 0, FGSM-RS at eta = noise, the identity at delta = 0 and at epsilon = 0."""

    def stepped(
        eta: Tensor, gradient: Tensor | None, radius: Fraction, size: Fraction
    ) -> tuple[Tensor, Tensor, Tensor]:
        plain = Step(draw, radius, size, box, True, float_pixels, None, torch.float32, True, False)
        x_adv, delta, _ = plain.by_kernel(x, eta, gradient, None, 1024)
        return x_adv, delta, plain.draw.pixels(float_pixels)

    x = draw.pixels(float_pixels)
    pixel = x if float_pixels else x.float() / 255
    gradient = torch.randn(draw.shape, generator=draw.generator).contiguous(memory_format=draw.memory)
    zero = torch.zeros_like(gradient)
    fgsm, _, _ = stepped(zero, gradient, epsilon, epsilon)
    widest, _, _ = stepped(zero, gradient, epsilon, Fraction(1))
    if not float_pixels:
        bounds = pixel_bounds(epsilon, box=box)
        assert same_bits(widest, torch.where(gradient > 0, bounds.upper[x.int()], bounds.lower[x.int()]))
    assert (
        (fgsm - widest).abs() <= 2**-23
    ).all()  # a step of exactly epsilon ends at the bound, or a rounding before it
    noise = reference.random_start(x, torch.arange(len(x)), random_key(draw.seed), float(epsilon), 3, torch.float32)
    rs, _, _ = stepped(noise, gradient, epsilon, alpha)
    free = pixel + (noise + float(alpha) * gradient.sign())
    inside = (rs != widest) & (rs != stepped(zero, -gradient, epsilon, Fraction(1))[0])
    assert same_bits(rs[inside], free[inside])
    assert same_bits(stepped(zero, None, epsilon, alpha)[0], pixel)
    if epsilon == 0:
        assert same_bits(rs, pixel)
    # The projection is idempotent to the bit where x_adv - x is exact, and within its rounding elsewhere.
    again, _, _ = stepped(rs - pixel, None, epsilon, alpha)
    exact = (rs >= pixel / 2) & (rs <= pixel * 2)
    assert same_bits(again[exact], rs[exact])
    assert ((again - rs).abs() <= 2**-24).all()


@many
@given(draws, st.sampled_from([torch.float32, torch.float64]), blocks)
def test_masked(draw: Draw, dtype: torch.dtype, block: int) -> None:
    gradient = draw.floats(1, dtype)
    inside = torch.randint(0, 2, draw.shape, generator=draw.generator).bool().contiguous(memory_format=draw.memory)
    with guards() as guard:
        packed, held = guard.holding(reference.pack(inside)), guard.holding(gradient)
        out = guard.like(gradient)
        launch_masked(packed, held, out, block).run()
    assert same_bits(out, reference.masked(packed, gradient))
    assert same_bits(out, torch.where(inside, gradient, torch.zeros((), dtype=dtype)))


@many
@given(
    draws,
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**24 - 1),
    st.sampled_from(list(Purpose)),
    st.sampled_from(FLOATS),
    st.sampled_from([64, 256]),
)
def test_random_start(
    draw: Draw, seed: int, epoch: int, step: int, purpose: Purpose, dtype: torch.dtype, block: int
) -> None:
    index = torch.randint(0, 2**32, (draw.shape[0],), generator=draw.generator)
    key = random_key(seed, epoch=epoch, step=step)
    with guards() as guard:
        out = guard.like(draw.bytes(), dtype)
        launch = launch_random_start(
            out, guard.holding(index), guard.holding(key), radius=8 / 255, purpose=purpose, block=block
        )
        launch.run()
        key_of_next = guard.holding(random_key(seed, epoch=(epoch + 1) % 2**32, step=step))
        later = guard.like(out)
        launch_random_start(later, index, key_of_next, radius=8 / 255, purpose=purpose, block=block).run()
    assert same_bits(out, reference.random_start(draw.bytes(), index, key, 8 / 255, purpose, dtype))
    assert out.numel() < 8 or not torch.equal(out, later)
    # One sample alone draws what it draws in a batch.
    alone = reference.random_start(draw.bytes()[-1:], index[-1:], key, 8 / 255, purpose, dtype)
    assert same_bits(out[-1:], alone)


@many
@given(
    draws,
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**24 - 1),
    st.integers(0, 6),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.integers(0, 2),
    st.sampled_from([torch.uint8, *FLOATS]),
    blocks,
)
def test_augment(
    draw: Draw,
    seed: int,
    epoch: int,
    step: int,
    padding: int,
    reflect: bool,
    flip: bool,
    gathered: bool,
    more: int,
    dtype: torch.dtype,
    block: int,
) -> None:
    """A batch that was gathered before, too: like the one out of the whole data set, to the bit."""
    m, c, h, w = draw.shape
    padding = min(padding, min(h, w) - 1) if reflect else padding
    images = draw.bytes().permute(0, 2, 3, 1).contiguous()
    index = torch.randint(0, m, (3,), generator=draw.generator)
    key = random_key(seed, epoch=epoch, step=step)
    options = {"padding": padding, "reflect": reflect, "flip": flip, "gathered": gathered, "block": block}
    with guards() as guard:
        out = guard.like(torch.empty(3, h, w, c + more, dtype=dtype))
        held = guard.holding(images[index] if gathered else images), guard.holding(index), guard.holding(key)
        launch_augment(*held, out, **options).run()
    rest = key, padding, reflect, flip, c + more, dtype
    assert same_bits(out, reference.augment(images, index, *rest))
    assert same_bits(out, reference.augment(images[index], index, *rest, gathered=True))


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("padding", [0, 3])
def test_gathered_samples_have_any_number(padding: int, flip: bool) -> None:
    """The number of a sample says what is drawn for it, not where its image lies."""
    images = torch.randint(0, 256, (16, 5, 6, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    index = torch.randint(0, 2**32, (16,), generator=torch.Generator().manual_seed(1))
    index[:2] = torch.tensor([0, 2**32 - 1])
    out = torch.empty_like(images)
    options = {"padding": padding, "reflect": False, "flip": flip}
    launch_augment(images, index, random_key(5, epoch=2), out, gathered=True, **options).run()
    rest = random_key(5, epoch=2), padding, False, flip, 3, torch.uint8
    assert same_bits(out, reference.augment(images, index, *rest, gathered=True))
    assert same_bits(out[7:9], reference.augment(images[7:9], index[7:9], *rest, gathered=True))
    other = reference.augment(images, torch.arange(16), *rest, gathered=True)
    assert same_bits(other, reference.augment(images, torch.arange(16), *rest))
    assert torch.equal(out, other) == (padding == 0 and not flip)


@pytest.mark.parametrize(("gathered", "past"), [(False, 4), (True, 2**32)])
def test_a_wrong_index_reads_no_foreign_memory(gathered: bool, past: int) -> None:
    """On a GPU the kernel cannot raise; it gives zeros for a sample that is not there."""
    images = torch.full((3 if gathered else 4, 5, 5, 3), 7, dtype=torch.uint8)
    out = torch.full((3, 5, 5, 3), 9, dtype=torch.uint8)
    index = torch.tensor([-1, 2, past])
    launch_augment(images, index, random_key(0), out, padding=0, reflect=False, flip=True, gathered=gathered).run()
    assert [image.unique().tolist() for image in out] == [[0], [7], [0]]


IMAGES = 2**31 // (3 * 16 * 16) + 200
"""So many images of 16x16 have more elements than an int32 can count; memory that nothing touches costs nothing."""
TAIL = 20


def large(dtype: torch.dtype = torch.float32, channels: int = 3) -> Tensor:
    """Images of which only the last few are filled, channels-last."""
    images = torch.empty(IMAGES, 16, 16, channels, dtype=dtype)
    draw = torch.Generator().manual_seed(channels)
    last = torch.randint(0, 256, (TAIL, 16, 16, channels), generator=draw).to(torch.float32)
    images[-TAIL:] = (last if dtype == torch.uint8 else last / 100 - 1).to(dtype)
    return images.permute(0, 3, 1, 2)


def large_to_float() -> tuple[Launch, Tensor, Tensor]:
    x, out = large(torch.uint8), large()
    return launch_to_float(x, out), out, reference.to_float(x[-TAIL:])


def large_generator_input() -> tuple[Launch, Tensor, Tensor]:
    x, gradient, out = large(torch.uint8), large(torch.float16), large(torch.float16, 8)
    wanted = reference.generator_input(x[-TAIL:], gradient[-TAIL:], True, True, 8, torch.float16, None)
    return launch_generator_input(x, gradient, out, None, benign=True, signs=True), out, wanted


def large_initial_point() -> tuple[Launch, Tensor, Tensor]:
    x, generated, eta, start = large(torch.uint8), large(torch.float16), large(), large(torch.float16)
    _, wanted = reference.initial_point(x[-TAIL:], generated[-TAIL:], 0.03, torch.float16, None)
    return launch_initial_point(x, generated, eta, start, None, epsilon=0.03), start, wanted


def large_signed_step() -> tuple[Launch, Tensor, Tensor]:
    x, eta, gradient, x_adv = large(torch.uint8), large(), large(torch.float16), large()
    bounds = pixel_bounds(Fraction(8, 255), box=True)
    options = {"alpha": 0.03, "ball": True, "table": bounds.table, "radius": bounds.radius, "box": True}
    last = (t[-TAIL:] for t in (x, eta, gradient))
    rest = 0.03, True, bounds.table, bounds.radius, True, torch.float32, None, False, False
    launch = launch_signed_step(x, eta, gradient, x_adv, None, None, None, **options)
    return launch, x_adv, reference.signed_step(*last, *rest)[0]


def large_masked() -> tuple[Launch, Tensor, Tensor]:
    gradient, out = large(), large()
    inside = torch.empty(gradient.numel() // 8, dtype=torch.uint8)
    bits = TAIL * gradient[0].numel() // 8
    inside[-bits:] = torch.randint(0, 256, (bits,), dtype=torch.uint8)
    return launch_masked(inside, gradient, out), out, reference.masked(inside[-bits:], gradient[-TAIL:])


def large_random_start() -> tuple[Launch, Tensor, Tensor]:
    out, index, key = large(), torch.arange(IMAGES), random_key(5)
    wanted = reference.random_start(out[-TAIL:], index[-TAIL:], key, 0.03, 3, torch.float32)
    return launch_random_start(out, index, key, radius=0.03, purpose=3), out, wanted


def large_augment(gathered: bool = False) -> tuple[Launch, Tensor, Tensor]:
    """Both the data set and the batch."""
    images, out = (large(torch.uint8).permute(0, 2, 3, 1) for _ in range(2))
    index, key = torch.arange(IMAGES), random_key(1)
    wanted = reference.augment(images, index[-TAIL:], key, 4, False, True, 3, torch.uint8)
    launch = launch_augment(images, index, key, out, padding=4, reflect=False, flip=True, gathered=gathered)
    return launch, out.permute(0, 3, 1, 2), wanted.permute(0, 3, 1, 2)


def large_gathered_augment() -> tuple[Launch, Tensor, Tensor]:
    return large_augment(gathered=True)


LARGE = [
    large_to_float,
    large_generator_input,
    large_initial_point,
    large_signed_step,
    large_masked,
    large_random_start,
    large_augment,
    large_gathered_augment,
]


@pytest.mark.parametrize("build", LARGE, ids=lambda build: build.__name__)
def test_more_than_2_to_31_elements(build: Callable[[], tuple[Launch, Tensor, Tensor]]) -> None:
    """The last programs of a launch over so many elements write the last elements, and only those."""
    launch, out, wanted = build()
    assert out.numel() > 2**31
    before = out[-TAIL:].clone()
    run_programs(launch, range(launch.programs - 4, launch.programs))
    changed = out[-TAIL:] != before
    assert changed.any()
    first = int(changed.permute(0, 2, 3, 1).flatten().nonzero()[0])
    found, expected, old = (t.permute(0, 2, 3, 1).flatten() for t in (out[-TAIL:], wanted, before))
    assert same_bits(found[first:], expected[first:])
    assert same_bits(found[:first], old[:first])
    assert len(found) - first > len(found) // 20
