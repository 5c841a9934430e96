"""A padded first convolution computes what the plain one does, with the same parameters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hardfast.engine import UsageError
from hardfast.engine.models import (
    ModelOptions,
    NetShape,
    PaddedConv2d,
    build_generator,
    build_model,
    channels_last,
    pad_stem,
)

SHAPES = [
    # in_channels, padded_channels, arguments of the convolution
    (3, 4, {"kernel_size": 3, "padding": 1, "bias": False}),
    (1, 4, {"kernel_size": 3, "padding": 1}),
    (2, 4, {"kernel_size": 3, "padding": "same", "padding_mode": "circular"}),
    (3, 4, {"kernel_size": 7, "stride": 2, "padding": 3, "bias": False}),
    (6, 8, {"kernel_size": (3, 1), "dilation": 2}),
    (4, 4, {"kernel_size": 3}),
]


def with_zeros(x: Tensor, channels: int) -> Tensor:
    """x as the generator's input arrives: channels-last, zeros in the channels that were appended."""
    zeros = x.new_zeros(x.shape[0], channels - x.shape[1], *x.shape[2:])
    return torch.cat([x, zeros], dim=1).contiguous(memory_format=torch.channels_last)


def convolutions(in_channels: int, padded: int, arguments: dict[str, Any]) -> tuple[nn.Conv2d, PaddedConv2d]:
    """The same weights, plain and padded, float64."""
    plain = nn.Conv2d(in_channels, 5, **arguments).double()
    conv = PaddedConv2d(in_channels, 5, **arguments, padded_channels=padded).double()
    conv.load_state_dict(plain.state_dict(), strict=True)
    return plain, conv


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("arrives_padded", [False, True])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("in_channels", "padded", "arguments"), SHAPES)
def test_padded_convolution_equals_the_plain_one(
    in_channels: int,
    padded: int,
    arguments: dict[str, Any],
    memory_format: torch.memory_format,
    arrives_padded: bool,
    compiled: bool,
) -> None:
    plain, conv = (net.to(memory_format=memory_format) for net in convolutions(in_channels, padded, arguments))
    run: Callable[[Tensor], Tensor] = conv
    if compiled:
        torch._dynamo.reset()
        run = torch.compile(conv, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, in_channels, 9, 11, dtype=torch.float64).contiguous(memory_format=memory_format)
    theirs, ours = x.clone().requires_grad_(), (with_zeros(x, padded) if arrives_padded else x.clone()).requires_grad_()
    expected, out = plain(theirs), run(ours)
    torch.testing.assert_close(out, expected)
    keeps_format = conv.padding_mode == "zeros"  # PyTorch's circular padding does not, and the plain one is no better
    if keeps_format and (memory_format is torch.channels_last or arrives_padded):
        assert out.is_contiguous(memory_format=torch.channels_last)
    direction = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, [theirs, *plain.parameters()], direction)
    got = torch.autograd.grad(out, [ours, *conv.parameters()], direction)
    torch.testing.assert_close(got[0][:, :in_channels], wanted[0])
    assert got[0].shape == ours.shape
    assert (got[0][:, in_channels:] == 0).all()
    for ours_of_weight, theirs_of_weight in zip(got[1:], wanted[1:], strict=True):
        torch.testing.assert_close(ours_of_weight, theirs_of_weight)
    if keeps_format and memory_format is torch.channels_last:
        assert all(g.is_contiguous(memory_format=memory_format) for g in got if g.dim() == 4)


def test_padded_convolution_takes_one_image_without_a_batch() -> None:
    plain, conv = convolutions(*SHAPES[0])
    x = torch.randn(3, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(conv(x), plain(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_padded_convolution_under_autocast(dtype: torch.dtype) -> None:
    plain, conv = convolutions(*SHAPES[0])
    x = torch.randn(2, 3, 8, 8).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        out, expected = conv.float()(x), plain.float()(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_other_numbers_of_channels_are_refused(channels: int) -> None:
    _, conv = convolutions(*SHAPES[0])
    with pytest.raises(UsageError, match=f"an input of {channels} channels .* give it 3, or 4"):
        conv(torch.zeros(1, channels, 8, 8, dtype=torch.float64))


def test_what_cannot_be_padded_is_refused() -> None:
    with pytest.raises(UsageError, match="padded_channels 2 is less than the 3"):
        PaddedConv2d(3, 5, 3, padded_channels=2)
    with pytest.raises(UsageError, match="1 group"):
        PaddedConv2d(4, 8, 3, groups=2, padded_channels=8)
    net = nn.Sequential(nn.Conv2d(3, 4, 3))
    with pytest.raises(UsageError, match="padded_channels 2"):
        pad_stem(net, 3, 2)
    assert type(net[0]) is nn.Conv2d


class ConvolutionBackward(TorchDispatchMode):
    """Counts which gradients the backward of convolutions computes."""

    def __init__(self) -> None:
        super().__init__()
        self.computed: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket is torch.ops.aten.convolution_backward:
            to_input, to_weight, _ = args[10]
            self.computed.update({"input": int(to_input), "weight": int(to_weight)})
        return func(*args, **(kwargs or {}))


def test_an_input_gradient_computes_no_weight_gradient() -> None:
    """And a weight gradient no input gradient: padding must not hide from autograd what is asked for."""
    _, conv = convolutions(*SHAPES[0])
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    loss = conv(x).square().sum()
    with ConvolutionBackward() as backward:
        torch.autograd.grad(loss, x, retain_graph=True)
        assert backward.computed == {"input": 1, "weight": 0}
        torch.autograd.grad(loss, conv.weight)
        assert backward.computed == {"input": 1, "weight": 1}


class OwnNet(nn.Module):
    """A user's net: a depthwise convolution first, the stem in a submodule and not of that name."""

    def __init__(self) -> None:
        super().__init__()
        self.blur = nn.Conv2d(3, 3, 3, padding=1, groups=3)
        self.features = nn.ModuleDict({"first": nn.Sequential(nn.Identity(), nn.Conv2d(3, 4, 3, padding=1))})
        self.head = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return (self.features["first"](self.blur(x)) + self.head(x)).mean(dim=(2, 3))


def classifier(name: str) -> nn.Module:
    return build_model(ModelOptions(name=name), NetShape(num_classes=10, in_channels=3))


NETS = [
    (partial(classifier, "resnet8"), 3, 4, "conv1"),
    (partial(classifier, "preact_resnet18"), 3, 4, "conv1"),
    (partial(classifier, "resnet50"), 3, 4, "conv1"),
    (partial(build_generator, "released", 6, 3, 8), 6, 8, "conv1"),
    (partial(build_generator, "paper", 6, 3, 8, "half"), 6, 8, "conv1"),
    (OwnNet, 3, 8, "features.first.1"),
]


@pytest.mark.parametrize(("build", "channels", "padded", "stem"), NETS)
def test_pad_stem_changes_the_computation_and_nothing_else(
    build: Callable[[], nn.Module], channels: int, padded: int, stem: str
) -> None:
    torch.manual_seed(0)
    net = channels_last(build().eval())
    x = torch.rand(2, channels, 33, 33).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        before = net(x)
    tensors = net.state_dict(keep_vars=True)
    random = torch.random.get_rng_state()
    assert pad_stem(net, channels, padded)
    assert torch.equal(torch.random.get_rng_state(), random)
    after = net.state_dict(keep_vars=True)
    assert list(after) == list(tensors)
    assert all(after[name] is tensor for name, tensor in tensors.items())
    replaced = [name for name, module in net.named_modules() if isinstance(module, PaddedConv2d)]
    assert replaced == [stem]
    assert net.get_submodule(stem).padded_channels == padded
    assert not net.get_submodule(stem).training
    assert f"padded_channels={padded}" in repr(net)
    with torch.no_grad():
        torch.testing.assert_close(net(x), before)


@pytest.mark.parametrize("resolution", ["full", "half"])
def test_a_generator_takes_its_input_padded(resolution: str) -> None:
    generator = build_generator("released", 6, 3, 8, resolution).double().eval()
    x = torch.randn(2, 6, 9, 8, dtype=torch.float64)
    with torch.no_grad():
        expected = generator(x)
        assert pad_stem(generator, 6, 8)
        torch.testing.assert_close(generator(with_zeros(x, 8)), expected)


def test_an_optimiser_made_before_moves_the_padded_stem() -> None:
    net, plain = classifier("resnet8"), classifier("resnet8")
    plain.load_state_dict(net.state_dict())
    x, label = torch.rand(4, 3, 8, 8), torch.arange(4)
    optimizer, theirs = (torch.optim.SGD(n.parameters(), lr=0.1) for n in (net, plain))
    assert pad_stem(net, 3, 4)
    for n, o in ((net, optimizer), (plain, theirs)):
        F.cross_entropy(n(x), label).backward()
        o.step()
    torch.testing.assert_close(net.conv1.weight, plain.conv1.weight)


def test_pad_stem_twice_and_hooks() -> None:
    """The last number counts; a user's hook on the convolution still runs, and can still be removed."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3))
    calls: list[Tensor] = []
    handle = net[0].register_forward_hook(lambda _module, _inputs, out: calls.append(out))
    assert pad_stem(net, 3, 4)
    assert pad_stem(net, 3, 8)
    assert net[0].padded_channels == 8
    x = torch.rand(1, 3, 5, 5)
    out = net(x)
    assert calls[0] is out
    handle.remove()
    net(x)
    assert len(calls) == 1


class ScaledConv2d(nn.Conv2d):
    """What a user may do with a subclass."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(nn.Conv2d(1, 4, 3)),
        nn.Sequential(nn.Linear(3, 4)),
        nn.Sequential(nn.Conv2d(3, 3, 3, groups=3)),
        nn.Sequential(ScaledConv2d(3, 4, 3), nn.Conv2d(4, 3, 1), nn.Conv2d(3, 3, 1)),
        nn.Conv2d(3, 4, 3),
    ],
)
def test_nets_without_a_stem_to_pad_are_left_alone(net: nn.Module) -> None:
    kinds = [type(module) for module in net.modules()]
    assert not pad_stem(net, 3, 4)
    assert [type(module) for module in net.modules()] == kinds
