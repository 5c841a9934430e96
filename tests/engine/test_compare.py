"""Runs side by side: what is one row, what stands beside it, and what is said about runs that cannot be compared."""

from __future__ import annotations

import csv
import json
import shutil
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hardfast.engine import Recipe, evaluate, recipes, train
from hardfast.engine.methods import FgsmRsOptions
from hardfast.engine.recipes.recipe import StageOptions, to_json
from hardfast.engine.tables.compare import FinishedRun, Row, Unready, find_runs, read_run, rows_of
from hardfast.engine.tables.compare_tables import markdown, terminal

pytest.importorskip("tyro")
from hardfast.engine import cli

ATTACKS = ("clean", "pgd-10")


@pytest.fixture(scope="module")
def recipe(quick_recipe: Recipe) -> Recipe:
    """Two epochs, which is enough to have something to compare."""
    return replace(quick_recipe, epochs=2)


@pytest.fixture(scope="module")
def trained(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three runs: FGSM-SDI from two seeds and FGSM-RS from one, all evaluated."""
    folder = tmp_path_factory.mktemp("compared")
    for name, one in (
        ("sdi-0", recipe),
        ("sdi-1", replace(recipe, seed=1)),
        ("rs-0", replace(recipe, method=FgsmRsOptions())),
    ):
        train(one, folder / name)
        evaluate(folder / name, attacks=ATTACKS)
    return folder


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(trained, tmp_path / "runs"))


def rows(folder: Path) -> list[Row]:
    found = [read_run(path) for path in find_runs([str(folder)])]
    assert all(isinstance(run, FinishedRun) for run in found), found
    return rows_of([run for run in found if isinstance(run, FinishedRun)])


def report(run: Path) -> dict[str, float]:
    accuracy: dict[str, float] = json.loads((run / "evaluation.json").read_text())["accuracy"]
    return accuracy


def last_line(run: Path) -> dict[str, Any]:
    line: dict[str, Any] = json.loads((run / "log.jsonl").read_text().splitlines()[-1])
    return line


def change_recipe(run: Path, recipe: Recipe) -> None:
    (run / "config.json").write_text(to_json(recipe))


def add_evaluation(run: Path, **changes: Any) -> None:
    """One more line of evaluations.jsonl, like its last one but for the changes."""
    path = run / "evaluations.jsonl"
    line = json.loads(path.read_text().splitlines()[-1])
    path.write_text(path.read_text() + json.dumps(line | changes) + "\n")


def test_runs_that_differ_in_the_seed_are_one_row(trained: Path) -> None:
    rs, sdi = rows(trained)
    assert [run.path.name for run in sdi.runs] == ["sdi-0", "sdi-1"]
    assert [run.path.name for run in rs.runs] == ["rs-0"]
    assert sdi.method == "fgsm-sdi (k 5, generator-width 16)"
    assert sdi.recipe_words == "digits (epsilon 24/255, epochs 2, crop-padding 0, data.image-size 8)"
    for attack in ATTACKS:
        each = [report(trained / f"sdi-{seed}")[attack] for seed in (0, 1)]
        assert sdi.accuracies(attack) == each
        said = f"{statistics.mean(each):.1f} ± {statistics.stdev(each):.1f}"
        assert said in terminal([rs, sdi], [])


def test_times_are_those_of_the_log(trained: Path) -> None:
    rs, _ = rows(trained)
    (run,) = rs.runs
    log = last_line(trained / "rs-0")
    assert run.step_ms == pytest.approx(1000 * log["step_seconds"] / log["step"])
    assert run.train_minutes == pytest.approx(log["step_seconds"] / 60)
    assert run.wall_minutes == pytest.approx(log["wall_seconds"] / 60)
    assert run.machine.endswith(", eager, fp32")


@pytest.mark.parametrize(
    "changes",
    [
        {"crop_padding": 1, "about": "cropped"},
        {"label_smoothing": 0.1},
        {"box": False},
        {"weight_average": 0.9},
    ],
)
def test_another_recipe_is_another_row(changes: dict[str, Any], runs: Path, recipe: Recipe) -> None:
    change_recipe(runs / "sdi-1", replace(recipe, seed=1, **changes))
    assert [len(row.runs) for row in rows(runs)] == [1, 1, 1]


def test_where_the_data_lie_and_what_a_recipe_is_called_makes_no_other_row(runs: Path, recipe: Recipe) -> None:
    data = replace(recipe.data, root="/elsewhere")
    change_recipe(runs / "sdi-1", replace(recipe, seed=1, name="mine", about="as digits", data=data))
    assert [len(row.runs) for row in rows(runs)] == [1, 2]


def test_only_some_images_are_said(runs: Path) -> None:
    add_evaluation(runs / "rs-0", attack="cw", samples=100, accuracy=50.0)
    for seed in (0, 1):
        add_evaluation(runs / f"sdi-{seed}", attack="cw", samples=360, accuracy=60.0 + seed)
    said = terminal(rows(runs), [])
    assert "50.0 (100)" in said
    assert "60.5 ± 0.7" in said
    assert "1: cw measured on the first 100 of 360 test images only" in said
    assert "cw: not comparable between rows, measured on other numbers of images (100 in 1, 360 in 2)" in said
    assert "clean: not comparable" not in said


def test_missing_and_unlike_seeds_are_said(runs: Path) -> None:
    add_evaluation(runs / "sdi-0", attack="aa", accuracy=40.0)
    add_evaluation(runs / "sdi-0", attack="cw", samples=100, accuracy=50.0)
    add_evaluation(runs / "sdi-1", attack="cw", samples=200, accuracy=50.0)
    shutil.copytree(runs / "rs-0", runs / "rs-0-again")
    said = terminal(rows(runs), [])
    assert "2: aa measured for 1 of 2 seeds only" in said
    assert "2: cw measured on 100 and 200 of 360 test images, by seed" in said
    assert "1: seed 0 stands there more than once" in said


def test_doubts_of_the_evaluation_are_passed_on(runs: Path) -> None:
    add_evaluation(runs / "sdi-1", attack="pgd-20", accuracy=99.0, warnings=["pgd-20 fools fewer images than pgd-10"])
    assert "2: pgd-20 is doubtful: pgd-20 fools fewer images than pgd-10" in terminal(rows(runs), [])


def test_other_conditions_are_other_tables(runs: Path, recipe: Recipe) -> None:
    evaluate(runs / "rs-0", attacks=("clean",), checkpoint="last")
    found = rows(runs)
    assert [row.conditions.checkpoint for row in found] == ["best", "best", "last"]
    said = terminal(found, [])
    assert "2 tables that differ in checkpoint: not comparable with one another" in said
    change_recipe(runs / "sdi-1", replace(recipe, seed=1, attack_step="2/255"))
    assert "3 tables that differ in attack step, checkpoint" in terminal(rows(runs), [])


def test_a_step_of_a_quarter_of_epsilon_is_the_usual_one_however_it_is_written(runs: Path, recipe: Recipe) -> None:
    assert recipe.epsilon == "24/255"
    change_recipe(runs / "sdi-1", replace(recipe, seed=1, attack_step="6.0/255"))
    assert {str(row.conditions) for row in rows(runs)} == {
        "digits of 8x8, epsilon 24/255, attack step 6/255, best checkpoint"
    }


def test_the_size_is_that_of_the_evaluation(runs: Path, recipe: Recipe) -> None:
    """Images of another size are not the same test, and those of a run with stages have the last one's."""
    stages = (StageOptions(epoch=0, image_size=6, batch_size=64), StageOptions(epoch=1, image_size=7, batch_size=64))
    change_recipe(runs / "sdi-1", replace(recipe, seed=1, stages=stages))
    assert [row.conditions.image_size for row in rows(runs)] == [8, 8, 7]


def test_the_newest_result_of_an_attack_counts(runs: Path) -> None:
    add_evaluation(runs / "rs-0", attack="clean", accuracy=12.5)
    assert rows(runs)[0].accuracies("clean") == [12.5]


def test_other_machines_make_times_incomparable(runs: Path) -> None:
    assert "times:" not in terminal(rows(runs), [])
    path = runs / "sdi-1" / "environment.json"
    path.write_text(path.read_text().replace('"precision": "fp32"', '"precision": "bf16"'))
    assert "times: not comparable" in terminal(rows(runs), [])


def unready(path: Path) -> str:
    found = read_run(path)
    assert isinstance(found, Unready)
    assert f"{path}: {found.missing}" in terminal([], [found]).replace("\n     ", " ")
    return found.missing


def test_what_is_missing_is_named(runs: Path, recipe: Recipe) -> None:
    log = runs / "sdi-0" / "log.jsonl"
    log.write_text("".join(f"{line}\n" for line in log.read_text().splitlines()[:1]) + '{"epoch": 2, "st')
    assert "trained for 1 of 2 epochs" in unready(runs / "sdi-0")
    (runs / "sdi-1" / "evaluations.jsonl").unlink()
    assert unready(runs / "sdi-1") == f"not evaluated: `hardfast evaluate {runs / 'sdi-1'}`"
    evaluations = runs / "rs-0" / "evaluations.jsonl"
    whole = evaluations.read_text()
    evaluations.write_text("".join(json.dumps(json.loads(line) | {"step": 1}) + "\n" for line in whole.splitlines()))
    assert "evaluated before it was finished" in unready(runs / "rs-0")
    evaluations.write_text(whole.replace('"accuracy"', '"accurate"'))
    damaged = unready(runs / "rs-0")
    assert "evaluations.jsonl is damaged (KeyError('accuracy'))" in damaged
    assert f"evaluate again: `hardfast evaluate {runs / 'rs-0'}`" in damaged
    (runs / "rs-0" / "config.json").write_text("[]")
    assert unready(runs / "rs-0").startswith("config.json: ")
    # None of them is dropped, and the command does not fail over them.
    assert cli.run(["compare", str(runs)]) == 0


def paper_run(folder: Path, recipe: Recipe, accuracy: dict[str, float]) -> None:
    """The files of a finished and evaluated run, as the engine writes them, of a recipe that would take hours."""
    folder.mkdir()
    change_recipe(folder, recipe)
    log = {"epoch": recipe.epochs, "step": 42_240, "step_seconds": 3000.0, "wall_seconds": 3600.0}
    (folder / "log.jsonl").write_text(json.dumps(log) + "\n")
    for checkpoint in ("best", "last"):
        for attack, value in accuracy.items():
            line = {
                "checkpoint": checkpoint,
                "step": 42_240,
                "epsilon": recipe.epsilon,
                "attack": attack,
                "accuracy": value,
                "samples": 10_000,
                "test_images": 10_000,
            }
            with (folder / "evaluations.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")


def test_the_papers_row_stands_under_its_recipe(tmp_path: Path) -> None:
    preset = recipes.get("table5-fgsm-rs")
    paper_run(tmp_path / "0", preset, {"clean": 75.0, "pgd-50": 40.0, "aa": 38.07})
    paper_run(tmp_path / "1", replace(preset, seed=1), {"clean": 77.0, "pgd-50": 40.0, "aa": 38.07})
    best, last = rows(tmp_path)
    lines = terminal([best], []).splitlines()
    ours = next(i for i, line in enumerate(lines) if line.startswith("1 fgsm-rs"))
    assert lines[ours].split()[2:9] == ["2", "76.0", "±", "1.4", "40.0", "±", "0.0"]
    assert lines[ours + 1].split() == ["paper,", "Table", "V", "73.81", "41.26", "37.07", "51"]
    assert lines[ours + 2].split()[-3:] == ["+2.2", "-1.3", "+1.0"]
    assert last.figures["aa"] == 0
    assert last.figures["clean"] == 83.82
    paper_run(tmp_path / "changed", replace(preset, box=False), {"clean": 75.0})
    *_, changed_best, changed_last = sorted(rows(tmp_path), key=lambda row: row.recipe_words)
    assert (changed_best.recipe_words, changed_best.figures, changed_last.figures) == (
        "table5-fgsm-rs (box False)",
        {},
        {},
    )
    assert "the paper's row is left out: box differs" in terminal([changed_best], [])


def test_the_papers_row_stays_under_another_precision_which_is_said(tmp_path: Path) -> None:
    preset = recipes.get("table5-fgsm-rs")
    paper_run(tmp_path / "fp32", preset, {"clean": 75.0})
    half = replace(preset, execution=replace(preset.execution, precision="bf16"))
    paper_run(tmp_path / "half", half, {"clean": 75.0})
    fp32, in_half = (row for row in rows(tmp_path) if row.conditions.checkpoint == "best")
    assert in_half.figures["clean"] == 73.81
    note = "ours in bf16; the paper gives no precision"
    assert note in terminal([in_half], [])
    assert note not in terminal([fp32], [])


def test_csv_and_markdown(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, text = tmp_path / "rows.csv", tmp_path / "rows.md"
    names = [str(path) for path in sorted(trained.iterdir())]
    assert cli.run(["compare", *names, "--csv", str(table), "--markdown", str(text)]) == 0
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 120
    found = list(csv.DictReader(table.read_text().splitlines()))
    assert [row["method"] for row in found] == ["fgsm-rs", "fgsm-sdi (k 5, generator-width 16)"]
    each = [report(trained / f"sdi-{seed}")["pgd-10"] for seed in (0, 1)]
    assert found[1]["pgd-10_each_seed"] == " ".join(f"{value:.2f}" for value in each)
    assert float(found[1]["pgd-10_mean"]) == pytest.approx(statistics.mean(each), abs=1e-3)
    assert float(found[1]["pgd-10_deviation"]) == pytest.approx(statistics.stdev(each), abs=1e-3)
    assert (found[1]["pgd-10_images"], found[1]["seeds"], found[1]["checkpoint"]) == ("360", "0 1", "best")
    assert text.read_text() == markdown(rows(trained), [])
    assert "| 2 fgsm-sdi | 2 |" in text.read_text()


def test_a_run_named_twice_counts_once(trained: Path) -> None:
    assert len(find_runs([str(trained), str(trained / "rs-0"), str(trained / "sdi-0" / ".." / "sdi-0")])) == 3


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ([], "RUN"),
        (["{tmp}/nowhere"], "nowhere is not there"),
        (["{tmp}/file"], "file is not a folder"),
        (["{tmp}"], "holds no run"),
        (["{tmp}", "--cvs", "x"], "--csv"),
    ],
)
def test_wrong_use_is_one_line(words: list[str], part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert cli.run(["compare", *(word.format(tmp=tmp_path) for word in words)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert part in said


@pytest.mark.parametrize("option", ["--csv", "--markdown"])
def test_a_place_that_cannot_be_written(option: str, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["compare", str(trained), option, "/dev/null/rows"]) == 2
    assert f"{option} /dev/null/rows cannot be written" in capsys.readouterr().err


def test_the_number_of_test_images_is_the_evaluations(runs: Path, recipe: Recipe) -> None:
    assert "360 test images" in terminal(rows(runs), [])
    (run, *_) = sorted(runs.iterdir())
    path = run / "evaluations.jsonl"
    old = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({k: v for k, v in one.items() if k != "test_images"}) + "\n" for one in old))
    said = terminal([row for row in rows(runs) if row.runs[0].path == run], [])
    assert "measured on the first 360 of an unknown number of test images only" in said
