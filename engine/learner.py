"""What descends: the classifier's weights under their optimiser, their average, and the epoch's tally."""

from __future__ import annotations

import torch
from torch import Tensor

from .averaging import WeightAverage
from .classifier import Classifier, Penalty
from .optimizers import moved_by


class Tally:
    """Loss and accuracy of the current epoch, summed on the device so that no step waits for it."""

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(3, dtype=torch.float64, device=device)  # loss, right answers, images

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor, left_out: Tensor) -> None:
        """Counts one batch: its mean loss [] and its logits [N, K] on the adversarial images; none where `left_out`.

        `left_out` is float32 [], 1.0 for a step that changes nothing, from `StepWatch`.
        """
        right = (logits.argmax(dim=1) == labels).sum()
        counts = torch.stack([loss * len(labels), right, torch.full_like(right, len(labels))]).to(self.sums)
        self.sums += torch.where(left_out > 0, 0, counts)

    def read(self) -> tuple[float, float]:
        """(mean loss, accuracy in percent); waits for the device."""
        loss, right, images = self.sums.tolist()
        return loss / max(images, 1), 100 * right / max(images, 1)

    def clear(self) -> None:
        """Begins a new epoch."""
        self.sums.zero_()


class Learner:
    """One way to descend, for all methods.

    Args:
        classifier: what is trained.
        optimizer: of its weights.
        tally: counts losses and right answers of every descent.
        average: of the weights after every descent, if one is kept.
    """

    def __init__(
        self,
        classifier: Classifier,
        optimizer: torch.optim.Optimizer,
        tally: Tally,
        average: WeightAverage | None = None,
    ) -> None:
        self.classifier, self.optimizer, self.tally, self.average = classifier, optimizer, tally, average

    def descend(self, x: Tensor, labels: Tensor, *, penalty: Penalty | None = None) -> None:
        """One step of the weights against the loss at x, of their average and the tally; none of a bad step."""
        loss, logits = self.classifier.descend(self.optimizer, x, labels, penalty=penalty)
        left_out = self.classifier.watch.left_out
        if self.average is not None:
            self.average.update(left_out)
        self.tally.add(loss, logits, labels, left_out)

    def moved(self) -> list[Tensor]:
        """All that a descent changes but the classifier's buffers: weights, momenta, the average, the tally."""
        average = [] if self.average is None else [*self.average.net.parameters(), self.average.steps]
        return [*moved_by(self.optimizer), *average, self.tally.sums]
