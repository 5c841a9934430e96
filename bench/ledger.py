"""The ledger of a training step: seconds, units and floor of every phase, as a table and as rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ..engine import console
from ..engine.methods import Position
from ..engine.phases import PhaseName
from .phase_timers import OTHER
from .roofline import Call, Machine
from .timing import Spread

STEP = "step"
PHASES = (*get_args(PhaseName), OTHER)
KindName = Literal["average", "ordinary", "k-th"]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of step: one of them, and which part of all steps they are."""

    name: KindName
    position: Position
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One phase, or the whole step, in one kind of step or in the average of all.

    Attributes:
        phase: a `PhaseName`, "other" for what is in no phase, or "step".
        kind: of step.
        rounds: seconds, round by round.
        share: its median over the sum of the phases' medians.
        flops, bytes: of its convolutions, matrix products and our kernels.
        units: its operations over those of the classifier's forward.
        floor: seconds, see `roofline`.
    """

    phase: str
    kind: KindName
    rounds: list[float]
    share: float
    flops: float
    bytes: float
    units: float
    floor: float

    @property
    def seconds(self) -> Spread:
        """Median, p20 and p80."""
        return Spread.of(self.rounds)

    @property
    def times_floor(self) -> float | None:
        """The median over the floor; None where there is none."""
        return self.seconds.median / self.floor if self.floor else None


Rounds = Mapping[KindName, Sequence[Mapping[str, float]]]
"""Seconds by phase, `OTHER` among them, of every round, by kind of step."""
Calls = Mapping[KindName, Mapping[str, Sequence[Call]]]
"""What was counted, by phase and kind of step."""


def ledger(kinds: Sequence[Kind], rounds: Rounds, calls: Calls, *, unit: int, machine: Machine) -> list[Entry]:
    """The entries of the average step, then of each kind, every time the phases in order and the whole step.

    Args:
        kinds: of steps, whose weights add up to 1.
        rounds: as many for each kind.
        calls: for each kind.
        unit: operations of the classifier's forward.
        machine: what the floors are measured by.
    """
    weights: dict[KindName, float] = {kind.name: kind.weight for kind in kinds}
    averaged = _entries("average", weights, rounds, calls, unit, machine)
    return averaged + [
        entry for kind in kinds for entry in _entries(kind.name, {kind.name: 1.0}, rounds, calls, unit, machine)
    ]


def _entries(
    name: KindName, weights: Mapping[KindName, float], rounds: Rounds, calls: Calls, unit: int, machine: Machine
) -> list[Entry]:
    """The entries of the kinds of step with these weights, averaged."""
    phases = [phase for phase in PHASES if any(phase in rounds[kind][0] for kind in weights)]
    seconds = {
        phase: [
            sum(weight * of_kind.get(phase, 0.0) for weight, of_kind in zip(weights.values(), in_turn, strict=True))
            for in_turn in zip(*(rounds[kind] for kind in weights), strict=True)
        ]
        for phase in phases
    }
    medians = {phase: Spread.of(taken).median for phase, taken in seconds.items()}

    def entry(row: str, parts: Sequence[str]) -> Entry:
        counted = [
            (weight, [call for part in parts for call in calls[kind].get(part, ())]) for kind, weight in weights.items()
        ]
        flops = sum(weight * sum(call.flops for call in found) for weight, found in counted)
        return Entry(
            phase=row,
            kind=name,
            rounds=[sum(taken) for taken in zip(*(seconds[part] for part in parts), strict=True)],
            share=sum(medians[part] for part in parts) / sum(medians.values()),
            flops=flops,
            bytes=sum(weight * sum(call.bytes for call in found) for weight, found in counted),
            units=flops / unit,
            floor=sum(weight * machine.floor(found) for weight, found in counted),
        )

    return [*(entry(phase, [phase]) for phase in phases), entry(STEP, phases)]


def table(entries: Sequence[Entry], kinds: Sequence[Kind]) -> str:
    """The average step phase by phase; under it, where there are two kinds of step, how long each is."""
    header = ["phase", "ms", "share", "units", "floor ms", "times floor"]
    lines = [
        [
            entry.phase,
            f"{1000 * entry.seconds.median:.3f}",
            f"{entry.share:.1%}",
            f"{entry.units:.2f}",
            f"{1000 * entry.floor:.3f}",
            _times(entry.times_floor),
        ]
        for entry in entries
        if entry.kind == "average"
    ]
    said = console.table(header, lines)
    if len(kinds) > 1:
        whole = {entry.kind: entry.seconds.median for entry in entries if entry.phase == STEP}
        parts = [f"{kind.name} {1000 * whole[kind.name]:.3f} ms ({kind.weight:.0%} of the steps)" for kind in kinds]
        said += f"\nsteps: {', '.join(parts)}"
    return said


def _times(factor: float | None) -> str:
    if factor is None:
        return "-"
    return f"{factor:,.0f}" if factor >= 100 else f"{factor:.2f}"


def rows(entries: Sequence[Entry], machine: Machine) -> list[dict[str, Any]]:
    """The columns of each entry, for CSV and JSON, with what its floor was measured by."""
    return [
        {
            "phase": entry.phase,
            "kind": entry.kind,
            **{name: float(f"{value:.5g}") for name, value in _figures(entry, machine).items()},
            "rounds": len(entry.rounds),
        }
        for entry in entries
    ]


def _figures(entry: Entry, machine: Machine) -> dict[str, float]:
    spread = entry.seconds
    return {
        "median_ms": 1e3 * spread.median,
        "p20_ms": 1e3 * spread.p20,
        "p80_ms": 1e3 * spread.p80,
        "share": entry.share,
        "units": entry.units,
        "gflop": entry.flops / 1e9,
        "gbyte": entry.bytes / 1e9,
        "floor_ms": 1e3 * entry.floor,
        "peak_tflops": machine.flops / 1e12,
        "bandwidth_gbs": machine.bandwidth / 1e9,
    }
