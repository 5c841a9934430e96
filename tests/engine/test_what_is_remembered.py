"""What a resumed run must still know, and what must be on the disk: each could once be lost without a test's word."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("safetensors")
pytest.importorskip("pydantic")
from hardfast.engine import Recipe, train
from hardfast.engine.checkpoint import MODEL
from hardfast.engine.disk import make_folder
from hardfast.engine.errors import Diverged
from hardfast.engine.execution import ExecutionOptions
from hardfast.engine.record import Best
from hardfast.engine.run import Run
from hardfast.engine.run_folder import RunFolder, append_line, write_whole
from hardfast.engine.run_guard import RunGuard
from hardfast.loaders import open_dataset

from .test_nonfinite_policy import Faults, events, poisoned_batch
from .test_trainer import StopAt

CPU = torch.device("cpu")


def run_of(recipe: Recipe) -> Run:
    return Run(recipe, open_dataset(recipe.data), CPU)


def test_steps_left_out_before_a_stop_are_counted_after_it(
    quick_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six of them before and four after are ten in 1,000: neither process alone would end the run."""
    recipe = replace(quick_recipe, epochs=2)
    with monkeypatch.context() as patch:
        faults = Faults(patch, poisoned_batch, made=set(range(1, 13, 2)), at=set())
        patch.setattr("hardfast.engine.trainer.StopRequest", StopAt)
        StopAt.countdown = 17
        assert not train(recipe, tmp_path / "run").finished
        assert len(faults.fired) == 6
    assert RunFolder(tmp_path / "run").checkpoint("last").record.nonfinite.steps == 6
    faults = Faults(monkeypatch, poisoned_batch, made={1, 3, 5, 7}, at=set())
    with pytest.raises(Diverged, match=r"in 10 of 1,000 steps"):
        train(recipe, tmp_path / "run")
    assert len(faults.fired) == 4


def test_the_loss_scale_is_restored(quick_recipe: Recipe, tmp_path: Path) -> None:
    recipe = replace(quick_recipe, execution=ExecutionOptions(precision="fp16"))
    store = RunFolder(tmp_path).store
    saved, fresh = run_of(recipe), run_of(recipe)
    scale = {name: torch.tensor(value).double() for name, value in (("scale", 2.0**7), ("healthy_steps", 5.0))}
    saved.classifier.scaler.restore(scale)
    assert fresh.classifier.scaler.tensors() != scale
    saved.save(store)
    latest = store.latest()
    assert latest is not None
    fresh.restore(latest)
    assert fresh.classifier.scaler.tensors() == scale


@pytest.mark.parametrize("average", [None, 0.9])
@pytest.mark.parametrize("name", ["conv1.weight", "bn1.running_var", "bn1.running_mean"])
def test_all_of_the_trained_net_is_looked_at_before_a_save(
    name: str, average: float | None, quick_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the average beside it is what is evaluated and kept."""
    recipe = replace(quick_recipe, epochs=1, weight_average=average)
    broken: list[int] = []
    poll = RunGuard.poll

    def then_broken(guard: RunGuard) -> None:
        poll(guard)
        if guard.run.at.total == 20 and not broken:
            broken.append(20)
            with torch.no_grad():
                tensor = guard.run.net.state_dict()[name]
                tensor[(0,) * tensor.dim()] = torch.nan

    monkeypatch.setattr(RunGuard, "poll", then_broken)
    assert train(recipe, tmp_path / "run").finished
    assert broken == [20]
    (event,) = events(tmp_path / "run")
    assert event["event"] == "rollback"
    assert f"{name}' is not finite" in str(event["why"])


def test_a_damaged_good_checkpoint_gives_way_to_the_best(
    quick_recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = replace(quick_recipe, epochs=2)
    train(recipe, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    run = run_of(recipe)
    run.best, run.collapse = Best(step=20, epoch=1, score=50.0), replace(run.collapse, good=40)
    guard = RunGuard(run, folder)
    found = guard._good()
    assert found is not None
    assert found.path == folder.store.path(40)
    (folder.store.path(40) / MODEL).write_bytes(b"\0" * 100)
    found = guard._good()
    assert found is not None
    assert found.path == folder.store.path(20)
    assert f"rejected: {folder.store.path(40)}" in capsys.readouterr().out


def called(monkeypatch: pytest.MonkeyPatch, work: Callable[[], object]) -> list[tuple[str, str]]:
    """What was brought to the disk and what was given a name, in this order, by file name."""
    seen: list[tuple[str, str]] = []
    fsync, replaced = os.fsync, os.replace

    def syncing(descriptor: int) -> None:
        seen.append(("sync", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))
        fsync(descriptor)

    def replacing(source: str, target: str) -> None:
        seen.append(("name", Path(target).name))
        replaced(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", syncing)
        patch.setattr(os, "replace", replacing)
        work()
    return seen


def test_small_files_are_on_the_disk_before_they_have_their_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = f".config.json.tmp-{os.getpid()}"
    assert called(monkeypatch, lambda: write_whole(tmp_path / "config.json", "{}")) == [
        ("sync", part),
        ("name", "config.json"),
        ("sync", tmp_path.name),
    ]


def test_lines_and_folders_are_on_the_disk_when_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log.jsonl"
    assert called(monkeypatch, lambda: append_line(log, "{}")) == [("sync", "log.jsonl"), ("sync", tmp_path.name)]
    assert called(monkeypatch, lambda: append_line(log, "{}")) == [("sync", "log.jsonl")]
    assert called(monkeypatch, lambda: make_folder(tmp_path / "a" / "b")) == [("sync", tmp_path.name), ("sync", "a")]
