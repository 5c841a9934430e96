"""Nets by a dotted path, and timm's: found, normalised, saved under their own names, or refused in one line."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hardfast.engine import UsageError, load_model, recipes
from hardfast.engine.frozen import FrozenTwin
from hardfast.engine.models import (
    ModelOptions,
    NetFromElsewhere,
    NetShape,
    build_model,
    check_net,
    pad_stem,
    seeded_initialisation,
)
from hardfast.engine.run import Run
from hardfast.loaders import DataOptions, open_dataset
from hardfast.loaders.synthetic import SyntheticShape

pytest.importorskip("tyro")
from hardfast.engine import cli

SHAPE = NetShape(num_classes=5, in_channels=3)

needs_timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")

NETS = """
import torch
from torch import nn


class Small(nn.Module):
    def __init__(self, num_classes, in_channels, width=4):
        super().__init__()
        self.stem = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x):
        return self.head(self.norm(self.stem(x)).relu().mean(dim=(2, 3)))

    @classmethod
    def wide(cls, num_classes, in_channels):
        return cls(num_classes, in_channels, width=8)


def small(num_classes, in_channels):
    return Small(num_classes, in_channels)


class Doubled(nn.BatchNorm2d):
    def forward(self, x):
        return 2 * super().forward(x)


def doubled(num_classes, in_channels):
    net = Small(num_classes, in_channels)
    net.norm = Doubled(4)
    return net


def for_three_classes(num_classes, in_channels):
    return Small(3, in_channels)


def pairs(num_classes, in_channels):
    class Pairs(Small):
        def forward(self, x):
            out = super().forward(x)
            return (out, out) if self.training else out

    return Pairs(num_classes, in_channels)


def other_arguments(classes):
    return Small(classes, 3)


def broken(num_classes, in_channels):
    return Small(num_classes, -1)


def no_net(num_classes, in_channels):
    return lambda x: x


def no_weights(num_classes, in_channels):
    return nn.AdaptiveAvgPool2d(1)


def lazy(num_classes, in_channels):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))


def tied(num_classes, in_channels):
    net = Small(num_classes, in_channels)
    net.again = nn.Linear(4, num_classes)
    net.again.weight = net.head.weight
    return net


def with_extra_state(num_classes, in_channels):
    class Extra(Small):
        def get_extra_state(self):
            return {"a": 1}

        def set_extra_state(self, state):
            pass

    return Extra(num_classes, in_channels)


def uncopied(num_classes, in_channels):
    net = Small(num_classes, in_channels)
    net.seen = net.head.weight * 2
    return net


def of_16_pixels(num_classes, in_channels):
    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * 256, num_classes))


constant = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module in the current directory, which nothing else makes importable."""
    name = f"nets_of_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(NETS)
    (tmp_path / f"bad_{name}.py").write_text("import no_such_package_at_all\n")
    (tmp_path / f"worse_{name}.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    return name


def own(module: str, factory: str, image_size: tuple[int, int] | None = None) -> NetFromElsewhere:
    net = build_model(ModelOptions(name=f"{module}:{factory}"), SHAPE, image_size=image_size)
    assert isinstance(net, NetFromElsewhere)
    return net


def test_every_way_to_write_a_factory(module: str) -> None:
    for name, width in ((f"{module}:small", 4), (f"{module}.small", 4), (f"{module}:Small.wide", 8)):
        options = ModelOptions(name=name)
        one, same, other = (seeded_initialisation(partial(build_model, options, SHAPE), seed) for seed in (1, 1, 2))
        state, again = one.state_dict(), same.state_dict()
        assert state["stem.weight"].shape == (width, 3, 3, 3)
        assert all(torch.equal(state[key], again[key]) for key in state)
        assert not torch.equal(state["stem.weight"], other.state_dict()["stem.weight"])


def test_normalisation_is_in_front_and_the_names_are_the_nets_own(module: str) -> None:
    options = ModelOptions(name=f"{module}:small", mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    net = build_model(options, SHAPE).eval()
    inner = net.net
    assert list(net.state_dict()) == list(inner.state_dict())
    assert next(iter(net.state_dict())) == "stem.weight"
    weights = {key: torch.rand_like(value.float()).to(value.dtype) for key, value in net.state_dict().items()}
    net.load_state_dict(weights, strict=True)
    nn.ModuleDict({"inside": net}).load_state_dict({f"inside.{key}": value for key, value in weights.items()})
    for key, value in inner.state_dict().items():
        assert torch.equal(value, weights[key])
    x = torch.rand(2, 3, 8, 8)
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (options.mean, options.std))
    with torch.no_grad():
        assert torch.equal(net(x), inner((x - mean) / std))
    del weights["head.bias"]
    with pytest.raises(RuntimeError, match=r"Missing.*head.bias"):
        net.load_state_dict(weights, strict=True)
    with pytest.raises(RuntimeError, match=r"Unexpected.*other"):
        net.load_state_dict({**inner.state_dict(), "other": torch.zeros(1)}, strict=True)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("nothing", "there is no 'nothing' in .*py"),
        ("constant", "must be a function or a class, not int"),
        ("other_arguments", "must be callable with num_classes and in_channels"),
        ("broken", r"the factory failed \(\w+Error: .*py:\d+\)"),
        ("no_net", "must return an nn.Module, not function"),
        ("no_weights", "has no weights to train"),
        ("lazy", "1.weight has no shape yet"),
        ("tied", "'head.weight' and 'again.weight' share their memory"),
        ("with_extra_state", "'_extra_state' in its state dict is no tensor"),
        ("uncopied", "cannot be copied"),
        ("for_three_classes", r"logits of shape \[N, 5\] for 5 classes; in train mode .* \[2, 3\] for two images"),
        ("pairs", "in train mode it returns a tuple"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_line(factory: str, message: str, module: str) -> None:
    with pytest.raises(UsageError, match=message) as refusal:
        own(module, factory)
    assert "\n" not in str(refusal.value)
    assert str(refusal.value).startswith(f"model.name '{module}:{factory}'")


@pytest.mark.parametrize(
    ("prefix", "message"),
    [
        ("no_", "there is no module no_.*, neither installed nor in .*start in the folder that holds it"),
        ("bad_", "needs no_such_package_at_all, which is not installed"),
        ("worse_", r"cannot be imported \(ZeroDivisionError: .*worse_.*py:1\)"),
    ],
)
def test_modules_that_cannot_be_imported(prefix: str, message: str, module: str) -> None:
    with pytest.raises(UsageError, match=message) as refusal:
        own(prefix + module, "small")
    assert "\n" not in str(refusal.value)


def test_a_net_for_one_size_is_tried_on_that_size(module: str) -> None:
    net = own(module, "of_16_pixels")  # of no size that is tried where none is known: not refused
    own(module, "of_16_pixels", image_size=(16, 16))
    for refused in (
        lambda: own(module, "of_16_pixels", image_size=(16, 32)),
        lambda: check_net(net, f"{module}:of_16_pixels", SHAPE, (16, 32)),
    ):
        with pytest.raises(UsageError, match=r"does not run on images of 3x16x32 \(RuntimeError") as refusal:
            refused()
        assert "\n" not in str(refusal.value)


def test_the_trial_leaves_the_net_and_the_random_numbers_alone(module: str) -> None:
    net = own(module, "small")
    before = {key: value.clone() for key, value in net.state_dict().items()}
    state = torch.random.get_rng_state()
    check_net(net, "mine", SHAPE, (8, 8))
    assert net.training
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert int(net.state_dict()["norm.num_batches_tracked"]) == 0


def test_stem_and_twin_take_it(module: str) -> None:
    """The stem padded, the twin's BN folded: the logits stay. A BN that does more than one is left where it is."""
    x = torch.rand(2, 3, 8, 8)
    for factory, folded in (("small", ["net.norm"]), ("doubled", [])):
        net = own(module, factory)
        with torch.no_grad():
            net(3 * torch.rand(8, 3, 8, 8) - 1)  # running statistics that are not 0 and 1
            expected = net.eval()(x)
            assert pad_stem(net, 3, 4)
            twin = FrozenTwin(net, training=False, fold=True)
            twin.refresh()
            assert twin.folded == folded
            torch.testing.assert_close(twin.net(x), expected)
    assert twin.unfolded is None


def test_what_is_not_merged_is_announced(module: str) -> None:
    recipe = replace(
        recipes.get("digits"),
        attack_bn="eval",
        batch_size=4,
        data=DataOptions(name="synthetic", image_size=8, synthetic=SyntheticShape(train_images=40)),
        model=ModelOptions(name=f"{module}:doubled"),
    )
    (line,) = Run(recipe, open_dataset(recipe.data), torch.device("cpu")).slower_paths()
    assert line.startswith("attack-bn eval: 0 of 1 BatchNorms merged")
    assert "0 of 1 BatchNorms merged" in line


def test_own_net_trains_is_saved_and_comes_back(module: str, tmp_path: Path) -> None:
    words = ["digits", "--out", "run", "--model.name", f"{module}:small", "--epochs", "1", "--no-evaluate"]
    assert cli.run(["train", *words]) == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["model"]["name"] == f"{module}:small"
    net = load_model(tmp_path / "run", checkpoint="last")
    assert next(iter(net.state_dict())) == "stem.weight"
    assert int(net.state_dict()["norm.num_batches_tracked"]) > 0
    with torch.no_grad():
        assert net(torch.rand(3, 3, 16, 16)).shape == (3, 10)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vgg", "'vgg' is not a model: choose one of resnet8, resnet18, "),
        ("no_such_module_here:factory", "there is no module no_such_module_here"),
        pytest.param("timm:resnett18", "did you mean timm:resnet18", marks=needs_timm),
    ],
)
def test_the_command_says_it_in_one_line(
    name: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["train", "digits", "--out", str(tmp_path / "run"), "--model.name", name]) == 2
    said = capsys.readouterr().err.strip()
    assert message in said
    assert "\n" not in said


def images(side: int) -> Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))


@needs_timm
def test_a_net_of_timm_is_timms() -> None:
    """Fresh weights from the seed, timm's names, its logits behind the normalisation, padded and folded."""
    import timm

    options = ModelOptions(name="timm:test_resnet", mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    net, same = (seeded_initialisation(partial(build_model, options, SHAPE), 3) for _ in range(2))
    theirs = timm.create_model("test_resnet", pretrained=False, num_classes=5)
    assert list(net.state_dict()) == list(theirs.state_dict())
    assert all(map(torch.equal, net.state_dict().values(), same.state_dict().values()))
    theirs.load_state_dict(net.state_dict(), strict=True)
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (options.mean, options.std))
    with torch.no_grad():
        expected = theirs.eval()((images(32) - mean) / std)
        torch.testing.assert_close(net.eval()(images(32)), expected)
        assert pad_stem(net, 3, 4)
        twin = FrozenTwin(net, training=False, fold=True)
        twin.refresh()
        assert len(twin.folded) == sum(isinstance(module, nn.BatchNorm2d) for module in theirs.modules()) > 10
        torch.testing.assert_close(twin.net(images(32)), expected)


@needs_timm
def test_timms_batchnorm_with_an_activation_inside_is_not_merged_away() -> None:
    net = build_model(ModelOptions(name="timm:test_efficientnet"), SHAPE).eval()
    twin = FrozenTwin(net, training=False, fold=True)
    twin.refresh()
    with torch.no_grad():
        torch.testing.assert_close(twin.net(images(32)), net(images(32)))
    assert twin.folded == []


@needs_timm
def test_timm_takes_other_channels_and_its_nets_of_one_size_are_refused_on_others() -> None:
    grey = build_model(ModelOptions(name="timm:test_resnet", mean=(0.5,)), NetShape(num_classes=7, in_channels=1))
    with torch.no_grad():
        assert grey.eval()(torch.rand(2, 1, 28, 28)).shape == (2, 7)
    build_model(ModelOptions(name="timm:vit_tiny_patch16_224"), SHAPE, image_size=(224, 224))
    with pytest.raises(UsageError, match=r"'timm:vit_tiny_patch16_224' does not run on images of 3x32x32 \(.*32.*224"):
        build_model(ModelOptions(name="timm:vit_tiny_patch16_224"), SHAPE, image_size=(32, 32))


def test_without_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UsageError, match=r"'timm:resnet18' needs timm.*pip install timm") as refusal:
        build_model(ModelOptions(name="timm:resnet18"), SHAPE)
    assert "\n" not in str(refusal.value)
