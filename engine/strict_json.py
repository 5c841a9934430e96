"""Reading the JSON that the engine wrote: nothing missing, nothing unknown, types as declared."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, TypeVar

from ..loaders.option_types import LONGEST_SHOWN, shown
from .errors import UsageError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

Kind = TypeVar("Kind")


def dump(value: Any) -> str:
    """A dataclass as indented JSON, every field written out.

    Raises:
        UsageError: pydantic is not installed.
    """
    return json.dumps(_adapter(type(value)).dump_python(value, mode="json"), indent=2) + "\n"


def load(kind: type[Kind], text: str, source: str, *, error: type[UsageError], fix: str) -> Kind:
    """The inverse of `dump`.

    Args:
        kind: the dataclass.
        text: the file's content.
        source: its path, for the message.
        error: what is raised.
        fix: what to do, for the message.

    Raises:
        error: naming the first field that is missing, unknown or of another type.
        UsageError: pydantic is not installed.
    """
    adapter = _adapter(kind)
    from pydantic import ValidationError

    try:
        value = adapter.validate_json(text, strict=True, extra="forbid")
    except ValidationError as problem:
        first = problem.errors()[0]
        parts = [str(part) for part in first["loc"]]
        where = ".".join(part if len(part) <= LONGEST_SHOWN else shown(part) for part in parts) or "the file"
        raise error(" ".join(f"{source}: {where}: {first['msg']}; {fix}".split())) from None
    missing = _first_missing(json.loads(dump(value)), plain(text, source, error=error))
    if missing is not None:
        raise error(f"{source}: {missing} is missing; {fix}")
    return value


def plain(text: str, source: str, *, error: type[UsageError]) -> Any:
    """The value of a JSON text in which each key stands once and each number is finite.

    Args:
        text: the file's content.
        source: its path, for the message.
        error: what is raised.

    Raises:
        error: it is no such text.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:
                raise ValueError(f"the key {shown(name)} stands there twice: keep the right one")
            found[name] = value
        return found

    def finite(word: str) -> float:
        value = float(word)
        if not math.isfinite(value):
            raise ValueError(f"{word[:20]} is no finite number")
        return value

    try:
        return json.loads(text, object_pairs_hook=once, parse_float=finite, parse_constant=finite)
    except (ValueError, RecursionError) as problem:
        raise error(f"{source} is damaged: {problem}") from None


_ADAPTERS: dict[type[Any], TypeAdapter[Any]] = {}  # by class: to build one takes longer than to write a checkpoint


def _adapter(kind: type[Kind]) -> TypeAdapter[Kind]:
    """What reads and writes a dataclass; pydantic is imported here alone, since training and timing need none."""
    if kind not in _ADAPTERS:
        try:
            from pydantic import TypeAdapter
        except ModuleNotFoundError:
            raise UsageError("reading and writing runs needs pydantic: pip install pydantic") from None
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]


def _first_missing(wanted: Any, found: Any, name: str = "") -> str | None:
    """The dotted name of the first field that `found` lacks; a default must not stand in for a lost line."""
    if not isinstance(wanted, dict):
        return None
    for key, value in wanted.items():
        inner = f"{name}.{key}" if name else key
        if key not in found:
            return inner
        lost = _first_missing(value, found[key], inner)
        if lost is not None:
            return lost
    return None
