"""What chooses the best checkpoint and what the guard looks at: accuracy on held-out images, in the middle of a run."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from .evaluation import evaluate_net
from .run import Run


def held_out_accuracy(
    run: Run, net: nn.Module, attacks: Sequence[str], *, images: int | None = None
) -> dict[str, float]:
    """Accuracy in percent by attack, on the images that choose the best checkpoint; the run's net trains on after it.

    In fp32, and with sums in the order that the run's steps have theirs in: a choice is no more exact than what it
    rests on.

    Args:
        run: in the middle of its training.
        net: the run's own, or its average.
        attacks: names that the evaluation knows.
        images: the first so many; by default all.

    Raises:
        NotFinite: the net's outputs are not finite.
    """
    split = run.selecting
    part = split if images is None else split.take(torch.arange(min(images, len(split)), device=run.device))
    net.eval()
    try:
        with run.execution.numerics():
            return evaluate_net(
                net,
                part,
                epsilon=run.epsilon,
                attacks=attacks,
                step=run.recipe.parsed_attack_step(),
                seed=run.recipe.seed,
                thorough=False,
                quiet=True,
            ).accuracy
    finally:
        run.net.train()
