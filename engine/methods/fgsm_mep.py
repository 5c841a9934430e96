"""`fgsm-mep`: FGSM from a stored perturbation of every image, which follows the momentum of its gradients.

Source: Jia et al., "Prior-guided adversarial initialization for fast adversarial training" (2022), FGSM-MEP; what its
text leaves open follows the released code. A perturbation knows nothing of crop and flip: it is stored for the sample,
and laid over whatever view of it a batch holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ...kernels import random_key, random_start, signed_step, to_float
from ...loaders import Batch
from ...loaders.option_types import check_options
from ..environment import free_memory
from ..errors import UsageError
from ..learner import Learner
from ..markers import HIDDEN
from ..phases import phase
from .base import LARGEST_WEIGHT, Method, MethodTraits, Position, Setting, check_count

CHUNK = 4096  # samples whose perturbations are drawn at once


@dataclass(frozen=True, kw_only=True, slots=True)
class FgsmMepOptions(MethodTraits):
    """One step of FGSM from a start that every image keeps from epoch to epoch, with a penalty on how far it leads."""

    name: Annotated[Literal["fgsm-mep"], HIDDEN] = "fgsm-mep"

    momentum: float = 0.3
    """How much of an image's earlier gradients its next start follows."""

    consistency: float = 10.0
    """Weight of the squared difference between the logits at x_adv and at the start."""

    reset_every: int = 40
    """Epochs between two draws of new random starts."""

    alpha: str | None = None
    """Step size, like 8/255; by default epsilon."""

    stores_per_sample: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_options(self, "method", UsageError)
        check_count(self.reset_every, "method.reset-every")
        if not 0 <= self.momentum < 1:
            raise UsageError(f"method.momentum must lie in [0, 1), not {self.momentum}")
        if not 0 <= self.consistency <= LARGEST_WEIGHT:
            raise UsageError(
                f"method.consistency must be a number from 0 on, up to {LARGEST_WEIGHT}, not {self.consistency}"
            )

    def build(self, setting: Setting) -> Method:
        """The method for one classifier and threat."""
        return FgsmMep(self, setting)


class FgsmMep(Method):
    """Costs 7 units: the pass at the start serves the attack (2) and the penalty (2), x_adv the descent (3).

    Keeps two tensors of the training set's size on the device: 1.2 GB for CIFAR-10.
    """

    uncompiled = "the pass at the stored start is differentiated in the image and then in the weights"

    def __init__(self, options: FgsmMepOptions, setting: Setting) -> None:
        self.options, self.setting, self.bounds = options, setting, setting.bounds()
        self.alpha = setting.step_size(options.alpha, setting.epsilon)
        self._check_memory()
        self.delta = setting.zeros(setting.samples, setting.image)  # the next start of every sample
        self.momentum = torch.zeros_like(self.delta)

    def _check_memory(self) -> None:
        channels, height, width = self.setting.image
        samples, device = self.setting.samples, self.setting.device
        wanted, free = 2 * samples * channels * height * width * self.setting.dtype.itemsize, free_memory(device)
        if wanted > free:
            raise UsageError(
                f"method fgsm-mep stores {wanted / 1e9:.1f} GB for {samples:,} images of {height}x{width}; {device} "
                f"has {free / 1e9:.1f} GB left: choose another method or smaller images"
            )

    def begin_epoch(self, epoch: int, seed: int) -> None:
        """Every `reset_every` epochs, a random corner of the ball for every sample."""
        if epoch % self.options.reset_every:
            return
        setting = self.setting
        key = random_key(seed, epoch=epoch, device=setting.device)
        for index in torch.arange(setting.samples, device=setting.device).split(CHUNK):
            blank = setting.zeros(len(index), setting.image).to(torch.uint8)
            noise = random_start(blank, index, key=key, radius=setting.epsilon, dtype=setting.dtype)
            corner = min(self.alpha, setting.epsilon)
            self.delta[index] = float(corner) * noise.sign()
        self.momentum.zero_()

    def step(self, batch: Batch, position: Position, learner: Learner) -> None:
        setting, x, y, options = self.setting, batch.x, batch.label, self.options
        classifier = setting.classifier
        with phase("adversarial gradient"):
            delta = self.delta[batch.index].contiguous(memory_format=torch.channels_last)
            start = (to_float(x, setting.dtype) + delta).requires_grad_()
            at_start = classifier.logits_with_graph(start)
            loss = classifier.smoothed_cross_entropy(at_start, y) * len(y)
            (gradient,) = torch.autograd.grad(loss, start, retain_graph=True)
            before = self.momentum[batch.index]
            momentum, flag = self._followed(gradient, before), classifier.watch.flag
            x_adv = signed_step(x, delta, gradient, alpha=self.alpha, bounds=self.bounds, flag=flag, keep_delta=False)
            _, following = signed_step(x, delta, momentum, alpha=self.alpha, bounds=self.bounds, flag=flag)

        def inconsistency(logits: Tensor) -> Tensor:
            return options.consistency * F.mse_loss(logits, at_start)

        with phase("update"):
            learner.descend(x_adv, y, penalty=inconsistency)
            left_out = classifier.watch.left_out > 0
            self.momentum[batch.index] = torch.where(left_out, before, momentum)
            self.delta[batch.index] = torch.where(left_out, delta, following)

    def _followed(self, gradient: Tensor, momentum: Tensor) -> Tensor:
        """The new momentum: the gradient over its L1 norm in the batch."""
        norm = gradient.abs().sum()
        return torch.where(norm > 0, gradient / norm, 0) + self.options.momentum * momentum

    def state(self) -> dict[str, Tensor]:
        return {"delta": self.delta, "momentum": self.momentum}
