"""The guards at work on a run: they read the flags of its steps, probe it, and put it back where it was healthy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from . import console
from .checkpoint import Checkpoint
from .checkpoint_folder import not_finite
from .errors import CheckpointError, Collapsed, Diverged, NotFinite
from .guard import (
    IN_A_ROW,
    IN_WINDOW,
    MOST,
    MOST_ROLLBACKS,
    WINDOW,
    Answer,
    CollapseHistory,
    NonFiniteHistory,
    Place,
    Signs,
    Wires,
    trip_wires,
)
from .held_out import held_out_accuracy
from .run import Run
from .run_folder import RunFolder


class GoBack(Exception):
    """The run has to go back; `RunGuard.roll_back` does it.

    Args:
        why: in a few words.
        place: where that began.
        collapsed: by catastrophic overfitting, so that other random numbers are wanted than those that led there.
        before: how many steps of the run had been made when it began.
    """

    def __init__(self, why: str, place: Place, *, collapsed: bool, before: int) -> None:
        super().__init__(why)
        self.place, self.collapsed, self.before = place, collapsed, before


class RunGuard:
    """Both guards of one run. What they have seen is the run's and is saved with it.

    Args:
        run: is watched.
        folder: where its checkpoints lie.

    Attributes:
        looks: whether anything looks for catastrophic overfitting; not where nothing is attacked.
    """

    def __init__(self, run: Run, folder: RunFolder) -> None:
        self.run, self.folder = run, folder
        self.looks = run.recipe.guard != "off" and run.method.select_by == "pgd-10"

    def poll(self) -> None:
        """Reads which steps were left out since the last time, all of the current epoch; waits for the device.

        Raises:
            GoBack: too many in a row.
            Diverged: too many among the last ones, or going back has not helped.
        """
        run, flags = self.run, self.run.watch.read()
        before = run.nonfinite.steps
        run.nonfinite, answer, place = run.nonfinite.after(flags, at=self._here, total=run.at.total)
        if run.nonfinite.steps.bit_length() > before.bit_length():  # the 1st, 2nd, 4th, 8th: a line, not a flood
            console.line(
                f"epoch {run.at.epoch + 1}, until step {run.at.step}: a loss or a gradient was not finite, "
                f"{run.nonfinite.steps} of {run.at.total} steps left out"
            )
        if answer != "go on":
            before = run.nonfinite.recent[-1] + 1 - IN_A_ROW
            raise self._answered(answer, place, "losses or gradients are not finite", before=before)

    def check_weights(self) -> None:
        """Before a save or a probe: the trained weights are finite.

        Raises:
            GoBack: they are not.
            Diverged: nor were they the last time.
        """
        run = self.run
        average = {} if run.average is None else run.average.net.state_dict()  # of the same names as the trained net
        kept = {f"average/{name}": tensor for name, tensor in average.items()}
        name = not_finite({**run.net.state_dict(), **kept, **run.tensors()})
        if name is not None:
            raise self.turned_bad(f"'{name}' is not finite")

    def turned_bad(self, what: str) -> GoBack | Diverged:
        """What to raise where the run's numbers are found not to be finite, or too large to be of use.

        The place of it is where the first step was left out, if the newest ones were: when somebody looks, as the clock
        of the saves makes him, is not to decide whether it is the same place again.
        """
        run, row = self.run, self.run.nonfinite.row
        place = Place(run.at.epoch, max(0, run.at.step - row))
        run.nonfinite, answer, place = run.nonfinite.back(place)
        return self._answered(answer, place, what, before=run.at.total - row)

    @property
    def wire_due(self) -> bool:
        """Whether a trip wire lies behind the step that was just made."""
        wires = self._wires() if self.looks else None
        return wires is not None and wires.due(self.run.at.step, len(self.run.loader))

    def trip_wire(self) -> None:
        """Probes a few held-out images in mid-epoch, and more of them before anything is done.

        It looks at the trained weights, whose BatchNorm statistics are at hand, also where an average is evaluated.

        Raises:
            GoBack, Collapsed: catastrophic overfitting, and the recipe wants it answered.
        """
        run, wires, before = self.run, self._wires(), self.run.collapse
        assert wires is not None
        self.check_weights()
        right, images, train = self._trained_since(before)
        signs = Signs(
            pgd=self._accuracy(run.net, "pgd-10", wires.images),
            fgsm=None,
            highest=before.highest_of_wires,
            train=train,
            train_before=before.train,
        )
        looked = before.looked
        if self._worth_a_look(signs, wires.images):
            with run.execution.numerics():
                run.renew_statistics()
            pgd = self._accuracy(run.evaluated, "pgd-10", MOST)
            highest = before.highest_of_wires if before.highest is None else before.highest
            self._judge(replace(signs, pgd=pgd, highest=highest), MOST)
            looked = run.at.epoch
        # Last: a wire at which reading images failed was none.
        after = run.collapse.probed(signs.pgd, train, wire=True, right=right, images=images)
        run.collapse = replace(after, looked=looked)

    def held_out(self, pgd: float) -> None:
        """Takes an epoch's held-out PGD-10 accuracy, in percent, for a probe.

        Raises:
            GoBack, Collapsed: as `trip_wire`.
        """
        if not self.looks:
            return
        run, before = self.run, self.run.collapse
        _, _, train = self._trained_since(before)
        signs = Signs(pgd=pgd, fgsm=None, highest=before.highest, train=train, train_before=before.train)
        signs = self._judge(signs, len(run.selecting))
        after = run.collapse.probed(pgd, train, wire=False, right=0.0, images=0.0)
        run.collapse = replace(after, good=run.at.total) if signs.healthy else after

    def roll_back(self, needed: GoBack) -> None:
        """Puts the run back: to its newest checkpoint from before steps were bad, or before it overfitted; else to its
        beginning. The time of what is given up stays counted.
        """
        run, store, place = self.run, self.folder.store, needed.place
        spent, nonfinite = run.at, run.nonfinite
        rollbacks = run.collapse.rollbacks + needed.collapsed
        found = self._good() if needed.collapsed else self._before(needed.before)
        if found is None:
            run.begin_anew()
        else:
            run.restore(found)
        seen = CollapseHistory() if found is None else found.record.collapse
        restored = NonFiniteHistory() if found is None else found.record.nonfinite
        run.follow(replace(seen, rollbacks=rollbacks))
        run.watch.read()  # of steps that are given up
        run.nonfinite = nonfinite.put_back(restored, total=run.at.total)
        run.at.wall_seconds, run.at.step_seconds = spent.wall_seconds, spent.step_seconds
        # What was saved on the way into it must not be taken for the newest.
        store.prune(keep=set() if found is None else {step for step in store.steps() if step <= run.at.total})
        self.folder.truncate_log(run.at.epoch)
        self._note("rollback", str(needed), place, to_step=run.at.total)
        where = "its beginning" if found is None else f"epoch {run.at.epoch + 1}, step {run.at.step}"
        how = f", with other random numbers, rollback {rollbacks} of {MOST_ROLLBACKS}" if needed.collapsed else ""
        console.line(f"epoch {place.epoch + 1}, step {place.step}: {needed}; back to {where}{how}")

    @property
    def _here(self) -> Place:
        return Place(self.run.at.epoch, self.run.at.step)

    def _answered(self, answer: Answer, place: Place, what: str, *, before: int) -> GoBack | Diverged:
        if answer == "go back":
            return GoBack(what, place, collapsed=False, before=before)
        often = len(self.run.nonfinite.recent) >= IN_WINDOW
        why = f"{what} {f'in {IN_WINDOW} of {WINDOW:,} steps' if often else 'again after going back'}"
        self._note("stop", why, place)
        advice = f"lower --optimizer.lr (now {self.run.recipe.optimizer.lr:g}) with another --out"
        if self.run.classifier.scaler.at_floor:
            advice = f"gradients overflow fp16, use --execution.precision bf16 or fp32, or {advice}"
        elif not often:
            advice += ", or, if losses were healthy until then, check images and memory and repeat the command"
        return Diverged(
            f"training diverged in epoch {place.epoch + 1}, step {place.step} ({why}): {advice}; "
            f"{self.folder.path} keeps the checkpoints before it"
        )

    def _wires(self) -> Wires | None:
        run = self.run
        return trip_wires(steps=len(run.loader), batch_size=run.batch_size, heldout=len(run.selecting))

    def _trained_since(self, before: CollapseHistory) -> tuple[float, float, float | None]:
        """Right answers and adversarial images of the epoch so far, and the percentage since the last probe."""
        _, right, images = self.run.tally.sums.tolist()
        fresh = images - before.images
        return right, images, 100 * (right - before.right) / fresh if fresh > 0 else None

    def _accuracy(self, net: nn.Module, attack: str, images: int) -> float:
        """Of the first so many held-out images, under the evaluation's own attack; in percent.

        Raises:
            GoBack, Diverged: the net's outputs are not finite.
        """
        try:
            return held_out_accuracy(self.run, net, (attack,), images=images)[attack]
        except NotFinite:
            raise self.turned_bad("held-out outputs are not finite") from None

    def _worth_a_look(self, signs: Signs, images: int) -> bool:
        """Whether a trip wire saw enough for a second look, which costs as much as many wires.

        FGSM on its own images, which is cheap, must confirm what alone is often mere learning or chance. There is one
        look an epoch, and none where a warning is all that would follow and was given.
        """
        run, history = self.run, self.run.collapse
        told = run.recipe.guard == "warn" and history.warned is not None
        if not signs.suspicious or told or history.looked == run.at.epoch:
            return False
        return signs.alarm or replace(signs, fgsm=self._accuracy(run.net, "fgsm", images)).alarm

    def _judge(self, signs: Signs, images: int) -> Signs:
        """Does what the recipe wants if these are signs of catastrophic overfitting; measures the missing one first.

        Returns:
            The signs with what was measured.

        Raises:
            GoBack, Collapsed: as `trip_wire`.
        """
        run, history, epoch = self.run, self.run.collapse, self.run.at.epoch
        if signs.suspicious and not signs.alarm:
            signs = replace(signs, fgsm=self._accuracy(run.evaluated, "fgsm", images))
        if not signs.alarm:
            return signs
        if run.recipe.guard == "rollback" and history.rollbacks < MOST_ROLLBACKS:
            why = f"catastrophic overfitting ({signs})"
            raise GoBack(why, self._here, collapsed=True, before=run.at.total)
        if run.recipe.guard == "rollback":
            self._note("stop", str(signs), self._here)
            best = "no checkpoint" if run.best is None else f"its best checkpoint, of epoch {run.best.epoch}"
            raise Collapsed(
                f"catastrophic overfitting in epoch {epoch + 1} after {MOST_ROLLBACKS} rollbacks ({signs}): "
                f"{self.folder.path} keeps {best}; with another --out, train with a smaller --epsilon, with another "
                "--method, or to its end with --guard warn"
            )
        if history.warned != epoch:
            run.collapse = replace(history, warned=epoch)
            self._note("warning", str(signs), self._here)
            console.line(f"epoch {epoch + 1}, step {run.at.step}: catastrophic overfitting ({signs})")
        return signs

    def _before(self, steps: int) -> Checkpoint | None:
        """The newest whole checkpoint of at most so many steps; None if there is none."""
        store = self.folder.store
        found = store.latest(at_most=steps)
        for rejected in store.rejected:
            console.line(f"rejected: {rejected}")
        return found

    def _good(self) -> Checkpoint | None:
        """The newest whole checkpoint that was healthy; None if there is none."""
        run, store = self.run, self.folder.store
        for step in (run.collapse.good, None if run.best is None else run.best.step):
            if step is None:
                continue
            try:
                return store.open(store.path(step))
            except CheckpointError as error:
                console.line(f"rejected: {error}")
        return None

    def _note(self, event: str, why: str, at: Place, **more: Any) -> None:
        line = {"epoch": at.epoch + 1, "step": at.step, "event": event, "why": why, **more}
        self.folder.append_guard(line | {"rollbacks": self.run.collapse.rollbacks})
