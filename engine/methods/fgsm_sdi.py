"""`fgsm-sdi`: FGSM from a learned, sample-dependent start. Algorithm 3 of the paper, line by line.

Source: Jia, Zhang, Wu, Wang, Cao, "Boosting fast adversarial training with learnable adversarial initialization"
(2022); what its text leaves open follows the released code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

from ...kernels import GeneratorInputs, Purpose, generator_input, initial_point, signed_step, to_float
from ...loaders import Batch
from ..errors import UsageError
from ..models import GeneratorVariant, build_generator, channels_last, seeded_initialisation
from ..step import batch_norm_mode, input_gradient
from ..threat import parse_pixels
from .base import Method, Position, Setting, check_count


@dataclass(frozen=True, kw_only=True, slots=True)
class FgsmSdiOptions:
    """One step of FGSM from the point a small generator proposes, which is trained against the classifier."""

    name: Annotated[Literal["fgsm-sdi"], tyro.conf.Suppress] = "fgsm-sdi"

    k: int = 20
    """The generator is updated on every k-th batch of an epoch, the first one included (Table II)."""

    alpha: str | None = None
    """Step size, like 8/255; by default epsilon, as in the released code."""

    inputs: GeneratorInputs = "benign+grad"
    """What the generator sees: the image, the sign of its gradient, or both (Table III)."""

    generator: GeneratorVariant = "released"
    """released is the generator of the authors' code, paper the one of Table I."""

    generator_width: int = 64
    """Hidden channels of the generator."""

    generator_lr: float = 1e-3
    """Adam's learning rate for the generator, constant over the run."""

    generator_weight_decay: float = 5e-4
    """Adam's weight decay for the generator."""

    def __post_init__(self) -> None:
        check_count(self.k, "method.k")
        check_count(self.generator_width, "method.generator-width")
        if not 0 < self.generator_lr < math.inf:
            raise UsageError(f"method.generator-lr must be a positive number, not {self.generator_lr}")
        if not 0 <= self.generator_weight_decay < math.inf:
            raise UsageError(f"method.generator-weight-decay must not be negative, not {self.generator_weight_decay}")

    def build(self, setting: Setting) -> Method:
        """The method for one classifier and threat."""
        return FgsmSdi(self, setting)


class FgsmSdi(Method):
    """Costs 2 + 2 + 3 units and the generator's forward; every k-th batch 4 more and the generator's update."""

    def __init__(self, options: FgsmSdiOptions, setting: Setting) -> None:
        self.options, self.setting, self.bounds = options, setting, setting.bounds()
        self.alpha = setting.epsilon if options.alpha is None else parse_pixels(options.alpha, "method.alpha")
        channels = setting.channels * (2 if options.inputs == "benign+grad" else 1)
        build = partial(build_generator, options.generator, channels, setting.channels, options.generator_width)
        generator = seeded_initialisation(build, setting.seed, Purpose.INITIALISE_GENERATOR)
        self.generator = channels_last(generator.to(setting.device, setting.dtype)).eval()
        self.optimizer = torch.optim.Adam(
            self.generator.parameters(), lr=options.generator_lr, weight_decay=options.generator_weight_decay
        )
        self.generator_loss = torch.zeros((), dtype=setting.dtype, device=setting.device)

    def craft(self, batch: Batch, position: Position) -> Tensor:
        s, x, y = self.setting, batch.x, batch.label
        with batch_norm_mode(s.net, s.attack_bn):
            gradient, _ = input_gradient(s.net, to_float(x, s.dtype), y)  # line 3; its sign is taken in the next line
            seen = generator_input(x, gradient, inputs=self.options.inputs)
            if position.step % self.options.k == 0:  # line 4
                self.update_generator(x, y, seen)  # lines 5 to 7
            with torch.no_grad():
                eta, start = initial_point(x, self.generator(seen), epsilon=s.epsilon)  # line 8
            gradient, _ = input_gradient(s.net, start, y)
            return signed_step(x, eta, gradient, alpha=self.alpha, bounds=self.bounds, keep_delta=False)  # line 9, 10

    def update_generator(self, x: Tensor, y: Tensor, seen: Tensor) -> None:
        """theta ascends L(f(x + delta), y), lines 5 to 7: through eta and the clip mask alone.

        `autograd.grad` over theta's parameters asks the classifier's layers for input gradients only, and the sign
        in delta is a constant, so d(delta)/d(eta) is 1 where the step was not clipped and 0 elsewhere.
        """
        s = self.setting
        self.generator.train()
        eta, start = initial_point(x, self.generator(seen), epsilon=s.epsilon)
        gradient, _ = input_gradient(s.net, start, y)
        x_adv = signed_step(x, eta, gradient, alpha=self.alpha, bounds=self.bounds, keep_delta=False)
        loss = F.cross_entropy(s.net(x_adv), y, label_smoothing=s.label_smoothing)
        theta = list(self.generator.parameters())
        for parameter, ascent in zip(theta, torch.autograd.grad(loss, theta), strict=True):
            parameter.grad = -ascent
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.generator.eval()
        self.generator_loss.copy_(loss.detach())

    def nets(self) -> dict[str, nn.Module]:
        return {"generator": self.generator}

    def optimizers(self) -> dict[str, tuple[torch.optim.Optimizer, nn.Module]]:
        return {"generator": (self.optimizer, self.generator)}

    def metrics(self) -> dict[str, Tensor]:
        return {"generator_loss": self.generator_loss}
