"""One training step: the method crafts adversarial images, the classifier descends on them, the tally counts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..loaders import Batch
from .classifier import Classifier
from .methods import Method, Position
from .phases import phase

Step = Callable[[Batch, Position], None]


class Tally:
    """Loss and accuracy of the current epoch, summed on the device so that no step waits for it."""

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(3, dtype=torch.float64, device=device)  # loss, right answers, images

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Counts one batch: its mean loss [] and its logits [N, K] on the adversarial images."""
        right = (logits.argmax(dim=1) == labels).sum()
        self.sums += torch.stack([loss * len(labels), right, torch.full_like(right, len(labels))]).to(self.sums)

    def read(self) -> tuple[float, float]:
        """(mean loss, accuracy in percent); waits for the device."""
        loss, right, images = self.sums.tolist()
        return loss / max(images, 1), 100 * right / max(images, 1)

    def clear(self) -> None:
        """Begins a new epoch."""
        self.sums.zero_()


class TrainingStep:
    """Lines 3 to 11 of Algorithm 3, for every method. Never waits for the device.

    Args:
        method: crafts x_adv.
        classifier: what is trained and attacked.
        optimizer: of the classifier's weights.
        tally: counts losses and right answers.
    """

    def __init__(self, method: Method, classifier: Classifier, optimizer: torch.optim.Optimizer, tally: Tally) -> None:
        self.method, self.classifier, self.optimizer, self.tally = method, classifier, optimizer, tally

    def __call__(self, batch: Batch, position: Position) -> None:
        """Trains on one clean batch."""
        self.classifier.begin_step()
        x_adv = self.method.craft(batch, position)
        with phase("update"):
            loss, logits = self.classifier.descend(self.optimizer, x_adv, batch.label)
            self.tally.add(loss, logits, batch.label)
