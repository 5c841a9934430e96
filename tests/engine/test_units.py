"""What a step executes: convolution backward calls counted with their output masks."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hardfast.engine.methods import (
    FgsmRsOptions,
    FgsmSdiOptions,
    MethodOptions,
    PgdAtOptions,
    Position,
    Setting,
    StandardOptions,
)
from hardfast.engine.models import ModelOptions, NetShape, build_model
from hardfast.engine.step import descend
from hardfast.kernels import random_key
from hardfast.loaders import Batch


class ConvolutionCounter(TorchDispatchMode):
    """Counts convolution calls by which net they belong to and which gradients their backward computes."""

    def __init__(self, generator_weights: set[int]) -> None:
        super().__init__()
        self.generator_weights = generator_weights
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet = func.overloadpacket
        if packet is torch.ops.aten.convolution:
            owner = "generator" if args[1].data_ptr() in self.generator_weights else "net"
            self.calls[f"{owner} forward"] += 1
        if packet is torch.ops.aten.convolution_backward:
            owner = "generator" if args[2].data_ptr() in self.generator_weights else "net"
            to_input, to_weight, _ = args[10]
            self.calls[f"{owner} input"] += to_input
            self.calls[f"{owner} weight"] += to_weight
        return func(*args, **(kwargs or {}))


def count(options: MethodOptions, *, step: int, model: str = "resnet8", attack_bn: str = "train") -> Counter[str]:
    """Convolutions of one whole step (craft and descend)."""
    torch.manual_seed(0)
    net = build_model(ModelOptions(name=model), NetShape(num_classes=10, in_channels=3)).to(
        memory_format=torch.channels_last
    )
    setting = Setting(
        net=net, epsilon=Fraction(8, 255), box=True, attack_bn=attack_bn, label_smoothing=0.1, seed=0, channels=3
    )
    method = options.build(setting)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    generator_weights = {p.data_ptr() for g in method.nets().values() for p in g.parameters()}
    image = torch.randint(0, 256, (4, 16, 16, 3), dtype=torch.uint8)
    batch = Batch(torch.arange(4), image, torch.arange(4), random_key(0))
    with ConvolutionCounter(generator_weights) as counter:
        x_adv = method.craft(batch, Position(0, step))
        assert all(p.grad is None for p in net.parameters())
        descend(net, optimizer, x_adv, batch.label, label_smoothing=0.1)
    return counter.calls


CONVOLUTIONS = {"resnet8": 9, "resnet18": 20}
GENERATOR = 4


@pytest.mark.parametrize("attack_bn", ["train", "eval"])
@pytest.mark.parametrize("model", ["resnet8", "resnet18"])
def test_sdi_step_is_2_2_3_and_one_generator_forward(model: str, attack_bn: str) -> None:
    n = CONVOLUTIONS[model]
    calls = count(FgsmSdiOptions(k=20), step=1, model=model, attack_bn=attack_bn)
    # The stem's input is x_adv, which needs no gradient in the descent: n - 1 input gradients there.
    assert calls == {
        "net forward": 3 * n,
        "net input": 2 * n + n - 1,
        "net weight": n,
        "generator forward": GENERATOR,
    }


def test_sdi_kth_step_adds_2_2_and_one_generator_update() -> None:
    n = CONVOLUTIONS["resnet8"]
    calls = count(FgsmSdiOptions(k=20), step=20)
    assert calls == {
        "net forward": 5 * n,
        "net input": 4 * n + n - 1,
        "net weight": n,  # none for the generator's ascent, which passes through the net
        "generator forward": 2 * GENERATOR,
        "generator input": GENERATOR - 1,  # its own input needs none
        "generator weight": GENERATOR,
    }


@pytest.mark.parametrize(
    ("options", "attack_passes"), [(StandardOptions(), 0), (FgsmRsOptions(), 1), (PgdAtOptions(), 10)]
)
def test_units_of_the_other_methods(options: MethodOptions, attack_passes: int) -> None:
    n = CONVOLUTIONS["resnet8"]
    assert count(options, step=0) == {
        "net forward": (attack_passes + 1) * n,
        "net input": attack_passes * n + n - 1,
        "net weight": n,
    }
