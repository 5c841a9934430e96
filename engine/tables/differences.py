"""Recipes as flat tables of their fields, and where two of them differ."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict
from typing import Any

from ..recipes.recipe import Recipe
from ..run_folder import NOT_IDENTITY

LABELS = frozenset({"name", "about"})
# What does not decide a result, by dotted name, and what a preset is called. The guard decides none as long as nothing
# overfits, and where it went back, results say so.
NOT_DECIDING = LABELS | {"guard"} | {f"{group}.{field}" if group else field for group, field in NOT_IDENTITY}


def fields_of(recipe: Recipe) -> dict[str, Any]:
    """Every field by its dotted name, like `method.k`, in the order of the dataclasses."""
    return _flat("", asdict(recipe))


def changed(recipe: Recipe, base: Recipe, *, leaving_out: Collection[str] = NOT_DECIDING) -> dict[str, Any]:
    """The fields of a recipe whose values differ from another one's, or that the other lacks.

    Args:
        recipe: whose values are returned.
        base: what it is compared with.
        leaving_out: dotted names that may differ; by default those that decide no result.
    """
    before = fields_of(base)
    missing = object()
    return {
        name: value
        for name, value in fields_of(recipe).items()
        if name not in leaving_out and before.get(name, missing) != value
    }


def as_option(name: str) -> str:
    """A dotted name as the command line has it, without its dashes: `method.generator_width` as
    `method.generator-width`.
    """
    return name.replace("_", "-")


def as_words(value: Any) -> str:
    """A value as the command line takes it; parts that have fields of their own, like stages, with commas between."""
    if isinstance(value, (tuple, list)) and value and isinstance(value[0], dict):
        return ", ".join(as_words(item) for item in value)
    if isinstance(value, (tuple, list)):
        return " ".join(as_words(item) for item in value)
    if isinstance(value, dict):
        return " ".join(f"{as_option(key)} {as_words(item)}" for key, item in value.items())
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    return str(value)


def _flat(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {name: value}
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= _flat(f"{name}.{key}" if name else key, inner)
    return found
