"""The loop: what a run leaves behind, and that a stopped one goes on as if nothing had been."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from hardfast.engine import Recipe, UsageError, evaluate_net, load_model, recipes, train
from hardfast.engine.checkpoint import MODEL, STATE, CheckpointStore
from hardfast.engine.errors import Diverged
from hardfast.engine.methods import METHODS, method_options
from hardfast.engine.recipes.recipe import OptimizerOptions, StageOptions
from hardfast.engine.recipes.schedule import ScheduleOptions
from hardfast.engine.run import Run
from hardfast.engine.run_folder import RunFolder
from hardfast.engine.signals import StopRequest
from hardfast.loaders import open_dataset


def final_state(folder: Path) -> str:
    """One digest over every tensor of the last checkpoint."""
    last = RunFolder(folder).checkpoint("last")
    return hashlib.sha256((last.path / MODEL).read_bytes() + (last.path / STATE).read_bytes()).hexdigest()


def test_what_a_run_leaves_behind(quick_run: Path, quick_recipe: Recipe) -> None:
    assert recipes.from_json((quick_run / "config.json").read_text(), "config.json") == quick_recipe
    (environment,) = json.loads((quick_run / "environment.json").read_text())["starts"]
    assert environment["numerics"]["torch"] == torch.__version__
    assert environment["numerics"]["threads"] == torch.get_num_threads()
    log = [json.loads(line) for line in (quick_run / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in log] == [1, 2, 3, 4]
    assert [line["step"] for line in log] == [20, 40, 60, 80]
    for key in ("lr", "loss", "train_accuracy", "generator_loss", "clean", "pgd-10", "step_seconds", "wall_seconds"):
        assert all(isinstance(line[key], float) for line in log), key
    assert log[-1]["loss"] < log[0]["loss"]
    best, last = (RunFolder(quick_run).checkpoint(which) for which in ("best", "last"))
    assert last.record.at.epoch == 4
    scores = [line["pgd-10"] for line in log]
    assert best.record.at.epoch == max(e for e in range(1, 5) if scores[e - 1] == max(scores))
    kept = {best.path.name, last.path.name, "step-00000060"}  # the one before the last, too
    assert {p.name for p in (quick_run / "checkpoints").iterdir()} == kept


def test_load_model(quick_run: Path) -> None:
    net = load_model(quick_run, checkpoint="last")
    assert not any(module.training for module in net.modules())
    data = open_dataset(RunFolder(quick_run).recipe().data)
    with torch.no_grad():
        logits = net(data.test.images.permute(0, 3, 1, 2).float() / 255)
    assert (logits.argmax(dim=1) == data.test.labels).float().mean() > 0.5


def test_same_seed_same_bits_other_seed_other_bits(quick_recipe: Recipe, tmp_path: Path) -> None:
    recipe = replace(quick_recipe, epochs=1)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(replace(recipe, seed=seed), tmp_path / name)
    assert final_state(tmp_path / "a") == final_state(tmp_path / "b") != final_state(tmp_path / "c")


class StopAt(StopRequest):
    """Sends this process a real SIGINT when asked for the n-th time whether to stop."""

    countdown = 0

    @property
    def requested(self) -> bool:
        type(self).countdown -= 1
        if self.countdown == 0:
            os.kill(os.getpid(), signal.SIGINT)
        return self._requested

    @requested.setter
    def requested(self, value: bool) -> None:
        self._requested = value


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Recipe], Path]:
    """A run that nothing stops, trained once for each recipe."""
    done: dict[str, Path] = {}

    def trained(recipe: Recipe) -> Path:
        text = recipes.to_json(recipe)
        if text not in done:
            done[text] = tmp_path_factory.mktemp("straight") / "run"
            train(recipe, done[text])
        return done[text]

    return trained


VARIANTS = {
    "average": {"weight_average": 0.9},
    "stages": {
        "stages": (
            StageOptions(epoch=0, image_size=6, batch_size=64),
            StageOptions(epoch=1, image_size=8, batch_size=32),
        ),
        "method": method_options("free-at"),
    },
}


@pytest.mark.parametrize(
    ("name", "after"),
    [
        # After the first step, in mid-epoch, on an epoch's last step, and in the next epoch.
        *[("fgsm-sdi", after) for after in (3, 13, 18, 21, 33)],
        *[(name, 33) for name in METHODS if name != "fgsm-sdi"],
        *[(name, after) for name in VARIANTS for after in (13, 21, 33)],
    ],
)
def test_a_stopped_run_resumes_bit_for_bit(
    name: str,
    after: int,
    straight: Callable[[Recipe], Path],
    quick_recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = replace(quick_recipe, epochs=2, **VARIANTS.get(name, {}))
    if name in METHODS and name != recipe.method.name:
        recipe = replace(recipe, method=method_options(name))
    unstopped = straight(recipe)
    with monkeypatch.context() as patch:
        patch.setattr("hardfast.engine.trainer.StopRequest", StopAt)
        StopAt.countdown = after
        assert not train(recipe, tmp_path / "stopped").finished
    stopped = RunFolder(tmp_path / "stopped").checkpoint("last").record.at
    assert 0 < stopped.total < 60
    assert final_state(tmp_path / "stopped") != final_state(unstopped)
    capsys.readouterr()
    assert train(recipe, tmp_path / "stopped").finished
    assert ": bit for bit" in capsys.readouterr().out
    assert final_state(tmp_path / "stopped") == final_state(unstopped)
    timeless = [
        [{k: v for k, v in json.loads(line).items() if "seconds" not in k} for line in log.read_text().splitlines()]
        for log in (unstopped / "log.jsonl", tmp_path / "stopped/log.jsonl")
    ]
    assert timeless[0] == timeless[1]


@pytest.mark.parametrize("name", ["fgsm-sdi", "fgsm-mep", "average", "stages"])
def test_saving_in_mid_epoch_changes_nothing(
    name: str,
    straight: Callable[[Recipe], Path],
    quick_recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = replace(quick_recipe, epochs=2, **VARIANTS.get(name, {}))
    if name == "fgsm-mep":
        recipe = replace(recipe, method=method_options(name))
    unstopped, saved, save = straight(recipe), [], CheckpointStore.save

    def noted(self: CheckpointStore, step: int, **content: Any) -> Path:
        saved.append(step)
        return save(self, step, **content)

    monkeypatch.setattr(CheckpointStore, "save", noted)
    assert train(recipe, tmp_path / "run", save_minutes=0).finished
    assert saved == list(range(1, RunFolder(unstopped).checkpoint("last").record.at.total + 1))
    assert final_state(tmp_path / "run") == final_state(unstopped)


def test_by_default_a_short_run_is_saved_at_its_epochs_ends_alone(
    quick_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And after so many minutes without a save, in mid-epoch too."""
    recipe, now, saved, save = replace(quick_recipe, epochs=2), [0.0], [], CheckpointStore.save

    def noted(self: CheckpointStore, step: int, **content: Any) -> Path:
        saved.append(step)
        return save(self, step, **content)

    def a_minute_later() -> float:
        now[0] += 60
        return now[0]

    monkeypatch.setattr(CheckpointStore, "save", noted)
    train(recipe, tmp_path / "quick")
    assert saved == [20, 40]
    saved.clear()
    monkeypatch.setattr("hardfast.engine.save_clock.monotonic", a_minute_later)  # it is asked once a step
    train(recipe, tmp_path / "slow", save_minutes=8)
    assert saved == [8, 16, 20, 28, 36, 40]
    assert final_state(tmp_path / "slow") == final_state(tmp_path / "quick")


@pytest.mark.parametrize("minutes", [-1.0, math.nan, math.inf])
def test_saving_every_so_many_minutes_needs_a_number(minutes: float, quick_recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^save-minutes must be .*, not (-1.0|nan|inf)$"):
        train(quick_recipe, tmp_path / "run", save_minutes=minutes)
    assert not (tmp_path / "run").exists()


def test_a_finished_run_is_not_trained_again(quick_run: Path, quick_recipe: Recipe) -> None:
    before = final_state(quick_run)
    outcome = train(quick_recipe, quick_run)
    assert (outcome.finished, outcome.stopped, outcome.trained) == (True, False, False)
    assert final_state(quick_run) == before
    assert len(json.loads((quick_run / "environment.json").read_text())["starts"]) == 1
    assert len((quick_run / "log.jsonl").read_text().splitlines()) == 4


def test_a_damaged_newest_checkpoint_costs_an_epoch_not_the_run(
    quick_recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = replace(quick_recipe, epochs=3)
    train(recipe, tmp_path / "straight")
    train(recipe, tmp_path / "run")
    last = RunFolder(tmp_path / "run").checkpoint("last").path
    (last / MODEL).write_bytes(b"\0" * 100)
    assert train(recipe, tmp_path / "run").finished
    said = capsys.readouterr().out
    assert f"rejected: {last}" in said
    assert "resuming at epoch 3" in said  # from the one before it, also where the last was the best
    assert final_state(tmp_path / "run") == final_state(tmp_path / "straight")
    lines = (tmp_path / "run/log.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3]


def test_a_half_written_log_line_is_dropped(quick_recipe: Recipe, tmp_path: Path) -> None:
    recipe = replace(quick_recipe, epochs=1)
    train(recipe, tmp_path / "run")
    log = tmp_path / "run/log.jsonl"
    whole = log.read_text()
    log.write_text(whole + whole[:40])
    train(recipe, tmp_path / "run")
    assert log.read_text() == whole


def test_the_loop_follows_its_recipe(quick_recipe: Recipe, tmp_path: Path) -> None:
    """Standard training against a plain PyTorch loop with torch's own scheduler: every option of the descent counts."""
    recipe = replace(
        quick_recipe,
        epochs=3,
        label_smoothing=0.2,
        method=method_options("standard"),
        optimizer=OptimizerOptions(lr=0.03, momentum=0.7, weight_decay=0.01),
        schedule=ScheduleOptions(kind="multistep", milestones=(1, 2), gamma=0.5),
    )
    train(recipe, tmp_path / "run")
    data = open_dataset(recipe.data)
    plain = Run(recipe, data, torch.device("cpu"))
    net, loader = plain.net.train(), plain.loader
    optimizer = torch.optim.SGD(net.parameters(), lr=0.03, momentum=0.7, weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [20, 40], gamma=0.5)
    for epoch in range(3):
        for batch in loader.epoch(epoch):
            optimizer.zero_grad()
            F.cross_entropy(net(batch.x.float() / 255), batch.label, label_smoothing=0.2).backward()
            optimizer.step()
            scheduler.step()
    trained = load_model(tmp_path / "run", checkpoint="last")
    for (name, ours), theirs in zip(trained.state_dict().items(), net.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
    log = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [line["lr"] for line in log] == pytest.approx([0.03, 0.015, 0.0075])
    # What selects the checkpoint is the held-out images, not the test images.
    heldout, test = (
        evaluate_net(trained, split, epsilon=plain.epsilon, attacks=("clean", "pgd-10"), quiet=True).accuracy
        for split in (data.heldout, data.test)
    )
    assert {name: log[-1][name] for name in heldout} == heldout != test


def test_the_methods_get_what_the_recipe_says(quick_recipe: Recipe) -> None:
    recipe = replace(quick_recipe, label_smoothing=0.3, box=False, attack_bn="eval", seed=9)
    setting = Run(recipe, open_dataset(recipe.data), torch.device("cpu")).method.setting
    assert (setting.box, setting.seed, setting.classifier.label_smoothing) == (False, 9, 0.3)
    assert not setting.classifier.twin.net.training
    assert setting.epsilon == Fraction(24, 255)


def test_two_processes_cannot_train_into_one_folder(quick_recipe: Recipe, tmp_path: Path) -> None:
    recipe = replace(quick_recipe, epochs=1)
    folder = RunFolder(tmp_path / "run")
    folder.create(recipe)
    with folder.lock(), pytest.raises(UsageError, match="another process"):
        train(recipe, tmp_path / "run")
    # Nor may a second recipe take a folder over whose first checkpoint is still to come.
    with folder.lock(), pytest.raises(UsageError, match="another process"):
        train(replace(recipe, epsilon="1/255"), tmp_path / "run")
    assert folder.recipe() == recipe
    assert train(recipe, tmp_path / "run").finished


def test_a_start_that_failed_does_not_block_its_folder(quick_recipe: Recipe, tmp_path: Path) -> None:
    diverging = replace(quick_recipe, epochs=1, optimizer=OptimizerOptions(lr=1000, momentum=0.999))
    with pytest.raises(Diverged, match=r"diverged in epoch 1, step \d+ .*optimizer.lr"):
        train(diverging, tmp_path / "run")
    assert train(replace(quick_recipe, epochs=1), tmp_path / "run").finished


def test_moving_the_data_or_rewording_a_preset_does_not_orphan_a_run(quick_recipe: Recipe, tmp_path: Path) -> None:
    recipe = replace(quick_recipe, epochs=1)
    train(recipe, tmp_path / "run")
    moved = replace(recipe, about="said otherwise", data=replace(recipe.data, root="/elsewhere"))
    assert not train(moved, tmp_path / "run").trained


def test_a_lost_best_checkpoint_is_replaced(
    quick_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = replace(quick_recipe, epochs=2)
    with monkeypatch.context() as patch:
        patch.setattr("hardfast.engine.trainer.StopRequest", StopAt)
        StopAt.countdown = 30
        train(recipe, tmp_path / "run")
    shutil.rmtree(RunFolder(tmp_path / "run").checkpoint("best").path)
    train(recipe, tmp_path / "run")
    assert "rejected" in capsys.readouterr().out
    assert RunFolder(tmp_path / "run").checkpoint("best").record.at.epoch == 2


def test_selecting_on_the_test_set_says_so(quick_recipe: Recipe, tmp_path: Path) -> None:
    train(replace(quick_recipe, epochs=1, select_on="test"), tmp_path / "run")
    assert json.loads((tmp_path / "run/log.jsonl").read_text())["selected_on"] == "test"
