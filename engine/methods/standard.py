"""`standard`: training on clean images, the yardstick of cost and of what undefended nets lose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from torch import Tensor

from ...kernels import to_float
from ...loaders import Batch
from ...loaders.option_types import check_options
from ..errors import UsageError
from ..markers import HIDDEN
from ..phases import phase
from .base import Method, MethodTraits, Position, Setting


@dataclass(frozen=True, kw_only=True, slots=True)
class StandardOptions(MethodTraits):
    """Training on clean images: no attack, no options."""

    name: Annotated[Literal["standard"], HIDDEN] = "standard"

    def __post_init__(self) -> None:
        check_options(self, "method", UsageError)

    def build(self, setting: Setting) -> Method:
        """The method for one classifier and threat."""
        return Standard(setting)


class Standard(Method):
    """Costs 3 units: the descent alone."""

    select_by = "clean"  # its robust accuracy is noise around its start: it would select an untrained net

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    def craft(self, batch: Batch, position: Position) -> Tensor:
        with phase("data"):
            return to_float(batch.x, self.setting.dtype)
