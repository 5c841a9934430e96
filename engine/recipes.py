"""The presets: a recipe for every row that can be asked for by name."""

from __future__ import annotations

import difflib
from dataclasses import replace

from .errors import UsageError
from .presets import Group, own_presets
from .presets_paper import named_rows, paper_presets
from .presets_protocols import fastat_presets, imagenet_presets
from .recipe import OptimizerOptions, Recipe, from_json, smoothing_of, to_json

__all__ = ["GROUPS", "PRESETS", "Group", "OptimizerOptions", "Recipe", "from_json", "get", "smoothing_of", "to_json"]

_PAPER, _OWN = paper_presets(), own_presets()
GROUPS: tuple[Group, ...] = (
    replace(_OWN, recipes=_OWN.recipes + named_rows(_PAPER)),
    *_PAPER,
    imagenet_presets(),
    *fastat_presets(),
)
"""The presets as they are listed."""

PRESETS: dict[str, Recipe] = {recipe.name: recipe for group in GROUPS for recipe in group.recipes}
"""The presets by name."""


def get(name: str) -> Recipe:
    """The preset of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in PRESETS:
        close = difflib.get_close_matches(name, PRESETS, n=3)
        meant = f"did you mean {' or '.join(close)}?" if close else "`hardfast recipes` lists all"
        raise UsageError(f"recipe '{name}' is not known: {meant}")
    return PRESETS[name]
