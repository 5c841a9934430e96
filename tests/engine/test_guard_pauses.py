"""What happens in the pauses of an epoch: stops, dying loaders and second looks at the trip wires."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from hardfast.engine import Recipe, train
from hardfast.engine.errors import Diverged
from hardfast.engine.guard import MOST, CollapseHistory, NonFiniteHistory, Place, Signs, Wires
from hardfast.engine.pace import Pace
from hardfast.engine.run import Run
from hardfast.engine.run_folder import RunFolder
from hardfast.engine.run_guard import GoBack, RunGuard
from hardfast.loaders import DataError, open_dataset

from .test_guard_rollback import alarm, events, log_of, second_epoch_once
from .test_nonfinite_policy import nan_in_a_weight
from .test_trainer import final_state


@pytest.fixture(scope="module")
def recipe(quick_recipe: Recipe) -> Recipe:
    return replace(quick_recipe, epochs=2)


@pytest.fixture(scope="module")
def straight(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("straight") / "run"
    train(recipe, folder)
    return final_state(folder)


@pytest.fixture
def wires(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trip wire after each fifth step."""
    monkeypatch.setattr("hardfast.engine.run_guard.trip_wires", lambda **_: Wires(every=5, images=32))


def dying_loader(patch: pytest.MonkeyPatch, *, total: int) -> list[int]:
    """No batch comes after so many steps."""
    fired: list[int] = []
    follow = Run.follow_schedule

    def died(run: Run) -> None:
        follow(run)
        if run.at.total == total:
            fired.append(total)
            raise DataError("the loader died")

    patch.setattr(Run, "follow_schedule", died)
    return fired


def last(folder: Path) -> int:
    return RunFolder(folder).checkpoint("last").record.at.total


@pytest.mark.usefixtures("wires")
def test_a_signal_that_comes_during_a_probe_loses_nothing(
    recipe: Recipe, straight: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trip_wire = RunGuard.trip_wire

    def interrupted(guard: RunGuard) -> None:
        trip_wire(guard)
        if guard.run.at.total == 15:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(RunGuard, "trip_wire", interrupted)
        outcome = train(recipe, tmp_path / "run")
    assert (outcome.stopped, outcome.finished) == (True, False)
    assert last(tmp_path / "run") == 15
    assert train(recipe, tmp_path / "run").finished
    assert final_state(tmp_path / "run") == straight


@pytest.mark.usefixtures("wires")
@pytest.mark.parametrize("total", [5, 25])
def test_a_loader_that_dies_just_after_a_wire_loses_nothing(
    total: int, recipe: Recipe, straight: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        fired = dying_loader(patch, total=total)
        with pytest.raises(DataError, match="died"):
            train(recipe, tmp_path / "run")
    assert fired == [total]
    assert last(tmp_path / "run") == total
    assert train(recipe, tmp_path / "run").finished
    assert final_state(tmp_path / "run") == straight


def test_a_loader_that_dies_after_bad_steps_saves_none_of_them(
    recipe: Recipe, straight: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The flags of the steps before are read first."""
    with monkeypatch.context() as patch:
        fired = dying_loader(patch, total=28)
        follow = Run.follow_schedule

        def broken(run: Run) -> None:
            follow(run)
            if run.at.total == 24:
                nan_in_a_weight(run)

        patch.setattr(Run, "follow_schedule", broken)
        with pytest.raises(DataError, match="died"):
            train(recipe, tmp_path / "run")
    assert fired == [28]
    (event,) = events(tmp_path / "run")
    assert (event["event"], event["step"], event["to_step"]) == ("rollback", 4, 20)
    assert last(tmp_path / "run") == 20
    assert train(recipe, tmp_path / "run").finished
    assert final_state(tmp_path / "run") == straight


@pytest.mark.usefixtures("wires")
def test_a_wire_that_could_not_be_judged_was_none(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images for the average's statistics cannot be read at the second look."""
    fired: list[int] = []

    def failed(guard: RunGuard, signs: Signs, images: int) -> bool:
        fired.append(guard.run.at.total)
        return guard.run.at.total == 10

    def no_images(run: Run) -> None:
        raise DataError("the loader died")

    monkeypatch.setattr(RunGuard, "_worth_a_look", failed)
    monkeypatch.setattr(Run, "renew_statistics", no_images)
    with pytest.raises(DataError, match="died"):
        train(replace(recipe, weight_average=0.9), tmp_path / "run")
    assert fired == [5, 10]
    found = RunFolder(tmp_path / "run").checkpoint("last").record
    assert found.at.total == 10
    assert found.collapse.images == 5 * 64  # of the wire before


def test_a_stop_after_a_rollback_keeps_that_it_was(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roll_back = RunGuard.roll_back
    spent: list[tuple[float, float]] = []

    def interrupted(guard: RunGuard, needed: GoBack) -> None:
        spent.append((guard.run.at.wall_seconds, guard.run.at.step_seconds))
        roll_back(guard, needed)
        spent.append((guard.run.at.wall_seconds, guard.run.at.step_seconds))
        os.kill(os.getpid(), signal.SIGTERM)

    alarm(monkeypatch, second_epoch_once)
    monkeypatch.setattr(RunGuard, "roll_back", interrupted)
    assert train(recipe, tmp_path / "run").stopped
    found = RunFolder(tmp_path / "run").checkpoint("last").record
    assert (found.at.total, found.collapse.rollbacks) == (21, 1)
    before, after = spent
    assert before == after  # the time of what was given up is not given back
    first = RunFolder(tmp_path / "run").checkpoint("best").record.at
    assert before[0] > first.wall_seconds
    assert before[1] > first.step_seconds
    assert len(log_of(tmp_path / "run")) == 1


class Seen:
    """Answers what probes measure, from the second epoch on, and keeps how many images were looked at again."""

    def __init__(self, patch: pytest.MonkeyPatch, few: dict[str, float], many: dict[str, float]) -> None:
        self.few: list[Place] = []
        self.many: list[Place] = []
        accuracy = RunGuard._accuracy

        def told(guard: RunGuard, net: nn.Module, attack: str, images: int) -> float:
            at = Place(guard.run.at.epoch, guard.run.at.step)
            if at.epoch == 0:
                return accuracy(guard, net, attack, images)
            if attack == "pgd-10":
                (self.many if images == MOST else self.few).append(at)
            return (many if images == MOST else few)[attack]

        patch.setattr(RunGuard, "_accuracy", told)


COLLAPSED, HEALTHY = {"pgd-10": 2.0, "fgsm": 90.0}, {"pgd-10": 70.0, "fgsm": 75.0}
WIRES = [Place(epoch, step) for epoch in (1, 2) for step in (5, 10, 15)]


@pytest.mark.usefixtures("wires")
def test_second_looks_are_few(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They cost many times a wire: at most one an epoch, and none of a run that is known to have collapsed."""
    recipe = replace(recipe, epochs=3)
    with monkeypatch.context() as patch:
        seen = Seen(patch, few=COLLAPSED, many=COLLAPSED)
        assert train(replace(recipe, guard="warn"), tmp_path / "warned").finished
    assert (seen.few, seen.many) == (WIRES, [Place(1, 5)])
    assert [event["event"] for event in events(tmp_path / "warned")][:1] == ["warning"]
    with monkeypatch.context() as patch:
        seen = Seen(patch, few=COLLAPSED, many=HEALTHY)
        assert train(recipe, tmp_path / "mistaken").finished
    assert (seen.few, seen.many) == (WIRES, [Place(1, 5), Place(2, 5)])
    assert events(tmp_path / "mistaken") == []
    with monkeypatch.context() as patch:
        jumped = property(lambda signs: signs.train is not None)
        patch.setattr(Signs, "jumped", jumped)
        seen = Seen(patch, few=HEALTHY, many=HEALTHY)
        assert train(recipe, tmp_path / "learning").finished
    assert (seen.few, seen.many) == (WIRES, [])


@pytest.fixture
def guard(recipe: Recipe, tmp_path: Path) -> RunGuard:
    """Of a run that has not begun."""
    folder = RunFolder(tmp_path / "run")
    folder.create(recipe)
    return RunGuard(Run(recipe, open_dataset(recipe.data), torch.device("cpu")), folder)


def test_no_run_goes_back_to_where_fgsm_and_pgd_are_apart(guard: RunGuard, monkeypatch: pytest.MonkeyPatch) -> None:
    run = guard.run
    run.recipe = replace(run.recipe, guard="warn")
    run.at.total = 20
    goods = []
    for fgsm in (60.0, 90.0):
        monkeypatch.setattr(RunGuard, "_accuracy", lambda *_, fgsm=fgsm: fgsm)
        run.collapse = CollapseHistory(highest=50.0, train=20.0)
        run.tally.sums.copy_(torch.tensor([1.0, 60.0, 100.0]))
        guard.held_out(48.0)
        goods.append(run.collapse.good)
    assert goods == [20, None]


def test_when_somebody_looks_does_not_decide_where_it_began(guard: RunGuard) -> None:
    """A clock's save right after the fault, and the next time one step later: the same place, so the run ends."""
    run = guard.run
    run.at.step = run.at.total = 7
    first = guard.turned_bad("a weight is not finite")
    assert isinstance(first, GoBack)
    assert (first.place, first.before) == (Place(0, 7), 7)
    run.at.step = run.at.total = 8
    run.nonfinite = replace(run.nonfinite, row=1)
    second = guard.turned_bad("a weight is not finite")
    assert isinstance(second, Diverged)
    assert "step 7" in str(second)
    assert "repeat the command" in str(second)


def test_a_scale_at_its_floor_names_the_precision(guard: RunGuard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(guard.run.classifier.scaler), "at_floor", True)
    guard.run.nonfinite = NonFiniteHistory(answered=(Place(0, 0),))
    assert "--execution.precision bf16 or fp32" in str(guard.turned_bad("loss inf"))


def test_the_pace_is_of_all_pieces_of_an_epoch() -> None:
    pace = Pace()
    assert pace.images_per_second == 0
    pace.add(0, images=100, seconds=1.0)
    pace.add(0, images=20, seconds=1.0)
    assert pace.images_per_second == 60
    pace.add(1, images=30, seconds=1.0)
    assert pace.images_per_second == 30
