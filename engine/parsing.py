"""From words to a dataclass through tyro, with each mistake as one line instead of a box."""

from __future__ import annotations

import contextlib
import difflib
import io
import re
from collections.abc import Sequence
from typing import TypeVar

import tyro

from .errors import UsageError

Arguments = TypeVar("Arguments")
_CONFIG = (tyro.conf.AvoidSubcommands,)


def parse(kind: type[Arguments], argv: Sequence[str], program: str, *, default: Arguments | None = None) -> Arguments:
    """The arguments of one command; `--help` prints what the dataclass's docstrings say and exits.

    Args:
        kind: the dataclass; its field names, with dashes, are the options.
        argv: the words after the command.
        program: the command, for the help.
        default: values of the options that are not given.

    Raises:
        UsageError: an unknown option, a missing one, or a value of the wrong type.
    """
    said = io.StringIO()
    try:
        if "-h" in argv or "--help" in argv:
            return _parse(kind, argv, program, default)
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            return _parse(kind, argv, program, default)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UsageError(_one_line(said.getvalue(), kind, program, default)) from None


def _parse(kind: type[Arguments], argv: Sequence[str], program: str, default: Arguments | None) -> Arguments:
    if default is None:
        return tyro.cli(kind, prog=program, args=list(argv), config=_CONFIG)
    return tyro.cli(kind, prog=program, args=list(argv), config=_CONFIG, default=default)


def _one_line(box: str, kind: type[Arguments], program: str, default: Arguments | None) -> str:
    """The cause and the fix out of tyro's box."""
    lines = [re.sub(r"[╭╮╰╯│─]", " ", line).strip() for line in box.splitlines()]
    lines = [line for line in lines if line and not set(line) <= {"-", " "}]
    title, body = (lines[0], lines[1:]) if lines else ("wrong arguments", [])
    if unknown := re.search(r"Unrecognized options: (\S+?),?(?:\s|$)", " ".join(body)):
        option = unknown[1]
        close = difflib.get_close_matches(option, _options(kind, program, default), n=1)
        fix = f"did you mean {close[0]}?" if close else f"see `{program} --help`"
        return f"{program} has no option '{option}': {fix}"
    if title.startswith("Required"):
        missing = [line.split()[0] for line in body if line.startswith("--") or line.isupper()]
        return f"{program} needs {' and '.join(missing) or 'more arguments'}: see `{program} --help`"
    cause = " ".join(
        body[: next((i for i, line in enumerate(body) if line.startswith(("Argument help", "For full"))), 3)]
    )
    cause = re.sub(r"^Error parsing recipe[\w.]*: ", "", cause)
    return f"{cause.rstrip('.')}: see `{program} --help`"


def _options(kind: type[Arguments], program: str, default: Arguments | None) -> list[str]:
    """All options of a command, read off its help."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        _parse(kind, ["--help"], program, default)
    return sorted(set(re.findall(r"(--[\w.-]+)", said.getvalue())) - {"--help"})


def recipe_name(command: str, argv: Sequence[str]) -> tuple[str, list[str]]:
    """(the recipe, the other words); `--help` without a recipe teaches with `digits`."""
    if argv and not argv[0].startswith("-"):
        return argv[0], list(argv[1:])
    if "-h" in argv or "--help" in argv:
        return "digits", list(argv)
    raise UsageError(f"{command} needs a recipe before its options, like digits: `hardfast recipes` lists them")
