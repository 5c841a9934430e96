"""The one adapter over `pyautoattack`, the official AutoAttack code: APGD-CE alone, and the standard ensemble.

The library warns where it should refuse, and prints its check of the radius. Here its warnings are collected, its
images are checked again, and what contradicts itself raises. The caller's random state is left alone.
"""

from __future__ import annotations

import importlib.util
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor, nn

from .console import Bar
from .errors import EvaluationError, UsageError

Version = Literal["apgd-ce", "standard"]
ITERATIONS, SQUARE_QUERIES, TARGETS = 100, 5000, 9  # of the standard version
# The library clips with x - eps and x + eps in fp32, each rounded once; 2**-23 is more than those roundings make.
RADIUS_SLACK = 2.0**-23
# A point on the decision boundary may change sides with the batch it is computed in, by fp32 rounding alone.
BOUNDARY_SLACK = 1e-3


@dataclass(frozen=True, slots=True)
class AutoAttackResult:
    """What one evaluation found."""

    robust: Tensor  # bool [N]: right on the clean image and on all that the attacks tried
    x_adv: Tensor  # float32 [N, C, H, W]: what fooled the net, and the clean image where nothing did
    stages: dict[str, float] = field(default_factory=dict)  # robust accuracy in percent after each attack, in order
    warnings: list[str] = field(default_factory=list)  # what the library flagged, e.g. zero gradients


def run_autoattack(
    net: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: Fraction,
    version: Version,
    seed: int,
    batch_size: int,
    bar: Bar,
) -> AutoAttackResult:
    """Runs the official code: its standard version, or APGD-CE alone with that version's parameters.

    Args:
        net: classifier in eval mode, float32, that returns logits.
        images: float32 [N, C, H, W] in [0, 1].
        labels: int64 [N].
        epsilon: radius in [0, 1] pixel units.
        version: `standard` is apgd-ce, apgd-t, fab-t, square.
        seed: fixed for every attack.
        batch_size: images in a forward pass.
        bar: told of every forward pass and of the attack that runs.

    Raises:
        UsageError: as `check_available`.
        EvaluationError: an adversarial image left the ball or [0, 1], or does not fool the net as the library said.
    """
    images = images.contiguous()  # the library reshapes with view
    with torch.no_grad():
        classes = net(images[:1]).shape[1]
    check_available(version, classes=classes)
    from pyautoattack import AutoAttack  # an extra: not everyone who trains evaluates

    targets = min(TARGETS, classes - 1)
    with bar, _weights_without_gradients(net), _own_random_state(images.device):
        if version == "standard":
            adversary = AutoAttack(_Counted(net, bar), eps=float(epsilon), norm="Linf", seed=seed, device=images.device)
        else:
            adversary = AutoAttack(
                _Counted(net, bar), eps=float(epsilon), norm="Linf", seed=seed, device=images.device,
                version="custom", attacks=["apgd-ce"],
            )  # fmt: skip
            adversary.apgd.n_restarts = 1  # as the standard version sets it; 5 otherwise
        # A net with fewer than ten classes has fewer targets than the standard version's nine.
        adversary.apgd_targeted.n_target_classes = adversary.fab.n_target_classes = targets
        with _Log(bar, images=len(images), batch_size=batch_size, targets=targets) as log:
            x_adv, predicted = adversary.run_standard_evaluation(images, labels, batch_size=batch_size)
    robust = predicted == labels
    _check_images(images, x_adv, epsilon)
    _check_predictions(net, x_adv, labels, robust, batch_size)
    return AutoAttackResult(robust, x_adv, log.stages, log.warnings)


def check_available(version: Version, *, classes: int) -> None:
    """Raises UsageError if the library is not installed, or the net has too few classes for the targeted losses."""
    if importlib.util.find_spec("pyautoattack") is None:
        raise UsageError("AutoAttack needs the package pyautoattack: pip install 'hardfast[eval]'")
    if version == "standard" and classes < 4:
        raise UsageError(f"attack aa needs at least 4 classes for its targeted losses, the net has {classes}: drop it")


class _Counted:
    """The net, telling a progress bar of every forward pass."""

    def __init__(self, net: nn.Module, bar: Bar) -> None:
        self.net, self.bar = net, bar

    def __call__(self, x: Tensor) -> Tensor:
        self.bar.update(1)
        logits: Tensor = self.net(x)
        return logits


class _Log(logging.Handler):
    """Reads the library's log while it runs: which attack, what is left standing, and every warning."""

    def __init__(self, bar: Bar, *, images: int, batch_size: int, targets: int) -> None:
        super().__init__()
        self.bar, self.images, self.batch_size = bar, images, batch_size
        self.label = bar.desc if not bar.disable else ""
        self.standing = images
        self.stages: dict[str, float] = {}
        self.warnings: list[str] = []
        # Forward passes on one batch, at most: Square stops where nothing is left to fool.
        self.passes = {
            "apgd-ce": ITERATIONS + 2,
            "apgd-t": targets * (ITERATIONS + 2),
            "fab-t": targets * (2 * ITERATIONS + 3),
            "square": SQUARE_QUERIES + 2,
        }

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if record.levelno >= logging.WARNING:
            if message not in self.warnings:  # zero gradients are flagged batch by batch
                self.warnings.append(message)
        elif started := re.fullmatch(r"running (\S+)", message):
            batches = -(-self.standing // self.batch_size)
            self.bar.reset(total=batches * self.passes.get(started[1], 0))
            self.bar.set_description(f"{self.label}: {started[1]}")
        elif accuracy := re.match(r"(?:initial accuracy|robust accuracy after (\S+)): ([\d.]+)%", message):
            percent = float(accuracy[2])
            self.standing = round(percent * self.images / 100)
            if accuracy[1]:
                self.stages[accuracy[1].lower()] = percent

    def __enter__(self) -> _Log:
        logger = logging.getLogger("auto-attack")
        self.before = (logger.level, logger.propagate)
        logger.setLevel(logging.DEBUG)
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
def _check_predictions(net: nn.Module, x_adv: Tensor, labels: Tensor, robust: Tensor, batch_size: int) -> None:
    logits = torch.cat([net(part) for part in x_adv.split(batch_size)])
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
