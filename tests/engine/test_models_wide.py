"""WideResNet: its size, its initial weights, and its forward pass against the paper's, written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hardfast.engine.frozen import FrozenTwin
from hardfast.engine.models import ModelOptions, NetShape, WideResNet, build_model, pad_stem


def test_wide_resnet34_10_is_the_papers() -> None:
    """Its size, and the initial weights of the papers' code: sqrt(2 / (k * k * out)), BN 1 and 0, linear bias 0."""
    torch.manual_seed(0)
    net = build_model(ModelOptions(name="wide_resnet34_10"), NetShape(num_classes=10, in_channels=3))
    assert sum(p.numel() for p in net.parameters()) == 46_160_474
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d):
            deviation = (2 / (module.kernel_size[0] ** 2 * module.out_channels)) ** 0.5
            tolerance = 5 / module.weight.numel() ** 0.5  # of a normal's estimated deviation, five times over
            assert module.weight.std().item() == pytest.approx(deviation, rel=tolerance), name
            assert module.bias is None
    assert net.fc.bias.eq(0).all()
    assert net.fc.weight.abs().max() <= 640**-0.5  # PyTorch's default
    assert net.bn1.weight.eq(1).all()


def activated(state: dict[str, Tensor], name: str, x: Tensor, training: bool) -> Tensor:
    """ReLU of a BN: with the batch's statistics in train mode, the running ones in eval mode."""
    if training:
        mean, var = x.mean(dim=(0, 2, 3), keepdim=True), x.var(dim=(0, 2, 3), correction=0, keepdim=True)
    else:
        mean, var = (state[f"{name}.running_{key}"].reshape(-1, 1, 1) for key in ("mean", "var"))
    weight, bias = (state[f"{name}.{key}"].reshape(-1, 1, 1) for key in ("weight", "bias"))
    return (weight * (x - mean) / (var + 1e-5).sqrt() + bias).clamp(min=0)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("size", [3, 8])
def test_wide_resnet_computes_what_the_paper_says(size: int, training: bool) -> None:
    """WRN-16-2: two blocks in each stage, every kind of shortcut."""
    torch.manual_seed(1)
    net = WideResNet(16, 2, num_classes=3, in_channels=2, mean=(0.4, 0.5), std=(0.2, 0.3)).double()
    for tensor in net.state_dict().values():
        if tensor.is_floating_point() and tensor.dim() == 1:  # BNs that do something
            tensor.uniform_(0.5, 1.5)
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    x = torch.rand(3, 2, size, size, dtype=torch.float64)
    mean, std = torch.tensor([[0.4, 0.5], [0.2, 0.3]]).reshape(2, 2, 1, 1)
    out = F.conv2d((x - mean) / std, state["conv1.weight"], padding=1)
    for stage, stride in ((1, 1), (2, 2), (3, 2)):
        for block in (0, 1):
            name = f"block{stage}.layer.{block}"
            a = activated(state, f"{name}.bn1", out, training)
            b = F.conv2d(a, state[f"{name}.conv1.weight"], stride=stride if block == 0 else 1, padding=1)
            b = F.conv2d(activated(state, f"{name}.bn2", b, training), state[f"{name}.conv2.weight"], padding=1)
            shortcut = out if block else F.conv2d(a, state[f"{name}.convShortcut.weight"], stride=stride)
            out = shortcut + b
    out = activated(state, "bn1", out, training).mean(dim=(2, 3))
    expected = F.linear(out, state["fc.weight"], state["fc.bias"])
    with torch.no_grad():
        torch.testing.assert_close(net.train(training)(x), expected)


def test_stem_twin_and_compiler_take_it() -> None:
    """Padded, folded and traced as one graph: the logits stay. The stem's BN and each block's second can be merged."""
    torch.manual_seed(2)
    net = WideResNet(16, 2, num_classes=3)
    x = torch.rand(4, 3, 8, 8)
    with torch.no_grad():
        net(3 * x - 1)  # running statistics that are not 0 and 1
        expected = net.eval()(x)
        assert pad_stem(net, 3, 4)
        twin = FrozenTwin(net, training=False, fold=True)
        twin.refresh()
        assert len(twin.folded) == 6 + 1
        assert twin.folded[:2] == ["block1.layer.0.bn1", "block1.layer.0.bn2"]
        torch.testing.assert_close(twin.net(x), expected)
        torch.testing.assert_close(torch.compile(net, fullgraph=True, backend="eager")(x), expected)


def test_depths_between_two_nets_are_refused() -> None:
    for depth in (4, 11, 35):
        with pytest.raises(ValueError, match="6n \\+ 4"):
            WideResNet(depth, 1, num_classes=2)
