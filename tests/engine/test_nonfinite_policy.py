"""What a run does about steps that are not finite: real faults, written into a real training."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hardfast.engine import Recipe, train
from hardfast.engine.checkpoint import MODEL
from hardfast.engine.errors import Diverged
from hardfast.engine.guard import Wires
from hardfast.engine.run import Run
from hardfast.engine.run_folder import RunFolder
from hardfast.engine.run_guard import RunGuard

from .test_trainer import StopAt, final_state

Fault = Callable[[Run], None]


def nan_in_a_weight(run: Run) -> None:
    with torch.no_grad():
        next(iter(run.net.parameters()))[0, 0, 1, 1] = torch.nan


class Faults:
    """Breaks something before steps of chosen numbers, counted as they are made, and keeps what was broken when."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fault: Fault, *, made: set[int], at: set[int]) -> None:
        self.fired: list[int] = []
        steps, follow = 0, Run.follow_schedule

        def then_fault(run: Run) -> None:
            nonlocal steps
            follow(run)
            steps += 1
            if steps in made or run.at.total in at:
                fault(run)
                self.fired.append(run.at.total)

        monkeypatch.setattr(Run, "follow_schedule", then_fault)


def events(folder: Path) -> list[dict[str, object]]:
    path = folder / "guard.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture(scope="module")
def recipe(quick_recipe: Recipe) -> Recipe:
    return replace(quick_recipe, epochs=2)


@pytest.fixture(scope="module")
def straight(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The final state of a run without a fault."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    train(recipe, folder)
    assert events(folder) == []
    return final_state(folder)


@pytest.mark.parametrize(("step", "back_to"), [(5, 0), (27, 20)])
def test_damaged_weights_are_taken_back_from_the_last_checkpoint(
    step: int, back_to: int, recipe: Recipe, straight: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault that comes once, as a flipped bit: the run ends with the very weights of one without it."""
    faults = Faults(monkeypatch, nan_in_a_weight, made={step}, at=set())
    assert train(recipe, tmp_path / "run").finished
    assert faults.fired == [step - 1]
    (event,) = events(tmp_path / "run")
    assert (event["event"], event["to_step"], event["rollbacks"]) == ("rollback", back_to, 0)
    assert (event["epoch"], event["step"]) == ((step - 1) // 20 + 1, (step - 1) % 20)
    assert final_state(tmp_path / "run") == straight
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    left_out = 20 - (step - 1) % 20  # from the fault to where the flags were read, at the epoch's end
    assert lines[-1]["nonfinite_steps"] == min(left_out, 3)  # the decision falls at the third
    assert RunFolder(tmp_path / "run").checkpoint("last").record.nonfinite.recent == ()  # those steps were given up


def test_a_fault_that_comes_again_ends_the_run(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As a learning rate too high would be: with exit code 76 and one line, and the last checkpoint is whole."""
    pytest.importorskip("tyro")
    from hardfast.engine import cli

    faults = Faults(monkeypatch, nan_in_a_weight, made=set(), at={26})
    monkeypatch.setattr(cli, "train", lambda *_, **__: train(recipe, tmp_path / "run"))
    assert cli.run(["train", "digits", "--out", str(tmp_path / "run")]) == 76
    assert faults.fired == [26, 26]
    said = capfd.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert "epoch 2, step 6" in said[0]
    assert "again after going back" in said[0]
    assert "--optimizer.lr" in said[0]
    assert [event["event"] for event in events(tmp_path / "run")] == ["rollback", "stop"]
    assert RunFolder(tmp_path / "run").checkpoint("last").record.at.total == 20


def test_the_next_process_goes_on_where_the_fault_is_gone(
    recipe: Recipe, straight: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        Faults(patch, nan_in_a_weight, made=set(), at={26})
        with pytest.raises(Diverged):
            train(recipe, tmp_path / "run")
    assert train(recipe, tmp_path / "run").finished
    assert final_state(tmp_path / "run") == straight


def poisoned_batch(run: Run) -> None:
    """One step's loss is NaN, by a weight that is whole again before the next."""
    weight = next(iter(run.net.parameters()))
    kept, step = weight.detach().clone(), run.step

    def once(*args: object) -> None:
        nan_in_a_weight(run)
        step(*args)
        with torch.no_grad():
            weight.copy_(kept)
        run.step = step

    run.step = once  # type: ignore[assignment]


def left_out(run: Run) -> None:
    """The same step is not made at all."""
    step = run.step

    def once(*args: object) -> None:
        run.step = step

    run.step = once  # type: ignore[assignment]


@pytest.mark.parametrize("count", [1, 2])
def test_single_steps_are_left_out_and_training_goes_on(
    count: int, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run ends as one that never made these steps, and it says how many they were."""
    steps = set(range(8, 8 + count))
    with monkeypatch.context() as patch:
        faults = Faults(patch, poisoned_batch, made=steps, at=set())
        train(recipe, tmp_path / "poisoned")
        assert len(faults.fired) == count
    with monkeypatch.context() as patch:
        faults = Faults(patch, left_out, made=steps, at=set())
        train(recipe, tmp_path / "without")
        assert len(faults.fired) == count
    assert final_state(tmp_path / "poisoned") == final_state(tmp_path / "without")
    assert events(tmp_path / "poisoned") == []
    for name, said in (("poisoned", count), ("without", 0)):
        lines = [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        assert [line["nonfinite_steps"] for line in lines] == [said, said]


def test_ten_single_steps_end_the_run(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faults = Faults(monkeypatch, poisoned_batch, made=set(range(2, 40, 2)), at=set())
    with pytest.raises(Diverged, match=r"in 10 of 1,000 steps"):
        train(recipe, tmp_path / "run")
    assert len(faults.fired) >= 10


def test_no_checkpoint_is_written_of_weights_that_are_not_finite(
    recipe: Recipe, straight: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken after the last step of a stretch, where no flag can tell; saved after every step."""
    broken: list[int] = []
    poll = RunGuard.poll

    def then_broken(guard: RunGuard) -> None:
        poll(guard)
        if guard.run.at.total == 7 and not broken:
            broken.append(7)
            nan_in_a_weight(guard.run)

    monkeypatch.setattr(RunGuard, "poll", then_broken)
    assert train(recipe, tmp_path / "run", save_minutes=0).finished
    assert broken == [7]
    (event,) = events(tmp_path / "run")
    assert (event["event"], event["to_step"]) == ("rollback", 6)
    assert "is not finite" in str(event["why"])
    assert final_state(tmp_path / "run") == straight


def huge_weights(run: Run) -> None:
    """Finite, and no output of theirs is."""
    with torch.no_grad():
        for parameter in run.net.parameters():
            parameter.fill_(1e30)


@pytest.mark.parametrize("stopped", [False, True])
def test_nothing_that_was_saved_in_a_bad_row_is_gone_back_to(
    stopped: bool, recipe: Recipe, straight: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weights pass every check of a save, and lead into the fault again. A stop in the row keeps the one before."""
    faults = Faults(monkeypatch, huge_weights, made={8}, at=set())
    if stopped:
        with monkeypatch.context() as patch:
            patch.setattr("hardfast.engine.trainer.StopRequest", StopAt)
            StopAt.countdown = 2 + 2 * 7 + 7 + 2
            assert not train(recipe, tmp_path / "run", save_minutes=0).finished
        assert RunFolder(tmp_path / "run").checkpoint("last").record.nonfinite.row > 0
    assert train(recipe, tmp_path / "run", save_minutes=0).finished
    assert faults.fired == [7]
    (event,) = events(tmp_path / "run")
    assert (event["event"], event["epoch"], event["step"], event["to_step"]) == ("rollback", 1, 7, 7)
    assert final_state(tmp_path / "run") == straight


@pytest.mark.parametrize("step", [5, 20])
def test_weights_too_large_are_taken_back(
    step: int, recipe: Recipe, straight: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by a trip wire, and by the check at an epoch's end."""
    broken: list[int] = []
    check = RunGuard.check_weights

    def then_broken(guard: RunGuard) -> None:
        check(guard)
        if guard.run.at.total == 20 + step and not broken:
            broken.append(step)
            huge_weights(guard.run)

    monkeypatch.setattr("hardfast.engine.run_guard.trip_wires", lambda **_: Wires(every=5, images=32))
    monkeypatch.setattr(RunGuard, "check_weights", then_broken)
    assert train(recipe, tmp_path / "run").finished
    assert broken == [step]
    (event,) = events(tmp_path / "run")
    assert (event["event"], event["step"], event["to_step"]) == ("rollback", step, 20)
    assert final_state(tmp_path / "run") == straight


def test_a_damaged_checkpoint_is_named_when_a_run_goes_back(
    recipe: Recipe, straight: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = RunFolder(tmp_path / "run").store.path(20)

    def damaged_too(run: Run) -> None:
        (path / MODEL).write_bytes(b"\0" * 100)
        nan_in_a_weight(run)

    faults = Faults(monkeypatch, damaged_too, made={27}, at=set())
    assert train(recipe, tmp_path / "run").finished
    assert faults.fired == [26]
    assert capsys.readouterr().out.count(f"rejected: {path}") == 1
    assert events(tmp_path / "run")[0]["to_step"] == 0
    assert final_state(tmp_path / "run") == straight
