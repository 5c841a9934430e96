"""One way to time: variants in turn in one process, so that a drifting machine slows them all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Spread:
    """Median with the 20th and 80th percentile."""

    median: float
    p20: float
    p80: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """The spread of at least two values."""
        fifths = statistics.quantiles(values, n=5, method="inclusive")
        return cls(statistics.median(values), fifths[0], fifths[3])


def interleaved_seconds(
    variants: Mapping[str, Callable[[], object]], *, repeats: int, warmup: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of every call: all variants once, then all again, `repeats` times after `warmup` rounds.

    A GPU is waited for before and after each call, so a call should be long against that wait.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for round_number in range(warmup + repeats):
        for name, call in variants.items():
            _wait(device)
            began = time.perf_counter()
            call()
            _wait(device)
            if round_number >= warmup:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def paired_ratio(seconds: Mapping[str, list[float]], name: str, base: str) -> Spread:
    """How much longer `name` took than `base`, round by round."""
    return Spread.of([a / b for a, b in zip(seconds[name], seconds[base], strict=True)])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
