"""Bit-exact or equivalent: each part of the fingerprint decides, a run remembers, and says which it is and why."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch

from hardfast.engine import Recipe, evaluate, train
from hardfast.engine.checkpoint import CheckpointStore
from hardfast.engine.environment import DECODERS, fingerprint
from hardfast.engine.execution import Execution
from hardfast.engine.numerics import Numerics
from hardfast.engine.run_folder import RunFolder
from hardfast.loaders import DataOptions
from hardfast.loaders.loader_options import LoaderName
from hardfast.loaders.synthetic import SyntheticShape

CPU = torch.device("cpu")
EAGER = Execution()
HERE = fingerprint(CPU, EAGER, loader="resident")


@pytest.fixture(scope="module")
def recipe(quick_recipe: Recipe) -> Recipe:
    """Two epochs of ten steps."""
    shape = SyntheticShape(train_images=96, test_images=16)
    data = DataOptions(name="synthetic", image_size=8, heldout=16, synthetic=shape)
    return replace(quick_recipe, epochs=2, batch_size=8, data=data)


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def stopped(recipe: Recipe, folder: Path, step: int) -> None:
    """Trains until a step, at whose save a signal comes."""
    before = CheckpointStore.save

    def save(store: CheckpointStore, at: int, **content: object) -> Path:
        if at == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return before(store, at, **content)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CheckpointStore, "save", save)
        assert train(recipe, folder, save_minutes=0).stopped
    assert RunFolder(folder).checkpoint("last").record.at.total == step


def verdicts(folder: Path) -> list[str | None]:
    """What environment.json says of each start: None of the first, then from `bit for bit` or `equivalent` on."""
    starts = json.loads((folder / "environment.json").read_text())["starts"]
    return [start["resumed"].partition(": ")[2] if "resumed" in start else None for start in starts]


@pytest.mark.parametrize("name", list(HERE))
def test_every_part_decides(name: str) -> None:
    run = Numerics(now=HERE).followed_by(HERE, step=3)
    assert run.verdict == "bit for bit"
    other = run.followed_by(HERE | {name: "other"}, step=7)
    assert f"equivalent, not bit for bit (from step 7 on: {name} {HERE[name]}, now other" in other.verdict
    unknown = Numerics(now={key: value for key, value in HERE.items() if key != name}).followed_by(HERE, step=7)
    assert f"{name} not known, now {HERE[name]}" in unknown.verdict
    # Back again is another change, not none.
    assert other.followed_by(HERE, step=9).verdict.count("from step") == 2
    assert other.followed_by(other.now, step=9) == other


def test_the_fingerprint_follows_the_settings() -> None:
    with threads(torch.get_num_threads() + 1):
        assert differing(fingerprint(CPU, EAGER, loader="resident")) == {"threads"}
    for execution, names in (
        (Execution(compile=True), {"execution"}),
        (Execution(precision="bf16"), {"precision"}),
        (Execution(tf32=True), {"tf32"}),
        (Execution(pad_channels=True), {"pad_channels"}),
    ):
        assert differing(fingerprint(CPU, execution, loader="resident")) == names
    assert "loader" in differing(fingerprint(CPU, EAGER, loader="ffcv"))
    torch.use_deterministic_algorithms(True)
    try:
        assert differing(fingerprint(CPU, EAGER, loader="resident")) == {"deterministic"}
    finally:
        torch.use_deterministic_algorithms(False)
    assert set(DECODERS) == set(get_args(LoaderName)) - {"auto"}


def differing(found: dict[str, str | int | bool | None]) -> set[str]:
    assert set(found) == set(HERE)
    return {name for name in HERE if found[name] != HERE[name]}


def test_a_run_remembers_and_says_what_it_is(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, count = tmp_path / "run", torch.get_num_threads()
    stopped(recipe, run, 5)
    stopped(recipe, run, 8)
    assert "resuming at epoch 1, step 5: bit for bit\n" in capsys.readouterr().out
    why = f"equivalent, not bit for bit (from step 8 on: threads {count}, now {count + 1})"
    with threads(count + 1):
        stopped(recipe, run, 12)
        assert f"resuming at epoch 1, step 8: {why}\n" in capsys.readouterr().out
        assert train(recipe, run).finished
    assert f"resuming at epoch 2, step 2: {why}\n" in capsys.readouterr().out  # this start has changed nothing
    assert verdicts(run) == [None, "bit for bit", why, why]
    last = RunFolder(run).checkpoint("last").record.numerics
    assert last.verdict == why
    assert last.now["threads"] == count + 1


def test_a_start_that_saved_nothing_leaves_no_trace(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The checkpoint knows what it was made with, whatever was tried since."""
    run = tmp_path / "run"
    stopped(recipe, run, 5)
    with threads(torch.get_num_threads() + 1), pytest.raises(ZeroDivisionError), pytest.MonkeyPatch.context() as patch:
        patch.setattr(CheckpointStore, "save", lambda *_, **__: 1 / 0)
        train(recipe, run, save_minutes=0)
    evaluation_threads = torch.get_num_threads() + 1
    with threads(evaluation_threads):  # nor does an evaluation
        evaluate(run, attacks=("clean",), checkpoint="last")
    capsys.readouterr()
    assert train(recipe, run).finished
    assert "step 5: bit for bit\n" in capsys.readouterr().out
    found = verdicts(run)
    assert [found[0], found[2]] == [None, "bit for bit"]
    assert str(found[1]).startswith("equivalent")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b'{"starts": "abc"}', b'{"starts": {}}', None])
def test_a_damaged_environment_costs_no_verdict(
    content: bytes | None, recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    stopped(recipe, run, 12)
    environment = run / "environment.json"
    if content is None:
        environment.unlink()
    else:
        environment.write_bytes(content)
    capsys.readouterr()
    assert train(recipe, run).finished
    assert "step 2: bit for bit\n" in capsys.readouterr().out
    assert verdicts(run) == ["bit for bit"]
    kept = run / "environment.json.damaged"
    assert (kept.read_bytes() if content is not None else None) == content or not kept.exists()
    assert kept.exists() == (content is not None)


def test_a_start_killed_before_its_config_leaves_a_folder_to_train_into(recipe: Recipe, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in (".lock", ".config.json.tmp-77", ".environment.json.tmp-78"):
        (run / name).write_text("half")
    stopped(recipe, run, 3)
    assert not list(run.glob(".*.tmp-*"))
    # A foreign file is not one of ours.
    other = tmp_path / "other"
    other.mkdir()
    (other / ".thesis.tmp-1").write_text("important")
    with pytest.raises(ValueError, match="holds no run"):
        train(recipe, other)
    assert (other / ".thesis.tmp-1").read_text() == "important"


def test_a_kill_within_the_first_save_leaves_the_folder_to_another_recipe(recipe: Recipe, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.create(recipe)
    (folder.path / "checkpoints/step-00000010.tmp-5").mkdir(parents=True)
    assert not folder.holds(replace(recipe, seed=1))
    shutil.copytree(folder.path / "checkpoints/step-00000010.tmp-5", folder.path / "checkpoints/step-00000010")
    with pytest.raises(ValueError, match="holds another run: its seed is 0"):
        folder.holds(replace(recipe, seed=1))


def test_a_torn_line_does_not_swallow_the_next(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.append_guard({"event": "warning"})
    folder.guard.write_text(folder.guard.read_text() + '{"event": "rol')
    folder.append_guard({"event": "rollback"})
    folder.append_guard({"event": "rollback"})  # the same again: it is there
    assert folder.guard.read_text() == '{"event": "warning"}\n{"event": "rol\n{"event": "rollback"}\n'


def test_a_gpu_is_bit_exact_where_its_sums_are_in_order() -> None:
    gpu = HERE | {"device": "NVIDIA H100", "cuda": "13.0"}
    assert "--execution.deterministic" in Numerics(now=gpu).verdict
    assert Numerics(now=gpu | {"deterministic": True}).verdict == "bit for bit"
