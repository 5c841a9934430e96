"""The methods leave their elementwise work to the kernels: what a step runs on images outside its nets is counted."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hardfast.engine.methods import METHODS, Method, Position, method_options

from .steps import drawn_batch, training_step

SHAPE = (4, 3, 8, 8)
NO_ARITHMETIC = {"convolution", "convolution_backward", "view", "_unsafe_view", "reshape", "detach", "alias", "permute"}
NO_ARITHMETIC |= {"empty", "empty_like", "new_empty", "_to_copy", "clone", "native_batch_norm", "cudnn_batch_norm"}


class OnImages(TorchDispatchMode):
    """Counts the operations that return a tensor of an image's shape, outside the references of our own operators."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        results = result if isinstance(result, tuple | list) else (result,)
        if any(isinstance(t, Tensor) and tuple(t.shape) == SHAPE for t in results):
            name = func.overloadpacket.__name__
            self.calls[f"hardfast::{name}" if func.namespace == "hardfast" else name] += 1
        return result


class Linear(nn.Module):
    """A classifier whose operations on images are a view alone."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(10, 192, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), -1) @ self.weight.t()


# What the kernels do, and what else a method does with images: a start that is written, images chosen from, and the
# algebra of two gradients or of a momentum, which no kernel of ours has.
KERNELS = {
    "fgsm-sdi": {"to_float": 1, "initial_point": 1, "signed_step": 1},  # the generator's input has 6 channels
    "fgsm-rs": {"random_start": 1, "signed_step": 2},  # the first is the noise's projection
    "pgd-at": {"random_start": 1, "signed_step": 11},
    "pgd2-at": {"signed_step": 3},
    "pgd4-at": {"signed_step": 5},
    "n-fgsm": {"random_start": 1, "signed_step": 2},
    "fgsm-ckpt": {"random_start": 1, "signed_step": 4, "to_float": 1},
    "fgsm-2step": {"to_float": 1, "signed_step": 2},
    "standard": {"to_float": 1},
}
MORE = {
    "pgd2-at": {"zeros_like"},
    "pgd4-at": {"zeros_like"},
    "fgsm-2step": {"zeros_like"},
    "fgsm-ckpt": {"mul", "where"},
}


@pytest.mark.parametrize("name", KERNELS)
def test_a_step_runs_nothing_elementwise_but_the_kernels(name: str) -> None:
    method = training_step(method_options(name), Linear()).method
    with OnImages() as seen:
        method.craft(drawn_batch(side=8), Position(0, 1))  # not the generator's update, whose derivatives are PyTorch's
    others = {name for name in seen.calls if not name.startswith("hardfast::")} - NO_ARITHMETIC
    assert others == MORE.get(name, set())
    ours = {name.removeprefix("hardfast::"): count for name, count in seen.calls.items() if "hardfast" in name}
    assert ours == KERNELS[name]


def test_every_method_that_crafts_is_counted() -> None:
    whole_steps = {
        name for name in METHODS if type(training_step(method_options(name), Linear()).method).craft is Method.craft
    }
    assert set(KERNELS) | whole_steps == set(METHODS)
    assert whole_steps == {"fgsm-ga", "free-at", "fgsm-mep"}
