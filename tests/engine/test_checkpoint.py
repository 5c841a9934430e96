"""The store: whole or not at all, verified, strict."""

from __future__ import annotations

import errno
import math
import os
import tracemalloc
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hardfast.engine import CheckpointError, disk
from hardfast.engine.checkpoint import MANIFEST, MODEL, RECORD, STATE, CheckpointStore
from hardfast.engine.checkpoint_folder import not_finite
from hardfast.engine.errors import Diverged
from hardfast.engine.models import NetShape
from hardfast.engine.named_tensors import load_optimizer, load_strictly, optimizer_tensors
from hardfast.engine.record import Best, Counters, Record

pytest.importorskip("safetensors")

from safetensors.torch import save as save_tensors

from .store_writer import sign


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
        with pytest.raises(Diverged, match="'state/a' is not finite after step 2"):
            store.save(2, model=tensors(), state=tensors(value), record=record(2))
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_what_is_not_finite_is_named(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    some = {
        "empty": torch.empty(0, 3, dtype=dtype),
        "largest": torch.full((2, 3, 4, 5), -largest, dtype=dtype).to(memory_format=torch.channels_last),
        "scalar": torch.tensor(largest, dtype=dtype),
        "count": torch.tensor([7]),
        "other": torch.ones(3),
    }
    assert not_finite(some) is None
    assert not_finite({}) is None
    for value in (math.nan, math.inf, -math.inf):
        for name in ("largest", "scalar", "other"):
            changed = {key: tensor.clone() for key, tensor in some.items()}
            changed[name].view(-1)[-1:].fill_(value) if changed[name].is_contiguous() else changed[name][1, 2, 3].fill_(
                value
            )
            assert not_finite(changed) == name
            changed["other"].fill_(math.nan)
            assert not_finite(changed) == name  # the first


class Waits(TorchDispatchMode):
    """Counts the values that the host asks for, one at a time."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_looking_for_what_is_not_finite_does_not_wait_for_each_tensor() -> None:
    some = {str(number): torch.ones(3) for number in range(20)}
    with Waits() as waits:
        assert not_finite(some) is None
    assert waits.count == 0
    with Waits() as waits:  # the control
        assert all(bool(value.isfinite().all()) for value in some.values())
    assert waits.count == 20


def test_a_state_that_is_not_finite_is_not_read_back(tmp_path: Path) -> None:
    path = save(CheckpointStore(tmp_path), 1)
    (path / STATE).write_bytes(save_tensors(tensors(math.nan)))
    sign(path)
    found = CheckpointStore(tmp_path).open(path)
    assert found.model().keys() == tensors().keys()
    with pytest.raises(CheckpointError, match="'a' is not finite"):
        found.state()


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


def test_damaged_ones_are_not_removed_but_the_newest_two_renamed(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    save(store, 1)
    for step in (2, 3, 4):
        (save(store, step) / MODEL).write_bytes(b"")
        again = CheckpointStore(tmp_path)  # another start of the run
        found = again.latest()
        assert found is not None
        assert found.record.at.total == 1
        assert again.before(step + 1) == 1
        if step == 3:
            save(again, 3).joinpath("note").touch()  # the step is made again
            again.prune(keep={1, 3})
            assert again.open(again.path(3)).record.at.total == 3
            again.prune(keep={1})
        else:
            again.prune(keep={1})
    left = sorted(p.name for p in tmp_path.iterdir())
    assert left == ["step-00000001", "step-00000003.rejected", "step-00000004.rejected"]
    assert (tmp_path / left[1] / MODEL).read_bytes() == b""
    assert not (tmp_path / left[1] / "note").exists()
    save(store, 5)
    assert store.before(5) == 1
    store.prune(keep={5})
    assert sorted(p.name for p in tmp_path.iterdir()) == [*left[1:], "step-00000005"]


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES, errno.ENOENT])
@pytest.mark.parametrize("name", [MODEL, STATE, RECORD, MANIFEST])
def test_what_cannot_be_read_is_not_taken_for_damaged(
    name: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, fired, opened = CheckpointStore(tmp_path), [], os.open
    for step in (1, 2):
        save(store, step)

    def failing(path: Any, *words: Any, **options: Any) -> int:
        if Path(path) == store.path(2) / name:
            fired.append(path)
            raise OSError(number, os.strerror(number), str(path))
        return opened(path, *words, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", failing)
        if number == errno.ENOENT:  # the control: it is not there
            found = store.latest()
            assert found is not None
            assert (found.record, len(store.rejected)) == (record(1), 1)
        else:
            for search in (store.latest, lambda: store.prune(keep={2})):
                with pytest.raises(OSError, match=f"{name}") as error:
                    search()
                assert error.value.errno == number
                assert not isinstance(error.value, CheckpointError)
    assert fired
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000001", "step-00000002"]


def test_no_more_memory_than_the_larger_file(tmp_path: Path) -> None:
    """Of Python's own: a checkpoint's files are held one at a time, and read into their final place."""
    store, size = CheckpointStore(tmp_path), 8 << 20
    some = {"a": torch.zeros(size // 4)}
    save(store, 1)  # imports all that a save needs
    tracemalloc.start()
    try:
        path = store.save(2, model=some, state=some, record=record(2))
        assert size < tracemalloc.get_traced_memory()[1] < 1.5 * size
        tracemalloc.reset_peak()
        assert len(disk.read(path / MODEL)) > size
        assert size < tracemalloc.get_traced_memory()[1] < 1.5 * size
    finally:
        tracemalloc.stop()


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
