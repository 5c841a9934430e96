"""What a rollback does to a run: at alarms that are given to it, so that each of them comes when it is wanted."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hardfast.engine import Recipe, evaluate, train
from hardfast.engine.errors import Collapsed
from hardfast.engine.guard import CollapseHistory, Place, Signs, Wires, training_seed
from hardfast.engine.methods import method_options
from hardfast.engine.run import Run
from hardfast.engine.run_folder import RunFolder
from hardfast.engine.run_guard import RunGuard
from hardfast.engine.tables import compare, compare_tables

from .test_trainer import StopAt, final_state

When = Callable[[Run], bool]


def alarm(monkeypatch: pytest.MonkeyPatch, when: When) -> list[Place]:
    """Every probe at which `when` holds sees robustness lost; where they were."""
    raised: list[Place] = []
    judge = RunGuard._judge

    def judged(guard: RunGuard, signs: Signs, images: int) -> Signs:
        if when(guard.run):
            raised.append(Place(guard.run.at.epoch, guard.run.at.step))
            signs = replace(signs, pgd=0.0, highest=50.0)
        return judge(guard, signs, images)

    monkeypatch.setattr(RunGuard, "_judge", judged)
    return raised


def second_epoch_once(run: Run) -> bool:
    return run.at.epoch == 1 and run.collapse.rollbacks == 0


def log_of(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if "seconds" not in key} for line in lines]


def events(folder: Path) -> list[dict[str, Any]]:
    path = folder / "guard.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture(scope="module")
def recipe(quick_recipe: Recipe) -> Recipe:
    return replace(quick_recipe, epochs=3)


def test_a_rollback_goes_on_with_other_numbers_and_every_result_says_so(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train(recipe, tmp_path / "straight")
    raised = alarm(monkeypatch, second_epoch_once)
    assert train(recipe, tmp_path / "run").finished
    assert raised == [Place(1, 20)]
    (event,) = events(tmp_path / "run")
    assert (event["event"], event["epoch"], event["step"], event["to_step"]) == ("rollback", 2, 20, 20)
    assert "rollback 1 of 3" in capsys.readouterr().out
    straight, log = log_of(tmp_path / "straight"), log_of(tmp_path / "run")
    assert [line["epoch"] for line in log] == [1, 2, 3]
    assert [line["rollbacks"] for line in log] == [0, 1, 1]
    assert [line["rollbacks"] for line in straight] == [0, 0, 0]
    assert log[0] == straight[0]
    assert log[1]["loss"] != straight[1]["loss"]
    evaluate(tmp_path / "run", attacks=("clean",), samples=50, device="cpu")
    assert json.loads((tmp_path / "run/evaluation.json").read_text())["rollbacks"] == 1
    (line,) = (tmp_path / "run/evaluations.jsonl").read_text().splitlines()
    assert json.loads(line)["rollbacks"] == 1
    found = compare.read_run(tmp_path / "run")
    assert isinstance(found, compare.FinishedRun)
    table = " ".join(compare_tables.terminal(compare.rows_of([found]), []).split())
    assert "rollbacks: 1;" in table
    assert "overfitted catastrophically" in table


@pytest.mark.parametrize("name", ["fgsm-sdi", "fgsm-mep"])
def test_a_run_with_a_rollback_resumes_bit_for_bit(
    name: str, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped before the rollback, and after it in mid-epoch."""
    recipe = replace(recipe, method=recipe.method if name == "fgsm-sdi" else method_options(name))
    raised = alarm(monkeypatch, second_epoch_once)
    train(recipe, tmp_path / "unstopped")
    assert raised == [Place(1, 20)]
    for after, rollbacks in ((30, 0), (47, 1)):
        folder = tmp_path / f"stopped-{after}"
        with monkeypatch.context() as patch:
            patch.setattr("hardfast.engine.trainer.StopRequest", StopAt)
            StopAt.countdown = after
            assert not train(recipe, folder).finished
        stopped = RunFolder(folder).checkpoint("last").record
        assert 20 < stopped.at.total < 40
        assert stopped.collapse.rollbacks == rollbacks
        assert train(recipe, folder).finished
        assert final_state(folder) == final_state(tmp_path / "unstopped")
        assert log_of(folder) == log_of(tmp_path / "unstopped")
        assert events(folder) == events(tmp_path / "unstopped")


def test_without_a_good_checkpoint_a_run_begins_anew(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends as a run that draws those other numbers from its first step on, with the recipe's initial weights."""
    with monkeypatch.context() as patch:
        raised = alarm(patch, lambda run: run.at.epoch == 0 and run.collapse.rollbacks == 0)
        train(recipe, tmp_path / "run", save_minutes=0)
        assert raised == [Place(0, 20)]
    monkeypatch.setattr("hardfast.engine.run.training_seed", lambda seed, rollbacks: training_seed(seed, 1))
    train(recipe, tmp_path / "other")
    assert final_state(tmp_path / "run") == final_state(tmp_path / "other")
    assert [line["rollbacks"] for line in log_of(tmp_path / "run")] == [1, 1, 1]


def test_the_good_checkpoint_is_kept_as_long_as_it_is_wanted(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the best one, whatever was saved since: of mid-epochs, which nobody probed. What lay on the way into it is
    gone then."""
    seen: list[set[int]] = []
    roll_back, save, store = RunGuard.roll_back, Run.save, RunFolder(tmp_path / "run").store

    def not_the_best(run: Run, *args: Any, best_score: float | None = None) -> None:
        save(run, *args, best_score=best_score if run.at.epoch == 1 else None)

    def looked_at(guard: RunGuard, needed: Any) -> None:
        seen.append({int(path.name[5:]) for path in store.folder.iterdir()})
        roll_back(guard, needed)
        seen.append({int(path.name[5:]) for path in store.folder.iterdir()})

    monkeypatch.setattr(RunGuard, "roll_back", looked_at)
    monkeypatch.setattr(Run, "save", not_the_best)
    alarm(monkeypatch, lambda run: run.at.epoch == 2 and run.collapse.rollbacks == 0)
    train(recipe, tmp_path / "run", save_minutes=0)
    assert seen == [{20, 40, 58, 59}, {20, 40}]
    (event,) = events(tmp_path / "run")
    assert event["to_step"] == 40


def test_after_three_rollbacks_a_run_stops_with_the_best_kept(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tyro")
    from hardfast.engine import cli

    raised = alarm(monkeypatch, lambda run: run.at.epoch == 1)
    monkeypatch.setattr(cli, "train", lambda *_, **__: train(recipe, tmp_path / "run"))
    assert cli.run(["train", "digits", "--out", str(tmp_path / "run")]) == 76
    assert raised == [Place(1, 20)] * 4
    (said,) = capfd.readouterr().err.strip().splitlines()
    assert "in epoch 2 after 3 rollbacks" in said
    assert "keeps its best checkpoint, of epoch 1" in said
    assert "--guard warn" in said
    assert [event["event"] for event in events(tmp_path / "run")] == ["rollback"] * 3 + ["stop"]
    assert [event.get("rollbacks") for event in events(tmp_path / "run")] == [1, 2, 3, 3]
    assert RunFolder(tmp_path / "run").checkpoint("best").record.at.epoch == 1
    with pytest.raises(Collapsed):  # and again, for who repeats the command
        train(recipe, tmp_path / "run")
    assert [event["event"] for event in events(tmp_path / "run")] == ["rollback"] * 3 + ["stop"]


def test_a_warning_is_a_line_and_nothing_else(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train(replace(recipe, guard="off"), tmp_path / "off")
    with monkeypatch.context() as patch:
        patch.setattr("hardfast.engine.run_guard.trip_wires", lambda **_: Wires(every=5, images=32))
        patch.setattr(RunGuard, "_worth_a_look", lambda *_: True)
        raised = alarm(patch, lambda run: run.at.epoch == 1)
        train(replace(recipe, guard="warn"), tmp_path / "warn")
        assert raised == [Place(1, step) for step in (5, 10, 15, 20)]
    assert capsys.readouterr().out.count("catastrophic overfitting") == 1
    assert [event["event"] for event in events(tmp_path / "warn")] == ["warning"]
    assert final_state(tmp_path / "warn") == final_state(tmp_path / "off")
    assert log_of(tmp_path / "warn") == log_of(tmp_path / "off")


def test_a_method_without_an_attack_is_not_looked_at(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raised = alarm(monkeypatch, lambda run: True)
    train(replace(recipe, epochs=1, method=method_options("standard")), tmp_path / "run")
    assert raised == []
    assert capsys.readouterr().out.count("attacks nothing that it could overfit to") == 1


@pytest.mark.parametrize("average", [None, 0.9])
def test_trip_wires_change_nothing_and_go_on_after_a_stop(
    average: float | None, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Probes in mid-epoch: the run is the one without them, and their memory survives a stop."""
    recipe = replace(recipe, epochs=2, weight_average=average)
    train(replace(recipe, guard="off"), tmp_path / "off")
    monkeypatch.setattr("hardfast.engine.run_guard.trip_wires", lambda **_: Wires(every=5, images=32))
    probes: list[tuple[float, float | None]] = []
    probed = CollapseHistory.probed

    def noted(history: CollapseHistory, pgd: float, train: float | None, **tally: Any) -> CollapseHistory:
        probes.append((tally["images"], train))
        return probed(history, pgd, train, **tally)

    with monkeypatch.context() as patch:
        patch.setattr(CollapseHistory, "probed", noted)
        train(recipe, tmp_path / "unstopped")
    assert [images for images, _ in probes] == [320, 640, 960, 0] * 2
    by_epoch = [[share for _, share in probes[first : first + 4] if share is not None] for first in (0, 4)]
    trained = [line["train_accuracy"] for line in log_of(tmp_path / "unstopped")]
    assert [sum(shares) / 4 for shares in by_epoch] == pytest.approx(trained)  # each is that of five steps alone
    seen = RunFolder(tmp_path / "unstopped").checkpoint("last").record.collapse
    assert seen.highest_of_wires is not None
    assert final_state(tmp_path / "unstopped") == final_state(tmp_path / "off")
    with monkeypatch.context() as patch:
        patch.setattr("hardfast.engine.trainer.StopRequest", StopAt)
        StopAt.countdown = 31
        assert not train(recipe, tmp_path / "run").finished
    assert 20 < RunFolder(tmp_path / "run").checkpoint("last").record.at.total < 40
    assert train(recipe, tmp_path / "run").finished
    assert final_state(tmp_path / "run") == final_state(tmp_path / "off")
    assert RunFolder(tmp_path / "run").checkpoint("last").record.collapse == seen


def test_a_trip_wire_takes_a_run_back_in_mid_epoch(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the few images show is confirmed on all before anything is done."""
    asked: list[tuple[str, int]] = []
    accuracy = RunGuard._accuracy

    def broken(guard: RunGuard, net: torch.nn.Module, attack: str, images: int) -> float:
        found = accuracy(guard, net, attack, images)
        if (guard.run.at.epoch, guard.run.at.step) == (1, 10) and not guard.run.collapse.rollbacks:
            asked.append((attack, images))
            return 90.0 if attack == "fgsm" else 6.0
        return found

    monkeypatch.setattr("hardfast.engine.run_guard.trip_wires", lambda **_: Wires(every=5, images=32))
    monkeypatch.setattr(RunGuard, "_accuracy", broken)
    train(recipe, tmp_path / "run")
    assert asked == [("pgd-10", 32), ("fgsm", 32), ("pgd-10", 512), ("fgsm", 512)]
    (event,) = events(tmp_path / "run")
    assert (event["event"], event["epoch"], event["step"], event["to_step"]) == ("rollback", 2, 10, 20)
    assert "FGSM 90.0 %" in event["why"]
