"""The loop: lines 1 to 13 of Algorithm 3, with a held-out check and a checkpoint after each epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch

from ..kernels import to_float
from ..loaders import DataError, open_dataset
from . import console
from .announcements import announce, announce_resumption, prepare
from .environment import choose_device, describe_environment
from .errors import CheckpointError, NotFinite
from .evaluation.net_checks import check_net
from .held_out import held_out_accuracy
from .methods import Position
from .mid_epoch import break_off, save_broken_off
from .nonfinite import POLL_STEPS
from .recipes.recipe import Recipe
from .run import Run
from .run_folder import RunFolder
from .run_guard import GoBack, RunGuard
from .save_clock import SAVE_MINUTES, SaveClock
from .signals import StopRequest

REPORT_SECONDS = 0.5  # between two readings of the loss: each waits for the device


@dataclass(frozen=True, slots=True)
class Outcome:
    """How `train` ended."""

    folder: Path
    finished: bool  # all epochs are done
    stopped: bool  # a signal asked for a stop; what is done is saved, and what the guards have seen and done
    trained: bool  # this call did some of it


def train(recipe: Recipe, out: Path | str, *, device: str = "auto", save_minutes: float = SAVE_MINUTES) -> Outcome:
    """Trains a recipe into a run folder; resumes by itself if the folder holds that run.

    SIGINT, SIGTERM or SIGUSR1 end it after the current step, saved; calling it again goes on from there, with the same
    torch version and thread count bit for bit: on a CPU, and on a GPU with `execution.deterministic` (environment.json
    keeps them, and a difference is said).

    Args:
        recipe: what to train; a preset of `recipes.PRESETS`, or `dataclasses.replace`d from one.
        out: the run's folder, new or holding this very recipe's run.
        device: auto, cpu, cuda or cuda:N.
        save_minutes: a checkpoint is also written in mid-epoch when the last one is so old; 0: after every step. It
            changes nothing of what the run computes.

    Raises:
        UsageError: wrong options, or a folder that holds another run.
        Diverged: losses, gradients or weights are not finite, and going back to the last checkpoint did not help.
        Collapsed: catastrophic overfitting, again after three rollbacks (`Recipe.guard`).
        DataError: the data set is missing or damaged; `LoaderDied`, one, if what decodes its images died. What was
            trained until then is saved.
        CheckpointError: no checkpoint of the folder fits its config.json.
    """
    clock = SaveClock(save_minutes)
    target, why = choose_device(device)
    folder = RunFolder(out)
    folder.holds(recipe)  # refuses another run's folder before the data are read
    with StopRequest() as stop, closing(_opened(recipe, target)) as run, folder.lock():
        announce(run, why)
        if folder.holds(recipe):  # asked again: another process may have been here
            _restore(run, folder)
        else:
            _ = run.loader  # images that cannot be read are refused before anything is written
            folder.create(recipe)
        guard, saved, trained = RunGuard(run, folder), run.at.total, False  # saved: where the run was then
        if run.at.epoch < recipe.epochs and not stop.requested:
            _prepare(run, stop)
            start = describe_environment(target, run.execution, loader=run.loader_choice.name)
            folder.note_start(start | ({"resumed": announce_resumption(run)} if run.at.total else {}))
        # A stop that comes when something is unsaved waits for one more step, and for its save.
        while run.at.epoch < recipe.epochs and not (stop.requested and (saved == run.at.total or run.unprepared)):
            if run.unprepared:  # a stage with images of another size has begun
                _prepare(run, stop)
                continue
            began, trained = time.perf_counter(), True
            try:
                with run.execution.numerics():
                    ended = train_epoch(
                        run, poll=guard.poll, pause=lambda: stop.requested or clock.due or guard.wire_due
                    )
                if ended:
                    end_epoch(run, guard, folder, began)
                if ended or break_off(run, guard, folder, began, stop=stop, clock=clock):
                    clock.renew()
                    saved = run.at.total
            except GoBack as needed:
                run.at.wall_seconds += time.perf_counter() - began
                guard.roll_back(needed)
                saved = -1  # no checkpoint knows of it yet
            except DataError:  # its loader gave up between two steps: what was trained is whole
                if run.at.total > saved:
                    save_broken_off(run, guard, folder, began)
                raise
    finished = run.at.epoch == recipe.epochs
    return Outcome(folder.path, finished=finished, stopped=stop.requested, trained=trained)


def train_epoch(run: Run, *, poll: Callable[[], object], pause: Callable[[], bool]) -> bool:
    """The rest of the current epoch, line 2 to 12 of Algorithm 3.

    Args:
        run: goes on where it is.
        poll: called every POLL_STEPS steps and at the end; reads which of them were left out.
        pause: asked after every step whether to leave the epoch here.

    Returns:
        Whether the epoch is at its end.
    """
    recipe, at = run.recipe, run.at
    length, before = len(run.loader), at.total
    run.net.train()
    if at.step == 0:
        run.method.begin_epoch(at.epoch, run.seed)
    label = f"epoch {at.epoch + 1}/{recipe.epochs}"
    with console.bar(length * run.batch_size, label, "images", initial=at.step * run.batch_size) as bar:
        read = began = time.perf_counter()
        try:
            for batch in run.loader.epoch(at.epoch, start=at.step):
                run.follow_schedule()
                run.step(batch, Position(at.epoch, at.step))  # lines 3 to 11
                at.step += 1
                at.total += 1
                bar.update(len(batch.label))
                if not bar.disable and time.perf_counter() - read > REPORT_SECONDS:
                    bar.set_postfix_str(f"loss {run.tally.read()[0]:.3f}")
                    read = time.perf_counter()
                if at.total % POLL_STEPS == 0:
                    poll()
                if pause():
                    break
            poll()
        finally:
            seconds = time.perf_counter() - began
            at.step_seconds += seconds
    run.pace.add(at.epoch, images=(at.total - before) * run.batch_size, seconds=seconds)
    return at.step == length


def end_epoch(run: Run, guard: RunGuard, folder: RunFolder, began: float) -> None:
    """Held-out accuracy, which the guard looks at, the checkpoint, the log's line."""
    recipe, at, scaler = run.recipe, run.at, run.classifier.scaler
    loss, accuracy = run.tally.read()
    if not math.isfinite(loss):
        raise guard.turned_bad(f"loss {loss:.3g}")
    guard.check_weights()
    last_rate = run.learning_rate(at.step - 1)
    with run.execution.numerics():
        run.renew_statistics()
    try:
        checked = held_out_accuracy(run, run.evaluated, ("clean", "pgd-10"))
    except NotFinite:  # its weights are finite, and too large
        raise guard.turned_bad("held-out outputs are not finite") from None
    guard.held_out(checked["pgd-10"])
    run.tally.clear()
    at.epoch, at.step = at.epoch + 1, 0
    # A later epoch wins a tie, as in the released code: it has trained longer.
    score = checked[run.method.select_by]
    best = run.best is None or score >= run.best.score
    at.wall_seconds += time.perf_counter() - began
    folder.append_log(
        {
            "epoch": at.epoch,
            "step": at.total,
            "lr": last_rate,
            "loss": loss,
            "train_accuracy": accuracy,
            **{name: value.item() for name, value in run.method.metrics().items()},
            **({"loss_scale": scaler.tensors()["scale"].item()} if scaler.enabled else {}),
            "selected_on": recipe.select_on,
            **checked,
            "rollbacks": run.collapse.rollbacks,
            "nonfinite_steps": run.nonfinite.steps,
            "step_seconds": at.step_seconds,
            "wall_seconds": at.wall_seconds,
        }
    )
    stage = run.enter_stage()  # before saving: what is saved fits the next step
    run.save(folder.store, best_score=score if best else None)
    if scaler.at_floor:
        console.line(
            f"the loss scale is at its floor of {scaler.FLOOR:g}: gradients overflow fp16, and their steps are left "
            "out: use --execution.precision bf16 or fp32, or a lower --optimizer.lr"
        )
    console.line(
        f"epoch {at.epoch:>3}/{recipe.epochs}  loss {loss:.3f}  train {accuracy:5.1f} %  {recipe.select_on} clean "
        f"{checked['clean']:5.1f} %, pgd-10 {checked['pgd-10']:5.1f} %{' *' if best else '  '} "
        f"{run.pace.images_per_second:7.0f} images/s  {at.wall_seconds:5.1f} s"
    )
    if stage is not None:
        console.line(f"from now on {stage.image_size}x{stage.image_size} images, {stage.batch_size} in a batch")


def _opened(recipe: Recipe, device: torch.device) -> Run:
    """The run as it begins, its data read."""
    run = Run(recipe, open_dataset(recipe.data), device)
    _check_classifier(run)
    return run


def _prepare(run: Run, stop: StopRequest) -> None:
    """Compiles and captures the steps. Ctrl-C also ends compilers that it started: their failure means nothing then."""
    try:
        prepare(run)
    except Exception:
        if not stop.requested:
            raise


def _check_classifier(run: Run) -> None:
    """Refuses now the net that the evaluation would refuse after the first epoch.

    Raises:
        UsageError: as `check_net`.
    """
    some = run.selecting.take(torch.arange(min(8, len(run.selecting)), device=run.device))
    run.net.eval()
    try:
        check_net(run.evaluated, to_float(some.images.permute(0, 3, 1, 2)), some.labels, thorough=False)
    finally:
        run.net.train()


def _restore(run: Run, folder: RunFolder) -> None:
    """Puts the run where the folder's newest whole checkpoint left it, and drops what the log says beyond it.

    Raises:
        CheckpointError: there are checkpoints, and none of them can be used; nothing is changed then.
        OSError: one cannot be read now; likewise.
    """
    folder.store.tidy()
    latest = folder.store.latest()
    if latest is None and folder.store.rejected:
        raise CheckpointError(
            f"{folder.store.rejected[0]}; {folder.path} has no checkpoint that can be used: move {folder.store.folder} "
            "away to begin again"
        )
    for rejected in folder.store.rejected:
        console.line(f"rejected: {rejected}")
    if latest is None:
        console.line(f"{folder.path} holds this run but no checkpoint of it yet: starting again")
    else:
        run.restore(latest)
        if run.best is not None:
            try:
                folder.store.open(folder.store.path(run.best.step))
            except CheckpointError as error:
                console.line(f"rejected: {error}; the next epoch is the best again")
                run.best = None
    folder.truncate_log(run.at.epoch)
    if run.at.epoch == run.recipe.epochs:
        console.line(f"already trained: {folder.path} holds all {run.recipe.epochs} epochs")
