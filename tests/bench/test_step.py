"""`hardfast bench step`, and that its baselines are the algorithm that they stand for."""

from __future__ import annotations

import csv
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from hardfast.bench.baselines import Parts, Released, Tuned
from hardfast.bench.step import bench_step
from hardfast.bench.variants import NAMES, Variant, Workload, build
from hardfast.engine import UsageError
from hardfast.engine.methods import FgsmSdiOptions, Position
from hardfast.engine.models import ModelOptions, NetShape, build_generator, build_model

from ..engine.counting import ConvolutionCounter
from ..engine.steps import batch_of, training_step

pytest.importorskip("tyro")
from hardfast.engine import cli

EAGER = [name for name in NAMES if name != "tuned-compiled"]
CONVOLUTIONS, GENERATOR = 9, 4  # of ResNet8 and of the released generator
CPU = torch.device("cpu")
SMALL = Workload(model="resnet8", batch=4, image_size=8, k=5, generator_width=4)


@pytest.mark.parametrize("name", EAGER)
def test_units(name: str) -> None:
    """An ordinary step: ours 2 + 2 + 3, the released one's superfluous gradients, and those of 2022."""
    step, n, g = build(Variant(name=name, mode="eager", precision="fp32"), SMALL, CPU).call, CONVOLUTIONS, GENERATOR
    with ConvolutionCounter(set()) as seen:
        step(1)
    lean = {"net forward": 3 * n + g, "net input": 3 * n - 1, "net weight": n}
    released = {"net forward": 3 * n + g, "net input": 3 * n + g - 1, "net weight": n + g}
    wanted = {
        "plain": {"net forward": n, "net input": n - 1, "net weight": n},
        "fgsm-sdi": lean,
        "fgsm-sdi-bn-eval": lean,
        "fgsm-sdi-half-generator": lean,
        "tuned-eager": lean,
        "released": released,
        "released-2022": {**released, "net weight": 3 * n + g},
    }
    assert seen.calls == wanted[name]


def test_half_precision_reaches_every_pass() -> None:
    """No convolution and no matrix product of ours is in float32, forward or backward."""
    step = build(Variant(name="fgsm-sdi", mode="eager", precision="bf16"), SMALL, CPU).call

    class Dtypes(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func.overloadpacket.__name__ in ("convolution", "convolution_backward", "addmm", "mm"):
                found.update(arg.dtype for arg in args if isinstance(arg, torch.Tensor))
            return func(*args, **(kwargs or {}))

    found: set[torch.dtype] = set()
    with Dtypes():
        step(0)
        step(1)
    assert found == {torch.bfloat16}


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
    options = FgsmSdiOptions(k=3, generator_width=4)
    ours = training_step(options, net, box=False, label_smoothing=0.1, lr=0.01, dtype=torch.float64)
    method = ours.method
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
        ours(batch_of(image, label), Position(0, step))
        baseline(x, label, step)
    for mine, theirs in ((net, other), (method.nets()["generator"], generator)):
        for key, value in mine.state_dict().items():
            assert torch.allclose(value.double(), theirs.state_dict()[key].double(), atol=1e-9), key
    assert not torch.equal(next(net.parameters()), next(nets()[0].parameters()))


def rows_of(path: Path, *words: str) -> list[dict[str, Any]]:
    common = ["--model", "resnet8", "--batch", "4", "--image-size", "8", "--k", "4", "--generator-width", "4"]
    assert cli.run(["bench", "step", *common, "--rounds", "2", "--device", "cpu", "--json", str(path), *words]) == 0
    rows: list[dict[str, Any]] = json.loads(path.read_text())
    return rows


def test_rows(tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "step.json", "--names", *EAGER, "--csv", str(tmp_path / "step.csv"))
    assert [row["name"] for row in rows] == EAGER
    for row in rows:
        assert 0 < row["p20_ms"] <= row["median_ms"] <= row["p80_ms"]
        assert (row["model"], row["batch"], row["image_size"], row["k"], row["rounds"]) == ("resnet8", 4, 8, 4, 2)
        assert (row["mode"], row["precision"]) == ("eager", "fp32")
        assert row["device"].startswith("cpu")
    assert rows[0]["over_plain"] == rows[1]["over_fgsm_sdi"] == 1
    with (tmp_path / "step.csv").open() as file:
        assert [line["name"] for line in csv.DictReader(file)] == EAGER


def test_each_of_our_steps_is_compared_with_plain_training_in_its_own_precision(tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "step.json", "--names", "tuned-eager", "--precisions", "bf16", "fp32")
    found = [(row["name"], row["precision"]) for row in rows]
    ours = [(name, precision) for name in ("plain", "fgsm-sdi") for precision in ("bf16", "fp32")]
    assert found == [*ours, ("tuned-eager", "bf16")]
    assert [row["over_plain"] for row in rows[:2]] == [1, 1]
    assert rows[2]["over_fgsm_sdi"] == 1 != rows[3]["over_fgsm_sdi"]


def test_what_the_device_cannot_run_is_named_and_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*words: Any, **options: Any) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr("hardfast.bench.variants.Released", full)
    shown = bench_step(SMALL, names=["released"], device="cpu", rounds=2)
    assert "left out: released (eager, fp32): out of memory" in capsys.readouterr().out
    assert "released" not in shown
    monkeypatch.setattr("hardfast.bench.variants.Run", full)
    with pytest.raises(UsageError, match="smaller --batch"):
        bench_step(SMALL, names=[], device="cpu", rounds=2)


@pytest.mark.slow
def test_compiled_rows(tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "step.json", "--names", "tuned-compiled", "--modes", "compiled", "eager")
    assert [(row["name"], row["mode"]) for row in rows] == [
        *((name, mode) for name in ("plain", "fgsm-sdi") for mode in ("compiled", "eager")),
        ("tuned-compiled", "compiled"),
    ]
    assert all((row["warmup_s"] > 0) == (row["mode"] == "compiled") for row in rows)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--names", "ours"], "--names ours is not a variant"),
        (["--model", "vgg"], "vgg"),
        (["--rounds", "1"], "--rounds is 1"),
        (["--batch", "0"], "--batch must be at least 1"),
        (["--image-size", "0"], "--image-size must be at least 1"),
        (["--modes", "captured", "--device", "cpu"], "needs a CUDA device"),
        (["--modes", "fast"], "fast"),
        (["--precisions", "fp8"], "fp8"),
    ],
)
def test_wrong_words(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["bench", "step", *words]) == 2
    assert message in capsys.readouterr().err
