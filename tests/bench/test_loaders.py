"""`hardfast bench loaders`: real runs, tiny, of which no time is asserted; statistics, table and picture."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from hardfast.bench import loader_candidates, loader_timing
from hardfast.bench.cpu_seconds import cpu_seconds, descendants
from hardfast.bench.loader_candidates import CROPS, PADDED
from hardfast.bench.loader_rows import Interval, LoaderRow, columns, table, target
from hardfast.bench.loader_timing import Candidate, time_loaders
from hardfast.bench.loaders import workload_of
from hardfast.bench.variants import Workload
from hardfast.engine.environment import describe_environment
from hardfast.loaders import Augmentation, Batch, ResidentLoader, Split

pytest.importorskip("tyro")
pytest.importorskip("skimage")
pytest.importorskip("PIL")
from hardfast.engine import cli

SMALL = Workload(model="resnet8", batch=4, image_size=8, k=3, generator_width=4)
CPU = torch.device("cpu")
WORDS = ["--model", "resnet8", "--batch", "4", "--sizes", "16", "--images", "14", "--k", "3", "--generator-width", "4"]
WORDS += ["--runs", "2", "--run-seconds", "0.01", "--workers", "1", "--device", "cpu"]


def row(
    name: str = "resident-padded",
    size: int = 32,
    *,
    rates: tuple[float, ...] = (900.0, 1000.0, 1100.0),
    how: Augmentation = PADDED,
    workers: int | None = None,
    fed: tuple[float, ...] = (0.44, 0.46, 0.45),
) -> LoaderRow:
    return LoaderRow(
        name=name,
        workload=Workload(model="resnet18", batch=8, image_size=size),
        batch=16,
        images=14,
        data="random",
        augmentation=how,
        workers=workers,
        mode="eager",
        precision="fp32",
        first_batch=1.25,
        rates=list(rates),
        cores=[0.5, 0.5, 0.5],
        alone=[0.004, 0.004, 0.004],
        step=[0.4, 0.4, 0.4],
        fed=list(fed),
    )


def check_rows(found: list[dict[str, Any]], decoding: list[str]) -> None:
    """What holds for the rows of `WORDS`, with these loaders after the resident ones."""
    assert [line["loader"] for line in found] == ["resident", "resident-padded", *decoding]
    for line in found:
        wanted = {"image_size": 16, "model": "resnet8", "batch": 4, "images": 14, "runs": 2, "k": 3, "step_batch": 4}
        wanted |= {"mode": "eager", "precision": "fp32", "torch": torch.__version__, "target": None}
        assert line.items() >= wanted.items()
        for name in ("images_per_second", "cpu_cores", "images_per_second_per_core", "step_images_per_second", "share"):
            assert line[f"{name}_low"] <= line[name] <= line[f"{name}_high"]
            assert line[name] > 0
        assert line["first_batch_seconds"] > 0
        assert line["data"].startswith("JPEGs of 500x375, 1")
    assert [line["workers"] for line in found] == [None, None, *(1 for _ in decoding)]
    assert [line["added"] is None for line in found] == [False, False, *(True for _ in decoding)]
    assert [line["crop"] for line in found] == ["scale 0.08 to 1", "padding 4", *("scale 0.08 to 1" for _ in decoding)]
    assert {"date", "git", "device", "machine", "threads", "ffcv", "dali", "numba", "torchvision"} < set(found[0])


def run(words: list[str], folder: Path) -> list[dict[str, Any]]:
    """The rows that the command writes; its picture is drawn, and nothing is left of what it started."""
    paths = {name: folder / f"loaders.{name}" for name in ("csv", "json", "png")}
    places = [word for name, path in paths.items() for word in (f"--{name}", str(path))]
    assert cli.run(["bench", "loaders", *WORDS, *words, *places]) == 0
    found: list[dict[str, Any]] = json.loads(paths["json"].read_text())
    with paths["csv"].open() as file:
        assert list(csv.DictReader(file)) == [{k: "" if v is None else str(v) for k, v in x.items()} for x in found]
    assert paths["png"].read_bytes().startswith(b"\x89PNG")
    return found


def test_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = set(descendants(os.getpid()))
    found = run(["--loaders", "resident", "resident-padded", "torch"], tmp_path)
    check_rows(found, ["torch"])
    assert set(descendants(os.getpid())) <= before
    said = capsys.readouterr().out
    assert "batch / step" in said
    assert "a step of resnet8 at 16 px needs" in said


@pytest.mark.slow
def test_rows_of_all_loaders(tmp_path: Path) -> None:
    pytest.importorskip("ffcv")
    pytest.importorskip("nvidia.dali")
    check_rows(run([], tmp_path), ["ffcv", "dali", "torch"])


def test_what_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(loader_candidates.MODULES, "ffcv", "no_such_module")
    monkeypatch.setitem(loader_candidates.MODULES, "dali", "no_such_package.dali")
    assert cli.run(["bench", "loaders", *WORDS, "--loaders", "ffcv", "dali", "resident-padded"]) == 0
    said = capsys.readouterr().out
    assert "ffcv is left out: no_such_module is not installed (pip install 'hardfast[ffcv]')" in said
    assert "dali is left out: no_such_package.dali is not installed (pip install 'hardfast[dali]')" in said
    assert "timing resident-padded at 16 px" in said
    assert cli.run(["bench", "loaders", *WORDS, "--loaders", "ffcv"]) == 2
    assert "none of these loaders can be had here" in capsys.readouterr().err


class Counting:
    """A resident loader that notes which epochs are asked for and how many batches each delivers."""

    def __init__(self, made: list[Counting], batch: int) -> None:
        draw = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (11, 8, 8, 3), dtype=torch.uint8, generator=draw)
        split = Split(images, torch.zeros(11, dtype=torch.int64))
        self.loader = ResidentLoader(split, batch_size=batch, augmentation=PADDED, seed=0, device="cpu")
        self.at, self.closed = (0, 0), False
        self.epochs: list[int] = []
        self.delivered: list[int] = []
        made.append(self)

    def __len__(self) -> int:
        return len(self.loader)

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[Batch]:
        self.epochs.append(epoch)
        for batch in self.loader.epoch(epoch, start=start):
            self.delivered.append(epoch)
            yield batch

    def close(self) -> None:
        self.closed = True


def timed(made: list[Counting], *, workers: int | None, batch: int, runs: int = 2) -> LoaderRow:
    """One counting loader beside the step of `SMALL`, whose batch has 4 images."""
    candidate = Candidate(make=partial(Counting, made), augmentation=PADDED, images=11, data="random", workers=workers)
    (found,) = time_loaders(
        SMALL, {"counting": candidate}, CPU, batch=batch, precision="fp32", runs=runs, run_seconds=0
    )
    return found


def test_whole_epochs_are_timed_and_the_step_is_fed() -> None:
    made: list[Counting] = []
    found = timed(made, workers=None, batch=4)
    (loader,) = made
    assert loader.closed
    assert (found.name, found.images, found.mode, len(found.step)) == ("counting", 11, "eager", 2)
    assert [len(values) for values in (found.rates, found.cores, found.alone, found.fed)] == [2, 2, 2, 2]
    assert loader.epochs == list(range(6))  # first, warm-up; a run and the epoch that is trained on, twice
    assert [loader.delivered.count(epoch) for epoch in loader.epochs] == [2] * 6
    assert found.alone == [4 / rate for rate in found.rates]


def test_a_step_of_another_batch_has_a_loader_of_its_own() -> None:
    made: list[Counting] = []
    found = timed(made, workers=None, batch=5)
    assert [loader.loader.order.batch_size for loader in made] == [5, 4]
    assert all(loader.closed for loader in made)
    assert (found.batch, found.workload.batch, len(found.fed)) == (5, 4, 2)


def test_what_decodes_does_not_feed_a_step_on_a_cpu() -> None:
    found = timed(made := [], workers=1, batch=5)
    assert (len(made), found.fed, found.added) == (1, [], None)
    assert found.alone == [4 / rate for rate in found.rates]


def test_the_step_is_that_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """One step that updates the generator and one that does not; the average is that of k steps."""
    positions = []

    class Watched(loader_timing.Run):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            step = self.step

            def watched(batch: Batch, position: Any) -> None:
                positions.append((position.step, self.method.kind(position), len(batch.label)))
                step(batch, position)

            self.step = watched

    monkeypatch.setattr(loader_timing, "Run", Watched)
    timed([], workers=None, batch=5)
    assert positions == [(0, True, 4), (1, False, 4)] * 5  # warm-up; then with the loader and without, twice
    seconds = iter([3.0, 2.0])
    monkeypatch.setattr(loader_timing, "wall_seconds", lambda call, device: next(seconds))
    assert loader_timing._step_seconds(None, [], 20, CPU) == pytest.approx((3 + 19 * 2) / 20)


def test_intervals() -> None:
    """Student's t: for five runs 2.776 standard errors."""
    found = Interval.of([1.0, 2.0, 3.0, 4.0, 5.0])
    half = 2.7764451 * (2.5 / 5) ** 0.5
    assert (found.mean, found.low, found.high) == pytest.approx((3, 3 - half, 3 + half))
    assert Interval.of([2.0, 2.0]) == Interval(2.0, 2.0, 2.0)
    assert Interval.of([1.0, 2.0]).high == pytest.approx(1.5 + 12.7062047 * 0.5)


def test_figures_of_a_row() -> None:
    found = row()
    assert found.need.mean == pytest.approx(8 / 0.4)
    assert found.share.mean == pytest.approx(0.01)
    assert found.added is not None
    assert found.added.mean == pytest.approx(0.125)
    assert found.per_core.mean == pytest.approx(2000)
    line = columns(found, describe_environment(CPU))
    assert line.items() >= {"images_per_second": 1000.0, "cpu_cores": 0.5, "added": 0.125, "share": 0.01}.items()
    assert columns(row(fed=()), describe_environment(CPU))["added"] is None


def test_cpu_seconds_count_descendants() -> None:
    """A process that works and that it starts: while they run, and after they have ended."""
    burn = "import time\nwhile time.process_time() < 0.4: pass\n"
    program = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {burn!r}])\n{burn}print(1, flush=True)\n"
    before = cpu_seconds()
    process = subprocess.Popen(
        [sys.executable, "-c", program + "import time; time.sleep(60)"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    running = cpu_seconds() - before
    process.kill()
    process.wait()
    ended = cpu_seconds() - before
    assert 0.75 < running < 5
    assert 0.75 < ended < 5


def test_waiting_takes_no_cpu() -> None:
    before = cpu_seconds()
    time.sleep(0.3)
    assert cpu_seconds() - before < 0.1


@pytest.mark.parametrize(
    ("model", "size", "rate", "about"),
    [
        ("resnet18", 32, 30_000, "target for an H100, not measured"),
        ("resnet18", 64, 7_500, "target for an H100 at 32 px by the number of pixels, not measured"),
        ("resnet50", 224, 1_600, "target for an H100, not measured"),
        ("resnet50", 128, 4_900, "target for an H100 at 224 px by the number of pixels, not measured"),
    ],
)
def test_targets(model: Any, size: int, rate: int, about: str) -> None:
    assert target(Workload(model=model, batch=1, image_size=size)) == (rate, about)
    assert target(SMALL) is None
    assert target(Workload(model=model, batch=1, image_size=8)) is None  # too far from what the target is for


def test_the_table() -> None:
    rows = [row(), row("resident", how=CROPS), row("torch", how=CROPS, workers=2, fed=())]
    said = table(rows).splitlines()
    assert said[2].split()[:3] == ["resident-padded", "32", "1,000"]
    assert said[4].split()[-1] == "-"
    assert said[5:] == [
        "a step of resnet18 at 32 px needs 20 images/s here (20 to 20); "
        "30,000 images/s is the target for an H100, not measured",
        "resident-padded at 32 px: 1.00% of a step (target: at most 2%): met",
    ]
    large = table([row(size=128), row("resident", 128, how=CROPS)]).splitlines()
    assert large[-1] == "resident at 128 px: 1.00% of a step (target: at most 2%): met"


def test_the_picture() -> None:
    pytest.importorskip("matplotlib")
    from hardfast.bench.loaders_plot import picture

    wide = (10.0, 1000.0, 100.0)  # whose interval reaches below zero
    rows = [row(), row("torch", how=CROPS, workers=2, rates=wide, fed=()), row(size=64, rates=(70, 80, 90))]
    figure = picture([columns(found, describe_environment(CPU)) for found in rows])
    (axes,) = figure.axes
    assert axes.get_yscale() == "log"
    assert [label.get_text().split("\n")[0] for label in axes.get_xticklabels()] == ["32 px", "64 px"]
    numbers = [text.get_text() for text in axes.texts]
    assert numbers == ["1,000", "80", "370", "20", "30,000", "20", "7,500"]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "a step needs, measured on this CPU",
        "a step needs on an H100: a target, not measured",
        "resident-padded",
        "torch",
    ]
    figure.canvas.draw()


def test_the_step_beside_a_size() -> None:
    def found(size: int, **given: Any) -> tuple[str, int]:
        workload = workload_of(size, CPU, **given)
        return workload.model, workload.batch

    assert [found(size) for size in (32, 64, 128, 224)] == [
        ("resnet18", 16),
        ("resnet18", 8),
        ("resnet50", 4),
        ("resnet50", 2),
    ]
    assert found(32, batch=4) == ("resnet18", 4)
    gpu = workload_of(224, torch.device("cuda"), model="resnet18")
    assert (gpu.model, gpu.batch) == ("resnet18", 128)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--loaders", "ffvc"], "ffvc"),
        (["--runs", "1"], "--runs is 1: intervals need at least 2"),
        (["--workers", "-1"], "--workers must not be negative, not -1"),
        (["--batch", "0"], "--batch must be at least 1"),
        (["--sizes"], "--sizes names no size"),
        (["--sizes", "65", "--loaders", "resident-padded"], "up to 64 for resident-padded alone"),
        (["--sizes", "0"], "--sizes must be at least 1, not 0"),
        (["--images", "3", "--batch", "4"], "--images 3 are less than a batch of 4"),
        (["--device", "gpu"], "device 'gpu'"),
        (["--png", "."], "--png . is a folder"),
    ],
)
def test_wrong_words(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["bench", "loaders", *words]) == 2
    assert message in capsys.readouterr().err
