"""The command: what it prints, and that every mistake is one line, exit code 2, and leaves nothing behind."""

from __future__ import annotations

import gzip
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hardfast.engine.checkpoint import CheckpointStore
from hardfast.engine.run_folder import RunFolder
from hardfast.loaders import fashion_mnist

pytest.importorskip("PIL")
from ..loaders.makers import SPECS, cifar_members, describe, fashion_files, write_cifar, write_idx

pytest.importorskip("tyro")
from hardfast.bench.cli import BENCHMARKS
from hardfast.engine import cli


def hardfast(*words: str) -> int:
    return cli.run(words)


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line on stderr of a command that must exit with 2."""
    capsys.readouterr()
    assert hardfast(*words) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert said.err.startswith("hardfast: ")
    assert "Traceback" not in said.err
    return said.err


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["train", "--help"], ["train", "digits", "--help"], ["evaluate", "-h"], ["bench", "methods", "-h"]):
        with pytest.raises(SystemExit) as stop:
            hardfast(*words)
        assert not stop.value.code
        assert "--" in capsys.readouterr().out
    assert hardfast("--help") == 0
    assert "hardfast train RECIPE" in capsys.readouterr().out


def test_help_names_every_command_and_every_benchmark() -> None:
    usages = [line.strip().removeprefix("hardfast ") for line in cli.HELP.splitlines() if line.startswith("  hardfast")]
    assert {usage.split()[0] for usage in usages} == set(cli.COMMANDS)
    benchmarks = " ".join(usage for usage in usages if usage.startswith("bench"))
    for name in BENCHMARKS:
        assert re.search(rf"\b{name}\b", benchmarks), name
        assert re.search(rf"\b{name}\b", cli.run_bench.__doc__ or ""), name


def test_train_evaluate_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    small = ["--epochs", "1", "--data.image-size", "8", "--method", "pgd-at", "--method.steps", "2", "--no-box"]
    assert hardfast("train", "digits", "--out", str(out), *small) == 0
    recipe = RunFolder(out).recipe()
    assert (recipe.method.name, recipe.method.steps, recipe.box, recipe.epochs) == ("pgd-at", 2, False, 1)
    assert set(json.loads((out / "evaluation.json").read_text())["accuracy"]) == {"clean", "pgd-10"}
    copy = tmp_path / "copy.json"
    assert hardfast("evaluate", str(out), "--attacks", "fgsm", "--samples", "20", "--json", str(copy)) == 0
    assert json.loads(copy.read_text())["samples"] == 20
    assert "fgsm" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["frobnicate"], ["frobnicate", "train"]),
        (["train", "cifar10-resnet19", "--out", "{out}"], ["cifar10-resnet19", "cifar10-resnet18"]),
        (["train", "--out", "{out}"], ["recipe", "digits"]),
        (["train", "digits"], ["--out"]),
        (["train", "digits", "--out", "{out}", "--epoch", "3"], ["--epoch", "--epochs"]),
        (["train", "digits", "--out", "{out}", "--method.kk", "3"], ["--method.kk", "--method.k?"]),
        (["train", "digits", "--out", "{out}", "--epochs", "many"], ["--epochs", "many"]),
        (["train", "digits", "--out", "{out}", "--epochs", "0"], ["epochs", "at least 1"]),
        (["train", "digits", "--out", "{out}", "--epsilon", "8"], ["epsilon '8'", "8/255"]),
        (["train", "digits", "--out", "{out}", "--epsilon", "300/255"], ["epsilon 300/255", "8/255"]),
        (["train", "digits", "--out", "{out}", "--method", "fgsm"], ["fgsm", "fgsm-sdi"]),
        (["train", "digits", "--out", "{out}", "--method.k", "0"], ["method.k", "at least 1"]),
        (["train", "digits", "--out", "{out}", "--method.inputs", "noise"], ["--method.inputs", "benign+grad"]),
        (["train", "digits", "--out", "{out}", "--method.alpha", "1"], ["method.alpha", "8/255"]),
        (["train", "digits", "--out", "{out}", "--optimizer.lr", "nan"], ["optimizer.lr", "nan"]),
        (["train", "digits", "--out", "{out}", "--seed", "-1"], ["seed", "-1"]),
        (["train", "digits", "--out", "{out}", "--seed", "99999999999999999999"], ["seed", "2**64"]),
        (["train", "digits", "--out", "{out}", "--data.split-seed", "-1"], ["data.split-seed", "-1"]),
        (["train", "digits", "--out", "{out}", "--model.mean", "nan", "0", "0"], ["model.mean", "nan"]),
        (["train", "digits", "--out", "{out}", "--method", "pgd-at", "--method", "standard"], ["--method", "twice"]),
        (
            ["train", "digits", "--out", "{out}", "--data.name", "cifar10"],
            ["data.image-size 16", "--data.image-size None"],
        ),
        (["train", "digits", "--out", "{out}" + 300 * "x"], ["File name too long"]),
        (
            ["train", "digits", "--out", "{out}", "--data.synthetic.channels", "0"],
            ["hardfast: data.synthetic.channels"],
        ),
        (
            ["train", "digits", "--out", "{out}", "--schedule.cycle-momentum", "--optimizer.momentum", "0"],
            ["cycle-momentum", "momentum"],
        ),
        (["train", "digits", "--out", "{out}", "--batch-size", "5000"], ["batch-size 5000", "1294"]),
        (["train", "digits", "--out", "{out}", "--data.image-size", "9"], ["data.image-size 9", "8, 16"]),
        (["train", "digits", "--out", "{out}", "--data.heldout", "2000"], ["data.heldout", "1437"]),
        (["train", "digits", "--out", "{out}", "--device", "tpu"], ["tpu", "cpu"]),
        (["train", "cifar10-resnet18", "--out", "{out}", "--epochs", "30"], ["milestones", "30 epochs"]),
        (
            ["train", "cifar10-resnet18", "--out", "{out}", "--schedule.milestones", "100.5"],
            ["schedule.milestones", "100.5"],
        ),
        (["train", "cifar10-resnet18", "--out", "{out}", "--data.root", "{out}"], ["cifar10", "data prepare cifar10"]),
        (["evaluate", "{out}"], ["{out}", "hardfast train"]),
        (["evaluate", "{out}", "--attacks", "pgd-11"], ["--attacks", "pgd-10"]),
        (["evaluate"], ["DIR"]),
        (["evaluate", "--attacks", "clean", "{out}"], ["DIR or FILE before '--attacks'"]),
        (["evaluate", "--epsilon", "8/255", "{out}.pt"], ["DIR or FILE before '--epsilon'"]),
        (["data", "prepare", "cifar11"], ["cifar11", "cifar10"]),
        (["data"], ["list", "prepare"]),
        (["bench", "methods", "digits", "--out", "{out}", "--methods", "pgd-at"], ["at least two"]),
        (["recipes", "all"], ["all"]),
    ],
)
def test_wrong_use(words: list[str], parts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "run")
    said = refused(capsys, *(word.format(out=out) for word in words))
    for part in parts:
        assert part.format(out=out) in said
    assert not list(tmp_path.iterdir()), "something was left behind"


def test_out_that_holds_another_run(quick_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, "train", "digits", "--out", str(quick_run))
    assert "epsilon is 24/255, yours 32/255" in said
    assert "choose another --out" in said


def test_out_that_holds_other_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.tex").write_text("important")
    assert "holds no run" in refused(capsys, "train", "digits", "--out", str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("damage", ["cut", "flipped", "missing"])
@pytest.mark.parametrize("name", ["train images", "test labels"])
def test_damaged_data_file(
    name: str, damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = fashion_files(tmp_path / "fashion-mnist")
    monkeypatch.setattr(fashion_mnist, "FILES", files)
    path = tmp_path / "fashion-mnist" / files[name].name
    content = gzip.decompress(path.read_bytes())
    if damage == "missing":
        path.unlink()
    else:
        flipped = gzip.compress(content[:-1] + bytes([content[-1] ^ 1]))
        path.write_bytes(path.read_bytes()[:-10] if damage == "cut" else flipped)
    words = ["train", "fashion-mnist-resnet18", "--out", str(tmp_path / "run"), "--data.root", str(tmp_path)]
    said = refused(capsys, *words)
    assert str(path) in said
    assert ("data prepare fashion-mnist" if damage == "missing" else "fetch it again") in said
    assert not (tmp_path / "run").exists()


def test_wrong_label(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    files = fashion_files(tmp_path / "fashion-mnist")
    labels = np.array([0] * 11 + [10], np.uint8)
    path = tmp_path / "fashion-mnist" / files["train labels"].name
    monkeypatch.setattr(fashion_mnist, "FILES", files | {"train labels": write_idx(path, labels)})
    words = ["train", "fashion-mnist-resnet18", "--out", str(tmp_path / "run"), "--data.root", str(tmp_path)]
    said = refused(capsys, *words)
    assert str(path) in said
    assert "record 11 has label 10, outside 0..9" in said
    assert "fetch it again" in said


def test_wrong_cifar_label(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    members = cifar_members(SPECS["cifar10"], bad_label=11)
    write_cifar(describe(SPECS["cifar10"], members), tmp_path, members, archive=False)
    said = refused(capsys, "train", "cifar10-resnet18", "--out", str(tmp_path / "run"), "--data.root", str(tmp_path))
    assert "data_batch_1.bin: record 7 has label 11" in said


@pytest.fixture
def run_copy(quick_run: Path, tmp_path: Path) -> Path:
    """A run that a test may damage."""
    return Path(shutil.copytree(quick_run, tmp_path / "copy"))


def rewrite_last(folder: Path, *, drop_model: str | None = None, drop_state: str | None = None) -> None:
    """Writes the last checkpoint anew, with a valid manifest, but without one tensor."""
    last = RunFolder(folder).checkpoint("last")
    model, state = last.model(), last.state()
    if drop_model:
        del model[drop_model]
    if drop_state:
        del state[drop_state]
    CheckpointStore(folder / "checkpoints").save(last.record.at.total, model=model, state=state, record=last.record)


def test_checkpoint_with_a_missing_key(run_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rewrite_last(run_copy, drop_model="layer2.0.conv1.weight")
    said = refused(capsys, "evaluate", str(run_copy), "--checkpoint", "last")
    assert "has no tensor 'layer2.0.conv1.weight'" in said
    assert "config.json" in said


@pytest.mark.parametrize(
    "key",
    [
        "optimizer/conv1.weight/momentum_buffer",
        "generator/conv1.weight",
        "generator-optimizer/conv2.bias/step",
        "metrics/generator_loss",
        "tally",
    ],
)
def test_resume_from_a_checkpoint_with_a_missing_key(
    key: str, run_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = replace(RunFolder(run_copy).recipe())
    rewrite_last(run_copy, drop_state=key)
    words = ["--epochs", "4", "--epsilon", "24/255", "--crop-padding", "0", "--data.image-size", "8"]
    said = refused(capsys, "train", recipe.name, "--out", str(run_copy), *words)
    assert key.removeprefix("generator/") in said


def test_damaged_checkpoint_and_config(run_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in run_copy.glob("checkpoints/*/model.safetensors"):
        path.write_bytes(torch.rand(100).numpy().tobytes())
    assert "damaged" in refused(capsys, "evaluate", str(run_copy))
    config = run_copy / "config.json"
    text = config.read_text()
    without_epsilon = "".join(line for line in text.splitlines(keepends=True) if '"epsilon"' not in line)
    for wrong, part in (
        (text.replace('"epochs"', '"epoch"'), "epoch"),
        (without_epsilon, "epsilon is missing"),  # a default would attack at another radius
        (text[:-5], "JSON"),
        ("[]", "config.json"),
        (text.replace("fgsm-sdi", "\xff"), "fgsm-sdi"),
    ):
        config.write_text(wrong)
        assert part in refused(capsys, "evaluate", str(run_copy))
    config.write_bytes(b"\xff\xfe{")
    assert "not text" in refused(capsys, "evaluate", str(run_copy))
