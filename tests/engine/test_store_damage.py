"""Damaged checkpoints: each damage is seen, named in one line, and passed over for the checkpoint before it.

Damage of the bytes (flips, cuts, zeroes, files of other checkpoints), of the folder (missing and odd files) and lies in
the two JSON files. Where a lie is signed anew, with the right sha256, what the checksums cannot see must still be
caught: tensors that no net has, records that no run writes.
"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from ..night import figure, tries

pytest.importorskip("safetensors")
pytest.importorskip("pydantic")

from safetensors.torch import save as save_tensors

from hardfast.engine import CheckpointError, load_model
from hardfast.engine.checkpoint import MANIFEST, MODEL, RECORD, STATE, CheckpointStore
from hardfast.engine.run_folder import RunFolder

from ..malicious import PICKLES
from ..readers import readers
from .store_writer import content, record, sign

AREA = "bit flips, structural damage of checkpoints"
FILES = (MODEL, STATE, RECORD, MANIFEST)
OLD, NEW = 1, 2


@dataclass(frozen=True)
class Mutant:
    """One damaged checkpoint: what is done to the folder of the newer one."""

    name: str
    damage: Callable[[Path], object]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of two small checkpoints."""
    store = CheckpointStore(tmp_path_factory.mktemp("damage") / "checkpoints")
    for step in (OLD, NEW):
        tensors = content(step, 0)
        store.save(step, model=tensors, state={**tensors, "b": torch.rand(300)}, record=record(step))
    return store.folder


def fresh(pristine: Path, folder: Path) -> Path:
    """A copy of the store, whose newer checkpoint may be damaged; that one's path."""
    if folder.exists():
        shutil.rmtree(folder)
    shutil.copytree(pristine, folder)
    return folder / f"step-{NEW:08d}"


def edit(path: Path, change: Callable[[bytearray], object]) -> None:
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)


def flips(draw: random.Random, count: int) -> Iterator[Mutant]:
    """Single bits, an equal number in every file."""
    for number in range(count):
        name, place = FILES[number % 4], draw.random()

        def damage(path: Path, name: str = name, place: float = place) -> None:
            def flip(data: bytearray) -> None:
                bit = int(place * len(data) * 8)
                data[bit // 8] ^= 1 << bit % 8

            edit(path / name, flip)

        yield Mutant(f"flip in {name}", damage)


def cuts(draw: random.Random, count: int) -> Iterator[Mutant]:
    """Files that end too early, blocks of zeroes, blocks twice, bytes too many."""
    for number in range(count):
        name, place, length = FILES[number % 4], draw.random(), draw.choice((1, 16, 512))
        kind = ("cut", "zeroes", "twice", "longer")[number // 4 % 4]

        def damage(path: Path, name: str = name, place: float = place, length: int = length, kind: str = kind) -> None:
            def change(data: bytearray) -> None:
                at = int(place * len(data))
                if kind == "cut":
                    del data[at:]
                elif kind == "zeroes":
                    at = min(at, len(data) - length)
                    end = max(at, 0) + length
                    same = not any(data[max(at, 0) : end])
                    data[max(at, 0) : end] = bytes([255 if same else 0]) * length
                elif kind == "twice":
                    data[at:at] = data[at : at + length]
                else:
                    data.extend(bytes(length))

            edit(path / name, change)

        yield Mutant(f"{kind} {name}", damage)


def structure() -> Iterator[Mutant]:
    """What may become of the files of a folder."""
    for name in FILES:

        def other(path: Path) -> Path:
            return path.parent / f"step-{OLD:08d}"

        def replaced(path: Path, by: Callable[[Path], object], name: str = name) -> None:
            (path / name).unlink()
            by(path / name)

        yield Mutant(f"no {name}", lambda path, name=name: (path / name).unlink())
        yield Mutant(f"empty {name}", lambda path, name=name: (path / name).write_bytes(b""))
        yield Mutant(f"older {name}", lambda path, name=name: shutil.copy(other(path) / name, path / name))
        yield Mutant(f"folder {name}", lambda path, replaced=replaced: replaced(path, Path.mkdir))
        yield Mutant(f"pipe {name}", lambda path, replaced=replaced: replaced(path, os.mkfifo))
        yield Mutant(
            f"link {name}",
            lambda path, name=name: (
                (path / name).rename(path / "real"),
                (path / name).symlink_to(path / "real"),
            ),
        )
        yield Mutant(f"renamed {name}", lambda path, name=name: (path / name).rename(path / f"{name}.bak"))
    yield Mutant("model and state exchanged", lambda path: exchange(path / MODEL, path / STATE))
    yield Mutant("empty folder", lambda path: [file.unlink() for file in path.iterdir()])
    yield Mutant("a file for a folder", lambda path: (shutil.rmtree(path), path.write_bytes(b"x")))
    yield Mutant("a link for a folder", lambda path: (path.rename(path.parent / "x"), path.symlink_to("x")))
    yield Mutant("a link to itself", lambda path: (shutil.rmtree(path), path.symlink_to(path)))
    yield Mutant("a pipe for a folder", lambda path: (shutil.rmtree(path), os.mkfifo(path)))
    yield Mutant(
        "the older one's content",
        lambda path: (shutil.rmtree(path), shutil.copytree(path.parent / f"step-{OLD:08d}", path)),
    )


def exchange(one: Path, other: Path) -> None:
    between = one.with_name("between")
    one.rename(between)
    other.rename(one)
    between.rename(other)


def lies(draw: random.Random) -> Iterator[Mutant]:
    """Manifests that are no manifests, or of other files."""

    def entry(name: str, key: str, value: Any) -> Callable[[Path], object]:
        def damage(path: Path) -> None:
            found = json.loads((path / MANIFEST).read_text())
            found[name][key] = value
            (path / MANIFEST).write_text(json.dumps(found, indent=2) + "\n")

        return damage

    sizes = (0, -1, 1, 2**63, 10**300, 1.5, True, None, "8138", [8138], math.nan, math.inf)
    digests = ("", "0" * 64, "A" * 64, "0" * 63, 0, None, ["0" * 64], "0" * 65, "é" * 64, "0" * 64 + "\n")
    for name in (MODEL, STATE, RECORD):
        for size in sizes:
            yield Mutant(f"size {size!r:.20} of {name}", entry(name, "size", size))
        for sha256 in digests:
            yield Mutant(f"sha256 {sha256!r:.12} of {name}", entry(name, "sha256", sha256))
        yield Mutant(f"a third entry of {name}", entry(name, "mode", 1))

    def text(change: Callable[[str], str | bytes]) -> Callable[[Path], object]:
        def damage(path: Path) -> None:
            found = change((path / MANIFEST).read_text())
            (path / MANIFEST).write_bytes(found if isinstance(found, bytes) else found.encode())

        return damage

    texts: dict[str, Callable[[str], str | bytes]] = {
        "list": lambda old: "[]",
        "null": lambda old: "null",
        "number": lambda old: "1e999",
        "empty object": lambda old: "{}",
        "deep": lambda old: "[" * 2000,
        "deeper": lambda old: '{"a":' * 700 + "1" + "}" * 700,
        "large": lambda old: old + " " * 10_000,
        "bom": lambda old: "\ufeff" + old,
        "utf-16": lambda old: old.encode("utf-16"),
        "latin-1": lambda old: b"\xff" + old.encode(),
        "twice": lambda old: old + old,
        "one line": lambda old: json.dumps(json.loads(old)),
        "sorted": lambda old: json.dumps(json.loads(old), sort_keys=True, indent=2) + "\n",
        "no end of line": lambda old: old.rstrip("\n"),
        "windows": lambda old: old.replace("\n", "\r\n"),
        "a comment": lambda old: old.replace("{", "{ // sizes", 1),
        "a key twice": lambda old: old.replace('"size"', '"size": 1,\n    "size"', 1),
        "a file twice": lambda old: old.replace("{", '{"train.json": {},', 1),
        "a fourth file": lambda old: old.replace("{", '{\n  "../../config.json": {"size": 1, "sha256": ""},', 1),
        "another name": lambda old: old.replace("model.safetensors", "../step-00000001/model.safetensors"),
        "many digits": lambda old: old.replace('"size": ', '"size": ' + "9" * 3000, 1),
        "nul": lambda old: old.replace("size", "si\0ze", 1),
    }
    for name, change in texts.items():
        yield Mutant(f"manifest: {name}", text(change))
    for number in range(20):
        place = draw.random()
        yield Mutant(
            f"manifest: line {number} gone",
            text(
                lambda old, place=place: "\n".join(
                    line for at, line in enumerate(old.splitlines()) if at != int(place * len(old.splitlines()))
                )
            ),
        )


def records(draw: random.Random, count: int) -> Iterator[Mutant]:
    """A train.json that no run writes, signed anew: the checksums are right."""
    values = ("null", '"-1.5"', '"x"', "[]", "{}", "true", "NaN", "Infinity", "1e999", "9" * 5000, "[" * 5000, "")
    for number in range(count):
        value, place, kind = values[number % len(values)], draw.random(), number // len(values) % 3

        def damage(path: Path, value: str = value, place: float = place, kind: int = kind) -> None:
            lines = (path / RECORD).read_text().splitlines()
            end = next((at for at, line in enumerate(lines) if '"collapse"' in line), len(lines))
            inner = [at for at, line in enumerate(lines[:end]) if ":" in line]  # at, best and net: no free words
            at = inner[int(place * len(inner))]
            key, _, rest = lines[at].partition(":")
            if kind == 0:  # another value
                lines[at] = f"{key}: {value}{',' if rest.endswith(',') else ''}"
            elif kind == 1:  # a key twice or unknown
                lines.insert(at, lines[at].rstrip("{[,") + (value + "," if rest.strip() in "{[" else ","))
            else:  # a line gone
                del lines[at]
            (path / RECORD).write_text("\n".join(lines) + "\n")
            sign(path)

        yield Mutant(f"train.json signed anew: {kind} {value:.8}", damage)


def mutants(count: int) -> list[Mutant]:
    draw = random.Random(7)
    fixed = [*structure(), *lies(draw)]
    found = [*fixed, *records(draw, 36 * count // 260)]
    rest = max(count - len(found), 64)
    return [*found, *flips(draw, rest * 3 // 4), *cuts(draw, rest - rest * 3 // 4)]


def test_each_damage_is_seen_and_the_older_checkpoint_is_taken(pristine: Path, tmp_path: Path) -> None:
    every = mutants(tries(260, 2600))
    said: Counter[str] = Counter()
    fired = 0
    for mutant in every:
        path = fresh(pristine, tmp_path / "checkpoints")
        untouched = snapshot(path)
        mutant.damage(path)
        assert snapshot(path) != untouched, mutant.name
        fired += 1
        store = CheckpointStore(path.parent)
        latest = store.latest()
        assert latest is not None, mutant.name
        assert latest.record.at.total == OLD, f"{mutant.name}: taken for whole"
        assert torch.equal(latest.model()["a"], content(OLD, 0)["a"]), mutant.name
        assert len(store.rejected) == 1, mutant.name
        assert str(path) in store.rejected[0], mutant.name
        assert "\n" not in store.rejected[0], mutant.name
        assert len(store.rejected[0]) < len(str(path)) + 300, mutant.name
        with pytest.raises(CheckpointError):
            store.prune(keep={OLD, NEW})
        said[store.rejected[0].replace(str(path), "")[:40]] += 1
    assert fired >= tries(260, 2600)
    assert len(said) > 20  # each says what it is
    figure(AREA, tried=fired, held=fired, fired=fired, note=f"{len(said)} different refusals")


def snapshot(path: Path) -> dict[str, Any]:
    """What a folder holds, by what lies there."""
    if path.is_symlink() or not path.is_dir():
        return {"": "none"}
    return {
        file.name: file.read_bytes() if file.is_file() and not file.is_symlink() else os.lstat(file).st_mode
        for file in path.iterdir()
    }


def test_what_is_no_damage(pristine: Path, tmp_path: Path) -> None:
    """The control: copies, and files that do not belong there, are no reason to lose a checkpoint."""
    harmless: tuple[Callable[[Path], object], ...] = (
        lambda path: None,
        sign,
        lambda path: (path / ".DS_Store").write_bytes(b"x"),
        lambda path: (path / "model.safetensors~").symlink_to("/nowhere"),
        lambda path: (path.parent / "step-x").mkdir(),
        lambda path: (path.parent / "step-00000009").with_suffix(".tmp-1").mkdir(),
        lambda path: os.utime(path / MODEL, (0, 0)),
    )
    for change in harmless:
        path = fresh(pristine, tmp_path / "checkpoints")
        change(path)
        store = CheckpointStore(path.parent)
        latest = store.latest()
        assert latest is not None
        assert latest.record.at.total == NEW
        assert not store.rejected
        assert torch.equal(latest.model()["a"], content(NEW, 0)["a"])


Change = Callable[[dict[str, torch.Tensor]], object]
WRONG_TENSORS: tuple[tuple[str, Change, str], ...] = (
    ("missing", lambda t: t.pop("conv1.weight"), "has no tensor 'conv1.weight'"),
    ("unknown", lambda t: t.update(extra=torch.zeros(1)), "has a tensor 'extra'"),
    ("shape", lambda t: t.update({"conv1.weight": t["conv1.weight"][:1]}), "'conv1.weight' is"),
    ("scalar", lambda t: t.update({"conv1.weight": torch.tensor(1.0)}), "'conv1.weight' is"),
    ("empty", lambda t: t.update({"conv1.weight": torch.zeros(0, 3, 3, 3)}), "'conv1.weight' is"),
    ("half", lambda t: t.update({"conv1.weight": t["conv1.weight"].half()}), "torch.float16"),
    ("double", lambda t: t.update({"conv1.weight": t["conv1.weight"].double()}), "torch.float64"),
    ("nan", lambda t: t["conv1.weight"].view(-1)[3].fill_(math.nan), "'conv1.weight' is not finite"),
    ("infinite", lambda t: t["conv1.weight"].view(-1)[3].fill_(-math.inf), "'conv1.weight' is not finite"),
    ("none", lambda t: t.clear(), "has no tensor"),
)


@pytest.mark.parametrize(("name", "change", "message"), WRONG_TENSORS, ids=[name for name, _, _ in WRONG_TENSORS])
def test_tensors_that_no_net_has_are_caught_though_signed_anew(
    name: str, change: Change, message: str, quick_run: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(quick_run, tmp_path / "run"))
    load_model(folder, checkpoint="last")  # the control
    last = RunFolder(folder).checkpoint("last")
    tensors = last.model()
    change(tensors)
    (last.path / MODEL).write_bytes(save_tensors({key: value.contiguous() for key, value in tensors.items()}))
    sign(last.path)
    with pytest.raises(CheckpointError, match=message) as refusal:
        load_model(folder, checkpoint="last")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("data", [b"", b"\x08", bytes(8), b"\xff" * 100, b"{}" * 50, b"\x02" + bytes(7) + b"{}"])
def test_a_file_of_no_tensors_signed_anew(data: bytes, quick_run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(quick_run, tmp_path / "run"))
    last = RunFolder(folder).checkpoint("last")
    (last.path / MODEL).write_bytes(data)
    sign(last.path)
    with pytest.raises(CheckpointError) as refusal:
        load_model(folder, checkpoint="last")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["protocol 0, os.system", "in place of a tensor", "the oldest format"])
def test_code_in_a_checkpoint_does_not_run(name: str, quick_run: Path, tmp_path: Path) -> None:
    """Signed anew, as whoever sends a whole run would."""
    folder, canary = Path(shutil.copytree(quick_run, tmp_path / "run")), tmp_path / "canary"
    last = RunFolder(folder).checkpoint("last")
    PICKLES[name][1](tmp_path / "weights.pt", canary)
    readers().run("obey", tmp_path / "weights.pt")
    assert canary.exists(), "no danger"
    canary.unlink()
    shutil.copy(tmp_path / "weights.pt", last.path / MODEL)
    sign(last.path)
    told = readers().run("model", folder)
    assert told["type"] == "CheckpointError", told
    assert "cannot be read" in told["text"]
    assert not canary.exists()


def test_every_checkpoint_damaged(pristine: Path, tmp_path: Path) -> None:
    path = fresh(pristine, tmp_path / "checkpoints")
    for step in (OLD, NEW):
        (path.parent / f"step-{step:08d}" / STATE).write_bytes(b"")
    store = CheckpointStore(path.parent)
    assert store.latest() is None
    assert [f"step-{step:08d}" in line for step, line in zip((NEW, OLD), store.rejected, strict=True)] == [True, True]
