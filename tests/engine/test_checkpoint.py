"""The store: whole or not at all, verified, strict."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hardfast.engine import CheckpointError
from hardfast.engine.checkpoint import MANIFEST, MODEL, RECORD, STATE, CheckpointStore
from hardfast.engine.errors import Diverged
from hardfast.engine.models import NetShape
from hardfast.engine.named_tensors import load_optimizer, load_strictly, optimizer_tensors
from hardfast.engine.record import Best, Counters, Record

pytest.importorskip("safetensors")


def tensors(value: float = 1.0) -> dict[str, Tensor]:
    return {"a": torch.full((3, 4), value), "count": torch.tensor(7)}


def record(step: int) -> Record:
    at = Counters(epoch=1, step=0, total=step, step_seconds=0.1, wall_seconds=0.25)
    return Record(at=at, best=Best(step=step, epoch=1, score=50.0), net=NetShape(num_classes=10, in_channels=3))


def save(store: CheckpointStore, step: int, value: float = 1.0) -> Path:
    return store.save(step, model=tensors(value), state=tensors(-value), record=record(step))


def test_round_trip(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints")
    assert store.latest() is None
    weight = torch.rand(8, 4, 3, 3).to(memory_format=torch.channels_last)
    path = store.save(5, model={"w": weight}, state=tensors(), record=record(5))
    found = store.latest()
    assert found is not None
    assert found.path == path
    assert found.record == record(5)
    assert torch.equal(found.model()["w"], weight)
    assert found.state().keys() == tensors().keys()
    assert sorted(p.name for p in path.iterdir()) == sorted([MODEL, STATE, RECORD, MANIFEST])
    assert [p.name for p in store.folder.iterdir()] == ["step-00000005"]


@pytest.mark.parametrize("name", [MODEL, STATE, RECORD, MANIFEST])
@pytest.mark.parametrize("damage", ["flip", "cut", "missing", "empty"])
def test_the_newest_whole_checkpoint_wins(name: str, damage: str, tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    save(store, 1, 1.0)
    path = save(store, 2, 2.0) / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"flip": content, "cut": content[:-1], "empty": b""}[damage])
    found = store.latest()
    assert found is not None
    assert found.record == record(1)
    assert len(store.rejected) == 1
    assert "step-00000002" in store.rejected[0]
    assert "\n" not in store.rejected[0]


def test_what_is_not_finite_is_not_saved(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    save(store, 1)
    for value in (math.nan, math.inf):
        with pytest.raises(Diverged, match="'a' is not finite after step 2"):
            store.save(2, model=tensors(value), state=tensors(), record=record(2))
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


def test_the_same_step_again_takes_its_place(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    save(store, 1, 1.0)
    save(store, 1, 2.0)
    found = store.latest()
    assert found is not None
    assert found.model()["a"][0, 0] == 2
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


@pytest.mark.parametrize("other", ["none", "damaged", "whole"])
def test_one_put_aside_is_found_and_gets_its_name_back(other: str, tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    path = save(store, 2, 1.0)
    path.rename(tmp_path / "step-00000002.old")
    if other != "none":
        save(CheckpointStore(tmp_path / "elsewhere"), 2, 2.0).rename(path)
    if other == "damaged":
        (path / STATE).write_bytes(b"")
    value = 2 if other == "whole" else 1
    found = store.latest()
    assert found is not None
    assert found.model()["a"][0, 0] == value
    assert store.open(store.path(2)).model_sha256 == found.model_sha256
    assert not store.rejected
    store.tidy()
    assert store.open(path).path == path
    assert store.open(path).model()["a"][0, 0] == value
    left = {"step-00000002"} | ({"step-00000002.rejected"} if other == "damaged" else set())
    assert {p.name for p in tmp_path.iterdir() if p.name != "elsewhere"} == left


def test_leftovers_go_and_other_files_stay(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    save(store, 1)
    for name in ("step-00000004.tmp-99", "step-00000001.tmp-gone", "step-00000001.old.tmp-gone"):
        (tmp_path / name).mkdir()
        (tmp_path / name / MODEL).write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("mine")
    save(store, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["notes.txt", "step-00000001", "step-00000002"]


def test_other_files_in_a_checkpoint_are_of_no_matter(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    (save(store, 1) / ".DS_Store").write_bytes(b"1")
    found = store.latest()
    assert found is not None
    assert found.model().keys() == tensors().keys()


def test_a_file_that_changes_after_it_was_verified(tmp_path: Path) -> None:
    found = CheckpointStore(tmp_path).open(save(CheckpointStore(tmp_path), 1))
    for name, read in ((MODEL, found.model), (STATE, found.state)):
        content = bytearray((found.path / name).read_bytes())
        content[-1] ^= 1
        (found.path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match="changed since it was verified"):
            read()


def test_a_renamed_checkpoint_is_refused(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    save(store, 1).rename(tmp_path / "step-00000007")
    assert store.latest() is None
    assert "holds the checkpoint of step 1" in store.rejected[0]


def test_steps_of_more_than_eight_digits(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for step in (99_999_999, 100_000_000):
        save(store, step)
    found = store.latest()
    assert found is not None
    assert found.record == record(100_000_000)


def test_prune_keeps_what_it_is_told(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for step in (1, 2, 3):
        save(store, step)
    store.prune(keep={1, 3})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000001", "step-00000003"]


def test_a_run_that_begins_anew_keeps_nothing(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for step in (1, 2):
        save(store, step)
    store.prune(keep=set())
    assert store.latest() is None
    assert not list(tmp_path.iterdir())


def test_prune_deletes_nothing_when_the_newest_cannot_be_read_back(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    save(store, 1)
    (save(store, 2) / MODEL).write_bytes(b"")
    with pytest.raises(CheckpointError):
        store.prune(keep={2})
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("weight"), "has no tensor 'weight'"),
        (lambda t: t.update(extra=torch.zeros(1)), "has a tensor 'extra'"),
        (lambda t: t.update(weight=torch.zeros(2, 2)), r"'weight' is torch.float32 \(2, 2\)"),
        (lambda t: t.update(weight=torch.zeros(2, 3).half()), "'weight' is torch.float16"),
    ],
)
def test_loading_is_strict(change: Any, message: str) -> None:
    net = nn.Linear(3, 2)
    found = {name: value.clone() for name, value in net.state_dict().items()}
    change(found)
    with pytest.raises(CheckpointError, match=message):
        load_strictly(net, found, Path("model.safetensors"))


@pytest.mark.parametrize(
    "make",
    [
        partial(torch.optim.SGD, lr=0.1),
        partial(torch.optim.SGD, lr=0.1, momentum=0.9),
        partial(torch.optim.Adam, lr=0.1),
    ],
)
def test_optimizers_continue_bit_for_bit(make: Any, tmp_path: Path) -> None:
    def fresh() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        net = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        return net, make(net.parameters())

    def step(net: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
        x = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        net(x).square().sum().backward()
        optimizer.step()

    straight, optimizer = fresh()
    for seed in range(6):
        step(straight, optimizer, seed)
    first, optimizer = fresh()
    for seed in range(3):
        step(first, optimizer, seed)
    store = CheckpointStore(tmp_path)
    store.save(3, model=dict(first.state_dict()), state=optimizer_tensors(optimizer, first, "o"), record=record(3))
    second, resumed = fresh()
    found = store.latest()
    assert found is not None
    load_strictly(second, found.model(), found.path)
    load_optimizer(resumed, second, "o", found.state(), found.path)
    for seed in range(3, 6):
        step(second, resumed, seed)
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("o/weight/exp_avg"), "no tensor 'o/weight/exp_avg'"),
        (lambda t: t.update({"o/bias/step": torch.zeros(2)}), r"\(2,\) as 'o/bias/step'"),
        (lambda t: t.update({"o/weight/exp_avg_sq": torch.zeros(1)}), r"\(1,\) as 'o/weight/exp_avg_sq'"),
        (lambda t: t.update({"o/weight/exp_avg": torch.zeros(2, 3).half()}), "float16"),
    ],
)
def test_loading_an_optimizer_is_strict(change: Any, message: str) -> None:
    net = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.rand(4, 3)).sum().backward()
    optimizer.step()
    found = optimizer_tensors(optimizer, net, "o")
    change(found)
    with pytest.raises(CheckpointError, match=message):
        load_optimizer(torch.optim.Adam(net.parameters()), net, "o", found, Path("state.safetensors"))


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        ('"epoch": 1,', "", "at.epoch"),
        ('"epoch": 1,', '"epoch": "1",', "at.epoch"),
        ('"num_classes"', '"classes"', "net"),
        ('"score": 50.0', '"score": null', "best.score"),
        ("{", "[", "the file"),
    ],
)
def test_a_record_with_a_wrong_field_is_refused(old: str, new: str, name: str) -> None:
    text = record(3).to_json()
    assert Record.from_json(text, "train.json") == record(3)
    with pytest.raises(CheckpointError, match=f"train.json: {name}") as error:
        Record.from_json(text.replace(old, new, 1), "train.json")
    assert "\n" not in str(error.value)
