"""Subsets beside their figures, both checkpoints, contradicting attacks, and RobustBench's claim."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("tyro")
from hardfast.engine import Recipe, cli, evaluate, recipes, train
from hardfast.engine.evaluation import AttackReport, identity
from hardfast.engine.evaluation.attack_flags import contradictions, square_stands_out
from hardfast.engine.evaluation.files import EvaluationFiles, images_of, run_files
from hardfast.engine.run_folder import RunFolder


@pytest.fixture
def run(quick_run: Path, tmp_path: Path) -> Path:
    """A run without any evaluation."""
    copy = Path(shutil.copytree(quick_run, tmp_path / "run"))
    for path in copy.glob("evaluation*.json*"):
        path.unlink()
    shutil.rmtree(copy / "evaluations", ignore_errors=True)
    return copy


def stored(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert cli.run(words) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def test_a_subset_always_stands_beside_its_figure(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["evaluate", str(run), "--attacks", "clean", "--samples", "50"]) == 0
    said = capsys.readouterr().out
    assert "50 of 360 test images of digits" in said
    assert "on 50 of 360 images" in said
    assert said.splitlines()[-1].endswith("50 of 360")
    assert cli.run(["evaluate", str(run), "--attacks", "clean"]) == 0
    said = capsys.readouterr().out
    assert "on all 360 images" in said
    assert said.splitlines()[-1].endswith("all 360")
    found = stored(run / "evaluation.json")
    assert (found["samples"], found["test_images"]) == (360, 360)
    (first, second) = (json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines())
    assert [(line["samples"], line["test_images"]) for line in (first, second)] == [(50, 360), (360, 360)]


def test_more_samples_than_there_are(run: Path) -> None:
    assert evaluate(run, attacks=("clean",), samples=1000)["samples"] == 360


def test_how_a_subset_is_said() -> None:
    assert images_of({"samples": 1000, "test_images": 10000}) == "1,000 of 10,000"
    assert images_of({"samples": 10000, "test_images": 10000}) == "all 10,000"
    assert images_of({"samples": 1000, "test_images": 0}) == "1,000"  # an evaluation.json that does not say


def test_best_and_last_in_one_command(quick_recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each in its own file; evaluation.json is the one named first, in the documented shape."""
    recipe = replace(quick_recipe, epochs=3, optimizer=replace(quick_recipe.optimizer, lr=0.2))
    run = tmp_path / "run"
    train(recipe, run)
    words = ["--attacks", "clean", "fgsm", "--samples", "40", "--json", str(tmp_path / "rows.json")]
    assert cli.run(["evaluate", str(run), "--checkpoint", "best", "last", *words]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[-4:]]
    assert [row[:2] for row in rows] == [["clean", "best"], ["fgsm", "best"], ["clean", "last"], ["fgsm", "last"]]
    best, last = (stored(run / f"evaluations/{which}.json") for which in ("best", "last"))
    assert (best["checkpoint"], last["checkpoint"]) == ("best", "last")
    assert stored(run / "evaluation.json") == best
    assert {"checkpoint", "samples", "epsilon", "accuracy"} <= best.keys()
    assert json.loads((tmp_path / "rows.json").read_text()) == [best, last]
    # What one checkpoint withstood is not forgotten over the other.
    evaluate(run, attacks=("clean",), checkpoint="last", samples=30)
    assert stored(run / "evaluation.json")["checkpoint"] == "last"
    again = evaluate(run, attacks=("pgd-10",), samples=30)
    assert again["accuracy"].keys() == {"clean", "fgsm", "pgd-10"}
    assert again["accuracy"]["fgsm"] == best["accuracy"]["fgsm"]


def test_checkpoints_named_wrongly(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "once" in refused(capsys, "evaluate", str(run), "--checkpoint", "best", "best")
    assert "newest" in refused(capsys, "evaluate", str(run), "--checkpoint", "newest")


def masks(**counts: int) -> dict[str, torch.Tensor]:
    """Of 200 images each, the last ones fooled."""
    return {name.replace("_", "-"): torch.arange(200) < count for name, count in counts.items()}


def test_attacks_that_contradict_each_other() -> None:
    assert contradictions("pgd-50", masks(clean=198, fgsm=120, pgd_10=101, pgd_50=100)) == []
    assert contradictions("pgd-50", masks(fgsm=100, pgd_50=103)) == []  # within the slack
    (line,) = contradictions("pgd-50", masks(fgsm=100, pgd_10=100, pgd_50=130))
    assert line.startswith("pgd-50 fools fewer of the same 200 images than pgd-10 (70 against 100)")
    # In whichever order they run, and on the images that both saw.
    assert contradictions("fgsm", masks(fgsm=100, pgd_50=130)) == contradictions("pgd-50", masks(fgsm=100, pgd_50=130))
    assert contradictions("aa", {"pgd-50": torch.arange(200) < 100, "aa": torch.arange(50) < 50}) == []
    assert contradictions("aa", masks(pgd_50=100, aa=130))
    # Not between others than the one that ran.
    assert contradictions("cw", masks(fgsm=100, pgd_10=150, cw=100)) == []


def test_square_that_finds_more() -> None:
    stages = {"apgd-ce": 60.0, "apgd-t": 55.0, "fab-t": 55.0, "square": 54.5}
    (line,) = square_stands_out(stages, 1000)
    assert "fooled 5 images" in line
    assert square_stands_out(stages | {"square": 54.8}, 1000) == []
    assert square_stands_out(stages | {"square": 54.0}, 100) == []  # a single image is chance
    assert square_stands_out({"apgd-ce": 60.0}, 1000) == []


CLAIM = [
    "--claim.name", "A Paper", "--claim.authors", "A. Author, B. Author", "--claim.link", "https://example.org",
    "--claim.venue", "ICML 2030",
]  # fmt: skip


def known(run: Path, **attacks: dict[str, Any]) -> None:
    """Writes results as an evaluation does."""
    folder = RunFolder(run)
    files = run_files(folder, identity("best", folder.checkpoint("best"), folder.recipe(), 0))
    for name, values in attacks.items():
        report = {"samples": 10000, "test_images": 10000, "seconds": 1.0} | values
        files.keep(name, AttackReport(**report), samples=10000)


@pytest.fixture
def cifar_run(run: Path, quick_recipe: Recipe) -> Path:
    """A run whose recipe says CIFAR-10 at 8/255."""
    recipe = replace(quick_recipe, epsilon="8/255", data=recipes.get("cifar10-resnet18").data)
    recipe = replace(recipe, model=replace(recipe.model, name="preact_resnet18"))
    (run / "config.json").write_text(recipes.to_json(recipe))
    return run


def test_claim(cifar_run: Path, tmp_path: Path) -> None:
    place = tmp_path / "Author2030Paper.json"
    known(cifar_run, clean={"accuracy": 84.859}, aa={"accuracy": 48.5})
    assert cli.run(["evaluate", str(cifar_run), "--claim", str(place), *CLAIM]) == 0
    assert list(stored(place).items()) == [
        ("link", "https://example.org"),
        ("name", "A Paper"),
        ("authors", "A. Author, B. Author"),
        ("additional_data", False),
        ("number_forward_passes", 1),
        ("dataset", "cifar10"),
        ("venue", "ICML 2030"),
        ("architecture", "PreActResNet-18"),
        ("eps", "8/255"),
        ("clean_acc", "84.86"),
        ("reported", "48.50"),
        ("autoattack_acc", "48.50"),
    ]
    words = ["--claim.additional-data", "--claim.reported", "49.1", "--claim.architecture", "Mine"]
    assert cli.run(["evaluate", str(cifar_run), "--claim", str(place), *words]) == 0
    found = stored(place)
    assert (found["name"], found["authors"], found["link"], found["venue"]) == (*["unknown"] * 3, "Unpublished")
    assert (found["additional_data"], found["reported"], found["autoattack_acc"]) == (True, "49.1", "48.50")
    assert found["architecture"] == "Mine"


def test_a_doubtful_claim_says_so(cifar_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known(cifar_run, clean={"accuracy": 84.9}, aa={"accuracy": 48.5, "warnings": ["Square found more"]})
    assert cli.run(["evaluate", str(cifar_run), "--claim", str(tmp_path / "claim.json")]) == 0
    assert stored(tmp_path / "claim.json")["unreliable"] is True
    assert "? aa: Square found more" in capsys.readouterr().out


def test_claims_that_are_refused(cifar_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "claim.json"
    claim = ["evaluate", str(cifar_run), "--claim", str(place)]
    assert "has no clean yet: add --attacks clean aa" in refused(capsys, *claim)
    known(cifar_run, clean={"accuracy": 84.9})
    assert "has no aa yet" in refused(capsys, *claim)
    known(cifar_run, aa={"accuracy": 48.5, "samples": 1000})
    assert "aa saw 1,000 of 10,000 test images, not all" in refused(capsys, *claim)
    # Before the attacks, not after them.
    for words in (["--attacks", "aa", "--samples", "10"], ["--attacks", "aa", "--aa-samples", "10"]):
        assert "drop --samples" in refused(capsys, *claim, *words)
    known(cifar_run, aa={"accuracy": 48.5})
    assert "claim.reported" in refused(capsys, *claim, "--claim.reported", "a lot")
    assert "claim.forward-passes" in refused(capsys, *claim, "--claim.forward-passes", "0")
    assert "no folder" in refused(capsys, "evaluate", str(cifar_run), "--claim", str(tmp_path / "no/claim.json"))
    assert "has no clean yet" in refused(capsys, *claim, "--checkpoint", "last")
    assert "has no clean yet" in refused(capsys, *claim, "--seed", "1")
    config = cifar_run / "config.json"
    text = config.read_text()
    config.write_text(text.replace('"8/255"', '"4/255"'))
    assert "cifar10 is for epsilon 8/255, not 4/255" in refused(capsys, *claim)
    config.write_text(text.replace('"cifar10"', '"fashion-mnist"'))
    assert "no leaderboard of fashion-mnist, only of cifar10, cifar100, imagenet" in refused(capsys, *claim)
    assert not place.exists()


def test_a_history_that_was_cut_off(tmp_path: Path) -> None:
    """By a kill in the middle of a line: the next result has a line of its own, and none is there twice."""
    history = tmp_path / "evaluations.jsonl"
    files = EvaluationFiles(tmp_path / "evaluation.json", {"model_sha256": "a"}, history=history)
    report = AttackReport(accuracy=50.0, samples=10, seconds=1.25, test_images=10)
    files.keep("clean", report, samples=10)
    files.keep("clean", report, samples=10)
    history.write_text(history.read_text() + '{"date": "20')
    files.keep("fgsm", report, samples=10)
    lines = history.read_text().splitlines()
    assert [json.loads(line)["attack"] for line in (lines[0], lines[2])] == ["clean", "fgsm"]
    assert len(lines) == 3
