"""`kill -9` of real `hardfast train` processes, again and again, until the run is done: as if nothing had been."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from hardfast.engine.checkpoint import CheckpointStore
from hardfast.engine.run_folder import RunFolder

from ..night import NIGHT, figure, tries
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
AREA = "`kill -9` at random times, >= 3 in a chain"
METHODS = ("fgsm-sdi", "fgsm-rs", "fgsm-mep", "free-at")
AIMS = ("any", "save", "any", "start")  # what a kill waits for: a random step, a save that is going on, nothing
TRIES = 8  # at a save, and at a chain whose kills all come before the run's end
NIGHTLY = {
    "weight average": ["--weight-average", "0.9"],
    "bf16": ["--execution.precision", "bf16"],
    "fp16": ["--execution.precision", "fp16"],
}


@dataclass(frozen=True, slots=True)
class Kill:
    """What one `kill -9` met."""

    code: int
    before: int  # the newest checkpoint's step when the process started
    after: int  # and when it was dead
    in_save: bool  # the process has left a half-written checkpoint
    said: str

    @property
    def fired(self) -> bool:
        """The process was killed, and in the middle of the run: some of its steps were saved, and some not yet made."""
        return self.code == -signal.SIGKILL and 0 < self.after < STEPS

    @property
    def in_epoch(self) -> bool:
        """It had made steps, and those of an epoch not all."""
        return self.fired and self.after > self.before and self.after % EPOCH > 0


def words(method: str, out: Path, *more: str) -> list[str]:
    """Two epochs of 20 steps in two seconds, saved after every step."""
    return [
        "train", "digits", "--out", str(out), "--method", method, "--epochs", "2", "--data.image-size", "8",
        "--batch-size", "64", "--save-minutes", "0", "--no-evaluate", "--device", "cpu", *more,
    ]  # fmt: skip


def killed(start: Start, argv: list[str], out: Path, aim: str, most: int, draw: random.Random) -> Kill:
    """Starts a process and kills it.

    Args:
        start: how it is started.
        argv: its words.
        out: the run's folder.
        aim: one of `AIMS`.
        most: steps that it may make before.
        draw: where chance comes from.
    """
    before, left = newest_step(out), half_written(out)
    process = start(argv, out.with_suffix(".txt"))
    if aim == "start":
        time.sleep(draw.uniform(0, 1))
    else:
        wanted = before + draw.randint(1, most)
        wait_until(lambda: newest_step(out) >= wanted, process)
        if aim == "save":
            wait_until(lambda: bool(half_written(out) - left), process, pause=0)
        else:
            time.sleep(draw.uniform(0, 0.05))
    send(process, signal.SIGKILL)
    code, said = process.wait(), process.output.read_text()
    assert code in (-signal.SIGKILL, 0), said
    met = Kill(code, before, newest_step(out), bool(half_written(out) - left), said)
    check_start(before, said, stepped=met.after > before)
    return met


def check_start(before: int, said: str, *, stepped: bool) -> None:
    """A process that found a checkpoint goes on from it: from scratch it would end the same, and no kill would tell.

    Args:
        before: the checkpoint's step, 0 if there was none.
        said: what the process printed until its end.
        stepped: it has made steps.
    """
    places = [line for line in said.splitlines() if "resuming at" in line]
    if before:
        assert "starting again" not in said, said
        assert all(resumption(before, EPOCH) in line for line in places), (before, said)
        assert len(places) == 1 or not stepped, said
    else:
        assert not places, said


def chain(start: Start, method: str, out: Path, kills: int, draw: random.Random, *more: str) -> list[Kill]:
    """Kills a run so many times, more often where a save was missed, and then lets it finish.

    Returns:
        What the kills met; the last one has not fired if the run was at its end before it.
    """
    argv, met = words(method, out, *more), list[Kill]()
    most = max(1, STEPS // (2 * kills))  # the others are made while nobody looks
    for number in range(kills):
        aim = AIMS[number % len(AIMS)]
        for _ in range(TRIES):
            met.append(killed(start, argv, out, aim, most, draw))
            if not met[-1].fired:
                return met
            if aim != "save" or met[-1].in_save:
                break
    before = newest_step(out)
    check_start(before, finished(start(argv, out.with_suffix(".txt"))), stepped=True)
    return met


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    yield
    kill_started()


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A run that nothing kills, trained once for each command line."""
    done: dict[tuple[str, ...], Path] = {}

    def trained(method: str, *more: str) -> Path:
        if (method, *more) not in done:
            out = tmp_path_factory.mktemp("straight") / "run"
            finished(forked(words(method, out, *more), out.with_suffix(".txt")))
            done[(method, *more)] = out
        return done[(method, *more)]

    return trained


def campaign() -> Iterator[tuple[str, str, int, tuple[str, ...]]]:
    """(how processes start, method, kills, other options): 25 kills by day, 200 by night."""
    yield "executed", "fgsm-sdi", 3, ()  # each imports everything first, which takes seconds
    for number, method in enumerate(METHODS):
        for _ in range(tries(1, 5)):
            yield "forked", method, 4 if number == 0 and not NIGHT else 6, ()
    if NIGHT:
        yield "executed", "fgsm-mep", 5, ()
        for options in NIGHTLY.values():
            for method in METHODS:
                yield "forked", method, 6, tuple(options)


@pytest.mark.parametrize(("number", "how", "method", "kills", "options"), [(i, *c) for i, c in enumerate(campaign())])
def test_a_killed_run_ends_as_if_nothing_had_been(
    number: int,
    how: str,
    method: str,
    kills: int,
    options: tuple[str, ...],
    straight: Callable[..., Path],
    tmp_path: Path,
) -> None:
    draw = random.Random(f"{method} {number}")
    for again in range(TRIES):  # where a process ended before its kill, all is drawn again
        out = tmp_path / f"run-{again}"
        met = chain(Executed if how == "executed" else forked, method, out, kills, draw, *options)
        if all(kill.fired for kill in met):
            break
    assert len(met) >= kills >= 3
    assert all(kill.fired for kill in met)
    assert any(kill.in_epoch for kill in met), "no kill in mid-epoch"
    assert any(kill.in_save for kill in met), "no kill in a save"
    same = state_hash(out) == state_hash(straight(method, *options))
    figure(AREA, tried=len(met), held=len(met) if same else 0, fired=len(met))
    assert same
    assert not half_written(out)
    starts = json.loads((out / "environment.json").read_text())["starts"]
    assert 1 <= len(starts) <= len(met) + 1


def test_the_hash_sees_another_seed(straight: Callable[..., Path]) -> None:
    assert state_hash(straight("fgsm-rs")) != state_hash(straight("fgsm-rs", "--seed", "1"))


def test_the_hash_sees_a_tensor_that_a_resume_gets_wrong(straight: Callable[..., Path], tmp_path: Path) -> None:
    """MEP's stored perturbations, halved in a checkpoint of mid-epoch: valid, and not what the run had."""
    out, draw = tmp_path / "run", random.Random(0)
    argv = words("fgsm-mep", out)
    assert killed(forked, argv, out, "any", 9, draw).fired
    left = tmp_path / "left"
    shutil.copytree(out, left)
    for folder, factor in ((out, 1.0), (left, 0.5)):
        last = RunFolder(folder).checkpoint("last")
        state = last.state()
        state["method/delta"] = state["method/delta"] * factor
        assert torch.count_nonzero(state["method/delta"])
        CheckpointStore(folder / "checkpoints").save(
            last.record.at.total, model=last.model(), state=state, record=last.record
        )
        finished(forked(words("fgsm-mep", folder), folder.with_suffix(".txt")))
    assert state_hash(out) == state_hash(straight("fgsm-mep"))
    assert state_hash(left) != state_hash(straight("fgsm-mep"))


def test_the_log_is_part_of_the_hash(straight: Callable[..., Path], tmp_path: Path) -> None:
    run = Path(shutil.copytree(straight("fgsm-rs"), tmp_path / "run"))
    before = state_hash(run)
    log = run / "log.jsonl"
    log.write_text(log.read_text().replace('"seconds', '"other_seconds'))
    assert state_hash(run) == before  # times are not
    log.write_text("".join(log.read_text().splitlines(keepends=True)[1:]))
    assert state_hash(run) != before
