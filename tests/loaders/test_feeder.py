"""A feeder process seen from its parent: what it says last, and how one epoch ends another."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("PIL")
pytest.importorskip("torchvision")
from hardfast.loaders import DataError, LoaderDied
from hardfast.loaders.image_folder import FolderSource
from hardfast.loaders.streaming.spec import FeedSpec
from hardfast.loaders.streaming.supervisor import Feeder

from .sources import picture, write_folder

SIZE, BATCH, IMAGES = (24, 24), 4, 24
INDEX = np.arange(IMAGES)
BOXES = np.tile(np.array([0, 0, *SIZE]), (IMAGES, 1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("feeder"), IMAGES, size=SIZE)


@pytest.fixture
def feeder(folder: Path) -> Iterator[Feeder]:
    source = FolderSource.open(folder)
    spec = FeedSpec(backend="torch", place=source.place, batch_size=BATCH, height=24, width=24, workers=0)
    made = Feeder(spec, watchdog=60)
    yield made
    made.close()


def test_one_epoch_after_the_other_and_what_it_says_last(feeder: Feeder, folder: Path) -> None:
    """In one process, since each takes seconds to start."""
    given_up = feeder.epoch(INDEX, BOXES)
    first = next(given_up)
    assert np.array_equal(first.arrays.images[1], picture(1, SIZE))

    backwards = feeder.epoch(INDEX[::-1].copy(), BOXES)
    taken = next(backwards)
    assert taken.arrays.index.tolist() == [23, 22, 21, 20]
    feeder.give_back(first)  # of the epoch before: it must not free a slot of this one
    assert next(given_up, None) is None
    feeder.give_back(taken)
    rest = []
    for delivery in backwards:
        rest += delivery.arrays.index.tolist()
        feeder.give_back(delivery)
    assert rest == list(range(19, -1, -1))
    assert list(feeder.epoch(INDEX[:0], BOXES[:0])) == []

    # It works ahead, fails, and is gone before its parent has used what it delivered.
    victim = folder / "class-1" / "00013.png"
    content = victim.read_bytes()
    victim.write_bytes(content[:-20] + bytes(20))
    try:
        batches = feeder.epoch(INDEX, BOXES)
        kept = next(batches)
        end = time.monotonic() + 60
        while feeder.process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        assert feeder.process.poll() == 1
        feeder.give_back(kept)
        for expected in (4, 8):
            assert next(batches).arrays.index[0] == expected
        with pytest.raises(DataError, match=r"00013.png .*sha256") as error:
            next(batches)
        assert not isinstance(error.value, LoaderDied)
    finally:
        victim.write_bytes(content)
    with pytest.raises(LoaderDied, match="ended with an error"):
        next(feeder.epoch(INDEX, BOXES))
    feeder.close()
    feeder.close()
