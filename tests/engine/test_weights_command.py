"""`hardfast evaluate FILE`: a run's own weights, taken for somebody else's, give the run's own figures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hardfast.engine import evaluate, load_model

from .conftest import EPSILON

pytest.importorskip("tyro")
from hardfast.engine import cli

DIGITS = ["--data.name", "digits", "--data.image-size", "8", "--epsilon", EPSILON]


@pytest.fixture
def weights(quick_run: Path, tmp_path: Path) -> Path:
    """The run's best checkpoint as DataParallel would have saved it."""
    state = {f"module.{name}": value for name, value in load_model(quick_run).state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "w.pt")
    return tmp_path / "w.pt"


def test_the_figures_are_those_of_the_run(
    weights: Path, quick_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(quick_run, tmp_path / "run"))
    wanted = evaluate(run, attacks=("clean", "pgd-10"), samples=200)["accuracy"]
    words = ["evaluate", str(weights), *DIGITS, "--attacks", "clean", "pgd-10", "--samples", "200"]
    capsys.readouterr()
    assert cli.run(words) == 0
    said = capsys.readouterr().out
    for part in ("taken for resnet8", "prefix 'module.'", "under 'state_dict'", "200 of 360"):
        assert part in said
    report = json.loads((tmp_path / "w.pt.evaluation.json").read_text())
    assert report["accuracy"] == wanted
    assert (report["epsilon"], report["data"], report["model"], report["samples"]) == (
        EPSILON,
        "digits",
        "resnet8",
        200,
    )
    history = (tmp_path / "w.pt.evaluation.jsonl").read_text().splitlines()
    assert [json.loads(line)["attack"] for line in history] == ["clean", "pgd-10"]
    # The next attack on the same weights joins them; at another epsilon it does not.
    assert cli.run(["evaluate", str(weights), *DIGITS, "--attacks", "fgsm"]) == 0
    assert set(json.loads((tmp_path / "w.pt.evaluation.json").read_text())["accuracy"]) == {"clean", "pgd-10", "fgsm"}
    other = tmp_path / "other.json"
    assert cli.run(["evaluate", str(weights), *DIGITS[:-1], "8/255", "--attacks", "fgsm", "--json", str(other)]) == 0
    assert json.loads(other.read_text())["epsilon"] == "8/255"
    assert set(json.loads(other.read_text())["accuracy"]) == {"fgsm"}


def test_a_users_normalisation_reaches_the_net(weights: Path, tmp_path: Path) -> None:
    words = ["evaluate", str(weights), *DIGITS, "--attacks", "clean"]
    assert cli.run([*words, "--model.mean", "0.9", "0.9", "0.9", "--model.std", "0.1", "0.1", "0.1"]) == 0
    report = json.loads((tmp_path / "w.pt.evaluation.json").read_text())
    assert (report["mean"], report["std"]) == ([0.9] * 3, [0.1] * 3)
    assert report["accuracy"]["clean"] < 60  # the net was trained without any


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.run(["evaluate", "weights.pt", "--help"])
    assert not stop.value.code
    said = capsys.readouterr().out
    for part in ("--data.name", "--epsilon", "--model.shortcut", "--model.mean", "safetensors"):
        assert part in said


def grey(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return state | {"conv1.weight": state["conv1.weight"][:, :1].contiguous()}


def nine_classes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return state | {f"linear.{key}": state[f"linear.{key}"][:9].clone() for key in ("weight", "bias")}


@pytest.mark.parametrize(
    ("change", "words", "parts"),
    [
        (None, [], ["--data.name", "--epsilon", "see `hardfast evaluate {folder}/w.pt --help`"]),
        (None, ["--data.name", "digits"], ["--epsilon"]),
        (None, [*DIGITS[:-1], "8"], ["epsilon '8'", "8/255"]),
        (None, [*DIGITS[:-1], "300/255"], ["epsilon 300/255", "8/255"]),
        (None, [*DIGITS[:-1], "0/255"], ["epsilon 0/255 attacks nothing", "8/255"]),
        (None, [*DIGITS, "--attack-step", "0/255"], ["attack-step 0/255 attacks nothing"]),
        (None, [*DIGITS, "--attacks"], ["attacks names none", "at least one of clean fgsm"]),
        (None, [*DIGITS, "--attacks", "clean", "fgsm", "clean"], ["attacks names clean more than once"]),
        (None, [*DIGITS, "--attack-step", "0.01"], ["attack-step '0.01'", "8/255"]),
        (None, [*DIGITS, "--model.name", "resnet18"], ["conv1.weight", "(16, 3, 3, 3)", "resnet18", "--model.name"]),
        (None, [*DIGITS, "--model.name", "resnet19"], ["model.name 'resnet19'", "resnet18"]),
        (None, [*DIGITS, "--model.name", "timm:resnet18"], ["conv1.weight", "(16, 3, 3, 3)", "timm:resnet18 has"]),
        (None, [*DIGITS, "--model.shortcut", "input"], ["model.shortcut", "preact_resnet18 only"]),
        (None, [*DIGITS, "--model.mean", "0.5"], ["model.mean has 1 values", "3 channels"]),
        (None, [*DIGITS, "--model.std", "0", "1", "1"], ["model.std", "positive"]),
        (None, [*DIGITS, "--samples", "0"], ["samples", "at least 1"]),
        (None, [*DIGITS, "--seed", "-1"], ["seed", "-1"]),
        (None, [*DIGITS, "--json", "/dev/null/x.json"], ["--json /dev/null/x.json", "cannot be written", "choose"]),
        (None, [*DIGITS, "--checkpoint", "last"], ["--checkpoint"]),
        (grey, DIGITS, ["images of 1 channels", "digits have 3", "--data.name"]),
        (nine_classes, DIGITS, ["9 classes", "digits has 10", "--data.name"]),
    ],
)
def test_wrong_use(
    change: Callable[[Any], Any] | None,
    words: list[str],
    parts: list[str],
    weights: Path,
    quick_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if change is not None:
        torch.save(change(load_model(quick_run).state_dict()), weights)
    if "timm:resnet18" in words:
        pytest.importorskip("timm")
    capsys.readouterr()
    assert cli.run(["evaluate", str(weights), *(word.format(folder=tmp_path) for word in words)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    for part in parts:
        assert part.format(folder=tmp_path) in said
    assert [path.name for path in tmp_path.iterdir()] == ["w.pt"], "something was left behind"


def test_a_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["evaluate", str(tmp_path / "w.pt"), *DIGITS]) == 2
    assert "w.pt: there is no such file" in capsys.readouterr().err
