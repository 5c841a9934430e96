"""The frozen twin: whose tensors it shares, what it copies, what it folds, and that it follows the net."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hardfast.engine.frozen import FrozenTwin
from hardfast.engine.models import ModelName, ModelOptions, NetShape, build_model, pad_stem


def trained(model: ModelName = "resnet8", dtype: torch.dtype = torch.float64) -> nn.Module:
    """A net whose BatchNorms have seen images, with random affine parameters."""
    torch.manual_seed(0)
    net = build_model(ModelOptions(name=model), NetShape(num_classes=10, in_channels=3)).to(dtype)
    for _ in range(3):
        net(torch.rand(4, 3, 32, 32, dtype=dtype))
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 2)
                module.bias.uniform_(-1, 1)
    return net


def test_it_shares_every_tensor_and_wants_no_gradient() -> None:
    net = trained()
    twin = FrozenTwin(net, training=True).net
    for (name, ours), (other, theirs) in zip(net.named_parameters(), twin.named_parameters(), strict=True):
        assert name == other
        assert ours.data_ptr() == theirs.data_ptr()
        assert ours.requires_grad
        assert not theirs.requires_grad
    for ours, theirs in zip(net.buffers(), twin.buffers(), strict=True):
        assert ours is theirs
    assert twin.training


def test_the_net_and_its_checkpoint_do_not_know_of_it() -> None:
    net = trained()
    names, mode = list(net.state_dict()), net.training
    FrozenTwin(net, training=False, fold=True)
    assert list(net.state_dict()) == names
    assert net.training == mode
    assert all(p.requires_grad for p in net.parameters())


def test_in_train_mode_it_updates_the_running_statistics_of_the_net() -> None:
    net, x = trained(), torch.rand(4, 3, 32, 32, dtype=torch.float64)
    before, count = net.bn1.running_mean.clone(), int(net.bn1.num_batches_tracked)
    FrozenTwin(net, training=True).net(x)
    assert not torch.equal(net.bn1.running_mean, before)
    assert net.bn1.num_batches_tracked == count + 1


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_copies_in_half_precision_follow_the_net(half: torch.dtype) -> None:
    net = trained(dtype=torch.float32)
    twin = FrozenTwin(net, training=True, half=half)

    def check() -> None:
        pairs = zip(net.named_parameters(), twin.net.parameters(), strict=True)
        for (name, ours), theirs in pairs:
            cast = "bn" not in name and "shortcut.1" not in name  # convolutions and the linear layer
            assert theirs.dtype == (half if cast else torch.float32), name
            assert torch.equal(theirs, ours.to(theirs.dtype)), name

    twin.refresh()
    check()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn_like(p))
    twin.refresh()
    check()


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(
    ("model", "count"), [("resnet8", 9), ("resnet18", 20), ("resnet50", 53), ("preact_resnet18", 8)]
)
def test_folding_is_eval_mode(model: ModelName, count: int, padded: bool) -> None:
    """In a pre-activation net only the BatchNorm between a block's two convolutions follows a convolution."""
    net = trained(model)
    if padded:
        assert pad_stem(net, 3, 4)
    twin = FrozenTwin(net, training=False, fold=True)
    assert len(twin.folded) == count
    assert twin.unfolded is None
    assert sum(isinstance(m, nn.BatchNorm2d) for m in twin.net.modules()) == (9 if model == "preact_resnet18" else 0)
    x = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    for _ in range(2):
        twin.refresh()
        assert torch.allclose(twin.net(x), net.eval()(x), rtol=1e-9, atol=1e-9)
        net.train()(x)  # other statistics, and other weights
        with torch.no_grad():
            for p in net.parameters():
                p.mul_(1.1)
        assert not torch.allclose(twin.net(x), net.eval()(x), rtol=1e-3, atol=1e-3)


def test_folding_in_half_precision_folds_before_it_rounds() -> None:
    net = trained(dtype=torch.float32)
    twin, exact = (FrozenTwin(net, training=False, half=half, fold=True) for half in (torch.bfloat16, None))
    for one in (twin, exact):
        one.refresh()
    for rounded, full in zip(twin.net.parameters(), exact.net.parameters(), strict=True):
        assert rounded.dtype == torch.bfloat16
        assert torch.equal(rounded, full.to(torch.bfloat16))


class Branching(nn.Module):
    """Depends on numbers, so it cannot be traced without them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)) if x.sum() > 0 else self.bn(self.conv(-x))


class Shared(nn.Module):
    """One convolution whose output is read twice, and one that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (nn.Conv2d(4, 4, 1) for _ in range(3))
        self.bn1, self.bn2 = (nn.BatchNorm2d(4) for _ in range(2))
        self.bn3 = nn.BatchNorm2d(4, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        a = self.conv1(x)
        b = self.bn1(a) + a
        c = self.conv2(self.bn2(self.conv2(b)))
        return self.bn3(self.conv3(c))


def test_what_cannot_be_folded_is_left_alone() -> None:
    twin = FrozenTwin(Branching(), training=False, fold=True)
    assert not twin.folded
    assert "cannot be traced" in str(twin.unfolded)
    torch.manual_seed(0)
    net = Shared().double()
    x = torch.rand(2, 4, 3, 3, dtype=torch.float64)
    net(x)
    twin = FrozenTwin(net, training=False, fold=True)
    twin.refresh()
    assert twin.folded == ["bn3"]
    assert torch.allclose(twin.net(x), net.eval()(x), atol=1e-12)


def test_folding_in_train_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="eval mode"):
        FrozenTwin(trained(), training=True, fold=True)
