"""Marks on fields of the dataclasses, for tyro and pydantic where they are installed.

A machine that only trains and measures needs neither: there the marks are inert, and the command line and config.json,
which need both, say what is missing.
"""

from __future__ import annotations

try:
    import tyro
except ModuleNotFoundError:
    HIDDEN: object = "not offered on the command line"
else:
    HIDDEN = tyro.conf.Suppress
try:
    import pydantic
except ModuleNotFoundError:
    DISCRIMINATED: object = "the member of the union whose `name` it is"
else:
    DISCRIMINATED = pydantic.Field(discriminator="name")
