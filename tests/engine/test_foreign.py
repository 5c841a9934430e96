"""Weight files from elsewhere: whatever wraps them, what they must not do, and one line for each that does not fit."""

from __future__ import annotations

import copy
import math
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hardfast.engine import CheckpointError, UsageError, load_weights
from hardfast.engine.foreign import ForeignOptions, read_foreign
from hardfast.engine.models import ModelOptions, NetShape, build_model

save_file = pytest.importorskip("safetensors.torch").save_file
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
SHAPE = NetShape(num_classes=7, in_channels=3)
Tensors = dict[str, Tensor]


def trained(options: ModelOptions, shape: NetShape = SHAPE) -> nn.Module:
    """A net whose BN statistics are not those of a fresh one."""
    net = build_model(options, shape)
    with torch.no_grad():
        net(torch.rand(16, shape.in_channels, 16, 16))
    return net.eval()


@pytest.fixture(scope="module")
def small() -> nn.Module:
    return trained(ModelOptions(name="resnet8"))


def same(one: nn.Module, other: nn.Module, channels: int = 3) -> bool:
    x = torch.rand(4, channels, 16, 16)
    with torch.no_grad():
        return torch.allclose(one(x), other(x), atol=1e-5)


def prefixed(prefix: str, tensors: Tensors) -> Tensors:
    return {f"{prefix}{name}": value for name, value in tensors.items()}


def per_channel(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values).reshape(1, -1, 1, 1)


def refused(path: Path, **asked: Any) -> str:
    with pytest.raises(CheckpointError) as refusal:
        load_weights(path, **asked)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 90, "optimizer": {"lr": 0.1}},
        lambda state: {"model_state_dict": state},
        lambda state: {"net": state, "acc": 81.5},
        lambda state: {"model": prefixed("module.", state)},
        lambda state: {"last": state, "best": {}},
        lambda state: prefixed("module.", state),
        lambda state: prefixed("module._orig_mod.", state),
        lambda state: {"state_dict": prefixed("module.model.", state)},
    ],
)
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt"])
def test_what_authors_wrap_weights_in(
    wrap: Callable[[Tensors], dict[str, Any]], suffix: str, small: nn.Module, tmp_path: Path
) -> None:
    path = tmp_path / f"weights{suffix}"
    torch.save(wrap(small.state_dict()), path)
    net = load_weights(path)
    assert not any(module.training for module in net.modules())
    assert same(net, small)


def test_data_parallel_as_torch_saves_it(small: nn.Module, tmp_path: Path) -> None:
    torch.save(nn.DataParallel(small).state_dict(), tmp_path / "weights.pt")
    assert same(load_weights(tmp_path / "weights.pt"), small)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state, mean, std: {"mu": mean, "sigma": std} | state,
        lambda state, mean, std: {"state_dict": prefixed("module.", {"mu": mean, "sigma": std} | state)},
        lambda state, mean, std: {"normalize.mean": mean, "normalize.std": std} | prefixed("model.", state),
        lambda state, mean, std: {"0.mean": mean, "0.std": std} | prefixed("1.", state),
        lambda state, mean, std: prefixed("module.", {"0.mean": mean, "0.std": std} | prefixed("1.module.", state)),
        lambda state, mean, std: {"mean": mean, "std": std} | prefixed("model.", state),
    ],
)
def test_the_files_own_normalisation(
    wrap: Callable[[Tensors, Tensor, Tensor], dict[str, Any]], small: nn.Module, tmp_path: Path
) -> None:
    """RobustBench's containers: the constants become the net's, so that it takes images in [0, 1]."""
    path = tmp_path / "weights.pt"
    torch.save(wrap(small.state_dict(), per_channel(MEAN), per_channel(STD)), path)
    x = torch.rand(4, 3, 16, 16)
    with torch.no_grad():
        wanted = small((x - per_channel(MEAN)) / per_channel(STD))
        torch.testing.assert_close(load_weights(path)(x), wanted)
        # What the user says goes before what the file says.
        torch.testing.assert_close(load_weights(path, mean=(0.0,) * 3, std=(1.0,) * 3)(x), small(x))


@pytest.mark.parametrize(
    ("asked", "mean", "std", "replaced"),
    [
        (ForeignOptions(), MEAN, STD, []),
        (ForeignOptions(mean=(0.0,) * 3), (0.0,) * 3, STD, ["mean"]),
        (ForeignOptions(std=(1.0,) * 3), MEAN, (1.0,) * 3, ["std"]),
        (ForeignOptions(mean=(0.0,) * 3, std=(1.0,) * 3), (0.0,) * 3, (1.0,) * 3, ["mean", "std"]),
    ],
)
def test_what_the_user_replaces_of_the_files_normalisation(
    asked: ForeignOptions,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    replaced: list[str],
    small: nn.Module,
    tmp_path: Path,
) -> None:
    """Each of the two for itself, with a line for each that is replaced and for no other."""
    path = tmp_path / "weights.pt"
    torch.save({"mu": per_channel(MEAN), "sigma": per_channel(STD)} | small.state_dict(), path)
    found = read_foreign(path, asked)
    assert (found.options.mean, found.options.std) == (pytest.approx(mean), pytest.approx(std))
    assert [note for note in found.notes if "--model.mean" in note or "--model.std" in note] == [
        f"normalised by --model.{field} instead of the file's own" for field in replaced
    ]


@pytest.mark.parametrize("field", ["mean", "std"])
def test_a_normalisation_of_no_values(field: str, small: nn.Module, tmp_path: Path) -> None:
    torch.save(small.state_dict(), tmp_path / "weights.pt")
    with pytest.raises(UsageError, match=rf"model\.{field} names no value: give one for every channel"):
        load_weights(tmp_path / "weights.pt", **{field: ()})


def test_normalisation_by_the_user(small: nn.Module, tmp_path: Path) -> None:
    torch.save(small.state_dict(), tmp_path / "weights.pt")
    net = load_weights(tmp_path / "weights.pt", mean=MEAN, std=STD)
    x = torch.rand(4, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(net(x), small((x - per_channel(MEAN)) / per_channel(STD)))
    with pytest.raises(UsageError, match=r"model\.mean has 1 values but the images have 3 channels"):
        load_weights(tmp_path / "weights.pt", mean=(0.5,))


@pytest.mark.parametrize(
    ("options", "channels"),
    [
        (ModelOptions(name="resnet8"), 1),
        (ModelOptions(name="resnet18"), 3),
        (ModelOptions(name="preact_resnet18"), 3),
        (ModelOptions(name="preact_resnet18", final_bn=False), 1),
        (ModelOptions(name="resnet50"), 3),
    ],
)
def test_the_architecture_is_read_off_the_file(options: ModelOptions, channels: int, tmp_path: Path) -> None:
    shape = NetShape(num_classes=12, in_channels=channels)
    net = trained(options, shape)
    torch.save(net.state_dict(), tmp_path / "weights.pt")
    before = torch.random.get_rng_state()
    found = read_foreign(tmp_path / "weights.pt", ForeignOptions())
    assert torch.equal(torch.random.get_rng_state(), before)
    assert (found.options, found.shape) == (options, shape)
    assert same(found.net, net, channels)
    assert any(
        note.startswith(f"taken for {options.name}") and f"(num_classes 12, in_channels {channels})" in note
        for note in found.notes
    )


def test_what_no_file_says_of_preact_resnet18(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The two blocks of RobustBench have the same names: the line says what was taken."""
    wong = trained(ModelOptions(name="preact_resnet18", shortcut="input"))
    torch.save(wong.state_dict(), tmp_path / "weights.pt")
    assert not same(load_weights(tmp_path / "weights.pt"), wong)
    assert "--model.shortcut input" in capsys.readouterr().out
    assert same(load_weights(tmp_path / "weights.pt", shortcut="input"), wong)
    assert "--model.shortcut input" not in capsys.readouterr().out


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_cast_up_and_said(
    dtype: torch.dtype, small: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    half = copy.deepcopy(small).to(dtype)
    save_file(half.state_dict(), tmp_path / "weights.safetensors")
    net = load_weights(tmp_path / "weights.safetensors")
    assert same(net, copy.deepcopy(half).float())
    assert {p.dtype for p in net.parameters()} == {torch.float32}
    assert f"tensors are {str(dtype).removeprefix('torch.')}" in capsys.readouterr().out


def test_wide_resnets_with_what_they_carry_unused(tmp_path: Path) -> None:
    net = trained(ModelOptions(name="wide_resnet34_10"))
    state = net.state_dict()
    unused = {name.replace("block1.", "sub_block1."): v for name, v in state.items() if name.startswith("block1.")}
    torch.save(state | unused, tmp_path / "weights.pt")
    found = read_foreign(tmp_path / "weights.pt", ForeignOptions())
    assert same(found.net, net)
    assert (found.options, found.shape) == (ModelOptions(name="wide_resnet34_10"), SHAPE)
    assert any(f"{len(unused)} tensors of sub_block1.* left out" in note for note in found.notes)


def test_files_older_than_the_batch_counter(small: nn.Module, tmp_path: Path) -> None:
    state = {name: value for name, value in small.state_dict().items() if "num_batches_tracked" not in name}
    torch.save(state, tmp_path / "weights.pt")
    assert same(load_weights(tmp_path / "weights.pt"), small)


class OwnNet(nn.Module):
    """A user's net whose names look like wrappings."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((1, in_channels, 1, 1), 0.5))
        self.register_buffer("std", torch.full((1, in_channels, 1, 1), 0.25))
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(in_channels * 16 * 16, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.model((x - self.mean) / self.std)
        return out


def test_a_users_own_net_keeps_its_names(tmp_path: Path) -> None:
    name = f"{OwnNet.__module__}:OwnNet"
    net = OwnNet(7, 3).eval()
    for state in (net.state_dict(), prefixed("module.", net.state_dict())):
        torch.save(state, tmp_path / "weights.pt")
        found = read_foreign(tmp_path / "weights.pt", ForeignOptions(name=name), shape=SHAPE, image_size=(16, 16))
        assert same(found.net, net)
    with pytest.raises(UsageError, match="say its channels and classes"):
        load_weights(tmp_path / "weights.pt", name)


def without(state: Tensors, name: str) -> Tensors:
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda s: without(s, "layer2.0.conv1.weight"), ["no tensor 'layer2.0.conv1.weight'", "resnet8"]),
        (lambda s: without(s, "linear.weight"), ["no tensor 'linear.weight'", "resnet8"]),
        (lambda s: s | {"head.weight": torch.rand(3)}, ["a tensor 'head.weight'", "resnet8 has not"]),
        (lambda s: s | {"mu": torch.rand(3)}, ["a tensor 'mu'"]),
        (lambda s: s | {"bn1.bias": torch.rand(17)}, ["'bn1.bias'", "(17,)", "(16,)"]),
        (lambda s: s | {"linear.weight": torch.rand(7)}, ["'linear.weight'", "(7,)"]),
        (lambda s: s | {"linear.bias": torch.rand(8)}, ["'linear.bias'", "(8,)", "(7,)"]),
        (lambda s: s | {"bn1.bias": torch.rand(16).double()}, ["'bn1.bias'", "float64", "float32"]),
        (lambda s: s | {"conv1.weight": s["conv1.weight"].to(torch.int8)}, ["'conv1.weight'", "int8"]),
        (lambda s: s | {"mu": torch.rand(3, 3), "sigma": torch.rand(3)}, ["'mu'", "(3, 3)", "constant per channel"]),
        (lambda s: s | {"mu": torch.rand(3), "sigma": torch.tensor([1.0, 0, 1])}, ["'sigma'", "(1, 0, 1)", "positive"]),
        (lambda s: s | {"mu": torch.tensor([math.nan] * 3), "sigma": torch.ones(3)}, ["'mu'", "nan", "not finite"]),
        (
            lambda s: {"encoder.weight": torch.rand(3, 3)},
            ["none of resnet8, resnet18", "encoder.weight", "--model.name"],
        ),
    ],
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_files_that_do_not_fit(
    change: Callable[[Tensors], Tensors], parts: list[str], suffix: str, small: nn.Module, tmp_path: Path
) -> None:
    path = tmp_path / f"weights{suffix}"
    tensors = change(small.state_dict())
    save_file(tensors, path) if suffix == ".safetensors" else torch.save(tensors, path)
    said = refused(path)
    for part in [str(path), *parts]:
        assert part in said


def test_another_architecture_than_the_files(small: nn.Module, tmp_path: Path) -> None:
    torch.save(small.state_dict(), tmp_path / "weights.pt")
    said = refused(tmp_path / "weights.pt", model="resnet18")
    assert "'conv1.weight' is torch.float32 (16, 3, 3, 3), but resnet18 has torch.float32 (64, 3, 3, 3)" in said
    assert "'layer1.0.bn1.weight'" not in said, "the first that does not fit, and no other"
    assert "no tensor 'fc.weight', which wide_resnet34_10 has" in refused(
        tmp_path / "weights.pt", model="wide_resnet34_10"
    )
    with pytest.raises(UsageError, match="'resnet19' is not a model"):
        load_weights(tmp_path / "weights.pt", "resnet19")
    with pytest.raises(UsageError, match=r"model\.shortcut is for preact_resnet18 only"):
        load_weights(tmp_path / "weights.pt", shortcut="input")


class Malicious:
    """What runs when an unsafe reader unpickles it."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.canary),)


@pytest.mark.parametrize("place", ["value", "beside", "raw pickle", "old format"])
def test_code_in_a_pickle_is_not_executed(place: str, small: nn.Module, tmp_path: Path) -> None:
    path, canary = tmp_path / "weights.pt", tmp_path / "canary"
    evil = Malicious(canary)
    if place == "raw pickle":
        path.write_bytes(pickle.dumps(evil, protocol=2))
    else:
        content = {"conv1.weight": evil} if place == "value" else {"state_dict": small.state_dict(), "args": evil}
        torch.save(content, path, _use_new_zipfile_serialization=place != "old format")
    said = refused(path)
    assert "posix.mkdir" in said
    assert "was not executed" in said
    assert not canary.exists()
    pickle.loads(pickle.dumps(evil))  # noqa: S301  # the canary does die where pickles are obeyed
    assert canary.exists()


def test_a_pickled_net_is_refused(small: nn.Module, tmp_path: Path) -> None:
    torch.save(small, tmp_path / "weights.pt")
    said = refused(tmp_path / "weights.pt")
    assert "hardfast.engine.models.resnet.ResNet" in said
    assert "net.state_dict()" in said


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.999])
def test_truncated_files(kept: float, suffix: str, small: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    save_file(small.state_dict(), path) if suffix == ".safetensors" else torch.save(small.state_dict(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    assert f"{path} cannot be read" in refused(path)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ([1, 2], "holds a list, not a state dict"),
        (torch.rand(3), "holds a Tensor, not a state dict"),
        ({}, "is empty, not a state dict"),
        ({"epoch": 3, "weights": {"conv1.weight": torch.rand(3)}}, "'epoch' is a int, not a tensor"),
        ({"conv1.weight": torch.eye(3).to_sparse()}, "'conv1.weight' is no plain dense tensor"),
        ({3: torch.eye(3)}, "'3' is a Tensor"),
    ],
)
def test_what_is_no_state_dict(content: Any, part: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights.pt")
    assert part in refused(tmp_path / "weights.pt")


@pytest.mark.parametrize("levels", [1, 3])
def test_dictionaries_that_hold_themselves(levels: int, tmp_path: Path) -> None:
    outermost: dict[str, Any] = {}
    innermost = outermost
    for _ in range(levels - 1):
        innermost["net"] = innermost = {}
    innermost["net"] = outermost
    torch.save(outermost, tmp_path / "weights.pt")
    assert "dictionaries that hold themselves" in refused(tmp_path / "weights.pt")


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "weights.npz").write_bytes(b"PK")
    (tmp_path / "thesis.pt").write_text("important")
    with pytest.raises(UsageError, match="no such file"):
        load_weights(tmp_path / "weights.pt")
    with pytest.raises(UsageError, match=r"must end in one of \.safetensors \.pt"):
        load_weights(tmp_path / "weights.npz")
    assert "cannot be read" in refused(tmp_path / "thesis.pt")
