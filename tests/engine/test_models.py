"""The architectures: parameter counts, names, shapes, seeds, normalisation."""

from __future__ import annotations

import re
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import nn

from hardfast.engine import UsageError
from hardfast.engine.models import (
    ModelOptions,
    NetShape,
    PaperGenerator,
    ReleasedGenerator,
    build_generator,
    build_model,
    seeded_initialisation,
)


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def test_resnet18_is_the_papers() -> None:
    net = build_model(ModelOptions(name="resnet18"), NetShape(num_classes=10, in_channels=3)).eval()
    assert parameters(net) == 11_173_962
    names = list(net.state_dict())
    assert names[0] == "conv1.weight"
    assert "layer4.1.bn2.running_var" in names
    assert "layer2.0.shortcut.1.weight" in names
    assert names[-1] == "linear.bias"
    with torch.no_grad():
        assert net(torch.rand(2, 3, 32, 32)).shape == (2, 10)


def test_resnet8_takes_other_channels_and_sizes() -> None:
    net = build_model(ModelOptions(name="resnet8"), NetShape(num_classes=7, in_channels=1)).eval()
    assert parameters(net) == 77_559
    with torch.no_grad():
        assert net(torch.rand(3, 1, 28, 28)).shape == (3, 7)


@pytest.mark.parametrize(("kind", "count"), [(ReleasedGenerator, 79_173), (PaperGenerator, 79_302)])
def test_generators(kind: type[nn.Module], count: int) -> None:
    generator = kind(6, 3)
    convolutions = [m for m in generator.modules() if isinstance(m, nn.Conv2d)]
    assert [(c.in_channels, c.out_channels) for c in convolutions] == [(6, 64), (64, 64), (64, 64), (64, 3)]
    assert generator(torch.rand(2, 6, 9, 11)).shape == (2, 3, 9, 11)
    assert parameters(generator) == count


def test_released_generator_initialisation() -> None:
    """The block's convolutions are xavier-uniform, gain sqrt 2: within sqrt(2) * sqrt(6 / (fan_in + fan_out))."""
    torch.manual_seed(0)
    generator = ReleasedGenerator(6, 3)
    bound = 2**0.5 * (6 / (64 * 9 + 64 * 9)) ** 0.5
    for conv in (generator.block.conv1, generator.block.conv2):
        assert 0.99 * bound < conv.weight.abs().max() <= bound
    assert generator.bn1.eps == 1e-3
    assert not generator.block.bn1.affine
    assert not generator.bn2.affine


def test_initial_weights_are_a_function_of_the_seed() -> None:
    build = partial(build_model, ModelOptions(name="resnet8"), NetShape(num_classes=10, in_channels=3))
    torch.manual_seed(123)
    before = torch.random.get_rng_state()
    one, same, other = (seeded_initialisation(build, seed) for seed in (5, 5, 6))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(one.conv1.weight, same.conv1.weight)
    assert not torch.equal(one.conv1.weight, other.conv1.weight)


def test_normalisation_is_inside_and_not_in_the_state_dict() -> None:
    plain = build_model(ModelOptions(name="resnet8"), NetShape(num_classes=10, in_channels=3)).eval()
    options = ModelOptions(name="resnet8", mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    normalised = build_model(options, NetShape(num_classes=10, in_channels=3)).eval()
    normalised.load_state_dict(plain.state_dict(), strict=True)
    x = torch.rand(4, 3, 16, 16)
    mean, std = torch.tensor(options.mean).reshape(3, 1, 1), torch.tensor(options.std).reshape(3, 1, 1)
    with torch.no_grad():
        assert torch.allclose(normalised(x), plain((x - mean) / std), atol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ModelOptions(std=(0.0, 1.0, 1.0)), "model.std"),
        (lambda: build_model(ModelOptions(mean=(0.5,)), NetShape(num_classes=10, in_channels=3)), "model.mean has 1"),
        (lambda: build_model(ModelOptions(name="vgg"), NetShape(num_classes=10, in_channels=3)), "not a model"),
    ],
)
def test_bad_options(make: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "chains"), [("released", 3), ("paper", 4)])
def test_inductor_leaves_one_kernel_between_the_generators_convolutions(variant: str, chains: int) -> None:
    """Why there are no hand-written epilogues: they could not move fewer bytes. A change here reopens the question."""
    from torch._inductor.utils import run_and_get_code

    generator = build_generator(variant, 6, 3, 64).eval().to(memory_format=torch.channels_last)
    seen = torch.randn(2, 6, 16, 16).to(memory_format=torch.channels_last)
    with torch.no_grad():
        _, code = run_and_get_code(torch.compile(generator, dynamic=False), seen)
    body = "\n".join(code).partition("def call(")[2]
    order = re.findall(r"^\s+(?:buf\d+ = extern_kernels\.(convolution)\(|(cpp_fused)\w+\()", body, re.MULTILINE)
    kinds = ["convolution" if convolution else "chain" for convolution, _ in order]
    assert kinds.count("convolution") == 4
    assert kinds.count("chain") == chains
    assert ("chain", "chain") not in set(pairwise(kinds))
