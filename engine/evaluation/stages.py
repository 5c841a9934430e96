"""One attack as stages over what still stands, batch by batch, each batch remembered: a killed attack goes on.

FGSM, PGD and C&W are one stage; AutoAttack is one for the clean images and one for each of its attacks, which sees the
images that all before it left standing, in batches of full size, as the official code runs them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...loaders import Split
from ..console import Bar


@dataclass(frozen=True, slots=True)
class Stage:
    """One attack on the images that still stand.

    Attributes:
        name: what it is called.
        passes: forward passes on a batch, at most.
        withstands: (images uint8 [n, C, H, W], labels int64 [n], their numbers in the data set int64 [n]) -> (bool [n]:
            which the net still gets right, what was flagged).
    """

    name: str
    passes: int
    withstands: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, list[str]]]


@dataclass(slots=True)
class Progress:
    """How far one attack has come.

    Attributes:
        entered: bool [N] on the CPU, which images stood when the running stage began.
        standing: bool [N] on the CPU, which stand now.
        stage: number of the running stage; that of the stages once all are done.
        done: how many images of the running stage are done, in their order.
        seconds: spent so far, over all starts.
        accuracy: percent that stood after each stage that is done.
        warnings: what was flagged.
    """

    entered: Tensor
    standing: Tensor
    stage: int = 0
    done: int = 0
    seconds: float = 0.0
    accuracy: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @classmethod
    def begin(cls, samples: int) -> Progress:
        """Nothing is done, all images stand."""
        everything = torch.ones(samples, dtype=torch.bool)
        return cls(everything, everything.clone())

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values; masks as strings of 0 and 1."""
        return {
            "entered": _digits(self.entered),
            "standing": _digits(self.standing),
            "stage": self.stage,
            "done": self.done,
            "seconds": self.seconds,
            "accuracy": dict(self.accuracy),
            "warnings": list(self.warnings),
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Progress:
        """The inverse of `to_json`."""
        masks = {name: _mask(values[name]) for name in ("entered", "standing")}
        return cls(**{**values, **masks})


def run_stages(
    stages: Sequence[Stage],
    split: Split,
    progress: Progress,
    *,
    batch_size: int,
    bar: Bar,
    save: Callable[[Progress], None] | None = None,
) -> None:
    """Runs what is left of an attack.

    Args:
        stages: of the attack.
        split: images as bytes, on the net's device.
        progress: where it begins; brought up to date batch by batch.
        batch_size: images in a forward pass.
        bar: begun anew for each stage; the net tells it of its passes.
        save: told of the progress after each batch.
    """
    if progress.stage >= len(stages):
        return
    label = bar.desc if not bar.disable else ""
    before, began = progress.seconds, time.perf_counter()
    while progress.stage < len(stages):
        stage = stages[progress.stage]
        order = progress.entered.nonzero().squeeze(1)
        batches = order[progress.done :].split(batch_size) if progress.done < len(order) else ()
        bar.reset(total=-(-len(order) // batch_size) * stage.passes)
        bar.update(progress.done // batch_size * stage.passes)
        if len(stages) > 1:
            bar.set_description(f"{label}: {stage.name}")
        for numbers in batches:
            index = numbers.to(split.labels.device)
            withstood, flagged = stage.withstands(split.images[index].permute(0, 3, 1, 2), split.labels[index], index)
            progress.standing[numbers] = withstood.cpu()
            progress.done += len(numbers)
            progress.warnings += [line for line in flagged if line not in progress.warnings]
            progress.seconds = before + time.perf_counter() - began
            if save is not None:
                save(progress)
        progress.accuracy[stage.name] = 100 * progress.standing.double().mean().item()
        progress.entered, progress.done = progress.standing.clone(), 0
        progress.stage += 1
    progress.seconds = before + time.perf_counter() - began


def _digits(mask: Tensor) -> str:
    return "".join("1" if bit else "0" for bit in mask.tolist())


def _mask(digits: str) -> Tensor:
    return torch.tensor([int(digit) for digit in digits], dtype=torch.bool)
