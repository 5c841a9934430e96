"""Where an epoch is left before its end: probed, saved, and gone on with later."""

from __future__ import annotations

import time

from ..loaders import DataError
from . import console
from .run import Run
from .run_folder import RunFolder
from .run_guard import GoBack, RunGuard
from .save_clock import SaveClock
from .signals import StopRequest


def break_off(
    run: Run, guard: RunGuard, folder: RunFolder, began: float, *, stop: StopRequest, clock: SaveClock
) -> bool:
    """In mid-epoch: the trip wire that lies here, if one does, then a checkpoint if one is wanted by now.

    The clock waits for the end of a row of bad steps: the run may have to go back to before it.

    Returns:
        Whether it was saved.
    """
    if guard.wire_due:
        guard.trip_wire()
    save = stop.requested or (clock.due and not run.nonfinite.row)
    if save:
        guard.check_weights()
        with run.execution.numerics():
            run.renew_statistics()
    run.at.wall_seconds += time.perf_counter() - began
    if save:
        run.save(folder.store)
    return save


def save_broken_off(run: Run, guard: RunGuard, folder: RunFolder, began: float) -> None:
    """Saves a run whose loader has failed, in mid-epoch or at its end, unless it has to go back to what is saved."""
    try:
        guard.poll()
        guard.check_weights()
    except GoBack as needed:
        run.at.wall_seconds += time.perf_counter() - began
        guard.roll_back(needed)
        return
    if run.average is not None:
        run.close()  # the next batches are another loader's
        try:
            with run.execution.numerics():
                run.renew_statistics()
        except DataError:
            console.line(
                "the averaged weights are saved with older BatchNorm statistics: --checkpoint last is not to be "
                "trusted before the run goes on"
            )
    run.at.wall_seconds += time.perf_counter() - began
    run.save(folder.store)
