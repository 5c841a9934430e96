"""The attacks by name, each as the stages it runs in and as the values that decide its result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ...kernels import to_float
from ..console import Bar
from ..errors import NotFinite
from . import autoattack
from .attacks import GradientAttack, gradient_attacks
from .stages import Stage

AttackName = Literal["clean", "fgsm", "pgd-10", "pgd-20", "pgd-50", "cw", "apgd", "aa"]
ATTACKS: tuple[str, ...] = get_args(AttackName)
LIBRARY_ATTACKS: dict[str, autoattack.Version] = {"apgd": "apgd-ce", "aa": "standard"}


@dataclass(frozen=True, slots=True)
class AttackPlan:
    """What all attacks on one net have in common.

    Attributes:
        net: classifier in eval mode, float32.
        classes: how many logits it has.
        epsilon: radius in [0, 1] pixel units.
        step: step size of PGD and C&W; None is epsilon / 4.
        seed: of every random start.
        device: of the net and the images.
    """

    net: nn.Module
    classes: int
    epsilon: Fraction
    step: Fraction | None
    seed: int
    device: torch.device

    def stages(self, name: str, bar: Bar) -> tuple[Stage, ...]:
        """The stages of one attack; the bar is told of every forward pass."""
        if name in LIBRARY_ATTACKS:
            official = autoattack.OfficialAttacks(
                self.net, classes=self.classes, epsilon=self.epsilon, seed=self.seed, device=self.device, bar=bar
            )
            return official.stages(LIBRARY_ATTACKS[name])
        return (self._stage(name, autoattack.Counted(self.net, bar), self._gradient_attack(name)),)

    def decides(self, name: str) -> dict[str, Any]:
        """All that decides an attack's result but the net, the images and their batches: JSON values."""
        values: dict[str, Any] = {"attack": name, "epsilon": str(self.epsilon), "seed": self.seed}
        if name in LIBRARY_ATTACKS:
            version, library = LIBRARY_ATTACKS[name], autoattack.official_version()
            return values | {"version": version, "classes": self.classes, "pyautoattack": library}
        attack = self._gradient_attack(name)
        if attack is None:
            return values
        kind = {"steps": attack.steps, "alpha": str(attack.alpha), "random_start": attack.random_start}
        return values | kind | {"objective": attack.objective.__name__}

    def _gradient_attack(self, name: str) -> GradientAttack | None:
        return gradient_attacks(self.epsilon, self.step).get(name)

    def _stage(self, name: str, net: Callable[[Tensor], Tensor], attack: GradientAttack | None) -> Stage:
        """The one stage of an attack of our own, or of none: the clean images."""

        def withstands(x: Tensor, labels: Tensor, index: Tensor) -> tuple[Tensor, list[str]]:
            shown = to_float(x)
            if attack is not None:
                shown = attack.perturb(net, x, labels, index, epsilon=self.epsilon, seed=self.seed)
            with torch.no_grad():
                logits = net(shown)
            if not (shown.isfinite().all() and logits.isfinite().all()):
                raise NotFinite("an attack met gradients or logits that are not finite: its accuracy means nothing")
            return logits.argmax(dim=1) == labels, []

        return Stage(name, 1 + (attack.steps if attack is not None else 0), withstands)
