"""What a run asks of its store: the newest two stay, unusable ones end it rather than vanish, and all that it saves is
finite.
"""

from __future__ import annotations

import errno
import math
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("safetensors")
pytest.importorskip("pydantic")

from hardfast.engine import CheckpointError, Recipe, train
from hardfast.engine.checkpoint import MODEL, RECORD, CheckpointStore
from hardfast.engine.errors import Diverged
from hardfast.engine.methods import Position, method_options
from hardfast.engine.run import Run
from hardfast.engine.run_folder import RunFolder
from hardfast.loaders import open_dataset

from .store_writer import sign


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file of a run."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def stepped(recipe: Recipe) -> Run:
    """A run of one step, whose optimisers have all their tensors."""
    run = Run(recipe, open_dataset(recipe.data), torch.device("cpu"))
    run.method.begin_epoch(0, run.seed)
    run.follow_schedule()
    run.step(next(iter(run.loader.epoch(0, stop=1))), Position(0, 0))
    run.at.step = run.at.total = 1
    return run


def test_one_flipped_bit_in_the_newest_and_best_leaves_the_one_before(quick_recipe: Recipe, tmp_path: Path) -> None:
    run, store = stepped(quick_recipe), CheckpointStore(tmp_path)
    for step in range(1, 5):
        run.at.total = step
        run.save(store, best_score=float(step))
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-00000003", "step-00000004"]
    content = bytearray((store.path(4) / MODEL).read_bytes())
    content[-1] ^= 1
    (store.path(4) / MODEL).write_bytes(content)
    found = store.latest()
    assert found is not None
    assert found.record.at.total == 3
    run.at.total = 5  # saved again with a damaged one between: that is not the one before
    run.save(store, best_score=5.0)
    assert {path.name for path in tmp_path.iterdir()} == {"step-00000003", "step-00000004.rejected", "step-00000005"}


def test_checkpoints_of_which_none_can_be_used_are_left_alone(
    quick_run: Path, quick_recipe: Recipe, tmp_path: Path
) -> None:
    """As those of an older version, whose train.json has not all fields."""
    folder = Path(shutil.copytree(quick_run, tmp_path / "run"))
    paths = sorted((folder / "checkpoints").iterdir())
    for path in paths:
        (path / RECORD).write_text((path / RECORD).read_text().replace('"wall_seconds"', '"seconds"', 1))
        sign(path)
    before = snapshot(folder)
    with pytest.raises(
        CheckpointError, match=r"wall_seconds.* move .*/run/checkpoints away to begin again$"
    ) as refusal:
        train(quick_recipe, folder)
    assert "\n" not in str(refusal.value)
    assert snapshot(folder) == before
    assert len(before) > 4 * len(paths) > 4


def test_a_disk_that_cannot_be_read_ends_a_start_and_changes_nothing(
    quick_run: Path, quick_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(quick_run, tmp_path / "run"))
    recipe, before, fired, opened = quick_recipe, snapshot(folder), [], os.open

    def failing(path: Any, *words: Any, **options: Any) -> int:
        if Path(path).name == MODEL:
            fired.append(path)
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return opened(path, *words, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", failing)
        with pytest.raises(OSError, match=MODEL) as error:
            train(recipe, folder)
    assert error.value.errno == errno.EIO
    assert fired
    assert snapshot(folder) == before
    assert not train(recipe, folder).trained  # the control: the disk is well again


def test_a_kill_in_the_very_first_save_begins_again_by_itself(
    quick_recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = replace(quick_recipe, epochs=1)
    folder = RunFolder(tmp_path / "run")
    folder.create(recipe)
    half = folder.store.folder / "step-00000020.tmp-1"
    half.mkdir(parents=True)
    (half / MODEL).write_bytes(b"half")
    assert train(recipe, folder.path).finished
    assert "starting again" in capsys.readouterr().out
    assert [path.name for path in folder.store.folder.iterdir()] == ["step-00000020"]


@pytest.mark.parametrize("name", ["fgsm-sdi", "fgsm-mep"])
def test_nothing_that_is_not_finite_is_saved(name: str, quick_recipe: Recipe, tmp_path: Path) -> None:
    """Whatever it is of: generator, momenta, Adam's moments, memory, the trained net beside its average."""
    run = stepped(replace(quick_recipe, method=method_options(name), weight_average=0.9))
    store = CheckpointStore(tmp_path)
    run.save(store)  # the control: all is finite
    places = {**run.tensors(), **{f"trained/{key}": value for key, value in run.net.state_dict().items()}}
    places |= run.evaluated.state_dict()
    in_place = {key: value for key, value in places.items() if value.is_floating_point() and "scaler/" not in key}
    kinds = {key.partition("/")[0] for key in in_place}
    assert {"optimizer", "tally", "trained", "conv1.weight"} < kinds
    assert ("method" if name == "fgsm-mep" else "generator-optimizer") in kinds
    run.at.total = 2
    for key, value in in_place.items():
        last = (-1,) * value.dim()
        kept = value.detach()[last].clone()
        with torch.no_grad():
            value[last] = math.nan
        with pytest.raises(Diverged, match=f"{key}' is not finite after step 2"):
            run.save(store)
        with torch.no_grad():
            value[last] = kept
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    run.save(store)
