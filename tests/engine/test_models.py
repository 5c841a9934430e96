"""The architectures: parameter counts, names, shapes, seeds, normalisation."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import partial
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hardfast.engine import UsageError
from hardfast.engine.models import (
    ModelOptions,
    NetShape,
    PaperGenerator,
    PreActResNet,
    ReleasedGenerator,
    build_generator,
    build_model,
    seeded_initialisation,
)
from hardfast.engine.models.options import Shortcut


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


@pytest.mark.parametrize("final_bn", [True, False])
def test_preact_resnet18_has_robustbenchs_names(final_bn: bool) -> None:
    """ResNet18's parameters less its stem's BN (128), its three shortcuts' BNs (1,792) and, in each of the three
    blocks that double the channels, half of bn1 (sum 896: it sees the block's input); plus the final BN (1,024)."""
    options = ModelOptions(name="preact_resnet18", final_bn=final_bn)
    net = build_model(options, NetShape(num_classes=10, in_channels=3)).eval()
    assert parameters(net) == 11_173_962 - 128 - 1_792 - 896 + 1_024 * final_bn == 11_172_170 - 1_024 * (not final_bn)
    names = list(net.state_dict())
    assert names[:2] == ["conv1.weight", "layer1.0.bn1.weight"]
    block = ("bn1.weight", "conv1.weight", "bn2.running_var", "conv2.weight", "shortcut.0.weight")
    assert {f"layer4.0.{name}" for name in block} < set(names)
    assert [name for name in names if "shortcut" in name] == [f"layer{i}.0.shortcut.0.weight" for i in (2, 3, 4)]
    assert ("bn.weight" in names) == final_bn
    assert names[-2:] == ["linear.weight", "linear.bias"]


def preact_block(state: dict[str, Tensor], name: str, x: Tensor, stride: int, reads: str) -> Tensor:
    """He et al. (2016), figure 4e, with the constants of an eval-mode BN; `reads` is what a 1x1 shortcut sees."""

    def activated(bn: str, x: Tensor) -> Tensor:
        mean, var, weight, bias = (
            state[f"{name}.{bn}.{key}"].reshape(-1, 1, 1) for key in ("running_mean", "running_var", "weight", "bias")
        )
        return (weight * (x - mean) / (var + 1e-5).sqrt() + bias).clamp(min=0)

    a = activated("bn1", x)
    b = F.conv2d(a, state[f"{name}.conv1.weight"], stride=stride, padding=1)
    b = F.conv2d(activated("bn2", b), state[f"{name}.conv2.weight"], padding=1)
    shortcut = state.get(f"{name}.shortcut.0.weight")
    return b + (x if shortcut is None else F.conv2d(a if reads == "activated" else x, shortcut, stride=stride))


@pytest.mark.parametrize("size", [1, 5, 8])
@pytest.mark.parametrize("final_bn", [True, False])
@pytest.mark.parametrize("reads", ["activated", "input"])
def test_preact_resnet_computes_what_the_papers_say(reads: Shortcut, final_bn: bool, size: int) -> None:
    net = PreActResNet((4, 6), (2, 1), num_classes=3, in_channels=2, final_bn=final_bn, shortcut=reads).double().eval()
    for tensor in net.state_dict().values():
        if tensor.is_floating_point() and tensor.dim() == 1:  # BNs that do something
            tensor.uniform_(0.5, 1.5)
    state = net.state_dict()
    x = torch.rand(3, 2, size, size, dtype=torch.float64)
    out = F.conv2d(x, state["conv1.weight"], padding=1)
    out = preact_block(state, "layer1.0", out, 1, reads)
    out = preact_block(state, "layer1.1", out, 1, reads)
    out = preact_block(state, "layer2.0", out, 2, reads)
    if final_bn:
        mean, var = (state[f"bn.running_{key}"].reshape(-1, 1, 1) for key in ("mean", "var"))
        out = (out - mean) / (var + 1e-5).sqrt()
        out = (state["bn.weight"].reshape(-1, 1, 1) * out + state["bn.bias"].reshape(-1, 1, 1)).clamp(min=0)
    expected = F.linear(out.mean(dim=(2, 3)), state["linear.weight"], state["linear.bias"])
    with torch.no_grad():
        torch.testing.assert_close(net(x), expected)


def test_resnet50_is_torchvisions() -> None:
    """Its parameters, their names, its logits with the same weights, and the normalisation inside."""
    from torchvision.models import resnet50

    theirs = resnet50(weights=None).eval()
    options = ModelOptions(name="resnet50", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    net = build_model(options, NetShape(num_classes=1000, in_channels=3)).eval()
    assert parameters(net) == 25_557_032
    assert list(net.state_dict()) == list(theirs.state_dict())
    net.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.rand(2, 3, 64, 64)
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (options.mean, options.std))
    with torch.no_grad():
        torch.testing.assert_close(net(x), theirs((x - mean) / std))


def test_resnet50_takes_other_channels_and_odd_sizes() -> None:
    options, shape = ModelOptions(name="resnet50", mean=(0.5,)), NetShape(num_classes=5, in_channels=1)
    one, same = (seeded_initialisation(partial(build_model, options, shape), 3) for _ in range(2))
    assert torch.equal(one.conv1.weight, same.conv1.weight)
    assert one.conv1.weight.shape == (64, 1, 7, 7)
    # torchvision's initialisation: normal, deviation sqrt(2 / fan_out).
    assert one.conv1.weight.std().item() == pytest.approx((2 / (64 * 49)) ** 0.5, rel=0.1)
    assert next(iter(one.state_dict())) == "conv1.weight"
    with torch.no_grad():
        assert one.eval()(torch.rand(2, 1, 33, 33)).shape == (2, 5)


def test_torchvision_is_imported_for_resnet50_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torchvision", "torchvision.models.resnet"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "hardfast.engine.models.imagenet_resnet", raising=False)
    shape = NetShape(num_classes=10, in_channels=3)
    build_model(ModelOptions(name="resnet8"), shape)
    with pytest.raises(UsageError, match=r"'resnet50' needs torchvision.*install") as refusal:
        build_model(ModelOptions(name="resnet50"), shape)
    assert "\n" not in str(refusal.value)
    code = "import sys; sys.modules['torchvision'] = None; import hardfast.engine.models"
    subprocess.run([sys.executable, "-c", code], check=True)


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


@pytest.mark.parametrize("variant", ["released", "paper"])
def test_half_resolution_pools_before_and_upsamples_after_the_same_net(variant: str) -> None:
    full, half = (build_generator(variant, 6, 3, 8, resolution).double().eval() for resolution in ("full", "half"))
    half.load_state_dict(full.state_dict(), strict=True)
    x = torch.randn(2, 6, 8, 12, dtype=torch.float64)
    pooled = x.reshape(2, 6, 4, 2, 6, 2).mean(dim=(3, 5))
    with torch.no_grad():
        small = full(pooled)
        # Bilinear by two: three quarters of the nearest value and one of the next, edges repeated; rows, then columns.
        for dim in (2, 3):
            size = small.shape[dim]
            before = small.index_select(dim, torch.arange(-1, size - 1).clamp(min=0))
            after = small.index_select(dim, torch.arange(1, size + 1).clamp(max=size - 1))
            pair = torch.stack([0.75 * small + 0.25 * before, 0.75 * small + 0.25 * after], dim=dim + 1)
            small = pair.flatten(dim, dim + 1)
        torch.testing.assert_close(half(x), small)


@pytest.mark.parametrize(("variant", "count"), [("released", 79_173), ("paper", 79_302)])
def test_half_resolution_keeps_the_parameters_and_takes_odd_sizes(variant: str, count: int) -> None:
    generator = build_generator(variant, 6, 3, 64, "half").to(memory_format=torch.channels_last)
    assert parameters(generator) == count
    for size in ((9, 11), (1, 1), (8, 5)):
        x = torch.rand(2, 6, *size).to(memory_format=torch.channels_last)
        out = generator(x)
        assert out.shape == (2, 3, *size)
        assert out.is_contiguous(memory_format=torch.channels_last)
        for gradient in torch.autograd.grad(out.sum(), list(generator.parameters())):
            assert gradient.isfinite().all()


def test_half_resolution_sees_every_pixel_of_an_odd_image() -> None:
    generator = build_generator("released", 1, 1, 4, "half").eval()
    x = torch.rand(1, 1, 5, 7, requires_grad=True)
    (gradient,) = torch.autograd.grad(generator(x).square().sum(), x)
    assert (gradient != 0).all()


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
        (lambda: ModelOptions(name="vgg"), "'vgg' is not a model: choose one of resnet8, .*resnet50, timm:NAME, or"),
        (lambda: ModelOptions(name="timm:"), "'timm:' is not a model"),
        (lambda: ModelOptions(name="a b.c"), "'a b.c' is not a model"),
        (lambda: ModelOptions(name="resnet18", shortcut="input"), "model.shortcut is for preact_resnet18 only"),
        (lambda: ModelOptions(name="timm:resnet18", final_bn=False), "model.final-bn .* preact_resnet18 only"),
        (lambda: ModelOptions(name="resnet18", final_bn=False), "model.final-bn .* preact_resnet18 only"),
        (lambda: ModelOptions(name="resnet50", final_bn=False), "model.final-bn .* preact_resnet18 only"),
        (lambda: build_generator("vgg", 6, 3, 4), "method.generator 'vgg'.* released or paper"),
        (lambda: build_generator("paper", 6, 3, 4, "quarter"), "method.generator-resolution 'quarter'.*full or half"),
    ],
)
def test_bad_options(make: object, message: str) -> None:
    with pytest.raises(UsageError, match=message) as refusal:
        make()
    assert "\n" not in str(refusal.value)


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
