"""Published weight files load unchanged: every name and shape, in order, against listings written from RobustBench's
and torchvision's architectures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hardfast.engine.models import ModelOptions, NetShape, build_model
from hardfast.engine.named_tensors import load_strictly

safetensors = pytest.importorskip("safetensors.torch")
Entry = tuple[str, tuple[int, ...]]
WIDTHS = (64, 128, 256, 512)


def conv(name: str, channels: int, in_channels: int, kernel: int) -> Iterator[Entry]:
    yield f"{name}.weight", (channels, in_channels, kernel, kernel)


def bn(name: str, channels: int) -> Iterator[Entry]:
    for key in ("weight", "bias", "running_mean", "running_var"):
        yield f"{name}.{key}", (channels,)
    yield f"{name}.num_batches_tracked", ()


def linear(name: str, outputs: int, inputs: int) -> Iterator[Entry]:
    yield f"{name}.weight", (outputs, inputs)
    yield f"{name}.bias", (outputs,)


def resnet18(classes: int) -> Iterator[Entry]:
    """RobustBench's ResNet(BasicBlock, [2, 2, 2, 2])."""
    yield from conv("conv1", 64, 3, 3)
    yield from bn("bn1", 64)
    before = 64
    for stage, width in enumerate(WIDTHS, start=1):
        for block in (0, 1):
            name = f"layer{stage}.{block}"
            yield from conv(f"{name}.conv1", width, before, 3)
            yield from bn(f"{name}.bn1", width)
            yield from conv(f"{name}.conv2", width, width, 3)
            yield from bn(f"{name}.bn2", width)
            if before != width:
                yield from conv(f"{name}.shortcut.0", width, before, 1)
                yield from bn(f"{name}.shortcut.1", width)
            before = width
    yield from linear("linear", classes, 512)


def preact_resnet18(classes: int, *, bn_before_fc: bool) -> Iterator[Entry]:
    """RobustBench's PreActResNet with [2, 2, 2, 2] of PreActBlock or PreActBlockV2, whose names are the same."""
    yield from conv("conv1", 64, 3, 3)
    before = 64
    for stage, width in enumerate(WIDTHS, start=1):
        for block in (0, 1):
            name = f"layer{stage}.{block}"
            yield from bn(f"{name}.bn1", before)
            yield from conv(f"{name}.conv1", width, before, 3)
            yield from bn(f"{name}.bn2", width)
            yield from conv(f"{name}.conv2", width, width, 3)
            if before != width:
                yield from conv(f"{name}.shortcut.0", width, before, 1)
            before = width
    if bn_before_fc:
        yield from bn("bn", 512)
    yield from linear("linear", classes, 512)


def wide_resnet34_10(classes: int) -> Iterator[Entry]:
    """RobustBench's WideResNet(depth=34, widen_factor=10) without `sub_block1`."""
    yield from conv("conv1", 16, 3, 3)
    before = 16
    for stage, width in enumerate((160, 320, 640), start=1):
        for block in range(5):
            name = f"block{stage}.layer.{block}"
            yield from bn(f"{name}.bn1", before)
            yield from conv(f"{name}.conv1", width, before, 3)
            yield from bn(f"{name}.bn2", width)
            yield from conv(f"{name}.conv2", width, width, 3)
            if before != width:
                yield from conv(f"{name}.convShortcut", width, before, 1)
            before = width
    yield from bn("bn1", 640)
    yield from linear("fc", classes, 640)


def resnet50(classes: int) -> Iterator[Entry]:
    """torchvision's resnet50, which RobustBench uses for ImageNet."""
    yield from conv("conv1", 64, 3, 7)
    yield from bn("bn1", 64)
    before = 64
    for stage, (width, blocks) in enumerate(zip(WIDTHS, (3, 4, 6, 3), strict=True), start=1):
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            for number, (out, inp, kernel) in enumerate(
                ((width, before, 1), (width, width, 3), (4 * width, width, 1)), start=1
            ):
                yield from conv(f"{name}.conv{number}", out, inp, kernel)
                yield from bn(f"{name}.bn{number}", out)
            if block == 0:
                yield from conv(f"{name}.downsample.0", 4 * width, before, 1)
                yield from bn(f"{name}.downsample.1", 4 * width)
            before = 4 * width
    yield from linear("fc", classes, 2048)


CASES = {
    "resnet18": (ModelOptions(name="resnet18"), list(resnet18(10))),
    "Wong2020Fast": (
        ModelOptions(name="preact_resnet18", final_bn=False, shortcut="input"),
        list(preact_resnet18(10, bn_before_fc=False)),
    ),
    "Rice2020Overfitting, L2": (ModelOptions(name="preact_resnet18"), list(preact_resnet18(10, bn_before_fc=True))),
    "wide_resnet34_10": (ModelOptions(name="wide_resnet34_10"), list(wide_resnet34_10(10))),
    "resnet50": (ModelOptions(name="resnet50"), list(resnet50(10))),
}


@pytest.mark.parametrize(
    ("name", "tensors", "parameters"),
    [
        ("resnet18", 122, 11_173_962),
        ("Wong2020Fast", 102, 11_171_146),
        ("Rice2020Overfitting, L2", 107, 11_172_170),
        ("wide_resnet34_10", 191, 46_160_474),
        ("resnet50", 320, 25_557_032 - 990 * 2_049),  # the published one has 1,000 classes
    ],
)
def test_the_listings_count_as_published(name: str, tensors: int, parameters: int) -> None:
    """So that no listing is wrong in the same way as the net."""
    _, listing = CASES[name]
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    weights = [shape for key, shape in listing if not key.endswith(buffers)]
    assert len(listing) == tensors
    assert sum(torch.Size(shape).numel() for shape in weights) == parameters


@pytest.mark.parametrize("name", CASES)
def test_a_published_weight_file_loads_unchanged(name: str, tmp_path: Path) -> None:
    """Names, shapes and order of the state dict; then a file of that listing, read by our strict loader."""
    options, listing = CASES[name]
    net = build_model(options, NetShape(num_classes=10, in_channels=3))
    assert [(key, tuple(value.shape)) for key, value in net.state_dict().items()] == listing
    published = {key: torch.full(shape, 0.5) if shape else torch.tensor(7) for key, shape in listing}
    safetensors.save_file(published, tmp_path / "model.safetensors")
    load_strictly(net, safetensors.load_file(tmp_path / "model.safetensors"), tmp_path / "model.safetensors")
    for key, value in net.state_dict().items():
        assert torch.equal(value, published[key]), key
