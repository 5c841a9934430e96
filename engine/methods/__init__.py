"""The registry of training methods: one file each; a new one adds its options here and nothing else.

A method's options are a dataclass whose `name` is what users type and whose `build` makes the method.
"""

from __future__ import annotations

from typing import Annotated, get_args

from ..errors import UsageError
from ..markers import DISCRIMINATED
from .base import Method, MethodTraits, Position, Setting
from .fgsm_2step import Fgsm2StepOptions
from .fgsm_ckpt import FgsmCkptOptions
from .fgsm_ga import FgsmGaOptions
from .fgsm_mep import FgsmMepOptions
from .fgsm_rs import FgsmRsOptions
from .fgsm_sdi import FgsmSdiOptions
from .free_at import FreeAtOptions
from .n_fgsm import NFgsmOptions
from .pgd_at import Pgd2AtOptions, Pgd4AtOptions, PgdAtOptions
from .standard import StandardOptions

__all__ = [
    "METHODS",
    "Fgsm2StepOptions",
    "FgsmCkptOptions",
    "FgsmGaOptions",
    "FgsmMepOptions",
    "FgsmRsOptions",
    "FgsmSdiOptions",
    "FreeAtOptions",
    "Method",
    "MethodOptions",
    "MethodTraits",
    "NFgsmOptions",
    "Pgd2AtOptions",
    "Pgd4AtOptions",
    "PgdAtOptions",
    "Position",
    "Setting",
    "StandardOptions",
    "method_options",
]

MethodOptions = Annotated[
    FgsmSdiOptions
    | PgdAtOptions
    | Pgd2AtOptions
    | Pgd4AtOptions
    | FgsmRsOptions
    | FgsmCkptOptions
    | FgsmGaOptions
    | FreeAtOptions
    | NFgsmOptions
    | FgsmMepOptions
    | Fgsm2StepOptions
    | StandardOptions,
    DISCRIMINATED,
]
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
