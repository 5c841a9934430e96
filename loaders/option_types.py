"""Whether the fields of an options class hold what they declare, however the options were made.

The command line and config.json convert and check by type on their own; a recipe written in Python has nothing but
this, and without it a wrong type would surface as a comparison that fails, or as a run that trains on nonsense.
"""

from __future__ import annotations

import math
import types
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

LONGEST_TEXT = 4096  # characters; no path, name or number that is meant is longer
LONGEST_SHOWN = 60  # characters of a wrong value that a message repeats
LARGEST_WHOLE = 1 << 64  # seeds lie below it, counts far below

_WORDS: Mapping[Any, str] = {
    bool: "True or False",
    int: "a whole number below 2**64",
    float: "a finite number",
    str: f"text of at most {LONGEST_TEXT:,} characters without NUL",
    type(None): "None",
}


def check_options(options: Any, group: str, error: type[ValueError]) -> None:
    """Refuses options with a field of another type than its annotation says, or a number that is not finite.

    A whole number may stand where any number may; True and False are no numbers.

    Args:
        options: a dataclass, at the beginning of its `__post_init__`.
        group: what stands before the fields' names on the command line, like `optimizer`; empty for the recipe's own.
        error: what is raised.

    Raises:
        error: naming the option, as users type it, and what it must be.
    """
    for name, kind in _kinds(type(options)).items():  # type: ignore[arg-type]  # a class is hashable
        value = getattr(options, name)
        if not _fits(value, kind):
            raise error(f"{option_name(group, name)} must be {_in_words(kind)}, not {shown(value)}")


def option_name(group: str, name: str) -> str:
    """A field as users type it: `generator_lr` of the group `method` is method.generator-lr."""
    return f"{group}.{name}".lstrip(".").replace("_", "-")


def check_range(value: float, name: str, low: float, high: float, error: type[ValueError]) -> None:
    """Raises `error` unless a number lies in [low, high]."""
    if not low <= value <= high:
        raise error(f"{name} must lie in [{low}, {high}], not {value}")


def shown(value: Any) -> str:
    """A wrong value as a message shows it: quoted where it is text, on one line, and short."""
    if isinstance(value, int) and value.bit_length() > LONGEST_SHOWN:
        return f"a number of {value.bit_length()} bits"  # Python does not write out those of over 4,300 digits
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    text = " ".join(text.split())
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}... ({len(text):,} characters)"


@cache
def _kinds(options: type) -> dict[str, Any]:
    """The annotation of every field, without its marks."""
    hints = get_type_hints(options)
    return {field.name: hints[field.name] for field in fields(options)}


def _fits(value: Any, kind: Any) -> bool:
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return any(_fits(value, one) for one in args)
    if origin is Literal:
        return isinstance(value, str) and value in args
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if len(args) == 2 and args[1] is Ellipsis:
            return all(_fits(one, args[0]) for one in value)
        return len(value) == len(args) and all(map(_fits, value, args))
    if kind is int:
        return type(value) is int and -LARGEST_WHOLE < value < LARGEST_WHOLE
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and _finite(value)
    if kind is str:
        return isinstance(value, str) and len(value) <= LONGEST_TEXT and "\0" not in value
    return isinstance(value, kind)


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond what a float holds
        return False


def _in_words(kind: Any) -> str:
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(_in_words(one) for one in args)
    if origin is Literal:
        return f"one of {', '.join(args)}"
    if origin is tuple:
        inner = f"each {_in_words(args[0])}" if args[1:] == (Ellipsis,) else ", then ".join(map(_in_words, args))
        return f"a tuple ({inner})"
    return _WORDS.get(kind, kind.__name__)
