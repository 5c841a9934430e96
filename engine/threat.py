"""Radii and step sizes as users write them: `8/255`, kept as exact rationals."""

from __future__ import annotations

import re
from fractions import Fraction

from ..loaders.option_types import shown
from .errors import UsageError

_FORM = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,30})?)/255")  # more digits mean nothing, and Fraction takes no 5,000


def parse_pixels(text: str, name: str, *, positive: bool = False) -> Fraction:
    """`8/255` as an exact rational in [0, 1] pixel units; the numerator may have decimals.

    Args:
        text: the value, always written over 255.
        name: the option it belongs to, for the message.
        positive: refuse 0, at which an attack changes nothing and its accuracy is the clean one.

    Raises:
        UsageError: another form, a value above 1, or 0 where it must be positive.
    """
    match = _FORM.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{name} {shown(text)} is not a number of grey levels over 255: write it like 8/255")
    value = Fraction(match[1]) / 255
    if value > 1:
        raise UsageError(f"{name} {text} is above 255/255, the whole range of a pixel: write it like 8/255")
    if positive and not value:
        raise UsageError(f"{name} {text} attacks nothing: it must be above 0/255, like 8/255")
    return value


def format_pixels(value: Fraction) -> str:
    """The inverse of `parse_pixels`: Fraction(8, 255) as `8/255`."""
    levels = value * 255
    return f"{levels.numerator if levels.denominator == 1 else float(levels)}/255"
