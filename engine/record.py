"""What a checkpoint says about itself in train.json: where the run was, its best checkpoint, the net's shape, what the
guards have seen, and whether it is bit-exact.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

from . import strict_json
from .errors import CheckpointError
from .guard import CollapseHistory, NonFiniteHistory
from .models import NetShape
from .numerics import Numerics


@dataclass(kw_only=True, slots=True)
class Counters:
    """Where a run is."""

    epoch: int  # whole epochs done
    step: int  # batches done in the current one
    total: int  # batches done in the run
    step_seconds: float  # spent training, without evaluation and saving
    wall_seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Best:
    """The best checkpoint so far, by held-out accuracy in percent."""

    step: int
    epoch: int
    score: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """Content of train.json."""

    at: Counters
    best: Best | None
    net: NetShape
    collapse: CollapseHistory = field(default_factory=CollapseHistory)
    nonfinite: NonFiniteHistory = field(default_factory=NonFiniteHistory)
    numerics: Numerics = field(default_factory=partial(Numerics, now={}))

    def to_json(self) -> str:
        """As train.json holds it."""
        return strict_json.dump(self)

    @classmethod
    def from_json(cls, text: str, source: str) -> Record:
        """The inverse of `to_json`.

        Raises:
            CheckpointError: naming the first field that is missing, unknown or of another type.
        """
        return strict_json.load(cls, text, source, error=CheckpointError, fix="the checkpoint cannot be used")
