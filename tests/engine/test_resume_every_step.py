"""A run of three epochs, gone on with from each of its checkpoints: the same bits at the end, whichever it was."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hardfast.engine import Recipe, train
from hardfast.engine.checkpoint import CheckpointStore
from hardfast.engine.methods import method_options
from hardfast.engine.record import Record
from hardfast.engine.run_folder import RunFolder
from hardfast.loaders import DataOptions
from hardfast.loaders.synthetic import SyntheticShape

from ..night import figure, tries
from .processes import state_hash

EPOCHS, EPOCH = 3, 10
STEPS = EPOCHS * EPOCH
# 80 images to train on: what matters is the number of steps.
DATA = DataOptions(
    name="synthetic", image_size=8, heldout=16, synthetic=SyntheticShape(train_images=96, test_images=16)
)
AREA = "resume from every step of 3 epochs"
# By day the steps around the ends of epochs, steps that update the generator (k = 3) or begin a batch anew (m = 3) and
# those beside them; by night all.
DAY = {
    "fgsm-sdi": (0, 1, 2, 3, 9, 10, 11, 19, 20, 29),
    "fgsm-mep": (1, 9, 10, 11, 21),
    "free-at": (1, 2, 10, 20, 28),
}
METHODS = {
    "fgsm-sdi": method_options("fgsm-sdi"),
    "fgsm-mep": method_options("fgsm-mep"),
    "free-at": method_options("free-at"),
    "fgsm-rs": method_options("fgsm-rs"),
}


class Run:
    """A finished run and all the checkpoints that it ever had.

    Attributes:
        folder: of the run.
        saved: a copy of the folder as it was after each save, by step; 0 is a start that saved nothing.
        hash: of the finished run.
    """

    def __init__(self, recipe: Recipe, place: Path) -> None:
        self.recipe, self.place, self.folder = recipe, place, place / "run"
        self.saved: dict[int, Path] = {}
        before = CheckpointStore.save

        def save(store: CheckpointStore, step: int, **content: object) -> Path:
            if not self.saved:
                self._keep(0)
            path = before(store, step, **content)  # type: ignore[arg-type]
            self._keep(step)
            return path

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(CheckpointStore, "save", save)
            train(recipe, self.folder, save_minutes=0)
        self.hash = state_hash(self.folder)

    def _keep(self, step: int) -> None:
        self.saved[step] = Path(shutil.copytree(self.folder, self.place / f"step-{step}", dirs_exist_ok=True))

    def resumed(self, step: int) -> str:
        """The hash of a run that goes on from the checkpoint of a step."""
        folder = Path(shutil.copytree(self.saved[step], self.place / "resumed"))
        try:
            assert RunFolder(folder).store.latest() is None if step == 0 else newest(folder).at.total == step
            outcome = train(self.recipe, folder)
            assert outcome.finished
            assert outcome.trained or step == STEPS
            return state_hash(folder)
        finally:
            shutil.rmtree(folder)


def newest(folder: Path) -> Record:
    """What the last checkpoint says about itself."""
    return RunFolder(folder).checkpoint("last").record


@pytest.fixture(scope="module")
def run(quick_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    """The run of a method, trained once."""
    done: dict[str, Run] = {}

    def trained(method: str) -> Run:
        if method not in done:
            recipe = replace(quick_recipe, method=METHODS[method], epochs=EPOCHS, batch_size=8, data=DATA)
            done[method] = Run(recipe, tmp_path_factory.mktemp(method))
        return done[method]

    return trained


def places() -> Iterator[tuple[str, int]]:
    """(method, step): 20 by day, 120 by night."""
    if tries(0, 1):
        yield from ((method, step) for method in METHODS for step in range(STEPS))
    else:
        yield from ((method, step) for method, steps in DAY.items() for step in steps)


@pytest.mark.parametrize("method", list(dict.fromkeys(method for method, _ in places())))
def test_resume_from_every_step(method: str, run: Callable[[str], Run]) -> None:
    straight = run(method)
    assert set(straight.saved) == set(range(STEPS + 1))
    steps = [step for name, step in places() if name == method]
    ended = {step: straight.resumed(step) for step in steps}
    same = sum(found == straight.hash for found in ended.values())
    figure(AREA, tried=len(steps), held=same)
    assert [step for step, found in ended.items() if found != straight.hash] == []


def lose(name: str, tensors: dict[str, Tensor]) -> None:
    """Puts zeros, as at the beginning of a run, where a checkpoint keeps the tensors of this name."""
    lost = [tensor for key, tensor in tensors.items() if name in key]
    assert any(torch.count_nonzero(tensor) for tensor in lost), f"nothing is lost: {sorted(tensors)}"
    for tensor in lost:
        tensor.zero_()


@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("fgsm-sdi", "momentum_buffer"),
        ("fgsm-sdi", "tally"),
        ("fgsm-sdi", "generator-optimizer/conv1.weight/step"),
        ("fgsm-sdi", "generator-optimizer/conv1.weight/exp_avg_sq"),
        ("fgsm-sdi", "generator/conv1.weight"),
        ("fgsm-mep", "method/delta"),
        ("fgsm-mep", "method/momentum"),
        ("free-at", "method/"),
    ],
)
def test_a_resume_that_loses_one_thing_is_seen(method: str, name: str, run: Callable[[str], Run]) -> None:
    straight, step = run(method), EPOCH + 5
    kept = straight.saved[step]
    aside = Path(shutil.copytree(kept, kept.with_name("aside")))
    try:
        last = RunFolder(kept).checkpoint("last")
        model, state = last.model(), last.state()
        lose(name, state)
        CheckpointStore(kept / "checkpoints").save(step, model=model, state=state, record=last.record)
        assert straight.resumed(step) != straight.hash
    finally:
        shutil.rmtree(kept)
        aside.rename(kept)


@pytest.mark.parametrize("lost", ["epoch's step", "log's line"])
def test_a_resume_that_loses_its_place_is_seen(lost: str, run: Callable[[str], Run]) -> None:
    straight, step = run("fgsm-mep"), EPOCH + 5
    kept = straight.saved[step]
    aside = Path(shutil.copytree(kept, kept.with_name("aside")))
    try:
        last = RunFolder(kept).checkpoint("last")
        if lost == "log's line":
            (kept / "log.jsonl").write_text("")
        else:
            record = replace(last.record, at=replace(last.record.at, step=4))
            store = CheckpointStore(kept / "checkpoints")
            store.save(step, model=last.model(), state=last.state(), record=record)
        assert straight.resumed(step) != straight.hash
    finally:
        shutil.rmtree(kept)
        aside.rename(kept)
