"""`kill -9` at every call of a save and of the pruning after it: a whole checkpoint is there at each of them.

Real processes kill themselves at a named point; a fresh store then looks at what is left.
"""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path

import pytest
import torch

from ..night import NIGHT, figure, tries
from .store_writer import ENDED_BY_KILL, Request, best, content, record, writers

pytest.importorskip("safetensors")
pytest.importorskip("pydantic")

from hardfast.engine.checkpoint import CheckpointStore

STEPS = 5  # that a writer saves before the fault
# The day's points, by name, each in a store whose steps are saved once or twice.
BY_DAY = (
    (False, "before", "mkdir temporary"),
    (False, "half", "write model.safetensors"),
    (False, "after", "write MANIFEST.json"),
    (False, "after", "fsync model.safetensors"),
    (False, "before", "rename temporary to step"),
    (False, "after", "rename temporary to step"),
    (False, "after", "rename step to gone"),
    (False, "after", "unlink model.safetensors"),
    (True, "after", "rename step to aside"),
    (True, "after", "rename temporary to step"),
)


@cache
def points(folder: Path, twice: bool) -> list[str]:
    """The names of all calls of the last save of a writer, with its pruning."""
    notes = folder / f"dry-{twice}"
    assert writers().run(request(folder / f"dry-store-{twice}", notes, twice)) == 0
    return (notes / "points").read_text().splitlines()


def request(store: Path, notes: Path, twice: bool, *, point: int = -1, when: str = "before") -> Request:
    saves = STEPS * (1 + twice)
    fault_in = saves - 1 if point >= 0 else -1
    return Request(
        folder=str(store), notes=str(notes), last=STEPS, twice=twice, fault_in=fault_in, point=point, when=when
    )


def all_points(folder: Path) -> list[tuple[bool, str, int]]:
    """(each step twice, before or half or after, number of the call) of every point."""
    found = []
    for twice in (False, True):
        for number, name in enumerate(points(folder, twice)):
            found += [(twice, when, number) for when in ("before", "after")]
            found += [(twice, "half", number)] if name.startswith("write") else []
    return found


def chosen(folder: Path) -> list[tuple[bool, str, int]]:
    """The ten of the day, or a hundred of the night: every point, and then some of them again."""
    if not NIGHT:
        return [(twice, when, points(folder, twice).index(name)) for twice, when, name in BY_DAY]
    found = all_points(folder)
    random.Random(0).shuffle(found)
    rounds = -(-tries(10, 100) // len(found))
    return (found * rounds)[: max(tries(10, 100), len(found))]


def saved(notes: Path) -> list[tuple[int, int]]:
    """(step, version) of each save that had ended before the fault."""
    return [(int(a), int(b)) for a, b in (line.split() for line in (notes / "saved").read_text().splitlines())]


def test_a_whole_checkpoint_is_there_wherever_a_save_is_killed(tmp_path: Path) -> None:
    fired = held = 0
    plan = chosen(tmp_path)
    for number, (twice, when, point) in enumerate(plan):
        folder, notes = tmp_path / f"store-{number}", tmp_path / f"notes-{number}"
        name = points(tmp_path, twice)[point]
        place = f"{when} {name}"
        assert writers().run(request(folder, notes, twice, point=point, when=when)) == ENDED_BY_KILL, place
        assert (notes / "fired").read_text() == f"{place}\n"
        fired += 1

        store = CheckpointStore(folder)
        found = store.latest()
        assert found is not None, place
        assert not store.rejected, place  # what is half-written or half-deleted has no checkpoint's name
        old = saved(notes)[-1]
        every = [(step, version) for step in range(1, STEPS + 1) for version in range(1 + twice)]
        new = every[min(every.index(old) + 1, len(every) - 1)]
        version = (found.model()["a"][0, 0].item() - found.record.at.total) * 4
        assert (found.record.at.total, version) in (old, new), place
        for sign, tensors in ((1, found.model()), (-1, found.state())):
            for key, value in content(found.record.at.total, int(version)).items():
                assert torch.equal(tensors[key], sign * value), place
        kept = store.open(store.path(best(STEPS - 1)))  # the best is never lost either
        assert kept.record.at.total == best(STEPS - 1), place

        tensors = content(STEPS + 1, 0)
        CheckpointStore(folder).save(STEPS + 1, model=tensors, state=tensors, record=record(STEPS + 1))
        left = {path.name for path in folder.iterdir()}
        assert not {name for name in left if "." in name}, place  # neither .tmp-* nor .old
        CheckpointStore(folder).prune(keep={STEPS + 1})
        assert [path.name for path in folder.iterdir()] == [f"step-{STEPS + 1:08d}"], place
        held += 1
    different = len({(twice, when, point) for twice, when, point in plan})
    figure("`kill -9` at named points of a save", tried=len(plan), held=held, fired=fired, note=f"{different} points")


@pytest.mark.parametrize("twice", [False, True])
def test_all_of_it_is_on_the_disk_before_it_has_its_name(twice: bool, tmp_path: Path) -> None:
    """What a kill cannot show and a power cut would: the order of the calls."""
    called = points(tmp_path, twice)
    written = [name.removeprefix("write ") for name in called if name.startswith("write")]
    assert written == ["model.safetensors", "state.safetensors", "train.json", "MANIFEST.json"]
    named = called.index("rename temporary to step")
    for name in written:
        assert called.index(f"write {name}") < called.index(f"fsync {name}") < called.index("fsync temporary") < named
        assert called.count(f"fsync {name}") == 1  # each waits for the disk
    first_removal = next(at for at, name in enumerate(called) if name.startswith("unlink"))
    assert named < called.index("fsync store") < first_removal


def test_leftovers_do_not_outlive_the_next_start(tmp_path: Path) -> None:
    names = points(tmp_path, False)
    for number, name in enumerate(("fsync train.json", "unlink model.safetensors")):
        folder = tmp_path / f"store-{number}"
        kill = request(folder, tmp_path / f"notes-{number}", False, point=names.index(name), when="after")
        assert writers().run(kill) == ENDED_BY_KILL
        assert [path for path in folder.iterdir() if "tmp-" in path.name]
        CheckpointStore(folder).tidy()
        assert not [path for path in folder.iterdir() if "tmp-" in path.name]


def test_a_plain_writer_loses_its_checkpoint(tmp_path: Path) -> None:
    """The control: the same kill, the same writer but for the store."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    plain = Request(folder=str(tmp_path / "plain"), notes=str(tmp_path / "dry"), last=2, plain=True)
    assert writers().run(plain) == 0
    assert load_file(tmp_path / "plain" / "model.safetensors")["count"] == 2
    names = (tmp_path / "dry" / "points").read_text().splitlines()
    kill = Request(
        folder=str(tmp_path / "plain"),
        notes=str(tmp_path / "notes"),
        first=3,
        last=3,
        plain=True,
        fault_in=0,
        point=names.index("write model.safetensors"),
        when="half",
    )
    assert writers().run(kill) == ENDED_BY_KILL
    with pytest.raises(SafetensorError):
        load_file(tmp_path / "plain" / "model.safetensors")
