"""`hardfast bench step`, and that its baselines are the algorithm that they stand for."""

from __future__ import annotations

import csv
import json
from collections import Counter
from contextlib import nullcontext
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from hardfast.bench.baselines import Parts, Released, Tuned
from hardfast.bench.step import NAMES, Workload, variant
from hardfast.engine import cli
from hardfast.engine.methods import FgsmSdiOptions, Position, Setting
from hardfast.engine.models import ModelOptions, NetShape, build_generator, build_model
from hardfast.engine.step import descend
from hardfast.kernels import random_key
from hardfast.loaders import Batch

EAGER = [name for name in NAMES if name != "tuned-compiled"]
CONVOLUTIONS, GENERATOR = 9, 4  # of ResNet8 and of the released generator
SMALL = Workload(model="resnet8", batch=4, image_size=8, k=5, generator_width=4)


class Convolutions(TorchDispatchMode):
    """Counts convolutions: forward, and gradients of inputs and of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket is torch.ops.aten.convolution:
            self.calls["forward"] += 1
        if func.overloadpacket is torch.ops.aten.convolution_backward:
            self.calls["input"] += args[10][0]
            self.calls["weight"] += args[10][1]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", EAGER)
def test_units(name: str) -> None:
    """An ordinary step: ours 2 + 2 + 3, the released one's superfluous gradients, and those of 2022."""
    step, n, g = variant(name, SMALL, torch.device("cpu")), CONVOLUTIONS, GENERATOR
    with Convolutions() as seen:
        step(1)
    lean = {"forward": 3 * n + g, "input": 3 * n - 1, "weight": n}
    released = {"forward": 3 * n + g, "input": 3 * n + g - 1, "weight": n + g}
    wanted = {
        "plain": {"forward": n, "input": n - 1, "weight": n},
        "fgsm-sdi": lean,
        "tuned-eager": lean,
        "released": released,
        "released-2022": {**released, "weight": 3 * n + g},
    }
    assert seen.calls == wanted[name]


@pytest.mark.parametrize("name", ["released", "released-2022", "tuned"])
def test_the_baselines_train_what_we_train(name: str) -> None:
    """Six steps in float64 from the same weights, generator updates among them: the same classifier and generator."""

    def nets() -> tuple[nn.Module, nn.Module]:
        torch.manual_seed(0)
        net = build_model(ModelOptions(name="resnet8"), NetShape(num_classes=10, in_channels=3))
        return net.double().train(), build_generator("released", 6, 3, 4).double().eval()

    image = torch.randint(0, 256, (6, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    label = torch.arange(6)
    net, _ = nets()
    options, settings = FgsmSdiOptions(k=3, generator_width=4), {"epsilon": Fraction(8, 255), "box": False}
    setting = Setting(
        net=net, attack_bn="train", label_smoothing=0.1, seed=0, channels=3, dtype=torch.float64, **settings
    )
    method, optimizer = options.build(setting), torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    other, generator = nets()
    generator.load_state_dict(method.nets()["generator"].state_dict())
    parts = Parts(
        net=other,
        generator=generator,
        optimizer=torch.optim.SGD(other.parameters(), lr=0.01, momentum=0.9),
        generator_optimizer=torch.optim.Adam(generator.parameters(), lr=1e-3, weight_decay=5e-4),
        epsilon=8 / 255,
        smoothing=0.1,
        k=3,
    )
    released = Released(parts, weight_gradients=name == "released-2022")
    baseline = Tuned(parts, nullcontext) if name == "tuned" else released
    x = image.permute(0, 3, 1, 2).double() / 255
    for step in range(6):
        batch = Batch(torch.arange(6), image, label, random_key(0))
        x_adv = method.craft(batch, Position(0, step))
        descend(net, optimizer, x_adv, label, label_smoothing=0.1)
        baseline(x, label, step)
    for ours, theirs in ((net, other), (method.nets()["generator"], generator)):
        for key, value in ours.state_dict().items():
            assert torch.allclose(value.double(), theirs.state_dict()[key].double(), atol=1e-9), key
    assert not torch.equal(next(net.parameters()), next(nets()[0].parameters()))


def test_rows(tmp_path: Path) -> None:
    paths = tmp_path / "step.csv", tmp_path / "step.json"
    words = ["--model", "resnet8", "--batch", "4", "--image-size", "8", "--k", "4", "--generator-width", "4"]
    words += ["--rounds", "2", "--device", "cpu", "--names", *EAGER, "--csv", str(paths[0]), "--json", str(paths[1])]
    assert cli.run(["bench", "step", *words]) == 0
    rows = json.loads(paths[1].read_text())
    assert [row["name"] for row in rows] == EAGER
    for row in rows:
        assert 0 < row["p20_ms"] <= row["median_ms"] <= row["p80_ms"]
        assert (row["model"], row["batch"], row["image_size"], row["k"], row["rounds"]) == ("resnet8", 4, 8, 4, 2)
        assert row["device"].startswith("cpu")
    assert rows[0]["over_plain"] == rows[1]["over_fgsm_sdi"] == 1
    with paths[0].open() as file:
        assert [line["name"] for line in csv.DictReader(file)] == EAGER


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--names", "ours"], "--names ours is not a variant"),
        (["--model", "vgg"], "vgg"),
        (["--rounds", "1"], "--rounds is 1"),
        (["--batch", "0"], "--batch must be at least 1"),
        (["--image-size", "0"], "--image-size must be at least 1"),
    ],
)
def test_wrong_words(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["bench", "step", *words]) == 2
    assert message in capsys.readouterr().err
