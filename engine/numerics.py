"""Whether a run is bit-exact: what decides its numbers to the last bit, kept in every checkpoint.

Two levels, never mixed in silence. Bit-exact: every step was made with the same fingerprint, so the run ends in the
same bits as one that was never stopped. Equivalent: the same images, order, crops and noise, which are functions of the
seed, but sums that are rounded otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Fingerprint = dict[str, str | int | bool | None]  # from `environment.fingerprint`


@dataclass(frozen=True, kw_only=True, slots=True)
class Numerics:
    """The numerics of a run until some step.

    Attributes:
        now: the fingerprint of the newest steps.
        changes: where it changed, and how, oldest first; empty for a run that is bit-exact.
    """

    now: Fingerprint
    changes: tuple[str, ...] = ()

    def followed_by(self, now: Mapping[str, str | int | bool | None], *, step: int) -> Numerics:
        """These numerics until a step of the run, and another or the same fingerprint from it on."""
        names = dict.fromkeys((*self.now, *now))
        differences = [
            f"{name} {self.now.get(name, 'not known')}, now {now.get(name, 'not known')}"
            for name in names
            if self.now.get(name, ...) != now.get(name, ...)
        ]
        change = (f"from step {step} on: {'; '.join(differences)}",) if differences else ()
        return Numerics(now=dict(now), changes=(*self.changes, *change))

    @property
    def verdict(self) -> str:
        """`bit for bit`, or `equivalent, not bit for bit` and why."""
        why = list(self.changes)
        if self.now.get("cuda") is not None and not self.now.get("deterministic"):
            why.append("a GPU's sums are in no fixed order without --execution.deterministic")
        return f"equivalent, not bit for bit ({'; '.join(why)})" if why else "bit for bit"
