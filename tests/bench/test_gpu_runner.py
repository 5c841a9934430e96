"""`make gpu` on a CPU: tiny parts, and parts that crash, hang or cannot run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hardfast.bench.gpu import (
    FAILED,
    OK,
    PARTS,
    SKIPPED,
    WORKLOADS,
    Job,
    Skipped,
    chosen,
    main,
    picture,
    run_apart,
    run_tests,
    slug,
    workload,
)
from hardfast.bench.variants import Workload
from hardfast.engine.errors import UsageError

ROOT = Path(__file__).parent.parent.parent
PART = "loaders-resnet18-128x32"


def run(folder: Path, *words: str) -> int:
    """Tiny parts on the CPU, with all they write in one folder."""
    places = ["--results", str(folder / "results"), "--logs", str(folder / "logs")]
    return main([*words, "--device", "cpu", "--quick", *places])


@pytest.fixture(autouse=True)
def without_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling would take most of the time."""
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))


def test_a_part_fails_and_the_next_one_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocked = tmp_path / "results/cpu/kernels.csv"
    blocked.mkdir(parents=True)
    assert run(tmp_path, "--parts", "kernels", PART) == 1
    assert (tmp_path / "results/cpu/loaders-resnet18-128x32.csv").read_text().startswith("loader,")
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"kernels, {PART} on cpu: ")
    assert said[1] == f"kernels: begins, log in {tmp_path}/logs/kernels.log"
    reason = f"failed (exit code 1): --csv {blocked} is a folder: name a file in it"
    assert said[2].startswith(f"kernels: {reason}, ")
    assert said[3] == f"  | --csv {blocked} is a folder: name a file in it"
    assert said[4] == f"{PART}: begins, log in {tmp_path}/logs/{PART}.log"
    assert said[5].startswith(f"{PART}: ok, ")
    header, kernels, loaders = said[-3:]
    assert header.split() == ["part", "s", "result", "files"]
    assert (kernels.split()[0], reason in kernels) == ("kernels", True)
    assert (loaders.split()[2:]) == ["ok", "loaders-resnet18-128x32.csv"]
    assert "batch / step" in (tmp_path / f"logs/{PART}.log").read_text()


def test_a_part_over_its_limit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "--parts", "kernels", "--limit", "0.1") == 1
    assert "kernels: over the limit of 0.1 s" in capsys.readouterr().out
    assert not list((tmp_path / "results").rglob("*.csv"))


def alive(pid: Path) -> bool:
    """Whether the process whose number is in a file does more than to wait for its end to be noticed."""
    status = Path("/proc", pid.read_text().strip(), "status")
    return status.exists() and "State:\tZ" not in status.read_text()


def test_nothing_is_left_of_a_part_that_hangs(tmp_path: Path) -> None:
    command = ["/bin/sh", "-c", f"/bin/sleep 600 & echo $! > {tmp_path}/pid; echo waiting; wait"]
    outcome = run_apart("hangs", command, results=tmp_path, log=tmp_path / "log", limit=2)
    assert (outcome.code, outcome.result) == (FAILED, "over the limit of 2 s")
    assert (tmp_path / "log").read_text() == "waiting\n"
    assert not alive(tmp_path / "pid")


def test_nothing_is_left_of_a_runner_that_is_told_to_end(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    source = "import os, pathlib, time; pathlib.Path('part').write_text(f'{os.getpid()} '); time.sleep(600)"
    (tmp_path / "tests/test_it.py").write_text(source)
    words = ["--parts", "tests", "--device", "cpu", "--quick"]
    runner = subprocess.Popen([sys.executable, "-m", "hardfast.bench.gpu", *words], cwd=tmp_path)
    while not ((tmp_path / "part").exists() and (tmp_path / "part").read_text().endswith(" ")):
        assert runner.poll() is None
        time.sleep(0.1)
    runner.terminate()
    assert runner.wait() == 128 + signal.SIGTERM
    assert not alive(tmp_path / "part")


@pytest.mark.parametrize(
    ("program", "code", "result"),
    [
        ("print('all is well')", OK, "ok"),
        (
            "print('skipped: a net: torchvision is not installed')",
            OK,
            "ok; skipped: a net: torchvision is not installed",
        ),
        ("print('skipped: no pytest'); raise SystemExit(77)", SKIPPED, "skipped: no pytest"),
        (
            "import os; raise SystemExit('interpreter ' + os.environ['TRITON_INTERPRET'])",
            FAILED,
            "failed (exit code 1): interpreter 0",
        ),
        ("raise SystemExit(3)", FAILED, "failed (exit code 3): it said nothing"),
        ("raise OSError('the disk is full')", FAILED, "failed (exit code 1): OSError: the disk is full"),
        ("import os; print('so far', flush=True); os.abort()", FAILED, "failed (SIGABRT): so far"),
    ],
)
def test_what_becomes_of_a_part(
    program: str, code: int, result: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "results").mkdir()
    for name in ("old", "replaced"):
        (tmp_path / "results" / name).touch()
    os.utime(tmp_path / "results/replaced", (0, 0))
    writes = "import pathlib; [pathlib.Path('results', n).write_text('x') for n in ('new', 'replaced')];"
    monkeypatch.chdir(tmp_path)
    command = [sys.executable, "-c", writes + program]
    outcome = run_apart("part", command, results=Path("results"), log=Path("log"), limit=60)
    assert (outcome.part, outcome.code, outcome.result) == ("part", code, result)
    assert outcome.files == ["new", "replaced"]


def test_names_of_several_parts() -> None:
    assert chosen([]) == list(PARTS)
    assert chosen(["kernels", "tests"]) == ["tests", "kernels"]
    assert chosen(["step", "tests"]) == ["tests", *(f"step-{name}" for name in WORKLOADS)]
    assert chosen(["step-resnet18"]) == [f"step-resnet18-{shape}" for shape in ("128x32", "512x32", "1024x32")]
    for word in ("st", "step-", "resnet18", ""):
        with pytest.raises(UsageError, match=f"^'{word}' is not a part"):
            chosen([word])


def test_missing_packages_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert picture(tmp_path / "growth.png") == tmp_path / "growth.png"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.chdir(ROOT)
    job = Job(device="cpu", quick=False, results=tmp_path, logs=tmp_path)
    with pytest.raises(Skipped, match=r"^pytest is not installed$"):
        run_tests(job)
    assert picture(tmp_path / "growth.png") is None
    assert capsys.readouterr().out == "skipped: growth.png: matplotlib is not installed\n"
    with pytest.raises(Skipped, match=r"^torchvision is not installed$"):
        workload("resnet50-128x224", job)
    assert workload("preact_resnet18-512x64", job) == Workload(model="preact_resnet18", batch=512, image_size=64)


@pytest.mark.parametrize(
    ("source", "code", "result"),
    [
        (None, 0, "skipped: no folder tests here"),
        ("import pytest\n@pytest.mark.gpu\ndef test_it(): pass", 0, "ok"),
        ("import nothing_of_this_name", 1, "failed (exit code 1)"),
    ],
)
def test_the_part_of_the_tests(
    source: str | None,
    code: int,
    result: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    if source is not None:
        (tmp_path / "tests").mkdir()
        (tmp_path / "tests/test_it.py").write_text(source)
    assert run(tmp_path, "--parts", "tests") == code
    assert f"tests: {result}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--parts", "kernels", "kernel"], "'kernel' is not a part: choose from tests, kernels, "),
        (["--device", "cpu", "--parts", "kernels"], "--device cpu needs --quick"),
        (["--limit", "0"], "--limit must be a positive number of seconds, not 0"),
        ([], "no CUDA device found: "),
    ],
)
def test_wrong_use(
    words: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert main(words) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert (len(said.err.splitlines()), said.out) == (1, "")


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("NVIDIA H100 80GB HBM3", "h100-80gb-hbm3"),
        ("NVIDIA A100-SXM4-40GB", "a100-sxm4-40gb"),
        ("Tesla V100-SXM2-16GB", "tesla-v100-sxm2-16gb"),
        ("cpu", "cpu"),
    ],
)
def test_slug(name: str, folder: str) -> None:
    assert slug(name) == folder


def test_importing_it_leaves_the_gpu_alone() -> None:
    program = "import hardfast.bench.gpu, torch; print(torch.cuda.is_initialized())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.slow
def test_every_part_from_the_source_tree(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert run(tmp_path) == 0
    table = capsys.readouterr().out.splitlines()[-len(PARTS) :]
    assert [line.split()[0] for line in table] == list(PARTS)
