"""What a run is, as frozen dataclasses whose field docstrings are the command line's help."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from typing import Annotated, Literal

from ...loaders import Augmentation, DataOptions, LoaderOptions
from ...loaders.option_types import check_options, check_range
from .. import strict_json
from ..classifier import AttackBN
from ..errors import UsageError
from ..execution import ExecutionOptions
from ..guard import GuardMode
from ..markers import HIDDEN
from ..methods import FgsmSdiOptions, MethodOptions
from ..models import ModelOptions
from ..threat import parse_pixels
from .schedule import ScheduleOptions

# Beyond these nothing is meant: typing errors, and numbers of another unit.
LARGEST_RATE, MOST_EPOCHS, LARGEST_SIDE = 1000, 1_000_000, 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerOptions:
    """SGD for the classifier."""

    lr: float = 0.1
    """The largest learning rate of the run."""

    momentum: float = 0.9
    """Momentum, without Nesterov's correction."""

    weight_decay: float = 5e-4
    """L2 penalty."""

    decay_norms: bool = True
    """Put the penalty on BatchNorm's scales and shifts too."""

    def __post_init__(self) -> None:
        check_options(self, "optimizer", UsageError)
        if not 0 < self.lr <= LARGEST_RATE:
            raise UsageError(f"optimizer.lr must be a positive number up to {LARGEST_RATE}, not {self.lr}")
        if not 0 <= self.momentum < 1:
            raise UsageError(f"optimizer.momentum must lie in [0, 1), not {self.momentum}")
        check_range(self.weight_decay, "optimizer.weight-decay", 0, LARGEST_RATE, UsageError)


@dataclass(frozen=True, kw_only=True, slots=True)
class StageOptions:
    """A part of a run with images of its own size."""

    epoch: int = 0
    """The epoch it begins with, from 0."""

    image_size: int = 224
    """Pixels on a side."""

    batch_size: int = 256
    """Images in a batch."""

    def __post_init__(self) -> None:
        check_options(self, "stages", UsageError)
        for name, smallest in (("epoch", 0), ("image_size", 1), ("batch_size", 2)):
            if getattr(self, name) < smallest:
                raise UsageError(
                    f"stages.{name.replace('_', '-')} must be at least {smallest}, not {getattr(self, name)}"
                )
        if self.image_size > LARGEST_SIDE:
            raise UsageError(f"stages.image-size must be at most {LARGEST_SIDE}, not {self.image_size}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Everything that decides a run's result."""

    name: Annotated[str, HIDDEN] = "digits"

    about: Annotated[str, HIDDEN] = ""

    epsilon: str = "8/255"
    """Radius of the L-infinity ball, in grey levels over 255."""

    epochs: int = 110
    """Passes over the training set."""

    batch_size: int = 128
    """Images in a batch; an incomplete last batch of an epoch is dropped."""

    label_smoothing: float = 0.0
    """Smoothing of the losses that move weights, in PyTorch's definition; attacks see hard labels."""

    box: bool = True
    """Project training images onto [0, 1] as well as onto the ball; evaluation always does."""

    attack_bn: Literal["auto", "train", "eval"] = "auto"
    """The classifier's BatchNorm while an attack is crafted. train: by the batch's statistics, which update the running
    ones in every pass. eval: by the running ones, merged into the convolutions, which is faster and gives other robust
    accuracies. auto: as the method's paper has it, eval for fgsm-ckpt and train for the others."""

    weight_average: float | None = None
    """Decay of an average over the weights of all steps, like 0.9995, which is then what is evaluated and kept, with
    BatchNorm statistics of its own. None averages nothing."""

    stages: tuple[StageOptions, ...] = ()
    """Growing resolution: image and batch size by epoch. None: those of the data and of batch-size throughout."""

    crop_padding: int = 4
    """Zero padding in pixels for the random crop; 0 is none."""

    crop_scale: tuple[float, float] | None = None
    """Random resized crops: the smallest and the largest share of a training image's area, like 0.08 1, at aspect
    ratios from 3/4 to 4/3, scaled to the size that is trained on. Goes with --crop-padding 0. None: no such crops."""

    flip: bool = True
    """Mirror each training image with probability 1/2."""

    select_on: Literal["heldout", "test"] = "heldout"
    """Which images choose the best checkpoint. The papers used the test set, which flatters the result."""

    attack_step: str | None = None
    """Step size of the PGD and C&W attacks of the evaluation, like 2/255; by default a quarter of epsilon."""

    seed: int = 0
    """Decides every random number of the run."""

    guard: GuardMode = "rollback"
    """What is done about catastrophic overfitting, in which one-step training suddenly loses all robustness against
    PGD. rollback: back to the newest checkpoint before it, on with other random numbers, up to three times; results
    say how often. warn: a line, and training goes on, as a comparison of methods wants it. off: no look at it at all.
    A run in which it does not happen is the same in all three."""

    method: MethodOptions = field(default_factory=FgsmSdiOptions)
    data: DataOptions = field(default_factory=DataOptions)
    loader: LoaderOptions = field(default_factory=LoaderOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    schedule: ScheduleOptions = field(default_factory=ScheduleOptions)
    execution: ExecutionOptions = field(default_factory=ExecutionOptions)

    def __post_init__(self) -> None:
        check_options(self, "", UsageError)
        parse_pixels(self.epsilon, "epsilon", positive=True)
        self.parsed_attack_step()
        for name, smallest in (("epochs", 1), ("batch_size", 2), ("crop_padding", 0)):
            if getattr(self, name) < smallest:
                raise UsageError(f"{name.replace('_', '-')} must be at least {smallest}, not {getattr(self, name)}")
        if self.epochs > MOST_EPOCHS:
            raise UsageError(f"epochs must be at most {MOST_EPOCHS}, not {self.epochs}")
        _ = self.augmentation  # checks the crops
        if not 0 <= self.seed < 1 << 64:
            raise UsageError(f"seed must lie in [0, 2**64), not {self.seed}")
        if self.schedule.cycle_momentum and self.optimizer.momentum < 0.1:
            raise UsageError(f"schedule.cycle-momentum needs optimizer.momentum >= 0.1, not {self.optimizer.momentum}")
        if self.weight_average is not None and not 0 < self.weight_average < 1:
            raise UsageError(f"weight-average must lie between 0 and 1, not {self.weight_average}")
        if self.data.heldout == 0 and self.select_on == "heldout":
            raise UsageError("data.heldout 0 leaves no images to select the checkpoint on: add --select-on test")
        self._check_stages()
        if self.attack_bn == "eval" and self.method.attacks_as_it_trains:
            raise UsageError(
                f"attack-bn eval does not fit method {self.method.name}, whose one pass attacks and trains: use auto"
            )
        if not 0 <= self.label_smoothing < 1:
            raise UsageError(f"label-smoothing must lie in [0, 1), not {self.label_smoothing}")
        if any(epoch >= self.epochs for epoch in self.schedule.milestones):
            raise UsageError(
                f"schedule.milestones {self.schedule.milestones} would never fire in {self.epochs} epochs: "
                "set --schedule.milestones to epochs below --epochs"
            )

    def _check_stages(self) -> None:
        begins = [stage.epoch for stage in self.stages]
        if not begins:
            return
        if begins[0] != 0 or any(a >= b for a, b in pairwise(begins)) or begins[-1] >= self.epochs:
            raise UsageError(
                f"stages begin at epochs {begins}: the first must begin at 0, the others one after the other, before "
                f"--epochs {self.epochs}"
            )
        if self.method.stores_per_sample:
            raise UsageError(
                f"method {self.method.name} stores a perturbation of one size for every image: it does not fit stages"
            )

    @property
    def augmentation(self) -> Augmentation:
        """Crops and flips of the training images."""
        return Augmentation(padding=self.crop_padding, flip=self.flip, scale=self.crop_scale)

    def stage_of(self, epoch: int) -> StageOptions | None:
        """The stage an epoch lies in; None where the run has none."""
        return next((stage for stage in reversed(self.stages) if stage.epoch <= epoch), None)

    @property
    def test_size(self) -> int | None:
        """Pixels on a side at which the test images are evaluated: the last stage's; None for their own size."""
        return self.stages[-1].image_size if self.stages else None

    @property
    def attack_mode(self) -> AttackBN:
        """`attack_bn` with "auto" decided."""
        return self.method.paper_attack_bn if self.attack_bn == "auto" else self.attack_bn

    def parsed_attack_step(self) -> Fraction | None:
        """`attack_step` in [0, 1] pixel units; None where the attacks choose their own."""
        return None if self.attack_step is None else parse_pixels(self.attack_step, "attack-step", positive=True)


def smoothing_of(true_class: float, num_classes: int) -> float:
    """Label smoothing in PyTorch's definition that leaves probability `true_class` on the true class."""
    return (1 - true_class) * num_classes / (num_classes - 1)


def to_json(recipe: Recipe) -> str:
    """The recipe as config.json holds it."""
    return strict_json.dump(recipe)


def from_json(text: str, source: str) -> Recipe:
    """Reads what `to_json` wrote.

    Raises:
        UsageError: naming the first field that is missing, unknown, of another type, or out of range.
    """
    fix = "restore the file or, if an older version wrote it, choose another --out"
    return strict_json.load(Recipe, text, source, error=UsageError, fix=fix)
