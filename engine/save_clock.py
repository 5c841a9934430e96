"""When a run is saved in mid-epoch: an epoch of ImageNet is too long to lose."""

from __future__ import annotations

import math
from time import monotonic

from .errors import UsageError

SAVE_MINUTES = 10.0


class SaveClock:
    """Tells when the last save is too long ago.

    What it decides is where a killed run goes on, never what it computes.

    Args:
        minutes: between two saves; 0 saves after every step.

    Raises:
        UsageError: it is negative, or no number.
    """

    def __init__(self, minutes: float) -> None:
        if not 0 <= minutes < math.inf:
            raise UsageError(f"save-minutes must be a number of minutes from 0 on, not {minutes}")
        self._seconds = 60 * minutes
        self.renew()

    def renew(self) -> None:
        """The run was saved just now."""
        self._saved = monotonic()

    @property
    def due(self) -> bool:
        """Whether it should be saved after this step."""
        return monotonic() - self._saved >= self._seconds
