"""`hardfast bench loaders`: real runs, tiny, of which no time is asserted; and what a GPU's table says."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hardfast.bench import loaders
from hardfast.bench.loaders import LoaderRow, default_images, table, time_loaders
from hardfast.bench.variants import Workload
from hardfast.loaders import Batch

pytest.importorskip("tyro")
from hardfast.engine import cli

SMALL = Workload(model="resnet8", batch=4, image_size=8, k=3, generator_width=4)
WORDS = ["--model", "resnet8", "--batch", "4", "--image-size", "8", "--images", "11", "--k", "3"]
WORDS += ["--generator-width", "4", "--rounds", "2", "--device", "cpu"]
CPU = torch.device("cpu")


def row(name: str = "resident", batch: tuple[float, float] = (1e-4, 3e-4)) -> LoaderRow:
    return LoaderRow(
        workload=SMALL,
        name=name,
        images=11,
        mode="captured",
        precision="bf16",
        batch=list(batch),
        step=[0.01, 0.01],
        fed=[0.011, 0.012],
        state={},
    )


def test_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = tmp_path / "loaders.csv", tmp_path / "loaders.json"
    assert cli.run(["bench", "loaders", *WORDS, "--csv", str(paths[0]), "--json", str(paths[1])]) == 0
    (found,) = json.loads(paths[1].read_text())
    wanted = {"loader": "resident", "model": "resnet8", "batch": 4, "image_size": 8, "images": 11, "rounds": 2}
    wanted |= {"mode": "eager", "precision": "fp32", "k": 3, "generator_width": 4, "torch": torch.__version__}
    assert found.items() >= wanted.items()
    assert 0 < found["p20_ms"] <= found["median_ms"] <= found["p80_ms"]
    assert 0 < found["share_p20"] <= found["share"] <= found["share_p80"]
    assert found["added_p20"] <= found["added"] <= found["added_p80"]
    assert found["images_per_second"] == pytest.approx(4000 / found["median_ms"], rel=1e-2)
    assert found["device"].startswith("cpu ")
    assert {"date", "git", "threads", "sm_clock_mhz", "driver", "triton", "cuda", "cudnn"} < set(found)
    with paths[0].open() as file:
        assert list(csv.DictReader(file)) == [{k: "" if v is None else str(v) for k, v in found.items()}]
    said = capsys.readouterr().out
    assert "batch / step" in said
    assert "images/s" not in said  # of a GPU only


def test_what_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """An epoch to its end, and k steps on batches of another one; every epoch is asked for once."""
    epochs, delivered = [], []
    build = loaders.LOADERS["resident"]

    class Counting:
        def __init__(self, *given: Any) -> None:
            self.loader = build(*given)

        def __len__(self) -> int:
            return len(self.loader)

        def epoch(self, epoch: int, *, start: int = 0) -> Iterator[Batch]:
            epochs.append(epoch)
            for batch in self.loader.epoch(epoch, start=start):
                delivered.append(epoch)
                yield batch

    monkeypatch.setitem(loaders.LOADERS, "counting", Counting)
    (timed,) = time_loaders(SMALL, ["counting"], CPU, images=11, precision="fp32", rounds=2)
    rounds = 2 + loaders.WARMUP
    assert (timed.name, timed.images, timed.mode) == ("counting", 11, "eager")
    assert [len(seconds) for seconds in (timed.batch, timed.step, timed.fed)] == [2, 2, 2]
    assert epochs == list(range(3 * rounds))  # two batches an epoch: three steps are an epoch and a half
    assert [delivered.count(epoch) for epoch in epochs] == [2, 2, 1] * rounds


def test_the_step_is_that_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    positions = []

    class Watched(loaders.Run):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            step = self.step

            def watched(batch: Batch, position: Any) -> None:
                positions.append((position.step, self.method.kind(position)))
                step(batch, position)

            self.step = watched

    monkeypatch.setattr(loaders, "Run", Watched)
    time_loaders(SMALL, ["resident"], CPU, images=11, precision="fp32", rounds=2)
    cycle = [(0, True), (1, False), (2, False)]
    assert positions == cycle * 2 * (2 + loaders.WARMUP)  # with the loader and without


def test_share_and_what_is_added() -> None:
    assert row().share.median == pytest.approx(0.02)
    assert row().added.median == pytest.approx(0.15)
    assert (row().share.p20, row().share.p80) == pytest.approx((0.014, 0.026))


def test_the_table_of_a_gpu() -> None:
    said = table([row(), row("other")], on_gpu=True)
    line = next(line for line in said.splitlines() if line.startswith("resident "))
    assert line.split()[:4] == ["resident", "20,000", "200.0", "10.00"]
    assert said.splitlines()[-1] == "resident: 2.00% of a step (target: at most 2%): met"
    slow = table([row(batch=(1e-3, 1e-3))], on_gpu=True)
    assert slow.endswith("10.00% of a step (target: at most 2%): not met")


def test_sizes_of_the_data_set() -> None:
    def images(batch: int, size: int, device: str) -> int:
        return default_images(Workload(model="resnet18", batch=batch, image_size=size), torch.device(device))

    assert images(128, 32, "cuda") == 50_000
    assert images(128, 224, "cuda") == (1 << 30) // (3 * 224 * 224)
    assert images(64, 4096, "cuda") == 64
    assert images(64, 4096, "cpu") == 256


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--loaders", "ffvc"], "--loaders ffvc is not a loader: choose from resident"),
        (["--rounds", "1"], "--rounds is 1"),
        (["--batch", "0"], "--batch must be at least 1"),
        (["--image-size", "0"], "--image-size must be at least 1"),
        (["--images", "3", "--batch", "4"], "--images 3 are less than a batch of 4"),
        (["--device", "gpu"], "device 'gpu'"),
    ],
)
def test_wrong_words(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["bench", "loaders", *words]) == 2
    assert message in capsys.readouterr().err
