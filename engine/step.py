"""One training step, for every method: one that is not healthy changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Hashable

from ..loaders import Batch
from .learner import Learner
from .methods import Method, Position
from .nonfinite import Saved

Step = Callable[[Batch, Position], None]


class TrainingStep:
    """Brings the attacks' view of the weights up to date, and lets the method do its work. Never waits for the device.

    Where NaN or an infinity appears on the way (`StepWatch`), all that training changes is left as it was, bit for bit.

    Args:
        method: crafts x_adv and descends on it.
        learner: what descends.
    """

    def __init__(self, method: Method, learner: Learner) -> None:
        self.method, self.learner = method, learner
        self._saved: dict[Hashable, Saved] = {}  # for each kind of step, what it moves early

    def __call__(self, batch: Batch, position: Position) -> None:
        """Trains on one clean batch."""
        classifier = self.learner.classifier
        saved, watch = self._saved_of(position), classifier.watch
        watch.begin()
        saved.take()
        classifier.begin_step()
        self.method.step(batch, position, self.learner)
        watch.settle()
        classifier.scaler.update()
        saved.put_back(watch.left_out)
        watch.end()

    def _saved_of(self, position: Position) -> Saved:
        """Memory for what a step of this kind moves before it is known to be healthy: every pass moves BatchNorm."""
        kind = self.method.kind(position)
        if kind not in self._saved:
            early = self.method.early(position, self.learner)
            self._saved[kind] = Saved([*self.learner.classifier.net.buffers(), *early])
        return self._saved[kind]
