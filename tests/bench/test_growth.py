"""`hardfast bench growth`: its arithmetic against calculations by hand, its rows, its picture, and what is refused."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hardfast.bench import growth_points
from hardfast.bench.growth import bench_growth, growth_rows, table
from hardfast.bench.growth_points import KS, Times, points_of, timed_as
from hardfast.bench.rows import read_rows
from hardfast.bench.units import TABLE_II_MINUTES, generator_share, modelled_over, modelled_over_plain, sdi_units
from hardfast.bench.variants import Workload

pytest.importorskip("tyro")
from hardfast.engine import UsageError, cli

BASE = Workload(model="resnet8", batch=4, image_size=8, k=20, generator_width=4)
TINY: dict[str, Any] = {"model": "resnet8", "batch": 4, "image_size": 8, "generator_width": 4, "device": "cpu"}
WORDS = "--model resnet8 --batch 4 --image-size 8 --generator-width 4 --device cpu --rounds 2"


@pytest.fixture
def known_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step takes what it is said to take, in place of a measurement."""

    def interleaved(
        calls: Mapping[str, Callable[[], object]], *, repeats: int, **options: Any
    ) -> dict[str, list[float]]:
        for call in calls.values():
            call()
        known = {"plain": 1.0, "ordinary": 2.0, "kth": 4.0, "base": 1.0}
        return {name: [known[name]] * repeats for name in calls}

    monkeypatch.setattr(growth_points, "interleaved_steps", interleaved)


def test_k_is_arithmetic_on_two_steps() -> None:
    """Ordinary steps of 2 and 3 seconds, 4 and 5 with the generator's update, plain training 1 and 2."""
    times = Times(plain=[1.0, 2.0], ordinary=[2.0, 3.0], kth=[4.0, 5.0], base=[2.0, 3.0])
    assert times.averaged(1) == [4.0, 5.0]
    assert times.averaged(2) == [3.0, 4.0]
    assert times.averaged(20) == pytest.approx([2.1, 3.1])
    points = points_of(BASE, ["k"], {"k": [1, 2]}, "cpu")
    one, two, twenty = growth_rows(BASE, points, {timed_as(BASE): times})
    assert [row.value for row in (one, two, twenty)] == [1, 2, 20]
    assert one.over_plain.median == pytest.approx((4 / 1 + 5 / 2) / 2)
    assert two.over_plain.median == pytest.approx((3 / 1 + 4 / 2) / 2)
    assert two.over_base.median == pytest.approx((3 / 2.1 + 4 / 3.1) / 2)
    assert (twenty.over_base.median, twenty.over_base.p20, twenty.over_base.p80) == (1, 1, 1)


def test_the_base_beside_another_workload() -> None:
    """There only its ordinary step is timed: 10 seconds, to which updates of the generator add a twentieth."""
    own = Times(plain=[1.0, 1.0], ordinary=[2.0, 2.0], kth=[4.0, 4.0], base=[2.0, 2.0])
    there = Times(plain=[7.0, 7.0], ordinary=[21.0, 42.0], kth=[21.0, 42.0], base=[10.0, 20.0])
    points = points_of(BASE, ["batch"], {"batch": [8]}, "cpu")
    rows = growth_rows(BASE, points, {timed_as(BASE): own, timed_as(points[1][2]): there})
    assert rows[1].over_base.median == pytest.approx(21 / (10 * 1.05))
    assert rows[1].over_plain.median == pytest.approx((3 + 6) / 2)
    assert rows[0].over_base.median == 1


def test_units() -> None:
    """ResNet18 at 32 pixels by hand: 0.555 G multiplications and additions, the generator's 0.0804 G."""
    stages = 9 * (4 * 64 * 64 * 32**2 + (64 * 128 + 3 * 128**2) * 16**2 + (128 * 256 + 3 * 256**2) * 8**2)
    stages += 9 * (256 * 512 + 3 * 512**2) * 4**2
    shortcuts = 64 * 128 * 16**2 + 128 * 256 * 8**2 + 256 * 512 * 4**2
    classifier = 9 * 3 * 64 * 32**2 + stages + shortcuts + 512 * 10
    generator = 9 * (6 * 64 + 64 * 64 + 64 * 64 + 64 * 3) * 32**2
    g = generator / classifier
    workload = Workload(model="resnet18", batch=128, image_size=32)
    assert generator_share(workload) == pytest.approx(g, rel=1e-12)
    assert round(g, 3) == 0.145
    assert modelled_over_plain(workload) == pytest.approx((7 + g + (4 + 3 * g) / 20) / 3)
    assert round(modelled_over_plain(workload), 2) == 2.46
    assert sdi_units(g, 1) == pytest.approx(11 + 4 * g)
    assert modelled_over(Workload(model="resnet18", batch=32, image_size=64), workload) == pytest.approx(1, rel=1e-3)


def test_units_of_resnet50() -> None:
    pytest.importorskip("torchvision")
    workload = Workload(model="resnet50", batch=1, image_size=224)
    assert round(generator_share(workload), 2) == 0.97
    assert round(modelled_over_plain(workload), 2) == 2.77


def test_points() -> None:
    points = points_of(BASE, growth_points.AXES, {"resolution": [16, 4]}, "cpu")
    of_axis = {axis: [value for name, value, _ in points if name == axis] for axis in growth_points.AXES}
    assert of_axis["model"] == ["resnet8", "resnet18", "preact_resnet18", "resnet50"]
    assert of_axis["resolution"] == [4, 8, 16]
    assert of_axis["batch"] == [2, 4, 8]  # a quarter is below the least batch
    assert of_axis["k"] == list(KS)
    assert set(TABLE_II_MINUTES) <= set(KS)
    for axis, value, workload in points:
        field = growth_points.FIELDS[axis]
        changed = {
            name for name in ("model", "batch", "image_size", "k") if getattr(workload, name) != getattr(BASE, name)
        }
        assert changed <= {field}
        assert getattr(workload, field) == value


@pytest.mark.usefixtures("known_times")
def test_rows_and_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {name: str(tmp_path / "new" / f"growth.{name}") for name in ("csv", "json", "png")}
    words = [*WORDS.split(), "--models", "resnet8", "--resolutions", "16", "--batches", "2", "--ks", "1", "4", "20"]
    assert cli.run(["bench", "growth", *words, *(word for n, file in files.items() for word in (f"--{n}", file))]) == 0
    rows = json.loads(Path(files["json"]).read_text())
    assert [(row["axis"], row["value"]) for row in rows] == [
        ("model", "resnet8"),
        ("resolution", 8),
        ("resolution", 16),
        ("batch", 2),
        ("batch", 4),
        ("k", 1),
        ("k", 4),
        ("k", 20),
    ]
    for row in rows:
        assert (row["ms"], row["images_per_second"], row["mode"], row["precision"]) == (None, None, "eager", "fp32")
        assert (row["rounds"], row["base"]) == (2, "resnet8 4x8 k=20")
        wanted = {1: 4, 4: 2.5, 20: 2.1}[row["k"]]
        assert row["sdi_over_plain"] == row["sdi_over_plain_p20"] == row["sdi_over_plain_p80"] == pytest.approx(wanted)
        there = Workload(**{**vars_of(BASE), **{name: row[name] for name in ("batch", "image_size", "k")}})
        assert row["modelled_over_plain"] == pytest.approx(modelled_over_plain(there), rel=1e-4)
        assert row["modelled_over_base"] == pytest.approx(modelled_over(there, BASE), rel=1e-4)
    over_base = [row["sdi_over_base"] for row in rows]
    assert over_base == pytest.approx([1, 1, 2, 2, 1, 4 / 2.1, 2.5 / 2.1, 1], rel=1e-4)
    assert [row["paper_minutes"] for row in rows] == [None] * 5 + [134, None, 83]
    assert [row["paper_over_k20"] for row in rows[5:]] == [pytest.approx(134 / 83, rel=1e-4), None, 1]
    said = capsys.readouterr().out
    assert "k: arithmetic on the base's two kinds of step" in said
    assert "absolute times are meaningful on a GPU" in said
    assert "images/s" not in said
    assert [row["value"] for row in read_rows([Path(files["csv"])])] == [str(row["value"]) for row in rows]


def vars_of(workload: Workload) -> dict[str, Any]:
    return {name: getattr(workload, name) for name in workload.__slots__}


def test_a_measurement(tmp_path: Path) -> None:
    """Real steps of two workloads; nothing is asserted of times but that there are some."""
    bench_growth(**TINY, axes=["batch"], values={"batch": [2]}, rounds=2, csv=tmp_path / "growth.csv")
    with (tmp_path / "growth.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["value"] for row in rows] == ["2", "4"]
    for row in rows:
        assert 0 < float(row["sdi_over_plain_p20"]) <= float(row["sdi_over_plain"]) <= float(row["sdi_over_plain_p80"])
    assert float(rows[1]["sdi_over_base"]) == 1
    assert float(rows[0]["sdi_over_base"]) != 1


@pytest.mark.usefixtures("known_times")
def test_what_cannot_be_run_is_left_out(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    build = growth_points.build

    def small_memory(variant: Any, workload: Workload, device: torch.device) -> Any:
        if workload.batch > 4:
            raise RuntimeError("out of memory\nin many words")
        return build(variant, workload, device)

    monkeypatch.setattr(growth_points, "build", small_memory)
    said = bench_growth(**TINY, axes=["batch"], rounds=2)
    assert "left out: resnet8 8x8: out of memory\n" in capsys.readouterr().out
    assert [line.split()[1] for line in said.splitlines()[2:4]] == ["2", "4"]
    with pytest.raises(UsageError, match=r"the base workload cannot be run \(out of memory\)"):
        bench_growth(**{**TINY, "batch": 8}, axes=["batch"], rounds=2)


@pytest.mark.usefixtures("known_times")
def test_the_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    from hardfast.bench import plots

    wide, narrow = tmp_path / "wide.png", tmp_path / "narrow.png"
    one = {"model": ["resnet8"], "resolution": [16], "batch": [2]}
    bench_growth(**TINY, values=one, rounds=2, png=wide, csv=tmp_path / "growth.csv")
    pixels = imread(wide)[..., :3]
    assert pixels.shape[1] > 2 * pixels.shape[0] > 1000
    for column in np.array_split(pixels, 4, axis=1)[1:]:  # a curve and its model in each panel
        for half in (column[: len(column) // 2], column[len(column) // 2 : -80]):
            for colour in (plots.MEASURED, plots.MODELLED):
                wanted = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
                assert (np.abs(half - wanted).max(axis=-1) < 0.02).sum() > 20
    rows = [row for row in read_rows([tmp_path / "growth.csv"]) if row["axis"] == "k"]
    plots.draw_growth(rows, narrow)
    assert imread(narrow).shape[1] < pixels.shape[1] / 2
    assert plots.main([str(tmp_path / "again.png"), str(tmp_path / "growth.csv")]) == 0
    assert (tmp_path / "again.png").read_bytes() == wide.read_bytes()
    assert plots.main([]) == 2


@pytest.mark.usefixtures("known_times")
def test_without_matplotlib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "hardfast.bench.plots", raising=False)
    bench_growth(**TINY, axes=["k"], rounds=2, csv=tmp_path / "growth.csv", png=tmp_path / "growth.png")
    said = [line for line in capsys.readouterr().out.splitlines() if "picture" in line]
    assert said == [f"no picture {tmp_path / 'growth.png'}: matplotlib is not installed"]
    assert len(read_rows([tmp_path / "growth.csv"])) == len(KS)
    assert not (tmp_path / "growth.png").exists()


def test_times_of_a_gpu_in_the_table() -> None:
    times = Times(plain=[1.0, 1.0], ordinary=[2.0, 2.0], kth=[2.0, 2.0], base=[2.0, 2.0])
    rows = growth_rows(BASE, points_of(BASE, ["k"], {"k": [20]}, "cuda"), {timed_as(BASE): times})
    said = table(rows, BASE, absolute=True).splitlines()
    assert said[0].split()[-2:] == ["ms", "images/s"]
    assert said[2].split()[-2:] == ["2000.000", "2"]
    assert "absolute" not in said[-1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--axes colour", "colour"),
        ("--axes", "--axes needs at least one of model, resolution, batch, k"),
        ("--models vgg", "vgg"),
        ("--batch 1", "--batch must be at least 2, not 1"),
        ("--batches 4 1", "--batches must be at least 2, not 1"),
        ("--resolutions 0", "--resolutions must be at least 1, not 0"),
        ("--image-size 0", "--image-size must be at least 1, not 0"),
        ("--ks 0", "--ks must be at least 1, not 0"),
        ("--generator-width 0", "--generator-width must be at least 1, not 0"),
        ("--rounds 1", "--rounds is 1: percentiles need at least 2"),
        ("--mode captured", "execution.mode captured needs a CUDA device"),
        ("--png .", "--png . is a folder: name a file in it"),
    ],
)
def test_wrong_words(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["bench", "growth", "--device", "cpu", *words.split()]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) == 1
