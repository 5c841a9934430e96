"""`hardfast bench train`: what is trained, what the rows hold, and what is refused."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hardfast.bench import train, training
from hardfast.bench.train import bench_train
from hardfast.bench.training import Training, open_images, recipe_for
from hardfast.engine.errors import Diverged, UsageError
from hardfast.engine.execution import ExecutionOptions
from hardfast.engine.nonfinite import StepWatch
from hardfast.loaders import DataOptions, open_dataset
from hardfast.loaders.errors import MissingDataError
from hardfast.loaders.synthetic import SyntheticShape

pytest.importorskip("tyro")
from hardfast.engine import cli

DIGITS = Training(data="digits", epochs=2, images=32, model="resnet8", batch=16)
RANDOM = Training(data="synthetic", epochs=1, images=9, model="resnet8", batch=4)


@pytest.fixture(autouse=True)
def few_test_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attacks on 16 images take no time."""

    def opened(options: DataOptions) -> Any:
        data = open_dataset(options)
        return replace(data, test=data.test.take(torch.arange(min(16, len(data.test)))))

    monkeypatch.setattr(training, "open_dataset", opened)


def trained(wanted: Training, tmp_path: Path, **options: Any) -> tuple[str, list[dict[str, Any]]]:
    """The table and the rows."""
    table = bench_train(wanted, device="cpu", json=tmp_path / "train.json", **options)
    return table, json.loads((tmp_path / "train.json").read_text())


def test_rows_of_the_digits(tmp_path: Path) -> None:
    path = tmp_path / "new" / "train.csv"
    words = "--data digits --epochs 1 --images 32 --model resnet8 --batch 16 --seeds 0 1 --device cpu"
    words += " --attacks clean pgd-10 --execution.mode eager --method fgsm-rs"
    assert cli.run(["bench", "train", *words.split(), "--csv", str(path)]) == 0
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["seed"] for row in rows] == ["0", "1"]
    for row in rows:
        assert (row["data"], row["images"], row["batch"], row["epochs"]) == ("digits", "32", "16", "1")
        assert (row["method"], row["model"], row["epsilon"]) == ("fgsm-rs", "resnet8", "32/255")
        assert (row["mode"], row["precision"], row["device"].split()[0]) == ("eager", "fp32", "cpu")
        assert row["clean_images"] == row["pgd-10_images"] == "16"
        assert 0 <= float(row["pgd-10"]) <= 100
        assert row["warmup_s"] == row["capture_s"] == "0.0"
        assert 0 < float(row["ready_s"]) < float(row["wall_s"])
        assert 0 < float(row["step_s"]) < float(row["wall_s"])
        assert float(row["images_per_second"]) == pytest.approx(32 / float(row["step_s"]), rel=0.1, abs=1)
        assert row["peak_gib"] == ""
        assert row["torch"] == torch.__version__


def test_seeds_differ_and_can_be_repeated(tmp_path: Path) -> None:
    table, rows = trained(DIGITS, tmp_path, seeds=(1, 0), attacks=["clean"])
    assert rows[0]["loss"] != rows[1]["loss"]
    assert "mean and deviation over 2 seeds: clean" in table
    assert trained(DIGITS, tmp_path, seeds=(0,), attacks=["clean"])[1][0]["loss"] == rows[1]["loss"]


def test_it_trains(tmp_path: Path) -> None:
    """The mean loss falls well below that of a guess, log 10."""
    wanted = replace(DIGITS, epochs=8, images=64, epsilon="8/255")
    assert 0.5 < trained(wanted, tmp_path, attacks=["clean"])[1][0]["loss"] < 1.7


def test_no_accuracy_of_random_images(tmp_path: Path) -> None:
    table, rows = trained(RANDOM, tmp_path, attacks=["clean", "pgd-20"])
    assert not {"clean", "pgd-20", "clean_images"} & set(rows[0])
    assert (rows[0]["data"], rows[0]["images"], rows[0]["evaluation_s"] < 1) == ("synthetic", 9, True)
    assert "no accuracy: the images are random" in table
    assert "absolute times are meaningful on a GPU" in table
    assert " s " not in table.splitlines()[0]


def test_a_warm_up_is_timed_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hardfast.engine.execution.Execution.compiled", lambda self, function: function)
    monkeypatch.setattr("shutil.which", lambda name: name)
    _, rows = trained(replace(RANDOM, execution=ExecutionOptions(mode="compiled")), tmp_path)
    assert rows[0]["mode"] == "compiled"
    assert 0 < rows[0]["warmup_s"] < rows[0]["ready_s"] < rows[0]["wall_s"]


def test_the_whole_cycle_of_the_learning_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainer's loop, epoch by epoch: every step once, up and down."""
    rates: list[float] = []
    follow = train.Run.follow_schedule

    def seen(run: Any) -> None:
        follow(run)
        rates.append(float(run.optimizer.param_groups[0]["lr"]))

    monkeypatch.setattr(train.Run, "follow_schedule", seen)
    bench_train(replace(RANDOM, epochs=2), device="cpu")
    assert rates == pytest.approx([0, 0.1, 0.2, 0.1])


def test_grey_images_become_photographs(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = SyntheticShape(train_images=40, test_images=4, channels=1)
    data = open_dataset(DataOptions(name="synthetic", image_size=28, heldout=10, synthetic=shape))
    monkeypatch.setattr(training, "open_dataset", lambda options: data)
    name, found = open_images(Training(batch=16, images=20))
    assert (name, found.train.images.shape, found.image_shape) == ("fashion-mnist", (20, 32, 32, 3), (32, 32, 3))
    for channel in range(3):
        assert torch.equal(found.test.images[:, 2:-2, 2:-2, channel], data.test.images[..., 0])
    assert found.train.images.sum() == 3 * data.train.images[:20].sum()  # zeros around them
    assert torch.equal(found.train.labels, data.train.labels[:20])


def test_held_out_images_are_trained_on_where_they_are_needed() -> None:
    data = open_dataset(DataOptions(name="digits", image_size=16))
    cut, everything = len(data.train), len(data.train) + len(data.heldout)
    assert len(open_images(replace(DIGITS, images=cut))[1].train) == cut
    found = open_images(replace(DIGITS, images=None))[1].train
    assert len(found) == everything
    assert torch.equal(found.images[cut:], data.heldout.images)
    with pytest.raises(UsageError, match=f"--images {everything + 1}: digits has {everything} for training"):
        open_images(replace(DIGITS, images=everything + 1))


def test_what_is_trained_without_fashion_mnist(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    try:
        open_dataset(DataOptions(name="fashion-mnist", root=str(tmp_path)))
    except MissingDataError:
        pass
    else:
        pytest.skip("Fashion-MNIST is here")
    name, data = open_images(replace(RANDOM, data="auto", data_root=str(tmp_path)))
    assert (name, len(data.train), data.image_shape) == ("synthetic", 9, (32, 32, 3))
    assert capsys.readouterr().out.startswith("random images, whose accuracy means nothing, because ")


@pytest.mark.parametrize(
    ("name", "epsilon"), [("fashion-mnist", "16/255"), ("cifar10", "8/255"), ("synthetic", "8/255")]
)
def test_each_data_set_has_its_radius(name: Any, epsilon: str) -> None:
    recipe = recipe_for(Training(), name)
    assert (recipe.epsilon, recipe.epochs, recipe.schedule.kind, recipe.data.name) == (epsilon, 30, "cyclic", name)
    assert (recipe.model.name, recipe.batch_size, recipe.method.name) == ("resnet18", 128, "fgsm-sdi")
    assert recipe_for(Training(epsilon="4/255"), name).epsilon == "4/255"


def test_a_loss_that_is_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StepWatch, "read", lambda self: [False, True])
    with pytest.raises(Diverged, match="in epoch 1"):
        bench_train(RANDOM, device="cpu")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--epochs 0", "--epochs must be at least 1, not 0"),
        ("--batch 1", "--batch must be at least 2, not 1"),
        ("--images 3", "--images 3 are less than a batch of 128"),
        ("--data digits --batch 9999", "--batch 9999 does not fit the 1437 images of digits"),
        ("--seeds 1 1", "--seeds must be one or more different numbers, not '1 1'"),
        ("--aa-samples 0", "--aa-samples must be at least 1, not 0"),
        ("--attacks fog", "fog"),
        ("--method fog", "method 'fog' is not a method"),
        ("--epsilon fog", "epsilon 'fog' is not a number"),
        ("--execution.mode captured", "execution.mode captured needs a CUDA device"),
        ("--data cifar10 --data-root nowhere", "cifar10 was not found"),
        ("--csv .", "--csv . is a folder"),
    ],
)
def test_wrong_words(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    data = [] if "--data" in words else ["--data", "digits"]
    assert cli.run(["bench", "train", "--device", "cpu", *data, *words.split()]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) == 1


def test_autoattack_is_asked_for_before_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(train, "train_once", lambda *args, **options: pytest.fail("it trained"))
    with pytest.raises(UsageError, match="AutoAttack needs the package pyautoattack"):
        bench_train(DIGITS, device="cpu", aa_samples=4)
