"""A killed evaluation goes on where it was, and comes to the same numbers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hardfast.engine import console, evaluate, evaluate_net, load_model
from hardfast.engine.evaluation import Partial, partial_results
from hardfast.engine.evaluation.attack_stages import AttackPlan
from hardfast.engine.evaluation.partial_results import PartialResult
from hardfast.engine.evaluation.stages import Progress, Stage, run_stages
from hardfast.loaders import Split

from .evaluating import EPS, digits

pytest.importorskip("sklearn")

WORDS = ["--attacks", "fgsm", "pgd-50", "apgd", "--samples", "40", "--batch-size", "5", "--device", "cpu"]


@pytest.fixture(scope="module")
def net(quick_run: Path) -> nn.Module:
    return load_model(quick_run)


def start(run: Path, *words: str) -> subprocess.Popen[str]:
    """A real `hardfast evaluate`."""
    program = "from hardfast.engine.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", program, "evaluate", str(run), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def progress_of(run: Path, attack: str) -> dict[str, Any]:
    """What lies on disk of an attack; empty if nothing does."""
    for path in (run / "evaluations").glob(f"partial-{attack}-*.json"):
        found: dict[str, Any] = json.loads(path.read_text())["progress"]
        return found
    return {}


def killed(run: Path, wanted: Callable[[], bool]) -> None:
    """Starts an evaluation and kills it, `kill -9`, as soon as the disk shows what is wanted."""
    process = start(run, *WORDS)
    deadline = time.monotonic() + 120
    while not wanted():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def test_kill_9_within_two_attacks(quick_run: Path, tmp_path: Path) -> None:
    whole, run = (Path(shutil.copytree(quick_run, tmp_path / name)) for name in ("whole", "run"))
    for folder in (whole, run):
        for path in folder.glob("evaluation*.json*"):
            path.unlink()
        shutil.rmtree(folder / "evaluations", ignore_errors=True)
    one_go = evaluate(whole, attacks=("fgsm", "pgd-50", "apgd"), samples=40, batch_size=5, device="cpu")

    killed(run, lambda: 0 < progress_of(run, "pgd-50").get("done", 0) < 40)
    assert list(json.loads((run / "evaluation.json").read_text())["accuracy"]) == ["fgsm"]
    killed(run, lambda: progress_of(run, "apgd").get("stage") == 1 and progress_of(run, "apgd")["done"] > 0)
    (run / "evaluations/.partial-apgd-x.json.tmp-1").write_text("half of an earlier one, of another evaluation")
    last = start(run, *WORDS)
    said, _ = last.communicate()
    assert last.returncode == 0, said

    assert "fgsm    is done: an evaluation like this one was interrupted" in said
    assert "pgd-50  is done" in said
    assert "apgd    goes on at image" in said
    assert "of apgd-ce" in said
    found = json.loads((run / "evaluation.json").read_text())
    assert found["accuracy"] == one_go["accuracy"]
    assert found["attacks"]["apgd"]["stages"] == one_go["attacks"]["apgd"]["stages"]
    assert 0 < found["accuracy"]["apgd"] < 100
    # Nothing is left of it, and the history has each result once.
    assert not list((run / "evaluations").glob("partial-*"))
    history = [json.loads(line)["attack"] for line in (run / "evaluations.jsonl").read_text().splitlines()]
    assert history == ["fgsm", "pgd-50", "apgd"]


def chained(net: nn.Module) -> tuple[Stage, ...]:
    """Four real attacks as the stages of one, as AutoAttack's are."""
    plan = AttackPlan(net, 10, EPS, None, 0, torch.device("cpu"))
    bar = console.bar(None, "", "passes", quiet=True)
    return tuple(stage for name in ("clean", "fgsm", "pgd-10", "cw") for stage in plan.stages(name, bar))


class Killed(BaseException):
    """Stands for the end of the process."""


def test_resume_after_every_batch_of_every_stage(net: nn.Module, tmp_path: Path) -> None:
    """What is on disk after any batch leads to the same images standing."""
    split, stages, bar = digits(50), chained(net), console.bar(None, "", "passes", quiet=True)
    whole = Progress.begin(len(split))
    saved: list[dict[str, Any]] = []
    run_stages(stages, split, whole, batch_size=12, bar=bar, save=lambda progress: saved.append(progress.to_json()))
    assert 0 < int(whole.standing.sum()) < 48
    assert len(saved) > 13
    for number, values in enumerate(saved):
        file = PartialResult(tmp_path, "chain", {"number": number})
        file.save_now(Progress.from_json(json.loads(json.dumps(values))))
        resumed = file.load(len(split), stages)
        assert resumed is not None
        batches = 0

        def count(progress: Progress) -> None:
            nonlocal batches
            batches += 1

        run_stages(stages, split, resumed, batch_size=12, bar=bar, save=count)
        assert batches == len(saved) - number - 1
        assert torch.equal(resumed.standing, whole.standing)
        assert resumed.accuracy == whole.accuracy
        file.discard()
    assert not tmp_path.exists() or not list(tmp_path.iterdir())


ABOUT = {"model_sha256": "a", "images_sha256": "b"}


@pytest.fixture
def left(net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the progress of an interrupted pgd-10: two of four batches."""
    monkeypatch.setattr(partial_results, "SAVE_SECONDS", 0.0)
    interrupt(net, digits(80), tmp_path, ABOUT)
    assert len(list(tmp_path.glob("partial-pgd-10-*.json"))) == 1
    return tmp_path


def interrupt(net: nn.Module, split: Split, folder: Path, about: dict[str, str], **options: Any) -> None:
    batches = 0

    class Stopping(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            nonlocal batches
            batches += 1
            if batches > 8 + 25:  # the checks, two batches of eleven passes, and three
                raise Killed
            logits: torch.Tensor = net(x)
            return logits

    with pytest.raises(Killed):
        evaluate_net(
            Stopping().eval(),
            split,
            epsilon=EPS,
            attacks=("pgd-10",),
            batch_size=20,
            partial=Partial(folder, about),
            quiet=True,
            **options,
        )


def test_it_is_used(left: Path, net: nn.Module, capsys: pytest.CaptureFixture[str]) -> None:
    """Its two batches are not attacked again: were they doctored, the doctored result would come out."""
    (path,) = left.iterdir()
    content = json.loads(path.read_text())
    assert content["progress"]["done"] == 40
    content["progress"]["standing"] = "0" * 40 + "1" * 40
    content["sha256"] = partial_results._sha256([content["about"], content["progress"]])
    path.write_text(json.dumps(content))
    found = evaluate_net(net, digits(80), epsilon=EPS, attacks=("pgd-10",), batch_size=20, partial=Partial(left, ABOUT))
    alone = evaluate_net(net, digits(80), epsilon=EPS, attacks=("pgd-10",), batch_size=20, quiet=True)
    assert found.accuracy["pgd-10"] <= 50 < alone.accuracy["pgd-10"]
    assert "pgd-10  goes on at image 40 of 80" in capsys.readouterr().out
    assert not left.exists()


def flip(text: str) -> str:
    """One bit of the images that stand."""
    start = text.index('"standing": "') + len('"standing": "')
    return text[:start] + ("1" if text[start] == "0" else "0") + text[start + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[]",
        lambda text: '{"about": 1}',
        flip,
        lambda text: text.replace('"done": 40', '"done": 60'),
        lambda text: text.replace('"a"', '"c"'),
    ],
)
def test_a_damaged_one_is_ignored(
    damage: Callable[[str], str], left: Path, net: nn.Module, capsys: pytest.CaptureFixture[str]
) -> None:
    (path,) = left.iterdir()
    changed = damage(path.read_text())
    assert changed != path.read_text()
    path.write_text(changed)
    options: dict[str, Any] = {"epsilon": EPS, "attacks": ("pgd-10",), "batch_size": 20}
    found = evaluate_net(net, digits(80), partial=Partial(left, ABOUT), **options)
    said = capsys.readouterr().out
    assert said.count("is damaged: not used, pgd-10 begins anew") == 1
    assert found.accuracy == evaluate_net(net, digits(80), quiet=True, **options).accuracy
    assert not left.exists()


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"epsilon": EPS / 2}, 'epsilon "8/85", here "4/85"'),
        ({"seed": 1}, "seed 0, here 1"),
        ({"step": EPS / 8}, 'alpha "2/85", here "1/85"'),
        ({"batch_size": 16}, "batch_size 20, here 16"),
        ({"split": digits(60)}, "samples 80, here 60"),
        ({"about": {**ABOUT, "model_sha256": "other"}}, 'model_sha256 "a", here "other"'),
        ({"about": {**ABOUT, "images_sha256": "other"}}, 'images_sha256 "b", here "other"'),
    ],
)
def test_one_of_another_evaluation_is_left_alone(
    change: dict[str, Any], difference: str, left: Path, net: nn.Module, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name: path.read_bytes() for path in left.iterdir()}
    options: dict[str, Any] = {"epsilon": EPS, "attacks": ("pgd-10",), "batch_size": 20, "about": ABOUT}
    options |= {"split": digits(80)} | change
    about, split = options.pop("about"), options.pop("split")
    found = evaluate_net(net, split, partial=Partial(left, about), **options)
    said = capsys.readouterr().out
    assert f"is of another evaluation (its {difference}): not used" in said
    assert "goes on" not in said
    assert found.accuracy == evaluate_net(net, split, quiet=True, **options).accuracy
    assert {path.name: path.read_bytes() for path in left.iterdir()} == before  # it may still be gone on with


def test_writes_are_rare(net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fast attack is not slowed by its own log: one write at its end, however many batches."""
    writes = 0

    def counted(path: Path, text: str) -> None:
        nonlocal writes
        writes += 1

    monkeypatch.setattr(partial_results, "write_whole", counted)
    monkeypatch.setattr(partial_results, "SAVE_SECONDS", 60.0)
    evaluate_net(
        net,
        digits(40),
        epsilon=EPS,
        attacks=("clean", "fgsm"),
        batch_size=5,
        partial=Partial(tmp_path / "evaluations", ABOUT),
        quiet=True,
    )
    assert writes == 2
