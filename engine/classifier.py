"""The classifier and the three passes that a training step makes through it, in one execution and precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from .execution import Execution
from .frozen import FrozenTwin
from .gradients import at_least_float32, attack_loss, input_gradient
from .models import Net, channels_last, pad_stem
from .nonfinite import StepWatch
from .optimizers import LossScaler

AttackBN = Literal["train", "eval"]
Penalty = Callable[[Tensor], Tensor]  # logits [N, K] with their graph -> a scalar that is added to the loss


def placed(net: Net, execution: Execution, *, channels: int, tile: int) -> Net:
    """A net on the execution's device in channels-last memory format, its first convolution padded where that is on.

    Args:
        net: on any device.
        execution: where it shall run, and how.
        channels: of its input.
        tile: what the number of channels is padded to a multiple of: 4 for images, 8 for the generator.
    """
    net = channels_last(net.to(execution.device))
    if execution.pad_channels:
        pad_stem(net, channels, -(-channels // tile) * tile)
    return net


class Classifier:
    """A net being trained, as methods see it.

    Attacks go through a frozen twin of the net, so that no attack pass computes a weight gradient, compiled or not.

    Args:
        net: in its final place and memory format, in train mode while it is trained.
        attack_bn: the twin's mode. "train" updates the BatchNorm statistics in every attack pass; "eval" uses the
            running ones, merged into the convolutions.
        label_smoothing: torch's definition, for the losses that move weights.
        execution: how the passes are executed.

    Attributes:
        twin: what attacks see; `begin_step` brings it up to date.
        watch: whether the step at hand is healthy; whatever consumes an input gradient reports to its flag.
        scaler: of the losses that move weights.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        attack_bn: AttackBN = "train",
        label_smoothing: float = 0.0,
        execution: Execution | None = None,
    ) -> None:
        self.net, self.label_smoothing = net, label_smoothing
        self.execution = Execution() if execution is None else execution
        self.attack_bn = attack_bn
        fold = attack_bn == "eval"
        self.twin = FrozenTwin(net, training=attack_bn == "train", half=self.execution.half, fold=fold)
        self.watch = StepWatch(self.execution.device)
        self.scaler = LossScaler(self.execution, self.watch)
        # Of BatchNorm. No pass in train mode reads them: nothing else would see them spoilt before an evaluation.
        self._statistics = [
            statistic
            for module in net.modules()
            if isinstance(module, _BatchNorm)
            for statistic in (module.running_mean, module.running_var)
            if statistic is not None
        ]
        compiled = self.execution.compiled
        self.attack_loss = compiled(attack_loss(self._logits_of_twin))
        self._smoothed_loss_of_twin = compiled(self._smoothed_loss_at)
        self._twins_logits = compiled(self._logits_of_twin)
        self._training_loss = compiled(self._loss_of_net)
        self._training_loss_and_logits = compiled(self._loss_and_logits_of_net)

    def begin_step(self) -> None:
        """Before the first attack pass of a step: the twin's copies of the weights follow the net's."""
        self.twin.refresh()

    def input_gradient(self, x: Tensor, labels: Tensor) -> Tensor:
        """The gradient of the summed cross entropy at x (float [N, C, H, W]); two units."""
        gradient, _ = input_gradient(self.attack_loss, x, labels)
        return gradient

    def smoothed_loss(self, x: Tensor, labels: Tensor) -> Tensor:
        """The mean smoothed cross entropy at x, to be differentiated in x alone; two units with its gradient."""
        return self._smoothed_loss_of_twin(x, labels)

    @torch.no_grad()
    def attack_logits(self, x: Tensor) -> Tensor:
        """Logits [N, K] at x as an attack sees them, without any gradient; one unit."""
        return at_least_float32(self._twins_logits(x))

    def logits_with_graph(self, x: Tensor) -> Tensor:
        """Logits [N, K] at x in the attack's mode, with a graph that leads to x and to the weights; one unit.

        For losses that a method differentiates in both, or twice. Never compiled: a compiled pass fixes its backward
        when it is traced, and that cannot be differentiated again.
        """
        # The graph keeps the buffers that BatchNorm reads, and the pass at x_adv would move the net's own before the
        # graph is gone: so it is given copies.
        buffers = {name: buffer.clone() for name, buffer in self.net.named_buffers()}
        self.net.train(self.attack_bn == "train")
        try:
            with self.execution.autocast():
                logits: Tensor = functional_call(self.net, buffers, (x,))
        finally:
            self.net.train()
        if buffers and self.attack_bn == "train":
            # .data: an earlier graph may hold them, which autograd would refuse; in train mode it never reads them.
            torch._foreach_copy_([buffer.data for buffer in self.net.buffers()], [*buffers.values()])
        return at_least_float32(logits)

    def smoothed_cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean smoothed cross entropy of float32 logits: what moves weights."""
        return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)

    def descend(
        self, optimizer: torch.optim.Optimizer, x: Tensor, labels: Tensor, *, penalty: Penalty | None = None
    ) -> tuple[Tensor, Tensor]:
        """One step of w against the mean smoothed cross entropy at x: line 11 of Algorithm 3. Costs three units.

        Args:
            optimizer: of the net.
            x: float [N, C, H, W] in [0, 1]. If it requires a gradient, x.grad holds the (scaled) loss's afterwards.
            labels: int64 [N].
            penalty: added to the loss.

        Returns:
            (loss with the penalty, logits [N, K]), both detached and on the device.
        """
        optimizer.zero_grad(set_to_none=True)
        if penalty is None:
            loss, logits = self._training_loss(x, labels)
        else:
            loss, logits = self._training_loss_and_logits(x, labels)
            loss = loss + penalty(logits)
        self.scaler.scale(loss).backward()
        self.scaler.step(optimizer, loss, *self._statistics)
        return loss.detach(), logits.detach()

    def _logits_of_twin(self, x: Tensor) -> Tensor:
        with self.execution.autocast():
            logits: Tensor = self.twin.net(x)
        return logits

    def _smoothed_loss_at(self, x: Tensor, labels: Tensor) -> Tensor:
        return self.smoothed_cross_entropy(at_least_float32(self._logits_of_twin(x)), labels)

    def _loss_of_net(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        loss, logits = self._loss_and_logits_of_net(x, labels)
        # Detached here, where a compiled pass can see that nothing flows back through them.
        return loss, logits.detach()

    def _loss_and_logits_of_net(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        with self.execution.autocast():
            logits = self.net(x)
        logits = at_least_float32(logits)
        return self.smoothed_cross_entropy(logits, labels), logits
