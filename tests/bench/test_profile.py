"""`hardfast profile`: what is counted, by hand, and what is written; of the times only that they add up."""

from __future__ import annotations

import csv
import importlib.util
import json
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hardfast.bench import phase_timers, profile
from hardfast.bench.ledger import STEP, Entry
from hardfast.bench.phase_timers import OTHER, EventTimer, WallTimer
from hardfast.bench.profile import count_calls, kinds_of, measure, profile_step
from hardfast.bench.profile_plot import picture
from hardfast.bench.roofline import Call, CallCounter, Machine
from hardfast.engine import recipes
from hardfast.engine.execution import ExecutionOptions, Mode
from hardfast.engine.methods import (
    FgsmRsOptions,
    FgsmSdiOptions,
    MethodOptions,
    PgdAtOptions,
    StandardOptions,
)
from hardfast.engine.phases import observed_by, phase
from hardfast.engine.recipes import Recipe
from hardfast.engine.run import Run
from hardfast.kernels import pixel_bounds, signed_step
from hardfast.loaders import DataOptions, open_dataset
from hardfast.loaders.synthetic import SyntheticShape

CPU = torch.device("cpu")
BATCH, SIDE, K, WIDTH = 4, 8, 5, 4
MACHINE = Machine(flops=1e9, bandwidth=1e9)
SDI = FgsmSdiOptions(k=K, generator_width=WIDTH)
SDI_PHASES = ["data", "clean gradient", "generator", "generator update", "adversarial gradient", "update", OTHER]


@pytest.fixture(autouse=True)
def known_machine(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Measuring one takes longer than all else here."""
    if "gpu" not in request.keywords:
        monkeypatch.setattr(profile, "measure_machine", lambda execution: MACHINE)


def small(method: MethodOptions = SDI, mode: Mode = "eager") -> Recipe:
    shape = SyntheticShape(train_images=4 * BATCH + 1, test_images=1)
    return replace(
        recipes.get("digits"),
        batch_size=BATCH,
        crop_padding=0,
        method=method,
        data=DataOptions(name="synthetic", image_size=SIDE, heldout=1, synthetic=shape),
        execution=ExecutionOptions(mode=mode),
    )


def of_kind(entries: list[Entry], kind: str) -> dict[str, Entry]:
    return {entry.phase: entry for entry in entries if entry.kind == kind}


def operations(net: nn.Module, channels: int) -> list[int]:
    """Of every convolution and linear layer in a forward pass, by hand: two for each product."""
    found = []

    def note(module: nn.Module, _: Any, out: torch.Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            inner = module.in_channels * module.kernel_size[0] * module.kernel_size[1]
            found.append(2 * out.numel() * inner)
        elif isinstance(module, nn.Linear):
            found.append(2 * out.numel() * module.in_features)

    for module in net.modules():
        module.register_forward_hook(note)
    net(torch.zeros(BATCH, channels, SIDE, SIDE))
    return found


@pytest.mark.parametrize(
    ("method", "phases"),
    [
        (SDI, SDI_PHASES),
        (StandardOptions(), ["data", "update", OTHER]),
        (FgsmRsOptions(), ["data", "adversarial gradient", "update", OTHER]),
    ],
)
def test_phases_add_up_to_the_step(method: MethodOptions, phases: list[str]) -> None:
    found = measure(small(method), CPU, steps=3)
    kinds = {kind.name for kind in found.kinds}
    assert kinds == ({"ordinary", "k-th"} if method is SDI else {"ordinary"})
    for kind in ("average", *kinds):
        entries = of_kind(found.entries, kind)
        without_update = [name for name in phases if name != "generator update" or kind != "ordinary"]
        assert list(entries) == [*without_update, STEP]
        parts = [entry for name, entry in entries.items() if name != STEP]
        for place, whole in enumerate(entries[STEP].rounds):
            assert whole == pytest.approx(sum(entry.rounds[place] for entry in parts))
        assert all(len(entry.rounds) == 3 and min(entry.rounds) >= 0 for entry in parts)
        assert sum(entry.share for entry in parts) == pytest.approx(1)
        assert entries[STEP].share == pytest.approx(1)
        for name in ("units", "flops", "bytes", "floor"):
            assert getattr(entries[STEP], name) == pytest.approx(sum(getattr(entry, name) for entry in parts))


def test_the_average_step_weighs_the_generators_update_1_to_k_minus_1() -> None:
    found = measure(small(), CPU, steps=2)
    average, ordinary, kth = (of_kind(found.entries, kind) for kind in ("average", "ordinary", "k-th"))
    assert [kind.weight for kind in found.kinds] == pytest.approx([1 - 1 / K, 1 / K])
    for name in ("units", "flops", "bytes", "floor"):
        mean = ((K - 1) * getattr(ordinary[STEP], name) + getattr(kth[STEP], name)) / K
        assert getattr(average[STEP], name) == pytest.approx(mean)
    rounds = zip(average[STEP].rounds, ordinary[STEP].rounds, kth[STEP].rounds, strict=True)
    assert all(a == pytest.approx(((K - 1) * o + k) / K) for a, o, k in rounds)
    update = zip(average["generator update"].rounds, kth["generator update"].rounds, strict=True)
    assert all(a == pytest.approx(k / K) for a, k in update)


def test_units() -> None:
    """2 + 2 + 3 and the generator, every layer counted by hand."""
    recipe = small()
    run = Run(recipe, open_dataset(recipe.data), CPU)
    layers, generator = operations(run.net, 3), operations(run.method.nets()["generator"], 6)
    forward, stem = sum(layers), layers[0]
    g = sum(generator) / forward
    found = measure(recipe, CPU, steps=2)
    kth = {name: entry.units for name, entry in of_kind(found.entries, "k-th").items()}
    # The gradient of what the first convolution reads is computed where images are attacked and nowhere else.
    update = 3 - stem / forward
    wanted = {
        "clean gradient": 2,
        "generator": g,
        "generator update": 4 + 3 * g - generator[0] / forward,
        "adversarial gradient": 2,
        "update": update,
    }
    assert 0 < stem / forward < 0.1
    for name, units in wanted.items():
        assert kth[name] == pytest.approx(units), name
    assert kth["data"] == kth[OTHER] == 0
    ordinary = {name: entry.units for name, entry in of_kind(found.entries, "ordinary").items()}
    assert ordinary[STEP] == pytest.approx(4 + g + update)


@pytest.mark.parametrize(("method", "attack"), [(StandardOptions(), 0), (FgsmRsOptions(), 2), (PgdAtOptions(), 20)])
def test_units_of_other_methods(method: MethodOptions, attack: int) -> None:
    entries = of_kind(measure(small(method), CPU, steps=2).entries, "average")
    assert entries[STEP].units - entries["update"].units == pytest.approx(attack)
    assert 2.9 < entries["update"].units < 3


@pytest.mark.parametrize("mask", [(True, False), (False, True), (True, True)])
def test_a_convolution_by_hand(mask: tuple[bool, bool]) -> None:
    """Operations and bytes of a forward, and of a backward pass with each mask."""
    x = torch.randn(2, 3, 5, 5, requires_grad=mask[0])
    weight = torch.randn(7, 3, 3, 3, requires_grad=mask[1])
    with CallCounter() as counter:
        F.conv2d(x, weight, stride=2, padding=1).sum().backward()
    out, x_size, weight_size = 2 * 7 * 3 * 3, 2 * 3 * 5 * 5, 7 * 3 * 3 * 3
    products = 2 * out * 3 * 3 * 3
    gradients = mask[0] * (weight_size + x_size) + mask[1] * (x_size + weight_size)
    assert counter.calls == {
        None: [Call(products, 4 * (x_size + weight_size + out)), Call(sum(mask) * products, 4 * (out + gradients))]
    }


def test_a_matrix_product_in_half_precision_by_hand() -> None:
    a, b = torch.ones(3, 5, dtype=torch.bfloat16), torch.ones(5, 7, dtype=torch.bfloat16)
    with CallCounter() as counter:
        torch.relu(a @ b)
    assert counter.calls == {None: [Call(2 * 3 * 5 * 7, 2 * (15 + 35 + 21))]}


def test_our_kernels_by_hand() -> None:
    pixels = BATCH * 3 * SIDE * SIDE
    x, bounds = torch.zeros(BATCH, 3, SIDE, SIDE, dtype=torch.uint8), pixel_bounds(Fraction(8, 255), box=False)
    eta = torch.zeros(x.shape)
    with CallCounter() as counter, observed_by(counter), phase("adversarial gradient"):
        signed_step(x, eta, eta + 1, alpha=Fraction(8, 255), bounds=bounds, keep_delta=False)
    # x, eta, gradient and x_adv; and the table of the bounds.
    assert counter.calls == {"adversarial gradient": [Call(0, 13 * pixels + 4 * bounds.table.numel())]}


def test_the_loader_reads_a_batch_and_not_the_whole_set() -> None:
    recipe = small()
    calls, _ = count_calls(recipe, open_dataset(recipe.data), CPU, kinds_of(recipe))
    (augmented,) = calls["ordinary"]["data"]
    batch = BATCH * 3 * SIDE * SIDE
    assert augmented == Call(0, 2 * batch + 8 * BATCH + 8 * 3)  # and the indices and the key


def test_the_floor_takes_the_longer_time_of_every_call() -> None:
    machine = Machine(flops=100, bandwidth=10)
    assert machine.floor([Call(flops=200, bytes=1), Call(flops=1, bytes=30), Call(flops=0, bytes=5)]) == 2 + 3 + 0.5


def test_a_phase_in_two_stretches_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 3.0, 10.0, 14.0, 20.0, 21.0, 30.0])
    monkeypatch.setattr(phase_timers.time, "perf_counter", lambda: next(clock))
    timer = WallTimer()

    def step() -> None:
        for name in ("generator", "generator update", "generator"):
            with phase(name):  # type: ignore[arg-type]
                pass

    with observed_by(timer):
        seconds = timer.timed(step, "any")
    assert seconds == {"generator": 2 + 1, "generator update": 4, OTHER: 23}


class FakeCuda:
    """Events of a GPU whose time is counted by hand, and one graph."""

    def __init__(self) -> None:
        self.now, self.capturing = 0.0, False
        self.nodes: list[Any] = []  # events, and milliseconds of work

    def work(self, milliseconds: float) -> None:
        if self.capturing:
            self.nodes.append(milliseconds)
        else:
            self.now += milliseconds

    def replay(self) -> None:
        for node in self.nodes:
            if isinstance(node, float):
                self.now += node
            else:
                node.at = self.now

    def event(self, *, enable_timing: bool, external: bool = False) -> Any:
        assert enable_timing
        gpu = self

        class Event:
            at: float | None = None

            def record(self) -> None:
                assert external == gpu.capturing
                if gpu.capturing:
                    gpu.nodes.append(self)
                else:
                    self.at = gpu.now

            def elapsed_time(self, other: Any) -> float:
                return other.at - self.at

            def synchronize(self) -> None:
                pass

        return Event()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    monkeypatch.setattr(torch.cuda, "Event", fake.event)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: fake.capturing)
    return fake


def phases_of_a_step(gpu: FakeCuda, scale: float = 1.0) -> None:
    for name, milliseconds in (("generator", 3.0), ("generator update", 20.0), ("generator", 5.0)):
        with phase(name):  # type: ignore[arg-type]
            gpu.work(scale * milliseconds)
        gpu.work(1.0)


def test_events_of_a_step_that_is_executed_at_once(gpu: FakeCuda) -> None:
    """Of its second call, which the first keeps the GPU busy for."""
    timer, scales = EventTimer(), iter([10.0, 1.0, 10.0, 2.0])
    with observed_by(timer):
        phases_of_a_step(gpu)  # a warm-up, which does not count
        timer.captured("ordinary")
        found = [timer.timed(lambda: phases_of_a_step(gpu, next(scales)), "ordinary") for _ in range(2)]
    assert found[0] == pytest.approx({"generator": 0.008, "generator update": 0.020, OTHER: 0.003})
    assert found[1] == pytest.approx({"generator": 0.016, "generator update": 0.040, OTHER: 0.003})


def test_events_of_a_graph_are_read_after_its_replay(gpu: FakeCuda) -> None:
    timer = EventTimer()
    with observed_by(timer):
        phases_of_a_step(gpu)
        gpu.capturing = True
        phases_of_a_step(gpu)
        gpu.capturing = False
        timer.captured("k-th")
        gpu.now = 1000.0

        def step() -> None:
            with phase("data"):
                gpu.work(2.0)
            gpu.replay()

        found = timer.timed(step, "k-th")
        other = timer.timed(lambda: gpu.work(7.0), "ordinary")
    wanted = {"data": 0.002, "generator": 0.008, "generator update": 0.020, OTHER: 0.003}
    assert found == pytest.approx(wanted)
    assert other == pytest.approx({OTHER: 0.007})


def test_an_old_torch_profiles_compiled_steps(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def event(*, enable_timing: bool) -> None:
        pass

    cuda = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "Event", event)
    assert profile._timeable(small(), cuda) == small()
    assert capsys.readouterr().out == ""
    assert profile._timeable(small(mode="auto"), cuda) == small(mode="compiled")
    assert "compiled steps instead" in capsys.readouterr().out
    monkeypatch.setattr(torch.cuda, "Event", lambda enable_timing, external: None)
    assert profile._timeable(small(mode="auto"), cuda) == small(mode="auto")


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["captured", "captured-eager", "compiled", "eager"])
def test_on_a_gpu(mode: Mode, tmp_path: Path) -> None:
    """Every phase takes time, in graphs as well, and what is counted is what a CPU counts."""
    found = measure(small(mode=mode), torch.device("cuda"), steps=5, trace=tmp_path / "trace.json")
    assert found.run.execution.mode == mode
    on_cpu = measure(small(), CPU, steps=2)
    assert [(e.kind, e.phase, e.flops, e.bytes) for e in found.entries] == [
        (e.kind, e.phase, e.flops, e.bytes) for e in on_cpu.entries
    ]
    for entry in found.entries:
        assert len(entry.rounds) == 5
        assert min(entry.rounds) > 0, (entry.kind, entry.phase)
    average, whole = of_kind(found.entries, "average"), {kind.name: 0.0 for kind in found.kinds}
    assert sum(entry.share for name, entry in average.items() if name != STEP) == pytest.approx(1)
    assert whole.keys() == {"ordinary", "k-th"}
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]


@pytest.mark.gpu
def test_events_in_a_real_graph() -> None:
    """The longer of two sleeps is the longer phase, in each of two replays."""
    timer, graph = EventTimer(), torch.cuda.CUDAGraph()
    with observed_by(timer), torch.cuda.graph(graph):
        with phase("clean gradient"):
            torch.cuda._sleep(1_000_000)
        with phase("update"):
            torch.cuda._sleep(4_000_000)
    timer.captured("step")
    found = [timer.timed(graph.replay, "step") for _ in range(2)]
    for seconds in found:
        assert 2 * seconds["clean gradient"] < seconds["update"]
        assert seconds[OTHER] < seconds["clean gradient"]


def test_work_is_charged_to_the_phase_that_it_is_in() -> None:
    a = torch.ones(3, 3)
    with CallCounter() as counter, observed_by(counter):
        with phase("update"):
            a @ a
        a @ a
        with phase("clean gradient"), phase("update"):  # a phase inside another one is part of it
            a @ a
    product = Call(2 * 27, 4 * 27)
    assert counter.calls == {"update": [product], None: [product], "clean gradient": [product]}


def words(*more: str) -> list[str]:
    return [
        *("profile", "digits", "--device", "cpu", "--batch-size", "4", "--crop-padding", "0", "--steps", "2"),
        *("--data.image-size", "8", "--method.k", "3", "--method.generator-width", "4", *more),
    ]


@pytest.fixture
def run_command() -> Callable[[list[str]], int]:
    pytest.importorskip("tyro")
    from hardfast.engine import cli

    return cli.run


def test_rows_and_table(
    tmp_path: Path, run_command: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str]
) -> None:
    paths = tmp_path / "new/profile.csv", tmp_path / "profile.json"
    assert run_command(words("--csv", str(paths[0]), "--json", str(paths[1]))) == 0
    rows = json.loads(paths[1].read_text())
    ordinary = [name for name in SDI_PHASES if name != "generator update"]
    of_kinds = {"average": SDI_PHASES, "ordinary": ordinary, "k-th": SDI_PHASES}
    wanted = [(kind, name) for kind, names in of_kinds.items() for name in (*names, STEP)]
    assert [(row["kind"], row["phase"]) for row in rows] == wanted
    for row in rows:
        assert (row["recipe"], row["method"], row["model"], row["batch"]) == ("digits", "fgsm-sdi", "resnet8", 4)
        assert (row["image_size"], row["precision"], row["mode"], row["rounds"]) == (8, "fp32", "eager", 2)
        assert row["p20_ms"] <= row["median_ms"] <= row["p80_ms"]
        assert (row["peak_tflops"], row["bandwidth_gbs"]) == (MACHINE.flops / 1e12, MACHINE.bandwidth / 1e9)
        assert (row["gflop"] > 0) == (row["phase"] not in ("data", OTHER))
        assert (row["floor_ms"] > 0) == (row["gbyte"] > 0) == (row["phase"] != OTHER)
        assert row["device"].startswith("cpu ")
        assert {"date", "git", "threads", "driver", "triton", "cuda", "cudnn"} < set(row)
    with paths[0].open() as file:
        assert list(csv.DictReader(file)) == [
            {key: "" if value is None else str(value) for key, value in row.items()} for row in rows
        ]
    said = capsys.readouterr().out
    table = said[said.index("phase ") :].splitlines()
    assert [line.partition("  ")[0] for line in table[2:-1]] == [*SDI_PHASES, STEP]
    assert table[-1].startswith("steps: ordinary ")
    assert "floors: 0.001 TFLOP/s in a large matrix product, 1 GB/s" in said


def test_another_method(run_command: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str]) -> None:
    line = ["profile", "digits", "--device", "cpu", "--batch-size", "4", "--crop-padding", "0", "--steps", "2"]
    assert run_command([*line, "--data.image-size", "8", "--method", "pgd-at", "--method.steps", "2"]) == 0
    said = capsys.readouterr().out
    assert "digits: pgd-at, resnet8, batch 4 at 8x8" in said
    assert "generator" not in said
    assert "steps: " not in said


def test_the_trace_names_the_phases(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    measure(small(), CPU, steps=2, trace=path)
    events = json.loads(path.read_text())["traceEvents"]
    named = [event["name"] for event in events if event.get("name", "").startswith("hardfast: ")]
    assert set(named) == {f"hardfast: {name}" for name in SDI_PHASES if name != OTHER}
    assert named.count("hardfast: update") == 2 * profile.TRACED
    assert named.count("hardfast: generator update") == profile.TRACED


def test_the_picture(tmp_path: Path) -> None:
    """The bars are the average step's medians; only a phase that has a floor shows one."""
    pytest.importorskip("matplotlib")
    path = tmp_path / "profile.png"
    profile_step(small(), device="cpu", steps=2, png=path)
    assert path.read_bytes().startswith(b"\x89PNG")
    entries = measure(small(), CPU, steps=2).entries
    (axes,) = picture(entries, "title").axes
    shown = [entry for entry in of_kind(entries, "average").values() if entry.phase != STEP]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([1000 * e.seconds.median for e in shown])
    (lines,) = axes.collections
    floors = [(1000 * entry.floor, place) for place, entry in enumerate(shown) if entry.phase != OTHER]
    assert [segment.mean(axis=0).tolist() for segment in lines.get_segments()] == [
        pytest.approx(list(floor)) for floor in floors
    ]
    assert [label.get_text().partition(" (")[0] for label in axes.get_yticklabels()] == SDI_PHASES
    assert axes.yaxis_inverted()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--steps", "1"], "--steps is 1: percentiles need at least 2"),
        (["--device", "tpu"], "device 'tpu' is not a device"),
        (["--execution.mode", "captured"], "execution.mode captured needs a CUDA device"),
        (["--method", "pgd"], "pgd"),
        (["--csv", "{folder}"], "--csv {folder} is a folder: name a file in it"),
        (["--trace", "{folder}/file/trace.json"], "--trace {folder}/file/trace.json cannot be written"),
        (["--rounds", "3"], "has no option '--rounds'"),
    ],
)
def test_wrong_words(
    more: list[str],
    message: str,
    tmp_path: Path,
    run_command: Callable[[list[str]], int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").touch()
    assert run_command(["profile", "digits", *(word.format(folder=tmp_path) for word in more)]) == 2
    said = capsys.readouterr()
    assert message.format(folder=tmp_path) in said.err
    assert len(said.err.splitlines()) == 1


def test_a_picture_without_matplotlib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_command: Callable[[list[str]], int], capsys: Any
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name))
    assert run_command(["profile", "digits", "--png", str(tmp_path / "profile.png")]) == 2
    assert "--png needs matplotlib, which is not installed: pip install matplotlib" in capsys.readouterr().err
