"""Attacks that contradict each other: signs that a net misleads gradients instead of withstanding attacks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise

from torch import Tensor

# Each finds at least what the one before it finds, but for chance; more steps are never worse on a sound net.
CHAINS = (("clean", "fgsm", "pgd-10", "pgd-20", "pgd-50", "aa"), ("fgsm", "cw", "aa"), ("fgsm", "apgd", "aa"))
SLACK = 0.02  # share of the images by which the stronger attack may stay behind
CHANCE = 3.0  # standard deviations of what the two attacks disagree in
SQUARE_SLACK = 0.002  # the share from which the official code warns


def contradictions(name: str, standing: Mapping[str, Tensor]) -> list[str]:
    """What one attack's result and those of the attacks it should be stronger or weaker than say about the net.

    Args:
        name: the attack that was run last.
        standing: by attack, bool [n]: which of the first n images still stood; of different attacks different n.

    Returns:
        A line for each stronger attack that found clearly less than a weaker one.
    """
    found = {}
    for chain in CHAINS:
        run = [attack for attack in chain if attack in standing]
        for weaker, stronger in pairwise(run):
            if name in (weaker, stronger):
                count = min(len(standing[weaker]), len(standing[stronger]))
                weak, strong = standing[weaker][:count], standing[stronger][:count]
                only_weak, only_strong = int((strong & ~weak).sum()), int((weak & ~strong).sum())
                if only_weak - only_strong > max(SLACK * count, CHANCE * math.sqrt(only_weak + only_strong)):
                    found[weaker, stronger] = (
                        f"{stronger} fools fewer of the same {count:,} images than {weaker} ({int((~strong).sum()):,} "
                        f"against {int((~weak).sum()):,}): the net misleads gradients (masking), and its robust "
                        "accuracy is lower than it looks"
                    )
    return list(found.values())


def square_stands_out(stages: Mapping[str, float], samples: int) -> list[str]:
    """A line if AutoAttack's Square, which sees no gradients, fooled images that none of the gradient attacks did.

    Args:
        stages: percent that stood after each attack, in order.
        samples: how many images there were.
    """
    if "square" not in stages or len(stages) < 2:
        return []
    more = round((list(stages.values())[list(stages).index("square") - 1] - stages["square"]) * samples / 100)
    if more <= max(1, SQUARE_SLACK * samples):  # a single image is chance
        return []
    return [
        f"Square, which sees no gradients, fooled {more:,} images that the gradient attacks did not: the net misleads "
        "gradients, and its robust accuracy is lower than it looks"
    ]
