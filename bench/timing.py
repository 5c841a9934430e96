"""One way to time: variants in turn in one process, so that a drifting machine slows them all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from ..engine import console
from ..engine.environment import wait_for
from ..engine.errors import UsageError

CAPTURE_WARMUP = 3
CALL_SECONDS = {"cuda": 0.02, "cpu": 0.0}
MOST_ROUNDS = 100_000


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


def check_rounds(rounds: int) -> None:
    """Raises UsageError unless so many timings give percentiles, and come to an end."""
    if not 2 <= rounds <= MOST_ROUNDS:
        raise UsageError(f"--rounds is {rounds}: percentiles need at least 2, and {MOST_ROUNDS:,} must do")


def interleaved(timers: Mapping[str, Callable[[], float]], *, repeats: int, warmup: int) -> dict[str, list[float]]:
    """What every timer returns: all once, then all again, `repeats` times after `warmup` rounds."""
    found: dict[str, list[float]] = {name: [] for name in timers}
    with console.bar(warmup + repeats, "timing", "rounds") as bar:
        for round_number in range(warmup + repeats):
            for name, timer in timers.items():
                seconds = timer()
                if round_number >= warmup:
                    found[name].append(seconds)
            bar.update(1)
    return found


def interleaved_seconds(
    variants: Mapping[str, Callable[[], object]], *, repeats: int, warmup: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of every call, all variants in turn as in `interleaved`.

    By CUDA events on a GPU, which is idle when a call begins, so a call should be long against its first launch; by the
    clock on the wall on a CPU.
    """
    timed = event_seconds if device.type == "cuda" else wall_seconds
    timers = {name: partial(timed, call, device) for name, call in variants.items()}
    return interleaved(timers, repeats=repeats, warmup=warmup)


def interleaved_steps(
    steps: Mapping[str, Callable[[], object]], *, repeats: int, warmup: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of one step of each variant, in turn as in `interleaved_seconds`.

    A timing takes as many steps in a row as fill `CALL_SECONDS`, at most 5, so that waiting for a GPU does not count.
    """
    counts = {}
    for name, step in steps.items():
        once = wall_seconds(step, device)
        counts[name] = max(1, min(5, int(CALL_SECONDS[device.type] / once)))
    calls = {name: Rotation([step], turns=counts[name]) for name, step in steps.items()}
    seconds = interleaved_seconds(calls, repeats=repeats, warmup=warmup, device=device)
    return {name: [one / counts[name] for one in found] for name, found in seconds.items()}


def paired_ratio(seconds: Mapping[str, list[float]], name: str, base: str) -> Spread:
    """How much longer `name` took than `base`, round by round."""
    return Spread.of([a / b for a, b in zip(seconds[name], seconds[base], strict=True)])


class Rotation:
    """Runs on different tensors, one after the other and then again from the first, so that no cache serves the next.

    The result of a run is held until that run comes again. Freed at once, all results would share one piece of memory,
    which would never leave the cache.
    """

    def __init__(self, runs: Sequence[Callable[[], object]], *, turns: int = 1) -> None:
        self.runs, self.turns = runs, turns

    def __len__(self) -> int:
        """How many runs a call makes."""
        return len(self.runs) * self.turns

    def __call__(self) -> None:
        """Makes all the runs."""
        results: list[object] = [None] * len(self.runs)
        for _ in range(self.turns):
            for place, run in enumerate(self.runs):
                results[place] = run()


class GraphTimer:
    """Times a call on the current CUDA device without its launches: captured in a CUDA graph, and replayed.

    The call is made a few times on a side stream before its capture, which compiles what has to be compiled. It must
    not wait for the GPU, and a replay should take well over 100 us.
    """

    def __init__(self, call: Callable[[], object]) -> None:
        self.call = call  # and with it the tensors whose memory the graph reads and writes
        self.graph = torch.cuda.CUDAGraph()
        self.began, self.ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # also puts the stream back where a capture fails
            for _ in range(CAPTURE_WARMUP):
                call()
            with torch.cuda.graph(self.graph, stream=stream, capture_error_mode="thread_local"):
                call()

    def __call__(self) -> float:
        """Seconds of one replay."""
        self.graph.replay()  # untimed: the GPU is busy with it while the CPU launches the timed one
        self.began.record()
        self.graph.replay()
        self.ended.record()
        self.ended.synchronize()
        return self.began.elapsed_time(self.ended) / 1000


def event_seconds(call: Callable[[], object], device: torch.device) -> float:
    """Seconds from the first to the last kernel of one call on a CUDA device that has nothing else to do."""
    began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    with torch.cuda.device(device):
        torch.cuda.synchronize()
        began.record()
        call()
        ended.record()
        ended.synchronize()
    return began.elapsed_time(ended) / 1000


def wall_seconds(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call by the clock on the wall; a GPU is waited for before and after it."""
    wait_for(device)
    began = time.perf_counter()
    call()
    wait_for(device)
    return time.perf_counter() - began
