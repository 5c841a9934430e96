"""The one adapter over `pyautoattack`, the official AutoAttack code: APGD-CE alone, and the standard ensemble.

The library's own way to resume fails, so its attacks are run one by one and batch by batch (`stages.py`).

The library warns where it should refuse, and prints its check of the radius. Here its warnings are collected, its
images are checked again, and what contradicts itself raises. The caller's random state is left alone.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor, nn

from ...kernels import to_float
from ..console import Bar
from ..errors import EvaluationError, UsageError
from .stages import Stage

Version = Literal["apgd-ce", "standard"]
STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")
ITERATIONS, SQUARE_QUERIES, TARGETS = 100, 5000, 9  # of the standard version
CHECKS = 8  # passes on each batch in which the library checks the net: five for chance, and three more
# The library clips with x - eps and x + eps in fp32, each rounded once; 2**-23 is more than those roundings make.
RADIUS_SLACK = 2.0**-23
# A point on the decision boundary may change sides with the batch it is computed in, by fp32 rounding alone.
BOUNDARY_SLACK = 1e-3


class OfficialAttacks:
    """AutoAttack's standard version, one attack and one batch at a time, as `run_standard_evaluation` would run it.

    Each attack seeds itself anew for every batch with the same number, so the result of a batch is a function of its
    images alone: batches may be attacked in another process than those before them.

    Args:
        net: classifier in eval mode, float32, that returns logits.
        classes: how many logits.
        epsilon: radius in [0, 1] pixel units.
        seed: fixed for every attack.
        device: of the net and the images.
        bar: told of every forward pass.

    Raises:
        UsageError: as `check_available`.
    """

    def __init__(
        self, net: nn.Module, *, classes: int, epsilon: Fraction, seed: int, device: torch.device, bar: Bar
    ) -> None:
        check_available("apgd-ce", classes=classes)
        from pyautoattack import AutoAttack  # an extra: not everyone who trains evaluates

        self.net, self.epsilon, self.bar = net, epsilon, bar
        # A net with fewer than ten classes has fewer targets than the standard version's nine.
        self.targets = max(1, min(TARGETS, classes - 1))
        with _Log():
            self.official = AutoAttack(Counted(net, bar), eps=float(epsilon), norm="Linf", seed=seed, device=device)
        self.official.apgd_targeted.n_target_classes = self.official.fab.n_target_classes = self.targets

    def stages(self, version: Version) -> tuple[Stage, ...]:
        """The clean images, then the attacks of one version on what is left."""
        names = ("apgd-ce",) if version == "apgd-ce" else STANDARD
        clean = Stage("clean", 1, lambda x, labels, index: (self._right(to_float(x), labels), []))
        return (clean, *(self._stage(name) for name in names))

    def _stage(self, name: str) -> Stage:
        def withstands(x: Tensor, labels: Tensor, index: Tensor) -> tuple[Tensor, list[str]]:
            _, right, warnings = self.perturb(name, to_float(x), labels)
            return right, [f"{name}: {warning}" for warning in warnings]

        # Forward passes on one batch, at most: Square stops where nothing is left to fool.
        passes = {
            "apgd-ce": ITERATIONS + 2,
            "apgd-t": self.targets * (ITERATIONS + 2),
            "fab-t": self.targets * (2 * ITERATIONS + 3),
            "square": SQUARE_QUERIES + 2,
        }
        return Stage(name, passes[name] + CHECKS, withstands)

    def perturb(self, name: str, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, list[str]]:
        """Attacks one batch with one attack.

        Args:
            name: out of `STANDARD`.
            images: float32 [N, C, H, W] in [0, 1].
            labels: int64 [N].

        Returns:
            (x_adv float32 [N, C, H, W]: what fooled the net, and the clean image where nothing did; bool [N]: where
            nothing did; what the library flagged).

        Raises:
            EvaluationError: an image left the ball or [0, 1], or does not fool the net as the library said.
        """
        images = images.contiguous()  # the library reshapes with view
        self.official.attacks_to_run = [name]
        with _weights_without_gradients(self.net), _own_random_state(images.device), _Log() as log:
            x_adv, predicted = self.official.run_standard_evaluation(images, labels, batch_size=len(images))
        right = predicted == labels
        _check_images(images, x_adv, self.epsilon)
        _check_predictions(self.net, x_adv, labels, right)
        return x_adv, right, log.warnings

    def _right(self, images: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = self.official.model(images)
        if not logits.isfinite().all():
            raise EvaluationError("the net's logits are not finite: its accuracy means nothing")
        return logits.argmax(dim=1) == labels


def official_version() -> str:
    """Of pyautoattack."""
    return importlib.metadata.version("pyautoattack")


def check_available(version: Version, *, classes: int) -> None:
    """Raises UsageError if the library is not installed, or the net has too few classes for the targeted losses."""
    if importlib.util.find_spec("pyautoattack") is None:
        raise UsageError("AutoAttack needs the package pyautoattack: pip install 'hardfast[eval]'")
    if version == "standard" and classes < 4:
        raise UsageError(f"attack aa needs at least 4 classes for its targeted losses, the net has {classes}: drop it")


class Counted:
    """A net that tells a progress bar of every forward pass."""

    def __init__(self, net: nn.Module, bar: Bar) -> None:
        self.net, self.bar = net, bar

    def __call__(self, x: Tensor) -> Tensor:
        self.bar.update(1)
        logits: Tensor = self.net(x)
        return logits


class _Log(logging.Handler):
    """Keeps the library's warnings, without the numbers that differ from batch to batch; its chatter goes nowhere."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.warnings: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = re.sub(r"there are \d+ points", "there are points", record.getMessage())
        message = re.sub(r" See \S+ for details\.", "", message)
        if message not in self.warnings:
            self.warnings.append(message)

    def __enter__(self) -> _Log:
        logger = logging.getLogger("auto-attack")
        self.before = (logger.level, logger.propagate)
        logger.setLevel(logging.WARNING)
        logger.propagate = False
        logger.addHandler(self)
        return self

    def __exit__(self, *exception: object) -> None:
        logger = logging.getLogger("auto-attack")
        logger.removeHandler(self)
        logger.setLevel(self.before[0])
        logger.propagate = self.before[1]


@contextmanager
def _weights_without_gradients(net: nn.Module) -> Iterator[None]:
    """FAB calls `backward`, which would compute and keep every weight gradient: a third of its cost."""
    wanted = [parameter for parameter in net.parameters() if parameter.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)


@contextmanager
def _own_random_state(device: torch.device) -> Iterator[None]:
    """The library seeds the global generators; the caller gets them back as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def _check_images(images: Tensor, x_adv: Tensor, epsilon: Fraction) -> None:
    radius = (x_adv.double() - images.double()).abs().max().item()
    if not radius <= float(epsilon) + RADIUS_SLACK:  # also false for NaN
        raise EvaluationError(f"AutoAttack left the ball: {radius * 255:.6f}/255 is above {float(epsilon) * 255:g}/255")
    if not (x_adv.min().item() >= 0 and x_adv.max().item() <= 1):
        raise EvaluationError("AutoAttack returned pixels outside [0, 1]: its accuracy must not be reported")


@torch.no_grad()
def _check_predictions(net: nn.Module, x_adv: Tensor, labels: Tensor, robust: Tensor) -> None:
    logits = net(x_adv)
    if not logits.isfinite().all():
        raise EvaluationError("the net's logits on AutoAttack's images are not finite: its accuracy means nothing")
    disputed = (logits.argmax(dim=1) == labels) != robust
    top = logits.topk(2, dim=1).values
    clear = (top[:, 0] - top[:, 1]) > BOUNDARY_SLACK * top.abs().amax(dim=1).clamp(min=1)
    if (disputed & clear).any():
        count = int((disputed & clear).sum())
        raise EvaluationError(
            f"the net answers {count} of AutoAttack's images otherwise than during the attack: it is not deterministic "
            "(dropout, train mode or noise in it), so its robust accuracy cannot be reported"
        )
