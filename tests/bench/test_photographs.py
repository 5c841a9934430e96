"""The photographs that loaders are measured on: real JPEG files, as large as ImageNet's, the same on every machine."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("PIL")
pytest.importorskip("skimage")
pytest.importorskip("sklearn")
from PIL import Image

from hardfast.bench import photographs
from hardfast.bench.photographs import PHOTOGRAPHS, cut, photograph, why_no_photographs, write_photographs
from hardfast.engine.errors import UsageError


def digests(folder: Path) -> dict[str, str]:
    """Of every file below a folder, by its path in it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_files(tmp_path: Path) -> None:
    written = write_photographs(tmp_path, train=42, val=8)
    train, val = digests(tmp_path / "train"), digests(tmp_path / "val")
    assert (len(train), len(val), written.images) == (42, 8, 50)
    assert len({*train.values(), *val.values()}) == 50  # no two are alike, also not in the two splits
    assert [name.partition("/")[0] for name in train] == [name for name in sorted(PHOTOGRAPHS) for _ in range(6)]
    assert "astronaut/00007.jpg" in val
    files = [path for path in tmp_path.rglob("*.jpg")]
    assert written.mean_bytes == sum(path.stat().st_size for path in files) / 50
    assert 95_000 < written.mean_bytes < 125_000
    for path in files:
        with Image.open(path) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (500, 375))


def test_a_file_shows_its_photograph(tmp_path: Path) -> None:
    """Not another one, and nothing that quality has destroyed."""
    write_photographs(tmp_path, train=7)
    for number, name in enumerate(PHOTOGRAPHS):
        with Image.open(tmp_path / "train" / name / f"{number:05d}.jpg") as image:
            found = np.asarray(image).astype(int)
        exact = np.asarray(cut(photograph(name), np.random.default_rng((0, 0, number)))).astype(int)
        assert np.abs(found - exact).mean() < 3


def test_the_seed_decides(tmp_path: Path) -> None:
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_photographs(tmp_path / folder, train=7, seed=seed)
    first, again, other = (digests(tmp_path / folder) for folder in "abc")
    assert first == again
    assert first.keys() == other.keys()
    assert not {*first.values()} & {*other.values()}


@pytest.mark.parametrize(("train", "val"), [(0, 0), (-1, 2), (1, -1)])
def test_wrong_numbers(train: int, val: int, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be cut: choose at least one"):
        write_photographs(tmp_path, train=train, val=val)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "val").mkdir()
    with pytest.raises(UsageError, match="val is there already"):
        write_photographs(tmp_path, train=1)
    assert not (tmp_path / "train").exists()


def test_without_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert why_no_photographs() is None
    monkeypatch.setitem(photographs.PACKAGES, "not_installed", "not-installed")
    with pytest.raises(UsageError, match="no photographs without not-installed: pip install not-installed"):
        write_photographs(tmp_path, train=1)
