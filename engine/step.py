"""One training step, for every method."""

from __future__ import annotations

from collections.abc import Callable

from ..loaders import Batch
from .learner import Learner
from .methods import Method, Position

Step = Callable[[Batch, Position], None]


class TrainingStep:
    """Brings the attacks' view of the weights up to date, and lets the method do its work. Never waits for the device.

    Args:
        method: crafts x_adv and descends on it.
        learner: what descends.
    """

    def __init__(self, method: Method, learner: Learner) -> None:
        self.method, self.learner = method, learner

    def __call__(self, batch: Batch, position: Position) -> None:
        """Trains on one clean batch."""
        self.learner.classifier.begin_step()
        self.method.step(batch, position, self.learner)
