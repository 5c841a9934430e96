"""The comparison of methods: real runs, tiny; and the arithmetic of its table."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hardfast.bench.methods import compare_methods, mean_and_deviation
from hardfast.bench.timing import Spread, interleaved_seconds, paired_ratio
from hardfast.engine import UsageError, evaluate, recipes


def test_variants_are_called_in_turn() -> None:
    calls: list[str] = []
    variants = {name: lambda name=name: calls.append(name) for name in ("a", "b")}
    seconds = interleaved_seconds(variants, repeats=3, warmup=2, device=torch.device("cpu"))
    assert calls == ["a", "b"] * 5
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}


def test_spread_and_ratio() -> None:
    assert Spread.of([5.0, 1.0, 2.0, 3.0, 4.0, 6.0]) == Spread(3.5, 2.0, 5.0)
    ratio = paired_ratio({"a": [2.0, 8.0, 6.0], "b": [1.0, 2.0, 2.0]}, "a", "b")
    assert ratio.median == 3.0


def test_mean_and_sample_deviation() -> None:
    assert mean_and_deviation([70.0, 72.0, 74.0]) == "72.0 ± 2.0"
    assert mean_and_deviation([70.04]) == "70.0"


def test_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = recipes.get("digits")
    recipe = replace(recipe, epochs=1, data=replace(recipe.data, image_size=8))
    words = {"methods": ("standard", "fgsm-sdi"), "seeds": (0, 1), "attacks": ("clean", "pgd-10")}
    table = compare_methods(recipe, tmp_path / "runs", csv=tmp_path / "out/rows.csv", **words)
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == [
        "fgsm-sdi-0",
        "fgsm-sdi-1",
        "standard-0",
        "standard-1",
    ]
    with (tmp_path / "out/rows.csv").open() as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    found = [json.loads((tmp_path / f"runs/fgsm-sdi-{seed}/evaluation.json").read_text()) for seed in (0, 1)]
    mean = sum(report["attacks"]["pgd-10"]["accuracy"] for report in found) / 2
    assert float(rows["fgsm-sdi"]["pgd-10_mean"]) == pytest.approx(mean, abs=1e-3)
    assert rows["standard"]["step_ratio"] == "1.0"
    assert float(rows["fgsm-sdi"]["step_ratio_p20"]) > 1
    assert rows["fgsm-sdi"]["numerics_torch"] == torch.__version__
    lines = table.splitlines()
    assert lines[0] == "| method | clean (360 images) | pgd-10 (360 images) | step / standard |"
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["`standard`", "`fgsm-sdi`"]
    capsys.readouterr()
    compare_methods(recipe, tmp_path / "runs", **words)
    said = capsys.readouterr().out
    assert said.count("already trained") == 4
    assert "epoch   1" not in said
    assert "pgd-10 " not in said  # nor attacked again
    evaluate(tmp_path / "runs/fgsm-sdi-0", attacks=("pgd-10",), samples=20)  # a look by hand does not enter the table
    compare_methods(recipe, tmp_path / "runs", **words)
    assert capsys.readouterr().out.count("pgd-10 ") == 2


@pytest.mark.parametrize(
    "words",
    [
        {"methods": ("standard", "standard"), "seeds": (0,)},
        {"methods": ("standard", "fgsm"), "seeds": (0,)},
        {"methods": ("standard", "pgd-at"), "seeds": ()},
    ],
)
def test_wrong_use(words: dict[str, tuple[object, ...]], tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        compare_methods(recipes.get("digits"), tmp_path / "runs", attacks=("clean",), **words)
    assert not (tmp_path / "runs").exists()
