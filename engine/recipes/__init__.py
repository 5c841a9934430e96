"""The presets: a recipe for every row that can be asked for by name.

They are built when they are first asked for. `GROUPS` has them as they are listed, `PRESETS` by name.
"""

from __future__ import annotations

import difflib
from dataclasses import replace
from functools import cache
from typing import Any

from ...loaders.option_types import shown
from ..errors import UsageError
from .presets import Group, own_presets
from .recipe import OptimizerOptions, Recipe, from_json, smoothing_of, to_json

__all__ = ["GROUPS", "PRESETS", "Group", "OptimizerOptions", "Recipe", "from_json", "get", "smoothing_of", "to_json"]

NAMED = 3  # names that an unknown one is answered with
GROUPS: tuple[Group, ...]
PRESETS: dict[str, Recipe]


def __getattr__(name: str) -> Any:
    """`GROUPS` and `PRESETS`, which take work that importing should not do."""
    if name == "GROUPS":
        return _groups()
    if name == "PRESETS":
        return _presets()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@cache
def _groups() -> tuple[Group, ...]:
    # These modules make the recipes that theirs are variants of.
    from .beyond import beyond_presets
    from .paper_rows import named_rows, paper_presets
    from .protocols import fastat_presets, imagenet_presets

    paper, own = paper_presets(), own_presets()
    return (
        replace(own, recipes=own.recipes + named_rows(paper)),
        *paper,
        beyond_presets(),
        imagenet_presets(),
        *fastat_presets(),
    )


@cache
def _presets() -> dict[str, Recipe]:
    return {recipe.name: recipe for group in _groups() for recipe in group.recipes}


def get(name: str) -> Recipe:
    """The preset of that name.

    Raises:
        UsageError: there is none.
    """
    presets = _presets()
    if name not in presets:
        beginning = [preset for preset in presets if name and preset.startswith(name)]
        close = beginning[:NAMED] or difflib.get_close_matches(name, presets, n=NAMED)
        meant = f"did you mean {' or '.join(close)}?" if close else "`hardfast recipes` lists all"
        raise UsageError(f"recipe {shown(name)} is not known: {meant}")
    return presets[name]
