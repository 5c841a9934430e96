"""The registry of training methods: one file each; a new one adds its options here and nothing else.

A method's options are a dataclass whose `name` is what users type and whose `build` makes the method.
"""

from __future__ import annotations

from typing import Annotated, get_args

from ..errors import UsageError
from ..markers import DISCRIMINATED
from .base import Method, Position, Setting
from .fgsm_rs import FgsmRsOptions
from .fgsm_sdi import FgsmSdiOptions
from .pgd_at import PgdAtOptions
from .standard import StandardOptions

__all__ = [
    "METHODS",
    "FgsmRsOptions",
    "FgsmSdiOptions",
    "Method",
    "MethodOptions",
    "PgdAtOptions",
    "Position",
    "Setting",
    "StandardOptions",
    "method_options",
]

MethodOptions = Annotated[FgsmSdiOptions | FgsmRsOptions | PgdAtOptions | StandardOptions, DISCRIMINATED]
METHODS = {options().name: options for options in get_args(get_args(MethodOptions)[0])}


def method_options(name: str) -> MethodOptions:
    """The default options of a method.

    Raises:
        UsageError: there is no such method.
    """
    if name not in METHODS:
        raise UsageError(f"method '{name}' is not a method: choose one of {', '.join(METHODS)}")
    options: MethodOptions = METHODS[name]()
    return options
