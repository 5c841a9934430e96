"""40 and more wrong or unusual inputs for each operation: the right answer, or a typed error naming the argument."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor

from hardfast.kernels import (
    augment,
    crop,
    generator_input,
    initial,
    initial_point,
    noise,
    perturb,
    pixel_bounds,
    pixels,
    project,
    random_key,
    random_start,
    signed_step,
    to_float,
)

from .guarded import same_bits

N, C, H, W = 4, 3, 6, 5
EPSILON = Fraction(8, 255)
BOUNDS = pixel_bounds(EPSILON, box=True)
NAN, INF = float("nan"), float("inf")


def draw() -> torch.Generator:
    return torch.Generator().manual_seed(0)


IMAGES = torch.randint(0, 256, (N, C, H, W), dtype=torch.uint8, generator=draw())
FLOATS = torch.randn(N, C, H, W, generator=draw())
DATA = IMAGES.permute(0, 2, 3, 1).contiguous()


class Subclass(torch.Tensor):
    """A tensor that is not exactly one."""


def strided(x: Tensor) -> Tensor:
    """The same values in every second place of a larger tensor."""
    room = torch.zeros(*x.shape[:-1], 2 * x.shape[-1], dtype=x.dtype)
    room[..., ::2] = x
    return room[..., ::2]


def offset(x: Tensor) -> Tensor:
    """The same values, beginning one element into their storage, so not at a multiple of 16 bytes."""
    return torch.cat([x.new_zeros(1), x.reshape(-1)])[1:].reshape(x.shape)


UNUSUAL: dict[str, Callable[[Tensor], Any]] = {
    "channels-last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "strided": strided,
    "offset by an element": offset,
    "transposed twice": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "batch stride": lambda x: torch.cat([x, x], dim=1)[:, : x.shape[1]],
    "flipped memory": lambda x: x.flip(0).flip(0),
    "needs a gradient": lambda x: x.clone().requires_grad_() if x.is_floating_point() else x,
    "a parameter": lambda x: torch.nn.Parameter(x.clone(), requires_grad=False),
    "a subclass": lambda x: x.as_subclass(Subclass),
}
"""Other forms of the same values: the answer must be the same."""

WRONG: dict[str, Callable[[Tensor], Any]] = {
    "None": lambda x: None,
    "a list": lambda x: x.tolist(),
    "an array": lambda x: x.numpy(),
    "bool": lambda x: x > 0,
    "int16": lambda x: x.to(torch.int16),
    "complex": lambda x: x.to(torch.complex64),
    "one dimension less": lambda x: x[0],
    "one dimension more": lambda x: x[None],
    "a scalar": lambda x: x.reshape(-1)[0],
    "on another device": lambda x: x.to("meta"),
    "sparse": lambda x: x.float().to_sparse() if x.is_floating_point() else x.to_sparse(),
}
OF_IMAGES: dict[str, Callable[[Tensor], Any]] = {
    "one sample less": lambda x: x[1:],
    "one channel less": lambda x: x[:, 1:],
    "one row less": lambda x: x[:, :, 1:],
    "height and width swapped": lambda x: x.transpose(2, 3),
    "NHWC": lambda x: x.permute(0, 2, 3, 1),
    "one sample": lambda x: x[:1],
}
"""Shapes that broadcasting would swallow."""
OF_NUMBERS: dict[str, Any] = {
    "negative": -0.1,
    "above 1": 1.5,
    "grey levels": 8,
    "nan": NAN,
    "infinite": INF,
    "text": "8/255",
    "None": None,
    "a list": [0.1],
    "complex": 1j,
    "a tensor": torch.tensor(0.03),
    "bool": True,
}
OF_FLAGS: dict[str, Any] = {
    "float": torch.zeros(1),
    "int64": torch.zeros(1, dtype=torch.int64),
    "bool": torch.zeros(1, dtype=torch.bool),
    "two": torch.zeros(2, dtype=torch.int32),
    "empty": torch.zeros(0, dtype=torch.int32),
    "number": 0,
    "on another device": torch.zeros(1, dtype=torch.int32, device="meta"),
}
OF_DTYPES: dict[str, Any] = {
    "int8": torch.int8,
    "int64": torch.int64,
    "bool": torch.bool,
    "complex": torch.complex64,
    "float8": torch.float8_e4m3fn,
    "text": "float32",
    "class": float,
}
OF_INDICES: dict[str, Any] = {
    "floats": torch.zeros(N),
    "int32": torch.zeros(N, dtype=torch.int32),
    "bool": torch.ones(N, dtype=torch.bool),
    "two dimensions": torch.zeros(N, 1, dtype=torch.int64),
    "a scalar": torch.tensor(0),
    "a list": [0, 1, 2, 3],
    "None": None,
    "on another device": torch.zeros(N, dtype=torch.int64, device="meta"),
}
OF_KEYS: dict[str, Any] = {
    "a seed": 3,
    "None": None,
    "floats": torch.zeros(3),
    "int32": torch.zeros(3, dtype=torch.int32),
    "two numbers": torch.zeros(2, dtype=torch.int64),
    "two dimensions": torch.zeros(1, 3, dtype=torch.int64),
    "a list": [0, 0, 0],
    "on another device": torch.zeros(3, dtype=torch.int64, device="meta"),
}
OF_CHANNELS: dict[str, Any] = {"too few": 1, "none": 0, "negative": -8, "float": 8.0, "text": "8"}
OF_SWITCHES: dict[str, Any] = {"text": "yes", "number": 1, "None": None, "a tensor": torch.tensor(True)}
OF_INTEGERS: dict[str, Any] = {"float": 2.0, "text": "2", "None": None, "bool": True, "a tensor": torch.tensor(2)}


@dataclass(frozen=True)
class Operation:
    """An operation with arguments that are right, and for each what may be wrong with it."""

    call: Callable[..., Any]
    right: dict[str, Any]
    wrong: dict[str, dict[str, Any]]
    unusual: tuple[str, ...]


def in_place_of(right: dict[str, Any], *names: str) -> dict[str, dict[str, Any]]:
    """All that may be wrong with each of these image tensors."""
    return {name: {fault: make(right[name]) for fault, make in {**WRONG, **OF_IMAGES}.items()} for name in names}


STEP = {"x": IMAGES, "eta": FLOATS * 0.03, "gradient": FLOATS, "alpha": 0.03, "bounds": BOUNDS}
PROJECT = {"x": IMAGES, "delta": FLOATS * 0.03, "bounds": BOUNDS}
POINT = {"x": IMAGES, "generated": FLOATS, "epsilon": 0.03}
SEEN = {"x": IMAGES, "gradient": FLOATS}
START = {"x": IMAGES, "index": torch.arange(N), "key": random_key(0), "radius": 0.03}
CROP = {"images": DATA, "index": torch.arange(N), "key": random_key(0), "padding": 2, "flip": True}
OF_BOUNDS = {
    "a pair": (BOUNDS.lower, BOUNDS.upper),
    "a radius": 0.03,
    "float64": pixel_bounds(Fraction(8, 255), box=True, dtype=torch.float64),
    "on another device": pixel_bounds(Fraction(8, 255), box=True, device="meta"),
}
BYTES = {fault: make(IMAGES) for fault, make in WRONG.items() if fault not in ("a scalar", "one dimension less")}
BYTES = {fault: value for fault, value in BYTES.items() if fault not in ("one dimension more", "on another device")}

OPERATIONS = {
    "to_float": Operation(
        to_float,
        {"x": IMAGES},
        {
            "x": {
                **BYTES,
                **{f"{d}".removeprefix("torch."): IMAGES.to(d) for d in (torch.int8, torch.int32, torch.int64)},
                "float16": FLOATS.half(),
                "bfloat16": FLOATS.bfloat16(),
                "uint16": IMAGES.to(torch.uint16),
                "uint32": IMAGES.to(torch.uint32),
                "float64": FLOATS.double(),
                "float32": FLOATS,
                "text": "image",
                "a number": 128,
                "a tuple": (IMAGES, IMAGES),
                "a dict": {"x": IMAGES},
            },
            "dtype": {**OF_DTYPES, "uint8": torch.uint8, "int16": torch.int16, "int32": torch.int32, "None": None},
        },
        ("x",),
    ),
    "generator_input": Operation(
        generator_input,
        SEEN,
        {
            **in_place_of(SEEN, "gradient"),
            "x": {fault: make(IMAGES) for fault, make in WRONG.items() if fault != "on another device"},
            "inputs": {"unknown": "sign", "None": None, "swapped": "grad+benign"},
            "channels": {**OF_CHANNELS, "room for one of two": C, "one too few": 2 * C - 1},
            "dtype": OF_DTYPES,
            "flag": OF_FLAGS,
        },
        ("x", "gradient"),
    ),
    "initial_point": Operation(
        initial_point,
        POINT,
        {
            **in_place_of(POINT, "generated"),
            "x": {fault: make(IMAGES) for fault, make in WRONG.items() if fault != "on another device"},
            "epsilon": OF_NUMBERS,
            "start_dtype": OF_DTYPES,
            "flag": OF_FLAGS,
        },
        ("x", "generated"),
    ),
    "signed_step": Operation(
        signed_step,
        STEP,
        {
            **in_place_of(STEP, "eta", "gradient"),
            "x": {fault: make(IMAGES) for fault, make in WRONG.items() if fault != "on another device"},
            "alpha": OF_NUMBERS,
            "bounds": OF_BOUNDS,
            "x_adv_dtype": OF_DTYPES,
            "keep_delta": OF_SWITCHES,
            "flag": OF_FLAGS,
        },
        ("x", "eta", "gradient"),
    ),
    "project": Operation(
        project,
        PROJECT,
        {
            **in_place_of(PROJECT, "delta"),
            "x": {fault: make(IMAGES) for fault, make in WRONG.items() if fault != "on another device"},
            "bounds": {**OF_BOUNDS, "None": None},
            "flag": OF_FLAGS,
        },
        ("x", "delta"),
    ),
    "random_start": Operation(
        random_start,
        START,
        {
            "x": {
                f: WRONG[f](IMAGES) for f in ("None", "a list", "one dimension less", "one dimension more", "sparse")
            },
            "index": {**OF_INDICES, "one less": torch.arange(N - 1), "one more": torch.arange(N + 1)},
            "key": OF_KEYS,
            "radius": OF_NUMBERS,
            "purpose": {"number": 3, "large": 300, "text": "START", "None": None},
            "dtype": OF_DTYPES,
        },
        ("x",),
    ),
    "pixel_bounds": Operation(
        lambda **arguments: pixel_bounds(**arguments).table,
        {"epsilon": EPSILON, "box": True},
        {
            "epsilon": {**OF_NUMBERS, "a float": 8 / 255, "above 1": Fraction(3, 2), "below 0": Fraction(-1, 255)},
            "dtype": {**OF_DTYPES, "float16": torch.float16, "bfloat16": torch.bfloat16},
        },
        (),
    ),
    "random_key": Operation(
        random_key,
        {"seed": 1},
        {
            "seed": {**OF_INTEGERS, "negative": -1, "too large": 1 << 64},
            "epoch": {**OF_INTEGERS, "negative": -1, "too large": 1 << 32},
            "step": {**OF_INTEGERS, "negative": -1, "too large": 1 << 24},
        },
        (),
    ),
    "augment": Operation(
        augment,
        CROP,
        {
            "images": {
                **{fault: make(DATA) for fault, make in WRONG.items() if fault != "on another device"},
                "not contiguous": strided(DATA),
                "floats": DATA.float(),
                "NCHW view": IMAGES.permute(0, 2, 3, 1),
            },
            "index": {**OF_INDICES, "past the end": torch.tensor([0, N]), "negative": torch.tensor([-1])},
            "key": OF_KEYS,
            "padding": {**OF_INTEGERS, "negative": -1, "enormous": 1 << 20},
            "flip": OF_SWITCHES,
            "mode": {"unknown": "edge", "None": None},
            "channels": {**OF_CHANNELS, "one too few": C - 1},
            "dtype": {**OF_DTYPES, "float64": torch.float64},
            "gathered": OF_SWITCHES,
        },
        (),
    ),
    "augment, gathered": Operation(
        augment,
        {**CROP, "gathered": True, "index": torch.tensor([7, 0, 2**32 - 1, 7])},
        {
            "images": {
                **{fault: make(DATA) for fault, make in WRONG.items() if fault != "on another device"},
                "not contiguous": strided(DATA),
                "NCHW view": IMAGES.permute(0, 2, 3, 1),
                "one less": DATA[1:],
                "one more": torch.cat([DATA, DATA[:1]]),
                "one": DATA[:1],
                "none": DATA[:0],
            },
            "index": {
                **OF_INDICES,
                "one less": torch.arange(N - 1),
                "one more": torch.arange(N + 1),
                "one": torch.arange(1),
                "none": torch.arange(0),
                "past the end": torch.tensor([0, 1, 2, 2**32]),
                "negative": torch.tensor([0, 1, 2, -1]),
            },
            "key": OF_KEYS,
            "channels": OF_CHANNELS,
            "padding": OF_INTEGERS,
        },
        (),
    ),
}


@pytest.fixture(params=["cpu", "kernel"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The CPU implementation, or what runs on a GPU: the operator's other body, here under Triton's interpreter."""
    if request.param == "kernel":
        for module in (crop, initial, noise, perturb, pixels):
            for name in vars(module):
                if (found := re.fullmatch(r"_(\w+)_op", name)) is not None:
                    monkeypatch.setattr(module, name, getattr(module, f"run_{found[1]}"))
    return request.param


def results(operation: Operation, changed: dict[str, Any]) -> list[Tensor]:
    found = operation.call(**{**operation.right, **changed})
    return [t.detach() for t in (found if isinstance(found, tuple) else (found,))]


HELPERS = ("pixel_bounds", "random_key")
"""What has no kernel."""
WRONG_CASES = [
    pytest.param(name, argument, fault, id=f"{name}-{argument}-{fault}")
    for name, operation in OPERATIONS.items()
    for argument, faults in operation.wrong.items()
    for fault in faults
]


@pytest.mark.parametrize(("name", "argument", "fault"), WRONG_CASES)
def test_wrong_arguments_are_named(name: str, argument: str, fault: str) -> None:
    operation = OPERATIONS[name]
    with pytest.raises((TypeError, ValueError, IndexError)) as caught:
        results(operation, {argument: operation.wrong[argument][fault]})
    message = str(caught.value)
    assert re.search(rf"\b{argument}\b", message)
    assert "\n" not in message


UNUSUAL_CASES = [
    pytest.param(name, argument, form, id=f"{name}-{argument}-{form}")
    for name, operation in OPERATIONS.items()
    for argument in operation.unusual
    for form in UNUSUAL
]


@pytest.mark.parametrize(("name", "argument", "form"), UNUSUAL_CASES)
def test_unusual_forms_give_the_same_answer(name: str, argument: str, form: str, implementation: str) -> None:
    operation = OPERATIONS[name]
    wanted = results(operation, {})
    changed = {argument: UNUSUAL[form](operation.right[argument])}
    for found, same in zip(results(operation, changed), wanted, strict=True):
        assert same_bits(found.as_subclass(Tensor), same)


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name not in HELPERS])
def test_both_implementations_agree(name: str, implementation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit and in their strides, through the public function with all it does around the operator."""
    operation = OPERATIONS[name]
    here = results(operation, {})
    monkeypatch.undo()
    for found, wanted in zip(here, results(operation, {}), strict=True):
        assert same_bits(found, wanted)
        assert found.stride() == wanted.stride()


@pytest.mark.parametrize("empty", [(0, C, H, W), (N, 0, H, W), (N, C, 0, W), (N, C, H, 0)], ids=str)
@pytest.mark.parametrize("name", [n for n in OPERATIONS if not n.startswith("augment") and n not in HELPERS])
def test_empty_images_give_empty_results(name: str, empty: tuple[int, ...], implementation: str) -> None:
    operation = OPERATIONS[name]
    changed = {
        key: torch.zeros(empty, dtype=value.dtype)
        for key, value in operation.right.items()
        if isinstance(value, Tensor) and value.dim() == 4
    }
    if "index" in operation.right:
        changed["index"] = torch.arange(empty[0])
    for found in results(operation, changed):
        assert found.numel() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_cannot_hold_a_perturbation(dtype: torch.dtype) -> None:
    narrow = FLOATS.to(dtype)
    with pytest.raises(TypeError, match="eta must be float32"):
        signed_step(IMAGES, narrow, FLOATS, alpha=0.03, bounds=None)
    with pytest.raises(TypeError, match="delta must be float32"):
        project(IMAGES, narrow, bounds=BOUNDS)


@pytest.mark.parametrize("reshape", [lambda x: x[0], lambda x: x[None]], ids=["3", "5"])
def test_images_have_four_dimensions(reshape: Callable[[Tensor], Tensor]) -> None:
    """Also where all tensors agree on another number of them."""
    x, floats = reshape(IMAGES), reshape(FLOATS)
    for call in (
        lambda: generator_input(x, floats),
        lambda: initial_point(x, floats, epsilon=0.03),
        lambda: signed_step(x, floats, floats, alpha=0.03, bounds=BOUNDS),
        lambda: project(x, floats, bounds=BOUNDS),
        lambda: random_start(x, torch.arange(len(x)), key=random_key(0), radius=0.03),
    ):
        with pytest.raises(ValueError, match=r"x must be \[N, C, H, W\]"):
            call()


def test_a_mirror_is_smaller_than_the_image() -> None:
    for padding in (5, 6):  # images of 6x5
        with pytest.raises(ValueError, match="padding must lie in"):
            augment(DATA, torch.arange(N), key=random_key(0), padding=padding, mode="reflect")
    assert augment(DATA, torch.arange(N), key=random_key(0), padding=4, mode="reflect").shape == DATA.shape


def test_the_derivative_of_both_implementations(implementation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the packed clip mask: written by one kernel, read by another."""
    found = []
    for _ in range(2):
        eta = (FLOATS * 0.03).requires_grad_()
        x_adv, delta = signed_step(IMAGES, eta, FLOATS, alpha=0.01, bounds=BOUNDS)
        (x_adv * FLOATS + delta).sum().backward()
        assert eta.grad is not None
        found.append(eta.grad)
        monkeypatch.undo()  # the second time on the CPU
    assert same_bits(*found)
    assert 0 < (found[0] == 0).float().mean() < 1


def test_an_empty_index_gives_an_empty_batch(implementation: str) -> None:
    assert augment(DATA, torch.arange(0), key=random_key(0), padding=2, flip=True).shape == (0, H, W, C)
    streamed = augment(DATA[:0], torch.arange(0), key=random_key(0), padding=2, flip=True, gathered=True)
    assert streamed.shape == (0, H, W, C)


def test_results_share_no_memory_with_their_inputs(implementation: str) -> None:
    """Also where a tensor is given twice."""
    x_adv, delta = signed_step(IMAGES, FLOATS, FLOATS, alpha=0.03, bounds=None)
    wanted = FLOATS + 0.03 * FLOATS.sign()
    assert torch.equal(x_adv, to_float(IMAGES) + wanted)
    before = FLOATS.clone()
    for result in (x_adv, delta, *project(IMAGES, FLOATS, bounds=BOUNDS), generator_input(IMAGES, FLOATS)):
        result.fill_(7)
    assert torch.equal(FLOATS, before)


def test_there_are_forty_of_each() -> None:
    for name in set(OPERATIONS) - set(HELPERS):
        count = sum(case.values[0] == name for case in WRONG_CASES + UNUSUAL_CASES)
        assert count >= 40, f"{name} has {count}"
