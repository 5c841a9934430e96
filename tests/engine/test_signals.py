"""Real signals to real processes: the first one ends the work in order with exit code 75, the second one at once."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from hardfast.engine import Recipe, evaluate, train, trainer
from hardfast.engine.errors import Stopped
from hardfast.engine.run_folder import RunFolder
from hardfast.engine.signals import SIGNALS, StopRequest, broken_off

from ..night import figure, tries
from .processes import (
    Executed,
    Start,
    finished,
    forked,
    half_written,
    kill_started,
    newest_step,
    resumption,
    send,
    state_hash,
    wait_until,
)

pytest.importorskip("tyro")
pytest.importorskip("sklearn")

EPOCH, STEPS = 20, 40
TRIES = 16  # at a moment that a process may have left before the signal comes
AREA = "SIGTERM, SIGINT at random times, twice during a save"


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    yield
    kill_started()


def words(out: Path, *more: str, minutes: int = 0) -> list[str]:
    """Two epochs of 20 steps, saved after every step or, with 10 minutes, at the ends of epochs."""
    return [
        "train", "digits", "--out", str(out), "--epochs", "2", "--data.image-size", "8", "--batch-size", "64",
        "--save-minutes", str(minutes), "--no-evaluate", "--device", "cpu", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The hash of a run that nothing stops."""
    out = tmp_path_factory.mktemp("straight") / "run"
    finished(forked(words(out), out.with_suffix(".txt")))
    return state_hash(out)


def campaign(first: int) -> list[tuple[signal.Signals, int]]:
    """The signals in turn, each with a number of its own: 3 by day, 30 by night."""
    return [(SIGNALS[number % len(SIGNALS)], number) for number in range(first, first + tries(3, 30))]


@pytest.mark.parametrize(("number", "seed"), campaign(0))
def test_the_first_signal_finishes_the_step_and_saves(
    number: signal.Signals, seed: int, straight: str, tmp_path: Path
) -> None:
    draw, minutes = random.Random(seed), 10 * (seed % 2)
    start: Start = Executed if seed == 0 else forked  # the whole way once: imports take seconds
    for again in range(TRIES):
        out = tmp_path / f"run-{again}"
        process = start(words(out, minutes=minutes), tmp_path / "said.txt")
        # In every second case nothing is saved in mid-epoch but by the stop.
        wanted = draw.choice((0, EPOCH)) if minutes else draw.randint(1, STEPS - 20)
        assert wait_until(lambda: newest_step(out) >= wanted and (out / "environment.json").is_file(), process)  # noqa: B023
        time.sleep(draw.uniform(0, 0.2 if minutes else 0.05))
        send(process, number)
        code = process.wait()
        assert code in (0, 75), process.output.read_text()
        if code == 75 and (newest_step(out) % EPOCH or not minutes):
            break
    said = finished(process, 75)
    assert newest_step(out) % EPOCH or not minutes, "no stop has saved in mid-epoch"
    assert f"hardfast: {number.name}: finishing this step and saving" in said
    assert "the same command resumes" in said
    assert not half_written(out)
    stopped = RunFolder(out).checkpoint("last").record.at.total
    assert 0 < stopped < STEPS
    assert state_hash_differs(out, straight)
    resumed = finished(forked(words(out), tmp_path / "said.txt"))
    assert resumption(stopped, EPOCH) in resumed
    same = state_hash(out) == straight
    figure(AREA, tried=1, held=int(same), fired=1)
    assert same


def state_hash_differs(out: Path, straight: str) -> bool:
    """Whether a run is not yet what it ends as; its log may not be there yet."""
    (out / "log.jsonl").touch()
    return state_hash(out) != straight


@pytest.mark.parametrize(("number", "seed"), campaign(100))
def test_a_second_signal_during_a_save_leaves_at_once(
    number: signal.Signals, seed: int, straight: str, tmp_path: Path
) -> None:
    draw, fired = random.Random(seed), False
    for again in range(TRIES):  # until the second one comes before the save, and with it the process, has ended
        out = tmp_path / f"run-{again}"
        process = forked(words(out), tmp_path / "said.txt")
        wanted = draw.randint(1, STEPS - 20)
        assert wait_until(lambda: newest_step(out) >= wanted, process)  # noqa: B023
        assert wait_until(lambda: bool(half_written(out)), process, pause=0)  # noqa: B023
        send(process, number)
        assert wait_until(lambda: number.name in process.output.read_text(), process, pause=0)  # noqa: B023
        second = SIGNALS[draw.randrange(len(SIGNALS))]
        send(process, second)
        code = process.wait()
        assert code in (-second, 75)
        stopped = RunFolder(out).checkpoint("last").record.at.total
        assert wanted <= stopped < STEPS
        fired = code == -second and bool(half_written(out))
        if fired:
            break
    assert fired, "no second signal came during a save"
    assert resumption(stopped, EPOCH) in finished(forked(words(out), tmp_path / "said.txt"))
    same = state_hash(out) == straight
    figure(AREA, tried=1, held=int(same), fired=1)
    assert same
    assert not half_written(out)


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("phase", ["open_dataset", "prepare", "held_out_accuracy"])
def test_a_signal_outside_of_the_steps(
    phase: str, number: signal.Signals, quick_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the data are read, before the first step, in the held-out check: the call returns, stopped and saved."""
    before, sent = getattr(trainer, phase), []
    handlers = [signal.getsignal(each) for each in SIGNALS]

    def interrupted(*arguments: object, **options: object) -> object:
        found = before(*arguments, **options)
        if not sent:
            sent.append(phase)
            os.kill(os.getpid(), number)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(trainer, phase, interrupted)
        outcome = train(quick_recipe, tmp_path / "run")
    assert sent
    assert outcome.stopped
    assert not outcome.finished
    assert outcome.trained == (phase == "held_out_accuracy")
    assert [signal.getsignal(each) for each in SIGNALS] == handlers
    log = tmp_path / "run" / "log.jsonl"
    assert (len(log.read_text().splitlines()) if log.exists() else 0) == (1 if phase == "held_out_accuracy" else 0)


@pytest.mark.parametrize("asked", [True, False])
def test_a_compiler_that_ctrl_c_ended_is_no_error(
    asked: bool, quick_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(run: object) -> None:
        if asked:
            os.kill(os.getpid(), signal.SIGINT)
        raise RuntimeError("g++ ended")

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "prepare", failing)
        if asked:
            assert train(quick_recipe, tmp_path / "run").stopped
        else:
            with pytest.raises(RuntimeError, match="ended"):
                train(quick_recipe, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("after", [3.0, 8.0, 15.0])
def test_ctrl_c_in_a_terminal_while_the_steps_are_compiled(after: float, tmp_path: Path) -> None:
    """It goes to the whole process group: to the compilers, too."""
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler")
    argv = [*words(tmp_path / "run", "--method", "fgsm-rs"), "--execution.mode", "compiled"]
    with pytest.MonkeyPatch.context() as patch:  # nothing compiled before may be found
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
        process = Executed(argv, tmp_path / "said.txt")
    assert wait_until(lambda: "loader resident" in process.output.read_text(), process)
    time.sleep(after)
    os.killpg(process.pid, signal.SIGINT)
    assert "the same command resumes" in finished(process, 75)


def test_the_handlers_of_before_are_back() -> None:
    for number in SIGNALS:
        met: list[int] = []
        before = signal.signal(number, lambda number, frame: met.append(number))  # noqa: B023
        try:
            with StopRequest() as stop:
                assert not stop.requested
                os.kill(os.getpid(), number)
                assert stop.requested
                # A second one would end this process: not even Python is asked any more.
                assert all(signal.getsignal(each) == signal.SIG_DFL for each in SIGNALS)
            assert not met
            os.kill(os.getpid(), number)
            assert met == [number]
        finally:
            signal.signal(number, before)


def test_outside_the_main_thread_it_never_asks() -> None:
    handlers, asked = [signal.getsignal(each) for each in SIGNALS], []

    def run() -> None:
        with StopRequest() as stop:
            asked.append((stop.requested, [signal.getsignal(each) for each in SIGNALS]))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert asked == [(False, handlers)]


def test_broken_off_passes_a_library_that_swallows_exceptions() -> None:
    went_on = False
    with pytest.raises(Stopped, match="goes on"), broken_off("the same command goes on"):
        try:
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(10)
        except Exception:
            went_on = True
    assert not went_on


def progress(run: Path, attack: str) -> dict[str, int]:
    """Of an attack that has not ended; nothing where it left none."""
    for path in (run / "evaluations").glob(f"partial-{attack}-*.json"):
        with suppress(FileNotFoundError):  # the attack has ended meanwhile
            found: dict[str, int] = json.loads(path.read_text())["progress"]
            return found
    return {"done": 0}


@pytest.mark.parametrize("number", SIGNALS[: tries(1, 3)])
def test_a_stopped_evaluation_goes_on(number: signal.Signals, quick_run: Path, tmp_path: Path) -> None:
    whole, run = (Path(shutil.copytree(quick_run, tmp_path / name)) for name in ("whole", "run"))
    for folder in (whole, run):
        for path in folder.glob("evaluation*.json*"):
            path.unlink()
        shutil.rmtree(folder / "evaluations", ignore_errors=True)
    attacked = ["evaluate", str(run), "--attacks", "fgsm", "pgd-50", "--samples", "40", "--batch-size", "2"]
    process = forked([*attacked, "--device", "cpu"], tmp_path / "said.txt")
    assert wait_until(lambda: 0 < progress(run, "pgd-50")["done"] <= 20, process)
    send(process, number)
    said = finished(process, 75)
    assert "the same command goes on" in said
    assert 0 < progress(run, "pgd-50")["done"] < 40
    said = finished(forked([*attacked, "--device", "cpu"], tmp_path / "said.txt"))
    assert "pgd-50  goes on at image" in said
    one_go = evaluate(whole, attacks=("fgsm", "pgd-50"), samples=40, batch_size=2, device="cpu")
    assert json.loads((run / "evaluation.json").read_text())["accuracy"] == one_go["accuracy"]


def test_the_evaluation_at_the_end_of_training_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "run"
    argv = [word for word in words(out, minutes=10) if word != "--no-evaluate"]
    process = forked(argv, tmp_path / "said.txt")
    assert wait_until(lambda: "test images of digits, on" in process.output.read_text(), process, pause=0)
    send(process, signal.SIGTERM)
    said = finished(process, 75)
    assert "is trained, the same command evaluates it" in said
    said = finished(forked(argv, tmp_path / "said.txt"))
    assert "already trained" in said
    assert set(json.loads((out / "evaluation.json").read_text())["accuracy"]) == {"clean", "pgd-10"}
    # One that was broken off between its attacks has left a file that says so; one that ended leaves none.
    assert "%" not in finished(forked(argv, tmp_path / "said.txt"))
    (out / "evaluations/partial-clean-0123456789ab.json").write_text("{}")
    assert "pgd-10" in finished(forked(argv, tmp_path / "said.txt"))
