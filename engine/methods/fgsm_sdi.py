"""`fgsm-sdi`: FGSM from a learned, sample-dependent start. Algorithm 3 of the paper, line by line.

Source: Jia, Zhang, Wu, Wang, Cao, "Boosting fast adversarial training with learnable adversarial initialization"
(2022); what its text leaves open follows the released code.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from ...kernels import GeneratorInputs, Purpose, generator_input, initial_point, signed_step, to_float
from ...loaders import Batch
from ...loaders.option_types import check_options, check_range
from ..classifier import placed
from ..errors import UsageError
from ..frozen import FrozenTwin
from ..learner import Learner
from ..markers import HIDDEN
from ..models import GeneratorResolution, GeneratorVariant, build_generator, seeded_initialisation
from ..optimizers import make_adam, moved_by
from ..phases import phase
from .base import LARGEST_WEIGHT, Method, MethodTraits, Position, Setting, check_count

TILE = 8  # tensor cores want the channels of what the generator sees in multiples of this


@dataclass(frozen=True, kw_only=True, slots=True)
class FgsmSdiOptions(MethodTraits):
    """One step of FGSM from the point a small generator proposes, which is trained against the classifier."""

    name: Annotated[Literal["fgsm-sdi"], HIDDEN] = "fgsm-sdi"

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

    generator_resolution: GeneratorResolution = "full"
    """half: the generator works on images of half the side and its proposal is enlarged, for a quarter of its cost."""

    generator_lr: float = 1e-3
    """Adam's learning rate for the generator, constant over the run."""

    generator_weight_decay: float = 5e-4
    """Adam's weight decay for the generator."""

    def __post_init__(self) -> None:
        check_options(self, "method", UsageError)
        check_count(self.k, "method.k")
        check_count(self.generator_width, "method.generator-width", most=4096)
        if not 0 < self.generator_lr <= LARGEST_WEIGHT:
            raise UsageError(
                f"method.generator-lr must be a positive number up to {LARGEST_WEIGHT}, not {self.generator_lr}"
            )
        check_range(self.generator_weight_decay, "method.generator-weight-decay", 0, LARGEST_WEIGHT, UsageError)

    def build(self, setting: Setting) -> Method:
        """The method for one classifier and threat."""
        return FgsmSdi(self, setting)


class FgsmSdi(Method):
    """Costs 2 + 2 + 3 units and the generator's forward; every k-th batch 4 more and the generator's update."""

    def __init__(self, options: FgsmSdiOptions, setting: Setting) -> None:
        self.options, self.setting, self.bounds = options, setting, setting.bounds()
        self.alpha = setting.step_size(options.alpha, setting.epsilon)
        execution = setting.classifier.execution
        colours = setting.image[0]
        channels = colours * (2 if options.inputs == "benign+grad" else 1)
        build = partial(
            build_generator,
            options.generator,
            channels,
            colours,
            options.generator_width,
            options.generator_resolution,
        )
        generator = seeded_initialisation(build, setting.seed, Purpose.INITIALISE_GENERATOR).to(setting.dtype)
        self.generator = placed(generator, execution, channels=channels, tile=TILE).train()
        self.twin = FrozenTwin(self.generator, training=False, half=execution.half)
        self.seen_channels = -(-channels // TILE) * TILE if execution.pad_channels else channels
        self.propose = execution.compiled(self._of_twin)
        self.propose_with_gradient = execution.compiled(self._of_generator)
        self.optimizer = make_adam(
            self.generator, execution, lr=options.generator_lr, weight_decay=options.generator_weight_decay
        )
        self.generator_loss = torch.zeros((), dtype=setting.dtype, device=setting.device)

    def kind(self, position: Position) -> bool:
        """Whether the generator is updated."""
        return position.step % self.options.k == 0

    def craft(self, batch: Batch, position: Position) -> Tensor:
        classifier, x, y = self.setting.classifier, batch.x, batch.label
        flag = classifier.watch.flag
        with phase("clean gradient"):
            gradient = classifier.input_gradient(to_float(x, self.setting.dtype), y)  # line 3; next, its sign is taken
        with phase("generator"):
            seen = generator_input(
                x,
                gradient,
                inputs=self.options.inputs,
                channels=self.seen_channels,
                dtype=classifier.execution.half or self.setting.dtype,
                flag=flag,
            )
        if self.kind(position):  # line 4
            with phase("generator update"):
                self.update_generator(x, y, seen)  # lines 5 to 7
        with phase("generator"), torch.no_grad():
            self.twin.refresh()
            eta, start = initial_point(x, self.propose(seen), epsilon=self.setting.epsilon, flag=flag)  # line 8
        with phase("adversarial gradient"):
            gradient = classifier.input_gradient(start, y)
            return signed_step(  # lines 9 and 10
                x, eta, gradient, alpha=self.alpha, bounds=self.bounds, flag=flag, keep_delta=False
            )

    def update_generator(self, x: Tensor, y: Tensor, seen: Tensor) -> None:
        """theta ascends L(f(x + delta), y), lines 5 to 7: through eta and the clip mask alone.

        The classifier's twin has no weight gradients, and the sign in delta is a constant, so d(delta)/d(eta) is 1
        where the step was not clipped and 0 elsewhere.
        """
        classifier, flag = self.setting.classifier, self.setting.classifier.watch.flag
        eta, start = initial_point(x, self.propose_with_gradient(seen), epsilon=self.setting.epsilon, flag=flag)
        gradient = classifier.input_gradient(start, y)
        x_adv = signed_step(x, eta, gradient, alpha=self.alpha, bounds=self.bounds, flag=flag, keep_delta=False)
        loss = classifier.smoothed_loss(x_adv, y)
        self.optimizer.zero_grad(set_to_none=True)
        classifier.scaler.scale(-loss).backward()
        classifier.scaler.step(self.optimizer, loss)
        self.generator_loss.copy_(loss.detach())

    def _of_twin(self, seen: Tensor) -> Tensor:
        with self.setting.classifier.execution.autocast():
            raw: Tensor = self.twin.net(seen)
        return raw

    def _of_generator(self, seen: Tensor) -> Tensor:
        with self.setting.classifier.execution.autocast():
            raw: Tensor = self.generator(seen)
        return raw

    def early(self, position: Position, learner: Learner) -> list[Tensor]:
        if not self.kind(position):
            return []
        return [*moved_by(self.optimizer), *self.generator.buffers(), self.generator_loss]

    def nets(self) -> dict[str, nn.Module]:
        return {"generator": self.generator}

    def optimizers(self) -> dict[str, tuple[torch.optim.Optimizer, nn.Module]]:
        return {"generator": (self.optimizer, self.generator)}

    def metrics(self) -> dict[str, Tensor]:
        return {"generator_loss": self.generator_loss}
